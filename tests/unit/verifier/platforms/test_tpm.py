"""Quotes of TPMs, and the keys that sign them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.endorsements.ak import TCG_KP_EK_CERTIFICATE
from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.roots import Vendor, fingerprint
from cloister.errors import ConfigurationError
from cloister.evidence.tpm import Alg, ObjectAttribute
from cloister.testing.simulated_vtpm import SimulatedAkVendor, SimulatedVtpm, simulated_rsa_key
from cloister.verifier import policy
from cloister.verifier.authenticate.ak import AkEvidence
from cloister.verifier.expected import Expected
from cloister.verifier.platforms.tpm import TpmEvidence
from cloister.verifier.result import Finding, Source
from support.certificates import P256_ORDER, respelled
from support.claims import refused
from support.tpm_evidence import (
    BOOTED,
    GENUINE,
    LENIENT,
    NONCE,
    NOW,
    QUOTE,
    SHA256,
    STRICT,
    VENDOR,
    certified,
    changed,
    evidence_of,
    outcome,
    verify,
    with_quote,
)


def test_a_genuine_quote_with_its_log() -> None:
    result = verify(GENUINE, Expected(values={"extra_data": NONCE}))
    assert result.verdict is Finding.AFFIRMING
    assert result.platform == "development (TPM)"
    assert result.memory_confidentiality == "none"
    assert result.facts["extra_data"] == NONCE.hex()
    assert result.facts["secure_boot"] is True
    assert result.facts["kernel_command_lines"] == ["/vmlinuz root=/dev/vda ro"]
    assert result.require_affirmed_evidence().development


def test_what_was_proven() -> None:
    found = outcome(GENUINE)
    assert found.bound == NONCE
    assert found.registers["pcr7"] == BOOTED.registers[SHA256][7]
    assert set(found.registers) == {f"pcr{number}" for number in range(24)}


def test_a_simulated_vendor_needs_a_policy_that_says_so() -> None:
    assert verify(GENUINE).verdict is Finding.AFFIRMING
    strict = verify(GENUINE, policy=policy.strict())
    assert refused(strict) == {("platform.development", "development_refused")}


@pytest.mark.parametrize(
    ("key", "scheme", "hash_algorithm"),
    [
        (None, Alg.RSASSA, Alg.SHA256),
        (None, Alg.RSASSA, Alg.SHA384),
        (None, Alg.RSAPSS, Alg.SHA512),
        (ec.generate_private_key(ec.SECP256R1()), Alg.ECDSA, Alg.SHA256),
        (ec.generate_private_key(ec.SECP384R1()), Alg.ECDSA, Alg.SHA384),
        (ec.generate_private_key(ec.SECP521R1()), Alg.ECDSA, Alg.SHA512),
    ],
)
def test_every_scheme(
    key: ec.EllipticCurvePrivateKey | None, scheme: Alg, hash_algorithm: Alg
) -> None:
    vtpm = SimulatedVtpm(key=key)
    vtpm.boot()
    quote = vtpm.quote(NONCE, scheme=scheme, hash_algorithm=hash_algorithm)
    result = verify(evidence_of(vtpm, quote))
    assert result.verdict is Finding.AFFIRMING
    assert result.facts["signature_scheme"] == scheme.name.lower()
    assert result.facts["signature_hash"] == hash_algorithm.name.lower()


def test_the_digest_is_hashed_as_the_scheme_says_not_as_the_bank() -> None:
    """A digest over the right values by the bank's hash is the wrong one."""
    quote = BOOTED.quote(NONCE, bank=Alg.SHA384)
    assert verify(evidence_of(BOOTED, quote)).verdict is Finding.AFFIRMING
    values = b"".join(BOOTED.registers[int(Alg.SHA384)].values())
    right, wrong = hashlib.sha256(values).digest(), hashlib.sha384(values).digest()
    assert quote.quote.endswith(right)
    forged = quote.quote[:-34] + len(wrong).to_bytes(2, "big") + wrong
    by_bank = replace(quote, quote=forged, signature=BOOTED.sign(forged))
    assert refused(verify(evidence_of(BOOTED, by_bank))) == {
        ("tpm.pcr_digest", "pcr_digest_mismatch")
    }


