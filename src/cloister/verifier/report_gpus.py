"""GPUs of a worker: genuine, in confidential mode, and asked by this very worker.

A GPU's evidence answers a nonce. Here that is `gpu_nonce` of the receipt key that the keyset
lists, so evidence of a genuine GPU in another machine, spliced in, answers another
nonce; and the claims document, which the keyset's subject binds, lists the digest of all GPU
evidence, so none can be left out or swapped for an older one of the same worker's. Neither
shows that the GPU is plugged into this worker's machine, and the result says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from cloister.channel.claims import ClaimsDocument
from cloister.channel.keyset import RECEIPT_ALGORITHM, Keyset
from cloister.endorsements.roots import Roots
from cloister.errors import MalformedError
from cloister.evidence.items import MAX_GPUS, gpu_item
from cloister.evidence.nvgpu import GpuDevice, evidence_digest, gpu_nonce
from cloister.evidence.report import MEDIA_TYPE_CERTIFICATE, EvidenceItem
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.policy import AppraisalPolicy, Unchecked

BOUND: Final = "gpu.bound"
NONCE: Final = "gpu.asked_by_worker"
COUNT: Final = "gpu.count"


def has_gpus(evidence: Mapping[str, EvidenceItem], policy: AppraisalPolicy) -> bool:
    """Whether there is something to say about GPUs: evidence of one, or a policy that wants it."""
    return bool(_items(evidence)) or not isinstance(policy.required_gpus, Unchecked)


def _items(evidence: Mapping[str, EvidenceItem]) -> tuple[EvidenceItem, ...]:
    names = map(gpu_item, range(MAX_GPUS))
    return tuple(evidence[name] for name in names if name in evidence)


def verify_gpus(
    evidence: Mapping[str, EvidenceItem],
    *,
    keyset: Keyset | None,
    document: ClaimsDocument | None,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    ledger: Ledger,
) -> Outcome | None:
    """Verify every GPU's evidence in a report and bind it to the worker.

    Claims about each device are those of `cloister.verifier.platforms.nvgpu`; ``gpu.count``,
    ``gpu.bound`` and ``gpu.asked_by_worker`` are about the worker as a whole.
    """
    ledger.expect(COUNT, BOUND, NONCE)
    items = _items(evidence)
    if not isinstance(policy.required_gpus, Unchecked):
        _count(len(items), policy.required_gpus, ledger)
    else:
        ledger.affirm(COUNT, f"The report brings evidence of {len(items)} GPUs.")
    devices = tuple(
        GpuDevice(report=item.data, chain=_endorsed(item, MEDIA_TYPE_CERTIFICATE)) for item in items
    )
    if document is not None:
        _bound(devices, document, ledger)
    if keyset is not None:
        _asked(devices, keyset, ledger)
    return None


def _endorsed(item: EvidenceItem, media_type: str) -> tuple[bytes, ...]:
    return tuple(entry.data for entry in item.endorsements if entry.media_type == media_type)


def _count(found: int, required: int, ledger: Ledger) -> None:
    ledger.check(
        COUNT,
        holds=found >= required,
        affirmed=f"The report brings evidence of {found} GPUs, of which {required} are required.",
        code="gpu_missing",
        refused=f"The report brings evidence of {found} GPUs; the policy requires {required}.",
    )


def _bound(devices: tuple[GpuDevice, ...], document: ClaimsDocument, ledger: Ledger) -> None:
    """The document lists one digest, over all devices; without GPUs, none."""
    digests = (evidence_digest(devices).hex(),) if devices else ()
    ledger.check(
        BOUND,
        holds=document.gpu_evidence_sha256 == digests,
        affirmed="The GPUs' evidence is, whole, the one that the worker's claims document names.",
        code="gpu_unbound",
        refused="The GPUs' evidence is not the one that the worker's claims document names.",
    )


def _asked(devices: tuple[GpuDevice, ...], keyset: Keyset, ledger: Ledger) -> None:
    nonces = {gpu_nonce(key) for key in _receipt_keys(keyset)}
    asked = {device.report[NONCE_SLICE] for device in devices}
    ledger.check(
        NONCE,
        holds=asked <= nonces and len(asked) <= 1,
        affirmed="Every GPU answered this worker's own nonce, made from its receipt key.",
        code="nonce_mismatch",
        refused="A GPU's evidence answers another nonce than this worker's: it is somebody else's.",
    )


def _receipt_keys(keyset: Keyset) -> tuple[bytes, ...]:
    keys = []
    for entry in keyset.receipt_signing_keys:
        if entry.algo == RECEIPT_ALGORITHM:
            try:
                key = keyset.receipt_key(entry.key_id)
            except MalformedError:
                continue
            if key is not None:
                keys.append(key)
    return tuple(keys)


NONCE_SLICE: Final = slice(4, 36)
"""Where the request in front of an SPDM report carries its nonce (`cloister.evidence.spdm`)."""
