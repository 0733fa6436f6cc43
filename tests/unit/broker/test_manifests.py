"""Secrets that are released under a manifest: whose, which version, and for which worker."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cloister.broker.desk import Desk
from cloister.broker.policy import ManifestTerms, ResourcePolicy, load_json, load_toml
from cloister.broker.store import Revoked
from cloister.errors import AuthenticationError, ConfigurationError, KeyReleaseDenied
from cloister.manifest import (
    ImageEntry,
    Manifest,
    ModelEntry,
    SignedManifest,
    SignerPin,
    SigstoreOwner,
)
from cloister.manifest.bundle import Link
from cloister.manifest.dsse import Signature
from cloister.manifest.signing import with_signature
from cloister.testing.signed_manifests import make_manifest, owners_of, sign_first, sign_update
from cloister.testing.simulated_tpm import SimulatedAttester, default_configuration
from cloister.verifier import policy as policies
from cloister.worker.key_release import Prover
from support.broker import CLOCK_START, SECRET, WEIGHTS, Bench, bench, prover_of
from support.manifests import ALICE, BOB, MALLORY

CONFIGURATION = default_configuration()
MEASURED = SimulatedAttester.make(now=CLOCK_START, configuration=CONFIGURATION)


def listing(**fields: Any) -> Manifest:
    (model,) = MEASURED.claims_document.models
    image = ImageEntry(
        name="worker", version="1", debug=False, reference_values=MEASURED.reference_values
    )
    options: dict[str, Any] = {
        "owners": [ALICE, BOB],
        "models": [ModelEntry(name=model.name, format="gguf", sha256=str(model.sha256))],
        "images": [image],
        "at": CLOCK_START - timedelta(days=1),
        **fields,
    }
    return make_manifest(**options)


SIGNED = sign_first(listing(), ALICE)
SECOND = sign_update(SIGNED, ALICE)


def under(signed: SignedManifest, *, shown: SignedManifest | None = None) -> Prover:
    """A worker that was started under `signed`, and brings that bundle or `shown`."""
    configuration = {**CONFIGURATION, "manifest_sha256": signed.digest}
    made = SimulatedAttester.make(now=CLOCK_START, configuration=configuration, ca=MEASURED.ca)
    document = dataclasses.replace(made.claims_document, manifest_sha256=signed.digest)
    keyset = dataclasses.replace(made.keyset, subject=document.subject)
    worker = dataclasses.replace(made, claims_document=document, keyset=keyset)
    return prover_of(worker, manifest=(shown or signed).encode())


def terms(**changes: Any) -> ResourcePolicy:
    pin = SignerPin(**{"signers": (ALICE.owner,), **changes.pop("pin", {})})
    return ResourcePolicy(
        appraisal=changes.pop("appraisal", policies.development()),
        manifest=ManifestTerms(pin=pin, **changes),
        reference_values=None,
    )


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path, attester=MEASURED) as made:
        made.store.set_policy(WEIGHTS, terms())
        yield made


def denied(at: Bench, prover: Prover) -> tuple[str, str | None]:
    with pytest.raises(KeyReleaseDenied):
        at.release(prover=prover)
    return at.denial()


def test_a_worker_under_the_owner_s_manifest_gets_the_key(at: Bench) -> None:
    assert at.release(prover=under(SIGNED)).secret == SECRET
    attested = [entry for entry in at.log() if entry["event"] == "attested"]
    assert attested[-1]["detail"]["manifest"] == f"sha256:{SIGNED.digest}"
    assert [entry["event"] for entry in at.log()].count("manifest.accepted") == 1


REFUSED: dict[str, tuple[SignedManifest, str]] = {
    "signed by nobody": (sign_first(listing()), "manifest.signer"),
    "signed by somebody else": (
        sign_first(listing(owners=[MALLORY]), MALLORY),
        "manifest.signer",
    ),
    "expired": (
        sign_first(listing(lifetime=timedelta(hours=1)), ALICE),
        "manifest.expired",
    ),
    "issued later": (
        sign_first(listing(at=CLOCK_START + timedelta(days=1)), ALICE),
        "manifest.not_yet",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_manifest_is_refused(at: Bench, case: str) -> None:
    assert at.release(prover=under(SIGNED)).secret == SECRET
    # Under another pin nothing is remembered: what is refused here is the manifest itself.
    at.store.set_policy(WEIGHTS, terms(pin={"name": "example/chat"}))
    signed, because = REFUSED[case]
    assert denied(at, under(signed)) == ("manifest", because)


def test_no_manifest_is_refused(at: Bench) -> None:
    assert at.release(prover=under(SIGNED)).secret == SECRET
    bare = dataclasses.replace(under(SIGNED), manifest=None)
    assert denied(at, bare) == ("manifest", "manifest.missing")
    broken = dataclasses.replace(under(SIGNED), manifest=b"{}")
    assert denied(at, broken)[0] == "manifest"


def test_a_worker_that_was_started_under_another_manifest_is_refused(at: Bench) -> None:
    """It brings a good bundle, and runs under something else."""
    assert at.release(prover=under(SIGNED)).secret == SECRET
    other = sign_first(listing(owners=[MALLORY]), MALLORY)
    code, because = denied(at, under(other, shown=SIGNED))
    assert code == "evidence"
    assert because


def test_a_worker_under_no_manifest_is_refused(at: Bench) -> None:
    assert at.release(prover=under(SIGNED)).secret == SECRET
    assert denied(at, prover_of(MEASURED, manifest=SIGNED.encode()))[0] == "evidence"


def test_workers_are_replaced_one_after_the_other(at: Bench) -> None:
    """Both versions get the key until the time that the owner signed, then the new one alone."""
    update = sign_update(SIGNED, ALICE, overlap=timedelta(days=1, minutes=10))
    assert at.release(prover=under(SIGNED)).secret == SECRET
    assert at.release(prover=under(update)).secret == SECRET
    assert at.release(prover=under(SIGNED)).secret == SECRET
    assert at.release(prover=under(update)).secret == SECRET
    accepted = [entry["detail"] for entry in at.log() if entry["event"] == "manifest.accepted"]
    assert [one["version"] for one in accepted] == [1, 2]
    at.clock.now += 600
    assert at.release(prover=under(update)).secret == SECRET
    assert denied(at, under(SIGNED)) == ("manifest", "manifest.rollback")
    # Another first version by the same owner was never named by the second.
    other = sign_first(listing(name="example/chat", at=CLOCK_START - timedelta(hours=1)), ALICE)
    at.clock.now -= 600
    assert denied(at, under(other)) == ("manifest", "manifest.rollback")


def test_an_older_manifest_is_refused_once_a_newer_was_accepted(at: Bench) -> None:
    assert at.release(prover=under(SIGNED)).secret == SECRET
    assert at.release(prover=under(SECOND)).secret == SECRET
    code, because = denied(at, under(SIGNED))
    assert (code, because) == ("manifest", "manifest.rollback")
    assert at.release(prover=under(SECOND)).secret == SECRET


def test_a_fork_is_refused(at: Bench) -> None:
    """An owner who was removed signs another second version on top of the first."""
    without_bob = sign_update(SIGNED, ALICE, owners=owners_of([ALICE]))
    fork = sign_update(SIGNED, BOB, owners=owners_of([BOB]))
    assert at.release(prover=under(without_bob)).secret == SECRET
    assert denied(at, under(fork))[0] == "manifest"
    later = sign_update(without_bob, BOB)
    assert denied(at, under(later))[0] == "manifest"
    assert at.release(prover=under(without_bob)).secret == SECRET


def test_a_minimum_version_holds(at: Bench) -> None:
    at.store.set_policy(WEIGHTS, terms(pin={"minimum_version": 2}))
    assert at.release(prover=under(SECOND)).secret == SECRET
    assert denied(at, under(SIGNED))[0] == "manifest"


def test_named_digests_are_the_only_ones(at: Bench) -> None:
    at.store.set_policy(WEIGHTS, terms(digests=(SIGNED.digest,)))
    assert at.release(prover=under(SIGNED)).secret == SECRET
    assert denied(at, under(SECOND)) == ("manifest", "manifest.digest")


def test_a_manifest_that_permits_development_is_refused_by_who_does_not(at: Bench) -> None:
    lax = sign_first(listing(policy={"accept_development": True}), ALICE)
    assert at.release(prover=under(SIGNED)).secret == SECRET
    strict = dataclasses.replace(policies.development(), accept_development=False)
    at.store.set_policy(WEIGHTS, terms(appraisal=strict, pin={"name": "example/chat"}))
    assert denied(at, under(lax)) == ("manifest", "manifest.permits")


@pytest.mark.parametrize("what", ["manifest", "signer"])
def test_a_revoked_manifest_or_signer(at: Bench, what: str) -> None:
    assert at.release(prover=under(SIGNED)).secret == SECRET
    value = f"sha256:{SIGNED.digest}" if what == "manifest" else ALICE.owner.key_id
    at.store.revoke(Revoked.MANIFEST, value, "a test")
    assert denied(at, under(SIGNED)) == ("revoked", "manifest.revoked")


def test_policies_read_back() -> None:
    for policy in (terms(), terms(digests=("ab" * 32,), pin={"minimum_version": 7})):
        assert load_json(policy.encode()) == policy


TOML = b"""
appraisal = "strict"
models = "unchecked"
stock_clients = false
[manifest]
signers = [{name = "owner", algorithm = "ed25519", public_key = "%s"}]
threshold = 1
name = "unchecked"
minimum_version = 3
digests = "unchecked"
"""
KEY = b"q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s="


def test_a_policy_is_written_in_toml() -> None:
    read = load_toml(TOML % KEY)
    assert read.appraisal == policies.strict()
    assert isinstance(read.manifest, ManifestTerms)
    assert read.manifest.pin.minimum_version == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b'"strict"', b'"lax"'),
        lambda text: text.replace(b"stock_clients = false", b""),
        lambda text: text.replace(b"threshold = 1", b"threshold = 2"),
        lambda text: text.replace(b"minimum_version = 3", b"minimum_version = 0"),
        lambda text: text.replace(b'models = "unchecked"', b"models = []"),
        lambda text: text + b"more = 1\n",
        lambda text: text[: text.index(b"[manifest]")] + b'manifest = "unchecked"',
        lambda text: text[: text.index(b"[manifest]")],
        lambda text: b"\xff",
        lambda text: b"",
    ],
)
def test_a_policy_that_leaves_something_out_is_refused(change: Any) -> None:
    good = TOML % KEY
    load_toml(good)
    with pytest.raises(ConfigurationError) as refused:
        load_toml(change(good))
    assert refused.value.code in {"broker.policy", "manifest.pin"}


# Owners by identity


CI = SigstoreOwner(name="ci", subject="ci@example.com", issuer="https://token.example")


class StandIn:
    """Holds whatever says ``good`` for a signature. What Sigstore's library makes of bundles is in
    tests/unit/manifest/test_sigstore_identity.py."""

    def verify(self, owner: SigstoreOwner, signature: bytes, payload: bytes) -> None:
        assert owner.key_id == CI.key_id
        assert payload
        if signature != b"good":
            raise AuthenticationError("it does not hold", code="manifest.signature")


def by_identity(signature: bytes) -> SignedManifest:
    """A manifest that Alice signed, and the identity with her."""
    signed = sign_first(listing(owners=[ALICE, CI]), ALICE)
    envelope = with_signature(signed.links[0].envelope, Signature(key_id=CI.key_id, data=signature))
    return dataclasses.replace(signed, links=(Link.of(envelope),))


PINS: dict[str, dict[str, Any]] = {
    "the identity": {"signers": (CI,)},
    "both of them": {"signers": (ALICE.owner, CI), "threshold": 2},
}


@pytest.mark.parametrize("pinned", PINS)
def test_an_identity_s_signature_counts_as_it_does_for_clients(at: Bench, pinned: str) -> None:
    at.store.set_policy(WEIGHTS, terms(pin=PINS[pinned]))
    good, forged = by_identity(b"good"), by_identity(b"bad")
    counting = dataclasses.replace(
        at, desk=Desk(at.store, roots=at.attester.roots, identities=StandIn())
    )
    assert counting.release(prover=under(good)).secret == SECRET
    assert denied(counting, under(forged)) == ("manifest", "manifest.signature")
    # Under another pin nothing is remembered: what Alice alone signed is refused by itself.
    at.store.set_policy(WEIGHTS, terms(pin={**PINS[pinned], "name": "example/chat"}))
    assert denied(counting, under(SIGNED)) == ("manifest", "manifest.signer")


@pytest.mark.parametrize("pinned", PINS)
def test_a_broker_without_a_trusted_root_says_so(at: Bench, pinned: str) -> None:
    good = by_identity(b"good")
    at.store.set_policy(WEIGHTS, terms())
    assert at.release(prover=under(good)).secret == SECRET  # Alice's alone is enough here
    at.store.set_policy(WEIGHTS, terms(pin=PINS[pinned]))
    assert denied(at, under(good)) == ("manifest", "manifest.identities")
