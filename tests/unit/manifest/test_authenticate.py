"""Who stands behind a manifest: signatures, thresholds, updates, and what was seen before."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest

from cloister.errors import (
    AuthenticationError,
    ConfigurationError,
    MalformedError,
    UnsupportedError,
)
from cloister.manifest import (
    AuthenticatedManifest,
    DigestPin,
    ManifestPin,
    Owner,
    Remembered,
    SignedManifest,
    SignerPin,
    SigstoreOwner,
    UnsafeUnsignedManifest,
    authenticate_bundle,
    load_bundle,
)
from cloister.manifest.dsse import Signature
from cloister.manifest.signing import (
    Signer,
    add_signature,
    envelope_of,
    updated,
    with_signature,
)
from cloister.manifest.terms import standing
from cloister.testing.signed_manifests import (
    make_manifest,
    next_version,
    owners_of,
    sign_first,
    sign_update,
)
from support.manifests import ALICE, AT, BOB, CAROL, ISSUED, MALLORY, full_manifest

BY_ALICE = SignerPin(signers=(ALICE.owner,))


def first(*signers: Signer, **options: Any) -> SignedManifest:
    owners = options.pop("owners", [ALICE])
    return sign_first(make_manifest(owners=owners, at=ISSUED, **options), *signers)


def authenticate(
    signed: SignedManifest,
    pin: ManifestPin = BY_ALICE,
    *,
    at: datetime = AT,
    remembered: Remembered | None = None,
) -> AuthenticatedManifest:
    """As a relying party does: what is served, from its bytes."""
    return authenticate_bundle(load_bundle(signed.encode()), pin, at=at, remembered=remembered)


def refused(signed: SignedManifest, code: str, pin: ManifestPin = BY_ALICE, **options: Any) -> None:
    with pytest.raises(AuthenticationError) as found:
        authenticate(signed, pin, **options)
    assert found.value.code == code, found.value


def resigned(signed: SignedManifest, *signatures: Signature) -> SignedManifest:
    """`signed` with other signatures under the last version."""
    last = signed.links[-1]
    envelope = dataclasses.replace(last.envelope, signatures=signatures)
    return dataclasses.replace(
        signed, links=(*signed.links[:-1], dataclasses.replace(last, envelope=envelope))
    )


# Signatures


@pytest.mark.parametrize("owner", [ALICE, CAROL], ids=lambda one: one.owner.algorithm.value)
def test_an_owners_signature_is_enough(owner: Any) -> None:
    signed = first(owner, owners=[owner])
    found = authenticate(signed, SignerPin(signers=(owner.owner,)))
    assert found.digest == signed.digest
    assert found.signers == (owner.owner,)
    assert found.handed_over_from is None


@pytest.mark.parametrize("owner", [ALICE, CAROL], ids=lambda one: one.owner.algorithm.value)
def test_an_altered_manifest_is_refused(owner: Any) -> None:
    signed = first(owner, owners=[owner])
    pin = SignerPin(signers=(owner.owner,))
    authenticate(signed, pin)
    other = first(owner, owners=[owner], name="example/other")
    altered = resigned(other, *signed.links[-1].envelope.signatures)
    refused(altered, "manifest.signature", pin)


def test_an_unsigned_manifest_is_refused() -> None:
    signed = first(ALICE)
    authenticate(signed)
    refused(resigned(signed), "manifest.signer")
    refused(resigned(signed), "manifest.threshold", DigestPin(sha256=signed.digest))


def test_a_foreign_owners_manifest_is_refused() -> None:
    authenticate(first(ALICE))
    refused(first(MALLORY, owners=[MALLORY]), "manifest.signer")


def test_a_signature_by_who_is_no_owner_does_not_count() -> None:
    """Whoever lists others as owners, and signs too, has no manifest of theirs."""
    authenticate(first(ALICE))
    refused(first(ALICE, owners=[BOB]), "manifest.signer")
    refused(first(MALLORY, owners=[ALICE]), "manifest.signer")


def test_a_signature_under_anothers_name_is_refused() -> None:
    signed = first(ALICE)
    made = add_signature(signed.links[0].envelope, MALLORY).signatures[-1]
    forged = dataclasses.replace(made, key_id=ALICE.key_id)
    refused(resigned(signed, forged), "manifest.signature")


def test_a_signature_over_another_type_is_refused() -> None:
    """The type is part of what is signed, so that nothing signed for another purpose passes."""
    signed = first(ALICE)
    envelope = dataclasses.replace(signed.links[0].envelope, payload_type="application/x.other")
    made = add_signature(envelope, ALICE).signatures[-1]
    refused(resigned(signed, made), "manifest.signature")
    plain = Signature(key_id=ALICE.key_id, data=ALICE.sign(envelope.payload))
    refused(resigned(signed, plain), "manifest.signature")


def test_as_many_owners_have_to_sign_as_the_manifest_says() -> None:
    manifest = full_manifest()
    authenticate(sign_first(manifest, ALICE, CAROL))
    refused(sign_first(manifest, ALICE), "manifest.threshold")
    refused(sign_first(manifest, ALICE, MALLORY), "manifest.threshold")
    once = sign_first(manifest, ALICE)
    twice = (*once.links[0].envelope.signatures, *once.links[0].envelope.signatures)
    with pytest.raises(MalformedError, match="two signatures"):
        load_bundle(resigned(once, *twice).encode())


def test_as_many_of_the_pinned_have_to_sign_as_the_pin_says() -> None:
    both = SignerPin(signers=(ALICE.owner, BOB.owner), threshold=2)
    authenticate(sign_first(full_manifest(), ALICE, BOB), both)
    refused(sign_first(full_manifest(), ALICE, CAROL), "manifest.signer", both)


# What was pinned


def test_the_version_is_at_least_the_pinned() -> None:
    signed = sign_update(first(ALICE), ALICE)
    authenticate(signed, dataclasses.replace(BY_ALICE, minimum_version=2))
    refused(signed, "manifest.version", dataclasses.replace(BY_ALICE, minimum_version=3))


def test_the_name_is_the_pinned() -> None:
    signed = first(ALICE, name="acme/production")
    authenticate(signed, dataclasses.replace(BY_ALICE, name="acme/production"))
    refused(signed, "manifest.name", dataclasses.replace(BY_ALICE, name="acme/other"))


def test_the_digest_is_the_pinned() -> None:
    signed = first(ALICE)
    pin = DigestPin(sha256=signed.digest)
    authenticate(signed, pin)
    refused(sign_update(signed, ALICE), "manifest.digest", pin)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SignerPin(signers=()),
        lambda: SignerPin(signers=(ALICE.owner,), threshold=0),
        lambda: SignerPin(signers=(ALICE.owner,), threshold=2),
        lambda: SignerPin(signers=(ALICE.owner, ALICE.owner)),
        lambda: SignerPin(signers=(ALICE.owner,), minimum_version=0),
        lambda: DigestPin(sha256="A" * 64),
        lambda: DigestPin(sha256=""),
    ],
)
def test_a_pin_that_pins_nothing_cannot_be_made(make: Any) -> None:
    with pytest.raises(ConfigurationError) as found:
        make()
    assert found.value.code == "manifest.pin"


# Time


def test_a_manifest_is_in_force_for_a_time() -> None:
    signed = first(ALICE, lifetime=timedelta(days=10))
    authenticate(signed, at=ISSUED)
    authenticate(signed, at=ISSUED + timedelta(days=10, seconds=-1))
    refused(signed, "manifest.expired", at=ISSUED + timedelta(days=10))
    refused(signed, "manifest.not_yet", at=ISSUED - timedelta(minutes=6))


def test_versions_before_the_last_may_have_expired() -> None:
    signed = first(ALICE, lifetime=timedelta(days=10))
    later = next_version(signed)
    header = dataclasses.replace(later.header, expires=ISSUED + timedelta(days=90))
    longer = dataclasses.replace(later, header=header)
    updated = dataclasses.replace(
        signed, links=(*signed.links, *sign_first_link(longer, ALICE)), manifest=longer
    )
    authenticate(updated, at=ISSUED + timedelta(days=20))


def sign_first_link(manifest: Any, *signers: Signer) -> Any:
    from cloister.manifest.bundle import Link

    return (Link.of(envelope_of(manifest, *signers)),)


# Updates


def test_an_owner_hands_over_to_another() -> None:
    signed = first(ALICE)
    handed = sign_update(signed, ALICE, BOB, owners=owners_of([BOB]))
    later = sign_update(handed, BOB)
    found = authenticate(later)
    assert found.signers == (BOB.owner,)
    assert found.handed_over_from == 1
    assert authenticate(later, SignerPin(signers=(BOB.owner,))).handed_over_from is None


@pytest.mark.parametrize(
    ("signers", "why"),
    [
        ((BOB,), "nobody who owned the version before"),
        ((ALICE,), "nobody of the new owners"),
        ((MALLORY,), "nobody at all"),
    ],
)
def test_an_update_is_signed_by_old_and_new_owners(signers: Sequence[Signer], why: str) -> None:
    signed = first(ALICE)
    authenticate(sign_update(signed, ALICE, BOB, owners=owners_of([BOB])))
    refused(
        sign_update(signed, *signers, owners=owners_of([BOB])),
        "manifest.threshold",
        remembered=Remembered(version=1, sha256=signed.digest),
    )


def test_an_update_needs_as_many_as_the_version_before_it_says() -> None:
    signed = sign_first(full_manifest(), ALICE, BOB)
    seen = Remembered(version=1, sha256=signed.digest)
    alone = owners_of([ALICE])
    authenticate(sign_update(signed, ALICE, BOB, owners=alone), remembered=seen)
    refused(sign_update(signed, ALICE, owners=alone), "manifest.threshold", remembered=seen)


def removed_alice() -> tuple[SignedManifest, SignedManifest]:
    """Version 1 by Alice and Bob, one of two; version 2, in which Alice is no owner any more."""
    signed = first(ALICE, BOB, owners=[ALICE, BOB])
    return signed, sign_update(signed, BOB, owners=owners_of([BOB]))


def test_a_removed_owner_makes_no_update() -> None:
    _, current = removed_alice()
    pin = SignerPin(signers=(BOB.owner,))
    authenticate(sign_update(current, BOB), pin)
    for seen in (None, authenticate(current, pin).remembered):
        forged = sign_update(current, ALICE)
        forged_owner = sign_update(current, ALICE, owners=owners_of([ALICE, BOB]))
        for one in (forged, forged_owner):
            with pytest.raises(AuthenticationError) as found:
                authenticate(one, pin, remembered=seen)
            assert found.value.code == "manifest.threshold"


def test_a_removed_owner_makes_no_fork() -> None:
    """From a version in which she still was an owner, with as high a version as she likes."""
    old, current = removed_alice()
    fork = sign_update(old, ALICE, owners=owners_of([ALICE]))
    higher = sign_update(sign_update(fork, ALICE), ALICE)
    for pin in (
        SignerPin(signers=(BOB.owner,)),
        BY_ALICE,
        SignerPin(signers=(ALICE.owner, BOB.owner)),
    ):
        seen = authenticate(current, pin).remembered
        assert seen == Remembered(version=2, sha256=current.digest)
        authenticate(current, pin, remembered=seen)
        authenticate(sign_update(current, BOB), pin, remembered=seen)
        refused(fork, "manifest.fork", pin, remembered=seen)
        refused(higher, "manifest.fork", pin, remembered=seen)


def test_who_pins_the_removed_owner_and_remembers_nothing_is_told_by_the_minimum() -> None:
    """The one case in which nothing but the client's own pin helps (threat model)."""
    old, current = removed_alice()
    fork = sign_update(old, ALICE, owners=owners_of([ALICE]))
    authenticate(fork)
    at_least_two = dataclasses.replace(BY_ALICE, minimum_version=2)
    refused(old, "manifest.version", at_least_two)
    refused(fork, "manifest.digest", DigestPin(sha256=current.digest))


