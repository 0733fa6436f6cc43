"""A client that knows a signer only: everything else comes from what they signed."""

from __future__ import annotations

import dataclasses
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.client.manifest_memory import FileMemory, ManifestMemory, ProcessMemory
from cloister.client.manifest_options import ManifestOptions, read_signer
from cloister.client.manifest_trust import ManifestTrust
from cloister.client.trust import make_verifier
from cloister.errors import (
    AppraisalError,
    AuthenticationError,
    CloisterError,
    ConfigurationError,
    UnsupportedError,
)
from cloister.evidence.report import ITEM_MANIFEST, MEDIA_TYPE_MANIFEST, EvidenceItem
from cloister.manifest import (
    DigestPin,
    ImageEntry,
    Manifest,
    ManifestPin,
    ModelEntry,
    SignedManifest,
    SignerPin,
    SigstoreOwner,
    UnsafeUnsignedManifest,
)
from cloister.strictjson import JsonObject
from cloister.testing.signed_manifests import (
    make_manifest,
    owners_of,
    sign_first,
    sign_update,
)
from cloister.testing.simulated_tpm import SimulatedAttester, default_configuration
from cloister.verifier import policy
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.result import AttestationResult, Finding
from support.manifests import ALICE, BOB, MALLORY

NOW = datetime(2026, 11, 3, 12, tzinfo=UTC)
NONCE = bytes(range(32))
CONFIGURATION = default_configuration()
MEASURED = SimulatedAttester.make(now=NOW, configuration=CONFIGURATION)
"""An installation as its owner measured it ahead of time, under no manifest."""
BY_ALICE = SignerPin(signers=(ALICE.owner,))


def image(values: ReferenceValues = MEASURED.reference_values, **fields: Any) -> ImageEntry:
    members = {"name": "worker", "version": "1", "debug": False, **fields}
    return ImageEntry(reference_values=values, **members)


def listing(**fields: Any) -> Manifest:
    (model,) = MEASURED.claims_document.models
    options: dict[str, Any] = {
        "owners": [ALICE],
        "models": [ModelEntry(name=model.name, format="gguf", sha256=str(model.sha256))],
        "images": [image()],
        "at": NOW - timedelta(days=1),
        **fields,
    }
    return make_manifest(**options)


SIGNED = sign_first(listing(), ALICE)


def report(under: SignedManifest | None, *, stapled: SignedManifest | None = None) -> bytes:
    """The report of a worker that runs under `under`, and shows that, or `stapled`."""
    worker = started(under)
    made = worker.attestation_report(NONCE)
    shown = stapled or under
    if shown is None:
        return made.encode()
    item = EvidenceItem(media_type=MEDIA_TYPE_MANIFEST, data=shown.encode())
    return dataclasses.replace(made, evidence={**made.evidence, ITEM_MANIFEST: item}).encode()


def started(under: SignedManifest | None) -> SimulatedAttester:
    digest = None if under is None else under.digest
    named: JsonObject = {} if digest is None else {"manifest_sha256": digest}
    made = SimulatedAttester.make(now=NOW, configuration={**CONFIGURATION, **named}, ca=MEASURED.ca)
    document = dataclasses.replace(made.claims_document, manifest_sha256=digest)
    keyset = dataclasses.replace(made.keyset, subject=document.subject)
    return dataclasses.replace(made, claims_document=document, keyset=keyset)


def trusting(
    pin: ManifestPin = BY_ALICE,
    *,
    memory: ManifestMemory | None = None,
    under: AppraisalPolicy | None = None,
    bundle: SignedManifest | None = None,
) -> ManifestTrust:
    return ManifestTrust(
        policy=under or policy.development(),
        roots=MEASURED.roots,
        pin=pin,
        memory=memory or ProcessMemory(),
        bundle=bundle,
    )


def ask(trust: ManifestTrust, data: bytes, at: datetime = NOW) -> AttestationResult:
    return trust.appraise_report(data, nonce=NONCE, at=at)


def affirmed(trust: ManifestTrust, data: bytes) -> AttestationResult:
    result = ask(trust, data)
    assert result.verdict is Finding.AFFIRMING, result.failures
    return result


def refused(
    trust: ManifestTrust, data: bytes, kind: type[CloisterError], code: str, at: datetime = NOW
) -> None:
    with pytest.raises(kind) as found:
        ask(trust, data, at)
    assert found.value.code == code


