"""Authentication of Intel's collateral: each claim with what keeps it and what breaks it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements.intel import Collateral, parse_members
from cloister.endorsements.roots import Anchor, Roots, Vendor
from cloister.errors import MalformedError
from cloister.testing.simulated_dcap import (
    SimulatedIntel,
    date,
    document,
    pem,
    raw_signature,
    tcb_level,
)
from cloister.testing.simulated_dcap_parts import der
from cloister.verifier.authenticate import intel_collateral as module
from cloister.verifier.authenticate.intel_collateral import (
    CLAIMS,
    SignedCollateral,
    authenticate_collateral,
    authenticate_signed,
    check_signatures,
)
from cloister.verifier.ledger import NOT_CHECKED, Ledger
from cloister.verifier.result import Claim, Finding

NOW = datetime(2026, 6, 1, tzinfo=UTC)
INTEL = SimulatedIntel(now=NOW)
OTHER = SimulatedIntel(now=NOW)
PLATFORM = INTEL.platform()
GOOD = INTEL.collateral()


def claims(
    collateral: Collateral, *, roots: Roots = INTEL.roots, at: datetime = NOW
) -> tuple[bool, dict[str, Claim]]:
    """Whether it is authentic, and the claims without their prefix."""
    ledger = Ledger()
    ledger.expect(*(f"tdx.{name}" for name in CLAIMS))
    found = authenticate_collateral(collateral, roots=roots, at=at, ledger=ledger, prefix="tdx.")
    made = {claim.name.removeprefix("tdx."): claim for claim in ledger.close(development=False)}
    assert tuple(made) == CLAIMS
    if found is not None:
        assert found.value == parse_members(collateral)
    return found is not None, made


def broken(made: dict[str, Claim]) -> dict[str, tuple[str | None, str | None]]:
    return {
        name: (claim.code, claim.value)
        for name, claim in made.items()
        if claim.finding is not Finding.AFFIRMING
    }


def affirm_good() -> None:
    authentic, made = claims(GOOD)
    assert (authentic, broken(made)) == (True, {})


def flipped(data: bytes, place: int = -1) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1
    return bytes(changed)


def signed_by(
    certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, *issuers: x509.Certificate
) -> Collateral:
    made = INTEL.collateral(signer=(certificate, key))
    chain = pem(certificate, *issuers, INTEL.root)
    return dataclasses.replace(made, tcb_info_issuer_chain=chain, qe_identity_issuer_chain=chain)


def under_a_ca() -> Collateral:
    """Signed under the right name, but below a PCK CA instead of the root."""
    key = ec.generate_private_key(ec.SECP256R1())
    ca = INTEL.cas["platform"]
    leaf = INTEL.certify(
        module.TCB_SIGNING_NAME, key, issuer=ca, issuer_key=INTEL.ca_keys["platform"]
    )
    return signed_by(leaf, key, ca)


def another_name() -> Collateral:
    key = ec.generate_private_key(ec.SECP256R1())
    return signed_by(INTEL.certify("Intel SGX Something", key), key)


def another_qe_signer() -> Collateral:
    """Only the QE identity is another's, and its signature holds."""
    key = ec.generate_private_key(ec.SECP256R1())
    return dataclasses.replace(
        GOOD,
        qe_identity_issuer_chain=pem(INTEL.certify("Intel SGX Something", key), INTEL.root),
        qe_identity_signature=raw_signature(key, GOOD.qe_identity),
    )


def another_curve() -> Collateral:
    """A signature that holds, on a curve of the same size."""
    key = ec.generate_private_key(ec.SECP256K1())
    certificate = INTEL.certify(module.TCB_SIGNING_NAME, key)
    return dataclasses.replace(
        GOOD,
        tcb_info_issuer_chain=pem(certificate, INTEL.root),
        tcb_info_signature=raw_signature(key, GOOD.tcb_info),
    )


def padded(signature: bytes) -> bytes:
    """The same two numbers in one byte more."""
    return signature[:32] + b"\0" + signature[32:]


def other_ca_crl(*, name: bool) -> Collateral:
    """A list signed by a CA that the root issued for something else."""
    key = ec.generate_private_key(ec.SECP256R1())
    ca = INTEL.certify("Intel SGX Other CA" if name else "Intel SGX PCK Platform CA", key, ca=0)
    return dataclasses.replace(
        GOOD, pck_crl=INTEL.crl(ca, key), pck_crl_issuer_chain=pem(ca, INTEL.root)
    )


