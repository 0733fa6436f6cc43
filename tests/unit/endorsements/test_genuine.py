"""What counts as signed under a pinned root, and what only looks like it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from urllib.parse import unquote_to_bytes

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements.artefact import (
    MAX_BYTES,
    MAX_ISSUER_CHAIN_BYTES,
    Artefact,
    ArtefactKind,
    nvidia_ocsp,
)
from cloister.endorsements.contents import make_artefact, parse_pem_chain
from cloister.endorsements.genuine import MAX_DEPTH, check_genuine, issued_under
from cloister.endorsements.roots import Anchor, Roots, Vendor
from cloister.errors import AuthenticationError, MalformedError
from cloister.testing.simulated_dcap import SimulatedIntel, pem
from cloister.verifier.chain import issued
from support.certificates import Party, issue
from support.ocsp import DEVICE, ISSUER, OTHER, answer
from support.published import (
    INTEL,
    NOW,
    PCK_CRL,
    QE_IDENTITY,
    ROOTS,
    TCB_INFO,
    TDX_NEEDS,
    Issue,
    amd_artefacts,
)

ISSUE = Issue()
ANCHOR = issue("root")
ANCHORS = (Anchor(vendor=Vendor.INTEL, certificate=ANCHOR.certificate),)


@pytest.mark.parametrize("artefact", [*map(ISSUE.artefact, TDX_NEEDS), *amd_artefacts()])
def test_genuine(artefact: Artefact) -> None:
    check_genuine(artefact, ROOTS)
    with pytest.raises(AuthenticationError) as raised:
        check_genuine(artefact, Roots(intermediates=ROOTS.intermediates))
    assert raised.value.code == "endorsement.signature"


def signed_by(certificate: object, key: ec.EllipticCurvePrivateKey) -> Artefact:
    """TCB info that `key` signed, with the certificate that belongs to it as its chain."""
    made = INTEL.collateral(tcb_info=INTEL.tcb_info(), signer=(certificate, key))  # type: ignore[arg-type]
    body = b'{"tcbInfo":%s,"signature":"%s"}' % (
        made.tcb_info,
        made.tcb_info_signature.hex().encode(),
    )
    return make_artefact(
        TCB_INFO, body, source="x", fetched_at=NOW, issuer_chain=made.tcb_info_issuer_chain
    )


def other_intel() -> SimulatedIntel:
    """Another root of the same name, with CAs and signers of the same names."""
    return SimulatedIntel(now=NOW)


FORGED: dict[str, Callable[[], Artefact]] = {
    "another root's signer": lambda: signed_by(other_intel().signer, other_intel().signing_key),
    "a CA that signs no documents": lambda: signed_by(
        INTEL.cas["platform"], INTEL.ca_keys["platform"]
    ),
    "the list of a CA of the same name": lambda: list_of(other_intel()),
    "the list of a CA that another CA signed": lambda: list_of(INTEL, by=other_intel()),
}


def list_of(intel: SimulatedIntel, *, by: SimulatedIntel | None = None) -> Artefact:
    by = by or intel
    return make_artefact(
        PCK_CRL,
        by.crl(by.cas["platform"], by.ca_keys["platform"]),
        source="x",
        fetched_at=NOW,
        issuer_chain=pem(by.cas["platform"], intel.root),
    )


@pytest.mark.parametrize("what", FORGED)
def test_forged(what: str) -> None:
    check_genuine(signed_by(INTEL.signer, INTEL.signing_key), ROOTS)
    check_genuine(list_of(INTEL), ROOTS)
    with pytest.raises(AuthenticationError):
        check_genuine(FORGED[what](), ROOTS)


def under(*candidates: Party) -> Callable[[Party], bool]:
    certificates = tuple(one.certificate for one in candidates)
    return lambda leaf: issued_under(leaf.certificate, certificates, ANCHORS)


def test_only_cas_issue() -> None:
    ca, leaf = issue("issuer", ANCHOR), issue("issuer", ANCHOR, ca=False)
    assert under(ca)(issue("x", ca))
    assert not under(leaf)(issue("x", leaf))
    assert not under()(issue("x", ca))


def test_a_chain_has_an_end() -> None:
    chain = [ANCHOR]
    for number in range(MAX_DEPTH + 1):
        chain.append(issue(f"ca {number}", chain[-1]))
    assert under(*chain[1:])(chain[MAX_DEPTH])
    assert not under(*chain[1:])(chain[MAX_DEPTH + 1])


def test_certificates_that_certify_each_other() -> None:
    one = issue("one")
    two = issue("two", one)
    back = issue("one", two, key=one.key)
    assert not under(one, two, back)(issue("x", one))


def test_a_heap_of_namesakes_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them issued every other one, as far as names and signatures tell."""
    first = issue("one")
    heap = [issue("one", first, key=first.key) for _ in range(8)]
    assert under(*heap, issue("one", ANCHOR, key=first.key))(issue("x", first))
    looks = 0

    def counted(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
        nonlocal looks
        looks += 1
        return issued(certificate, issuer)

    monkeypatch.setattr("cloister.endorsements.genuine._issued", counted)
    assert not under(*heap)(issue("x", first))
    assert 0 < looks < 100


def test_an_issuer_chain_is_text() -> None:
    good = ISSUE.artefact(TCB_INFO)
    for chain in (good.issuer_chain, b"notes\n" + good.issuer_chain):
        made = make_artefact(TCB_INFO, good.data, source="x", fetched_at=NOW, issuer_chain=chain)
        assert made.issuer_chain == chain
    with pytest.raises(MalformedError) as raised:
        make_artefact(
            TCB_INFO,
            good.data,
            source="x",
            fetched_at=NOW,
            issuer_chain=b"n\xf6tes\n" + good.issuer_chain,
        )
    assert raised.value.code == "endorsement.malformed"


def ocsp(data: bytes, *chain: Party) -> Artefact:
    return make_artefact(
        nvidia_ocsp(DEVICE.certificate, ISSUER.certificate),
        data,
        source="x",
        fetched_at=NOW,
        issuer_chain=b"".join(one.certificate.public_bytes(Encoding.PEM) for one in chain),
    )


def impostor() -> Party:
    """A CA with the issuer's name and another key."""
    return issue("provisioner")


def test_an_answer_about_another_certificate_is_not_this_one() -> None:
    check_genuine(ocsp(answer(), DEVICE, ISSUER), ROOTS)
    with pytest.raises(AuthenticationError):
        check_genuine(ocsp(answer(about=OTHER), OTHER, ISSUER), ROOTS)


def test_an_answer_by_somebody_with_the_issuers_name() -> None:
    other = impostor()
    data = answer(signer=other, issuer=other)
    with pytest.raises(AuthenticationError):
        check_genuine(ocsp(data, DEVICE, other), ROOTS)


def test_sizes_are_bounded() -> None:
    good = ISSUE.artefact(QE_IDENTITY)
    with pytest.raises(MalformedError, match="more than"):
        make_artefact(
            QE_IDENTITY,
            good.data + b" " * MAX_BYTES[ArtefactKind.INTEL_QE_IDENTITY],
            source="x",
            fetched_at=NOW,
        )
    chain = good.issuer_chain + b"\n" * MAX_ISSUER_CHAIN_BYTES
    with pytest.raises(MalformedError, match="too long"):
        make_artefact(QE_IDENTITY, good.data, source="x", fetched_at=NOW, issuer_chain=chain)
    with pytest.raises(MalformedError):
        parse_pem_chain(good.issuer_chain * 5)
    with pytest.raises(MalformedError):
        parse_pem_chain(b"")


def test_the_identity_of_another_enclave() -> None:
    reply = ISSUE.qe_identity
    data = reply.body.replace(b'"TD_QE"', b'"QE"')
    make_artefact(QE_IDENTITY, reply.body, source="x", fetched_at=NOW)
    with pytest.raises(MalformedError, match="identity of QE"):
        make_artefact(QE_IDENTITY, data, source="x", fetched_at=NOW)


def test_the_tcb_of_the_other_tee() -> None:
    made = INTEL.collateral(tcb_info=INTEL.tcb_info("SGX"))
    data = b'{"tcbInfo":%s,"signature":"%s"}' % (made.tcb_info, b"00" * 64)
    with pytest.raises(MalformedError, match="about SGX"):
        make_artefact(TCB_INFO, data, source="x", fetched_at=NOW)


def test_one_of_each_signature_part() -> None:
    """The signature covers the inner object as sent, white space and all."""
    good = ISSUE.artefact(TCB_INFO)
    assert good.issuer_chain == unquote_to_bytes(ISSUE.tcb_info.headers["TCB-Info-Issuer-Chain"])
    for data in (
        good.data.replace(b'{"tcbInfo":', b'\n{ "tcbInfo" : '),
        good.data.replace(b',"signature":', b' , "signature" : '),
    ):
        check_genuine(replace(good, data=data), ROOTS)
    with pytest.raises(AuthenticationError):
        check_genuine(replace(good, data=good.data.replace(b'"TDX",', b'"TDX", ')), ROOTS)
