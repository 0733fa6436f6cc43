"""Event logs of made-up TDX guests: CCEL areas, dstack's JSON, and the registers they lead to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from cloister.evidence.ccel import replay_rtmrs
from cloister.evidence.dstack import DigestVersion, parse_dstack_log
from cloister.evidence.eventlog import SPEC_ID_SIGNATURE, Event, EventType
from cloister.evidence.tpm import Alg

RUNTIME = 0x08000001
COMPOSE = b'{"docker_compose_file": "services: {}"}'


def measured(rtmr: int, kind: int, data: bytes) -> Event:
    """An event whose digest is that of its data."""
    return Event(
        pcr=rtmr, type=kind, digests={Alg.SHA384: hashlib.sha384(data).digest()}, data=data
    )


def boot() -> list[Event]:
    """Two registers, an event that is not covered by its digest, one that is never extended."""
    return [
        measured(0, EventType.EV_SEPARATOR, bytes(4)),
        Event(
            pcr=1,
            type=EventType.EV_EFI_BOOT_SERVICES_APPLICATION,
            digests={Alg.SHA384: b"\x11" * 48},
            data=b"path of an image",
        ),
        measured(0, EventType.EV_EFI_ACTION, b"Exit Boot Services Invocation"),
        Event(pcr=2, type=EventType.EV_NO_ACTION, digests={Alg.SHA384: b"\x22" * 48}, data=b"none"),
        measured(1, EventType.EV_SEPARATOR, bytes(4)),
    ]


def ccel_header(
    *,
    register: int = 1,
    kind: int = EventType.EV_NO_ACTION,
    digest: bytes = bytes(20),
    signature: bytes = SPEC_ID_SIGNATURE,
    banks: Iterable[tuple[int, int]] = ((Alg.SHA384, 48),),
    tail: bytes = b"\x00",
) -> bytes:
    """The first event, as EDK2 writes it."""
    listed = [number.to_bytes(2, "little") + size.to_bytes(2, "little") for number, size in banks]
    data = b"".join(
        (signature, bytes(8), len(listed).to_bytes(4, "little"), b"".join(listed), tail)
    )
    return b"".join(
        (
            register.to_bytes(4, "little"),
            kind.to_bytes(4, "little"),
            digest,
            len(data).to_bytes(4, "little"),
            data,
        )
    )


def ccel_event(event: Event, *, algorithm: int = Alg.SHA384, count: int = 1) -> bytes:
    """One event; its register is that of the record and one more."""
    return b"".join(
        (
            (event.pcr + 1).to_bytes(4, "little"),
            event.type.to_bytes(4, "little"),
            count.to_bytes(4, "little"),
            algorithm.to_bytes(2, "little"),
            event.digests[Alg.SHA384],
            len(event.data).to_bytes(4, "little"),
            event.data,
        )
    )


def ccel(events: Iterable[Event], *, padding: int = 100) -> bytes:
    """A whole area."""
    return ccel_header() + b"".join(map(ccel_event, events)) + b"\xff" * padding


def runtime_event(
    name: str, payload: bytes = b"", *, version: int = 1, digest: bool = True
) -> dict[str, Any]:
    """One of dstack's own events, with the digest that it should have, or without."""
    if version == DigestVersion.JSON:
        text = f'{{"name":"{name}","payload":"{payload.hex()}","type":{RUNTIME}}}'.encode()
    else:
        text = RUNTIME.to_bytes(4, "little") + b":" + name.encode() + b":" + payload
    return {
        "imr": 3,
        "event_type": RUNTIME,
        "digest": hashlib.sha384(text).hexdigest() if digest else "",
        "event": name,
        "event_payload": payload.hex(),
        **({"version": version, "preimage": text.hex()} if version > 1 else {}),
    }


def firmware_event(event: Event) -> dict[str, Any]:
    """One of the firmware's, as dstack retells it."""
    return {
        "imr": event.pcr,
        "event_type": event.type,
        "digest": event.digests[Alg.SHA384].hex(),
        "event": "",
        "event_payload": event.data.hex(),
    }


def dstack_events(compose: bytes = COMPOSE, **options: Any) -> list[dict[str, Any]]:
    """The log of a whole boot, and one event of the application."""
    digest = hashlib.sha256(compose).digest()
    runtime = [
        ("system-preparing", b""),
        ("app-id", digest[:20]),
        ("compose-hash", digest),
        ("instance-id", b"\x33" * 20),
        ("boot-mr-done", b""),
        ("os-image-hash", b"\x44" * 32),
        ("key-provider", b'{"name":"kms","id":"00"}'),
        ("system-ready", b""),
        ("of the application", b"\x55"),
    ]
    return [
        *(firmware_event(event) for event in boot() if event.type != EventType.EV_NO_ACTION),
        *(runtime_event(name, payload, **options) for name, payload in runtime),
    ]


def dstack_log(events: Iterable[dict[str, Any]]) -> bytes:
    """The log as it is handed out."""
    return json.dumps(list(events)).encode()


def dstack_rtmrs(events: Iterable[dict[str, Any]]) -> tuple[bytes, ...]:
    """The registers that the log leads to."""
    log = parse_dstack_log(dstack_log(events))
    return replay_rtmrs([event.as_event() for event in log.events])
