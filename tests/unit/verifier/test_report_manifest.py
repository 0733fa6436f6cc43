"""Workers under a manifest: each of its terms, by the one change that breaks it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cloister.channel.claims import ClaimsDocument, ModelClaim
from cloister.strictjson import JsonObject
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.testing.simulated_tpm import SimulatedAttester, default_configuration
from cloister.verifier import policy
from cloister.verifier.appraise.manifest import (
    CLAIMS,
    NOT_PROVEN_UNREAD,
    NOT_PROVEN_UNSIGNED,
)
from cloister.verifier.expected_manifest import ExpectedManifest
from cloister.verifier.policy import UNCHECKED
from cloister.verifier.report import NO_MANIFEST, verify_report
from cloister.verifier.result import AttestationResult, Finding

NOW = datetime(2026, 11, 3, 12, tzinfo=UTC)
NONCE = bytes(range(32))
DIGEST = hashlib.sha256(b"the manifest").hexdigest()
OTHER = hashlib.sha256(b"another manifest").hexdigest()
SIGNER = "sha256:" + "5" * 64
ENGINE: JsonObject = {
    "engine": "llama.cpp",
    "library": {"name": "xllamacpp", "version": "1"},
    "managed": True,
    "isolation": {"mode": "sandbox", "layers": ["namespaces", "seccomp"]},
}
CONFIGURATION: JsonObject = {
    **default_configuration(),
    "engines": [ENGINE],
    "worker": {
        "receipts": {"keep_s": 600, "capacity": 10},
        "padding": {"stream_bucket": 256, "body_bucket": 1024},
    },
}
NAMING: JsonObject = {**CONFIGURATION, "manifest_sha256": DIGEST}
STARTED_FOR: Mapping[str, dict[str, Any]] = {
    "snp": {"host_data": bytes.fromhex(DIGEST)},
    "tdx": {"mr_config_id": bytes.fromhex(DIGEST) + bytes(16)},
}


def attester(configuration: JsonObject, named: str | None) -> SimulatedAttester:
    made = SimulatedAttester.make(now=NOW, configuration=configuration)
    return documented(made, dataclasses.replace(made.claims_document, manifest_sha256=named))


def documented(made: SimulatedAttester, document: ClaimsDocument) -> SimulatedAttester:
    keyset = dataclasses.replace(made.keyset, subject=document.subject)
    return dataclasses.replace(made, claims_document=document, keyset=keyset)


WITHOUT = SimulatedAttester.make(now=NOW, configuration=CONFIGURATION)
"""What the manifest's reference values were computed from: it names no manifest."""
MODELS = {model.name: str(model.sha256) for model in WITHOUT.claims_document.models}
EXPECTED = ExpectedManifest(
    sha256=DIGEST,
    standing="The manifest is signed by alice.",
    signed=True,
    signer_ids=(SIGNER,),
    expires=NOW + timedelta(days=30),
    models=MODELS,
    engines=frozenset({("llama.cpp", "1")}),
    egress=frozenset(),
    receipts_keep_s=600,
    stream_bucket=256,
    body_bucket=1024,
)


def on_tpm(
    worker: SimulatedAttester, expected: ExpectedManifest | None = EXPECTED, **changes: Any
) -> AttestationResult:
    fields: dict[str, Any] = {
        "policy": policy.development(),
        "reference_values": WITHOUT.reference_values,
        **changes,
    }
    return verify_report(
        worker.report(NONCE), nonce=NONCE, roots=worker.roots, at=NOW, manifest=expected, **fields
    )


def on_hardware(
    platform: str,
    worker: SimulatedAttester,
    expected: ExpectedManifest | None = EXPECTED,
    **fields: Any,
) -> AttestationResult:
    made = SimulatedHardware.make(platform, now=NOW, worker=worker, **fields)
    return verify_report(
        made.report(NONCE),
        nonce=NONCE,
        policy=policy.development(),
        reference_values=made.reference_values,
        roots=made.roots,
        at=NOW,
        manifest=expected,
    )


def codes(result: AttestationResult) -> dict[str, str | None]:
    assert result.verdict is not Finding.AFFIRMING
    assert result.attester is None
    return {claim.name: claim.code for claim in result.failures}


def affirmed(result: AttestationResult) -> AttestationResult:
    assert result.verdict is Finding.AFFIRMING, result.failures
    return result


def test_a_worker_under_the_manifest_on_a_tpm() -> None:
    result = affirmed(on_tpm(attester(NAMING, DIGEST)))
    names = [claim.name for claim in result.claims]
    assert [name for name in names if name in CLAIMS] == list(CLAIMS)
    (signed,) = [claim for claim in result.claims if claim.name == "manifest.signed"]
    assert signed.explanation == "The manifest is signed by alice."
    assert NOT_PROVEN_UNREAD not in result.not_proven


