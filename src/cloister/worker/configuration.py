"""The worker's effective configuration: what is measured before it starts, and read after.

One JSON object without fractions. The launcher measures it, the claims document repeats it,
and the worker does what it says: `settings_of` and `engines_of` read it back, and the worker
refuses to start when an engine that results would describe itself otherwise.

Where the worker listens, who may use it and how often is the operator's business, and is not
in here (`cloister.worker.operation`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, TypeVar, cast

from cloister.channel.claims import MAX_MODELS, ClaimsDocument, ModelClaim
from cloister.engine.protocol import Engine, ModelInfo
from cloister.errors import ConfigurationError
from cloister.evidence.component import (
    CONFIGURATION_BROKER,
    CONFIGURATION_DEBUG,
    CONFIGURATION_ISOLATION,
    CONFIGURATION_MANAGED,
    CONFIGURATION_MANIFEST,
    CONFIGURATION_SEPARATION,
    CONFIGURATION_TERMINATION,
    IN_WORKER,
    isolation_mode,
    manifest_of,
)
from cloister.strictjson import JsonObject
from cloister.worker.settings import (
    BrokerSettings,
    Dialect,
    KeySettings,
    Limits,
    Padding,
    ReceiptSettings,
    Separation,
    SeparationMode,
    WorkerSettings,
)

VERSION: Final = 1
OPERATOR_DECIDES: Final = ("api_keys", "listen_address", "rate_limits", "threads")
"""What is not measured, and stands in the configuration so that everybody can read that. The
operator may decide who is served and how fast, never what is seen."""
_Section = TypeVar("_Section", KeySettings, Limits, Padding, ReceiptSettings)


def effective_configuration(engines: Sequence[Engine], settings: WorkerSettings) -> JsonObject:
    """Describe a worker with these engines and settings. No engine need run.

    ConfigurationError unless each engine serves a model of another name, and all are started and
    held in the same way: what a client's policy asks of one, it asks of each.
    """
    described = _described(engines)
    if any(_said_by_engine(one) != _said_by_engine(described[0]) for one in described):
        raise ConfigurationError(
            "all engines of a worker have to be started and held in the same way",
            code="configuration.isolation",
        )
    if len({engine.model.name for engine in engines}) < len(engines):
        raise ConfigurationError(
            "two models have the same name: name them, as in --model NAME=FILE",
            code="configuration.model_name",
        )
    if len(engines) > MAX_MODELS:
        raise ConfigurationError(
            f"a worker serves at most {MAX_MODELS} models", code="configuration.models"
        )
    digest = settings.manifest_sha256
    return {
        "version": VERSION,
        CONFIGURATION_DEBUG: False,
        **({} if digest is None else {CONFIGURATION_MANIFEST: digest}),
        **_said_by_engine(described[0]),
        "operator_decides": list(OPERATOR_DECIDES),
        CONFIGURATION_SEPARATION: {
            **_whole_numbers(settings.separation),
            "mode": settings.separation.mode.value,
        },
        "engines": [*described],
        **_broker_described(settings.broker),
        "worker": {
            "keys": _whole_numbers(settings.keys),
            "limits": _whole_numbers(settings.limits),
            "padding": _whole_numbers(settings.padding),
            "receipts": _whole_numbers(settings.receipts),
            "compat": [dialect.value for dialect in sorted(settings.compat)],
            "attested_tls": settings.attested_tls,
        },
    }


def settings_of(configuration: JsonObject) -> WorkerSettings:
    """The settings that a configuration describes; ConfigurationError if it is none."""
    if configuration.get("version") != VERSION or configuration.get("debug") is not False:
        raise _refused("it is not of a version that this worker knows")
    if configuration.get("operator_decides") != list(OPERATOR_DECIDES):
        raise _refused("it does not say what the operator decides")
    sections = configuration.get("worker")
    names = {"keys", "limits", "padding", "receipts", "compat", "attested_tls"}
    if not isinstance(sections, dict) or sections.keys() != names:
        raise _refused("its section `worker` is not complete")
    return WorkerSettings(
        keys=_section(KeySettings, sections["keys"]),
        limits=_section(Limits, sections["limits"]),
        padding=_section(Padding, sections["padding"]),
        receipts=_section(ReceiptSettings, sections["receipts"]),
        separation=_separation(configuration.get("separation")),
        compat=_dialects(sections["compat"]),
        manifest_sha256=manifest_of(configuration),
        attested_tls=_switch(sections["attested_tls"]),
        broker=_broker(configuration.get(CONFIGURATION_BROKER)),
    )


def engine_descriptions(configuration: JsonObject) -> tuple[JsonObject, ...]:
    """What a configuration says of each engine; ConfigurationError if it names none."""
    listed = configuration.get("engines")
    if not isinstance(listed, list) or not listed:
        raise _refused("it describes no engine")
    described = tuple(one for one in listed if isinstance(one, dict))
    if len(described) < len(listed):
        raise _refused("it describes an engine in another way than this worker does")
    return described


def check_engines(configuration: JsonObject, engines: Sequence[Engine]) -> None:
    """ConfigurationError unless `engines` describe themselves as the configuration does."""
    described = _described(engines)
    if described != engine_descriptions(configuration) or any(
        configuration.get(name) != value
        for one in described
        for name, value in _said_by_engine(one).items()
    ):
        raise ConfigurationError(
            "an engine on this machine is not what was measured: its version, its model or its "
            "sandbox differs",
            code="configuration.engine_mismatch",
        )


def claims_of(configuration: JsonObject, engines: Sequence[Engine]) -> ClaimsDocument:
    """The claims document of a worker with this configuration."""
    return ClaimsDocument(
        models=tuple(_claim(engine.model) for engine in engines),
        configuration=configuration,
        isolation=isolation_mode(configuration) or "unknown",
        manifest_sha256=manifest_of(configuration),
    )


def claims_described(configuration: JsonObject) -> ClaimsDocument:
    """The claims document that a worker with this configuration will have, before it is started."""
    models = [one.get("model") for one in engine_descriptions(configuration)]
    return ClaimsDocument(
        models=tuple(
            ModelClaim(name=str(model.get("name")), sha256=_text_or_none(model.get("sha256")))
            for model in models
            if isinstance(model, dict)
        ),
        configuration=configuration,
        isolation=isolation_mode(configuration) or "unknown",
        manifest_sha256=manifest_of(configuration),
    )


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _said_by_engine(described: JsonObject) -> JsonObject:
    """Members that repeat, for all to find, what the engine's own description says.

    An engine that does not say who started it is somebody else's. One that says nothing of the
    seal is a program of its own, before which the seal has ended.
    """
    return {
        CONFIGURATION_TERMINATION: described.get(CONFIGURATION_TERMINATION, IN_WORKER),
        CONFIGURATION_MANAGED: described.get(CONFIGURATION_MANAGED) is True,
        CONFIGURATION_ISOLATION: described["isolation"],
    }


def _claim(model: ModelInfo) -> ModelClaim:
    files = model.digests if len(model.files) > 1 else {}
    return ModelClaim(name=model.name, sha256=model.sha256, files=files)


def _described(engines: Sequence[Engine]) -> tuple[JsonObject, ...]:
    return tuple(cast(JsonObject, dict(engine.configuration())) for engine in engines)


def _whole_numbers(section: Any) -> JsonObject:
    values: JsonObject = {}
    for name, value in dataclasses.asdict(section).items():
        if isinstance(value, str):
            continue
        if value != int(value):
            raise ConfigurationError(
                f"the setting {name} must be a whole number", code="configuration.fraction"
            )
        values[name] = int(value)
    return values


def _section(kind: type[_Section], value: object) -> _Section:
    fields = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(value, dict) or value.keys() != fields:
        raise _refused(f"its settings of {kind.__name__} are not complete")
    if any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in value.values()):
        raise _refused(f"a setting of {kind.__name__} is not a whole number")
    try:
        return kind(**value)
    except ValueError:
        raise _refused(f"a setting of {kind.__name__} is out of range") from None


def _separation(value: object) -> Separation:
    fields = {field.name for field in dataclasses.fields(Separation)}
    if not isinstance(value, dict) or value.keys() != fields:
        raise _refused("it does not say how people are kept apart")
    numbers = {name: number for name, number in value.items() if name != "mode"}
    if any(isinstance(one, bool) or not isinstance(one, int) for one in numbers.values()):
        raise _refused("a number in its section `separation` is none")
    try:
        return Separation(mode=SeparationMode(value["mode"]), **cast(dict[str, int], numbers))
    except (ValueError, TypeError):
        raise _refused("its section `separation` is out of range") from None


def _dialects(value: object) -> frozenset[Dialect]:
    known = [dialect.value for dialect in sorted(Dialect)]
    # One spelling for each set: in order, and nothing twice.
    if not isinstance(value, list) or value != [name for name in known if name in value]:
        raise _refused("its list `compat` is not one of known names in order")
    return frozenset(Dialect(name) for name in known if name in value)


def _broker_described(broker: BrokerSettings | None) -> JsonObject:
    if broker is None:
        return {}
    return {
        CONFIGURATION_BROKER: {
            "identity": broker.identity,
            "evidence": broker.evidence,
            "development": broker.development,
        }
    }


def _broker(value: object) -> BrokerSettings | None:
    if value is None:
        return None
    names = {"identity", "evidence", "development"}
    if not isinstance(value, dict) or value.keys() != names:
        raise _refused("it does not say which broker releases its keys")
    identity, evidence, development = (
        value[name] for name in ("identity", "evidence", "development")
    )
    if (
        not isinstance(identity, str)
        or not (evidence is None or isinstance(evidence, str))
        or not isinstance(development, bool)
        or (evidence is None and not development)
    ):
        raise _refused("its section `broker` is out of range")
    return BrokerSettings(identity=identity, evidence=evidence, development=development)


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise _refused("its switch `attested_tls` is neither on nor off")
    return value


def _refused(why: str) -> ConfigurationError:
    return ConfigurationError(
        f"the worker's configuration is refused: {why}", code="configuration.worker"
    )
