"""What the worker holds of the TPM: a key to quote with, and the story of its launch."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attester.endorsement_key import PERSISTENT_EKS, find_endorsement_key
from cloister.attester.enrolment import EnrolmentCa
from cloister.attester.tpm import LoadedKey, Tpm, signing_template
from cloister.evidence.component import QUOTED_REGISTERS
from cloister.evidence.report import (
    ITEM_EVENT_LOG,
    ITEM_QUOTE,
    ITEM_SIGNATURE,
    MEDIA_TYPE_CERTIFICATE,
    MEDIA_TYPE_EVENT_LOG,
    MEDIA_TYPE_QUOTE,
    MEDIA_TYPE_SIGNATURE,
    Endorsement,
    EvidenceItem,
)

STATEMENT_DIGEST_SIZE: Final = 32


class TpmAttester:
    """Turns statement digests into evidence. For several threads; one quote at a time (0.4 ms)."""

    def __init__(
        self,
        tpm: Tpm,
        *,
        ak_handle: int,
        ak_chain: Sequence[x509.Certificate],
        event_log: bytes,
    ) -> None:
        """`ak_chain` begins with the attestation key's own certificate."""
        self._tpm = tpm
        self._ak_handle = ak_handle
        self._event_log = event_log
        self._endorsements = _endorsements(ak_chain)
        self._lock = threading.Lock()

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        """Quote registers 0 to 15 with `statement_digest` (32 bytes) as qualifying data.

        Raises:
            TpmError: the TPM is gone.
        """
        if len(statement_digest) != STATEMENT_DIGEST_SIZE:
            raise ValueError(f"a statement digest has {STATEMENT_DIGEST_SIZE} bytes")
        with self._lock:
            attest, signature = self._tpm.quote(self._ak_handle, statement_digest, QUOTED_REGISTERS)
            endorsements = self._endorsements
        return {
            ITEM_QUOTE: EvidenceItem(
                media_type=MEDIA_TYPE_QUOTE, data=attest, endorsements=endorsements
            ),
            ITEM_SIGNATURE: EvidenceItem(media_type=MEDIA_TYPE_SIGNATURE, data=signature),
            ITEM_EVENT_LOG: EvidenceItem(media_type=MEDIA_TYPE_EVENT_LOG, data=self._event_log),
        }

    def replace_chain(self, ak_chain: Sequence[x509.Certificate]) -> None:
        """Use a renewed certificate of the same key from now on."""
        endorsements = _endorsements(ak_chain)
        with self._lock:
            self._endorsements = endorsements

    def close(self) -> None:
        """Let go of the TPM."""
        self._tpm.close()


def enrol(
    tpm: Tpm,
    ca: EnrolmentCa,
    *,
    intermediates: Sequence[x509.Certificate],
    at: datetime,
    candidates: Sequence[tuple[int, int]] = PERSISTENT_EKS,
) -> tuple[LoadedKey, x509.Certificate]:
    """Make the attestation key in `tpm` and have `ca` certify it.

    Raises:
        AuthenticationError: the CA refuses.
        TpmError, UnsupportedError: the TPM cannot do it.
    """
    endorsement = find_endorsement_key(tpm, candidates)
    ak = tpm.create_primary(signing_template())
    challenge = ca.challenge(
        ek_certificate=endorsement.certificate,
        intermediates=intermediates,
        ak_public=ak.public,
        at=at,
    )
    answer = tpm.activate_credential(
        ak.handle, endorsement.key, challenge.sealed.credential, challenge.sealed.secret
    )
    return ak, ca.certify(challenge.id, answer, at=at)


def _endorsements(chain: Sequence[x509.Certificate]) -> tuple[Endorsement, ...]:
    if not chain:
        raise ValueError("an attestation key's chain begins with its own certificate")
    return tuple(
        Endorsement(media_type=MEDIA_TYPE_CERTIFICATE, data=certificate.public_bytes(Encoding.DER))
        for certificate in chain
    )
