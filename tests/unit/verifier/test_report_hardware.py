"""Reports of workers on hardware platforms: every binding, by the one change that breaks it."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest

from cloister.endorsements.pinned import pinned_roots
from cloister.errors import ConfigurationError
from cloister.evidence import items
from cloister.evidence.report import EvidenceItem
from cloister.strictjson import Json, JsonObject
from cloister.testing.simulated_hardware import MEASUREMENT, SimulatedHardware
from cloister.testing.simulated_tpm import SimulatedAttester
from cloister.verifier import policy
from cloister.verifier.appraise import boot, serving
from cloister.verifier.policy import UNCHECKED
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.result import AttestationResult, Finding, Source
from support.hardware_reports import (
    NONCE,
    NOW,
    OTHER,
    PLATFORMS,
    WORKERS,
    codes,
    documented,
    verify,
    with_data,
)

MAIN_ITEM = {
    "snp": items.ITEM_SNP_REPORT,
    "tdx": items.ITEM_TDX_QUOTE,
    "sgx": items.ITEM_SGX_QUOTE,
    "nitro": items.ITEM_NITRO_DOCUMENT,
    "nitro-tpm": items.ITEM_NITRO_TPM_DOCUMENT,
    "azure-snp": items.ITEM_AZURE_QUOTE,
    "gcp-snp": items.ITEM_SNP_REPORT,
    "gcp-tdx": items.ITEM_TDX_QUOTE,
    "gcp-vtpm": items.ITEM_TPM_PCRS,
    "tpm": items.ITEM_TPM_PCRS,
}


@pytest.fixture(params=PLATFORMS)
def worker(request: pytest.FixtureRequest) -> SimulatedHardware:
    """A worker that this test may change."""
    return dataclasses.replace(WORKERS[request.param])


def test_a_genuine_worker(worker: SimulatedHardware) -> None:
    result = verify(worker)
    assert result.verdict is Finding.AFFIRMING, result.failures
    attester = result.require_affirming()
    assert attester.keyset_digest == worker.worker.keyset.digest
    assert attester.development
    assert attester.platform.startswith("development (")
    assert result.memory_confidentiality == "none"
    assert result.facts
    assert not [claim for claim in result.claims if claim.source is Source.HARDWARE_PROVEN]


def test_a_simulated_platform_is_never_affirmed_unless_asked_for(
    worker: SimulatedHardware,
) -> None:
    strict = dataclasses.replace(policy.strict(), memory_confidentiality=UNCHECKED)
    found = codes(verify(worker, under=strict))
    assert found == {"platform.development": "development_refused"}


def test_the_vendors_own_roots_know_no_simulated_one(worker: SimulatedHardware) -> None:
    assert verify(worker).verdict is Finding.AFFIRMING
    found = codes(verify(worker, roots=pinned_roots()))
    assert "bad_chain" in found.values()


def test_another_nonce(worker: SimulatedHardware) -> None:
    found = codes(verify(worker, nonce=OTHER))
    assert found["quote.fresh"] == "quote_nonce"


def test_an_unchallenged_report(worker: SimulatedHardware) -> None:
    result = verify(worker, worker.attestation_report(None))
    assert codes(result)["quote.fresh"] == "quote_nonce"
    fresh = next(claim for claim in result.claims if claim.name == "quote.fresh")
    assert "no challenge" in fresh.explanation


def test_evidence_of_another_worker_on_the_same_platform(worker: SimulatedHardware) -> None:
    own = SimulatedAttester.make(now=NOW)
    other = dataclasses.replace(worker, worker=own)
    assert verify(other).verdict is Finding.AFFIRMING
    report = worker.attestation_report(NONCE)
    evidence = {**other.attestation_report(NONCE).evidence, "claims": report.evidence["claims"]}
    spliced = dataclasses.replace(report, evidence=evidence)
    found = codes(verify(worker, spliced))
    assert found["quote.fresh"] == "quote_nonce"
    assert found["keyset.bound"] == "keyset_unbound"


def test_a_keyset_that_was_replaced(worker: SimulatedHardware) -> None:
    """Keys swapped on the way, with the digest that the hardware signed for left in place."""
    report = worker.attestation_report(NONCE)
    stranger = SimulatedAttester.make(now=NOW)
    keyset = dataclasses.replace(stranger.keyset, subject=worker.worker.keyset.subject)
    swapped = dataclasses.replace(report, keyset=keyset.to_json())
    assert codes(verify(worker, swapped))["keyset.bound"] == "keyset_unbound"


def test_a_report_data_of_its_own(worker: SimulatedHardware) -> None:
    report = dataclasses.replace(worker.attestation_report(NONCE), report_data=OTHER)
    assert codes(verify(worker, report)) == {"report.data": "report_data_mismatch"}


OTHER_SOFTWARE: dict[str, dict[str, object]] = {
    "snp": {"measurement": OTHER + bytes(16)},
    "tdx": {"mr_td": OTHER + bytes(16)},
    "sgx": {"mrenclave": OTHER},
    "nitro": {"pcrs": {0: b"\x01" * 48, 1: b"\x02" * 48, 2: b"\x03" * 48}},
    "gcp-snp": {"measurement": OTHER + bytes(16)},
    "gcp-tdx": {"rtmr2": OTHER + bytes(16)},
}


@pytest.mark.parametrize("platform", OTHER_SOFTWARE)
def test_other_software(platform: str) -> None:
    worker = WORKERS[platform]
    other = SimulatedHardware.make(
        platform, now=NOW, worker=worker.worker, **OTHER_SOFTWARE[platform]
    )
    found = codes(verify(other, values=worker.reference_values))
    assert found == {"software.registers": "measurement_mismatch"}


GROUP_OF = {name: group.claim for group in boot.GROUPS for name in group.registers}


@pytest.mark.parametrize(
    "platform", ["azure-snp", "gcp-snp", "gcp-tdx", "gcp-vtpm", "tpm", "nitro-tpm"]
)
def test_each_register_of_a_virtual_tpm(platform: str) -> None:
    worker = WORKERS[platform]
    assert verify(worker).verdict is Finding.AFFIRMING
    for register in worker.reference.registers:
        changed = {**worker.reference.registers, register: ("00" * 31 + "01",)}
        reference = dataclasses.replace(worker.reference, registers=changed)
        found = codes(verify(worker, values=ReferenceValues.from_platforms(reference)))
        expected = {"software.registers", GROUP_OF.get(register, "software.registers")}
        assert found == dict.fromkeys(expected, "measurement_mismatch")


def test_only_what_a_reference_lists_is_a_claim_about_a_group() -> None:
    """Those of a TPM that the guest does not write are optional where TDX names the image."""
    worker = WORKERS["gcp-tdx"]
    groups = {group.claim for group in boot.GROUPS}
    assert groups <= {claim.name for claim in verify(worker).claims}
    listed = {
        name: values
        for name, values in worker.reference.registers.items()
        if not name.startswith("pcr") or name in {"pcr12", "pcr13", "pcr14", "pcr15"}
    }
    reference = dataclasses.replace(worker.reference, registers=listed)
    result = verify(worker, values=ReferenceValues.from_platforms(reference))
    assert result.verdict is Finding.AFFIRMING
    found = groups & {claim.name for claim in result.claims}
    assert found == {"boot.additions", "boot.application", "boot.model"}
    for register in ("pcr12", "pcr13", "pcr14", "pcr15"):
        fewer = {name: values for name, values in listed.items() if name != register}
        with pytest.raises(ConfigurationError, match=register):
            dataclasses.replace(worker.reference, registers=fewer)
    assert not groups & {claim.name for claim in verify(WORKERS["nitro"]).claims}


@pytest.mark.parametrize("platform", ["gcp-snp", "gcp-tdx"])
def test_halves_of_two_challenges_on_google_cloud(platform: str) -> None:
    """The processor's answer of today with the virtual TPM's answer to another challenge."""
    worker = WORKERS[platform]
    report, other = worker.attestation_report(NONCE), worker.attestation_report(OTHER)
    halves = {**other.evidence, MAIN_ITEM[platform]: report.evidence[MAIN_ITEM[platform]]}
    found = codes(verify(worker, dataclasses.replace(report, evidence=halves)))
    assert found == {"gcp.same_challenge": "report_data_mismatch"}


@pytest.mark.parametrize("number", range(4))
def test_each_runtime_register_of_a_tdx_guest(number: int) -> None:
    worker = WORKERS["tdx"]
    changed: dict[str, object] = {f"rtmr{number}": bytes(48)}
    other = SimulatedHardware.make("tdx", now=NOW, worker=worker.worker, **changed)
    found = codes(verify(other, values=worker.reference_values))
    assert found == {"software.registers": "measurement_mismatch"}


def test_states_are_not_mixed() -> None:
    """The measurement of one accepted image with a register of another is neither."""
    worker = WORKERS["tdx"]
    one = worker.reference
    two = dataclasses.replace(
        one,
        name="image 2",
        registers={**one.registers, "mr_td": ("aa" * 48,), "rtmr0": ("bb" * 48,)},
    )
    values = ReferenceValues.from_platforms(one, two)
    assert verify(worker, values=values).verdict is Finding.AFFIRMING
    mixed = SimulatedHardware.make("tdx", now=NOW, worker=worker.worker, rtmr0=b"\xbb" * 48)
    found = codes(verify(mixed, values=values))
    assert found == {"software.registers": "measurement_mismatch"}


def test_reference_values_of_another_platform(worker: SimulatedHardware) -> None:
    others = [WORKERS[name].reference for name in PLATFORMS if name != worker.platform]
    found = codes(verify(worker, values=ReferenceValues.from_platforms(*others)))
    assert found["software.registers"] == "measurement_mismatch"


@pytest.mark.parametrize("platform", OTHER_SOFTWARE)
def test_software_that_is_not_known_has_no_say(platform: str) -> None:
    """What the claims document says is worth nothing where the registers are not accepted."""
    worker, made = WORKERS[platform], OTHER_SOFTWARE[platform]
    other = SimulatedHardware.make(platform, now=NOW, worker=worker.worker, **made)
    result = verify(other, values=worker.reference_values)
    model = next(claim for claim in result.claims if claim.name == "software.model")
    assert (model.finding, model.code) == (Finding.NONE, "unauthenticated")


def test_without_the_evidence(worker: SimulatedHardware) -> None:
    report = worker.attestation_report(NONCE)
    left = {name: item for name, item in report.evidence.items() if name == "claims"}
    found = codes(verify(worker, dataclasses.replace(report, evidence=left)))
    assert found["report.items"] == "evidence_missing"


PARTS = {"gcp-snp": {"snp", "gcp-vtpm"}, "gcp-tdx": {"tdx", "gcp-vtpm"}}


@pytest.mark.parametrize("claimed", PLATFORMS)
def test_a_lie_about_the_platform(worker: SimulatedHardware, claimed: str) -> None:
    if claimed == worker.platform or claimed in PARTS.get(worker.platform, ()):
        return  # the truth, or part of it
    report = worker.attestation_report(NONCE)
    item = report.evidence[MAIN_ITEM[worker.platform]]
    lie = dataclasses.replace(
        report,
        tee_type=WORKERS[claimed].tee_type,
        evidence={**report.evidence, MAIN_ITEM[claimed]: item},
    )
    result = verify(worker, lie, roots=worker.roots.merged(WORKERS[claimed].roots))
    assert result.verdict is not Finding.AFFIRMING
    assert result.memory_confidentiality == "none"
    assert not [
        claim
        for claim in result.claims
        if claim.name == "platform.development" and claim.finding is Finding.AFFIRMING
    ]


def test_a_platform_that_nobody_knows(worker: SimulatedHardware) -> None:
    report = dataclasses.replace(worker.attestation_report(NONCE), tee_type="sparc")
    result = verify(worker, report)
    assert result.verdict is Finding.NONE
    assert result.failures[0].code == "platform_unsupported"


def test_one_bit_of_the_evidence(worker: SimulatedHardware) -> None:
    name = MAIN_ITEM[worker.platform]
    report = worker.attestation_report(NONCE)
    data = bytearray(report.evidence[name].data)
    data[len(data) // 3] ^= 1
    result = verify(worker, with_data(report, name, bytes(data)))
    assert result.verdict is Finding.CONTRAINDICATED
    assert result.attester is None


@pytest.mark.parametrize("platform", ["snp", "tdx", "sgx"])
def test_without_what_vouches_for_it(platform: str) -> None:
    worker = WORKERS[platform]
    report = worker.attestation_report(NONCE)
    name = MAIN_ITEM[platform]
    bare = EvidenceItem(
        media_type=report.evidence[name].media_type,
        data=report.evidence[name].data,
        endorsements=tuple(
            entry
            for entry in report.evidence[name].endorsements
            if entry.media_type == "application/pkix-cert"
        ),
    )
    stripped = dataclasses.replace(report, evidence={**report.evidence, name: bare})
    assert verify(worker).verdict is Finding.AFFIRMING
    assert "endorsements_missing" in codes(verify(worker, stripped)).values()


def test_a_virtual_tpm_key_that_nobody_certifies() -> None:
    """Refused by every policy: such a key may be anybody's."""
    worker = WORKERS["gcp-snp"]
    report = worker.attestation_report(NONCE)
    bare = dataclasses.replace(report.evidence["tpm.quote"], endorsements=())
    stripped = dataclasses.replace(report, evidence={**report.evidence, "tpm.quote": bare})
    loose = dataclasses.replace(policy.development(), require_endorsements=False)
    assert verify(worker, under=loose).verdict is Finding.AFFIRMING
    found = codes(verify(worker, stripped, under=loose))
    assert found["report.items"] == "evidence_missing"