# What was seen before


def test_an_older_version_is_refused() -> None:
    signed = first(ALICE)
    updated = sign_update(signed, ALICE)
    seen = authenticate(updated).remembered
    authenticate(updated, remembered=seen)
    refused(signed, "manifest.rollback", remembered=seen)


def test_another_manifest_of_the_same_version_is_refused() -> None:
    signed = first(ALICE)
    one, other = (
        sign_update(signed, ALICE),
        sign_update(signed, ALICE, models=full_manifest().models),
    )
    assert one.digest != other.digest
    seen = authenticate(one).remembered
    authenticate(one, remembered=seen)
    refused(other, "manifest.fork", remembered=seen)
    refused(sign_update(other, ALICE), "manifest.fork", remembered=seen)


def test_every_version_since_the_remembered_one_has_to_be_shown() -> None:
    signed = first(ALICE)
    second = sign_update(signed, ALICE)
    third = sign_update(second, ALICE)
    seen = Remembered(version=1, sha256=signed.digest)
    authenticate(third, remembered=seen)
    tail = dataclasses.replace(third, links=third.links[1:])
    authenticate(tail)
    authenticate(tail, remembered=authenticate(second).remembered)
    refused(tail, "manifest.gap", remembered=seen)


# While workers are replaced


OVERLAP = timedelta(days=3)
"""After `ISSUED`, and so two days after `AT`."""


