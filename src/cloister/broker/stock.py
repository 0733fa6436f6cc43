"""Stock clients of the KBS protocol: Confidential Containers' guest components, and the like.

Their evidence binds nonce and wrapping key, but neither purpose nor broker: a broker that lies
could pass a challenge on. So they reach only secrets that an owner marks for them, never weights
keys by default, and only where the operator hears them at all.

Evidence is read for ``tdx`` and ``sgx`` (a DCAP quote each); ``sample``, which proves nothing,
counts where the policy names development. The secret comes as a flattened JWE
(`cloister.broker.stock_jwe`), its key wrapped to ``tee-pubkey`` by RSA-OAEP-256 or ECDH-ES+A256KW.
RSA1_5 is refused: padding of that kind opens to whoever may try often enough.

Source: "KBS Attestation Protocol" (confidential-containers/trustee); what evidence binds follows
its code: SHA-384 over the canonical JSON of nonce, ``tee-pubkey`` and additional evidence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.broker.denial import Denied
from cloister.broker.stock_jwe import ECDH, RSA_OAEP, seal_jwe
from cloister.channel.rcar import Attestation
from cloister.endorsements.roots import Roots
from cloister.errors import AppraisalError, MalformedError, UnsupportedError
from cloister.evidence import items
from cloister.evidence.report import MAX_ITEM_BYTES, EvidenceItem
from cloister.strictjson import JsonObject, canonical, decode_base64, parse_json_object
from cloister.verifier.appraise.worker import REGISTERS, appraise_registers
from cloister.verifier.evidence import conclude
from cloister.verifier.expected import Expected
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.report_items import HARDWARE

SAMPLE: Final = "sample"
QUOTES: Final[Mapping[str, tuple[str, str]]] = {
    items.TEE_TYPE_TDX: (items.ITEM_TDX_QUOTE, items.MEDIA_TYPE_TDX_QUOTE),
    items.TEE_TYPE_SGX: (items.ITEM_SGX_QUOTE, items.MEDIA_TYPE_SGX_QUOTE),
}
"""By ``tee``: the item that its quote is, as in a worker's report."""
REPORT_DATA_SIZE: Final = 64
MAX_EVIDENCE_BYTES: Final = 512 * 1024
MAX_KEY_BYTES: Final = 16 * 1024

_WRAPS: Final = (RSA_OAEP, ECDH)