DEBUG: dict[str, dict[str, object]] = {
    "snp": {"policy": 0x30000 | 1 << 19},
    "tdx": {"td_attributes": b"\x01" + bytes(7)},
    "sgx": {"attributes": b"\x07" + bytes(7) + b"\xe7" + bytes(7)},
    "nitro": {"pcrs": dict.fromkeys(range(3), bytes(48))},
    "azure-snp": {"policy": 0x30000 | 1 << 19},
    "gcp-snp": {"policy": 0x30000 | 1 << 19},
}


@pytest.mark.parametrize("platform", DEBUG)
def test_debug(platform: str) -> None:
    made = DEBUG[platform]
    open_one = SimulatedHardware.make(platform, now=NOW, worker=WORKERS[platform].worker, **made)
    found = codes(verify(open_one))
    assert found[f"{platform.rpartition('-')[2]}.debug"] == "debug"


def test_the_claims_document_is_the_one_that_was_signed_for(worker: SimulatedHardware) -> None:
    document = dataclasses.replace(worker.worker.claims_document, models=())
    report = with_data(worker.attestation_report(NONCE), "claims", document.encode())
    assert codes(verify(worker, report))["claims.bound"] == "claims_unbound"


def test_a_worker_that_names_no_model(worker: SimulatedHardware) -> None:
    document = dataclasses.replace(worker.worker.claims_document, models=())
    found = codes(verify(documented(worker, document)))
    assert found == {"software.model": "model_unmeasured"}
    loose = dataclasses.replace(policy.development(), require_model=False)
    assert verify(documented(worker, document), under=loose).verdict is Finding.AFFIRMING


