"""What the cryptography alone costs, by the bare calls that nothing here can avoid.

Each figure puts a step of the sealed channel beside the primitives inside it, so that the
difference is what our own code adds. The benchmarks of whole requests are held against these.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.context import Context
from benchmarks.harness import (
    MICROSECONDS,
    MILLISECONDS,
    Arm,
    Figure,
    Plan,
    Report,
    Rounds,
    Sample,
    Scale,
    difference,
    measure,
)
from cloister.channel.hpke import Kem, setup_receiver, setup_sender
from cloister.channel.ohttp import (
    MAX_CHUNK,
    SUITES_BY_PREFERENCE,
    ChunkedSender,
    ServerKey,
    ServerRequest,
)

_EVENT = 300  # bytes of one streamed event, as llama.cpp writes them
_UPLOAD = 16 * 2**20
_NONCE = bytes(12)
_SUITE = SUITES_BY_PREFERENCE[0]
_INFO = b"message/bhttp chunked request\x00" + bytes(7)


def per_call(function: Callable[[], object], calls: int) -> Callable[[], Sample]:
    """Return an arm's `run`: seconds of one call, as the mean over `calls`."""

    def run() -> Sample:
        started = time.perf_counter()
        for _ in range(calls):
            function()
        return {"seconds": (time.perf_counter() - started) / calls}

    return run


def _primitives_encapsulate() -> Callable[[], object]:
    mlkem = MLKEM768PrivateKey.generate().public_key()
    x25519 = X25519PrivateKey.generate().public_key()

    def call() -> None:
        mlkem.encapsulate()
        ephemeral = X25519PrivateKey.generate()
        ephemeral.public_key().public_bytes_raw()
        ephemeral.exchange(x25519)

    return call


def _primitives_decapsulate() -> Callable[[], object]:
    mlkem = MLKEM768PrivateKey.generate()
    _, ciphertext = mlkem.public_key().encapsulate()
    x25519 = X25519PrivateKey.generate()
    peer = X25519PrivateKey.generate().public_key()

    def call() -> None:
        mlkem.decapsulate(ciphertext)
        x25519.exchange(peer)

    return call