def crl_of_another_name() -> Collateral:
    """Signed with the platform CA's key, in the name of the processor CA."""
    crl = INTEL.crl(INTEL.cas["processor"], INTEL.ca_keys["platform"])
    return dataclasses.replace(GOOD, pck_crl=crl)


def without_next_update(data: bytes) -> bytes:
    """A list of the platform CA's (DER), signed anew without the date of the next one."""
    tbs = x509.load_der_x509_crl(data).tbs_certlist_bytes
    size = 15
    first = tbs.index(b"\x17\x0d")
    assert tbs[first + size : first + size + 2] == b"\x17\x0d"
    # The outer sequence's own length takes one byte of length and two of tag and size.
    assert tbs[:2] == b"\x30\x81"
    changed = der(0x30, tbs[3 : first + size] + tbs[first + 2 * size :])
    signature = INTEL.ca_keys["platform"].sign(changed, ec.ECDSA(hashes.SHA256()))
    ecdsa_with_sha256 = bytes.fromhex("300a06082a8648ce3d040302")
    return der(0x30, changed + ecdsa_with_sha256 + der(0x03, b"\0" + signature))


def edited() -> Collateral:
    text = GOOD.tcb_info.replace(b'"UpToDate"', b'"UpToDatE"')
    assert text != GOOD.tcb_info
    return dataclasses.replace(GOOD, tcb_info=text)


SIGNATURE = "collateral_signature"
CRL = "crl_signature"
CHANGES: list[tuple[Callable[[], Collateral], dict[str, str]]] = [
    (edited, {"tcb_info_sig": SIGNATURE}),
    (
        lambda: dataclasses.replace(GOOD, tcb_info=GOOD.tcb_info + b" "),
        {"tcb_info_sig": SIGNATURE},
    ),
    (
        lambda: dataclasses.replace(GOOD, tcb_info_signature=flipped(GOOD.tcb_info_signature)),
        {"tcb_info_sig": SIGNATURE},
    ),
    (
        lambda: dataclasses.replace(GOOD, tcb_info_signature=bytes(64)),
        {"tcb_info_sig": SIGNATURE},
    ),
    (
        lambda: dataclasses.replace(GOOD, tcb_info_signature=padded(GOOD.tcb_info_signature)),
        {"tcb_info_sig": SIGNATURE},
    ),
    (
        lambda: dataclasses.replace(GOOD, qe_identity_signature=GOOD.tcb_info_signature),
        {"qe_identity_sig": SIGNATURE},
    ),
    (another_curve, {"tcb_info_sig": SIGNATURE}),
    (
        lambda: dataclasses.replace(GOOD, root_ca_crl=flipped(GOOD.root_ca_crl)),
        {"root_crl_sig": CRL},
    ),
    (
        lambda: dataclasses.replace(GOOD, root_ca_crl=GOOD.pck_crl),
        {"root_crl_sig": CRL},
    ),
    (
        lambda: dataclasses.replace(GOOD, root_ca_crl=OTHER.collateral().root_ca_crl),
        {"root_crl_sig": CRL},
    ),
    (
        # The root's key, in another name.
        lambda: dataclasses.replace(GOOD, root_ca_crl=INTEL.crl(INTEL.signer, INTEL.root_key)),
        {"root_crl_sig": CRL},
    ),
    (lambda: dataclasses.replace(GOOD, pck_crl=flipped(GOOD.pck_crl)), {"pck_crl_sig": CRL}),
    (
        lambda: dataclasses.replace(GOOD, pck_crl=OTHER.collateral().pck_crl),
        {"pck_crl_sig": CRL},
    ),
    (crl_of_another_name, {"pck_crl_sig": CRL}),
    (lambda: other_ca_crl(name=True), {"pck_crl_sig": "bad_chain"}),
    (under_a_ca, {"tcb_signer_chain": "bad_chain"}),
    (another_name, {"tcb_signer_chain": "bad_chain"}),
    (another_qe_signer, {"tcb_signer_chain": "bad_chain"}),
    (
        lambda: signed_by(PLATFORM.certificate, PLATFORM.key, INTEL.cas["platform"]),
        {"tcb_signer_chain": "bad_chain"},
    ),
    (lambda: signed_by(INTEL.root, INTEL.root_key), {"tcb_signer_chain": "bad_chain"}),
    (
        lambda: signed_by(OTHER.signer, OTHER.signing_key),
        {"tcb_signer_chain": "bad_chain"},
    ),
    (lambda: INTEL.collateral(revoked=[INTEL.signer]), {"tcb_signer_chain": "revoked"}),
    (lambda: INTEL.collateral(revoked=[INTEL.cas["platform"]]), {"pck_crl_sig": "revoked"}),
]


