"""Data sealed to one TPM and to values of its registers.

Sources: TCG "Trusted Platform Module Library", family 2.0, revision 01.59: Part 1 section 19.7
(policies) and 27.3 (sealed data), Part 3 sections 12 (object commands) and 23.7
(``TPM2_PolicyPCR``). Under a primary storage key of the owner's hierarchy (ECC P-256, AES-128
CFB), which is made anew from the TPM's seed each time and leaves nothing behind.

Data cross the connection to the TPM in clear: whoever can listen on the bus of a discrete TPM
reads them when they are unsealed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from cloister.attester.tpm import RH_OWNER, Command, LoadedKey, Tpm, sha256_selection
from cloister.evidence.tpm import Alg, Curve, ObjectAttribute, encode_selections, sized

MAX_SEALED_BYTES: Final = 128
"""``MAX_SYM_DATA`` of every TPM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedData:
    """What the TPM gave out; useless without it."""

    pcrs: tuple[int, ...]
    """Registers of the SHA-256 bank, ascending."""
    private: bytes
    """``TPM2B_PRIVATE`` without its length: encrypted by the TPM."""
    public: bytes
    """``TPMT_PUBLIC``."""


def seal(tpm: Tpm, data: bytes, pcrs: Sequence[int]) -> SealedData:
    """Seal `data` (at most 128 bytes) to the present values of `pcrs`, of which there is one."""
    selected = tuple(sorted(set(pcrs)))
    if not selected or not 0 < len(data) <= MAX_SEALED_BYTES:
        raise ValueError(f"1 to {MAX_SEALED_BYTES} bytes are sealed, to at least one register")
    policy = pcr_policy(selected, tpm.read_pcrs(selected))
    with _parent(tpm) as parent:
        private, public = tpm.create(parent.handle, _sealed_template(policy), data)
    return SealedData(pcrs=selected, private=private, public=public)


def unseal(tpm: Tpm, sealed: SealedData) -> bytes:
    """The data. Raises as `Tpm.load` and `Tpm.unseal`."""
    with _parent(tpm) as parent:
        handle = tpm.load(parent.handle, sealed.private, sealed.public)
        try:
            return tpm.unseal(handle, sealed.pcrs)
        finally:
            tpm.flush(handle)


def pcr_policy(pcrs: tuple[int, ...], values: dict[int, bytes]) -> bytes:
    """The digest of a policy of ``TPM2_PolicyPCR`` alone (Part 3 section 23.7.1), SHA-256."""
    registers = hashlib.sha256(b"".join(values[pcr] for pcr in pcrs)).digest()
    selection = encode_selections((sha256_selection(pcrs),))
    code = Command.POLICY_PCR.to_bytes(4, "big")
    return hashlib.sha256(bytes(32) + code + selection + registers).digest()


@contextmanager
def _parent(tpm: Tpm) -> Iterator[LoadedKey]:
    parent = tpm.create_primary(_storage_template(), hierarchy=RH_OWNER)
    try:
        yield parent
    finally:
        tpm.flush(parent.handle)


def _storage_template() -> bytes:
    attributes = (
        ObjectAttribute.FIXED_TPM
        | ObjectAttribute.FIXED_PARENT
        | ObjectAttribute.SENSITIVE_DATA_ORIGIN
        | ObjectAttribute.USER_WITH_AUTH
        | ObjectAttribute.NO_DA
        | ObjectAttribute.RESTRICTED
        | ObjectAttribute.DECRYPT
    )
    # AES-128 CFB for what is below; no scheme, P-256, no key derivation.
    details = (Alg.AES, 128, Alg.CFB, Alg.NULL, Curve.NIST_P256, Alg.NULL)
    return b"".join(
        (
            Alg.ECC.to_bytes(2, "big"),
            Alg.SHA256.to_bytes(2, "big"),
            attributes.to_bytes(4, "big"),
            sized(b""),
            *(value.to_bytes(2, "big") for value in details),
            sized(b""),
            sized(b""),
        )
    )


def _sealed_template(policy: bytes) -> bytes:
    # Without userWithAuth an empty password opens nothing: only the policy does.
    attributes = (
        ObjectAttribute.FIXED_TPM
        | ObjectAttribute.FIXED_PARENT
        | ObjectAttribute.ADMIN_WITH_POLICY
        | ObjectAttribute.NO_DA
    )
    return b"".join(
        (
            Alg.KEYEDHASH.to_bytes(2, "big"),
            Alg.SHA256.to_bytes(2, "big"),
            attributes.to_bytes(4, "big"),
            sized(policy),
            Alg.NULL.to_bytes(2, "big"),
            sized(b""),
        )
    )