@pytest.mark.parametrize("platform", STARTED_FOR)
def test_a_worker_under_the_manifest_on_hardware(platform: str) -> None:
    result = affirmed(on_hardware(platform, attester(NAMING, DIGEST), **STARTED_FOR[platform]))
    assert set(CLAIMS) <= {claim.name for claim in result.claims}
    assert NO_MANIFEST not in result.not_proven


@pytest.mark.parametrize("platform", STARTED_FOR)
def test_hardware_that_was_started_for_another_manifest(platform: str) -> None:
    worker = attester(NAMING, DIGEST)
    affirmed(on_hardware(platform, worker, **STARTED_FOR[platform]))
    assert codes(on_hardware(platform, worker)) == {"manifest.bound": "manifest_mismatch"}
    name, value = next(iter(STARTED_FOR[platform].items()))
    assert isinstance(value, bytes)
    other = bytes.fromhex(OTHER) + value[32:]
    found = codes(on_hardware(platform, worker, **dict[str, Any]({name: other})))
    assert found == {"manifest.bound": "manifest_mismatch"}


def test_a_worker_that_names_another_manifest_than_its_hardware() -> None:
    """The image would halt; whoever replaced it is refused by what the hardware signed."""
    started = STARTED_FOR["snp"]
    affirmed(on_hardware("snp", attester(NAMING, DIGEST), **started))
    lying = attester({**CONFIGURATION, "manifest_sha256": OTHER}, OTHER)
    assert codes(on_hardware("snp", lying, **started)) == {"manifest.named": "manifest_other"}
    other = dataclasses.replace(EXPECTED, sha256=OTHER)
    assert codes(on_hardware("snp", lying, other, **started)) == {
        "manifest.bound": "manifest_mismatch"
    }
    assert codes(on_hardware("snp", lying, None, **started)) == {
        "manifest.bound": "manifest_mismatch"
    }


def test_a_worker_under_another_manifest_or_none() -> None:
    affirmed(on_tpm(attester(NAMING, DIGEST)))
    other = on_tpm(attester({**CONFIGURATION, "manifest_sha256": OTHER}, OTHER))
    assert codes(other) == {
        "manifest.named": "manifest_other",
        "manifest.bound": "manifest_mismatch",
    }
    assert codes(on_tpm(WITHOUT)) == {
        "manifest.named": "manifest_other",
        "manifest.bound": "manifest_mismatch",
    }


def test_a_claims_document_that_names_what_was_not_measured() -> None:
    affirmed(on_tpm(attester(NAMING, DIGEST)))
    for worker in (attester(CONFIGURATION, DIGEST), attester(NAMING, None)):
        assert codes(on_tpm(worker))["claims.consistent"] == "claims_mismatch"
    affirmed(on_hardware("snp", attester(NAMING, DIGEST), **STARTED_FOR["snp"]))
    worker = attester(CONFIGURATION, DIGEST)
    found = codes(on_hardware("snp", worker, **STARTED_FOR["snp"]))
    assert found == {"claims.consistent": "claims_mismatch"}


def test_only_the_manifests_digest_is_left_out_of_what_was_measured() -> None:
    affirmed(on_tpm(attester(NAMING, DIGEST)))
    changed = attester({**NAMING, "more": 1}, DIGEST)
    assert codes(on_tpm(changed))["software.configuration"] == "configuration_mismatch"


def test_without_a_manifest_nothing_is_left_out() -> None:
    """Reference values alone name the whole configuration, digest of the manifest included."""
    worker = attester(NAMING, DIGEST)
    result = affirmed(on_tpm(worker, None, reference_values=worker.reference_values))
    assert NOT_PROVEN_UNREAD in result.not_proven
    assert codes(on_tpm(worker, None)) == {"software.configuration": "configuration_mismatch"}


@pytest.mark.parametrize(
    "listed",
    [{}, {"demo": "0" * 64}, {"other": MODELS["demo"]}],
    ids=["none", "another digest", "another name"],
)
def test_a_model_that_the_manifest_does_not_list(listed: Mapping[str, str]) -> None:
    worker = attester(NAMING, DIGEST)
    affirmed(on_tpm(worker))
    found = codes(on_tpm(worker, dataclasses.replace(EXPECTED, models=listed)))
    assert found == {"manifest.models": "model_unlisted"}


@pytest.mark.parametrize("models", [(), (ModelClaim(name="demo", sha256=None),)])
def test_a_worker_that_names_no_model(models: tuple[ModelClaim, ...]) -> None:
    worker = attester(NAMING, DIGEST)
    started = STARTED_FOR["snp"]
    affirmed(on_hardware("snp", worker, **started))
    silent = documented(worker, dataclasses.replace(worker.claims_document, models=models))
    assert codes(on_hardware("snp", silent, **started))["manifest.models"] == "model_unlisted"