def test_a_model_without_a_digest(worker: SimulatedHardware) -> None:
    models = worker.worker.claims_document.models
    blank = tuple(dataclasses.replace(model, sha256=None) for model in models)
    document = dataclasses.replace(worker.worker.claims_document, models=blank)
    assert codes(verify(documented(worker, document))) == {"software.model": "model_unmeasured"}


@pytest.mark.parametrize(
    ("member", "value", "claim", "code"),
    [
        ("debug", True, "configuration.debug", "configuration_debug"),
        ("debug", None, "configuration.debug", "configuration_debug"),
        ("debug", 0, "configuration.debug", "configuration_debug"),
        ("isolation", "none (unsafe)", "configuration.isolation", "sandbox_unsafe"),
        ("termination", "in-engine", "configuration.termination", "termination_refused"),
        ("termination", None, "configuration.termination", "termination_refused"),
        ("separation", "kindly", "configuration.separation", "separation_refused"),
        ("separation", None, "configuration.separation", "separation_refused"),
    ],
)
def test_what_the_software_says_of_itself(
    worker: SimulatedHardware, member: str, value: object, claim: str, code: str
) -> None:
    before = worker.worker.claims_document
    configuration = {**before.configuration, member: value}
    if value is None:
        del configuration[member]
    isolation = value if member == "isolation" else before.isolation
    document = dataclasses.replace(
        before,
        configuration=configuration,  # type: ignore[arg-type]
        isolation=str(isolation),
    )
    assert verify(documented(worker, before)).verdict is Finding.AFFIRMING
    assert codes(verify(documented(worker, document))) == {claim: code}


