"""GPUs of a worker: genuine, in confidential mode, and asked by this very worker.

A GPU's evidence answers a nonce. Here that is `gpu_nonce` of the one receipt key that the keyset
lists (with several, GPUs could answer for one while another signs receipts), so evidence of a
genuine GPU in another machine, spliced in, answers another nonce; and the claims document, which
the keyset's subject binds, lists the digest of all GPU evidence, so none can be left out or swapped
for an older one of the same worker's. Neither shows that the GPU is plugged into this worker's
machine, and the result says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from cloister.channel.claims import ClaimsDocument
from cloister.channel.keyset import RECEIPT_ALGORITHM, Keyset
from cloister.endorsements.roots import Roots
from cloister.errors import MalformedError
from cloister.evidence.items import (
    MAX_GPUS,
    MEDIA_TYPE_CRL,
    MEDIA_TYPE_OCSP,
    MEDIA_TYPE_RIM,
    gpu_item,
)
from cloister.evidence.nvgpu import GpuDevice, evidence_digest, gpu_nonce
from cloister.evidence.report import MEDIA_TYPE_CERTIFICATE, EvidenceItem
from cloister.verifier.expected import Expected
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.policy import AppraisalPolicy, Unchecked

if TYPE_CHECKING:
    from cloister.verifier.platforms.nvgpu import GpuEvidence

BOUND: Final = "nvgpu.bound"


def has_gpus(
    evidence: Mapping[str, EvidenceItem], document: ClaimsDocument | None, policy: AppraisalPolicy
) -> bool:
    """Whether GPUs are there, are claimed to be, or have to be."""
    claimed = document is not None and bool(document.gpu_evidence_sha256)
    return bool(_items(evidence)) or claimed or not isinstance(policy.required_gpus, Unchecked)


def verify_gpus(
    evidence: Mapping[str, EvidenceItem],
    *,
    keyset: Keyset | None,
    document: ClaimsDocument | None,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    ledger: Ledger,
) -> Outcome:
    """Verify every GPU's evidence in a report and bind it to the worker.

    Claims about each device are those of `cloister.verifier.platforms.nvgpu`; here
    ``nvgpu.bound`` is added, about all of them.
    """
    from cloister.verifier.platforms.nvgpu import ALL_DEVICES, verify_nvgpu

    items = _items(evidence)
    devices = tuple(
        GpuDevice(report=item.data, chain=_endorsed(MEDIA_TYPE_CERTIFICATE, item)) for item in items
    )
    every = ledger.on(ALL_DEVICES)
    every.expect(BOUND)
    if document is not None:
        _bound(devices, document, every)
    return verify_nvgpu(
        _evidence(devices, items),
        policy=policy,
        roots=roots,
        at=at,
        expected=Expected(values={"nonce": _expected_nonce(keyset)}),
        ledger=ledger,
    )


def _items(evidence: Mapping[str, EvidenceItem]) -> tuple[EvidenceItem, ...]:
    names = map(gpu_item, range(MAX_GPUS))
    return tuple(evidence[name] for name in names if name in evidence)


def _evidence(devices: tuple[GpuDevice, ...], items: Sequence[EvidenceItem]) -> GpuEvidence:
    """One manifest serves every device of its model, so each is looked at once."""
    from cloister.verifier.platforms.nvgpu import GpuEvidence

    return GpuEvidence(
        devices=devices,
        rims=_endorsed(MEDIA_TYPE_RIM, *items),
        crls=_endorsed(MEDIA_TYPE_CRL, *items),
        ocsp=_endorsed(MEDIA_TYPE_OCSP, *items),
    )


def _endorsed(media_type: str, *items: EvidenceItem) -> tuple[bytes, ...]:
    """The endorsements of one type, each once, in order."""
    listed = (entry for item in items for entry in item.endorsements)
    return tuple(dict.fromkeys(entry.data for entry in listed if entry.media_type == media_type))


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


def _expected_nonce(keyset: Keyset | None) -> bytes:
    """This worker's nonce. Without a receipt key, or with several, there is none that equals it."""
    keys = () if keyset is None else _receipt_keys(keyset)
    return gpu_nonce(keys[0]) if len(keys) == 1 else b""


def _receipt_keys(keyset: Keyset) -> tuple[bytes, ...]:
    keys: list[bytes] = []
    for entry in keyset.receipt_signing_keys:
        if entry.algo != RECEIPT_ALGORITHM:
            continue
        try:
            key = keyset.receipt_key(entry.key_id)
        except MalformedError:
            continue
        if key is not None:
            keys.append(key)
    return tuple(keys)