Staple = Callable[[EvidenceItem], EvidenceItem]
"""Adds kept collateral to a quote: stock clients send none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StockEvidence:
    """What a stock client proves itself with."""

    tee: str
    evidence: JsonObject = field(repr=False)
    bound: bytes
    """SHA-384 that it has to carry, 48 bytes."""

    def encode(self) -> bytes:
        """As a session keeps it."""
        return canonical({"tee": self.tee, "evidence": self.evidence, "bound": self.bound.hex()})

    @classmethod
    def decode(cls, data: bytes) -> StockEvidence:
        """Read `encode`."""
        members = parse_json_object(data, limit=2 * MAX_EVIDENCE_BYTES, what="kept evidence")
        evidence = members["evidence"]
        if not isinstance(evidence, dict):
            raise MalformedError("kept evidence is no object")
        return cls(
            tee=str(members["tee"]), evidence=evidence, bound=bytes.fromhex(str(members["bound"]))
        )


def read_stock(tee: str, attestation: Attestation) -> StockEvidence:
    """What `attestation` proves, and what it has to bind. Raises Denied."""
    if tee != SAMPLE and tee not in QUOTES:
        raise Denied("stock", f"this broker reads no stock evidence of that platform ({_known()})")
    if attestation.tee_pubkey.get("alg") not in _WRAPS:
        raise Denied("wrapping", f"a stock client's key is for {' or '.join(_WRAPS)}")
    if len(canonical(attestation.tee_pubkey)) > MAX_KEY_BYTES:
        raise Denied("malformed", "a stock client's key is too large")
    runtime: JsonObject = {"nonce": attestation.nonce, "tee-pubkey": attestation.tee_pubkey}
    runtime["additional-evidence"] = attestation.additional
    found = StockEvidence(
        tee=tee, evidence=attestation.evidence, bound=hashlib.sha384(canonical(runtime)).digest()
    )
    if len(found.encode()) > MAX_EVIDENCE_BYTES:
        raise Denied("malformed", "a stock client's evidence is too large")
    return found


def appraise_stock(
    kept: StockEvidence,
    *,
    policy: AppraisalPolicy,
    reference_values: ReferenceValues | None,
    roots: Roots,
    staple: Staple,
    at: datetime,
) -> None:
    """Verify it under `policy`. Raises Denied.

    Without `reference_values` it is only genuine and bound, whatever software it speaks of: that
    is enough for a token, and for no secret.
    """
    if kept.tee == SAMPLE:
        _appraise_sample(kept, policy)
        return
    item, media_type = QUOTES[kept.tee]
    platform = HARDWARE[kept.tee]
    ledger = Ledger()
    try:
        quote = decode_base64(
            kept.evidence.get("quote"), limit=MAX_ITEM_BYTES, what="the quote", code="evidence"
        )
        stapled = staple(EvidenceItem(media_type=media_type, data=quote))
        verify, record = platform.assemble({item: stapled})
        outcome = verify(
            record,
            policy=policy,
            roots=roots,
            at=at,
            expected=Expected(values={"report_data": kept.bound.ljust(REPORT_DATA_SIZE, b"\0")}),
            ledger=ledger,
        )
        if reference_values is not None:
            ledger.expect(REGISTERS)
            if outcome.registers:
                appraise_registers(
                    platform.reference,
                    outcome.registers,
                    reference_values=reference_values,
                    policy=policy,
                    ledger=ledger,
                )
        conclude(outcome, policy=policy, at=at, ledger=ledger).require_affirmed_evidence()
    except (AppraisalError, UnsupportedError, MalformedError) as error:
        raise Denied("evidence", str(error), because=error.code) from None


def _appraise_sample(kept: StockEvidence, policy: AppraisalPolicy) -> None:
    if not policy.accept_development:
        raise Denied(
            "evidence",
            "sample evidence proves nothing; only a policy that names development accepts it",
            because="development_refused",
        )
    try:
        found = decode_base64(kept.evidence.get("report_data"), limit=64, what="the report data")
    except MalformedError as error:
        raise Denied("malformed", str(error)) from None
    if found.ljust(REPORT_DATA_SIZE, b"\0") != kept.bound.ljust(REPORT_DATA_SIZE, b"\0"):
        raise Denied(
            "evidence", "the sample evidence binds something else", because="report_data_mismatch"
        )


def seal_for_stock(secret: bytes, tee_pubkey: bytes) -> bytes:
    """The secret as a flattened JWE for this JWK. Raises Denied if the key cannot be used."""
    try:
        jwk = parse_json_object(tee_pubkey, limit=MAX_KEY_BYTES, what="tee-pubkey")
        return seal_jwe(secret, jwk)
    except MalformedError as error:
        raise Denied("wrapping", f"the stock client's key cannot be used: {error}") from None


def encode_token(
    token_id: str,
    tee_pubkey: JsonObject,
    *,
    identity_key: Ed25519PrivateKey,
    at: int,
    lifetime_s: int,
) -> str:
    """A token as stock clients read it: a JWT (Ed25519, RFC 9864) with an expiry.

    The broker that made it looks it up whole; the signature is for others.
    """
    from joserfc import jwt
    from joserfc.jwk import OKPKey

    claims = {
        "iss": "cloister",
        "iat": at,
        "exp": at + lifetime_s,
        "jti": token_id,
        "tee-pubkey": tee_pubkey,
    }
    key = OKPKey.import_key(identity_key)
    return jwt.encode({"alg": "Ed25519", "typ": "JWT"}, claims, key, algorithms=["Ed25519"])


def _known() -> str:
    return f"it reads {', '.join((*QUOTES, SAMPLE))}"