@pytest.mark.parametrize(("change", "codes"), CHANGES, ids=range(len(CHANGES)))
def test_what_is_not_authentic(change: Callable[[], Collateral], codes: dict[str, str]) -> None:
    affirm_good()
    authentic, made = claims(change())
    assert not authentic
    assert broken(made) == {name: (code, "fail") for name, code in codes.items()}
    assert all(made[name].finding is Finding.CONTRAINDICATED for name in codes)


def test_a_ca_with_the_right_name_from_the_root_may_sign_a_list() -> None:
    """Whether it is the one that issued the platform's certificate is asked in appraisal."""
    authentic, _ = claims(other_ca_crl(name=False))
    assert authentic


def test_a_crl_with_something_critical_is_not_understood() -> None:
    affirm_good()
    ca, key = INTEL.cas["platform"], INTEL.ca_keys["platform"]
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(NOW - timedelta(days=1))
        .next_update(NOW + timedelta(days=1))
        .add_extension(x509.DeltaCRLIndicator(1), critical=True)
        .sign(key, hashes.SHA256())
    )
    authentic, made = claims(dataclasses.replace(GOOD, pck_crl=crl.public_bytes(Encoding.DER)))
    assert not authentic
    assert broken(made) == {"pck_crl_sig": (CRL, "fail")}


def test_nothing_is_trusted_but_what_is_pinned_for_intel() -> None:
    affirm_good()
    for roots in (
        Roots(),
        OTHER.roots,
        Roots(anchors=(Anchor(vendor=Vendor.AMD, certificate=INTEL.root),)),
        Roots(intermediates=(INTEL.root, INTEL.signer)),
    ):
        authentic, made = claims(GOOD, roots=roots)
        assert not authentic
        assert broken(made) == {
            "tcb_signer_chain": ("bad_chain", "fail"),
            "root_crl_sig": (CRL, "fail"),
            "pck_crl_sig": ("bad_chain", "fail"),
        }


def test_all_of_it_leads_to_one_root() -> None:
    """Of several that are pinned, the list of one says nothing of what another issued."""
    both = INTEL.roots.merged(OTHER.roots)
    for own in (INTEL, OTHER):
        authentic, made = claims(own.collateral(), roots=both)
        assert (authentic, broken(made)) == (True, {})
    foreign = OTHER.collateral()
    for altered in (
        dataclasses.replace(GOOD, root_ca_crl=foreign.root_ca_crl),
        dataclasses.replace(
            GOOD, pck_crl=foreign.pck_crl, pck_crl_issuer_chain=foreign.pck_crl_issuer_chain
        ),
        dataclasses.replace(
            GOOD,
            qe_identity=foreign.qe_identity,
            qe_identity_signature=foreign.qe_identity_signature,
            qe_identity_issuer_chain=foreign.qe_identity_issuer_chain,
        ),
    ):
        authentic, made = claims(altered, roots=both)
        assert (authentic, broken(made)) == (False, {"root_crl_sig": ("crl_signature", "fail")})


def test_what_does_not_decode_is_a_claim() -> None:
    affirm_good()
    authentic, made = claims(dataclasses.replace(GOOD, tcb_info=b"{}"))
    assert not authentic
    first, *others = made.values()
    assert (first.name, first.code, first.finding) == (
        "tdx.collateral_format",
        "malformed",
        Finding.CONTRAINDICATED,
    )
    assert {claim.code for claim in others} == {NOT_CHECKED}
    with pytest.raises(MalformedError):
        check_signatures(dataclasses.replace(GOOD, tcb_info=b"{}"), roots=INTEL.roots)


DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)


def with_dates(part: str, issued: datetime, until: datetime) -> Collateral:
    """Collateral of which one part is current from `issued` until `until`, both included."""
    match part:
        case "tcb_info":
            return INTEL.collateral(tcb_info=INTEL.tcb_info(issued=issued, until=until))
        case "qe_identity":
            return INTEL.collateral(qe_identity=INTEL.qe_identity(issued=issued, until=until))
        case "pck_crl":
            ca, key = INTEL.cas["platform"], INTEL.ca_keys["platform"]
            return INTEL.collateral(pck_crl=INTEL.crl(ca, key, issued=issued, until=until))
        case _:
            crl = INTEL.crl(INTEL.root, INTEL.root_key, issued=issued, until=until)
            return INTEL.collateral(root_crl=crl)


