"""Everything between client and worker that means harm, as one handler in front of another.

A `HostileProxy` passes everything on and writes everything down, until a test sets one of its
hooks. It sees what a proxy sees: ciphertext, outer headers, sizes, timing.

Over a real worker: ``HostileProxy(over_http())``, made the inner transport of a client by
``Httpx2Wire`` and its kin (`support.wire`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from support.wire import Handler, WireReply, WireRequest, reply

UNKNOWN_KEY = "https://iana.org/assignments/http-problem-types#ohttp-key"

RequestHook = Callable[[WireRequest], WireRequest]
ReplyHook = Callable[[WireRequest, WireReply], WireReply]
Forgery = Callable[[WireRequest], WireReply | None]


@dataclass
class HostileProxy:
    """A handler in front of `upstream` that does what its hooks say."""

    upstream: Handler
    forge: Forgery | None = None
    """Answers instead of the worker, unless it returns ``None``."""
    on_request: RequestHook | None = None
    on_reply: ReplyHook | None = None
    delay_s: float = 0.0
    seen: list[WireRequest] = field(default_factory=list)
    passed: list[WireRequest] = field(default_factory=list)
    """What went on to the worker, after every change."""

    def __call__(self, request: WireRequest) -> WireReply:
        self.seen.append(request)
        if self.delay_s:
            time.sleep(self.delay_s)
        forged = self.forge(request) if self.forge is not None else None
        if forged is not None:
            return forged
        if self.on_request is not None:
            request = self.on_request(request)
        self.passed.append(request)
        answer = self.upstream(request)
        return self.on_reply(request, answer) if self.on_reply is not None else answer

    @property
    def sealed(self) -> list[WireRequest]:
        """The sealed requests seen so far."""
        return [request for request in self.seen if request.path.endswith("/ohttp")]

    def replay(self, request: WireRequest) -> WireReply:
        """Send something seen before to the worker again."""
        return self.upstream(request)


def only(path: str, hook: ReplyHook) -> ReplyHook:
    """`hook` for requests whose path ends so; all others pass."""
    return lambda request, answer: hook(request, answer) if request.path.endswith(path) else answer


def sealed_only(hook: ReplyHook) -> ReplyHook:
    """`hook` for answers to sealed requests."""
    return only("/ohttp", hook)


def cut_reply(keep: int) -> ReplyHook:
    """End the answer after `keep` sealed chunks, as an orderly end of the HTTP message."""

    def hook(_: WireRequest, answer: WireReply) -> WireReply:
        chunks = whole_chunks(b"".join(answer.chunks))
        return replace(answer, headers=_without_length(answer), chunks=iter(chunks[:keep]))

    return sealed_only(hook)


def cut_reply_bytes(keep: int) -> ReplyHook:
    """End the answer after `keep` bytes."""

    def hook(_: WireRequest, answer: WireReply) -> WireReply:
        body = b"".join(answer.chunks)[:keep]
        return replace(answer, headers=_without_length(answer), chunks=iter([body]))

    return sealed_only(hook)


def cut_request(keep: Callable[[bytes], bytes]) -> RequestHook:
    """Shorten sealed requests."""

    def hook(request: WireRequest) -> WireRequest:
        return _with_body(request, keep(request.body)) if _is_sealed(request) else request

    return hook


def flip_request(position: int) -> RequestHook:
    """Change one bit of sealed requests."""

    def hook(request: WireRequest) -> WireRequest:
        return (
            _with_body(request, flipped(request.body, position)) if _is_sealed(request) else request
        )

    return hook


def flip_reply(position: int) -> ReplyHook:
    """Change one bit of the sealed answer."""

    def hook(_: WireRequest, answer: WireReply) -> WireReply:
        return replace(answer, chunks=iter([flipped(b"".join(answer.chunks), position)]))

    return sealed_only(hook)


def swap_chunks(first: int, second: int) -> ReplyHook:
    """Exchange two sealed chunks of the answer."""

    def hook(_: WireRequest, answer: WireReply) -> WireReply:
        chunks = whole_chunks(b"".join(answer.chunks))
        chunks[first], chunks[second] = chunks[second], chunks[first]
        return replace(answer, chunks=iter(chunks))

    return sealed_only(hook)


def repeat_chunk(index: int) -> ReplyHook:
    """Send one sealed chunk of the answer twice."""

    def hook(_: WireRequest, answer: WireReply) -> WireReply:
        chunks = whole_chunks(b"".join(answer.chunks))
        chunks.insert(index, chunks[index])
        return replace(answer, chunks=iter(chunks))

    return sealed_only(hook)


def set_outer(*, status: int | None = None, headers: dict[str, str] | None = None) -> ReplyHook:
    """Change status or header fields outside the seal."""

    def hook(_: WireRequest, answer: WireReply) -> WireReply:
        changed = headers or {}
        kept = [(name, value) for name, value in answer.headers if name.lower() not in changed]
        return replace(
            answer,
            status=answer.status if status is None else status,
            headers=[*kept, *changed.items()],
        )

    return sealed_only(hook)


def divide(size: int) -> ReplyHook:
    """Deliver the same bytes in pieces of `size`, as a network may."""

    def hook(_: WireRequest, answer: WireReply) -> WireReply:
        body = b"".join(answer.chunks)
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        return replace(answer, chunks=iter(pieces))

    return sealed_only(hook)


class SwapAnswers:
    """Gives each sealed request the answer to the one before it."""

    def __init__(self) -> None:
        self._last: bytes | None = None

    def __call__(self, request: WireRequest, answer: WireReply) -> WireReply:
        if not _is_sealed(request):
            return answer
        body = b"".join(answer.chunks)
        given, self._last = self._last, body
        return replace(answer, chunks=iter([body if given is None else given]))


def forge_page(status: int, content_type: str, body: bytes) -> Forgery:
    """Answer sealed requests with a page of the proxy's own."""
    return lambda request: reply(status, content_type, body) if _is_sealed(request) else None


