"""A bare sealed client for tests: the real channel code, and nothing between it and the worker."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from cloister.channel.bhttp import (
    Data,
    EndOfContent,
    RequestHead,
    ResponseDecoder,
    ResponseHead,
    encode_request,
)
from cloister.channel.hpke import Kem
from cloister.channel.keyset import Keyset
from cloister.channel.ohttp import (
    ChunkedSender,
    ClientRequest,
    KeyConfig,
    parse_key_configs,
)
from cloister.channel.receipt import Receipt, parse_receipt_trailer, verify_receipt
from support.asgi import App, Call, Outer

CHUNKED = b"message/ohttp-chunked-req"
WHOLE = b"message/ohttp-req"


@dataclass(slots=True)
class Inner:
    """An opened response."""

    status: int
    headers: dict[str, str]
    body: bytes
    trailers: dict[bytes, bytes]
    response_hash: bytes
    pieces: list[bytes] = field(default_factory=list)
    """Opened pieces, as sealed."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def receipt(self) -> Receipt | None:
        value = self.trailers.get(b"x-aci-receipt")
        return None if value is None else parse_receipt_trailer(value)

    @property
    def events(self) -> list[Any]:
        """The data of the stream's events."""
        found: list[Any] = []
        for line in self.body.splitlines():
            if line.startswith(b"data: "):
                value = line[6:]
                found.append(value.decode() if value == b"[DONE]" else json.loads(value))
        return found

    @property
    def text(self) -> str:
        """What a chat stream says."""
        return "".join(
            event["choices"][0]["delta"].get("content") or ""
            for event in self.events
            if isinstance(event, dict) and event.get("choices")
        )


@dataclass(slots=True, kw_only=True)
class Sealed:
    """One sealed request, ready to be sent any number of times."""

    body: bytes
    plaintext: bytes
    media_type: bytes
    open: Callable[[bytes], list[bytes]]

    @property
    def request_hash(self) -> bytes:
        return hashlib.sha256(self.plaintext).digest()

    def opened(self, outer: Outer) -> Inner:
        assert outer.status == 200, outer
        assert outer.headers[b"content-type"] in (
            b"message/ohttp-chunked-res",
            b"message/ohttp-res",
        )
        return self.opened_body(outer.body)

    def opened_body(self, body: bytes) -> Inner:
        """The same from the body alone, of whatever brought it."""
        pieces = self.open(body)
        decoder = ResponseDecoder()
        head: ResponseHead | None = None
        content: list[bytes] = []
        trailers: dict[bytes, bytes] = {}
        for event in [*decoder.receive(b"".join(pieces)), *decoder.finish()]:
            match event:
                case ResponseHead():
                    head = event
                case Data():
                    content.append(event.data)
                case EndOfContent():
                    trailers = dict(event.trailers)
        assert head is not None
        assert decoder.content_end is not None
        return Inner(
            status=head.status,
            headers={name.decode(): value.decode() for name, value in head.headers},
            body=b"".join(content),
            trailers=trailers,
            response_hash=hashlib.sha256(b"".join(pieces)[: decoder.content_end]).digest(),
            pieces=pieces,
        )


def inner_headers(
    *,
    at: float | None = None,
    api_key: str | None = None,
    cache_secret: bytes | None = None,
    idempotency_key: str | None = None,
    nonce: bytes | None = None,
    extra: Mapping[str, str] | None = None,
) -> tuple[tuple[bytes, bytes], ...]:
    fields = {
        "content-type": "application/json",
        "date": formatdate(time.time() if at is None else at, usegmt=True),
        "x-cloister-nonce": _b64(os.urandom(32) if nonce is None else nonce),
    }
    if api_key is not None:
        fields["authorization"] = f"Bearer {api_key}"
    if cache_secret is not None:
        fields["x-cloister-cache-secret"] = _b64(cache_secret)
    if idempotency_key is not None:
        fields["idempotency-key"] = idempotency_key
    fields.update(extra or {})
    return tuple((name.encode(), value.encode()) for name, value in fields.items() if value)


def seal(
    config: KeyConfig,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    body: bytes = b"",
    *,
    headers: tuple[tuple[bytes, bytes], ...],
    chunked: bool = True,
    plaintext: bytes | None = None,
    pad_to: int = 512,
) -> Sealed:
    """Seal one request to `config`."""
    if plaintext is None:
        head = RequestHead(
            method=method.encode(),
            scheme=b"https",
            authority=b"worker.test",
            path=path.encode(),
            headers=headers,
        )
        plaintext = encode_request(head, body, padding_to=pad_to)
    if not chunked:
        request = ClientRequest(config)
        return Sealed(
            body=request.seal(plaintext),
            plaintext=plaintext,
            media_type=WHOLE,
            open=lambda data: [request.open_response(data)],
        )
    sender = ChunkedSender(config)
    sealed = sender.chunk(plaintext, final=True)

    def open_chunks(data: bytes) -> list[bytes]:
        opener = sender.response_opener()
        return [*opener.receive(data), opener.finish()]

    return Sealed(body=sealed, plaintext=plaintext, media_type=CHUNKED, open=open_chunks)


class Peer:
    """Talks to a worker application, with keys it trusts without asking."""

    def __init__(self, app: App, keyset: Callable[[], Keyset], now: Callable[[], float]) -> None:
        self.app = app
        self._keyset = keyset
        self._now = now

    @property
    def keyset(self) -> Keyset:
        return self._keyset()

    def config(self, kem: Kem = Kem.MLKEM768_X25519) -> KeyConfig:
        listed = [KeyConfig.parse(data) for data in self.keyset.ohttp_key_configs()]
        return next(config for config in listed if config.kem is kem)

    def seal(
        self,
        path: str = "/v1/chat/completions",
        document: object = None,
        *,
        method: str | None = None,
        body: bytes | None = None,
        kem: Kem = Kem.MLKEM768_X25519,
        chunked: bool = True,
        config: KeyConfig | None = None,
        **fields: Any,
    ) -> Sealed:
        if body is None:
            body = b"" if document is None else json.dumps(document).encode()
        fields.setdefault("at", self._now())
        return seal(
            config or self.config(kem),
            method or ("POST" if body else "GET"),
            path,
            body,
            headers=inner_headers(**fields),
            chunked=chunked,
        )

    def start(self, sealed: Sealed, **options: Any) -> Call:
        options.setdefault("body", sealed.body)
        headers = [(b"content-type", sealed.media_type), *options.pop("headers", ())]
        return Call(self.app, "POST", "/ohttp", headers=headers, **options)

    async def send(self, sealed: Sealed, **options: Any) -> Outer:
        return await self.start(sealed, **options).result()

    async def ask(
        self, path: str = "/v1/chat/completions", document: object = None, **fields: Any
    ) -> Inner:
        """Seal, send, open, and check the receipt if there is one."""
        keyset = self.keyset
        sealed = self.seal(path, document, **fields)
        inner = sealed.opened(await self.send(sealed))
        check_receipt(sealed, inner, keyset)
        return inner


def check_receipt(sealed: Sealed, inner: Inner, keyset: Keyset) -> None:
    receipt = inner.receipt
    assert receipt is not None or inner.status >= 400
    if receipt is not None:
        assert receipt.receipt_id == inner.headers["x-receipt-id"]
        verify_receipt(
            receipt,
            keyset=keyset,
            request_hash=sealed.request_hash,
            response_hash=inner.response_hash,
        )


def chat(text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **fields}


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


def offered(outer: Outer) -> tuple[KeyConfig, ...]:
    return parse_key_configs(outer.body)


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
