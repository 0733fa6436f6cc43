"""What a launcher measures, as records in the event log.

Before a worker starts, its launcher extends one event for every component into the TPM: type
``EV_IPL``, data the canonical JSON (RFC 8785) of the record, digest the SHA-256 of that data::

    {"digest":"sha256:…","kind":"distribution","name":"cryptography","version":"50.0.2"}

The configuration's record also holds the whole effective ``configuration``, whose canonical
form ``digest`` covers. After the last component an ``EV_SEPARATOR`` closes each register, so
that nothing can be added later without showing.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import rfc8785

from cloister.errors import MalformedError
from cloister.evidence.eventlog import SEPARATOR_DATA, Event, EventType, measured_event
from cloister.strictjson import Json, JsonObject, canonical_string, parse_json_object

MAX_RECORD_BYTES: Final = 256 * 1024
MAX_TEXT: Final = 1024
"""Characters accepted in a component's name or version."""

_CODE: Final = "eventlog_record"


class ComponentKind(enum.StrEnum):
    """What a component is; decides the register it is measured into."""

    INTERPRETER = "interpreter"
    STDLIB = "stdlib"
    DISTRIBUTION = "distribution"
    """All files of one installed distribution."""
    UNOWNED = "unowned"
    """A file in the installation that belongs to no distribution."""
    NATIVE = "native"
    """The engine's native library."""
    MODEL = "model"
    """A model that is served, with the digest of all its files (`cloister.model_digest`)."""
    MODEL_FILE = "model_file"
    """One file of a model that has several; the name is ``MODEL/ROLE``."""
    CONFIGURATION = "configuration"


SOFTWARE_REGISTER: Final = 8
ENGINE_REGISTER: Final = 14
MODEL_REGISTER: Final = 15

REGISTERS: Final[Mapping[ComponentKind, int]] = {
    ComponentKind.INTERPRETER: SOFTWARE_REGISTER,
    ComponentKind.STDLIB: SOFTWARE_REGISTER,
    ComponentKind.DISTRIBUTION: SOFTWARE_REGISTER,
    ComponentKind.UNOWNED: SOFTWARE_REGISTER,
    ComponentKind.NATIVE: ENGINE_REGISTER,
    ComponentKind.CONFIGURATION: ENGINE_REGISTER,
    ComponentKind.MODEL: MODEL_REGISTER,
    ComponentKind.MODEL_FILE: MODEL_REGISTER,
}
"""The register that each kind is measured into."""

LAUNCH_REGISTERS: Final = (SOFTWARE_REGISTER, ENGINE_REGISTER, MODEL_REGISTER)
"""The registers a launch extends; every other one of 0 to 15 stays zero."""

QUOTED_REGISTERS: Final = tuple(range(16))
"""The registers of the SHA-256 bank that a quote must select, no more and no fewer."""


CONFIGURATION_DEBUG: Final = "debug"
"""Member of the effective configuration, a boolean: whether anything is on that helps debugging
and may show prompts. A verifier refuses a configuration that does not say."""

CONFIGURATION_ISOLATION: Final = "isolation"
"""Member of the effective configuration: how the engine is held, an object whose ``mode`` is text
(``{"mode": "sandbox", "layers": […]}``), or that text alone. The claims document repeats the mode,
and a verifier's policy lists the ones it accepts."""

CONFIGURATION_TERMINATION: Final = "termination"
"""Member of the effective configuration: where the seal ends, one of `TERMINATIONS`."""

IN_WORKER: Final = "worker"
"""The seal ends in a worker that is a process of its own: an engine sees prompts, and no key."""
IN_ENGINE: Final = "in-engine"
"""The seal ends inside the process that computes the answers, which so holds the worker's keys."""
TERMINATIONS: Final = (IN_ENGINE, IN_WORKER)

CONFIGURATION_MANAGED: Final = "managed"
"""Member of the effective configuration, a boolean: whether the worker itself started every engine
that it hands prompts to, held as `CONFIGURATION_ISOLATION` says. Otherwise one of them is somebody
else's."""

CONFIGURATION_ENGINES: Final = "engines"
"""Member of the effective configuration: a list with a description of each engine. What one of them
says by the name of a member above has to be what the configuration says there; otherwise the
configuration says nothing."""

CONFIGURATION_SEPARATION: Final = "separation"
"""Member of the effective configuration: how people who use one worker are kept apart, one of
`SEPARATIONS`, or an object whose ``mode`` is that text."""

SHARED: Final = "shared"
"""One engine process serves several people."""
PROCESS_PER_CLIENT: Final = "process-per-client"
"""No engine process ever serves two people."""
SEPARATIONS: Final = (PROCESS_PER_CLIENT, SHARED)

