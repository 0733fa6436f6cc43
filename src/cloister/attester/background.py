"""Devices that may hang, kept in a process of their own with a time limit.

A call into a vendor's library or an ioctl cannot be interrupted from outside, and a thread
cannot be killed: one hanging call would hold its thread, and everything that waits for the
same device, for good. A process can be killed. So the exchange runs in a child, one request at
a time; whoever gets no answer in time kills the child and the next request starts another.
A child that even SIGKILL does not end (it sleeps in the kernel) is left to the kernel: it holds
nothing of ours.

It also keeps a vendor's code out of the process that holds the keys.

The child runs the same interpreter on the same import path with the flags under which measured
workers run, in an empty environment. It learns nothing but its requests, which hold no secret,
and ends when its parent does.
"""

from __future__ import annotations

import contextlib
import importlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from cloister.attester import link
from cloister.attester.bytecode import interpreter_flags
from cloister.errors import CloisterError, FetchError, UnsupportedError
from cloister.strictjson import JsonObject

NO_CACHE: Final = "/nonexistent"
"""Where compiled code is looked for when this process was told no place."""

REAP_S: Final = 1.0

_ENVIRONMENT: Final = {"LANG": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}

Handler: TypeAlias = Callable[[JsonObject], JsonObject]


class Exchange(Protocol):
    """One question to a device."""

    def ask(self, request: JsonObject) -> JsonObject:
        """The device's answer; UnsupportedError or FetchError."""


class BackgroundDevice:
    """A handler in a child process. For several threads; one request at a time."""

    def __init__(self, handler: str, *, limit_s: float) -> None:
        """`handler` is ``package.module:function``, called with each request in the child.

        `limit_s` bounds every wait for the child, which sends its answer in one piece; the first
        includes its start.
        """
        self._handler = handler
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._child: tuple[subprocess.Popen[bytes], socket.socket] | None = None

    def ask(self, request: JsonObject) -> JsonObject:
        """Put `request` to the handler and return its answer.

        Raises:
            UnsupportedError, FetchError: what the handler raised; FetchError with code
                ``device.timeout`` where nothing came in time, ``device.io`` where the child
                ended.
        """
        with self._lock:
            if self._child is None:
                self._child = _start(self._handler)
            try:
                answer = self._exchange(self._child[1], request)
            except BaseException:
                self._end()
                raise
        return _unwrap(answer)

    def _exchange(self, connection: socket.socket, request: JsonObject) -> Mapping[str, object]:
        connection.settimeout(self._limit_s)
        try:
            link.send(connection, dict(request))
            answer = link.receive(connection)
        except TimeoutError:
            raise FetchError(
                f"the device gave no answer within {self._limit_s:g} seconds", code="device.timeout"
            ) from None
        except (OSError, ValueError):  # it ended, or wrote something else than an answer
            answer = None
        if answer is None:
            raise FetchError("the process that asks the device has ended", code="device.io")
        return answer

    def close(self) -> None:
        """End the child. Safe to call twice; the next request starts another."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        process, connection = child
        connection.close()
        process.kill()
        try:
            process.wait(REAP_S)
        except subprocess.TimeoutExpired:
            # It sleeps in the kernel. Reaped when it wakes, by somebody who waits for it then.
            threading.Thread(target=process.wait, name="reap-device", daemon=True).start()


def _start(handler: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    flags = interpreter_flags(sys.pycache_prefix or NO_CACHE)
    program = Path(__file__).with_name("_device.py")
    command = (sys.executable, *flags, str(program), str(theirs.fileno()), handler, *sys.path)
    try:
        process = subprocess.Popen(  # noqa: S603 - this interpreter, on this package's own file
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            cwd="/",
            env=_ENVIRONMENT,
        )
    except OSError as error:
        ours.close()
        raise FetchError(
            f"no process can be started to ask the device: {error.strerror}", code="device.io"
        ) from None
    finally:
        theirs.close()
    return process, ours


def serve(connection: socket.socket, handler: str) -> int:
    """In the child: answer requests until the parent is gone."""
    module, _, function = handler.partition(":")
    answer: Handler = getattr(importlib.import_module(module), function)
    while (request := link.receive(connection)) is not None:
        with contextlib.suppress(ConnectionError):
            link.send(connection, _answer(answer, request))
    return 0


def _answer(handler: Handler, request: JsonObject) -> dict[str, object]:
    try:
        return {"answer": handler(request)}
    except UnsupportedError as error:
        return {"unsupported": str(error), "code": error.code}
    except CloisterError as error:
        return {"failed": str(error), "code": error.code}
    except Exception as error:
        return {"failed": f"asking the device failed ({type(error).__name__})", "code": "device.io"}


def _unwrap(message: Mapping[str, object]) -> JsonObject:
    code = str(message.get("code"))
    if "unsupported" in message:
        raise UnsupportedError(str(message["unsupported"]), code=code)
    answer = message.get("answer")
    if not isinstance(answer, dict):
        raise FetchError(str(message.get("failed")), code=code)
    return answer
