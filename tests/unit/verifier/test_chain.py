"""Chains to pinned roots: each rule with the chain that keeps it and the one that breaks it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.endorsements.roots import Anchor, Vendor
from cloister.verifier import chain as module
from cloister.verifier.chain import (
    MAX_CANDIDATES,
    MAX_DEPTH,
    Chain,
    ChainFault,
    authenticate_chain,
    issued,
    same_key,
    signed_crl,
)
from support.certificates import END, NOW, START, Party, issue, key_usage, named, revocation_list

ROOT = issue("Root", usage=key_usage(certificates=True))
MIDDLE = issue("Middle", ROOT, usage=key_usage(certificates=True), path_length=0)
LEAF = issue("Leaf", MIDDLE, ca=False)
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")


def anchor(party: Party) -> Anchor:
    return Anchor(vendor=Vendor.AMD, certificate=party.certificate)


def chain(leaf: Party = LEAF, *candidates: Party, **options: object) -> Chain:
    given: dict[str, object] = {"anchors": [anchor(ROOT)], "at": NOW, **options}
    pool = [party.certificate for party in candidates or (MIDDLE,)]
    return authenticate_chain(leaf.certificate, pool, **given)  # type: ignore[arg-type]


def faults(found: Chain) -> list[ChainFault]:
    return [kind for kind, _ in found.faults]


def test_a_chain_that_keeps_every_rule() -> None:
    found = chain()
    assert found.holds
    assert found.certificates == (LEAF.certificate, MIDDLE.certificate, ROOT.certificate)
    assert found.leaf == LEAF.certificate
    assert found.anchor is not None
    assert found.anchor.certificate == ROOT.certificate
    assert found.fault(*ChainFault) is None


def test_the_order_of_candidates_does_not_matter() -> None:
    other = issue("Other", ROOT)
    assert chain(LEAF, other, ROOT, LEAF, MIDDLE).holds


def test_a_root_reissued_with_its_key_is_the_same_root() -> None:
    again = issue("Root", usage=key_usage(certificates=True), key=ROOT.key)
    assert again.certificate != ROOT.certificate
    assert same_key(again.certificate, ROOT.certificate)
    assert not same_key(issue("Root").certificate, ROOT.certificate)
    assert chain(anchors=[anchor(again)]).holds


@pytest.mark.parametrize("of_the_point", [True, False])
def test_a_key_that_cannot_be_read_is_nobodys(of_the_point: bool) -> None:
    """A point that is not on its curve, and a curve that nobody knows."""
    der = ROOT.certificate.public_bytes(Encoding.DER)
    spki = ROOT.certificate.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    at = der.index(spki) + (len(spki) - 1 if of_the_point else 20)
    odd = x509.load_der_x509_certificate(der[:at] + bytes([der[at] ^ 1]) + der[at + 1 :])
    assert same_key(ROOT.certificate, ROOT.certificate)
    with pytest.raises((ValueError, UnsupportedAlgorithm)):
        odd.public_key()
    assert not same_key(odd, ROOT.certificate)
    assert not same_key(ROOT.certificate, odd)


def test_a_root_that_only_the_evidence_names() -> None:
    stranger = issue("Root", usage=key_usage(certificates=True))
    assert chain().holds
    found = chain(LEAF, MIDDLE, ROOT, anchors=[anchor(stranger)])
    assert found.anchor is None
    assert not found.holds
    assert faults(found) == [ChainFault.BAD_CHAIN]


def test_no_roots_at_all() -> None:
    assert not chain(anchors=[]).holds


BROKEN: dict[str, Callable[[], Party]] = {
    "forged": lambda: issue("Middle", ROOT, key=MIDDLE.key, signer=LEAF.key),
    "not a CA": lambda: issue("Middle", ROOT, key=MIDDLE.key, ca=False),
    "without basic constraints": lambda: issue("Middle", ROOT, key=MIDDLE.key, constraints=False),
    "for other uses": lambda: issue(
        "Middle", ROOT, key=MIDDLE.key, usage=key_usage(certificates=False)
    ),
    "with an unknown critical extension": lambda: issue(
        "Middle", ROOT, key=MIDDLE.key, extensions=[(UNKNOWN, True)]
    ),
    "of another name": lambda: issue("Muddle", ROOT, key=MIDDLE.key),
    "of another key": lambda: issue("Middle", ROOT),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_an_intermediate_that_may_not_sign(broken: Callable[[], Party]) -> None:
    assert chain(LEAF, issue("Middle", ROOT, key=MIDDLE.key)).holds
    assert faults(chain(LEAF, broken())) == [ChainFault.BAD_CHAIN]


def test_an_unknown_extension_is_no_matter_unless_critical() -> None:
    assert chain(LEAF, issue("Middle", ROOT, key=MIDDLE.key, extensions=[(UNKNOWN, False)])).holds


def test_a_root_that_is_no_ca() -> None:
    root = issue("Root", key=ROOT.key, ca=False)
    assert chain().holds
    assert not chain(anchors=[anchor(root)]).holds


def test_a_leaf_with_an_unknown_critical_extension() -> None:
    leaf = issue("Leaf", MIDDLE, ca=False, extensions=[(UNKNOWN, True)])
    assert chain(leaf, understood=[UNKNOWN.oid]).holds
    assert faults(chain(leaf)) == [ChainFault.BAD_CHAIN]


def test_path_length() -> None:
    lower = issue("Lower", MIDDLE)
    leaf = issue("Leaf", lower, ca=False)
    assert faults(chain(leaf, lower, MIDDLE)) == [ChainFault.BAD_CHAIN]
    longer = issue("Middle", ROOT, key=MIDDLE.key, path_length=1)
    assert chain(leaf, lower, longer).holds


def test_depth_is_bounded() -> None:
    parties = [ROOT]
    while len(parties) < MAX_DEPTH:
        parties.append(issue(f"CA {len(parties)}", parties[-1]))
    assert chain(parties[-1], *parties[1:]).holds
    assert not chain(issue("Leaf", parties[-1], ca=False), *parties[1:]).holds


def test_certificates_that_issue_each_other_come_to_an_end() -> None:
    one = issue("One")
    two = issue("Two", one)
    again = issue("One", two, key=one.key)
    leaf = issue("Leaf", two, ca=False)
    assert not chain(leaf, again, two, one).holds


def test_a_heap_of_namesakes_is_cut_off() -> None:
    heap = [issue("Middle", ROOT) for _ in range(MAX_CANDIDATES)]
    assert chain(LEAF, *heap[1:], MIDDLE).holds
    assert not chain(LEAF, *heap, MIDDLE).holds
    assert chain(LEAF, *[heap[0]] * MAX_CANDIDATES, MIDDLE).holds


@pytest.mark.parametrize("old", ["leaf", "middle", "root"])
def test_dates_are_apart_from_signatures(old: str) -> None:
    until = NOW - timedelta(days=1)
    leaf, middle, root = LEAF, MIDDLE, ROOT
    if old == "leaf":
        leaf = issue("Leaf", MIDDLE, ca=False, not_after=until)
    elif old == "middle":
        middle = issue("Middle", ROOT, key=MIDDLE.key, not_after=until)
    else:
        root = issue("Root", key=ROOT.key, not_after=until)
    earlier = chain(leaf, middle, anchors=[anchor(root)], at=until)
    assert earlier.holds
    found = chain(leaf, middle, anchors=[anchor(root)])
    assert found.anchor is not None
    assert faults(found) == [ChainFault.EXPIRED]
    assert not found.holds
    assert f"{until:%Y-%m-%d}" in found.faults[0][1]


def test_not_yet_valid() -> None:
    assert chain(at=START).holds
    assert faults(chain(at=START - timedelta(seconds=1))) == [ChainFault.EXPIRED] * 3
    assert chain(at=END).holds
    assert faults(chain(at=END + timedelta(seconds=1))) == [ChainFault.EXPIRED] * 3


def test_revocation() -> None:
    clean = [revocation_list(ROOT), revocation_list(MIDDLE)]
    assert chain(crls=clean, require_crls=True).holds
    for lists in (
        [revocation_list(ROOT, MIDDLE.certificate), clean[1]],
        [clean[0], revocation_list(MIDDLE, LEAF.certificate)],
    ):
        assert faults(chain(crls=lists)) == [ChainFault.REVOKED]


def test_missing_lists_count_only_where_required() -> None:
    lists = [revocation_list(ROOT)]
    assert chain(crls=lists).holds
    assert faults(chain(crls=lists, require_crls=True)) == [ChainFault.REVOKED]


def test_a_list_that_the_ca_did_not_sign() -> None:
    forged = revocation_list(MIDDLE, signer=ROOT.key)
    assert chain(crls=[revocation_list(MIDDLE)]).holds
    assert faults(chain(crls=[forged])) == [ChainFault.CRL_SIGNATURE]


def test_a_list_out_of_date() -> None:
    day = timedelta(days=1)
    assert chain(crls=[revocation_list(MIDDLE, next_update=NOW)]).holds
    old = revocation_list(MIDDLE, next_update=NOW - day)
    early = revocation_list(MIDDLE, last_update=NOW + day)
    assert faults(chain(crls=[old])) == [ChainFault.EXPIRED]
    assert faults(chain(crls=[early])) == [ChainFault.EXPIRED]
    revoked = revocation_list(MIDDLE, LEAF.certificate, next_update=NOW - day)
    assert ChainFault.REVOKED in faults(chain(crls=[revoked]))


def test_a_list_with_something_critical_and_unknown() -> None:
    assert signed_crl(revocation_list(ROOT), ROOT.certificate)
    assert not signed_crl(revocation_list(ROOT, critical=True), ROOT.certificate)


def test_a_ca_that_may_not_sign_lists() -> None:
    usage = key_usage(certificates=True, lists=False)
    silent = issue("Root", key=ROOT.key, usage=usage)
    assert signed_crl(revocation_list(ROOT), ROOT.certificate)
    assert not signed_crl(revocation_list(ROOT), silent.certificate)


def signed_by(
    key: rsa.RSAPrivateKey | Ed25519PrivateKey, algorithm: hashes.SHA256 | None
) -> tuple[x509.Certificate, x509.Certificate]:
    name = named("CA")
    builder = (
        x509.CertificateBuilder()
        .issuer_name(name)
        .serial_number(1)
        .not_valid_before(START)
        .not_valid_after(END)
    )
    ca = (
        builder.subject_name(name)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, algorithm)
    )
    leaf = builder.subject_name(named("Leaf")).public_key(LEAF.key.public_key())
    return leaf.sign(key, algorithm), ca


def test_short_keys_and_other_kinds_of_keys_sign_nothing() -> None:
    long = signed_by(rsa.generate_private_key(65537, 2048), hashes.SHA256())
    short = signed_by(rsa.generate_private_key(65537, 1024), hashes.SHA256())
    edwards = signed_by(Ed25519PrivateKey.generate(), None)
    assert issued(*long)
    assert not issued(*short)
    assert not issued(*edwards)


def test_keys_that_take_long_to_use_sign_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    key = rsa.generate_private_key(65537, 2048)
    assert issued(*signed_by(key, hashes.SHA256()))
    assert not issued(*signed_by(with_exponent(key, (1 << 1024) + 1), hashes.SHA256()))
    assert issued(*signed_by(with_exponent(key, (1 << 31) + 1), hashes.SHA256()))
    monkeypatch.setattr(module, "MAX_RSA_BITS", 2047)
    assert not issued(*signed_by(key, hashes.SHA256()))


def with_exponent(key: rsa.RSAPrivateKey, least: int) -> rsa.RSAPrivateKey:
    """A key of the same modulus, with the first public exponent from `least` on that there is."""
    numbers = key.private_numbers()
    p, q = numbers.p, numbers.q
    order = (p - 1) * (q - 1)
    exponent = next(e for e in range(least, least + 1000, 2) if math.gcd(e, order) == 1)
    private = pow(exponent, -1, order)
    return rsa.RSAPrivateNumbers(
        p=p,
        q=q,
        d=private,
        dmp1=private % (p - 1),
        dmq1=private % (q - 1),
        iqmp=numbers.iqmp,
        public_numbers=rsa.RSAPublicNumbers(exponent, p * q),
    ).private_key()


def test_weak_hashes_sign_nothing() -> None:
    assert issued(
        issue("Leaf", ROOT, ca=False, algorithm=hashes.SHA384()).certificate, ROOT.certificate
    )
    weak = issue("Leaf", ROOT, ca=False, algorithm=hashes.SHA224()).certificate
    assert not issued(weak, ROOT.certificate)


def test_a_simulated_root_says_so() -> None:
    made_up = dataclasses.replace(anchor(ROOT), development=True)
    found = chain(anchors=[made_up])
    assert found.holds
    assert found.anchor is not None
    assert found.anchor.development


def test_curves_may_differ_along_a_chain() -> None:
    root = issue("Big root", key=ec.generate_private_key(ec.SECP384R1()), algorithm=hashes.SHA384())
    leaf = issue("Leaf", root, ca=False, algorithm=hashes.SHA384())
    assert chain(leaf, root, anchors=[anchor(root)]).holds