def overlapping() -> tuple[SignedManifest, SignedManifest, Remembered]:
    """Two versions of which the second lets the first be served, and who has seen the second."""
    old = first(ALICE)
    new = sign_update(old, ALICE, overlap=OVERLAP)
    return old, new, authenticate(new).remembered


def test_the_version_before_is_accepted_as_long_as_its_owners_signed() -> None:
    old, new, seen = overlapping()
    found = authenticate(old, remembered=seen)
    assert (found.version, found.digest) == (1, old.digest)
    assert found.expires == ISSUED + OVERLAP < old.manifest.header.expires
    assert "while workers change to version 2" in standing(found)
    # What is remembered does not go back, and the later one is still the one in force.
    assert found.remembered is seen
    assert authenticate(new, remembered=found.remembered).later is None
    last = ISSUED + OVERLAP - timedelta(seconds=1)
    authenticate(old, remembered=seen, at=last)
    refused(old, "manifest.rollback", remembered=seen, at=ISSUED + OVERLAP)
    authenticate(new, remembered=seen, at=ISSUED + OVERLAP)


def test_no_version_is_accepted_that_the_later_one_does_not_name() -> None:
    old, new, seen = overlapping()
    authenticate(old, remembered=seen)
    # The same update without an overlap, and one more after it with and without.
    refused(old, "manifest.rollback", remembered=authenticate(sign_update(old, ALICE)).remembered)
    for overlap in (None, OVERLAP):
        third = sign_update(new, ALICE, overlap=overlap)
        refused(old, "manifest.rollback", remembered=authenticate(third).remembered)
    authenticate(new, remembered=authenticate(third).remembered)
    # Another first version by the same owner: as old, in force, and not the one that was named.
    fork = first(ALICE, models=full_manifest().models)
    authenticate(fork)
    refused(fork, "manifest.rollback", remembered=seen)
    # One of the same version as what was seen is a fork, whatever overlaps.
    refused(sign_update(fork, ALICE), "manifest.fork", remembered=seen)


