"""A worker reduced to its wire: real sealing and receipts, made-up evidence and answers."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import formatdate, parsedate_to_datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.channel import bhttp
from cloister.channel.claims import ClaimsDocument, ModelClaim
from cloister.channel.hpke import Kem
from cloister.channel.keyset import Keyset, PublicKeyEntry, parse_keyset
from cloister.channel.ohttp import KEY_PROBLEM_TYPE, ServerKey, ServerRequest, encode_key_configs
from cloister.channel.receipt import (
    MODEL_SERVED,
    REQUEST_RECEIVED,
    RESPONSE_RETURNED,
    hash_event,
    receipt_document,
    sign_receipt,
)
from cloister.errors import ChannelError
from cloister.testing.simulated_tpm import SimulatedAttester
from cloister.verifier.result import AffirmedAttester, AttestationResult, Claim, Finding, Source
from support.wire import WireReply, WireRequest, reply

PROBLEM = "application/problem+json"
SEALED = "message/ohttp-chunked-res"
MODEL = ModelClaim(name="tiny", sha256="ab" * 32)


@dataclass(kw_only=True)
class Answer:
    """What the application inside the worker answers."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    pieces: Iterable[bytes]


Application = Callable[[bhttp.RequestHead, bytes], Answer]


def json_answer(value: object, status: int = 200) -> Answer:
    return Answer(
        status=status,
        headers=((b"content-type", b"application/json"),),
        pieces=[json.dumps(value).encode()],
    )


def events_answer(events: Iterable[bytes]) -> Answer:
    return Answer(status=200, headers=((b"content-type", b"text/event-stream"),), pieces=events)


