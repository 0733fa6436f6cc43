"""Event logs and application documents of dstack guests, to records.

Source: dstack (Dstack-TEE/dstack), crates ``cc-eventlog`` and ``dstack-types``. A dstack guest
hands out one JSON list with the events of its firmware (CCEL, retold, register numbers from 0)
and its own runtime events in RTMR3. What runs in the guest is described by ``app-compose.json``,
whose SHA-256 (of its bytes, however they are formatted) is the event ``compose-hash``.
Nothing here is authenticated.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from typing import Final

from cloister.errors import MalformedError
from cloister.evidence.ccel import RTMR_BYTES, RTMR_COUNT
from cloister.evidence.eventlog import MAX_EVENT_BYTES, MAX_EVENTS, Event
from cloister.evidence.tpm import Alg
from cloister.strictjson import (
    Json,
    JsonObject,
    canonical,
    expect_hex,
    expect_int,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
    parse_json,
)

MAX_LOG_BYTES: Final = 8 * 1024 * 1024
"""Hexadecimal doubles what firmware measured."""

MAX_NAME: Final = 256

RUNTIME_EVENT: Final = 0x08000001
"""``event_type`` of dstack's own events; outside of what TCG assigns."""

RUNTIME_REGISTER: Final = 3

CODE: Final = "eventlog_malformed"


class DigestVersion(enum.IntEnum):
    """What the digest of a runtime event covers."""

    TEXT = 1
    """``type (4 bytes, little-endian) : name : payload``, joined by colons."""
    JSON = 2
    """Canonical JSON (RFC 8785) with ``name``, ``payload`` in hexadecimal, and ``type``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DstackEvent:
    """One event, of the firmware or, if its type is `RUNTIME_EVENT`, of dstack."""

    rtmr: int
    """0 to 3."""
    type: int
    digest: bytes
    """SHA-384; computed where the log leaves out that of a runtime event."""
    name: str
    payload: bytes
    """Empty as well where firmware's data were left out to save space."""
    version: DigestVersion

    @property
    def is_runtime(self) -> bool:
        """Whether dstack made it, so that its digest covers name and payload."""
        return self.type == RUNTIME_EVENT

    @property
    def computed(self) -> bytes:
        """The digest that a runtime event of this name and payload has."""
        return hashlib.sha384(_preimage(self.name, self.payload, self.version)).digest()

    def as_event(self) -> Event:
        """The same event as `cloister.evidence.ccel` has it."""
        return Event(
            pcr=self.rtmr, type=self.type, digests={Alg.SHA384: self.digest}, data=self.payload
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DstackLog:
    """A whole log, in order."""

    raw: bytes
    events: tuple[DstackEvent, ...]

    @property
    def runtime(self) -> tuple[DstackEvent, ...]:
        """dstack's own events, in order."""
        return tuple(event for event in self.events if event.is_runtime)


def parse_dstack_log(data: bytes) -> DstackLog:
    """Decode a JSON list of at most `MAX_EVENTS` events.

    Members of each: ``imr``, ``event_type``, ``digest``, ``event``, ``event_payload``, and from
    version 2 on ``version`` and ``preimage``, which has to be the one that the others make up.
    Only a runtime event may leave its digest empty.

    Raises MalformedError (code ``eventlog_malformed``), and nothing else.
    """
    try:
        listed = parse_json(data, limit=MAX_LOG_BYTES, what="the dstack event log")
        entries = expect_list(listed, "the dstack event log", limit=MAX_EVENTS)
        return DstackLog(raw=data, events=tuple(map(_event, entries)))
    except MalformedError as error:
        raise MalformedError(str(error), code=CODE) from None


def compose_hash(document: bytes) -> bytes:
    """What dstack measures of ``app-compose.json``: SHA-256 of its bytes, unread."""
    return hashlib.sha256(document).digest()


def config_id(compose: bytes) -> bytes:
    """MRCONFIGID in its version 1: 0x01, the 32 bytes of `compose_hash`, 15 zeros."""
    return b"\x01" + compose + bytes(RTMR_BYTES - 1 - len(compose))


_REQUIRED: Final = frozenset({"imr", "event_type", "digest", "event", "event_payload"})
_OPTIONAL: Final = frozenset({"version", "preimage"})


def _event(entry: Json) -> DstackEvent:
    members = expect_object(entry, "an event")
    expect_keys(members, "an event", required=_REQUIRED, optional=_OPTIONAL)
    kind = expect_int(members["event_type"], "event_type", high=0xFFFFFFFF)
    name = expect_str(members["event"], "event", limit=MAX_NAME)
    payload = expect_hex(members["event_payload"], "event_payload", limit=MAX_EVENT_BYTES)
    version = DigestVersion(expect_int(members.get("version", 1), "version", low=1, high=2))
    _check_preimage(members, name, payload, version)
    return DstackEvent(
        rtmr=expect_int(members["imr"], "imr", high=RTMR_COUNT - 1),
        type=kind,
        digest=_digest(members, kind, name, payload, version),
        name=name,
        payload=payload,
        version=version,
    )


def _digest(
    members: JsonObject, kind: int, name: str, payload: bytes, version: DigestVersion
) -> bytes:
    if members["digest"] == "" and kind == RUNTIME_EVENT:
        return hashlib.sha384(_preimage(name, payload, version)).digest()
    return expect_hex(members["digest"], "digest", size=RTMR_BYTES)


def _check_preimage(members: JsonObject, name: str, payload: bytes, version: DigestVersion) -> None:
    stated = members.get("preimage")
    if stated is not None and stated != _preimage(name, payload, version).hex():
        raise MalformedError("an event's preimage is not made of its name and payload")


def _preimage(name: str, payload: bytes, version: DigestVersion) -> bytes:
    if version is DigestVersion.JSON:
        return canonical({"name": name, "payload": payload.hex(), "type": RUNTIME_EVENT})
    return b":".join((RUNTIME_EVENT.to_bytes(4, "little"), name.encode(), payload))
