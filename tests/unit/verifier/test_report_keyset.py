"""Keyset and claims document, each genuinely quoted, that do not fit or cannot be used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from cloister.channel.claims import ModelClaim
from cloister.channel.keyset import Keyset, PublicKeyEntry
from cloister.evidence.component import ComponentKind
from cloister.evidence.report import ITEM_CLAIMS
from cloister.testing.simulated_tpm import SimulatedAttester, default_configuration, made_up
from cloister.verifier.policy import UNCHECKED
from support.report_world import NONCE, NOW, World, affirm, refuse, world


def requoted(change: Callable[[SimulatedAttester], Keyset]) -> World:
    """A world whose keyset was changed before the TPM signed for it."""
    bad = world()
    affirm(bad)
    bad.attester.keyset = change(bad.attester)
    bad.report = bad.attester.attestation_report(NONCE)
    return bad


def claiming(**changes: Any) -> World:
    """A world whose worker lies in its claims document, and binds it."""

    def change(attester: SimulatedAttester) -> Keyset:
        attester.claims_document = dataclasses.replace(attester.claims_document, **changes)
        return dataclasses.replace(attester.keyset, subject=attester.claims_document.subject)

    return requoted(change)


def without(bad: World, name: str) -> World:
    bad.replace_item(name, None)
    return bad


def other_claims(bad: World) -> World:
    document = dataclasses.replace(bad.attester.claims_document, isolation="vault")
    bad.replace_data(ITEM_CLAIMS, document.encode())
    return bad


def loose_claims() -> World:
    """A claims document that is not canonical, though the keyset names exactly its bytes."""
    import hashlib

    def change(attester: SimulatedAttester) -> Keyset:
        data = attester.claims_document.encode() + b"\n"
        subject = "cloister:sha256:" + hashlib.sha256(data).hexdigest()
        return dataclasses.replace(attester.keyset, subject=subject)

    bad = requoted(change)
    bad.replace_data(ITEM_CLAIMS, bad.attester.claims_document.encode() + b"\n")
    return bad


def made_up_digest(kind: ComponentKind, name: str) -> str:
    return made_up(kind, name).digest.removeprefix("sha256:")


CLAIMS: dict[str, tuple[Callable[[], World], str, str]] = {
    "missing": (lambda: without(world(), ITEM_CLAIMS), "claims_unbound", "claims.bound"),
    "another one": (lambda: other_claims(world()), "claims_unbound", "claims.bound"),
    "not canonical": (loose_claims, "claims_unbound", "claims.bound"),
    "not named by the keyset": (
        lambda: requoted(lambda attester: dataclasses.replace(attester.keyset, subject=None)),
        "claims_unbound",
        "claims.bound",
    ),
    "named in another way": (
        lambda: requoted(
            lambda attester: dataclasses.replace(attester.keyset, subject="spiffe://somewhere")
        ),
        "claims_unbound",
        "claims.bound",
    ),
    "another model": (
        lambda: claiming(models=(ModelClaim(name="demo", sha256="0" * 64),)),
        "claims_mismatch",
        "claims.consistent",
    ),
    "another name": (
        lambda: claiming(
            models=(ModelClaim(name="better", sha256=made_up_digest(ComponentKind.MODEL, "demo")),)
        ),
        "claims_mismatch",
        "claims.consistent",
    ),
    "one model more, without a digest": (
        lambda: claiming(
            models=(
                ModelClaim(name="demo", sha256=made_up_digest(ComponentKind.MODEL, "demo")),
                ModelClaim(name="better", sha256=None),
            )
        ),
        "claims_mismatch",
        "claims.consistent",
    ),
    "no model": (lambda: claiming(models=()), "claims_mismatch", "claims.consistent"),
    "another configuration": (
        lambda: claiming(configuration={**default_configuration(), "extra": 1}),
        "claims_mismatch",
        "claims.consistent",
    ),
    "zero for false": (
        lambda: claiming(configuration={**default_configuration(), "debug": 0}),
        "claims_mismatch",
        "claims.consistent",
    ),
    "another isolation": (
        lambda: claiming(isolation="vault"),
        "claims_mismatch",
        "claims.consistent",
    ),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claims_document_that_does_not_fit_is_refused(name: str) -> None:
    affirm(world())
    make, code, claim = CLAIMS[name]
    refuse(make(), code, claim)


def keyset_with(**changes: Any) -> Callable[[], World]:
    return lambda: requoted(lambda attester: dataclasses.replace(attester.keyset, **changes))


def entry(algo: str, public_key: str) -> PublicKeyEntry:
    return PublicKeyEntry(key_id="other", algo=algo, public_key=public_key)


KEYSETS: dict[str, tuple[Callable[[], World], str, str]] = {
    "expired": (
        keyset_with(not_after=int(NOW.timestamp()) - 1),
        "keyset_expired",
        "keyset.expiry",
    ),
    "expiring now": (
        keyset_with(not_after=int(NOW.timestamp())),
        "keyset_expired",
        "keyset.expiry",
    ),
    "living too long": (
        keyset_with(not_after=int(NOW.timestamp()) + 24 * 3600 + 1),
        "keyset_lifetime",
        "keyset.expiry",
    ),
    "without request key": (
        keyset_with(e2ee_public_keys=()),
        "request_key_missing",
        "keyset.request_key",
    ),
    "with a request key of another kind": (
        keyset_with(e2ee_public_keys=(entry("x25519", "00" * 32),)),
        "request_key_missing",
        "keyset.request_key",
    ),
    "with a malformed request key": (
        keyset_with(e2ee_public_keys=(entry("ohttp", "0100"),)),
        "request_key_missing",
        "keyset.request_key",
    ),
    "with a request key that is not hex": (
        keyset_with(e2ee_public_keys=(entry("ohttp", "zz"),)),
        "request_key_missing",
        "keyset.request_key",
    ),
    "with a request key of an unknown KEM": (
        keyset_with(e2ee_public_keys=(entry("ohttp", "01fffe" + "00" * 40),)),
        "request_key_missing",
        "keyset.request_key",
    ),
    "without receipt key": (
        keyset_with(receipt_signing_keys=()),
        "receipt_key_missing",
        "keyset.receipt_key",
    ),
    "with a malformed receipt key": (
        keyset_with(receipt_signing_keys=(entry("ed25519", "00"),)),
        "receipt_key_missing",
        "keyset.receipt_key",
    ),
}


@pytest.mark.parametrize("name", KEYSETS)
def test_a_keyset_that_cannot_be_used_is_refused(name: str) -> None:
    make, code, claim = KEYSETS[name]
    refuse(make(), code, claim)


def test_a_keyset_of_no_known_year_is_refused_even_unchecked() -> None:
    bad = keyset_with(not_after=2**53 - 1)()
    bad.policy = dataclasses.replace(bad.policy, max_keyset_lifetime_s=UNCHECKED)
    refuse(bad, "keyset_lifetime", "keyset.expiry")


def test_a_keyset_may_list_a_newer_kind_of_key_beside_a_known_one() -> None:
    newer = PublicKeyEntry(key_id="newer", algo="ohttp", public_key="01fffe" + "00" * 40)
    bad = requoted(
        lambda attester: dataclasses.replace(
            attester.keyset, e2ee_public_keys=(newer, *attester.keyset.e2ee_public_keys)
        )
    )
    affirm(bad)