def echo(head: bhttp.RequestHead, body: bytes) -> Answer:
    """Say what arrived, so that tests see what was sealed."""
    return json_answer(
        {
            "method": head.method.decode(),
            "authority": head.authority.decode(),
            "path": head.path.decode(),
            "headers": [[name.decode(), value.decode()] for name, value in head.headers],
            "size": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
    )


def openai_like(head: bhttp.RequestHead, body: bytes) -> Answer:
    """A small OpenAI-compatible application that repeats the last message, word by word."""
    if head.path == b"/v1/models":
        model = {"id": "tiny", "object": "model", "created": 0, "owned_by": "cloister"}
        return json_answer({"object": "list", "data": [model]})
    if head.path != b"/v1/chat/completions":
        return json_answer({"error": {"message": "no such path", "code": "not_found"}}, 404)
    asked = json.loads(body)
    words = str(asked["messages"][-1]["content"]).split()
    shape = {"id": "chatcmpl-1", "created": 0, "model": "tiny"}
    if not asked.get("stream"):
        message = {"role": "assistant", "content": " ".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return json_answer({**shape, "object": "chat.completion", "choices": [choice]})
    events = [
        {
            **shape,
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": {"content": word + " "}, "finish_reason": None}],
        }
        for word in words
    ]
    lines = [b":   \ndata: " + json.dumps(event).encode() + b"\n\n" for event in events]
    return events_answer([*lines, b"data: [DONE]\n\n"])


def field_of(head: bhttp.RequestHead, name: bytes) -> bytes | None:
    return next((value for key, value in head.headers if key == name), None)


@dataclass
class FakeWorker:
    """A `support.wire.Handler`. Every knob is an attribute that a test may turn."""

    application: Application = echo
    life: timedelta = timedelta(hours=1)
    clock: Callable[[], float] = time.time
    receipts: bool = True
    date_window: float = 300.0
    refuse: str | None = None
    """Makes the evidence one that `FakeVerifier` contradicts, with this code."""
    reports: int = 0
    opened: list[tuple[bhttp.RequestHead, bytes]] = field(default_factory=list)
    """Every request that opened, run or not."""
    generations: list[bytes] = field(default_factory=list)
    """The idempotency key of every request that was run."""
    spoil_receipt: Callable[[dict[str, object]], None] | None = None
    overload: bool = False
    attester: SimulatedAttester | None = None
    """Gives evidence that the real verifier appraises; without one, `FakeVerifier` must."""

    def __post_init__(self) -> None:
        self.claims = ClaimsDocument(models=(MODEL,), configuration={}, isolation="none")
        self._receipt_key_id = "receipts"
        self._receipt_key = Ed25519PrivateKey.generate()
        self._enc: set[bytes] = set()
        self._lock = threading.Lock()
        self._next_id = 1
        self.rotate()

    def rotate(self) -> None:
        """Make new keys and forget the old ones, as a restart does."""
        if self.attester is not None:
            self._take_keys(self.attester)
            return
        hybrid = ServerKey.generate(self._next_id, Kem.MLKEM768_X25519)
        classic = ServerKey.generate(self._next_id + 1, Kem.X25519)
        self._next_id += 2
        self.keys = {key.config.key_id: key for key in (classic, hybrid)}
        self._receipt_key = Ed25519PrivateKey.generate()
        self.keyset = Keyset(
            subject=self.claims.subject,
            not_after=int(self.clock() + self.life.total_seconds()),
            receipt_signing_keys=(
                PublicKeyEntry(
                    key_id="receipts",
                    algo="ed25519",
                    public_key=self._receipt_key.public_key().public_bytes_raw().hex(),
                ),
            ),
            e2ee_public_keys=tuple(
                PublicKeyEntry(
                    key_id=f"ohttp-{number}", algo="ohttp", public_key=key.config.encode().hex()
                )
                for number, key in self.keys.items()
            ),
        )

    def _take_keys(self, attester: SimulatedAttester) -> None:
        self.claims = attester.claims_document
        self.keys = {attester.request_key.config.key_id: attester.request_key}
        self.keyset = attester.keyset
        self._receipt_key = attester.receipt_key
        self._receipt_key_id = attester.keyset.receipt_signing_keys[0].key_id

    def __call__(self, request: WireRequest) -> WireReply:
        path = request.path
        if path.endswith("/ohttp"):
            return self._sealed(request)
        if path.endswith("/v1/aci/attestation"):
            return self._report(request)
        if path.endswith("/ohttp-keys"):
            configs = tuple(key.config for key in self.keys.values())
            return reply(200, "application/ohttp-keys", encode_key_configs(configs))
        return reply(404, "application/json", b"{}")

    def _report(self, request: WireRequest) -> WireReply:
        self.reports += 1
        if self.attester is not None:
            nonce = bytes.fromhex(request.url.partition("nonce=")[2])
            return reply(200, "application/json", self.attester.report(nonce))
        report = {
            "nonce": request.url.partition("nonce=")[2],
            "keyset": self.keyset.to_json(),
            "claims": base64.b64encode(self.claims.encode()).decode(),
            "refuse": self.refuse,
        }
        return reply(200, "application/json", json.dumps(report).encode())

    def _sealed(self, request: WireRequest) -> WireReply:
        if self.overload:
            return reply(503, "application/json", b'{"error":{"message":"busy"}}')
        opener = ServerRequest(self.keys)
        try:
            message = b"".join(opener.receive(request.body)) + opener.finish()
        except ChannelError as error:
            kind = KEY_PROBLEM_TYPE if error.code == "channel.unknown_key" else "about:blank"
            return reply(400, PROBLEM, json.dumps({"type": kind}).encode())
        with self._lock:
            if opener.enc in self._enc:
                return reply(400, PROBLEM, b'{"type":"about:blank"}')
            self._enc.add(opener.enc)
        decoder = bhttp.RequestDecoder()
        events = [*decoder.receive(message), *decoder.finish()]
        head = events[0]
        assert isinstance(head, bhttp.RequestHead)
        body = b"".join(event.data for event in events if isinstance(event, bhttp.Data))
        self.opened.append((head, body))
        answer = self._answer(head, body)
        return WireReply(
            status=200,
            headers=[("content-type", SEALED)],
            chunks=self._respond(opener, head, message, answer),
        )

    def _answer(self, head: bhttp.RequestHead, body: bytes) -> Answer:
        date = parsedate_to_datetime((field_of(head, b"date") or b"").decode()).timestamp()
        if abs(date - self.clock()) > self.date_window:
            kind = "https://iana.org/assignments/http-problem-types#date"
            return Answer(
                status=400,
                headers=(
                    (b"content-type", PROBLEM.encode()),
                    (b"date", formatdate(self.clock(), usegmt=True).encode()),
                ),
                pieces=[json.dumps({"type": kind}).encode()],
            )
        key = field_of(head, b"idempotency-key") or b""
        with self._lock:
            if key in self.generations:
                refused = json_answer({"error": {"message": "already ran", "code": "x"}}, 409)
                refused.headers += ((b"x-should-retry", b"false"),)
                return refused
            self.generations.append(key)
        return self.application(head, body)

    def _respond(
        self, opener: ServerRequest, head: bhttp.RequestHead, message: bytes, answer: Answer
    ) -> Iterator[bytes]:
        sealer = opener.respond_chunked()
        encoder = bhttp.ResponseEncoder()
        digest = hashlib.sha256()
        start = encoder.head(bhttp.ResponseHead(status=answer.status, headers=answer.headers))
        digest.update(start)
        yield sealer.chunk(start)
        for piece in answer.pieces:
            data = encoder.data(piece)
            digest.update(data)
            yield sealer.chunk(data)
        end = encoder.end_content()
        digest.update(end)
        trailers: tuple[tuple[bytes, bytes], ...] = ()
        if self.receipts:
            trailers = ((b"x-aci-receipt", self._receipt(head, message, digest.digest())),)
        yield sealer.chunk(end + encoder.end(trailers), final=True)

    def _receipt(self, head: bhttp.RequestHead, message: bytes, answered: bytes) -> bytes:
        document = receipt_document(
            receipt_id="rcpt-1",
            chat_id=None,
            model=MODEL.name,
            keyset_digest=self.keyset.digest,
            endpoint=head.path.decode(),
            method=head.method.decode(),
            served_at=int(self.clock()),
            events=[
                hash_event(REQUEST_RECEIVED, hashlib.sha256(message).digest()),
                {"type": MODEL_SERVED, **self.claims.models[0].to_json()},
                hash_event(RESPONSE_RETURNED, answered),
            ],
        )
        if self.spoil_receipt is not None:
            self.spoil_receipt(document)  # type: ignore[arg-type]  # JSON is invariant
        return sign_receipt(
            document, key_id=self._receipt_key_id, key=self._receipt_key
        ).to_trailer()


@dataclass
class FakeVerifier:
    """Believes a `FakeWorker`, except where the nonce differs or the worker says `refuse`."""

    appraised: int = 0
    delay: float = 0.0

    def appraise_report(self, report: bytes, *, nonce: bytes, at: datetime) -> AttestationResult:
        self.appraised += 1
        if self.delay:
            time.sleep(self.delay)
        document = json.loads(report)
        keyset = parse_keyset(document["keyset"])
        fresh = document["nonce"] == nonce.hex() and document["refuse"] is None
        attester = AffirmedAttester(
            platform="development (made up)",
            development=True,
            keyset_digest=keyset.digest,
            keyset=keyset,
            claims_document=json.loads(base64.b64decode(document["claims"])),
            expires_at=datetime.fromtimestamp(keyset.not_after, UTC),
        )
        claim = Claim(
            name="freshness",
            finding=Finding.AFFIRMING if fresh else Finding.CONTRAINDICATED,
            source=Source.VERIFIER_DERIVED,
            explanation="the report is over this client's nonce"
            if fresh
            else "the report is not over this client's nonce",
            code=None if fresh else document["refuse"] or "nonce",
        )
        return AttestationResult(
            platform="development (made up)",
            development=True,
            memory_confidentiality="none",
            claims=(claim,),
            not_proven=("anything at all",),
            appraised_at=at,
            policy_id="sha256:" + "0" * 64,
            attester=attester if fresh else None,
        )


def attester_of(worker: FakeWorker) -> AffirmedAttester:
    """What `FakeVerifier` affirms, without asking it."""
    return AffirmedAttester(
        platform="development (made up)",
        development=True,
        keyset_digest=worker.keyset.digest,
        keyset=worker.keyset,
        claims_document=json.loads(worker.claims.encode()),
        expires_at=datetime.fromtimestamp(worker.keyset.not_after, UTC),
    )


def without_hybrid(worker: FakeWorker) -> None:
    """Leave only the X25519 key in the keyset."""
    worker.keyset = dataclasses.replace(
        worker.keyset, e2ee_public_keys=worker.keyset.e2ee_public_keys[:1]
    )
