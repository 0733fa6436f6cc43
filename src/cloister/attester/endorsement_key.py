"""Where a TPM keeps the endorsement key that its manufacturer certified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloister.attester.tpm import LoadedKey, Tpm
from cloister.attester.tpm_errors import ResponseCode, TpmError
from cloister.errors import UnsupportedError


@dataclass(frozen=True, slots=True, kw_only=True)
class EndorsementKey:
    """A TPM's endorsement key and the DER of its certificate, as the TPM stores it."""

    key: LoadedKey
    certificate: bytes


PERSISTENT_EKS: Final = (
    (0x81010016, 0x01C00016),  # H-3: ECC P-384
    (0x8101000A, 0x01C0000A),  # L-2: ECC P-256
    (0x81010001, 0x01C00002),  # L-1: RSA-2048
)
"""Where manufacturers put endorsement keys and their certificates, the preferred one first.

TCG "EK Credential Profile for TPM Family 2.0" section 2.2.1.4 (NV indices) and "TCG TPM v2.0
Provisioning Guidance" section 7.8 (handles).
"""


def find_endorsement_key(
    tpm: Tpm, candidates: Sequence[tuple[int, int]] = PERSISTENT_EKS
) -> EndorsementKey:
    """Find a persistent endorsement key that has a certificate.

    Raises:
        UnsupportedError: the TPM holds none (code ``tpm.no_ek``).
    """
    for handle, index in candidates:
        try:
            return EndorsementKey(key=tpm.read_public(handle), certificate=tpm.nv_read(index))
        except TpmError as error:
            if error.response_code not in {ResponseCode.HANDLE, ResponseCode.VALUE}:
                raise
    raise UnsupportedError("the TPM holds no endorsement key with a certificate", code="tpm.no_ek")
