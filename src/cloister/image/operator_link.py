"""The operator's end of a guest's port: questions, and answers that come when the guest is up.

The guest answers as `cloister.attester.guest_port` says. It is the party that is being tested here,
so what it sends is bounded and decoded strictly.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from cloister.attester.guest_port import HELLO, Lines, framed
from cloister.errors import EngineError, FetchError, MalformedError
from cloister.strictjson import JsonObject, parse_json_object

MAX_ANSWER_BYTES: Final = 1024 * 1024
_LOOK_S: Final = 0.1
_HELLO_S: Final = 1.0
"""Between two hellos to a guest that does not answer yet."""
_PIECE_BYTES: Final = 1 << 16
_ENDING_LOOKS: Final = 20


class OperatorLink:
    """One connection to the port. It may be made before the guest is up."""

    def __init__(self, connection: socket.socket, *, waiting: Callable[[], None]) -> None:
        """`waiting` is called ten times a second or more, and raises where waiting is no use."""
        self._connection = connection
        self._connection.settimeout(_LOOK_S)
        self._waiting = waiting
        self._lines = Lines(MAX_ANSWER_BYTES)
        self._ready: deque[bytes] = deque()
        self._hellos: set[str] = set()
        self._greeted = False

    @classmethod
    def connect(cls, path: Path, *, waiting: Callable[[], None]) -> OperatorLink:
        """Connect to the machine's socket, as soon as it is there."""
        return cls.dial(socket.AF_UNIX, str(path), waiting=waiting)

    @classmethod
    def dial(
        cls, family: int, address: str | tuple[int, int], *, waiting: Callable[[], None]
    ) -> OperatorLink:
        """The same for a socket of any family, such as an enclave's vsock."""
        while True:
            connection = socket.socket(family)
            try:
                connection.connect(address)
                return cls(connection, waiting=waiting)
            except OSError:
                connection.close()
                waiting()
                time.sleep(_LOOK_S)

    def ask(self, question: str, **members: str | list[str]) -> JsonObject:
        """Send one question and wait for its answer.

        Before the first, this says hello until the guest answers: what is sent while the firmware
        runs may be read by that.

        Raises:
            FetchError: the guest refuses it (code ``guest.refused``) or answers otherwise than it
                should (``guest.answer``).
            EngineError: the machine let go of the port (code ``guest.ended``).
        """
        if not self._greeted:
            self._greet()
        asked = self._put(question, members)
        while True:
            line = self._line()
            try:
                answer = parse_json_object(line, limit=MAX_ANSWER_BYTES, what="the guest's answer")
            except MalformedError:
                raise _unfit() from None
            identity = answer.pop("id", None)
            if _is_question(answer):
                continue
            if identity == asked:
                break
            if not isinstance(identity, str) or identity not in self._hellos:
                raise _unfit()
        if "error" in answer:
            raise FetchError(
                f"the guest refuses the question for its {question}", code="guest.refused"
            )
        return answer

    def close(self) -> None:
        """Let go of the port."""
        self._connection.close()

    def _greet(self) -> None:
        """Come to where the guest answers, past whatever the firmware has sent."""
        due = 0.0
        while not self._greeted:
            if time.monotonic() >= due:
                self._hellos.add(self._put(HELLO, {}))
                due = time.monotonic() + _HELLO_S
            for line in self._arrived():
                with contextlib.suppress(MalformedError):
                    answer = parse_json_object(line, limit=MAX_ANSWER_BYTES, what="an answer")
                    identity = answer.get("id")
                    known = isinstance(identity, str) and identity in self._hellos
                    self._greeted = self._greeted or (known and not _is_question(answer))

    def _put(self, question: str, members: Mapping[str, str | list[str]]) -> str:
        """Send a question; return its id."""
        identity = secrets.token_hex(8)
        rest = memoryview(framed({"ask": question, "id": identity, **members}))
        while rest:
            try:
                rest = rest[self._connection.send(rest) :]
            except TimeoutError:
                self._waiting()
            except OSError:
                raise self._ended() from None
        return identity

    def _line(self) -> bytes:
        while not self._ready:
            self._ready.extend(self._arrived())
        return self._ready.popleft()

    def _arrived(self) -> list[bytes]:
        """The lines that end now; none after a moment without."""
        self._waiting()
        try:
            piece = self._connection.recv(_PIECE_BYTES)
        except TimeoutError:
            return []
        except OSError:
            piece = b""
        if not piece:
            raise self._ended()
        return self._lines.take(piece)

    def _ended(self) -> EngineError:
        """The error for a machine that stopped, unless `waiting` soon has a better one."""
        for _ in range(_ENDING_LOOKS):
            self._waiting()
            time.sleep(_LOOK_S)
        return EngineError("the guest's machine let go of its port", code="guest.ended")


def _is_question(answer: JsonObject) -> bool:
    """Whether something sends back what it is asked, as a terminal does."""
    return "ask" in answer


def bytes_of(answer: JsonObject, name: str) -> bytes:
    """A member of an answer that holds base64; FetchError (``guest.answer``) where none does."""
    try:
        return base64.b64decode(str(answer.get(name)), validate=True)
    except (binascii.Error, ValueError):
        raise _unfit() from None


def _unfit() -> FetchError:
    return FetchError("the guest does not answer as it should", code="guest.answer")