def forge_unknown_key(times: int | None = None) -> Forgery:
    """Claim that the worker does not have the key, `times` times or always."""
    left = times

    def forge(request: WireRequest) -> WireReply | None:
        nonlocal left
        if not _is_sealed(request) or left == 0:
            return None
        left = None if left is None else left - 1
        return unknown_key()

    return forge


def deliver_then_forge_unknown_key(times: int = 1) -> ReplyHook:
    """Let the worker run the request, then hide its answer behind a forged "unknown key"."""
    left = times

    def hook(_: WireRequest, answer: WireReply) -> WireReply:
        nonlocal left
        if not left:
            return answer
        left -= 1
        for _chunk in answer.chunks:
            pass
        return unknown_key()

    return sealed_only(hook)


def unknown_key() -> WireReply:
    body = json.dumps({"type": UNKNOWN_KEY, "title": "unknown key"}).encode()
    return reply(400, "application/problem+json", body)


def endless(chunk: bytes, most: int = 64 * 1024 * 1024) -> Iterator[bytes]:
    """Bytes without an end, for what must be bounded; who reads `most` of them fails the test."""
    for _ in range(most // len(chunk)):
        yield chunk
    raise AssertionError("something read without a bound")


def flipped(data: bytes, position: int) -> bytes:
    """`data` with one bit of the byte at `position` changed."""
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)


def whole_chunks(body: bytes, nonce_size: int = 32) -> list[bytes]:
    """Divide a sealed answer as chunked OHTTP frames it: nonce, chunks, final chunk."""
    parts = [body[:nonce_size]]
    at = nonce_size
    while at < len(body):
        size = 1 << (body[at] >> 6)
        length = int.from_bytes(body[at : at + size], "big") & ((1 << (8 * size - 2)) - 1)
        end = at + size + length if length else len(body)
        parts.append(body[at:end])
        at = end
    return parts


def _is_sealed(request: WireRequest) -> bool:
    return request.path.endswith("/ohttp")


def _with_body(request: WireRequest, body: bytes) -> WireRequest:
    headers = [field for field in request.headers if field[0].lower() != "content-length"]
    return replace(request, body=body, headers=[*headers, ("content-length", str(len(body)))])


def _without_length(answer: WireReply) -> list[tuple[str, str]]:
    return [field for field in answer.headers if field[0].lower() != "content-length"]
