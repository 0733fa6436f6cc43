"""Documents of simulated NitroTPMs: each fault beside the unaltered evidence, same policy."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import cbor2
import pytest

from cloister.endorsements.pinned import pinned_roots
from cloister.endorsements.roots import Anchor, Roots, Vendor, fingerprint
from cloister.errors import ConfigurationError
from cloister.evidence import items
from cloister.evidence.eventlog import EventType
from cloister.evidence.nitro import DocumentKind
from cloister.evidence.report import AttestationReport, EvidenceItem
from cloister.evidence.tpm import Alg
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.testing.simulated_nitro import SimulatedNitro
from cloister.testing.simulated_vtpm import SimulatedVtpm
from cloister.verifier.appraise.boot import GROUPS, group_claims
from cloister.verifier.evidence import run
from cloister.verifier.expected import NOTHING_EXPECTED, Expected
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.platform_references import PlatformReference
from cloister.verifier.platforms.nitro import NitroEvidence, verify_nitro
from cloister.verifier.platforms.nitro_tpm import NOT_PROVEN, NitroTpmEvidence, verify_nitro_tpm
from cloister.verifier.policy import UNCHECKED, AppraisalPolicy, development, strict
from cloister.verifier.report import verify_report
from cloister.verifier.result import AttestationResult, Finding

NOW = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)
POLICY = development()
USER_DATA = bytes(range(32))
NONCE = bytes(range(32))
MEASURED = dataclasses.replace(strict(), memory_confidentiality=("none",))


class Instance:
    """An instance that booted something, and what AWS signs about it."""

    def __init__(self) -> None:
        self.nitro = SimulatedNitro(now=NOW)
        self.vtpm = SimulatedVtpm(banks=(Alg.SHA256, Alg.SHA384))
        self.vtpm.boot()
        self.pcrs = dict(self.vtpm.registers[Alg.SHA384])

    def document(self, **changes: object) -> bytes:
        """A document about these registers; `changes` replace members of its payload."""
        payload = self.nitro.payload(
            kind=DocumentKind.NITRO_TPM, pcrs=self.pcrs, user_data=USER_DATA
        )
        return self.nitro.sign({**payload, **changes})

    def evidence(self, **changes: object) -> NitroTpmEvidence:
        return NitroTpmEvidence(document=self.document(**changes), event_log=self.vtpm.event_log())


@pytest.fixture
def instance() -> Instance:
    return Instance()


def verify(
    evidence: NitroTpmEvidence,
    roots: Roots,
    *,
    policy: AppraisalPolicy = POLICY,
    at: datetime = NOW,
    expected: Expected = NOTHING_EXPECTED,
) -> AttestationResult:
    return run(verify_nitro_tpm, evidence, policy=policy, roots=roots, at=at, expected=expected)


def outcome(evidence: NitroTpmEvidence, roots: Roots) -> Outcome:
    return verify_nitro_tpm(
        evidence, policy=POLICY, roots=roots, at=NOW, expected=NOTHING_EXPECTED, ledger=Ledger()
    )


def codes(result: AttestationResult) -> dict[str, str | None]:
    """What was refused, and why."""
    assert result.verdict is not Finding.AFFIRMING
    return {
        claim.name: claim.code
        for claim in result.claims
        if claim.finding is Finding.CONTRAINDICATED
    }


def affirmed(instance: Instance) -> NitroTpmEvidence:
    """Evidence that is affirmed, for the tests that change it."""
    evidence = instance.evidence()
    result = verify(evidence, instance.nitro.roots)
    assert result.verdict is Finding.AFFIRMING, result.failures
    return evidence


def test_affirmed(instance: Instance) -> None:
    result = verify(affirmed(instance), instance.nitro.roots)
    assert result.platform == "development (AWS NitroTPM)"
    assert [claim.name for claim in result.claims] == [
        "nitro.document",
        "nitro.cose_signature",
        "nitro.chain",
        "nitro.time",
        "nitro.leaf",
        "nitrotpm.instance",
        "nitrotpm.registers",
        "nitro.age",
        "nitro.denied",
        "eventlog.format",
        "eventlog.replay",
        "eventlog.payloads",
        "platform.development",
    ]
    assert result.facts["pcrs"] == {str(n): value.hex() for n, value in instance.pcrs.items()}
    assert result.facts["secure_boot"] is True


def test_bound_and_registers(instance: Instance) -> None:
    """Zeros are registers too: a reference says that nothing was added to an image."""
    found = outcome(affirmed(instance), instance.nitro.roots)
    assert found.bound == USER_DATA
    assert found.registers == {f"pcr{number}": value for number, value in instance.pcrs.items()}
    assert not any(found.registers["pcr12"])
    assert found.development


def test_memory_is_not_confidential_even_where_aws_itself_signed(instance: Instance) -> None:
    genuine = Roots(
        anchors=(Anchor(vendor=Vendor.AWS_NITRO, certificate=instance.nitro.root.certificate),)
    )
    evidence = affirmed(instance)
    result = verify(evidence, genuine, policy=MEASURED)
    assert result.verdict is Finding.AFFIRMING, result.failures
    assert result.platform == "AWS NitroTPM"
    assert result.memory_confidentiality == "none"
    assert set(NOT_PROVEN) <= set(result.not_proven)


def test_a_policy_that_wants_memory_protected() -> None:
    worker = SimulatedHardware.make("nitro-tpm", now=NOW)
    genuine = dataclasses.replace(
        worker.roots,
        anchors=tuple(
            dataclasses.replace(anchor, development=False) for anchor in worker.roots.anchors
        ),
    )

    def under(policy: AppraisalPolicy) -> AttestationResult:
        return verify_report(
            worker.report(NONCE),
            nonce=NONCE,
            policy=policy,
            reference_values=worker.reference_values,
            roots=genuine,
            at=NOW,
        )

    assert under(MEASURED).verdict is Finding.AFFIRMING, under(MEASURED).failures
    assert codes(under(strict())) == {"memory.confidentiality": "memory_unencrypted"}


def test_only_a_policy_that_names_development(instance: Instance) -> None:
    result = verify(affirmed(instance), instance.nitro.roots, policy=MEASURED)
    assert codes(result) == {"platform.development": "development_refused"}


def test_the_pinned_root_is_another(instance: Instance) -> None:
    evidence = affirmed(instance)
    for roots in (pinned_roots(), Roots()):
        result = verify(evidence, roots)
        assert codes(result) == {"nitro.chain": "bad_chain"}
        found = outcome(evidence, roots)
        assert (found.bound, dict(found.registers)) == (None, {})
        claims = {claim.name: claim for claim in result.claims}
        for name in ("nitrotpm.instance", "nitrotpm.registers", "eventlog.replay"):
            assert (claims[name].finding, claims[name].code) == (Finding.NONE, "unauthenticated")


def test_a_changed_signature(instance: Instance) -> None:
    evidence = affirmed(instance)
    forged = evidence.document[:-1] + bytes([evidence.document[-1] ^ 1])
    changed = dataclasses.replace(evidence, document=forged)
    assert codes(verify(changed, instance.nitro.roots)) == {"nitro.cose_signature": "bad_signature"}
    assert outcome(changed, instance.nitro.roots).bound is None


def test_other_registers_under_the_signature(instance: Instance) -> None:
    evidence = affirmed(instance)
    parts = cbor2.loads(evidence.document)
    instance.pcrs[14] = b"\x01" * 48
    parts[2] = cbor2.loads(instance.document())[2]
    changed = dataclasses.replace(evidence, document=cbor2.dumps(parts))
    assert codes(verify(changed, instance.nitro.roots)) == {"nitro.cose_signature": "bad_signature"}


def test_malformed(instance: Instance) -> None:
    evidence = affirmed(instance)
    cut = dataclasses.replace(evidence, document=evidence.document[:-1])
    result = verify(cut, instance.nitro.roots)
    assert codes(result) == {"nitro.document": "malformed"}
    assert result.memory_confidentiality == "none"


def test_an_enclaves_document(instance: Instance) -> None:
    """The same signer, the same registers, and another name for them."""
    evidence = affirmed(instance)
    enclaves = instance.nitro.document(
        pcrs={number: instance.pcrs[number] for number in range(16)}, user_data=USER_DATA
    )
    roots = instance.nitro.roots
    of_enclave = run(
        verify_nitro, NitroEvidence(document=enclaves), policy=POLICY, roots=roots, at=NOW
    )
    assert of_enclave.verdict is Finding.AFFIRMING
    swapped = dataclasses.replace(evidence, document=enclaves)
    result = verify(swapped, roots)
    assert result.verdict is Finding.NONE
    first = next(claim for claim in result.claims if claim.finding is Finding.NONE)
    assert (first.name, first.code) == ("nitrotpm.instance", "platform_unsupported")
    found = outcome(swapped, roots)
    assert (found.bound, dict(found.registers)) == (None, {})


def test_an_instances_document_for_an_enclaves(instance: Instance) -> None:
    evidence = affirmed(instance)
    result = run(
        verify_nitro,
        NitroEvidence(document=evidence.document),
        policy=POLICY,
        roots=instance.nitro.roots,
        at=NOW,
    )
    assert result.verdict is Finding.NONE
    assert result.memory_confidentiality == "none"


@pytest.mark.parametrize("register", range(16))
def test_a_register_that_is_left_out(instance: Instance, register: int) -> None:
    affirmed(instance)
    del instance.pcrs[register]
    bare = dataclasses.replace(instance.evidence(), event_log=None)
    assert codes(verify(bare, instance.nitro.roots)) == {"nitrotpm.registers": "registers_missing"}


@pytest.mark.parametrize("register", range(16, 24))
def test_registers_that_nothing_rests_on(instance: Instance, register: int) -> None:
    del instance.pcrs[register]
    affirmed(instance)


@pytest.mark.parametrize("register", range(8))
@pytest.mark.parametrize("value", [bytes(48), b"\xff" * 48])
def test_a_boot_that_was_not_measured(instance: Instance, register: int, value: bytes) -> None:
    affirmed(instance)
    instance.pcrs[register] = value
    bare = dataclasses.replace(instance.evidence(), event_log=None)
    assert codes(verify(bare, instance.nitro.roots)) == {"nitrotpm.registers": "boot_unmeasured"}


def test_age(instance: Instance) -> None:
    evidence = affirmed(instance)
    limited = dataclasses.replace(POLICY, max_evidence_age_s=60)
    roots = instance.nitro.roots
    for late, found in ((60, {}), (61, {"nitro.age": "evidence_too_old"})):
        result = verify(evidence, roots, policy=limited, at=NOW + timedelta(seconds=late))
        assert (result.verdict is Finding.AFFIRMING) == (not found)
        assert not found or codes(result) == found
    ahead = instance.evidence(
        timestamp=round((NOW + timedelta(minutes=5, seconds=1)).timestamp() * 1000)
    )
    assert codes(verify(ahead, roots)) == {"nitro.age": "evidence_in_future"}
    later = verify(evidence, roots, at=NOW + timedelta(hours=4))
    assert codes(later) == {"nitro.time": "expired"}


def test_a_denied_certificate(instance: Instance) -> None:
    evidence = affirmed(instance)
    denied = (fingerprint(instance.nitro.authorities[1].certificate),)
    policy = dataclasses.replace(POLICY, denied=denied)
    assert codes(verify(evidence, instance.nitro.roots, policy=policy)) == {
        "nitro.denied": "denied"
    }
    unchecked = dataclasses.replace(POLICY, denied=UNCHECKED)
    result = verify(evidence, instance.nitro.roots, policy=unchecked)
    assert result.verdict is Finding.AFFIRMING


def test_what_is_expected(instance: Instance) -> None:
    evidence = affirmed(instance)
    roots = instance.nitro.roots
    right = Expected(values={"user_data": USER_DATA, "pcr4": instance.pcrs[4]})
    assert verify(evidence, roots, expected=right).verdict is Finding.AFFIRMING
    wrong = Expected(values={"user_data": bytes(32), "pcr4": bytes(48), "nonce": b"n"})
    assert codes(verify(evidence, roots, expected=wrong)) == {
        "expected.user_data": "user_data_mismatch",
        "expected.pcr4": "measurement_mismatch",
        "expected.nonce": "nonce_mismatch",
    }
    with pytest.raises(ConfigurationError):
        verify(evidence, roots, expected=Expected(values={"pcr24": bytes(48)}))


def test_the_log_of_another_boot(instance: Instance) -> None:
    evidence = affirmed(instance)
    other = SimulatedVtpm(banks=(Alg.SHA256, Alg.SHA384))
    other.boot(command_line="/vmlinuz init=/bin/sh")
    changed = dataclasses.replace(evidence, event_log=other.event_log())
    assert codes(verify(changed, instance.nitro.roots)) == {"eventlog.replay": "eventlog_mismatch"}


def test_a_log_without_the_bank_that_is_signed(instance: Instance) -> None:
    """Its events are of the same boot, and nothing that AWS signed says so."""
    evidence = affirmed(instance)
    weaker = SimulatedVtpm(banks=(Alg.SHA256,))
    weaker.boot()
    changed = dataclasses.replace(evidence, event_log=weaker.event_log())
    assert codes(verify(changed, instance.nitro.roots)) == {"eventlog.replay": "eventlog_mismatch"}


def test_a_log_that_says_something_else_than_was_measured(instance: Instance) -> None:
    evidence = affirmed(instance)
    assert evidence.event_log is not None
    changed = evidence.event_log.replace(b"Exit Boot Services Inv", b"Exit Boot Services Now")
    assert changed != evidence.event_log
    found = codes(verify(dataclasses.replace(evidence, event_log=changed), instance.nitro.roots))
    assert found == {"eventlog.payloads": "eventlog_payload_mismatch"}


def test_without_a_log(instance: Instance) -> None:
    evidence = dataclasses.replace(affirmed(instance), event_log=None)
    result = verify(evidence, instance.nitro.roots)
    assert result.verdict is Finding.AFFIRMING
    assert "No event log says what was measured into the registers." in result.not_proven


WORKER = SimulatedHardware.make("nitro-tpm", now=NOW)


def reported(worker: SimulatedHardware, report: AttestationReport) -> AttestationResult:
    return verify_report(
        report.encode(),
        nonce=NONCE,
        policy=POLICY,
        reference_values=worker.reference_values,
        roots=worker.roots,
        at=NOW,
    )


def failures(result: AttestationResult) -> dict[str, str | None]:
    assert result.verdict is not Finding.AFFIRMING
    return {claim.name: claim.code for claim in result.failures}


def test_a_report_with_an_enclaves_document() -> None:
    """One AWS account may start both: an enclave's document must not speak for an instance."""
    report = WORKER.attestation_report(NONCE)
    assert reported(WORKER, report).verdict is Finding.AFFIRMING
    enclave = SimulatedNitro(now=NOW)
    worker = dataclasses.replace(WORKER, roots=enclave.roots)
    pcrs = {
        number: bytes.fromhex(WORKER.reference.registers[f"pcr{number}"][0])
        for number in (*range(2, 10), *range(11, 16))
    }
    pcrs |= {0: b"\x01" * 48, 1: b"\x01" * 48, 10: bytes(48)}

    def with_document(kind: DocumentKind) -> AttestationReport:
        document = enclave.document(kind=kind, pcrs=pcrs, user_data=report.report_data)
        item = dataclasses.replace(report.evidence[items.ITEM_NITRO_TPM_DOCUMENT], data=document)
        return dataclasses.replace(
            report, evidence={**report.evidence, items.ITEM_NITRO_TPM_DOCUMENT: item}
        )

    found = failures(reported(worker, with_document(DocumentKind.ENCLAVE)))
    assert found["nitrotpm.instance"] == "platform_unsupported"
    right = reported(worker, with_document(DocumentKind.NITRO_TPM))
    # The log is of another boot by PCR 0 and 1 alone, which no reference lists.
    assert failures(right) == {"eventlog.replay": "eventlog_mismatch"}


