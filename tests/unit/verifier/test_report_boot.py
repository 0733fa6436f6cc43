"""Workers in a machine that measured its boot into a TPM: what only these reports are asked."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from cloister.endorsements.roots import Roots, Vendor
from cloister.evidence.eventlog import Event, EventType
from cloister.evidence.report import ITEM_EVENT_LOG, ITEM_QUOTE
from cloister.evidence.tpm import Alg
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.testing.simulated_vtpm import SimulatedAkVendor, SimulatedVtpm
from cloister.verifier import policy
from cloister.verifier.appraise.boot import GROUPS
from cloister.verifier.platform_references import IDENTITY, PlatformReference, ReferenceImage
from cloister.verifier.platforms import measured_boot
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.report import verify_report
from cloister.verifier.result import AttestationResult, Finding

NOW = datetime(2026, 11, 3, 12, tzinfo=UTC)
NONCE = bytes(range(32))
GOOD = SimulatedHardware.make("tpm", now=NOW)
ACPI = (1, EventType.EV_PLATFORM_CONFIG_FLAGS, b"ACPI DATA")


def verify(
    worker: SimulatedHardware,
    *,
    report: bytes | None = None,
    values: ReferenceValues | None = None,
    roots: Roots | None = None,
    under: AppraisalPolicy | None = None,
) -> AttestationResult:
    return verify_report(
        worker.report(NONCE) if report is None else report,
        nonce=NONCE,
        policy=policy.development() if under is None else under,
        reference_values=GOOD.reference_values if values is None else values,
        roots=worker.roots if roots is None else roots,
        at=NOW,
    )


def failed(result: AttestationResult) -> dict[str, str | None]:
    return {c.name: c.code for c in result.failures if c.finding is Finding.CONTRAINDICATED}


def booted(*more: tuple[int, int, bytes]) -> SimulatedVtpm:
    """A machine that measured `more` after an ordinary boot."""
    vtpm = SimulatedVtpm(banks=(Alg.SHA256,))
    vtpm.boot()
    for pcr, kind, data in more:
        vtpm.measure(pcr, kind, data)
    return vtpm


def machine(vtpm: SimulatedVtpm) -> SimulatedHardware:
    return SimulatedHardware.make("tpm", now=NOW, worker=GOOD.worker, vtpm=vtpm)


def test_groups_and_registers_together_are_affirmed() -> None:
    result = verify(GOOD)
    assert result.verdict is Finding.AFFIRMING, result.failures
    assert result.platform == "development (TPM)"
    assert result.memory_confidentiality == "none"
    made = {claim.name for claim in result.claims}
    assert made >= {group.claim for group in GROUPS}


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: str(group.claim))
def test_what_was_changed_is_named(group: object) -> None:
    """A register that a boot extended once more is refused under its own claim, and no other."""
    claim, registers = group.claim, group.registers  # type: ignore[attr-defined]  # of GROUPS
    for register in registers:
        changed = machine(booted((int(register[3:]), EventType.EV_IPL, b"more")))
        found = failed(verify(changed))
        assert found == dict.fromkeys({claim, "software.registers"}, "measurement_mismatch")


def test_every_register_that_names_software_has_its_claim() -> None:
    listed = [register for group in GROUPS for register in group.registers]
    assert sorted(listed) == sorted(IDENTITY["tpm"][0])


def test_the_first_claim_that_fails_says_what_was_changed() -> None:
    result = verify(machine(booted((12, EventType.EV_IPL, b"a command line"))))
    assert result.failures[0].name == "boot.additions"
    assert "pcr12 differs" in result.failures[0].explanation


def test_the_nearest_of_several_states_is_what_is_compared() -> None:
    """Two firmwares, one image: a changed application disk is that, and no other firmware."""
    registers = GOOD.reference.registers
    other = dataclasses.replace(
        GOOD.reference,
        name="other firmware",
        registers={**registers, "pcr0": ("11" * 32,), "pcr1": ("22" * 32,)},
    )
    values = ReferenceValues.from_platforms(GOOD.reference, other)
    assert verify(GOOD, values=values).verdict is Finding.AFFIRMING
    changed = machine(booted((14, EventType.EV_IPL, b"another disk")))
    assert set(failed(verify(changed, values=values))) == {"boot.application", "software.registers"}


def test_firmware_of_one_state_with_the_machine_of_another() -> None:
    values = ReferenceValues.from_platforms(
        *(
            dataclasses.replace(
                GOOD.reference,
                name=name,
                registers={**GOOD.reference.registers, register: ("11" * 32,)},
            )
            for name, register in (("one", "pcr0"), ("two", "pcr1"))
        )
    )
    assert "software.registers" in failed(verify(GOOD, values=values))


def with_image(*images: ReferenceImage | None) -> ReferenceValues:
    states = (dataclasses.replace(GOOD.reference, image=image) for image in images)
    return ReferenceValues.from_platforms(*states)


RELEASE = ReferenceImage(name="demo", version="1", debug=False)
DEBUG = ReferenceImage(name="demo", version="1", debug=True)


def test_a_debug_image_is_accepted_by_name_only() -> None:
    assert verify(GOOD, values=with_image(RELEASE)).verdict is Finding.AFFIRMING
    assert failed(verify(GOOD, values=with_image(DEBUG))) == {"image.debug": "image_debug"}
    open_minded = dataclasses.replace(policy.development(), accept_debug=True)
    accepted = verify(GOOD, values=with_image(DEBUG), under=open_minded)
    assert accepted.verdict is Finding.AFFIRMING


@pytest.mark.parametrize("others", [(RELEASE,), (None,), (None, RELEASE)])
def test_a_state_that_is_listed_both_ways_counts_as_debug(
    others: tuple[ReferenceImage | None, ...],
) -> None:
    assert failed(verify(GOOD, values=with_image(DEBUG, *others))) == {"image.debug": "image_debug"}


def manifest_worker(digest: bytes, vtpm: SimulatedVtpm) -> SimulatedHardware:
    before, named = GOOD.worker.claims_document, digest.hex()
    document = dataclasses.replace(
        before,
        configuration={**before.configuration, "manifest_sha256": named},
        manifest_sha256=named,
    )
    keyset = dataclasses.replace(GOOD.worker.keyset, subject=document.subject)
    worker = dataclasses.replace(GOOD.worker, claims_document=document, keyset=keyset)
    return SimulatedHardware.make("tpm", now=NOW, worker=worker, vtpm=vtpm)


def extended(*digests: bytes) -> SimulatedVtpm:
    vtpm = booted()
    for digest in digests:
        event = Event(pcr=13, type=EventType.EV_IPL, digests={int(Alg.SHA256): digest}, data=b"")
        vtpm.extend(event)
    return vtpm


MANIFEST = hashlib.sha256(b"a manifest").digest()
BOTH = {"boot.additions", "software.registers"}


def test_the_manifests_register_is_recomputed() -> None:
    """No reference value lists it: it follows from the digest that the worker names."""
    assert GOOD.reference.registers["pcr13"] == ("00" * 32,)
    assert verify(manifest_worker(MANIFEST, extended(MANIFEST))).verdict is Finding.AFFIRMING


@pytest.mark.parametrize(
    ("digests", "refused"),
    [
        ((), {"manifest.bound"}),
        ((hashlib.sha256(b"another").digest(),), {"manifest.bound", *BOTH}),
        ((MANIFEST, MANIFEST), {"manifest.bound", *BOTH}),
        ((bytes(32), MANIFEST), {"manifest.bound", *BOTH}),
    ],
    ids=["none", "another", "twice", "after something else"],
)
def test_another_manifest_than_the_machine_was_started_for(
    digests: tuple[bytes, ...], refused: set[str]
) -> None:
    assert set(failed(verify(manifest_worker(MANIFEST, extended(*digests))))) == refused


def test_a_manifest_that_the_worker_does_not_name() -> None:
    assert set(failed(verify(machine(extended(MANIFEST))))) == BOTH


def test_an_enrolment_ca_makes_a_development_platform() -> None:
    """Whoever enrols keys may enrol a software TPM's; pinning it does not make it hardware."""
    vendor = SimulatedAkVendor(Vendor.TPM_MANUFACTURER, now=NOW)
    vtpm = booted()
    certificate = vendor.certify(vtpm.key.public_key())
    report = machine(vtpm).attestation_report(NONCE)
    quote = report.evidence[ITEM_QUOTE]
    first, second = quote.endorsements
    chain = (
        dataclasses.replace(first, data=certificate),
        dataclasses.replace(second, data=vendor.intermediates[0]),
    )
    evidence = {**report.evidence, ITEM_QUOTE: dataclasses.replace(quote, endorsements=chain)}
    data = dataclasses.replace(report, evidence=evidence).encode()
    pinned = Roots(enrolment_cas=(vendor.root,))
    result = verify(GOOD, report=data, roots=pinned)
    assert result.verdict is Finding.AFFIRMING, result.failures
    assert result.development
    assert measured_boot.ENROLLED in result.not_proven
    strict = dataclasses.replace(policy.development(), accept_development=False)
    refused = failed(verify(GOOD, report=data, roots=pinned, under=strict))
    assert refused == {"platform.development": "development_refused"}
    assert failed(verify(GOOD, report=data, roots=Roots()))["ak.chain"] == "bad_chain"


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        (lambda e: {k: v for k, v in e.items() if k != ITEM_EVENT_LOG}, "report.items"),
        (
            lambda e: {**e, ITEM_QUOTE: dataclasses.replace(e[ITEM_QUOTE], endorsements=())},
            "report.items",
        ),
    ],
    ids=["no event log", "nobody certifies the key"],
)
def test_what_such_a_report_has_to_bring(
    change: Callable[..., dict[str, object]], claim: str
) -> None:
    report = GOOD.attestation_report(NONCE)
    less = dataclasses.replace(report, evidence=change(report.evidence))  # type: ignore[arg-type]
    loose = dataclasses.replace(policy.development(), require_endorsements=False)
    assert verify(GOOD, under=loose).verdict is Finding.AFFIRMING
    result = verify(GOOD, report=less.encode(), under=loose)
    assert failed(result)[claim] == "evidence_missing"