def test_who_knows_the_signer_knows_the_worker() -> None:
    result = affirmed(trusting(), report(SIGNED))
    (standing,) = [one.explanation for one in result.claims if one.name == "manifest.signed"]
    assert "alice (ed25519" in standing
    assert "version 1" in standing
    assert SIGNED.digest in standing
    assert result.require_affirming().development


def test_a_worker_is_believed_no_longer_than_its_manifest_is_in_force() -> None:
    assert affirmed(trusting(), report(SIGNED)).require_affirming().expires_at > NOW
    for seconds in (1, 60, policy.HOUR - 1):
        expires = NOW + timedelta(seconds=seconds)
        ending = listing()
        header = dataclasses.replace(ending.header, expires=expires)
        signed = sign_first(dataclasses.replace(ending, header=header), ALICE)
        found = affirmed(trusting(), report(signed)).require_affirming()
        assert found.expires_at == expires


def test_a_worker_without_a_manifest_is_refused() -> None:
    affirmed(trusting(), report(SIGNED))
    refused(trusting(), report(None), AuthenticationError, "manifest.missing")


def test_a_worker_that_shows_a_manifest_it_does_not_run_under_is_refused() -> None:
    """Somebody between puts a genuine manifest beside a worker that runs without it."""
    other = sign_first(listing(name="example/other"), ALICE)
    affirmed(trusting(), report(SIGNED))
    for under in (None, other):
        result = ask(trusting(), report(under, stapled=SIGNED))
        assert "manifest_other" in {claim.code for claim in result.failures}
        assert result.attester is None


def test_a_manifest_by_somebody_else_is_refused() -> None:
    affirmed(trusting(), report(SIGNED))
    foreign = sign_first(listing(owners=[MALLORY]), MALLORY)
    refused(trusting(), report(foreign), AuthenticationError, "manifest.signer")
    affirmed(trusting(SignerPin(signers=(MALLORY.owner,))), report(foreign))


def test_a_manifest_out_of_force_is_refused() -> None:
    short = sign_first(listing(lifetime=timedelta(days=2)), ALICE)
    affirmed(trusting(), report(short))
    refused(
        trusting(),
        report(short),
        AuthenticationError,
        "manifest.expired",
        at=NOW + timedelta(days=1),
    )


@pytest.mark.parametrize("name", ["accept_development", "accept_debug", "accept_devtools"])
def test_a_strict_client_refuses_a_manifest_that_permits_development_or_debug(name: str) -> None:
    permitting = sign_first(listing(policy={name: True}), ALICE)
    asking = dataclasses.replace(policy.development(), accept_devtools=True, accept_debug=True)
    affirmed(trusting(under=asking), report(permitting))
    strict = dataclasses.replace(asking, **dict[str, Any]({name: False}))
    refused(trusting(under=strict), report(permitting), AppraisalError, "manifest.permits")
    refused(trusting(under=policy.strict()), report(permitting), AppraisalError, "manifest.permits")


def test_a_manifest_makes_no_development_platform_affirm() -> None:
    affirmed(trusting(), report(SIGNED))
    result = ask(trusting(under=policy.strict()), report(SIGNED))
    assert "development_refused" in {claim.code for claim in result.failures}


def test_a_manifest_narrows_the_clients_policy() -> None:
    affirmed(trusting(), report(SIGNED))
    apart = sign_first(listing(policy={"separation": ["process-per-client"]}), ALICE)
    result = ask(trusting(), report(apart))
    assert [claim.code for claim in result.failures] == ["separation_refused"]
    affirmed_id = affirmed(trusting(), report(SIGNED)).policy_id
    assert result.policy_id != affirmed_id == policy.development().policy_id


def test_a_worker_runs_from_one_of_the_images_and_not_from_parts_of_two() -> None:
    other = SimulatedAttester.make(
        now=NOW,
        configuration=CONFIGURATION,
        components=[
            one if one.kind != "native" else dataclasses.replace(one, digest="sha256:" + "9" * 64)
            for one in MEASURED.components[:-1]
        ],
        ca=MEASURED.ca,
    )
    newer = image(other.reference_values, version="2")
    affirmed(trusting(), report(sign_first(listing(images=[newer, image()]), ALICE)))
    affirmed(trusting(), report(sign_first(listing(images=[image(), newer]), ALICE)))
    result = ask(trusting(), report(sign_first(listing(images=[newer]), ALICE)))
    assert "component_mismatch" in {claim.code for claim in result.failures}
    none = ask(trusting(), report(sign_first(listing(images=[]), ALICE)))
    assert none.verdict is not Finding.AFFIRMING