def test_an_overlap_lifts_neither_pin_nor_expiry_nor_signature() -> None:
    old, _, seen = overlapping()
    authenticate(old, remembered=seen)
    lowest = dataclasses.replace(BY_ALICE, minimum_version=2)
    refused(old, "manifest.version", lowest, remembered=seen)
    refused(old, "manifest.name", dataclasses.replace(BY_ALICE, name="other"), remembered=seen)
    refused(resigned(old), "manifest.threshold", remembered=seen)
    short = first(ALICE, lifetime=timedelta(days=2))
    update = next_version(short)
    longer = dataclasses.replace(
        update.header, expires=ISSUED + timedelta(days=9), overlap_until=ISSUED + OVERLAP
    )
    later = updated(short, envelope_of(dataclasses.replace(update, header=longer), ALICE))
    seen = authenticate(later).remembered
    assert authenticate(short, remembered=seen).expires == ISSUED + timedelta(days=2)
    refused(short, "manifest.expired", remembered=seen, at=ISSUED + timedelta(days=2))


def test_the_version_before_is_one_below() -> None:
    """A bundle may begin with the version that was accepted: then nobody saw what it names."""
    old, _, seen = overlapping()
    authenticate(old, remembered=seen)
    refused(old, "manifest.rollback", remembered=dataclasses.replace(seen, version=3))


def test_who_pins_one_digest_asks_for_that_one_only() -> None:
    old, new, seen = overlapping()
    pin = DigestPin(sha256=new.digest)
    authenticate(new, pin, remembered=seen)
    refused(old, "manifest.digest", pin, remembered=seen)


def test_what_is_remembered_is_counted_by_the_pin_not_by_the_manifests_name() -> None:
    named = dataclasses.replace(BY_ALICE, name="example/chat")
    assert BY_ALICE.pin_id == dataclasses.replace(BY_ALICE, minimum_version=7).pin_id
    assert BY_ALICE.pin_id != named.pin_id
    assert BY_ALICE.pin_id != SignerPin(signers=(BOB.owner,)).pin_id
    two = SignerPin(signers=(ALICE.owner, BOB.owner))
    assert two.pin_id == SignerPin(signers=(BOB.owner, ALICE.owner)).pin_id
    assert two.pin_id != dataclasses.replace(two, threshold=2).pin_id