def test_a_bare_signature_has_to_be_announced() -> None:
    bare = BOOTED.quote(NONCE, bare=True)
    assert verify(evidence_of(BOOTED, bare)).verdict is Finding.AFFIRMING
    for other in (
        replace(bare, bare_signature=False),
        replace(QUOTE, bare_signature=True),
        replace(bare, signature=bare.signature[1:]),
    ):
        assert refused(verify(evidence_of(BOOTED, other))) == {("tpm.format", "malformed")}


def test_sha1_is_known_and_refused() -> None:
    quote = BOOTED.quote(NONCE, hash_algorithm=Alg.SHA1)
    assert ("tpm.signature", "quote_algorithm") in refused(verify(evidence_of(BOOTED, quote)))


def test_a_short_key_is_refused() -> None:
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    vtpm = SimulatedVtpm(key=short)
    evidence = TpmEvidence(quote=vtpm.quote(NONCE), ak_public=vtpm.public())
    assert refused(verify(evidence, policy=LENIENT)) == {("tpm.signature", "quote_algorithm")}


@pytest.mark.parametrize(
    ("evidence", "name", "code"),
    [
        (with_quote(quote=changed(QUOTE.quote, 0)), "tpm.magic", "attest_magic"),
        (with_quote(quote=changed(QUOTE.quote, 5)), "tpm.type", "attest_type"),
        (with_quote(quote=QUOTE.quote + b"\0"), "tpm.format", "malformed"),
        (with_quote(quote=b""), "tpm.format", "malformed"),
        (with_quote(signature=b""), "tpm.format", "malformed"),
        (with_quote(pcrs=b""), "tpm.format", "malformed"),
        (with_quote(pcrs={0: {}}), "tpm.format", "malformed"),
        (with_quote(quote=changed(QUOTE.quote, 50)), "tpm.signature", "bad_signature"),
        (with_quote(signature=changed(QUOTE.signature, 100)), "tpm.signature", "bad_signature"),
        (
            with_quote(signature=changed(QUOTE.signature, 1)),
            "tpm.format",
            "malformed",
        ),
        (
            with_quote(pcrs={SHA256: {**QUOTE.pcrs[SHA256], 8: bytes(32)}}),  # type: ignore[dict-item]
            "tpm.pcr_digest",
            "pcr_digest_mismatch",
        ),
    ],
)
def test_one_thing_changed(evidence: TpmEvidence, name: str, code: str) -> None:
    assert verify(GENUINE).verdict is Finding.AFFIRMING
    result = verify(evidence)
    assert (name, code) in refused(result)
    assert outcome(evidence).bound is None
    assert outcome(evidence).registers == {}


def test_another_structure_that_the_key_signed_is_no_quote() -> None:
    """A key that is not restricted can be made to sign anything; its attributes tell."""
    for offset, name in ((0, "tpm.magic"), (5, "tpm.type")):
        other = changed(QUOTE.quote, offset)
        evidence = with_quote(quote=other, signature=BOOTED.sign(other))
        assert name in {claim for claim, _code in refused(verify(evidence))}


def test_the_signed_selection_is_compared_with_the_values() -> None:
    """Values that hash to the signed digest are refused where they stand for other registers."""
    chosen = BOOTED.quote(NONCE, pcrs=(0, 1, 2))
    good = TpmEvidence(quote=chosen, ak_public=BOOTED.public(), ak=certified())
    assert verify(good).verdict is Finding.AFFIRMING
    values = list(chosen.pcrs[SHA256].values())  # type: ignore[union-attr]
    for pcrs in (
        {SHA256: dict(zip((0, 1, 3), values, strict=True))},
        {SHA256: dict(zip((0, 1), values, strict=False))},
        {SHA256: {0: values[0], 1: values[1], 2: values[2], 3: bytes(32)}},
        {SHA256: {0: values[0], 1: values[1], 2: values[2]}, int(Alg.SHA1): {0: bytes(20)}},
        {},
    ):
        evidence = replace(good, quote=replace(chosen, pcrs=pcrs))
        assert ("tpm.selection", "pcr_selection_mismatch") in refused(verify(evidence))


