"""The operator's port of a booted guest: a virtio-serial port, so that enrolment needs no network.

In an enclave, which has no such ports, it is a vsock port that the parent connects to.

The operator's machine asks and the guest answers, each time one line that holds a JSON object.
Before the guest runs, its firmware may have read from the port or written to it (newer OVMF has a
driver), whole lines or pieces of them. So each question has an ``id`` of its own, which its answer
repeats; empty lines are nothing, so that each message can begin with a line's end; and before it
asks for anything else, the operator's machine says hello until it is answered.

Whoever holds the other end runs the machine anyway. It learns here nothing that is not public, and
decides here who is served and under which manifest, which shows in the evidence:

======================================  ==========================================================
``{"ask": "hello"}``                    nothing: the guest reads and answers
``{"ask": "start", "manifest": …}``     the worker starts, under this manifest if one is given; once
``{"ask": "enrolment"}``                the TPM's EK certificate and the public area of the AK
``{"ask": "activate", …}``              the secret of a credential that was sealed to that AK
``{"ask": "certificate", "chain": …}``  certificates of that AK and no other go into every report
``{"ask": "api_keys", "table": …}``     who is served: the table that `cloister keys` writes
``{"ask": "boot_log"}``                 the firmware's event log, which reports carry too
``{"ask": "ready"}``                    where the worker listens, or null while it starts
======================================  ==========================================================

What fails is answered with ``{"error": code}``, and so is what does not decode, without an ``id``.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from cloister.errors import CloisterError, MalformedError, UnsupportedError
from cloister.strictjson import Json, JsonObject, expect_str, parse_json_object

PORT_NAME: Final = "cloister.operator"
PORTS: Final = Path("/sys/class/virtio-ports")

VSOCK_PORT: Final = 8441
"""In an enclave. Its parent is all that can reach it there (AWS Nitro Enclaves user guide)."""

MAX_MESSAGE_BYTES: Final = 1024 * 1024
MAX_ID: Final = 64
HELLO: Final = "hello"
IDLE_S: Final = 0.05
"""Between looks at a port whose other end nobody holds: reading one does not wait."""
_PIECE_BYTES: Final = 1 << 16

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
    lines = Lines(MAX_MESSAGE_BYTES)
    while True:
        try:
            piece = os.read(descriptor, _PIECE_BYTES)
            if not piece:
                lines.forget()
                pause(IDLE_S)
                continue
            for line in lines.take(piece):
                _send(descriptor, _answered(line, answer))
        except OSError:
            lines.forget()
            pause(IDLE_S)


def listen_vsock(port: int = VSOCK_PORT) -> socket.socket:
    """A listening socket for an enclave's parent; UnsupportedError where there is no vsock."""
    try:
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen(1)
    except OSError as error:
        raise UnsupportedError(
            f"this machine has no vsock for its operator (errno {error.errno})",
            code="guest.no_vsock",
        ) from None
    return listener


def serve_connections(
    listener: socket.socket, answer: Answer, *, pause: Callable[[float], None] = time.sleep
) -> None:
    """Answer messages of one connection after the other, for ever."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            pause(IDLE_S)
            continue
        lines = Lines(MAX_MESSAGE_BYTES)
        with connection, contextlib.suppress(OSError):
            while piece := connection.recv(_PIECE_BYTES):
                for line in lines.take(piece):
                    _send(connection.fileno(), _answered(line, answer))


class Lines:
    """Cuts what a port brings into lines, and leaves out the empty ones.

    Of a line that is longer than `limit` only so much is kept that it is still too long.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._begun = bytearray()

    def take(self, piece: bytes) -> list[bytes]:
        """The lines that `piece` ends."""
        first, *others = piece.split(b"\n")
        self._begin(first)
        ended = []
        for other in others:
            ended.append(bytes(self._begun))
            self.forget()
            self._begin(other)
        return [line for line in ended if line]

    def forget(self) -> None:
        """Drop the line that has begun."""
        self._begun.clear()

    def _begin(self, piece: bytes) -> None:
        self._begun += piece[: self._limit + 1 - len(self._begun)]


def framed(message: Mapping[str, Json | list[str]]) -> bytes:
    """A message as it goes through the port: whatever stood there before, it has its own line."""
    return b"\n" + json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _answered(line: bytes, answer: Answer) -> JsonObject:
    about: JsonObject = {}
    try:
        asked = parse_json_object(line, limit=MAX_MESSAGE_BYTES, what="a message of the port")
        about = {"id": expect_str(asked.pop("id", None), "the id of a question", limit=MAX_ID)}
        return {**about, **({} if asked == {"ask": HELLO} else answer(asked))}
    except CloisterError as error:
        return {**about, "error": error.code}


def _send(descriptor: int, message: JsonObject) -> None:
    view = memoryview(framed(message))
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
