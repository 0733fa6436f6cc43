"""Manifests: signed by whom NVIDIA's root says, and read from what was hashed."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from lxml import etree  # type: ignore[import-untyped] # it ships no types
from signxml.algorithms import CanonicalizationMethod, DigestAlgorithm, SignatureMethod
from signxml.signer import XMLSigner

from cloister.endorsements.roots import Roots
from cloister.errors import AuthenticationError, MalformedError, UnsupportedError
from cloister.evidence.rim import RimDocument, parse_rim
from cloister.testing.simulated_nvgpu import SimulatedNvidia, digest, rim_text
from cloister.verifier.authenticate.rim import authenticate_rim
from cloister.verifier.evidence import run
from cloister.verifier.platforms.nvgpu import RimEvidence, verify_nvgpu
from cloister.verifier.policy import development
from cloister.verifier.result import AttestationResult, Finding

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NVIDIA = SimulatedNvidia.make(now=NOW)
TEXT = rim_text({1: (digest("one"),)}, version="550.90.07", size=3)
SIGNED = NVIDIA.sign(TEXT)


def verify(
    document: bytes, *, roots: Roots = NVIDIA.roots, at: datetime = NOW
) -> AttestationResult:
    return run(
        verify_nvgpu, RimEvidence(document=document), policy=development(), roots=roots, at=at
    )


def refused(document: bytes, *, roots: Roots = NVIDIA.roots, at: datetime = NOW) -> list[object]:
    """The codes of what does not hold; the unaltered manifest is affirmed."""
    assert verify(SIGNED).verdict is Finding.AFFIRMING
    found = verify(document, roots=roots, at=at)
    assert found.verdict is not Finding.AFFIRMING
    return [claim.code for claim in found.failures]


def test_a_manifest_is_authenticated() -> None:
    rim = authenticate_rim(SIGNED, roots=NVIDIA.roots, at=NOW).value.rim
    assert rim.version == "550.90.07"
    assert rim.active[0].alternatives == (digest("one"),)
    result = verify(SIGNED)
    assert result.require_affirmed_evidence().development
    assert result.facts["golden"] == {"1": {"active": True, "hashes": [digest("one").hex()]}}


def test_every_value_in_it_is_signed() -> None:
    changed = SIGNED.replace(digest("one").hex().encode(), digest("evil").hex().encode())
    assert refused(changed)[0] == "unauthenticated"
    assert "rim_bad_signature" in refused(changed)
    assert "rim_bad_signature" in refused(SIGNED.replace(b"550.90.07", b"550.90.08"))
    assert "rim_bad_signature" in refused(SIGNED.replace(b"<ns0:Payload>", b"<ns0:Payload> "))


def test_the_digest_alone_is_not_enough() -> None:
    """A signature value from another manifest, around this one's digest."""
    other = NVIDIA.sign(TEXT.replace("550", "551"))
    begin, end = b"<ds:SignatureValue>", b"</ds:SignatureValue>"
    spliced = SIGNED.replace(_between(SIGNED, begin, end), _between(other, begin, end))
    assert "rim_bad_signature" in refused(spliced)


def _between(data: bytes, begin: bytes, end: bytes) -> bytes:
    return data[data.index(begin) + len(begin) : data.index(end)]


def test_content_is_what_was_hashed_whatever_is_around_it() -> None:
    """Wrapping: the signature of one manifest put under another one is over another document."""
    evil = TEXT.replace(digest("one").hex(), digest("evil").hex())
    signature = SIGNED[SIGNED.index(b"<ds:Signature ") :]
    assert "rim_bad_signature" in refused(
        evil.encode().removesuffix(b"</SoftwareIdentity>") + signature
    )


def parses_to(monkeypatch: pytest.MonkeyPatch, document: RimDocument) -> None:
    """As if the first look at a document had been fooled."""
    module = importlib.import_module("cloister.verifier.authenticate.rim")
    monkeypatch.setattr(module, "parse_rim", lambda _: document)


def test_content_never_comes_from_the_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    evil = TEXT.replace(digest("one").hex(), digest("evil").hex())
    fooled = dataclasses.replace(parse_rim(NVIDIA.sign(evil)), raw=SIGNED)
    parses_to(monkeypatch, fooled)
    rim = authenticate_rim(SIGNED, roots=NVIDIA.roots, at=NOW).value.rim
    assert rim.active[0].alternatives == (digest("one"),)