# What is remembered


def test_an_older_manifest_is_refused_once_a_newer_was_seen() -> None:
    memory = ProcessMemory()
    newer = sign_update(SIGNED, ALICE)
    affirmed(trusting(memory=memory), report(SIGNED))
    affirmed(trusting(memory=memory), report(newer))
    refused(trusting(memory=memory), report(SIGNED), AuthenticationError, "manifest.rollback")
    affirmed(trusting(), report(SIGNED))


def test_a_fleet_is_replaced_one_worker_after_the_other(tmp_path: Path) -> None:
    """Until the owner's time a client goes back and forth between old and new workers."""
    update = sign_update(SIGNED, ALICE, overlap=timedelta(days=1, minutes=10))
    until = NOW + timedelta(minutes=10)
    for memory in (ProcessMemory(), FileMemory(tmp_path / "m.json")):
        affirmed(trusting(memory=memory), report(SIGNED))
        affirmed(trusting(memory=memory), report(update))
        # The file is read anew, as by another process.
        before = affirmed(trusting(memory=memory), report(SIGNED)).require_affirming()
        assert before.expires_at == until
        affirmed(trusting(memory=memory), report(update))
        code = "manifest.rollback"
        refused(trusting(memory=memory), report(SIGNED), AuthenticationError, code, at=until)
        ask(trusting(memory=memory), report(update), at=until).require_affirming()
        # Once a version without an overlap was seen, neither of the two older ones is accepted.
        affirmed(trusting(memory=memory), report(sign_update(update, ALICE)))
        refused(trusting(memory=memory), report(SIGNED), AuthenticationError, code)
        refused(trusting(memory=memory), report(update), AuthenticationError, code)


def test_a_manifest_is_remembered_whatever_becomes_of_the_worker() -> None:
    memory = ProcessMemory()
    newer = sign_update(SIGNED, ALICE)
    ask(trusting(memory=memory), report(None, stapled=newer))
    refused(trusting(memory=memory), report(SIGNED), AuthenticationError, "manifest.rollback")


def test_what_is_refused_is_not_remembered() -> None:
    memory = ProcessMemory()
    forged = sign_update(sign_first(listing(), ALICE), MALLORY, owners=owners_of([MALLORY]))
    refused(trusting(memory=memory), report(forged), AuthenticationError, "manifest.threshold")
    assert memory.recall(BY_ALICE.pin_id) is None


def test_a_fork_by_a_removed_owner_is_refused() -> None:
    memory = ProcessMemory()
    old = sign_first(listing(owners=[ALICE, BOB]), ALICE, BOB)
    current = sign_update(old, BOB, owners=owners_of([BOB]))
    fork = sign_update(sign_update(old, ALICE, owners=owners_of([ALICE])), ALICE)
    affirmed(trusting(memory=memory), report(old))
    affirmed(trusting(memory=memory), report(current))
    refused(trusting(memory=memory), report(fork), AuthenticationError, "manifest.fork")
    result = affirmed(trusting(memory=memory), report(sign_update(current, BOB)))
    (standing,) = [one.explanation for one in result.claims if one.name == "manifest.signed"]
    assert "bob (ed25519" in standing
    assert "handed over" in standing


def test_a_bundle_of_ones_own_stands_for_the_workers() -> None:
    newer = sign_update(SIGNED, ALICE)
    mine = trusting(bundle=newer)
    affirmed(mine, report(newer, stapled=SIGNED))
    result = ask(mine, report(SIGNED))
    assert "manifest_other" in {claim.code for claim in result.failures}


def test_one_digest_and_no_other() -> None:
    pin = DigestPin(sha256=SIGNED.digest)
    affirmed(trusting(pin), report(SIGNED))
    refused(
        trusting(pin), report(sign_update(SIGNED, ALICE)), AuthenticationError, "manifest.digest"
    )


def test_an_unsigned_manifest_takes_a_name_that_says_so(caplog: pytest.LogCaptureFixture) -> None:
    foreign = sign_first(listing(owners=[MALLORY]), MALLORY)
    with caplog.at_level(logging.WARNING):
        result = affirmed(trusting(UnsafeUnsignedManifest()), report(foreign))
    assert "unsigned" in caplog.text
    assert any("Nobody signed" in sentence for sentence in result.not_proven)


