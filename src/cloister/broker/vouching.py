"""A broker's evidence for its own identity key, where it runs in a TEE.

The same report that workers serve, over another statement (`channel.key_release.broker_statement`)
and with a keyset that lists the identity key alone. A worker asks for it once, before it proves
itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from cloister.channel.claims import ClaimsDocument
from cloister.channel.key_release import BrokerIdentity, broker_statement
from cloister.channel.keyset import RECEIPT_ALGORITHM, Keyset, PublicKeyEntry
from cloister.evidence.component import CONFIGURATION_DEBUG, CONFIGURATION_ISOLATION
from cloister.evidence.report import (
    API_VERSION,
    ITEM_CLAIMS,
    MEDIA_TYPE_CLAIMS,
    AttestationReport,
    EvidenceItem,
)
from cloister.strictjson import JsonObject

KEYSET_S: Final = 3600
"""How long one keyset says that it is good for; the identity itself has no end."""
ISOLATION: Final = "none (broker)"
CONFIGURATION: Final[JsonObject] = {
    "version": 1,
    "role": "broker",
    CONFIGURATION_DEBUG: False,
    CONFIGURATION_ISOLATION: {"mode": ISOLATION},
}
"""What a sealed broker is measured with."""


class EvidenceSource(Protocol):
    """What asks the machine for evidence (`cloister.attester`)."""

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        """Evidence that binds these 32 bytes. One call at a time."""


class Vouching:
    """Makes reports of one broker. One call at a time."""

    def __init__(
        self,
        identity: BrokerIdentity,
        source: EvidenceSource,
        *,
        tee_type: str,
        now: Callable[[], float],
        configuration: JsonObject = CONFIGURATION,
    ) -> None:
        self._identity = identity
        self._source = source
        self._tee_type = tee_type
        self._now = now
        self._claims = ClaimsDocument(models=(), configuration=configuration, isolation=ISOLATION)

    def report(self, nonce: bytes) -> bytes:
        """A report that answers a worker's 32-byte `nonce`. Raises what the source raises."""
        keyset = self.keyset()
        statement = broker_statement(self._identity, keyset.digest, nonce)
        digest = hashlib.sha256(statement).digest()
        claims = EvidenceItem(media_type=MEDIA_TYPE_CLAIMS, data=self._claims.encode())
        return AttestationReport(
            api_version=API_VERSION,
            keyset_digest=keyset.digest,
            tee_type=self._tee_type,
            keyset=keyset.to_json(),
            report_data=digest,
            evidence={**self._source.quote(digest), ITEM_CLAIMS: claims},
        ).encode()

    def keyset(self) -> Keyset:
        """The identity key, with the claims document as its subject."""
        public = self._identity.public_key.hex()
        entry = PublicKeyEntry(
            key_id=f"broker-{public[:16]}", algo=RECEIPT_ALGORITHM, public_key=public
        )
        return Keyset(
            subject=self._claims.subject,
            not_after=int(self._now()) + KEYSET_S,
            receipt_signing_keys=(entry,),
            e2ee_public_keys=(),
        )
