"""Azure confidential VMs: hardware, paravisor, virtual TPM."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cloister.endorsements.ak import TCG_KP_EK_CERTIFICATE
from cloister.errors import ConfigurationError
from cloister.evidence.hcl import RuntimeHash
from cloister.evidence.snp import GuestPolicy
from cloister.testing.simulated_azure import SimulatedAzure, encode_hcl_report
from cloister.testing.simulated_dcap import SimulatedIntel
from cloister.testing.simulated_snp import DEFAULT_POLICY
from cloister.testing.simulated_vtpm import SimulatedVtpm, simulated_rsa_key
from cloister.verifier import policy
from cloister.verifier.authenticate.ak import AkEvidence
from cloister.verifier.evidence import run
from cloister.verifier.expected import NOTHING_EXPECTED, Expected
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.platforms.azure import AzureEvidence, verify_azure
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.result import AttestationResult, Finding

NOW = datetime(2026, 6, 1, tzinfo=UTC)
NONCE = b"a challenge"
MACHINE = SimulatedAzure.make(now=NOW)
INTEL = SimulatedIntel(now=NOW)
ROOTS = MACHINE.roots.merged(INTEL.roots)
LENIENT = replace(policy.development(), require_endorsements=False)
GENUINE = MACHINE.evidence(NONCE)


def verify(
    evidence: AzureEvidence,
    expected: Expected = NOTHING_EXPECTED,
    *,
    policy: AppraisalPolicy = LENIENT,
) -> AttestationResult:
    return run(verify_azure, evidence, policy=policy, roots=ROOTS, at=NOW, expected=expected)


def outcome(evidence: AzureEvidence) -> Outcome:
    return verify_azure(
        evidence,
        policy=LENIENT,
        roots=ROOTS,
        at=NOW,
        expected=NOTHING_EXPECTED,
        ledger=Ledger(),
    )


def refused(result: AttestationResult) -> set[tuple[str, str, str | None]]:
    return {
        (claim.device, claim.name, claim.code)
        for claim in result.claims
        if claim.finding is Finding.CONTRAINDICATED
    }


def nothing_proven(evidence: AzureEvidence) -> bool:
    found = outcome(evidence)
    return found.bound is None and found.registers == {}


def test_a_genuine_machine() -> None:
    result = verify(GENUINE)
    assert result.verdict is Finding.AFFIRMING
    assert result.platform == "development (Azure confidential VM (AMD SEV-SNP (Milan)))"
    assert any("paravisor is trusted" in sentence for sentence in result.not_proven)
    assert not any("certificate" in s and "missing" in s for s in result.not_proven)
    assert result.facts["hcl_version"] == 2
    assert result.facts["secure_boot"] is True
    assert result.facts["vm_configuration"] == MACHINE.configuration
    found = outcome(GENUINE)
    assert found.memory_confidentiality == "sev_snp"
    assert found.bound == NONCE
    assert {"measurement", "pcr0", "pcr23"} <= found.registers.keys()
    assert found.development


def test_claims_are_about_two_devices() -> None:
    devices = {claim.name: claim.device for claim in verify(GENUINE).claims}
    assert devices["snp.signature"] == devices["azure.runtime_data"] == "cpu0"
    assert devices["tpm.signature"] == devices["ak.chain"] == devices["eventlog.replay"] == "vtpm0"


def test_a_simulated_machine_needs_a_policy_that_says_so() -> None:
    strict = replace(policy.strict(), require_endorsements=False)
    assert refused(verify(GENUINE, policy=strict)) == {
        ("cpu0", "platform.development", "development_refused")
    }


def test_expectations_of_hardware_and_of_the_virtual_tpm() -> None:
    values = {
        "extra_data": NONCE,
        "pcr7": MACHINE.vtpm.registers[11][7],
        "measurement": b"\x4d" * 48,
    }
    assert verify(GENUINE, Expected(values=values)).verdict is Finding.AFFIRMING
    prefixes = Expected(prefixes={"measurement": b"\x4d", "pcr7": values["pcr7"][:1]})
    assert verify(GENUINE, prefixes).verdict is Finding.AFFIRMING
    for name, device, code in (
        ("extra_data", "vtpm0", "nonce_mismatch"),
        ("pcr7", "vtpm0", "measurement_mismatch"),
        ("measurement", "cpu0", "measurement_mismatch"),
        ("report_data", "cpu0", "report_data_mismatch"),
    ):
        result = verify(GENUINE, Expected(values={name: b"something else"}))
        assert refused(result) == {(device, f"expected.{name}", code)}
    with pytest.raises(ConfigurationError):
        verify(GENUINE, Expected(values={"mr_td": b""}))


def test_a_report_that_does_not_decode() -> None:
    evidence = replace(GENUINE, hcl_report=GENUINE.hcl_report[:100])
    result = verify(evidence, Expected(values={"extra_data": NONCE}))
    assert refused(result) == {("cpu0", "azure.hcl", "malformed")}
    assert result.memory_confidentiality == "none"
    assert nothing_proven(evidence)


def test_runtime_data_that_hardware_did_not_sign() -> None:
    """The attack: another machine's genuine report, with a key of the attacker's."""
    mine = SimulatedAzure.make(now=NOW)
    mine.vtpm = SimulatedVtpm(key=simulated_rsa_key("an attacker's"))
    mine.vtpm.boot()
    genuine = MACHINE.hcl_report()
    forged = encode_hcl_report(genuine[32:1216], mine.runtime_data())
    evidence = replace(
        GENUINE,
        hcl_report=forged,
        quote=mine.vtpm.quote(NONCE, bare=True),
        event_log=mine.vtpm.event_log(),
        ak=None,
    )
    assert refused(verify(evidence)) == {("cpu0", "azure.runtime_data", "runtime_data_mismatch")}
    assert nothing_proven(evidence)


def test_the_rest_of_the_report_data_is_zero() -> None:
    runtime = MACHINE.runtime_data()
    genuine = MACHINE.hcl_report(runtime_data=runtime)
    report_data = genuine[32 + 0x50 : 32 + 0x90]
    for changed in (report_data[:-1] + b"\1", report_data[:32] + b"\1" + report_data[33:]):
        report = MACHINE.hcl_report(runtime_data=runtime, report_data=changed)
        assert refused(verify(replace(GENUINE, hcl_report=report))) == {
            ("cpu0", "azure.runtime_data", "runtime_data_mismatch")
        }


def test_the_hash_is_the_one_that_the_report_names() -> None:
    runtime = MACHINE.runtime_data()
    snp = MACHINE.hcl_report(runtime_data=runtime)[32:1216]
    for algorithm, code in ((RuntimeHash.SHA256, None), (RuntimeHash.SHA512, "mismatch")):
        report = encode_hcl_report(snp, runtime, hash_algorithm=algorithm)
        found = refused(verify(replace(GENUINE, hcl_report=report)))
        assert bool(found) == (code is not None)


def test_a_report_from_above_the_paravisor() -> None:
    """A guest could ask for a report of its own, with any key in it."""
    evidence = replace(GENUINE, hcl_report=MACHINE.hcl_report(vmpl=2))
    assert refused(verify(evidence)) == {("cpu0", "azure.paravisor", "vmpl")}
    assert nothing_proven(evidence)


def test_faults_of_the_hardware_are_faults_of_the_machine() -> None:
    debug = MACHINE.hcl_report(policy=DEFAULT_POLICY | GuestPolicy.DEBUG)
    assert ("cpu0", "snp.debug", "debug") in refused(verify(replace(GENUINE, hcl_report=debug)))
    other = MACHINE.amd.key(hwid=bytes(64))
    evidence = replace(GENUINE, snp_certificates=(other.certificate,))
    result = verify(evidence)
    assert ("cpu0", "snp.signature", "bad_signature") in refused(result)
    # The reason told first is the more telling one.
    assert result.failures[0].code == "cert_mismatch"
    assert nothing_proven(evidence)
    states = {claim.name: (claim.finding, claim.value) for claim in result.claims}
    assert states["azure.runtime_data"] == (Finding.NONE, "pass")
    assert states["eventlog.replay"] == (Finding.NONE, "pass")


def test_a_quote_by_another_key() -> None:
    stranger = SimulatedVtpm(key=simulated_rsa_key("another"))
    stranger.boot()
    evidence = replace(GENUINE, quote=stranger.quote(NONCE, bare=True))
    assert refused(verify(evidence)) == {("vtpm0", "tpm.signature", "bad_signature")}
    assert nothing_proven(evidence)


def test_register_values_that_were_not_signed() -> None:
    pcrs = MACHINE.vtpm.quote(NONCE).pcrs
    assert not isinstance(pcrs, bytes)
    evidence = replace(GENUINE, quote=replace(GENUINE.quote, pcrs={11: {**pcrs[11], 8: bytes(32)}}))
    assert ("vtpm0", "tpm.pcr_digest", "pcr_digest_mismatch") in refused(verify(evidence))
    assert nothing_proven(evidence)


def certified(**options: object) -> AkEvidence:
    key = MACHINE.vtpm.key.public_key()
    certificate = MACHINE.azure.certify(key, **options)  # type: ignore[arg-type]
    return AkEvidence(certificate=certificate, intermediates=MACHINE.azure.intermediates)


@pytest.mark.parametrize(
    ("ak", "name", "code"),
    [
        (
            AkEvidence(
                certificate=MACHINE.azure.certify(simulated_rsa_key("another").public_key()),
                intermediates=MACHINE.azure.intermediates,
            ),
            "ak.matches",
            "bad_ak_binding",
        ),
        (certified(not_after=NOW - timedelta(hours=1)), "ak.time", "expired"),
        (certified(usages=(TCG_KP_EK_CERTIFICATE,)), "ak.purpose", "ak_purpose"),
        (replace(certified(), intermediates=()), "ak.chain", "bad_chain"),
        (AkEvidence(certificate=b""), "ak.format", "malformed"),
    ],
)
def test_certificates_of_the_virtual_tpms_key(ak: AkEvidence, name: str, code: str) -> None:
    assert verify(replace(GENUINE, ak=certified())).verdict is Finding.AFFIRMING
    evidence = replace(GENUINE, ak=ak)
    assert refused(verify(evidence)) == {("vtpm0", name, code)}
    assert nothing_proven(evidence)


def test_without_azures_certificate() -> None:
    evidence = MACHINE.without_certificate(NONCE)
    result = verify(evidence)
    assert result.verdict is Finding.AFFIRMING
    assert any("certificate" in s and "missing" in s for s in result.not_proven)
    required = verify(evidence, policy=policy.development())
    assert ("vtpm0", "ak.certificate", "endorsements_missing") in refused(required)


def test_a_key_that_is_none() -> None:
    runtime = MACHINE.runtime_data()
    n = runtime.index(b'"n":"') + 5
    end = runtime.index(b'"', n)
    empty = runtime[:n] + b"AA" + runtime[end:]
    result = verify(replace(GENUINE, hcl_report=MACHINE.hcl_report(runtime_data=empty)))
    assert refused(result) == {("vtpm0", "ak.public", "malformed")}
    undecided = {claim.name for claim in result.claims if claim.finding is Finding.NONE}
    assert {"ak.matches", "tpm.signature"} <= undecided


def test_a_log_that_does_not_replay() -> None:
    twin = SimulatedVtpm()
    twin.events = MACHINE.vtpm.events[1:]
    evidence = replace(GENUINE, event_log=twin.event_log())
    assert refused(verify(evidence)) == {("vtpm0", "eventlog.replay", "eventlog_mismatch")}


# TDX.


def td_report(quote: bytes) -> bytes:
    """The TDREPORT that a quote of version 4 is of, its MAC and hashes zero."""
    body = quote[48 : 48 + 584]
    report = bytearray(1024)
    report[0] = 0x81
    report[128:192] = body[520:]
    report[264:384] = body[:120]
    report[512:912] = body[120:520]
    return bytes(report)


PLATFORM = INTEL.platform()


def on_tdx(*, mr_td: bytes = b"\5" * 48) -> AzureEvidence:
    runtime = MACHINE.runtime_data()
    quote = PLATFORM.tdx_quote(report_data=hashlib.sha256(runtime).digest(), mr_td=mr_td)
    return AzureEvidence(
        hcl_report=encode_hcl_report(td_report(quote), runtime),
        quote=MACHINE.vtpm.quote(NONCE, bare=True),
        td_quote=quote,
        td_collateral=INTEL.collateral(),
        ak=certified(),
        event_log=MACHINE.vtpm.event_log(),
    )


ON_TDX = on_tdx()


def test_a_genuine_machine_on_tdx() -> None:
    result = verify(ON_TDX, Expected(values={"extra_data": NONCE, "rtmr3": bytes(48)}))
    assert refused(result) == set()
    assert result.verdict is Finding.AFFIRMING
    found = outcome(ON_TDX)
    assert found.memory_confidentiality == "tdx"
    assert found.bound == NONCE
    assert {"mr_td", "pcr0"} <= found.registers.keys()
    assert found.facts["hcl_report_type"] == "tdx"


def test_a_quote_of_another_guest() -> None:
    """Genuine, and of the same key; but not of the report inside the paravisor's."""
    other = on_tdx(mr_td=b"\7" * 48)
    assert verify(other).verdict is Finding.AFFIRMING
    evidence = replace(ON_TDX, td_quote=other.td_quote)
    assert refused(verify(evidence)) == {("cpu0", "azure.td_quote", "td_quote_mismatch")}
    assert nothing_proven(evidence)


@pytest.mark.parametrize("offset", [128, 264, 383, 512, 911])
def test_every_part_of_the_report_is_compared(offset: int) -> None:
    report = bytearray(ON_TDX.hcl_report)
    report[32 + offset] ^= 1
    found = refused(verify(replace(ON_TDX, hcl_report=bytes(report))))
    assert ("cpu0", "azure.td_quote", "td_quote_mismatch") in found


def test_hardware_of_another_kind_than_what_vouches_for_it() -> None:
    for evidence in (
        replace(ON_TDX, td_quote=None),
        replace(GENUINE, td_quote=ON_TDX.td_quote),
    ):
        name = "measurement" if evidence.td_quote is None else "mr_td"
        result = verify(evidence, Expected(values={name: b""}))
        assert ("cpu0", "azure.hardware", "endorsements_missing") in refused(result)
        assert result.memory_confidentiality == "none"
        assert nothing_proven(evidence)


def test_a_quote_that_does_not_decode() -> None:
    evidence = replace(ON_TDX, td_quote=b"\4\0")
    found = refused(verify(evidence))
    assert ("cpu0", "azure.td_quote", "td_quote_mismatch") in found
    assert nothing_proven(evidence)