# Options


@pytest.fixture
def alice_pem(tmp_path: Path) -> Path:
    path = tmp_path / "alice.pem"
    public = ALICE.private_key.public_key()
    path.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def test_options_make_the_same_verifier(alice_pem: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.json"
    bundle.write_bytes(SIGNED.encode())
    common: dict[str, Any] = {"roots": MEASURED.roots, "policy": policy.development()}
    for options in (
        ManifestOptions(signers=[alice_pem], memory=tmp_path / "m.json"),
        ManifestOptions(signers=[ALICE.owner], memory=ProcessMemory(), bundle=bundle),
        ManifestOptions(bundle=bundle),
        ManifestOptions(digest=SIGNED.digest),
        ManifestOptions(unsafe_unsigned=True, bundle=bundle),
    ):
        verifier = make_verifier(options, **common)
        result = verifier.appraise_report(report(SIGNED), nonce=NONCE, at=NOW)
        assert result.verdict is Finding.AFFIRMING
    assert (tmp_path / "m.json").exists()
    high = ManifestOptions(signers=[alice_pem], minimum_version=2, memory=ProcessMemory())
    with pytest.raises(AuthenticationError):
        make_verifier(high, **common).appraise_report(report(SIGNED), nonce=NONCE, at=NOW)
    named = ManifestOptions(signers=[alice_pem], name="other", memory=ProcessMemory())
    with pytest.raises(AuthenticationError):
        make_verifier(named, **common).appraise_report(report(SIGNED), nonce=NONCE, at=NOW)


def test_the_default_policy_is_the_strict_one(alice_pem: Path) -> None:
    options = ManifestOptions(signers=[alice_pem], memory=ProcessMemory())
    verifier = make_verifier(options, roots=MEASURED.roots)
    assert isinstance(verifier, ManifestTrust)
    assert verifier.policy == policy.strict()


@pytest.mark.parametrize(
    "options",
    [
        {"minimum_version": 2},
        {"name": "x"},
        {"digest": SIGNED.digest, "minimum_version": 2},
        {"digest": "nonsense"},
        {"signers": [ALICE.owner], "digest": SIGNED.digest},
        {"signers": [ALICE.owner], "unsafe_unsigned": True},
        {"signers": ["/no/such/file.pem"]},
        {"signers": ["sigstore:somebody"]},
        {"signers": [ALICE.owner], "minimum_version": 0},
        {"bundle": "/no/such/bundle.json"},
    ],
    ids="+".join,
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        make_verifier(ManifestOptions(**options), roots=MEASURED.roots)


def test_reference_values_come_from_the_manifest_and_nowhere_else(tmp_path: Path) -> None:
    options = ManifestOptions(signers=[ALICE.owner], memory=ProcessMemory())
    make_verifier(options, roots=MEASURED.roots)
    with pytest.raises(ConfigurationError, match="come from the manifest"):
        make_verifier(options, reference_values=MEASURED.reference_values)
    make_verifier(options, kit=tmp_path)
    (tmp_path / "reference-values.json").write_text(MEASURED.reference_values.dump_json())
    with pytest.raises(ConfigurationError, match="come from the manifest"):
        make_verifier(options, kit=tmp_path)


def test_signers_by_identity_are_written_in_words() -> None:
    owner = read_signer("sigstore:https://github.com/a/b,https://token.example")
    assert isinstance(owner, SigstoreOwner)
    assert (owner.subject, owner.issuer) == ("https://github.com/a/b", "https://token.example")


def test_a_signer_by_identity_cannot_be_checked_without_a_root() -> None:
    owner = SigstoreOwner(name="ci", subject="ci@example.com", issuer="https://token.example")
    signed = sign_first(listing(owners=[ALICE, owner]), ALICE)
    affirmed(trusting(), report(signed))
    refused(
        trusting(SignerPin(signers=(owner,))),
        report(signed),
        AuthenticationError,
        "manifest.signer",
    )
    from cloister.manifest.bundle import Link
    from cloister.manifest.dsse import Signature
    from cloister.manifest.signing import with_signature

    made = Signature(key_id=owner.key_id, data=b"{}")
    envelope = with_signature(signed.links[0].envelope, made)
    both = dataclasses.replace(signed, links=(Link.of(envelope),))
    refused(
        trusting(SignerPin(signers=(owner,))), report(both), UnsupportedError, "manifest.identities"
    )
