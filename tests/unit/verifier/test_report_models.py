"""Workers that serve several models, or one of several files, as a verifier sees them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest

from cloister.channel.claims import ModelClaim
from cloister.evidence.component import Component, ComponentKind
from cloister.model_digest import Role, model_digest
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.testing.simulated_tpm import SimulatedAttester, default_components
from cloister.verifier.policy import development
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.report import verify_report
from cloister.verifier.result import AttestationResult
from support.report_world import NONCE, NOW

FILES = {Role.MODEL: "1" * 64, Role.ADAPTER: "2" * 64}
ADAPTED = ModelClaim(name="adapted", sha256=model_digest(FILES), files=FILES)


def component(kind: ComponentKind, name: str, digest: str | None) -> Component:
    return Component(kind=kind, name=name, version="", digest=f"sha256:{digest}")


def measured(claim: ModelClaim) -> tuple[Component, ...]:
    return (
        component(ComponentKind.MODEL, claim.name, claim.sha256),
        *(
            component(ComponentKind.MODEL_FILE, f"{claim.name}/{role}", digest)
            for role, digest in sorted(claim.files.items())
        ),
    )


def attester(*, log: ModelClaim = ADAPTED, said: ModelClaim | None = None) -> SimulatedAttester:
    """A worker that was measured to serve `log` beside another, and says that it serves `said`."""
    made = SimulatedAttester.make(now=NOW, components=(*default_components(), *measured(log)))
    if said is not None:
        models = tuple(said if one == log else one for one in made.claims_document.models)
        made.claims_document = dataclasses.replace(made.claims_document, models=models)
        made.keyset = dataclasses.replace(made.keyset, subject=made.claims_document.subject)
    return made


def verify(
    made: SimulatedAttester, *, accepted: SimulatedAttester | None = None, denied: str | None = None
) -> AttestationResult:
    values = (accepted or made).reference_values
    policy = development()
    if denied is not None:
        policy = dataclasses.replace(policy, denied=(f"sha256:{denied}",))
    return verify_report(
        made.attestation_report(NONCE).encode(),
        nonce=NONCE,
        policy=policy,
        reference_values=values,
        roots=made.roots,
        at=NOW,
    )


def codes(result: AttestationResult) -> Mapping[str, str | None]:
    return {claim.name: claim.code for claim in result.failures}


def test_several_models_are_affirmed_and_told() -> None:
    made = attester()
    result = verify(made)
    result.require_affirming()
    assert [one.name for one in made.claims_document.models] == ["demo", "adapted"]
    (told,) = [claim.explanation for claim in result.claims if claim.name == "software.model"]
    assert "demo" in told
    assert "adapted" in told


@pytest.mark.parametrize("role", FILES)
def test_another_file_is_another_model(role: Role) -> None:
    files = {**FILES, role: "3" * 64}
    other = ModelClaim(name="adapted", sha256=model_digest(files), files=files)
    verify(attester(log=other)).require_affirming()
    found = codes(verify(attester(log=other), accepted=attester()))
    assert found == {"software.model": "model_mismatch"}


def test_a_file_that_nobody_expects_is_another_model() -> None:
    plain = ModelClaim(name="adapted", sha256=FILES[Role.MODEL])
    verify(attester(log=plain)).require_affirming()
    found = codes(verify(attester(), accepted=attester(log=plain)))
    assert found["software.model"] == "model_mismatch"


@pytest.mark.parametrize(
    "said",
    [
        ModelClaim(name="adapted", sha256=ADAPTED.sha256),
        ModelClaim(name="adapted", sha256=FILES[Role.MODEL]),
        dataclasses.replace(ADAPTED, name="other"),
    ],
    ids=["no files", "weights alone", "other name"],
)
def test_a_worker_that_says_less_or_else_than_was_measured_is_refused(said: ModelClaim) -> None:
    verify(attester(said=ADAPTED)).require_affirming()
    assert codes(verify(attester(said=said))) == {"claims.consistent": "claims_mismatch"}


@pytest.mark.parametrize("digest", [*FILES.values(), str(ADAPTED.sha256)])
def test_any_of_its_digests_can_be_denied(digest: str) -> None:
    verify(attester(), denied="9" * 64).require_affirming()
    assert codes(verify(attester(), denied=digest)) == {"denied": "denied"}


@pytest.mark.parametrize("digest", [*FILES.values(), str(ADAPTED.sha256)])
def test_any_of_its_digests_can_be_denied_on_hardware(digest: str) -> None:
    made = SimulatedHardware.make("snp", now=NOW)
    document = dataclasses.replace(made.worker.claims_document, models=(ADAPTED,))
    keyset = dataclasses.replace(made.worker.keyset, subject=document.subject)
    worker = dataclasses.replace(made.worker, claims_document=document, keyset=keyset)
    made = dataclasses.replace(made, worker=worker)

    def verified(denied: str) -> AttestationResult:
        return verify_report(
            made.attestation_report(NONCE).encode(),
            nonce=NONCE,
            policy=dataclasses.replace(development(), denied=(f"sha256:{denied}",)),
            reference_values=made.reference_values,
            roots=made.roots,
            at=NOW,
        )

    verified("9" * 64).require_affirming()
    assert codes(verified(digest)) == {"denied": "denied"}


def test_reference_values_hold_the_files() -> None:
    values = ReferenceValues.from_components(measured(ADAPTED))
    assert {(entry.kind, entry.name) for entry in values.components} == {
        (ComponentKind.MODEL, "adapted"),
        (ComponentKind.MODEL_FILE, "adapted/model"),
        (ComponentKind.MODEL_FILE, "adapted/adapter"),
    }
