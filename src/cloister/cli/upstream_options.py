"""What an operator writes about an engine that somebody else runs, or an application.

No sandbox holds either, and the presets of policy refuse both; what a client then has to accept
is said here as well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.measure import EngineOptions, settings_for
from cloister.cli.panels import OTHERS_ENGINE
from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from cloister.engine.protocol import Engine
    from cloister.strictjson import JsonObject

UpstreamAddress = Annotated[
    str | None,
    typer.Option(
        "--upstream",
        help="Instead of the embedded engine, an OpenAI-compatible server on this machine: "
        "unix:/path or http://127.0.0.1:PORT. Its model stays unproven.",
        rich_help_panel=OTHERS_ENGINE,
    ),
]
Application = Annotated[
    str | None,
    typer.Option(
        "--asgi",
        help="Instead of the embedded engine, an ASGI application, imported into the worker's "
        "own process: package.module:attribute, installed beside Cloister. The seal then ends "
        "in the engine, which strict policies refuse; its model stays unproven.",
        rich_help_panel=OTHERS_ENGINE,
    ),
]
CacheSalt = Annotated[
    bool,
    typer.Option(
        "--upstream-cache-salt",
        help="The upstream (or the application) is a vLLM that divides its prefix cache by "
        "cache_salt. Without this it must have been started without prefix caching.",
        rich_help_panel=OTHERS_ENGINE,
    ),
]
UpstreamServes = Annotated[
    list[str] | None,
    typer.Option(
        "--upstream-serves",
        help="What the upstream (or the application) serves besides chat and completions: "
        "embeddings, rerank or tokenize. May be given several times.",
        rich_help_panel=OTHERS_ENGINE,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """An engine that no sandbox holds, and how it keeps people apart."""

    address: str
    """Empty where `application` is named instead."""
    name: str
    cache_salt: bool
    application: str | None = None
    """Imported into the worker's own process."""
    compat: str = ""
    attested_tls: bool = False
    serves: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamOptions:
    """The options as they were written."""

    address: str | None = None
    application: str | None = None
    cache_salt: bool = False
    serves: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.named and (self.cache_salt or self.serves):
            raise _refused(
                "--upstream-cache-salt and --upstream-serves are for what --upstream or --asgi "
                "names"
            )

    @property
    def named(self) -> bool:
        """Whether something else than an engine of the worker's is to answer."""
        return self.address is not None or self.application is not None

    def described(self, name: str | None, options: EngineOptions, *, of_a_model: bool) -> Upstream:
        """What they name. ConfigurationError for options beside them that are not for it.

        `of_a_model`: whether an option was given that belongs to a model of the worker's own.
        """
        if options.managed.managed or (self.address is not None and self.application is not None):
            raise _refused("one engine answers: --engine, --upstream or --asgi")
        if options.broker is not None:
            raise _refused(
                "an upstream or application brings its own model: no broker releases a key for it"
            )
        if options.processes.given:
            raise ConfigurationError(
                "an upstream or application is one process that the worker cannot start again: "
                "people cannot be kept apart in it, nor can it be exchanged",
                code="configuration.separation",
            )
        if of_a_model or options.context is not None or options.unsafe_without_sandbox:
            raise _refused(
                "an upstream or application has its own model and no sandbox: --model, what "
                "belongs to it, --context and --unsafe-without-sandbox are not for it"
            )
        if options.manifest_sha256 is not None:
            raise _refused(
                "nothing shows which model an upstream or application serves, so no manifest can "
                "list it: --manifest is not for it"
            )
        if name is None:
            raise _refused("name the model as the upstream or application does, with --model-name")
        return Upstream(
            address=self.address or "",
            application=self.application,
            name=name,
            cache_salt=self.cache_salt,
            compat=options.compat,
            attested_tls=options.attested_tls,
            serves=frozenset(f"/v1/{one}" for one in self.serves),
        )


def upstream_configuration(upstream: Upstream) -> JsonObject:
    """What is measured of a worker in front of it, or around it."""
    from cloister.worker.configuration import effective_configuration
    from cloister.worker.settings import Separation

    engine = _server(upstream) if upstream.application is None else _application(upstream)
    settings = settings_for(
        upstream.compat, Separation.of_one_process(), attested_tls=upstream.attested_tls
    )
    return effective_configuration([engine], settings)


def _server(upstream: Upstream) -> Engine:
    from cloister.engine.openai_upstream import OpenAIUpstream, UpstreamSettings

    return OpenAIUpstream(
        UpstreamSettings(
            address=upstream.address,
            name=upstream.name,
            cache_salt=upstream.cache_salt,
            prefix_cache_off=not upstream.cache_salt,
            serves=upstream.serves,
        )
    )


def _application(upstream: Upstream) -> Engine:
    """The engine as it describes itself. Only the worker imports the application itself."""
    from cloister.engine.asgi_app import AsgiEngine, AsgiSettings, unproven_model

    async def not_here(_scope: object, _receive: object, _send: object) -> None:
        raise RuntimeError("the application runs in the worker")

    return AsgiEngine(
        not_here,
        AsgiSettings(
            application=upstream.application or "",
            model=unproven_model(upstream.name),
            cache_salt=upstream.cache_salt,
            prefix_cache_off=not upstream.cache_salt,
            serves=upstream.serves,
        ),
    )


def to_accept(configuration: JsonObject) -> tuple[str, ...]:
    """Lines of a policy, in TOML, without which the presets refuse a worker so configured.

    They are told, not written: a kit that accepted whatever its worker is would check nothing.
    """
    from cloister.evidence.component import is_managed, isolation_mode, termination
    from cloister.verifier.policy import development

    preset = development()
    lines: list[str] = []
    if not is_managed(configuration):
        # Nor is its model measured by anybody, unless something else says so.
        lines += ["require_model = false", "require_managed = false"]
    for name, found in (
        ("isolation", isolation_mode(configuration)),
        ("termination", termination(configuration)),
    ):
        if found not in getattr(preset, name):
            lines.append(f"{name} = {json.dumps([found])}")
    return tuple(lines)


def _refused(why: str) -> ConfigurationError:
    return ConfigurationError(why, code="configuration.upstream")