@pytest.mark.parametrize("managed", [False, None, 1])
def test_somebody_elses_engine(worker: SimulatedHardware, managed: Json) -> None:
    """It names a digest all the same, and proves none."""
    before = worker.worker.claims_document
    configuration = {**before.configuration, "managed": managed}
    if managed is None:
        del configuration["managed"]
    unmanaged = documented(worker, dataclasses.replace(before, configuration=configuration))
    assert verify(worker).verdict is Finding.AFFIRMING
    assert codes(verify(unmanaged)) == {
        "software.model": "model_unmeasured",
        "configuration.managed": "engine_unmanaged",
    }
    lax = dataclasses.replace(policy.development(), require_managed=False)
    assert codes(verify(unmanaged, under=lax)) == {"software.model": "model_unmeasured"}
    result = verify(unmanaged, under=dataclasses.replace(lax, require_model=False))
    assert result.verdict is Finding.AFFIRMING
    assert serving.NOT_PROVEN_UNMANAGED in result.not_proven
    assert serving.NOT_PROVEN_UNMANAGED not in verify(worker).not_proven


def test_two_engines_one_of_them_somebody_elses(worker: SimulatedHardware) -> None:
    """Under members that speak well of both."""
    before = worker.worker.claims_document
    own: Json = {name: before.configuration[name] for name in ("managed", "isolation")}

    def described(*engines: Json) -> SimulatedHardware:
        configuration: JsonObject = {**before.configuration, "engines": [*engines]}
        return documented(worker, dataclasses.replace(before, configuration=configuration))

    assert verify(described(own, own)).verdict is Finding.AFFIRMING
    assert codes(verify(described(own, {"managed": False}))) == {
        "software.model": "model_unmeasured",
        "configuration.managed": "engine_unmanaged",
    }
    assert codes(verify(described(own, {"termination": "in-engine"}))) == {
        "configuration.termination": "termination_refused"
    }
    unheld = verify(described(own, {"isolation": {"mode": "none (unsafe)", "layers": []}}))
    assert codes(unheld)["configuration.isolation"] == "sandbox_unsafe"


