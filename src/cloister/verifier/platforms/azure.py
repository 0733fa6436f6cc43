"""Verifies an Azure confidential VM: the paravisor's report over hardware, and its virtual TPM.

Steps: ``azure.hcl`` (the paravisor's report decodes); the hardware report
(`cloister.verifier.platforms.snp` or `tdx`); `cloister.verifier.authenticate.hcl`, which binds the
virtual TPM's key to it; Azure's certificate of that key, where it came along
(`cloister.verifier.authenticate.ak`); the quote by that key
(`cloister.verifier.authenticate.tpm_quote`), the boot's event log, and what the caller expects.
Claims about the hardware are about ``cpu0``, those about the virtual TPM about ``vtpm0``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final

from cloister.endorsements.ak import TCG_KP_AIK_CERTIFICATE, AkKey, rsa_key
from cloister.endorsements.roots import Roots, Vendor
from cloister.errors import MalformedError
from cloister.evidence.hcl import (
    HardwareType,
    HclReport,
    parse_hcl_report,
    quoted_td_report,
    td_report_data,
)
from cloister.evidence.snp import parse_report
from cloister.evidence.tdx import TD10_REPORT_BYTES, TdReport
from cloister.strictjson import JsonObject
from cloister.verifier.appraise.tpm_quote import FIELD_NAMES as VTPM_NAMES
from cloister.verifier.authenticate import ak as ak_chain
from cloister.verifier.authenticate import hcl, tpm_log, tpm_quote
from cloister.verifier.authenticate.ak import AkEvidence, AkFindings
from cloister.verifier.authenticate.hcl import SnpBinding, TdxBinding
from cloister.verifier.authenticate.snp import CERTIFICATE_TCB, CHIP_ID
from cloister.verifier.authenticate.tpm_log import LogFindings
from cloister.verifier.authenticate.tpm_quote import QuoteEvidence, QuoteFindings
from cloister.verifier.expected import Expected, check_names
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.platforms import snp, tpm
from cloister.verifier.platforms.snp import SnpEvidence
from cloister.verifier.policy import AppraisalPolicy

if TYPE_CHECKING:
    from cloister.verifier.platforms.dcap import CollateralInput

HCL: Final = "azure.hcl"
HARDWARE: Final = "azure.hardware"
"""Claimed only where what came along vouches for another kind of hardware than is inside."""
AK_CERTIFICATE: Final = "ak.certificate"
"""Claimed only where a certificate is required and missing."""
AK_KEY: Final = "ak.public"

VTPM: Final = "vtpm0"
PLATFORM: Final = "Azure confidential VM"
NO_MEMORY: Final = "none"
AK_SOURCE: Final = "HCLAkPub JWK in the HCL runtime data"

NOT_PROVEN: Final = (
    "The paravisor is trusted: it runs inside the guest (SNP: at VMPL 0, TDX: as its first level),"
    " provides the virtual TPM and sees the guest's memory.",
    "The registers (PCRs) are the virtual TPM's, as the paravisor keeps them; the hardware report"
    " does not hold them.",
    "Revocation of the attestation key's certificate is not checked.",
)
NO_CERTIFICATE: Final = (
    "Azure's certificate of the virtual TPM's key is missing: that the paravisor is Azure's is only"
    " shown where you compare its measurement."
)

_SNP_FACTS: Final = (
    "product",
    "report_version",
    "measurement",
    "report_data",
    "policy",
    "vmpl",
    "chip_id",
    "reported_tcb",
    "id_key_digest",
)
_TDX_FACTS: Final = (
    "mr_td",
    "td_attributes",
    "xfam",
    "rtmr0",
    "rtmr1",
    "rtmr2",
    "rtmr3",
    "report_data",
    "tee_tcb_svn",
    "mr_seam",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureEvidence:
    """What a confidential VM collects: the paravisor's report, and a quote of its virtual TPM."""

    hcl_report: bytes = field(repr=False)
    """As read from NV index 0x01400001."""
    quote: QuoteEvidence
    snp_certificates: tuple[bytes, ...] = field(default=(), repr=False)
    """As for `SnpEvidence`."""
    snp_crls: tuple[bytes, ...] = field(default=(), repr=False)
    td_quote: bytes | None = field(default=None, repr=False)
    """The quote of the TDREPORT inside `hcl_report`."""
    td_collateral: CollateralInput | None = field(default=None, repr=False)
    ak: AkEvidence | None = None
    event_log: bytes | None = field(default=None, repr=False)


def field_names(evidence: AzureEvidence) -> tuple[str, ...]:
    """What a caller may expect something of: the virtual TPM's fields, and the hardware's."""
    if evidence.td_quote is None:
        return (*VTPM_NAMES, *snp.FIELD_NAMES)
    # Here and below: half of what this module needs is for TDX alone, and slow to import.
    from cloister.verifier.platforms import tdx

    return (*VTPM_NAMES, *tdx.FIELD_NAMES)


