"""Replay and idempotency memories, rates, receipts: what they keep, and what they never forget."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.channel.receipt import Receipt
from cloister.engine.protocol import ModelInfo
from cloister.worker.idempotency import IdempotencyMemory
from cloister.worker.keys import ReceiptKey
from cloister.worker.rate import RateLimiter
from cloister.worker.receipts import ReceiptStore, issue_receipt
from cloister.worker.replay import Admission, ReplayMemory
from cloister.worker.settings import RateLimit, ReceiptSettings


def test_replay_memory_never_evicts() -> None:
    memory = ReplayMemory(1000)
    sealed = [index.to_bytes(4, "big") for index in range(1001)]
    assert all(memory.admit(enc) is Admission.NEW for enc in sealed[:1000])
    assert memory.full
    assert memory.admit(sealed[1000]) is Admission.FULL
    assert all(memory.admit(enc) is Admission.SEEN for enc in sealed[:1000])
    assert not memory.seen(sealed[1000])
    assert len(memory) == 1000


def test_idempotency_keys_last_for_their_time_and_no_longer() -> None:
    memory = IdempotencyMemory(capacity=10, keep_s=100)
    assert memory.admit(b"me", b"k", 0) is Admission.NEW
    assert memory.admit(b"me", b"k", 99.9) is Admission.SEEN
    assert memory.admit(b"me", b"k", 100) is Admission.NEW


def test_idempotency_keys_belong_to_a_credential() -> None:
    memory = IdempotencyMemory(capacity=10, keep_s=100)
    assert memory.admit(b"me", b"k", 0) is Admission.NEW
    assert memory.admit(b"you", b"k", 0) is Admission.NEW
    assert memory.admit(b"m", b"ek", 0) is Admission.NEW  # the border between the two counts


def test_a_full_idempotency_memory_forgets_nothing() -> None:
    memory = IdempotencyMemory(capacity=2, keep_s=100)
    assert memory.admit(b"", b"1", 0) is Admission.NEW
    assert memory.admit(b"", b"2", 1) is Admission.NEW
    assert memory.admit(b"", b"3", 2) is Admission.FULL
    assert memory.admit(b"", b"1", 3) is Admission.SEEN
    assert memory.admit(b"", b"3", 100) is Admission.NEW


def test_an_idempotency_key_can_be_given_back() -> None:
    memory = IdempotencyMemory(capacity=2, keep_s=100)
    memory.admit(b"", b"1", 0)
    memory.release(b"", b"1")
    assert memory.admit(b"", b"1", 0) is Admission.NEW
    memory.release(b"", b"unknown")


def test_rates() -> None:
    limiter = RateLimiter(RateLimit(per_minute=60, burst=2), max_names=10)
    assert [limiter.take("a", 0) for _ in range(3)] == [0, 0, 1]
    assert limiter.take("b", 0) == 0
    assert limiter.take("a", 1) == 0
    assert limiter.take("a", 1) == 1
    assert limiter.take("a", 0.5) == 1  # a clock that goes back gives nothing
    assert RateLimiter(RateLimit(per_minute=0), max_names=1).take("a", 0) == 0


def test_the_number_of_buckets_is_bounded() -> None:
    limiter = RateLimiter(RateLimit(per_minute=60, burst=1), max_names=3)
    for name in range(100):
        limiter.take(name, 0)
    assert len(limiter) == 3
    limiter.keep_only({99})
    assert len(limiter) == 1
    assert limiter.take(99, 0) == 1


def receipt(name: str) -> Receipt:
    return issue_receipt(
        key=ReceiptKey(Ed25519PrivateKey.generate()),
        receipt_id=name,
        keyset_digest="sha256:" + "0" * 64,
        method="POST",
        endpoint="/v1/chat/completions",
        served_at=1.5,
        request_hash=bytes(32),
        response_hash=bytes(32),
        model=ModelInfo(name="m", sha256=None, path=None, context_length=0, quantisation=""),
    )


def test_receipts_are_for_their_credential_alone() -> None:
    store = ReceiptStore(ReceiptSettings(keep_s=600, capacity=10))
    kept = receipt("r1")
    store.keep(kept, b"me", 0)
    assert store.find("r1", b"me", 0) == kept.encode()
    assert store.find("r1", b"you", 0) is None
    assert store.find("r1", b"", 0) is None
    assert store.find("r2", b"me", 0) is None
    assert store.find("r1", b"me", 599) is not None
    assert store.find("r1", b"me", 600) is None


def test_receipts_are_few() -> None:
    store = ReceiptStore(ReceiptSettings(keep_s=600, capacity=3))
    for index in range(10):
        store.keep(receipt(f"r{index}"), b"", 0)
    assert len(store) == 3
    assert store.find("r9", b"", 0) is not None
    assert store.find("r6", b"", 0) is None


def test_a_receipt_holds_no_bare_hash_of_a_body() -> None:
    kinds = [event["type"] for event in receipt("r").document["event_log"]]  # type: ignore[union-attr, index, call-overload]  # JSON
    assert kinds == ["request.received", "cloister.model", "response.returned"]
