"""Documents of simulated enclaves: each fault beside the unaltered document, same policy."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.endorsements.pinned import pinned_roots
from cloister.endorsements.roots import Anchor, Roots, Vendor, fingerprint
from cloister.errors import ConfigurationError
from cloister.testing.simulated_nitro import DEBUG_PCRS, DEFAULT_PCRS, SimulatedNitro, nsm_answer
from cloister.verifier.evidence import run
from cloister.verifier.expected import NOTHING_EXPECTED, Expected
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.platforms.nitro import NitroEvidence, verify_nitro
from cloister.verifier.policy import UNCHECKED, AppraisalPolicy, development, strict
from cloister.verifier.result import AttestationResult, Finding, Source
from support.certificates import P384_ORDER, respelled

NOW = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)
POLICY = development()
USER_DATA = bytes(range(32))


@pytest.fixture
def nitro() -> SimulatedNitro:
    return SimulatedNitro(now=NOW)


def verify(
    document: bytes,
    roots: Roots,
    *,
    policy: AppraisalPolicy = POLICY,
    at: datetime = NOW,
    expected: Expected = NOTHING_EXPECTED,
) -> AttestationResult:
    return run(
        verify_nitro,
        NitroEvidence(document=document),
        policy=policy,
        roots=roots,
        at=at,
        expected=expected,
    )


def outcome(document: bytes, roots: Roots) -> Outcome:
    return verify_nitro(
        NitroEvidence(document=document),
        policy=POLICY,
        roots=roots,
        at=NOW,
        expected=NOTHING_EXPECTED,
        ledger=Ledger(),
    )


def codes(result: AttestationResult) -> dict[str, str | None]:
    """What was refused, and why."""
    return {
        claim.name: claim.code
        for claim in result.claims
        if claim.finding is Finding.CONTRAINDICATED
    }


def values(result: AttestationResult) -> dict[str, str | None]:
    return {claim.name: claim.value for claim in result.claims}


def affirmed(nitro: SimulatedNitro) -> bytes:
    """A document that is affirmed, for the tests that change it."""
    document = nitro.document(user_data=USER_DATA)
    assert verify(document, nitro.roots).verdict is Finding.AFFIRMING
    return document


def test_affirmed(nitro: SimulatedNitro) -> None:
    document = affirmed(nitro)
    result = verify(document, nitro.roots)
    assert result.platform == "development (AWS Nitro Enclaves)"
    assert [claim.name for claim in result.claims] == [
        "nitro.document",
        "nitro.cose_signature",
        "nitro.chain",
        "nitro.time",
        "nitro.leaf",
        "nitro.enclave",
        "nitro.debug",
        "nitro.age",
        "nitro.denied",
        "platform.development",
    ]
    assert values(result)["nitro.debug"] == "off"
    assert result.facts["user_data"] == USER_DATA.hex()
    assert result.not_proven
    assert not any(claim.source is Source.HARDWARE_PROVEN for claim in result.claims)


def test_bound_and_registers(nitro: SimulatedNitro) -> None:
    found = outcome(affirmed(nitro), nitro.roots)
    assert found.bound == USER_DATA
    assert found.registers == {f"pcr{index}": DEFAULT_PCRS[index] for index in range(3)}
    assert found.development
    assert found.memory_confidentiality == "nitro"


@pytest.mark.parametrize("user_data", [USER_DATA, None])
def test_memory_is_protected_whatever_the_document_carries(
    nitro: SimulatedNitro, user_data: bytes | None
) -> None:
    document = nitro.document(user_data=user_data)
    assert verify(document, nitro.roots).memory_confidentiality == "none"
    genuine = Anchor(vendor=Vendor.AWS_NITRO, certificate=nitro.root.certificate)
    result = verify(document, Roots(anchors=(genuine,)))
    assert result.verdict is Finding.AFFIRMING
    assert result.memory_confidentiality == "nitro"
    forged = verify(document[:-1] + bytes([document[-1] ^ 1]), Roots(anchors=(genuine,)))
    assert codes(forged) == {"nitro.cose_signature": "bad_signature"}
    assert forged.memory_confidentiality == "none"


def test_wrapped(nitro: SimulatedNitro) -> None:
    assert verify(nsm_answer(affirmed(nitro)), nitro.roots).verdict is Finding.AFFIRMING


def test_only_a_policy_that_names_development(nitro: SimulatedNitro) -> None:
    result = verify(affirmed(nitro), nitro.roots, policy=strict())
    assert codes(result) == {"platform.development": "development_refused"}


def test_the_pinned_root_is_another(nitro: SimulatedNitro) -> None:
    document = affirmed(nitro)
    for roots in (pinned_roots(), Roots()):
        result = verify(document, roots)
        assert codes(result) == {"nitro.chain": "bad_chain"}
        assert values(result)["nitro.debug"] == "off"
        found = outcome(document, roots)
        assert (found.bound, dict(found.registers)) == (None, {})


def test_the_root_of_another_vendor(nitro: SimulatedNitro) -> None:
    document = affirmed(nitro)
    anchor = Anchor(vendor=Vendor.AMD, certificate=nitro.root.certificate, development=True)
    assert codes(verify(document, Roots(anchors=(anchor,)))) == {"nitro.chain": "bad_chain"}


def test_malformed(nitro: SimulatedNitro) -> None:
    result = verify(affirmed(nitro)[:-1], nitro.roots)
    assert codes(result) == {"nitro.document": "malformed"}
    assert result.verdict is Finding.CONTRAINDICATED
    assert result.facts == {}


def test_another_payload_under_the_signature(nitro: SimulatedNitro) -> None:
    parts = cbor2.loads(affirmed(nitro))
    changed = cbor2.loads(nitro.document(user_data=bytes(32)))
    parts[2] = changed[2]
    result = verify(cbor2.dumps(parts), nitro.roots)
    assert codes(result) == {"nitro.cose_signature": "bad_signature"}
    assert values(result)["nitro.chain"] == "pass"
    found = outcome(cbor2.dumps(parts), nitro.roots)
    assert (found.bound, dict(found.registers)) == (None, {})
    assert found.facts["user_data"] == bytes(32).hex()
    debug = next(claim for claim in result.claims if claim.name == "nitro.debug")
    assert (debug.finding, debug.code) == (Finding.NONE, "unauthenticated")


@pytest.mark.parametrize("signature", [bytes(96), b"\xff" * 96])
def test_signatures_out_of_range(nitro: SimulatedNitro, signature: bytes) -> None:
    parts = cbor2.loads(affirmed(nitro))
    parts[3] = signature
    assert codes(verify(cbor2.dumps(parts), nitro.roots)) == {
        "nitro.cose_signature": "bad_signature"
    }


def test_signed_by_another_enclave(nitro: SimulatedNitro) -> None:
    payload = nitro.payload()
    affirmed(nitro)
    nitro.enclave = nitro.certify_enclave(nitro.authorities[-1])
    assert codes(verify(nitro.sign(payload), nitro.roots)) == {
        "nitro.cose_signature": "bad_signature"
    }


def test_the_order_of_the_bundle_does_not_matter(nitro: SimulatedNitro) -> None:
    affirmed(nitro)
    payload = nitro.payload()
    payload["cabundle"].reverse()
    assert verify(nitro.sign(payload), nitro.roots).verdict is Finding.AFFIRMING


@pytest.mark.parametrize("index", [1, 2, 3])
def test_an_issuer_is_missing(nitro: SimulatedNitro, index: int) -> None:
    affirmed(nitro)
    payload = nitro.payload()
    missing = payload["cabundle"].pop(index)
    assert codes(verify(nitro.sign(payload), nitro.roots)) == {"nitro.chain": "bad_chain"}
    known = dataclasses.replace(
        nitro.roots, intermediates=(x509.load_der_x509_certificate(missing),)
    )
    assert verify(nitro.sign(payload), known).verdict is Finding.AFFIRMING


def test_the_root_need_not_come_along(nitro: SimulatedNitro) -> None:
    affirmed(nitro)
    payload = nitro.payload()
    payload["cabundle"].pop(0)
    assert verify(nitro.sign(payload), nitro.roots).verdict is Finding.AFFIRMING


@pytest.mark.parametrize("name", ["certificate", "cabundle"])
def test_a_certificate_does_not_decode(nitro: SimulatedNitro, name: str) -> None:
    affirmed(nitro)
    payload = nitro.payload()
    payload[name] = b"x" if name == "certificate" else [*payload[name], b"x"]
    result = verify(nitro.sign(payload), nitro.roots)
    assert codes(result) == {"nitro.chain": "malformed"}
    assert result.verdict is Finding.CONTRAINDICATED


def test_an_issuer_that_is_no_ca(nitro: SimulatedNitro) -> None:
    affirmed(nitro)
    zonal = nitro.authorities[2]
    for ca, verdict in ((True, Finding.AFFIRMING), (False, Finding.CONTRAINDICATED)):
        issuer = nitro.certify("instance", zonal, days=1, path_length=0, ca=ca)
        nitro.authorities = (*nitro.authorities[:3], issuer)
        nitro.enclave = nitro.certify_enclave(issuer)
        assert verify(nitro.document(), nitro.roots).verdict is verdict


def test_path_length(nitro: SimulatedNitro) -> None:
    """The instance's certificate must not make another CA."""
    affirmed(nitro)
    extra = nitro.certify("extra", nitro.authorities[-1], days=1, path_length=None)
    nitro.authorities = (*nitro.authorities, extra)
    nitro.enclave = nitro.certify_enclave(extra)
    assert codes(verify(nitro.document(), nitro.roots)) == {"nitro.chain": "bad_chain"}