def test_a_quote_of_no_registers_is_refused() -> None:
    empty = BOOTED.quote(NONCE, pcrs=())
    evidence = TpmEvidence(quote=empty, ak_public=BOOTED.public(), ak=certified())
    assert refused(verify(evidence)) == {("tpm.selection", "pcr_selection_mismatch")}


def test_a_bank_selected_twice_is_refused() -> None:
    one = BOOTED.quote(NONCE, pcrs=(0,))
    start = one.quote.index(b"\0\0\0\1\0\x0b\3\1\0\0")
    twice = (
        one.quote[:start]
        + b"\0\0\0\2"
        + one.quote[start + 4 : start + 10] * 2
        + b"\0\x20"
        + hashlib.sha256(BOOTED.registers[SHA256][0] * 2).digest()
    )
    quote = replace(one, quote=twice, signature=BOOTED.sign(twice))
    evidence = TpmEvidence(quote=quote, ak_public=BOOTED.public(), ak=certified())
    assert refused(verify(evidence)) == {("tpm.selection", "pcr_selection_mismatch")}


def test_expectations() -> None:
    value = BOOTED.registers[SHA256][4]
    expected = Expected(
        values={"extra_data": NONCE, "pcr4": value}, prefixes={"pcr_digest": QUOTE.quote[-32:-30]}
    )
    assert verify(GENUINE, expected).verdict is Finding.AFFIRMING
    for name, code in (
        ("extra_data", "nonce_mismatch"),
        ("pcr4", "measurement_mismatch"),
        ("pcr4_sha384", "measurement_mismatch"),
    ):
        result = verify(GENUINE, Expected(values={name: b"something else"}))
        assert refused(result) == {(f"expected.{name}", code)}
    with pytest.raises(ConfigurationError):
        verify(GENUINE, Expected(values={"measurement": b""}))


def test_nothing_is_affirmed_of_what_the_key_did_not_sign() -> None:
    evidence = with_quote(signature=changed(QUOTE.signature, 100))
    result = verify(evidence, Expected(values={"extra_data": NONCE}))
    claims = {claim.name: claim for claim in result.claims}
    for name in ("tpm.pcr_digest", "eventlog.replay", "expected.extra_data"):
        assert claims[name].finding is Finding.NONE
        assert claims[name].code == "unauthenticated"
        assert claims[name].value == "pass"


def test_nothing_is_affirmed_of_a_key_that_nobody_vouches_for() -> None:
    """The quote holds, but by a key whose certificate does not."""
    evidence = replace(GENUINE, ak=certified(not_after=NOW - timedelta(hours=1)))
    result = verify(evidence, Expected(values={"extra_data": NONCE}))
    assert refused(result) == {("ak.time", "expired")}
    undecided = {claim.name for claim in result.claims if claim.finding is Finding.NONE}
    assert {"eventlog.replay", "expected.extra_data"} <= undecided


# The key.


def test_a_key_without_a_certificate_is_named_as_such() -> None:
    evidence = replace(GENUINE, ak=None)
    result = verify(evidence, policy=LENIENT)
    assert result.verdict is Finding.AFFIRMING
    assert result.platform == "TPM (key not certified)"
    assert Source.HARDWARE_PROVEN not in {claim.source for claim in result.claims}
    assert any("vouches" in sentence for sentence in result.not_proven)
    found = outcome(evidence, policy=LENIENT)
    assert found.bound is None
    assert not found.registers
    assert refused(verify(evidence)) == {("ak.certificate", "endorsements_missing")}


def test_without_any_key_there_is_nothing_to_check_with() -> None:
    evidence = TpmEvidence(quote=QUOTE)
    result = verify(evidence, policy=LENIENT)
    assert refused(result) == {("ak.certificate", "endorsements_missing")}
    assert outcome(evidence, policy=LENIENT).bound is None


def test_a_key_may_be_certified_alone() -> None:
    assert verify(replace(GENUINE, ak_public=None)).verdict is Finding.AFFIRMING


def test_a_plain_key_has_no_attributes_to_check() -> None:
    spki = BOOTED.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    result = verify(replace(GENUINE, ak_public=spki))
    assert result.verdict is Finding.AFFIRMING
    assert "ak.attributes" not in {claim.name for claim in result.claims}


