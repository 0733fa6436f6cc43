"""Runs the client's generators against a real transport, blocking and asynchronous.

The two drivers differ in nothing but ``await``. A wire is one HTTP connection pool, reduced to
what is needed: send one request, read the reply in pieces, close it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import anyio

from cloister.client.attestation import Attestation
from cloister.client.commands import (
    Attest,
    Command,
    Discard,
    Fetch,
    Outcome,
    Pause,
    Post,
    Read,
    Reply,
)
from cloister.client.flow import Opened
from cloister.client.link import Link
from cloister.client.request import InnerRequest
from cloister.errors import FetchError
from cloister.verifier.result import AffirmedAttester

Extensions = Mapping[str, object]
"""What the HTTP library passes along with a request, such as its timeouts."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterRequest:
    """A request as it goes over the wire."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    pieces: Iterable[bytes] | None
    extensions: Extensions


class SyncReply(Protocol):
    """A reply being read."""

    status: int
    content_type: str
    chunks: Iterator[bytes]

    def close(self) -> None:
        """Give the connection back, or drop it when the reply was not read to its end."""


class AsyncReply(Protocol):
    """As `SyncReply`, asynchronous."""

    status: int
    content_type: str
    chunks: AsyncIterator[bytes]

    async def aclose(self) -> None:
        """Give the connection back, or drop it when the reply was not read to its end."""


class SyncWire(Protocol):
    """Sends outer requests; never follows a redirect, never stores a cookie."""

    def send(self, request: OuterRequest) -> SyncReply:
        """Send and return once status and header fields are there."""
        ...


class AsyncWire(Protocol):
    """As `SyncWire`, asynchronous."""

    async def send(self, request: OuterRequest) -> AsyncReply:
        """Send and return once status and header fields are there."""
        ...


class SyncDriver:
    """Sends requests over one link; safe to use from several threads."""

    def __init__(self, link: Link, wire: SyncWire) -> None:
        self._link = link
        self._wire = wire
        self._lock = threading.Lock()

    def exchange(self, inner: InnerRequest, extensions: Extensions) -> tuple[Opened, SyncReply]:
        """Send `inner`; return the opened head and the reply that holds the rest."""
        reply: SyncReply | None = None
        steps = self._link.exchange(inner)
        try:
            command = next(steps)
            while True:
                outcome: Outcome = None
                match command:
                    case Attest(stale=stale):
                        outcome = self.attest(stale, extensions)
                    case Post():
                        reply = self._wire.send(_outer_post(command, extensions))
                        outcome = _described(reply)
                    case Read():
                        outcome = None if reply is None else next(reply.chunks, None)
                    case Discard():
                        if reply is not None:
                            reply.close()
                    case _:
                        raise RuntimeError("an exchange does not ask for this")
                command = steps.send(outcome)
        except StopIteration as stop:
            if reply is None:
                raise RuntimeError("an exchange ended without a reply") from None
            opened: Opened = stop.value
            return opened, reply
        except BaseException:
            if reply is not None:
                reply.close()
            raise

    def attest(
        self, stale: AffirmedAttester | None = None, extensions: Extensions | None = None
    ) -> AffirmedAttester:
        """The affirmed worker: cached, or verified now by one thread for all that wait.

        Errors as for `Attestation.handshake`, and those of the wire.
        """
        state = self._link.attestation
        attester = state.current(stale)
        if attester is not None:
            return attester
        seen = state.ended
        with self._lock:
            attester = _settled(state, stale, seen)
            if attester is not None:
                return attester
            return self._run(state.handshake(stale), extensions or {})

    def _run(self, steps: Generator[Command, bytes | None, _T], extensions: Extensions) -> _T:
        try:
            command = next(steps)
            while True:
                try:
                    outcome = self._perform(command, extensions)
                except Exception as error:
                    command = steps.throw(error)
                else:
                    command = steps.send(outcome)
        except StopIteration as stop:
            result: _T = stop.value
            return result

    def _perform(self, command: Command, extensions: Extensions) -> bytes | None:
        match command:
            case Pause(seconds=seconds):
                time.sleep(seconds)
                return None
            case Fetch():
                return self._fetch(command, extensions)
            case _:
                raise RuntimeError("a handshake does not ask for this")

    def _fetch(self, command: Fetch, extensions: Extensions) -> bytes:
        deadline = self._link.effects.steady() + command.seconds
        reply = self._wire.send(_outer_get(command, extensions))
        try:
            _require_200(reply.status)
            body = bytearray()
            for data in reply.chunks:
                body += data
                _check_fetch(command, len(body), deadline - self._link.effects.steady())
            return bytes(body)
        finally:
            reply.close()


class AsyncDriver:
    """Sends requests over one link; safe to use from several tasks of one event loop."""

    def __init__(self, link: Link, wire: AsyncWire) -> None:
        self._link = link
        self._wire = wire
        self._lock: anyio.Lock | None = None

    async def exchange(
        self, inner: InnerRequest, extensions: Extensions
    ) -> tuple[Opened, AsyncReply]:
        """Send `inner`; return the opened head and the reply that holds the rest."""
        reply: AsyncReply | None = None
        steps = self._link.exchange(inner)
        try:
            command = next(steps)
            while True:
                outcome: Outcome = None
                match command:
                    case Attest(stale=stale):
                        outcome = await self.attest(stale, extensions)
                    case Post():
                        reply = await self._wire.send(_outer_post(command, extensions))
                        outcome = _described(reply)
                    case Read():
                        outcome = None if reply is None else await anext(reply.chunks, None)
                    case Discard():
                        if reply is not None:
                            await reply.aclose()
                    case _:
                        raise RuntimeError("an exchange does not ask for this")
                command = steps.send(outcome)
        except StopIteration as stop:
            if reply is None:
                raise RuntimeError("an exchange ended without a reply") from None
            opened: Opened = stop.value
            return opened, reply
        except BaseException:
            if reply is not None:
                with anyio.CancelScope(shield=True):
                    await reply.aclose()
            raise

    async def attest(
        self, stale: AffirmedAttester | None = None, extensions: Extensions | None = None
    ) -> AffirmedAttester:
        """The affirmed worker: cached, or verified now by one task for all that wait.

        Errors as for `Attestation.handshake`, and those of the wire.
        """
        state = self._link.attestation
        attester = state.current(stale)
        if attester is not None:
            return attester
        seen = state.ended
        if self._lock is None:
            self._lock = anyio.Lock()
        async with self._lock:
            attester = _settled(state, stale, seen)
            if attester is not None:
                return attester
            return await self._run(state.handshake(stale), extensions or {})

    async def _run(self, steps: Generator[Command, bytes | None, _T], extensions: Extensions) -> _T:
        try:
            command = next(steps)
            while True:
                try:
                    outcome = await self._perform(command, extensions)
                except Exception as error:
                    command = steps.throw(error)
                else:
                    command = steps.send(outcome)
        except StopIteration as stop:
            result: _T = stop.value
            return result

    async def _perform(self, command: Command, extensions: Extensions) -> bytes | None:
        match command:
            case Pause(seconds=seconds):
                await anyio.sleep(seconds)
                return None
            case Fetch():
                return await self._fetch(command, extensions)
            case _:
                raise RuntimeError("a handshake does not ask for this")

    async def _fetch(self, command: Fetch, extensions: Extensions) -> bytes:
        deadline = self._link.effects.steady() + command.seconds
        reply = await self._wire.send(_outer_get(command, extensions))
        try:
            _require_200(reply.status)
            body = bytearray()
            async for data in reply.chunks:
                body += data
                _check_fetch(command, len(body), deadline - self._link.effects.steady())
            return bytes(body)
        finally:
            with anyio.CancelScope(shield=True):
                await reply.aclose()


def _settled(
    state: Attestation, stale: AffirmedAttester | None, seen: int
) -> AffirmedAttester | None:
    """What whoever held the lock left behind; raises what it failed with, just now."""
    attester = state.current(stale)
    if attester is not None:
        return attester
    if state.ended != seen and state.failure is not None:
        raise state.failure
    refusal = state.recent_refusal()
    if refusal is not None:
        raise refusal
    return None


def _outer_get(command: Fetch, extensions: Extensions) -> OuterRequest:
    return OuterRequest(
        method="GET",
        url=command.url,
        headers=(("accept", "application/json"), ("accept-encoding", "identity")),
        pieces=None,
        extensions={**extensions, "timeout": _within(extensions.get("timeout"), command.seconds)},
    )


def _within(timeouts: object, seconds: float) -> dict[str, float]:
    """The caller's `timeouts`, if any, so that no single wait outlasts the whole fetch."""
    given = timeouts if isinstance(timeouts, Mapping) else {}
    longest = {name: given.get(name) for name in ("connect", "read", "write", "pool")}
    return {name: seconds if at is None else min(at, seconds) for name, at in longest.items()}


def _outer_post(command: Post, extensions: Extensions) -> OuterRequest:
    return OuterRequest(
        method="POST",
        url=command.url,
        headers=(
            ("accept", command.accept),
            ("content-type", command.content_type),
            ("content-length", str(command.length)),
        ),
        pieces=command.pieces,
        extensions=extensions,
    )


def _described(reply: SyncReply | AsyncReply) -> Reply:
    kind = reply.content_type.partition(";")[0].strip().lower()
    return Reply(status=reply.status, content_type=kind)


def _require_200(status: int) -> None:
    if status != 200:
        raise FetchError(
            f"the worker's report could not be fetched (HTTP {status})", code="fetch.status"
        )


def _check_fetch(command: Fetch, size: int, seconds_left: float) -> None:
    if size > command.limit:
        raise FetchError(
            f"the worker's report is larger than {command.limit} bytes", code="fetch.too_large"
        )
    if seconds_left < 0:
        raise FetchError("the worker's report did not arrive in time", code="fetch.timeout")