CONFIGURATION_MANIFEST: Final = "manifest_sha256"
"""Member of the effective configuration, where the worker was started under a manifest: that
manifest's SHA-256 in lower-case hexadecimal. The claims document repeats it. Reference values that
stand in a manifest are those of the configuration without this member (`without_manifest`), since
no document holds its own digest."""

CONFIGURATION_EGRESS: Final = "egress"
"""Member of the effective configuration: a list of the places, ``host:port``, that the worker may
connect to. Without it there is none."""

CONFIGURATION_WORKER: Final = "worker"
"""Member of the effective configuration: an object with the settings of the worker itself."""
CONFIGURATION_BROKER: Final = "broker"
"""Member of the effective configuration, where the worker takes keys from a broker: the broker's
``identity``, what its ``evidence`` has to satisfy, and whether ``development`` was named."""

WORKER_ATTESTED_TLS: Final = "attested_tls"
"""Member of it, a boolean: whether requests are also taken that are not sealed, inside a TLS that
ends in the worker, with a key of the keyset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One measured thing: what it is, its name and version, and the digest of its content."""

    kind: ComponentKind
    name: str
    version: str
    digest: str
    """``sha256:<64 lower-case hex>``."""
    configuration: JsonObject | None = field(default=None, repr=False)
    """The effective configuration, in the configuration's record alone."""

    @property
    def register(self) -> int:
        """The register this component is measured into."""
        return REGISTERS[self.kind]

    def encode(self) -> bytes:
        """The record's canonical JSON: the event's data, whose SHA-256 is extended.

        Raises:
            MalformedError: the configuration has no canonical form.
        """
        if self.configuration is None:
            # Written out rather than sorted: a hundred of these are compared for every report.
            text = canonical_string
            return (
                f'{{"digest":{text(self.digest)},"kind":{text(self.kind.value)}'
                f',"name":{text(self.name)},"version":{text(self.version)}}}'
            ).encode()
        return _canonical(
            {
                "configuration": self.configuration,
                "digest": self.digest,
                "kind": self.kind.value,
                "name": self.name,
                "version": self.version,
            }
        )

    def event(self) -> Event:
        """The event that measures this component."""
        return measured_event(self.register, EventType.EV_IPL, self.encode())


def configuration_component(name: str, version: str, configuration: JsonObject) -> Component:
    """Make the configuration's record, with the digest of its canonical form.

    Raises:
        MalformedError: `configuration` has no canonical form.
    """
    return Component(
        kind=ComponentKind.CONFIGURATION,
        name=name,
        version=version,
        digest=configuration_digest(configuration),
        configuration=configuration,
    )


def configuration_digest(configuration: JsonObject) -> str:
    """``sha256:<hex>`` of the configuration's canonical JSON.

    Raises:
        MalformedError: `configuration` has no canonical form.
    """
    return "sha256:" + hashlib.sha256(_canonical(configuration)).hexdigest()


def isolation_mode(configuration: JsonObject) -> str | None:
    """How `configuration` says that the engine is held, or ``None`` if it does not say."""
    return _mode(_agreed(configuration, CONFIGURATION_ISOLATION))


def termination(configuration: JsonObject) -> str | None:
    """Where `configuration` says that the seal ends, or ``None`` if it does not say."""
    place = _agreed(configuration, CONFIGURATION_TERMINATION)
    return place if isinstance(place, str) else None


def is_managed(configuration: JsonObject) -> bool:
    """Whether `configuration` says that the worker starts all its engines itself."""
    return _agreed(configuration, CONFIGURATION_MANAGED) is True


def separation_mode(configuration: JsonObject) -> str | None:
    """How `configuration` says that people are kept apart, or ``None`` if it does not say."""
    return _mode(configuration.get(CONFIGURATION_SEPARATION))


def manifest_of(configuration: JsonObject) -> str | None:
    """The digest of the manifest that `configuration` names, or ``None`` if it names none."""
    named = configuration.get(CONFIGURATION_MANIFEST)
    return named if isinstance(named, str) else None


def without_manifest(component: Component) -> Component:
    """`component`, and for a configuration, as it would be if it named no manifest."""
    configuration = component.configuration
    if configuration is None or CONFIGURATION_MANIFEST not in configuration:
        return component
    rest = {name: one for name, one in configuration.items() if name != CONFIGURATION_MANIFEST}
    return configuration_component(component.name, component.version, rest)


def takes_attested_tls(configuration: JsonObject) -> bool:
    """Whether `configuration` says that the worker takes requests over attested TLS."""
    worker = configuration.get(CONFIGURATION_WORKER)
    return isinstance(worker, dict) and worker.get(WORKER_ATTESTED_TLS) is True