@pytest.mark.parametrize("missing", [items.ITEM_NITRO_TPM_DOCUMENT, "tpm.event_log"])
def test_a_report_without_one_of_its_items(missing: str) -> None:
    report = WORKER.attestation_report(NONCE)
    assert reported(WORKER, report).verdict is Finding.AFFIRMING
    fewer: dict[str, EvidenceItem] = {
        name: item for name, item in report.evidence.items() if name != missing
    }
    found = failures(reported(WORKER, dataclasses.replace(report, evidence=fewer)))
    assert found["report.items"] == "evidence_missing"


def test_a_report_of_an_instance_that_calls_itself_an_enclave() -> None:
    report = WORKER.attestation_report(NONCE)
    assert reported(WORKER, report).verdict is Finding.AFFIRMING
    document = report.evidence[items.ITEM_NITRO_TPM_DOCUMENT]
    renamed = dataclasses.replace(
        report,
        tee_type=items.TEE_TYPE_NITRO,
        evidence={**report.evidence, items.ITEM_NITRO_DOCUMENT: document},
    )
    found = failures(reported(WORKER, renamed))
    assert found["nitro.enclave"] == "platform_unsupported"


def test_something_started_beside_the_image() -> None:
    """A command line from outside goes into PCR 12 (and 9), and leaves PCR 4 as it is."""
    vtpm = SimulatedVtpm(banks=(Alg.SHA256, Alg.SHA384))
    vtpm.boot()
    good = SimulatedHardware.make("nitro-tpm", now=NOW, worker=WORKER.worker, vtpm=vtpm)
    assert reported(good, good.attestation_report(NONCE)).verdict is Finding.AFFIRMING
    vtpm.measure(12, EventType.EV_IPL, "init=/bin/sh\0".encode("utf-16-le"))
    found = codes(reported(good, good.attestation_report(NONCE)))
    assert found == dict.fromkeys(("software.registers", "boot.additions"), "measurement_mismatch")


def test_no_claim_about_registers_that_reference_values_need_not_list() -> None:
    names = set(group_claims("nitro-tpm"))
    assert {group.claim for group in GROUPS} - names == {"boot.firmware", "boot.machine"}
    assert set(group_claims("tpm")) == {group.claim for group in GROUPS}
    assert group_claims("nitro") == ()
    result = reported(WORKER, WORKER.attestation_report(NONCE))
    assert names <= {claim.name for claim in result.claims}


@pytest.mark.parametrize("register", [*range(2, 10), *range(11, 16)])
def test_reference_values_that_leave_room_for_other_software(register: int) -> None:
    registers = dict(WORKER.reference.registers)
    PlatformReference(platform="nitro-tpm", name="whole", registers=registers)
    del registers[f"pcr{register}"]
    with pytest.raises(ConfigurationError, match=f"pcr{register}"):
        PlatformReference(platform="nitro-tpm", name="less", registers=registers)