def _aead(size: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Bare AES-256-GCM of `size` bytes: (seal, open)."""
    cipher = AESGCM(bytes(32))
    plaintext = os.urandom(size)
    sealed = cipher.encrypt(_NONCE, plaintext, None)
    return (
        lambda: cipher.encrypt(_NONCE, plaintext, None),
        lambda: cipher.decrypt(_NONCE, sealed, None),
    )


def _events(count: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return (seal, open) of one message of `count` events, one chunk each, by our channel."""
    key = ServerKey.generate(1, Kem.MLKEM768_X25519)
    sender = ChunkedSender(key.config)
    request = ServerRequest({1: key})
    request.receive(sender.start() + sender.chunk(b"", final=True))
    request.finish()
    event = os.urandom(_EVENT)

    def sealed() -> list[bytes]:
        sealer = request.respond_chunked()
        return [sealer.start(), *(sealer.chunk(event) for _ in range(count))]

    ready = sealed()

    def opened() -> None:
        opener = sender.response_opener()
        for piece in ready:
            opener.receive(piece)

    return sealed, opened


def _upload(size: int) -> tuple[Callable[[], object], Callable[[], object], Callable[[], object]]:
    """(whole, bare seal, bare open): a body sealed and opened in chunks of the draft's size."""
    key = ServerKey.generate(1, Kem.MLKEM768_X25519)
    body = os.urandom(size)
    view = memoryview(body)
    cipher = AESGCM(bytes(32))
    chunks = [view[at : at + MAX_CHUNK] for at in range(0, size, MAX_CHUNK)]
    sealed = [cipher.encrypt(_NONCE, chunk, None) for chunk in chunks]

    def whole() -> None:
        sender = ChunkedSender(key.config)
        request = ServerRequest({1: key})
        for piece in sender.pieces((body,), final=True):
            request.receive(piece)
        request.finish()

    def bare_seal() -> None:
        for chunk in chunks:
            cipher.encrypt(_NONCE, chunk, None)

    def bare_open() -> None:
        for piece in sealed:
            cipher.decrypt(_NONCE, piece, None)

    return whole, bare_seal, bare_open


@dataclass(frozen=True, slots=True)
class _Step:
    name: str
    ours: Callable[[], object]
    bare: Callable[[], object]
    calls: int
    scale: Scale


def _compare(step: _Step, plan: Plan) -> tuple[Figure, Rounds]:
    rounds = measure(
        [
            Arm(name="ours", run=per_call(step.ours, step.calls)),
            Arm(name="bare", run=per_call(step.bare, step.calls)),
        ],
        plan,
    )
    return difference(step.name, rounds, "ours", "bare", "seconds", scale=step.scale), rounds


def run(context: Context) -> Report:
    """Measure every step of the channel against its primitives."""
    plan = context.plan(20)
    calls = context.count(400, 5)
    key = ServerKey.generate(1, Kem.MLKEM768_X25519)
    enc, _ = setup_sender(_SUITE, key.config.public_key, _INFO)
    events = context.count(1000, 10)
    seal_events, open_events = _events(events)
    seal_one, open_one = _aead(_EVENT)
    size = context.count(_UPLOAD, 2**18)
    whole, bare_seal, bare_open = _upload(size)
    body = os.urandom(size)
    signer = Ed25519PrivateKey.generate()
    signature = signer.sign(body[:2048])
    verifier = signer.public_key()

    def bare_events(call: Callable[[], object]) -> Callable[[], object]:
        def run_all() -> None:
            for _ in range(events):
                call()

        return run_all

    def bare_upload() -> None:
        bare_seal()
        bare_open()

    def hash_and_upload() -> None:
        bare_upload()
        hashlib.sha256(body).digest()
        hashlib.sha256(body).digest()

    def sign_and_verify() -> None:
        signer.sign(body[:2048])
        verifier.verify(signature, body[:2048])

    steps = (
        _Step(
            "Hybrid HPKE, client: one setup",
            lambda: setup_sender(_SUITE, key.config.public_key, _INFO),
            _primitives_encapsulate(),
            calls,
            MICROSECONDS,
        ),
        _Step(
            "Hybrid HPKE, worker: one setup",
            lambda: setup_receiver(_SUITE, enc, key.private_key, _INFO),
            _primitives_decapsulate(),
            calls,
            MICROSECONDS,
        ),
        _Step(
            f"Seal {events} events of {_EVENT} B, a chunk each",
            seal_events,
            bare_events(seal_one),
            context.count(10, 1),
            MICROSECONDS,
        ),
        _Step(
            f"Open {events} events of {_EVENT} B, a chunk each",
            open_events,
            bare_events(open_one),
            context.count(10, 1),
            MICROSECONDS,
        ),
        _Step(
            f"Seal and open {size // 1024} KiB in chunks",
            whole,
            bare_upload,
            context.count(3, 1),
            MILLISECONDS,
        ),
        _Step(
            f"SHA-256 of {size // 1024} KiB on both sides, for the receipt",
            hash_and_upload,
            bare_upload,
            context.count(3, 1),
            MILLISECONDS,
        ),
        _Step(
            "Receipt: Ed25519 sign and verify, against signing alone",
            sign_and_verify,
            lambda: signer.sign(body[:2048]),
            calls,
            MICROSECONDS,
        ),
    )
    figures: list[Figure] = []
    raw: dict[str, Rounds] = {}
    for step in steps:
        figure, raw[step.name] = _compare(step, plan)
        figures.append(figure)
    return Report(
        title="The floor: what the cryptography alone costs",
        method=(
            "In one process, without any network. “bare” are the calls of the cryptography "
            "package that cannot be avoided (ML-KEM-768 and X25519, AES-256-GCM); “ours” is the "
            "same step through `cloister.channel`, with its key schedule, nonces and framing."
        ),
        figures=tuple(figures),
        raw=raw,
    )