def test_algorithms_are_fixed_where_signatures_are_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = XMLSigner(
        signature_algorithm=SignatureMethod.ECDSA_SHA256,
        digest_algorithm=DigestAlgorithm.SHA384,
        c14n_algorithm=CanonicalizationMethod.CANONICAL_XML_1_1,
    ).sign(
        etree.fromstring(TEXT.encode()),
        key=NVIDIA.rim_signer.key,
        cert=list(NVIDIA.rim_signer.chain),
    )
    weaker = etree.tostring(made)
    assert refused(weaker)[0] == "malformed"
    parses_to(monkeypatch, dataclasses.replace(parse_rim(SIGNED), raw=weaker))
    with pytest.raises(AuthenticationError, match="not signed"):
        authenticate_rim(weaker, roots=NVIDIA.roots, at=NOW)


def test_another_root_is_refused() -> None:
    other = SimulatedNvidia.make(now=NOW)
    assert "rim_bad_chain" in refused(SIGNED, roots=other.roots)
    assert "rim_bad_chain" in refused(SIGNED, roots=Roots())
    assert "rim_bad_chain" in refused(other.sign(TEXT))


def test_the_root_of_devices_signs_no_manifest() -> None:
    signer = NVIDIA.provisioner.issue("Device", ca=False)
    assert "rim_bad_chain" in refused(NVIDIA.sign(TEXT, signer=signer))


def test_a_ca_signs_no_manifest_itself() -> None:
    found = refused(NVIDIA.sign(TEXT, signer=NVIDIA.rim_issuer))
    assert {"rim_bad_chain", "rim_bad_signature"} <= set(found)


def test_another_curve_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    signer = NVIDIA.rim_issuer.issue("P-256", ca=False, key=key)
    assert {"rim_bad_chain", "rim_bad_signature"} <= set(refused(NVIDIA.sign(TEXT, signer=signer)))


def test_the_key_is_that_of_the_first_certificate() -> None:
    """Somebody else's signature beside the certificates of NVIDIA's signer."""
    mine = SimulatedNvidia.make(now=NOW).rim_signer
    forged = dataclasses.replace(
        mine, certificate=NVIDIA.rim_signer.certificate, above=NVIDIA.rim_signer.above
    )
    assert "rim_bad_signature" in refused(NVIDIA.sign(TEXT, signer=forged))


def test_dates_are_a_claim_of_their_own() -> None:
    found = refused(SIGNED, at=NOW + timedelta(days=800))
    assert found == ["unauthenticated", "rim_expired"]
    assert "rim_expired" in refused(SIGNED, at=NOW - timedelta(days=2))


def test_what_does_not_decode_is_a_claim() -> None:
    assert refused(b"<!DOCTYPE x>" + SIGNED)[0] == "malformed"
    assert refused(b"")[0] == "malformed"


def test_without_the_library_nothing_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verify(SIGNED).verdict is Finding.AFFIRMING
    monkeypatch.setitem(sys.modules, "signxml.verifier", None)
    result = verify(SIGNED)
    assert result.verdict is Finding.NONE
    claim = next(claim for claim in result.failures if claim.code == "signxml_missing")
    assert "cloister[gpu]" in claim.explanation
    with pytest.raises(UnsupportedError, match="gpu"):
        authenticate_rim(SIGNED, roots=NVIDIA.roots, at=NOW)


def test_errors_say_what_is_wrong() -> None:
    authenticate_rim(SIGNED, roots=NVIDIA.roots, at=NOW)
    with pytest.raises(MalformedError):
        authenticate_rim(b"<a/>", roots=NVIDIA.roots, at=NOW)
    with pytest.raises(AuthenticationError, match="not signed"):
        authenticate_rim(SIGNED.replace(b"550", b"551"), roots=NVIDIA.roots, at=NOW)
    with pytest.raises(AuthenticationError, match="not accepted"):
        authenticate_rim(SIGNED, roots=NVIDIA.roots, at=NOW + timedelta(days=800))