def test_a_quote_over_fewer_registers() -> None:
    """A register that nobody signed is not the accepted one."""
    vtpm = booted()
    worker = machine(vtpm)
    assert verify(worker).verdict is Finding.AFFIRMING
    whole = vtpm.quote

    def fewer(extra_data: bytes, **_: object) -> object:
        return whole(extra_data, pcrs=[n for n in range(16) if n != 12])

    vtpm.quote = fewer  # type: ignore[method-assign,assignment]  # this test's own object
    assert set(failed(verify(worker))) == BOTH


def test_a_log_that_tells_another_boot() -> None:
    report = GOOD.attestation_report(NONCE)
    other = booted((5, EventType.EV_IPL, b"more")).event_log()
    item = dataclasses.replace(report.evidence[ITEM_EVENT_LOG], data=other)
    told = dataclasses.replace(report, evidence={**report.evidence, ITEM_EVENT_LOG: item})
    assert failed(verify(GOOD, report=told.encode())) == {"eventlog.replay": "eventlog_mismatch"}


def test_firmware_that_measures_no_acpi_is_named() -> None:
    assert measured_boot.ACPI_NOT_MEASURED in verify(GOOD).not_proven
    with_acpi = machine(booted(ACPI))
    reference = PlatformReference(
        platform="tpm", name="with ACPI", registers=with_acpi.reference.registers
    )
    result = verify(with_acpi, values=ReferenceValues.from_platforms(reference))
    assert result.verdict is Finding.AFFIRMING
    assert measured_boot.ACPI_NOT_MEASURED not in result.not_proven
    assert not measured_boot.measures_acpi(None)
    assert not measured_boot.measures_acpi(b"no log")