def test_an_engine_that_the_manifest_does_not_list() -> None:
    worker = attester(NAMING, DIGEST)
    affirmed(on_tpm(worker))
    affirmed(on_tpm(worker, dataclasses.replace(EXPECTED, engines=UNCHECKED)))
    for listed in ({("llama.cpp", "2")}, {("vllm", "1")}, set()):
        expected = dataclasses.replace(EXPECTED, engines=frozenset(listed))
        assert codes(on_tpm(worker, expected)) == {"manifest.engines": "engine_unlisted"}


def test_an_engine_that_does_not_say_what_it_is() -> None:
    affirmed(on_tpm(attester(NAMING, DIGEST)))
    for engines in ([], [{**ENGINE, "library": {}}], [{**ENGINE, "engine": None}], [ENGINE, 1]):
        configuration: JsonObject = {**CONFIGURATION, "engines": engines}  # type: ignore[dict-item]  # lists of objects
        worker = attester({**configuration, "manifest_sha256": DIGEST}, DIGEST)
        values = SimulatedAttester.make(now=NOW, configuration=configuration).reference_values
        found = codes(on_tpm(worker, reference_values=values))
        assert found["manifest.engines"] == "engine_unlisted"


@pytest.mark.parametrize(
    "terms",
    [{"receipts_keep_s": 599}, {"stream_bucket": 257}, {"body_bucket": 1025}],
    ids=lambda one: next(iter(one)),
)
def test_receipts_and_padding_beyond_the_manifests_bounds(terms: dict[str, Any]) -> None:
    worker = attester(NAMING, DIGEST)
    affirmed(on_tpm(worker))
    found = codes(on_tpm(worker, dataclasses.replace(EXPECTED, **terms)))
    assert found == {"manifest.serving": "serving_refused"}
    unchecked: dict[str, Any] = dict.fromkeys(terms, UNCHECKED)
    affirmed(on_tpm(worker, dataclasses.replace(EXPECTED, **unchecked)))


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({"egress": []}, True),
        ({"egress": ["log.example:443"]}, True),
        ({"egress": ["log.example:443", "other.example:443"]}, False),
        ({"egress": "log.example:443"}, False),
        ({"managed": False}, False),
        ({"isolation": {"mode": "none (unsafe)"}}, False),
        ({"isolation": {"mode": "sandbox-managed"}}, True),
        ({"isolation": {"mode": "sandboxed, almost"}}, False),
    ],
    ids=str,
)
def test_ways_out(changes: JsonObject, holds: bool) -> None:
    """Compared as the worker itself does before it starts: on the document alone."""
    from cloister.verifier.appraise.manifest import appraise_terms
    from cloister.verifier.ledger import Ledger

    expected = dataclasses.replace(EXPECTED, egress=frozenset({"log.example:443"}))
    configuration = {**NAMING, "engines": [{"engine": "llama.cpp"}], **changes}
    document = dataclasses.replace(
        attester(NAMING, DIGEST).claims_document,
        configuration=configuration,  # type: ignore[arg-type]  # of the parametrised members
    )
    ledger = Ledger()
    appraise_terms(document, expected, ledger)
    assert ledger.holds("manifest.serving") is holds


def test_a_policy_may_deny_a_manifest_or_who_signed_it() -> None:
    worker = attester(NAMING, DIGEST)
    affirmed(on_tpm(worker))
    for denied in (f"sha256:{DIGEST}", SIGNER):
        under = dataclasses.replace(policy.development(), denied=(denied,))
        assert codes(on_tpm(worker, policy=under)) == {"denied": "denied"}
        values = worker.reference_values
        if denied != SIGNER:
            alone = on_tpm(worker, None, policy=under, reference_values=values)
            assert codes(alone) == {"denied": "denied"}


def test_a_manifest_that_nobody_signed_is_said_to_be_that() -> None:
    unsigned = dataclasses.replace(EXPECTED, signed=False)
    worker = attester(NAMING, DIGEST)
    assert NOT_PROVEN_UNSIGNED in affirmed(on_tpm(worker, unsigned)).not_proven
    assert NOT_PROVEN_UNSIGNED not in affirmed(on_tpm(worker)).not_proven


def test_what_unauthenticated_evidence_says_affirms_no_term() -> None:
    """On hardware whose registers do not match, the document is anybody's word."""
    made = SimulatedHardware.make("snp", now=NOW, worker=attester(NAMING, DIGEST))
    other = SimulatedHardware.make(
        "snp", now=NOW, worker=attester(NAMING, DIGEST), measurement=bytes(48)
    )
    result = verify_report(
        other.report(NONCE),
        nonce=NONCE,
        policy=policy.development(),
        reference_values=made.reference_values,
        roots=other.roots,
        at=NOW,
        manifest=EXPECTED,
    )
    found = codes(result)
    assert found["software.registers"] == "measurement_mismatch"
    assert found["manifest.models"] == "unauthenticated"
    assert found["manifest.named"] == "unauthenticated"