def verify_azure(
    evidence: AzureEvidence,
    *,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    expected: Expected,
    ledger: Ledger,
) -> Outcome:
    """Verify `evidence` at time `at`; whatever is wrong with it is a claim in `ledger`.

    Raises:
        ConfigurationError: `expected` names a field that is none of `field_names`.
    """
    check_names(expected, field_names(evidence))
    ledger.expect(HCL)
    report = _parse(evidence, ledger)
    if report is None:
        return Outcome(platform=PLATFORM, memory_confidentiality=NO_MEMORY, facts={})
    hardware = _hardware(
        evidence,
        report,
        policy=policy,
        roots=roots,
        at=at,
        expected=_part(expected, vtpm=False),
        ledger=ledger,
    )
    binding = _binding(evidence, report)
    ledger.expect(*(hcl.SNP_CLAIMS if report.hardware_type is HardwareType.SNP else hcl.TDX_CLAIMS))
    bound_key = binding is not None and (
        hcl.authenticate_hcl(
            report, binding, authenticated=hardware.bound is not None, ledger=ledger
        )
        is not None
    )
    vtpm = _vtpm(
        evidence,
        report,
        genuine=bound_key,
        policy=policy,
        roots=roots,
        at=at,
        expected=_part(expected, vtpm=True),
        ledger=ledger.on(VTPM),
    )
    return _outcome(report, hardware, vtpm, evidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Vtpm:
    """What became of the virtual TPM's part."""

    quote: QuoteFindings
    log: LogFindings | None
    ak: AkFindings | None
    authenticated: bool


def _parse(evidence: AzureEvidence, ledger: Ledger) -> HclReport | None:
    try:
        report = parse_hcl_report(evidence.hcl_report)
    except MalformedError as error:
        ledger.refuse(HCL, error.code, f"The paravisor's report is refused: {error}.")
        return None
    ledger.affirm(HCL, f"The paravisor's report decodes (version {report.version}).")
    return report


def _hardware(
    evidence: AzureEvidence,
    report: HclReport,
    *,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    expected: Expected,
    ledger: Ledger,
) -> Outcome:
    """Verify the hardware report inside the paravisor's."""
    quoted = evidence.td_quote is not None
    if quoted != (report.hardware_type is HardwareType.TDX):
        ledger.expect(HARDWARE, *expected.names)
        ledger.refuse(
            HARDWARE,
            "endorsements_missing",
            f"The paravisor's report is over {report.hardware_type.name}, and"
            f" {'a' if quoted else 'no'} TD quote came along.",
        )
        return Outcome(platform="unknown", memory_confidentiality=NO_MEMORY, facts={})
    if evidence.td_quote is not None:
        from cloister.verifier.platforms import tdx

        return tdx.verify_tdx(
            tdx.TdxEvidence(quote=evidence.td_quote, collateral=evidence.td_collateral),
            policy=policy,
            roots=roots,
            at=at,
            expected=expected,
            ledger=ledger,
        )
    # A certificate of another chip is the more telling reason for a signature that fails.
    ledger.expect(CHIP_ID, CERTIFICATE_TCB)
    return snp.verify_snp(
        SnpEvidence(
            report=report.hardware_report,
            certificates=evidence.snp_certificates,
            crls=evidence.snp_crls,
        ),
        policy=policy,
        roots=roots,
        at=at,
        expected=expected,
        ledger=ledger,
    )


def _binding(evidence: AzureEvidence, report: HclReport) -> SnpBinding | TdxBinding | None:
    """What has to fit the runtime data; ``None`` where the hardware report does not decode."""
    if report.hardware_type is HardwareType.TDX:
        return TdxBinding(
            report_data=td_report_data(report.hardware_report),
            reported=quoted_td_report(report.hardware_report),
            quoted=_quoted(evidence.td_quote),
        )
    try:
        found = parse_report(report.hardware_report, any_version=True)
    except MalformedError:
        return None
    return SnpBinding(report_data=found.report_data, vmpl=found.vmpl)


def _quoted(quote: bytes | None) -> bytes | None:
    if quote is None:
        return None
    from cloister.evidence.dcap import parse_quote

    try:
        body = parse_quote(quote).body
    except MalformedError:
        return None
    return body.raw[:TD10_REPORT_BYTES] if isinstance(body, TdReport) else None


def _vtpm(
    evidence: AzureEvidence,
    report: HclReport,
    *,
    genuine: bool,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    expected: Expected,
    ledger: Ledger,
) -> _Vtpm:
    """Verify the virtual TPM's part; `genuine`: hardware vouches for the paravisor's key."""
    ledger.expect(*_vtpm_claims(evidence, policy, expected))
    key = _key(report, ledger)
    ak = _certificate(evidence, key, policy=policy, roots=roots, at=at, ledger=ledger)
    found = tpm_quote.authenticate_quote(evidence.quote, key, ledger)
    authenticated = (
        genuine and ledger.holds(*_key_claims(evidence, policy)) and found.authenticated is not None
    )
    log = tpm.judge_log(evidence.event_log, (found,), authenticated=authenticated, ledger=ledger)
    tpm.appraise_all((found,), authenticated=authenticated, expected=expected, ledger=ledger)
    return _Vtpm(quote=found, log=log, ak=ak, authenticated=authenticated)


def _vtpm_claims(
    evidence: AzureEvidence, policy: AppraisalPolicy, expected: Expected
) -> tuple[str, ...]:
    return (
        *tpm_quote.CLAIMS,
        *_key_claims(evidence, policy),
        *(() if evidence.event_log is None else tpm_log.CLAIMS),
        *expected.names,
    )


def _key_claims(evidence: AzureEvidence, policy: AppraisalPolicy) -> tuple[str, ...]:
    if evidence.ak is not None:
        return (AK_KEY, *ak_chain.claim_names(policy))
    return (AK_KEY, AK_CERTIFICATE) if policy.require_endorsements else (AK_KEY,)


def _key(report: HclReport, ledger: Ledger) -> AkKey | None:
    """``HCLAkPub``, as a key."""
    jwk = report.runtime.attestation_key
    try:
        key = rsa_key(modulus=jwk.modulus, exponent=jwk.exponent)
    except MalformedError as error:
        ledger.refuse(AK_KEY, "malformed", f"The virtual TPM's key is refused: {error}.")
        return None
    ledger.affirm(AK_KEY, "The virtual TPM's key in the runtime data decodes.")
    return key


def _certificate(
    evidence: AzureEvidence,
    key: AkKey | None,
    *,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    ledger: Ledger,
) -> AkFindings | None:
    if evidence.ak is not None:
        return ak_chain.authenticate_ak(
            evidence.ak,
            key,
            vendor=Vendor.AZURE_VTPM,
            usages=(TCG_KP_AIK_CERTIFICATE,),
            policy=policy,
            roots=roots,
            at=at,
            ledger=ledger,
        )
    if policy.require_endorsements:
        ledger.refuse(
            AK_CERTIFICATE,
            "endorsements_missing",
            "Azure's certificate of the virtual TPM's key is missing.",
        )
    return None


def _part(expected: Expected, *, vtpm: bool) -> Expected:
    """Those expectations that are about the virtual TPM, or the others."""
    return Expected(
        values={
            name: value for name, value in expected.values.items() if (name in VTPM_NAMES) == vtpm
        },
        prefixes={
            name: value for name, value in expected.prefixes.items() if (name in VTPM_NAMES) == vtpm
        },
    )


def _outcome(report: HclReport, hardware: Outcome, vtpm: _Vtpm, evidence: AzureEvidence) -> Outcome:
    quotes = (vtpm.quote,)
    return Outcome(
        platform=f"{PLATFORM} ({hardware.platform})",
        memory_confidentiality=hardware.memory_confidentiality,
        facts=_facts(report, hardware, vtpm),
        development=hardware.development or (vtpm.ak is not None and vtpm.ak.development),
        bound=tpm.bound(quotes) if vtpm.authenticated else None,
        registers=({**hardware.registers, **tpm.registers(quotes)} if vtpm.authenticated else {}),
        not_proven=(
            *NOT_PROVEN,
            *hardware.not_proven,
            *(() if evidence.ak is not None else (NO_CERTIFICATE,)),
            *tpm.unsaid(quotes, vtpm.log),
        ),
    )


def _facts(report: HclReport, hardware: Outcome, vtpm: _Vtpm) -> JsonObject:
    is_snp = report.hardware_type is HardwareType.SNP
    names = _SNP_FACTS if is_snp else _TDX_FACTS
    of_hardware = {name: hardware.facts[name] for name in names if name in hardware.facts}
    pck = hardware.facts.get("pck")
    if isinstance(pck, dict) and "fmspc" in pck:
        of_hardware["fmspc"] = pck["fmspc"]
    found: JsonObject = {
        "hcl_version": report.version,
        "hcl_report_type": report.hardware_type.name.lower(),
        "runtime_hash": report.hash.name.lower(),
        "user_data": report.runtime.user_data,
        "vm_configuration": report.runtime.vm_configuration,
        "ak_source": AK_SOURCE,
        "snp" if is_snp else "tdx": of_hardware,
    }
    if "report_data" in hardware.facts:
        found["hardware_report_data"] = hardware.facts["report_data"]
    if vtpm.ak is not None and vtpm.ak.certificate is not None:
        found["ak_certificate"] = {
            "subject": vtpm.ak.certificate.subject.rfc4514_string(),
            "issuer": vtpm.ak.certificate.issuer.rfc4514_string(),
        }
    return found | tpm.facts(vtpm.quote, vtpm.log)