def test_a_key_that_signs_anything_is_refused() -> None:
    attributes = ObjectAttribute.FIXED_TPM | ObjectAttribute.SIGN
    evidence = replace(GENUINE, ak_public=BOOTED.public(attributes=attributes))
    assert refused(verify(evidence)) == {("ak.attributes", "ak_purpose")}
    assert outcome(evidence).bound is None


def test_a_key_that_does_not_decode() -> None:
    result = verify(replace(GENUINE, ak_public=b"\0\1"))
    assert refused(result) == {("ak.public", "malformed")}
    undecided = {claim.name for claim in result.claims if claim.finding is Finding.NONE}
    assert {"ak.attributes", "ak.matches", "tpm.signature"} <= undecided


OTHER = SimulatedVtpm(key=simulated_rsa_key("another"))
STRANGER = SimulatedAkVendor(Vendor.TPM_MANUFACTURER, now=NOW)


@pytest.mark.parametrize(
    ("ak", "refusals"),
    [
        (certified(OTHER), {("ak.matches", "bad_ak_binding")}),
        (certified(not_after=NOW - timedelta(hours=1)), {("ak.time", "expired")}),
        (certified(not_before=NOW + timedelta(hours=1)), {("ak.time", "expired")}),
        (certified(usages=()), {("ak.purpose", "ak_purpose")}),
        (certified(usages=(TCG_KP_EK_CERTIFICATE,)), {("ak.purpose", "ak_purpose")}),
        (certified(may_sign=False), {("ak.purpose", "ak_purpose")}),
        (certified(ca=True), {("ak.purpose", "ak_purpose")}),
        (replace(certified(), intermediates=()), {("ak.chain", "bad_chain")}),
        (
            AkEvidence(
                certificate=STRANGER.certify(BOOTED.key.public_key()),
                intermediates=STRANGER.intermediates,
            ),
            {("ak.chain", "bad_chain")},
        ),
        (AkEvidence(certificate=b"\0"), {("ak.format", "malformed")}),
        (replace(certified(), intermediates=(b"\0",)), {("ak.format", "malformed")}),
        (
            replace(certified(), intermediates=VENDOR.intermediates * 9),
            {("ak.format", "malformed")},
        ),
    ],
)
def test_certificates(ak: AkEvidence, refusals: set[tuple[str, str]]) -> None:
    assert verify(GENUINE).verdict is Finding.AFFIRMING
    evidence = replace(GENUINE, ak=ak)
    assert refused(verify(evidence)) == refusals
    assert outcome(evidence).bound is None


def test_a_certificate_of_another_vendors_root() -> None:
    google = SimulatedAkVendor(Vendor.GOOGLE_VTPM, now=NOW)
    ak = AkEvidence(
        certificate=google.certify(BOOTED.key.public_key()), intermediates=google.intermediates
    )
    result = verify(replace(GENUINE, ak=ak), roots=google.roots)
    assert refused(result) == {("ak.chain", "bad_chain")}


def test_denied_certificates() -> None:
    evidence = replace(GENUINE, ak=certified())
    assert verify(evidence).verdict is Finding.AFFIRMING
    assert evidence.ak is not None
    leaf = parse_certificate(evidence.ak.certificate)
    spelt_otherwise = [
        respelled(one, P256_ORDER) for one in (leaf, VENDOR.intermediate, VENDOR.root)
    ]
    for certificate in (leaf, VENDOR.intermediate, VENDOR.root, *spelt_otherwise):
        denying = replace(STRICT, denied=(fingerprint(certificate),))
        assert refused(verify(evidence, policy=denying)) == {("ak.denied", "denied")}
    unchecked = replace(STRICT, denied=policy.UNCHECKED)
    assert "ak.denied" not in {claim.name for claim in verify(evidence, policy=unchecked).claims}


def test_an_unknown_critical_extension_is_refused() -> None:
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0")
    alternative = x509.SubjectAlternativeName([x509.DNSName("tpm.example")])
    for known in (
        certified(extensions=(extension,)),
        certified(extensions=(alternative,), critical=True),
    ):
        assert verify(replace(GENUINE, ak=known)).verdict is Finding.AFFIRMING
    unknown = certified(extensions=(extension,), critical=True)
    assert refused(verify(replace(GENUINE, ak=unknown))) == {("ak.chain", "bad_chain")}