# Bundles


@pytest.mark.parametrize(
    "change", ["order", "left out", "spliced", "renamed", "empty", "format", "more"]
)
def test_versions_that_do_not_follow_one_another_are_no_bundle(change: str) -> None:
    signed = sign_update(sign_update(first(ALICE), ALICE), ALICE)
    document = json.loads(signed.encode())
    load_bundle(json.dumps(document).encode())
    listed = document["manifests"]
    if change == "order":
        listed.reverse()
    elif change == "left out":
        del listed[1]
    elif change == "spliced":  # signed well, and made from another version 2
        fork = sign_update(first(ALICE), ALICE, models=full_manifest().models)
        listed[2] = sign_update(fork, ALICE).links[2].envelope.to_json()
    elif change == "renamed":
        other = make_manifest(owners=[ALICE], name="example/other", at=ISSUED)
        header = dataclasses.replace(next_version(signed).header, name="example/other")
        renamed = dataclasses.replace(other, header=header)
        listed.append(envelope_of(renamed, ALICE).to_json())
    elif change == "empty":
        listed.clear()
    elif change == "format":
        document["format"] = "cloister/manifest-bundle/2"
    else:
        document["extra"] = 1
    with pytest.raises(MalformedError) as found:
        load_bundle(json.dumps(document).encode())
    assert found.value.code == "manifest.malformed"


def test_nobody_else_makes_authenticated_manifests() -> None:
    found = authenticate(first(ALICE))
    with pytest.raises(TypeError):
        AuthenticatedManifest(manifest=found.manifest, digest=found.digest, signers=(), signed=True)
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(found, digest="0" * 64)


def test_a_time_without_a_zone_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="zone"):
        authenticate(first(ALICE), at=AT.replace(tzinfo=None))


# Named exceptions, and what cannot be decided


def test_an_unsigned_manifest_takes_a_pin_that_says_so() -> None:
    unsigned = resigned(first(ALICE))
    found = authenticate(unsigned, UnsafeUnsignedManifest())
    assert found.signers == ()
    assert not found.signed
    assert not authenticate(first(ALICE), UnsafeUnsignedManifest()).signed
    refused(unsigned, "manifest.expired", UnsafeUnsignedManifest(), at=AT + timedelta(days=999))


def test_a_signature_that_cannot_be_checked_here_is_never_a_pass() -> None:
    identity: Owner = SigstoreOwner(
        name="ci", subject="https://github.com/a/b", issuer="https://token.example"
    )
    signed = first(ALICE, owners=[ALICE, identity])
    made = Signature(key_id=identity.key_id, data=b"{}")
    both = resigned(signed, *signed.links[0].envelope.signatures, made)
    authenticate(both)
    for pin in (
        SignerPin(signers=(identity,)),
        SignerPin(signers=(ALICE.owner, identity), threshold=2),
    ):
        with pytest.raises(UnsupportedError) as found:
            authenticate(both, pin)
        assert found.value.code == "manifest.identities"
    alone = resigned(signed, made)
    with pytest.raises(UnsupportedError):
        authenticate(alone, DigestPin(sha256=signed.digest))


def test_replacing_a_signature_keeps_one_for_each_owner() -> None:
    envelope = envelope_of(full_manifest(), ALICE, BOB)
    again = with_signature(envelope, Signature(key_id=ALICE.key_id, data=b"x"))
    assert [one.key_id for one in again.signatures] == [BOB.key_id, ALICE.key_id]


def test_of_two_updates_at_once_the_second_is_a_conflict() -> None:
    from cloister.manifest.signing import updated

    signed = first(ALICE, BOB, owners=[ALICE, BOB])
    by_alice = envelope_of(next_version(signed), ALICE)
    by_bob = envelope_of(next_version(signed, models=full_manifest().models), BOB)
    won = updated(signed, by_alice)
    authenticate(won)
    with pytest.raises(AuthenticationError, match="somebody else updated") as found:
        updated(won, by_bob)
    assert found.value.code == "manifest.conflict"
    with pytest.raises(AuthenticationError):
        updated(won, by_alice)
