"""Appraises how a worker serves: where the seal ends, whose engine answers, who shares it.

All of it stands in the effective configuration, which evidence measured or binds. A configuration
that does not say is refused, like one that says what the policy does not accept. Each makes one
claim unless the policy leaves it unchecked:

1. ``configuration.termination``: the seal ends in the worker, or inside the engine's process.
2. ``configuration.managed``: the worker started its engines itself.
3. ``configuration.separation``: one engine process serves several people, or one each.

Reference values, and a manifest, say which configurations are genuine; only the policy says which
are good enough. So neither of them can widen what is accepted here.
"""

from __future__ import annotations

from typing import Final

from cloister.evidence.component import (
    IN_ENGINE,
    IN_WORKER,
    PROCESS_PER_CLIENT,
    SHARED,
    is_managed,
    separation_mode,
    takes_attested_tls,
    termination,
)
from cloister.strictjson import JsonObject
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import AppraisalPolicy, Unchecked
from cloister.verifier.result import Source

TERMINATION: Final = "configuration.termination"
MANAGED: Final = "configuration.managed"
SEPARATION: Final = "configuration.separation"

NOT_PROVEN_SHARED: Final = (
    "One engine process serves several people: nothing shows that it does not hand one person's"
    " words to another."
)
UNPROVEN_MODEL: Final = "The engine is somebody else's, so no digest shows which model answers."
NOT_PROVEN_UNMANAGED: Final = (
    "The engine is somebody else's: nothing shows which program and which model answer, what they"
    " write down, or where they send what they read."
)
NOT_PROVEN_IN_ENGINE: Final = (
    "The seal ends inside the engine's own process, where nothing keeps the worker's keys and the"
    " conversation from the rest of that program: what it writes to its logs or sends elsewhere,"
    " and which model files it loads, is up to its code."
)
NOT_PROVEN_TLS: Final = (
    "The worker also takes requests over attested TLS. What is asked that way is not sealed, sizes"
    " show, and a tool that pins the certificate checks nothing of this again."
)

_PLACES: Final = {
    IN_WORKER: "The seal ends in the worker, which keeps its keys from the engine",
    IN_ENGINE: "The seal ends inside the engine's own process, which then holds the worker's keys",
}


def claims(policy: AppraisalPolicy) -> tuple[str, ...]:
    """Names of the claims made under `policy`, in order."""
    names: list[str] = []
    if not isinstance(policy.termination, Unchecked):
        names.append(TERMINATION)
    if policy.require_managed:
        names.append(MANAGED)
    if not isinstance(policy.separation, Unchecked):
        names.append(SEPARATION)
    return tuple(names)


def appraise_serving(
    configuration: JsonObject, *, policy: AppraisalPolicy, source: Source, ledger: Ledger
) -> None:
    """Add every claim of `claims(policy)` to `ledger`; the configuration is known from `source`."""
    if not isinstance(policy.termination, Unchecked):
        place = termination(configuration)
        said = _PLACES.get(place or "")
        ledger.check(
            TERMINATION,
            holds=place in policy.termination,
            affirmed=f"{said}, as your policy accepts.",
            code="termination_refused",
            refused=(
                "The configuration does not say where the seal ends."
                if said is None
                else f"{said}, and the policy does not accept that."
            ),
            source=source,
        )
    if policy.require_managed:
        ledger.check(
            MANAGED,
            holds=is_managed(configuration),
            affirmed="The worker started its engine itself.",
            code="engine_unmanaged",
            refused=(
                "The worker did not start its engine, or does not say so: it is somebody else's"
                " program."
            ),
            source=source,
        )
    if not isinstance(policy.separation, Unchecked):
        _separation(configuration, policy.separation, source, ledger)


def shows_model(configuration: JsonObject) -> bool:
    """Whether a digest beside `configuration` is that of the model which answers.

    Not where the engine is somebody else's: it may serve any other. Where the seal ends inside
    the engine, measured code says which files it loads (`NOT_PROVEN_IN_ENGINE`).
    """
    return is_managed(configuration) or termination(configuration) == IN_ENGINE


def not_proven(configuration: JsonObject) -> tuple[str, ...]:
    """Sentences for the result about what a worker with `configuration` does not show."""
    sentences: list[str] = []
    if termination(configuration) == IN_ENGINE:
        sentences.append(NOT_PROVEN_IN_ENGINE)
    elif not is_managed(configuration):
        sentences.append(NOT_PROVEN_UNMANAGED)
    if not _kept_apart(configuration):
        sentences.append(NOT_PROVEN_SHARED)
    if takes_attested_tls(configuration):
        sentences.append(NOT_PROVEN_TLS)
    return tuple(sentences)


def _separation(
    configuration: JsonObject, accepted: tuple[str, ...], source: Source, ledger: Ledger
) -> None:
    apart = _kept_apart(configuration)
    known = apart or separation_mode(configuration) == SHARED
    ledger.check(
        SEPARATION,
        holds=known and (PROCESS_PER_CLIENT if apart else SHARED) in accepted,
        affirmed=(
            "Each client has an engine process of its own, as your policy accepts."
            if apart
            else "One engine process serves several people, which your policy accepts."
        ),
        code="separation_refused",
        refused=(
            "Each client has an engine process of its own, which the policy does not name."
            if apart
            else "One engine process serves several people, which the policy does not accept."
            if known
            else "The configuration does not say, in a way that makes sense, how people are kept"
            " apart."
        ),
        source=source,
    )


def _kept_apart(configuration: JsonObject) -> bool:
    """Only who starts the engines can give each client one of its own."""
    return separation_mode(configuration) == PROCESS_PER_CLIENT and is_managed(configuration)
