"""The operator's end of a guest's port: questions, and answers that come when the guest is up.

The guest answers as `cloister.attester.guest_port` says. It is the party that is being tested here,
so what it sends is bounded and decoded strictly.
"""

from __future__ import annotations

import base64
import binascii
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cloister.errors import EngineError, FetchError, MalformedError
from cloister.strictjson import JsonObject, parse_json_object

MAX_ANSWER_BYTES: Final = 1024 * 1024
_LOOK_S: Final = 0.1
_ENDING_LOOKS: Final = 20


class OperatorLink:
    """One connection to the port. A question that is asked too early waits in the machine."""

    def __init__(self, connection: socket.socket, *, waiting: Callable[[], None]) -> None:
        """`waiting` is called about ten times a second, and raises where waiting is no use."""
        self._connection = connection
        self._connection.settimeout(_LOOK_S)
        self._waiting = waiting

    @classmethod
    def connect(cls, path: Path, *, waiting: Callable[[], None]) -> OperatorLink:
        """Connect to the machine's socket, as soon as it is there."""
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
                return cls(connection, waiting=waiting)
            except OSError:
                connection.close()
                waiting()
                time.sleep(_LOOK_S)

    def ask(self, question: str, **members: str | list[str]) -> JsonObject:
        """Send one question and wait for its answer.

        Raises:
            FetchError: the guest refuses it (code ``guest.refused``) or answers otherwise than it
                should (``guest.answer``).
            EngineError: the machine let go of the port (code ``guest.ended``).
        """
        data = json.dumps({"ask": question, **members}).encode()
        self._send(len(data).to_bytes(4, "big") + data)
        size = int.from_bytes(self._receive(4), "big")
        if size > MAX_ANSWER_BYTES:
            raise _unfit()
        try:
            answer = parse_json_object(
                self._receive(size), limit=MAX_ANSWER_BYTES, what="the guest's answer"
            )
        except MalformedError:
            raise _unfit() from None
        if "error" in answer:
            raise FetchError(
                f"the guest refuses the question for its {question}", code="guest.refused"
            )
        return answer

    def close(self) -> None:
        """Let go of the port."""
        self._connection.close()

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._connection.send(rest) :]
            except TimeoutError:
                self._waiting()
            except OSError:
                raise self._ended() from None

    def _receive(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            try:
                piece = self._connection.recv(size - len(received))
            except TimeoutError:
                self._waiting()
                continue
            except OSError:
                piece = b""
            if not piece:
                raise self._ended()
            received += piece
        return bytes(received)

    def _ended(self) -> EngineError:
        """The error for a machine that stopped, unless `waiting` soon has a better one."""
        for _ in range(_ENDING_LOOKS):
            self._waiting()
            time.sleep(_LOOK_S)
        return EngineError("the guest's machine let go of its port", code="guest.ended")


def bytes_of(answer: JsonObject, name: str) -> bytes:
    """A member of an answer that holds base64; FetchError (``guest.answer``) where none does."""
    try:
        return base64.b64decode(str(answer.get(name)), validate=True)
    except (binascii.Error, ValueError):
        raise _unfit() from None


def _unfit() -> FetchError:
    return FetchError("the guest does not answer as it should", code="guest.answer")
