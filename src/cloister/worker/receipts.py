"""Receipts: signed at the end of an answer, kept for a short while for those who ask again."""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from dataclasses import dataclass, field

from cloister.channel.receipt import (
    CHANNEL_USED,
    MODEL_SERVED,
    REQUEST_RECEIVED,
    RESPONSE_RETURNED,
    Receipt,
    hash_event,
    receipt_document,
    sign_receipt,
)
from cloister.engine.protocol import ModelInfo
from cloister.strictjson import JsonObject
from cloister.worker.keys import ReceiptKey
from cloister.worker.settings import ReceiptSettings

RECEIPT_ID_SIZE = 16
"""Random bytes of a receipt's id: nobody guesses one."""


def issue_receipt(
    *,
    key: ReceiptKey,
    receipt_id: str,
    keyset_digest: str,
    method: str,
    endpoint: str,
    served_at: float,
    request_hash: bytes,
    response_hash: bytes,
    model: ModelInfo | None,
    over_tls: bool = False,
) -> Receipt:
    """Sign what was received and returned; `model` is None where no model answered.

    There is no ``request.forwarded`` event: over a body without random bytes its hash would
    confirm a guessed prompt. The hashes of a receipt `over_tls` do: `aci/1` section 7.4 wants
    those of the bare bodies, which a client without Cloister can compute.
    """
    events: list[JsonObject] = [hash_event(REQUEST_RECEIVED, request_hash)]
    if over_tls:
        events.append({"type": CHANNEL_USED, "binding": "tls"})
    if model is not None:
        events.append({"type": MODEL_SERVED, "name": model.name, "sha256": model.sha256})
    events.append(hash_event(RESPONSE_RETURNED, response_hash))
    document = receipt_document(
        receipt_id=receipt_id,
        chat_id=None,
        model=None if model is None else model.name,
        keyset_digest=keyset_digest,
        endpoint=endpoint,
        method=method,
        served_at=int(served_at),
        events=events,
    )
    return sign_receipt(document, key_id=key.key_id, key=key.private)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A receipt, whose it is, and how long it can be had (steady time)."""

    receipt: bytes
    credential: bytes = field(repr=False)
    until: float


class ReceiptStore:
    """Receipts by id, for `keep_s` seconds of steady time and at most `capacity` of them."""

    def __init__(self, settings: ReceiptSettings) -> None:
        self._settings = settings
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, receipt: Receipt, credential: bytes, now: float) -> None:
        """Remember `receipt` for the holder of `credential`; the oldest make room."""
        self._expire(now)
        while len(self._kept) >= max(1, self._settings.capacity):
            self._kept.popitem(last=False)
        self._kept[receipt.receipt_id] = _Kept(
            receipt=receipt.encode(),
            credential=_digest(credential),
            until=now + self._settings.keep_s,
        )

    def find(self, receipt_id: str, credential: bytes, now: float) -> bytes | None:
        """The receipt's JSON, or ``None``: unknown, expired and not yours look alike."""
        self._expire(now)
        kept = self._kept.get(receipt_id)
        mine = hmac.compare_digest(b"" if kept is None else kept.credential, _digest(credential))
        return kept.receipt if kept is not None and mine else None

    def _expire(self, now: float) -> None:
        while self._kept and next(iter(self._kept.values())).until <= now:
            self._kept.popitem(last=False)


def _digest(credential: bytes) -> bytes:
    return hashlib.sha256(credential).digest()