def _agreed(configuration: JsonObject, name: str) -> Json:
    """The member `name`, or ``None`` if the description of an engine says otherwise, or is none.

    A worker repeats there what its engines say, and refuses to start if they differ. Whoever reads
    only the summary must not be told another story by a worker that does not.
    """
    said = configuration.get(name)
    engines = configuration.get(CONFIGURATION_ENGINES, [])
    if not isinstance(engines, list):
        return None
    agree = all(isinstance(one, dict) and one.get(name, said) == said for one in engines)
    return said if agree else None


def _mode(value: Json) -> str | None:
    mode = value.get("mode") if isinstance(value, dict) else value
    return mode if isinstance(mode, str) else None


def launch_events(components: Iterable[Component]) -> tuple[Event, ...]:
    """Every event of a launch, in order: the components, then the separators."""
    separators = (
        measured_event(register, EventType.EV_SEPARATOR, SEPARATOR_DATA)
        for register in LAUNCH_REGISTERS
    )
    return (*(component.event() for component in components), *separators)


def parse_component(data: bytes) -> Component:
    """Decode a component's record; `data` must be its canonical form.

    Raises MalformedError (code ``eventlog_record``), and nothing else.
    """
    plain = _PLAIN_RECORD.fullmatch(data)
    if plain is not None:
        return _plain_component(*plain.groups())
    members = parse_json_object(data, limit=MAX_RECORD_BYTES, what="a measured record", code=_CODE)
    configuration = members.pop("configuration", None)
    if members.keys() != {"digest", "kind", "name", "version"}:
        raise _malformed("does not have the members of a component's record")
    kind = _kind(members["kind"])
    if (kind is ComponentKind.CONFIGURATION) != isinstance(configuration, dict):
        raise _malformed("holds a configuration where none belongs, or lacks it")
    component = Component(
        kind=kind,
        name=_text(members["name"], "name"),
        version=_text(members["version"], "version"),
        digest=parse_digest(members["digest"], code=_CODE),
        configuration=configuration if isinstance(configuration, dict) else None,
    )
    if component.encode() != data:
        raise _malformed("is not in canonical form")
    if component.configuration is not None and component.digest != configuration_digest(
        component.configuration
    ):
        raise _malformed("carries a configuration that its digest does not cover")
    return component


def _plain_component(digest: bytes, kind: bytes, name: bytes, version: bytes) -> Component:
    """Build a component from a record that needs no JSON decoder.

    Text without quotes, backslashes and control characters is its own canonical encoding, so
    what the pattern matches is canonical, and read in one way only.
    """
    if kind not in _PLAIN_KINDS:
        raise _malformed("is of an unknown kind, or is a configuration without one")
    try:
        return Component(
            kind=_PLAIN_KINDS[kind],
            name=_text(name.decode("utf-8"), "name"),
            version=_text(version.decode("utf-8"), "version"),
            digest=digest.decode("ascii"),
        )
    except UnicodeDecodeError:
        raise _malformed("is not in UTF-8") from None


def parse_digest(value: object, *, code: str) -> str:
    """Return `value` if it is ``sha256:<64 lower-case hex>``, or raise `MalformedError`."""
    if (
        not isinstance(value, str)
        or len(value) != 71
        or not value.startswith("sha256:")
        or not _HEX.issuperset(value[7:])
    ):
        raise MalformedError("a digest is not sha256: and 64 hex characters", code=code)
    return value


# Every report brings a hundred of these, nearly all of this form.
_PLAIN_RECORD: Final = re.compile(
    rb'\{"digest":"(sha256:[0-9a-f]{64})","kind":"([a-z_]{1,32})"'
    rb',"name":"([^"\\\x00-\x1f]{0,4096})","version":"([^"\\\x00-\x1f]{0,4096})"\}'
)
_HEX: Final = frozenset("0123456789abcdef")


def _kind(value: object) -> ComponentKind:
    try:
        return ComponentKind(str(value))
    except ValueError:
        raise _malformed("is of an unknown kind") from None


_PLAIN_KINDS: Final = {
    kind.value.encode(): kind for kind in ComponentKind if kind is not ComponentKind.CONFIGURATION
}


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT or not value.isprintable():
        raise _malformed(f"has a {what} that is not printable text of at most {MAX_TEXT}")
    return value


def _canonical(value: JsonObject) -> bytes:
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, RecursionError):
        raise _malformed("holds a configuration without a canonical form") from None


def _malformed(why: str) -> MalformedError:
    return MalformedError(f"a measured record {why}", code=_CODE)