@pytest.mark.parametrize("later", [timedelta(hours=3, minutes=1), timedelta(days=30)])
def test_expired(nitro: SimulatedNitro, later: timedelta) -> None:
    document = affirmed(nitro)
    result = verify(document, nitro.roots, at=NOW + later)
    assert codes(result) == {"nitro.time": "expired"}
    assert values(result)["nitro.chain"] == "pass"


def test_not_yet_valid(nitro: SimulatedNitro) -> None:
    document = affirmed(nitro)
    result = verify(document, nitro.roots, at=NOW - timedelta(seconds=10))
    assert codes(result) == {"nitro.time": "expired"}


def test_a_leaf_with_a_key_on_another_curve(nitro: SimulatedNitro) -> None:
    affirmed(nitro)
    nitro.enclave = nitro.certify_enclave(nitro.authorities[-1], curve=ec.SECP521R1())
    payload = nitro.payload()
    nitro.enclave = dataclasses.replace(nitro.enclave, key=ec.generate_private_key(ec.SECP384R1()))
    assert codes(verify(nitro.sign(payload), nitro.roots)) == {
        "nitro.cose_signature": "bad_signature",
        "nitro.leaf": "bad_leaf",
    }


def usage(*, digital_signature: bool = True, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=True,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def test_what_the_leaf_is_for(nitro: SimulatedNitro) -> None:
    affirmed(nitro)
    issuer = nitro.authorities[-1]
    nitro.enclave = nitro.certify_enclave(issuer, usage=usage())
    assert codes(verify(nitro.document(), nitro.roots)) == {}
    for made in (
        nitro.certify_enclave(issuer, usage=usage(digital_signature=False)),
        nitro.certify_enclave(issuer, usage=usage(key_cert_sign=True)),
        nitro.certify_enclave(issuer, ca=True),
    ):
        nitro.enclave = made
        assert codes(verify(nitro.document(), nitro.roots)) == {"nitro.leaf": "bad_leaf"}


def test_a_leaf_that_does_not_say_what_it_is_for(nitro: SimulatedNitro) -> None:
    affirmed(nitro)
    issuer = nitro.authorities[-1]
    builder = (
        x509.CertificateBuilder()
        .subject_name(nitro.enclave.certificate.subject)
        .issuer_name(issuer.certificate.subject)
        .public_key(nitro.enclave.key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(hours=3))
    )
    said = builder.add_extension(usage(), critical=False)
    for made, found in ((said, {}), (builder, {"nitro.leaf": "bad_leaf"})):
        certificate = made.sign(issuer.key, hashes.SHA384())
        nitro.enclave = dataclasses.replace(nitro.enclave, certificate=certificate)
        assert codes(verify(nitro.document(), nitro.roots)) == found


def test_a_ca_does_not_sign_documents(nitro: SimulatedNitro) -> None:
    """Whoever has the key of an instance's CA could sign what no enclave said."""
    affirmed(nitro)
    nitro.enclave = nitro.authorities[-1]
    nitro.authorities = nitro.authorities[:-1]
    assert codes(verify(nitro.document(), nitro.roots)) == {"nitro.leaf": "bad_leaf"}


@pytest.mark.parametrize(
    "pcrs",
    [
        DEBUG_PCRS,
        {**DEFAULT_PCRS, 0: bytes(48)},
        {**DEFAULT_PCRS, 2: bytes(48)},
        {index: value for index, value in DEFAULT_PCRS.items() if index != 1},
    ],
    ids=["all", "pcr0", "pcr2", "no pcr1"],
)
def test_debug(nitro: SimulatedNitro, pcrs: dict[int, bytes]) -> None:
    affirmed(nitro)
    document = nitro.document(pcrs=pcrs)
    result = verify(document, nitro.roots)
    assert codes(result) == {"nitro.debug": "debug"}
    assert values(result)["nitro.debug"] == "on"
    accepting = dataclasses.replace(POLICY, accept_debug=True)
    assert verify(document, nitro.roots, policy=accepting).verdict is Finding.AFFIRMING


def test_age(nitro: SimulatedNitro) -> None:
    document = affirmed(nitro)
    policy = dataclasses.replace(POLICY, max_evidence_age_s=60)
    for seconds, found in ((60, {}), (61, {"nitro.age": "evidence_too_old"})):
        at = NOW + timedelta(seconds=seconds)
        assert codes(verify(document, nitro.roots, policy=policy, at=at)) == found
        assert codes(verify(document, nitro.roots, at=at)) == {}


def test_in_the_future(nitro: SimulatedNitro) -> None:
    affirmed(nitro)
    for minutes, found in ((5, {}), (6, {"nitro.age": "evidence_in_future"})):
        document = nitro.document(timestamp=NOW + timedelta(minutes=minutes))
        assert codes(verify(document, nitro.roots)) == found


def test_denied(nitro: SimulatedNitro) -> None:
    document = affirmed(nitro)
    certificates = [one.certificate for one in (nitro.enclave, *nitro.authorities)]
    spelt_otherwise = [respelled(certificate, P384_ORDER) for certificate in certificates]
    for certificate in (*certificates, *spelt_otherwise):
        denied = (fingerprint(certificate),)
        policy = dataclasses.replace(POLICY, denied=denied)
        assert codes(verify(document, nitro.roots, policy=policy)) == {"nitro.denied": "denied"}
    unchecked = dataclasses.replace(POLICY, denied=UNCHECKED)
    assert "nitro.denied" not in values(verify(document, nitro.roots, policy=unchecked))


def test_the_nitro_tpm_of_an_instance_is_no_enclave(nitro: SimulatedNitro) -> None:
    affirmed(nitro)
    payload = nitro.payload()
    payload["nitrotpm_pcrs"] = payload.pop("pcrs")
    result = verify(nitro.sign(payload), nitro.roots)
    assert result.verdict is Finding.NONE
    kind = next(claim for claim in result.claims if claim.name == "nitro.enclave")
    assert kind.code == "platform_unsupported"
    found = outcome(nitro.sign(payload), nitro.roots)
    assert (found.bound, dict(found.registers)) == (None, {})


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nonce", "nonce_mismatch"),
        ("user_data", "user_data_mismatch"),
        ("public_key", "user_data_mismatch"),
        ("pcr0", "measurement_mismatch"),
        ("pcr8", "measurement_mismatch"),
        ("pcr16", "measurement_mismatch"),
    ],
)
def test_expected(nitro: SimulatedNitro, name: str, code: str) -> None:
    pcrs = {**DEFAULT_PCRS, 16: b"\x16" * 48}
    document = nitro.document(pcrs=pcrs, nonce=b"nonce", user_data=b"data", public_key=b"key")
    held = {"nonce": b"nonce", "user_data": b"data", "public_key": b"key"}
    held |= {f"pcr{index}": value for index, value in pcrs.items()}
    good = verify(document, nitro.roots, expected=Expected(values={name: held[name]}))
    assert good.verdict is Finding.AFFIRMING
    for wanted in (held[name][:-1] + b"!", b"", held[name] + b"\0"):
        result = verify(document, nitro.roots, expected=Expected(values={name: wanted}))
        assert codes(result) == {f"expected.{name}": code}


def test_expected_of_what_is_not_there(nitro: SimulatedNitro) -> None:
    document = affirmed(nitro)
    for name in ("nonce", "public_key", "pcr31"):
        result = verify(document, nitro.roots, expected=Expected(values={name: b""}))
        assert list(codes(result)) == [f"expected.{name}"]
    with pytest.raises(ConfigurationError):
        verify(document, nitro.roots, expected=Expected(values={"pcr32": b""}))
    with pytest.raises(ConfigurationError):
        verify(b"", nitro.roots, expected=Expected(values={"measurement": b""}))


def test_expected_is_not_affirmed_of_a_forgery(nitro: SimulatedNitro) -> None:
    document = affirmed(nitro)
    expected = Expected(values={"user_data": USER_DATA})
    good = verify(document, nitro.roots, expected=expected)
    assert good.verdict is Finding.AFFIRMING
    forged = verify(document, Roots(), expected=expected)
    claim = next(claim for claim in forged.claims if claim.name == "expected.user_data")
    assert claim.finding is Finding.NONE