def test_a_seal_that_ends_in_the_engine(worker: SimulatedHardware) -> None:
    before = worker.worker.claims_document
    configuration = {**before.configuration, "termination": "in-engine", "managed": False}
    inside = documented(worker, dataclasses.replace(before, configuration=configuration))
    under = dataclasses.replace(
        policy.development(), termination=("in-engine",), require_managed=False
    )
    assert codes(verify(inside)) == {
        "configuration.termination": "termination_refused",
        "configuration.managed": "engine_unmanaged",
    }
    result = verify(inside, under=under)
    assert result.verdict is Finding.AFFIRMING
    assert serving.NOT_PROVEN_IN_ENGINE in result.not_proven
    assert codes(verify(worker, under=under)) == {
        "configuration.termination": "termination_refused"
    }


def test_what_one_engine_for_all_leaves_open(worker: SimulatedHardware) -> None:
    assert serving.NOT_PROVEN_SHARED in verify(worker).not_proven
    before = worker.worker.claims_document
    configuration = {**before.configuration, "separation": "process-per-client"}
    apart = documented(worker, dataclasses.replace(before, configuration=configuration))
    under = dataclasses.replace(policy.development(), separation=("process-per-client",))
    assert serving.NOT_PROVEN_SHARED not in verify(apart, under=under).not_proven
    assert verify(apart, under=under).verdict is Finding.AFFIRMING
    assert codes(verify(worker, under=under)) == {"configuration.separation": "separation_refused"}


