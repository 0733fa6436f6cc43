"""Verifies AMD SEV-SNP evidence on its own: a report, with certificates in any order.

Parse (``snp.parse``), authenticate (`cloister.verifier.authenticate.snp`), appraise
(`cloister.verifier.appraise.snp`), and compare with what the caller expects.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509

from cloister.endorsements.amd import EndorsementKey
from cloister.endorsements.certificates import parse_certificates, parse_crl, serial_number
from cloister.endorsements.roots import Roots, fingerprint
from cloister.errors import MalformedError
from cloister.evidence.snp import (
    CertificateKind,
    GuestPolicy,
    PlatformInfo,
    Product,
    SnpReport,
    parse_certificate_table,
    parse_report,
    tcb_components,
)
from cloister.strictjson import JsonObject
from cloister.verifier.appraise import snp as appraise
from cloister.verifier.authenticate import snp as authenticate
from cloister.verifier.authenticate.snp import SnpAttestation, SnpEndorsements
from cloister.verifier.expected import Expected, check_names, compare
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.policy import AppraisalPolicy, Unchecked

PARSE: Final = "snp.parse"

PLATFORM: Final = "AMD SEV-SNP"
MEMORY: Final = "sev_snp"
NO_MEMORY: Final = "none"

FIELD_NAMES: Final = (
    "report_data",
    "measurement",
    "host_data",
    "id_key_digest",
    "author_key_digest",
    "chip_id",
    "family_id",
    "image_id",
    "report_id",
)
"""Fields that a caller may expect something of."""

REGISTER_NAMES: Final = ("measurement", "host_data", "id_key_digest", "author_key_digest")

MAX_ENDORSEMENTS: Final = 16
"""Certificates and revocation lists that are looked at; a report needs four."""

NOT_PROVEN: Final = (
    "HOST_DATA is chosen by the host, not by the guest: it proves something only where the"
    " measured software compares it.",
    "MEASUREMENT covers what was loaded at launch: firmware alone, unless that firmware was given"
    " the hashes of kernel, initial files and command line.",
    "Whoever can attach probes to the machine's memory bus, or replace its memory modules, may"
    " defeat SEV-SNP; nothing shows where the machine stands.",
)
NOT_PROVEN_REVOCATION: Final = (
    "Revocation was not checked: no revocation list of AMD's came with the report."
)
NOT_PROVEN_TCB: Final = (
    "Whether the processor's firmware is recent is not shown: AMD signs no list of what is, and"
    " your policy sets no minimum (snp_minimum_tcb)."
)
NOT_PROVEN_CHIP: Final = (
    "Which chip made the report is not shown: its id is masked, or the key is one that AMD gave"
    " to a cloud provider for many chips."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpEvidence:
    """An ATTESTATION_REPORT of 1184 bytes and what vouches for it.

    Certificates (of the VCEK or VLEK, and of AMD's keys above it) are DER or PEM, one or more to
    an item, in any order; those of AMD's own may be left out where `Roots` has them.
    """

    report: bytes
    certificates: tuple[bytes, ...]
    crls: tuple[bytes, ...] = ()
    """Revocation lists, DER or PEM."""


def snp_evidence_from_table(report: bytes, table: bytes) -> SnpEvidence:
    """Evidence from an extended report: the report, and the host's table of certificates.

    Raises:
        MalformedError: the table does not decode (code ``malformed``).
    """
    entries = [entry for entry in parse_certificate_table(table) if entry.kind is not None]
    return SnpEvidence(
        report=report,
        certificates=tuple(
            entry.data for entry in entries if entry.kind is not CertificateKind.CRL
        ),
        crls=tuple(entry.data for entry in entries if entry.kind is CertificateKind.CRL),
    )


def claims(
    evidence: SnpEvidence, *, policy: AppraisalPolicy, expected: Expected
) -> tuple[str, ...]:
    """Names of the claims that `verify_snp` makes about `evidence`, in order."""
    return (
        PARSE,
        *authenticate.claims(policy, crls=bool(evidence.crls)),
        *appraise.claims(policy),
        *expected.names,
    )


def verify_snp(
    evidence: SnpEvidence,
    *,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    expected: Expected,
    ledger: Ledger,
) -> Outcome:
    """Verify `evidence` as of `at`, and add every claim of `claims` to `ledger`.

    Raises:
        ConfigurationError: `expected` names a field that is none of `FIELD_NAMES`.
    """
    check_names(expected, FIELD_NAMES)
    ledger.expect(*claims(evidence, policy=policy, expected=expected))
    try:
        # Of any version: what an unknown one still shows is worth reporting. It is refused.
        report = parse_report(evidence.report, any_version=True)
    except MalformedError as error:
        ledger.refuse(PARSE, error.code, f"The report does not decode: {error}.")
        return Outcome(platform=PLATFORM, memory_confidentiality=MEMORY, facts={})
    ledger.affirm(PARSE, "The report is well-formed.")
    attestation, authenticated = authenticate.authenticate_snp(
        report, _endorsements(evidence), policy=policy, roots=roots, at=at, ledger=ledger
    )
    if authenticated is not None:
        appraise.appraise_snp(authenticated, policy=policy, ledger=ledger)
        compare(expected, _fields(report, FIELD_NAMES), ledger)
    else:
        appraise.appraise_stated_snp(attestation, policy=policy, ledger=ledger)
        compare(expected, _fields(report, FIELD_NAMES), ledger.stated())
    product = attestation.product
    return Outcome(
        platform=PLATFORM if product is None else f"{PLATFORM} ({product.label})",
        # A debugger outside reads what the hardware encrypts.
        memory_confidentiality=NO_MEMORY if report.policy & GuestPolicy.DEBUG else MEMORY,
        facts=facts(attestation),
        development=attestation.development,
        bound=None if authenticated is None else report.report_data,
        registers={} if authenticated is None else _fields(report, REGISTER_NAMES),
        not_proven=_not_proven(evidence, attestation, policy),
    )


def _endorsements(evidence: SnpEvidence) -> SnpEndorsements:
    """Decode what decodes; what does not is told once, and makes no other disappear."""
    certificates: list[x509.Certificate] = []
    crls: list[x509.CertificateRevocationList] = []
    malformed = None
    if len(evidence.certificates) + len(evidence.crls) > MAX_ENDORSEMENTS:
        malformed = f"More than {MAX_ENDORSEMENTS} certificates and lists came with the report."
    for data in evidence.certificates[:MAX_ENDORSEMENTS]:
        try:
            certificates += parse_certificates(data)
        except MalformedError as error:
            malformed = f"What came with the report does not decode: {error}."
    for data in evidence.crls[:MAX_ENDORSEMENTS]:
        try:
            crls.append(parse_crl(data))
        except MalformedError as error:
            malformed = f"What came with the report does not decode: {error}."
    return SnpEndorsements(certificates=tuple(certificates), crls=tuple(crls), malformed=malformed)


def _fields(report: SnpReport, names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: getattr(report, name) for name in names}


def _not_proven(
    evidence: SnpEvidence, attestation: SnpAttestation, policy: AppraisalPolicy
) -> tuple[str, ...]:
    sentences = list(NOT_PROVEN)
    if isinstance(policy.snp_minimum_tcb, Unchecked):
        sentences.append(NOT_PROVEN_TCB)
    if not evidence.crls:
        sentences.append(NOT_PROVEN_REVOCATION)
    key = attestation.key
    if not any(attestation.report.chip_id) and (key is None or key.chip_id is None):
        sentences.append(NOT_PROVEN_CHIP)
    return tuple(sentences)


def facts(attestation: SnpAttestation) -> JsonObject:
    """The decoded fields of report and leaf; those that are not there are left out."""
    report, product = attestation.report, attestation.product
    found: JsonObject = {
        "report_version": report.version,
        "guest_svn": report.guest_svn,
        "policy": hex(report.policy),
        "policy_abi": ".".join(map(str, report.abi)),
        "vmpl": report.vmpl,
        "platform_info": report.platform_info,
        "signer_info": report.signer_info,
        "signing_key": report.signing_key.name,
        "author_key_enabled": report.author_key,
        "mask_chip_key": report.mask_chip_key,
        "current_version": str(report.current_version),
        "committed_version": str(report.committed_version),
    }
    found |= {name: getattr(report, name).hex() for name in (*FIELD_NAMES, "report_id_ma")}
    found |= {f"policy_{_name(bit)}": bool(report.policy & bit) for bit in _POLICY_FACTS}
    found |= {f"platform_{_name(bit)}": bool(report.platform_info & bit) for bit in PlatformInfo}
    for name in ("reported_tcb", "current_tcb", "committed_tcb", "launch_tcb"):
        found[name] = _tcb(getattr(report, name), product)
    if report.cpuid is not None:
        found["cpuid_family_model_stepping"] = list(report.cpuid)
    if report.launch_mit_vector is not None and report.current_mit_vector is not None:
        found["launch_mit_vector"] = hex(report.launch_mit_vector)
        found["current_mit_vector"] = hex(report.current_mit_vector)
    if product is not None:
        found["product"] = product.value
    return found if attestation.key is None else found | _leaf(attestation.key)


_POLICY_FACTS: Final = tuple(bit for bit in GuestPolicy if bit is not GuestPolicy.RESERVED_ONE)


def _name(bit: GuestPolicy | PlatformInfo) -> str:
    return (bit.name or "").lower()


def _tcb(raw: bytes, product: Product | None) -> JsonObject:
    parts = {} if product is None else tcb_components(raw, product)
    return {"raw": raw.hex(), **parts}


def _leaf(key: EndorsementKey) -> JsonObject:
    return {
        "leaf_kind": key.kind.name,
        "leaf_product_name": key.product_name,
        "leaf_sha256": fingerprint(key.certificate).removeprefix("sha256:"),
        "leaf_serial": str(serial_number(key.certificate)),
        "leaf_hwid": None if key.hwid is None else key.hwid.hex(),
        "leaf_csp_id": key.csp_id,
    }
