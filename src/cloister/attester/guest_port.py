"""The operator's port of a booted guest: a virtio-serial port, so that enrolment needs no network.

The operator's machine asks and the guest answers, each time one message: four bytes of length, then
a JSON object. Whoever holds the other end runs the machine anyway. It learns here nothing that is
not public, and decides here who is served and under which manifest, which shows in the evidence:

======================================  ==========================================================
``{"ask": "start", "manifest": …}``     the worker starts, under this manifest if one is given; once
``{"ask": "enrolment"}``                the TPM's EK certificate and the public area of the AK
``{"ask": "activate", …}``              the secret of a credential that was sealed to that AK
``{"ask": "certificate", "chain": …}``  certificates of that AK and no other go into every report
``{"ask": "api_keys", "table": …}``     who is served: the table that `cloister keys` writes
``{"ask": "boot_log"}``                 the firmware's event log, which reports carry too
``{"ask": "ready"}``                    where the worker listens, or null while it starts
======================================  ==========================================================

What does not decode, or fails, is answered with ``{"error": code}``.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cloister.errors import CloisterError, MalformedError
from cloister.strictjson import Json, JsonObject, parse_json_object

PORT_NAME: Final = "cloister.operator"
PORTS: Final = Path("/sys/class/virtio-ports")

MAX_MESSAGE_BYTES: Final = 1024 * 1024
IDLE_S: Final = 0.05
"""Between looks at a port whose other end nobody holds: reading one does not wait."""

Answer = Callable[[JsonObject], JsonObject]


def find_port(ports: Path = PORTS, devices: Path = Path("/dev")) -> Path | None:
    """The device of the operator's port; None on a machine that has none."""
    for entry in sorted(ports.glob("*")):
        with contextlib.suppress(OSError):
            if (entry / "name").read_text().strip() == PORT_NAME:
                return devices / entry.name
    return None


def serve_port(
    descriptor: int, answer: Answer, *, pause: Callable[[float], None] = time.sleep
) -> None:
    """Answer messages on `descriptor` for ever; an end that closes in a message is forgotten."""
    while True:
        try:
            message = _receive(descriptor)
            if message is None:
                pause(IDLE_S)
                continue
            _send(descriptor, _answered(message, answer))
        except OSError:
            pause(IDLE_S)


def _answered(message: bytes, answer: Answer) -> JsonObject:
    try:
        asked = parse_json_object(message, limit=MAX_MESSAGE_BYTES, what="a message of the port")
        return answer(asked)
    except CloisterError as error:
        return {"error": error.code}


def _receive(descriptor: int) -> bytes | None:
    """One whole message; None where the other end is gone, or sends none that is acceptable."""
    header = _exactly(descriptor, 4)
    if header is None:
        return None
    size = int.from_bytes(header, "big")
    if size > MAX_MESSAGE_BYTES:
        return b""  # refused as one that does not decode; what follows is read as the next
    return _exactly(descriptor, size)


def _exactly(descriptor: int, size: int) -> bytes | None:
    received = bytearray()
    while len(received) < size:
        piece = os.read(descriptor, min(size - len(received), 1 << 16))
        if not piece:
            return None
        received += piece
    return bytes(received)


def _send(descriptor: int, message: JsonObject) -> None:
    data = json.dumps(message, separators=(",", ":")).encode()
    view = memoryview(len(data).to_bytes(4, "big") + data)
    while view:
        view = view[os.write(descriptor, view) :]


def decoded(value: Json) -> bytes:
    """Base64 of a message; MalformedError if it is none."""
    try:
        return base64.b64decode(str(value), validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError("a message of the port holds no base64") from None


def encoded(data: bytes) -> str:
    """Base64 for a message."""
    return base64.b64encode(data).decode("ascii")