def test_what_attested_tls_leaves_open(worker: SimulatedHardware) -> None:
    before = worker.worker.claims_document

    def taking(attested_tls: Json) -> AttestationResult:
        configuration: JsonObject = {
            **before.configuration,
            "worker": {"attested_tls": attested_tls},
        }
        return verify(documented(worker, dataclasses.replace(before, configuration=configuration)))

    assert serving.NOT_PROVEN_TLS not in taking(False).not_proven
    assert serving.NOT_PROVEN_TLS in taking(True).not_proven
    assert taking(True).verdict is Finding.AFFIRMING


def test_a_claims_document_at_odds_with_itself(worker: SimulatedHardware) -> None:
    document = dataclasses.replace(worker.worker.claims_document, isolation="none (unsafe)")
    found = codes(verify(documented(worker, document)))
    assert found["claims.consistent"] == "claims_mismatch"


def test_denied_digests(worker: SimulatedHardware) -> None:
    document = worker.worker.claims_document
    denied = (worker.worker.keyset.digest, f"sha256:{document.models[0].sha256}")
    assert verify(worker).verdict is Finding.AFFIRMING
    for digest in denied:
        under = dataclasses.replace(policy.development(), denied=(digest,))
        assert codes(verify(worker, under=under))["denied"] == "denied"


def test_expired_keys(worker: SimulatedHardware) -> None:
    assert verify(worker, at=NOW + timedelta(hours=1)).verdict is Finding.AFFIRMING
    found = codes(verify(worker, at=NOW + timedelta(hours=2, seconds=1)))
    assert found["keyset.expiry"] == "keyset_expired"


def test_what_protects_memory_is_the_policys_choice(worker: SimulatedHardware) -> None:
    """A simulated platform protects nothing, so only a policy that accepts none affirms it."""
    under = dataclasses.replace(policy.development(), memory_confidentiality=("sev_snp", "tdx"))
    assert codes(verify(worker, under=under)) == {"memory.confidentiality": "memory_unencrypted"}


def test_the_reference_is_the_measurement_that_was_signed() -> None:
    assert WORKERS["snp"].reference.registers["measurement"] == (MEASUREMENT.hex(),)


UNCHECKED_FIELDS = {
    "snp": {"snp_minimum_tcb", "chip_ids", "max_collateral_age_s", "required_gpus"},
    "tdx": {"chip_ids", "max_collateral_age_s", "required_gpus", "tcb_minimum_evaluation_number"},
    "nitro": {"max_evidence_age_s", "required_gpus"},
    "nitro-tpm": {"max_evidence_age_s", "required_gpus"},
}


@pytest.mark.parametrize("platform", UNCHECKED_FIELDS)
def test_only_what_could_have_been_compared_is_called_unchecked(platform: str) -> None:
    told = verify(WORKERS[platform]).not_proven
    named = {name for name in policy.strict().unchecked if any(f" {name} " in one for one in told)}
    assert named == UNCHECKED_FIELDS[platform]
    lax = dataclasses.replace(policy.development(), isolation=UNCHECKED)
    assert any(" isolation " in one for one in verify(WORKERS[platform], under=lax).not_proven)