@pytest.mark.parametrize("part", ["tcb_info", "qe_identity", "pck_crl", "root_crl"])
def test_every_part_must_be_current(part: str) -> None:
    issued, until = NOW - DAY / 2, NOW + DAY
    made = with_dates(part, issued, until)
    for at in (issued, NOW, until):
        assert claims(made, at=at)[0], at
    for at in (issued - SECOND, until + SECOND):
        authentic, found = claims(made, at=at)
        assert not authentic
        assert broken(found) == {"collateral_time": ("expired", f"fail ({part})")}


def test_several_parts_are_named_in_order() -> None:
    assert claims(GOOD, at=NOW + 28 * DAY)[0]
    authentic, made = claims(GOOD, at=NOW + 40 * DAY)
    assert not authentic
    assert broken(made) == {
        "collateral_time": ("expired", "fail (tcb_info,qe_identity,pck_crl,root_crl)")
    }


def test_certificates_must_be_current() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    short = INTEL.certify(module.TCB_SIGNING_NAME, key, not_after=NOW + DAY)
    made = INTEL.collateral(signer=(short, key))
    assert claims(made)[0]
    authentic, found = claims(made, at=NOW + 2 * DAY)
    assert not authentic
    stale = "fail (tcb_info_issuer_chain,qe_identity_issuer_chain)"
    assert broken(found) == {"collateral_time": ("expired", stale)}


def test_a_list_without_an_end_is_never_current() -> None:
    affirm_good()
    crl = without_next_update(GOOD.pck_crl)
    authentic, made = claims(dataclasses.replace(GOOD, pck_crl=crl))
    assert not authentic
    assert made["collateral_time"].value == "fail (pck_crl)"


def test_an_intermediate_that_is_pinned_completes_a_chain() -> None:
    """The TCB signing certificate alone will do, for its issuer is the root."""
    alone = dataclasses.replace(GOOD, tcb_info_issuer_chain=pem(INTEL.signer))
    assert claims(alone)[0]


def test_signatures_are_checked_once_for_many_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    signed = check_signatures(GOOD, roots=INTEL.roots)
    monkeypatch.setattr(module, "_signed", pytest.fail)
    monkeypatch.setattr(module, "authenticate_chain", pytest.fail)
    monkeypatch.setattr(module, "signed_crl", pytest.fail)
    for at, holds in ((NOW, True), (NOW + 40 * DAY, False), (NOW, True)):
        ledger = Ledger()
        found = authenticate_signed(signed, roots=INTEL.roots, at=at, ledger=ledger, prefix="sgx.")
        assert (found is not None) is holds


@pytest.mark.parametrize("days", [0, 40])
def test_both_ways_claim_the_same(days: int) -> None:
    at = NOW + days * DAY
    for made in (GOOD, edited(), INTEL.collateral(revoked=[INTEL.signer])):
        _, direct = claims(made, at=at)
        ledger = Ledger()
        signed = check_signatures(made, roots=INTEL.roots)
        authenticate_signed(signed, roots=INTEL.roots, at=at, ledger=ledger, prefix="tdx.")
        again = ledger.close([f"tdx.{name}" for name in CLAIMS], development=False)
        assert again == tuple(direct.values())


def test_signatures_under_a_root_that_is_no_longer_pinned_count_for_nothing() -> None:
    both = INTEL.roots.merged(OTHER.roots)
    signed = check_signatures(GOOD, roots=both)
    for roots, holds in ((both, True), (INTEL.roots, True), (OTHER.roots, False)):
        ledger = Ledger()
        found = authenticate_signed(signed, roots=roots, at=NOW, ledger=ledger, prefix="tdx.")
        assert (found is not None) is holds
    made = ledger.close([f"tdx.{name}" for name in CLAIMS], development=False)
    assert {claim.code for claim in made} == {None, "bad_chain"}


def test_simulated_collateral_says_so() -> None:
    assert check_signatures(GOOD, roots=INTEL.roots).development
    real = Roots(anchors=(Anchor(vendor=Vendor.INTEL, certificate=INTEL.root),))
    assert not check_signatures(GOOD, roots=real).development


def test_nobody_else_makes_signed_collateral() -> None:
    signed = check_signatures(GOOD, roots=INTEL.roots)
    with pytest.raises(TypeError, match="check_signatures"):
        SignedCollateral(signed.collateral, (), ())


def test_the_signed_text_is_what_counts_not_its_meaning() -> None:
    """The same JSON, written otherwise, is another text."""
    affirm_good()
    info = INTEL.tcb_info(levels=[tcb_level()])
    spaced = document(info).replace(b":", b": ")
    made = INTEL.collateral(tcb_info=info)
    assert claims(made)[0]
    assert not claims(dataclasses.replace(made, tcb_info=spaced))[0]
    assert date(NOW) == "2026-06-01T00:00:00Z"
