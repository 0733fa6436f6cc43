"""What a request to an inference path may hold, before an engine sees it."""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any, Final

from cloister.engine.requests import decode_body
from cloister.errors import EngineError
from cloister.worker import problems
from cloister.worker.problems import RefusedError

MAX_VALUES: Final = 1_000_000
"""In a body: commas and opening brackets, those inside strings counted too. Every value has one
of them in front; 32 MiB of them would hold the worker up for half a minute."""

_CONSTRAINT_PREFIX: Final = "aci_"
_MAX_SESSIONS: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A checked request: the body to give to the engine, exact bytes wherever possible."""

    body: bytes = field(repr=False)
    stream: bool
    document: dict[str, Any] = field(repr=False)
    """The same, decoded."""
    model: str
    """Of those served, the one that was asked for."""


def check_generation(body: bytes, *, models: Container[str]) -> Generation:
    """Check `body`, which names one of `models`; RefusedError says what is wrong.

    Fields that this worker does not know go to the engine as they are. The `provider` field's
    ACI constraints (`aci/1` section 5.3) are for the worker, so they are taken out.
    """
    document = parse_object(body)
    if any(name.startswith(_CONSTRAINT_PREFIX) for name in document):
        raise RefusedError(problems.UNKNOWN_CONSTRAINT)
    named = document.get("model")
    if not isinstance(named, str) or not named:
        raise RefusedError(problems.NO_MODEL)
    if named not in models:
        raise RefusedError(problems.UNKNOWN_MODEL)
    rest = _without_constraints(document)
    if rest is not document:
        body = json.dumps(rest, separators=(",", ":")).encode()
    stream = document.get("stream") is True
    return Generation(body=body, stream=stream, document=rest, model=named)


def parse_object(body: bytes) -> dict[str, Any]:
    """Decode a body as `decode_body` does; RefusedError if it cannot, or holds too much."""
    if len(body) > MAX_VALUES and sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise RefusedError(problems.TOO_MANY_VALUES)
    try:
        return decode_body(body)
    except EngineError:
        raise RefusedError(problems.BAD_JSON) from None


def check_whole(body: bytes) -> None:
    """ValueError unless an engine's whole answer is one JSON object, and reports no error.

    What it says goes to whoever asked as it is; what is no answer does not go on.
    """
    try:
        document = json.loads(body.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("too deep") from None
    if not isinstance(document, dict) or document.get("error") is not None:
        raise ValueError("not an answer")


def _refuse_constant(_: str) -> None:
    raise ValueError


def _without_constraints(document: dict[str, Any]) -> dict[str, Any]:
    """The same document, where nothing had to be taken out."""
    provider = document.get("provider")
    if not isinstance(provider, dict):
        return document  # outside `aci/1`: the engine's business
    constraints = {name for name in provider if name.startswith(_CONSTRAINT_PREFIX)}
    if not constraints:
        return document
    if constraints - {"aci_verified", "aci_session_ids"}:
        raise RefusedError(problems.UNKNOWN_CONSTRAINT)
    verified = provider.get("aci_verified", True)
    if not isinstance(verified, bool):
        raise RefusedError(problems.BAD_PROVIDER)
    if "aci_session_ids" in provider:
        _refuse_sessions(provider["aci_session_ids"], verified=verified)
    rest = {name: value for name, value in provider.items() if name not in constraints}
    changed = {name: value for name, value in document.items() if name != "provider"}
    if rest:
        changed["provider"] = rest
    return changed


def _refuse_sessions(sessions: object, *, verified: bool) -> None:
    # A direct service has no sessions, so it accepts none: but a malformed list is malformed.
    well_formed = (
        isinstance(sessions, list)
        and 1 <= len(sessions) <= _MAX_SESSIONS
        and all(_is_session_id(one) for one in sessions)
    )
    if not well_formed or not verified:
        raise RefusedError(problems.BAD_PROVIDER)
    raise RefusedError(problems.SESSION_NOT_ACCEPTED)


def _is_session_id(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
