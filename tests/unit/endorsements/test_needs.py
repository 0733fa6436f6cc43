"""Evidence names what it needs."""

from __future__ import annotations

import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID

from cloister.endorsements.artefact import ArtefactKind, ArtefactRequest, ak_intermediate
from cloister.endorsements.contents import make_artefact
from cloister.endorsements.fetch.retrieve import HostRules, Retriever
from cloister.endorsements.fetch.transport import HttpAnswer, HttpRequest
from cloister.endorsements.fetch.vtpm import AkIntermediates
from cloister.endorsements.genuine import check_genuine
from cloister.endorsements.needs import requests_for
from cloister.endorsements.roots import Anchor, Roots, Vendor
from cloister.errors import (
    AuthenticationError,
    ConfigurationError,
    FetchError,
    MalformedError,
    UnsupportedError,
)
from cloister.evidence.report import (
    MEDIA_TYPE_CERTIFICATE,
    AttestationReport,
    Endorsement,
    EvidenceItem,
)
from cloister.evidence.rim import parse_rim
from cloister.evidence.snp import Product, SigningKey
from cloister.testing.simulated_nvgpu import SimulatedNvidia
from support.certificates import Party, issue
from support.published import (
    AMD,
    AMD_CHAIN,
    AMD_CRL,
    CHIP,
    EARLY,
    FMSPC,
    INTEL,
    NOW,
    TDX_NEEDS,
    VCEK,
)

PLATFORM = INTEL.platform(fmspc=FMSPC)
QUOTE = PLATFORM.tdx_quote()
SNP = AMD.report(CHIP)


def keys(*requests: ArtefactRequest) -> list[str]:
    return [f"{one.kind}:{one.key}" for one in requests]


def test_a_quote() -> None:
    assert requests_for(QUOTE) == TDX_NEEDS
    assert requests_for(QUOTE.hex().encode()) == TDX_NEEDS
    assert requests_for(QUOTE, early=True)[0] == EARLY


def test_an_sgx_quote_of_the_other_ca() -> None:
    quote = INTEL.platform(fmspc=FMSPC, ca="processor").sgx_quote()
    assert keys(*requests_for(quote)) == [
        "intel.tcb_info:sgx/90c06f000000/standard",
        "intel.qe_identity:sgx/standard",
        "intel.pck_crl:processor",
        "intel.root_crl:root",
    ]


def test_an_snp_report() -> None:
    assert requests_for(SNP) == (VCEK, AMD_CHAIN, AMD_CRL)


def test_a_report_by_a_loaded_key_has_no_chip() -> None:
    report = AMD.report(AMD.key(SigningKey.VLEK))
    assert keys(*requests_for(report)) == ["amd.vlek_chain:Milan", "amd.crl:Milan/vlek"]


def test_a_report_that_does_not_name_its_processor() -> None:
    report = AMD.report(CHIP, version=2)
    assert requests_for(report, product=Product.MILAN)[0] == VCEK
    with pytest.raises(ConfigurationError) as raised:
        requests_for(report)
    assert raised.value.code == "endorsement.product"


def test_a_chips_certificate() -> None:
    assert requests_for(CHIP.certificate) == (AMD_CHAIN, AMD_CRL)


def test_what_a_chips_certificate_does_not_say() -> None:
    other = AMD.key(hwid=b"\x55" * 64)
    with pytest.raises(MalformedError) as raised:
        make_artefact(VCEK, other.certificate, source="x", fetched_at=NOW)
    assert raised.value.code == "endorsement.malformed"
    other = AMD.key(SigningKey.VLEK)
    with pytest.raises(MalformedError):
        make_artefact(VCEK, other.certificate, source="x", fetched_at=NOW)


def whole_report(*items: EvidenceItem) -> bytes:
    return AttestationReport(
        api_version="aci/1",
        keyset_digest="sha256:" + "00" * 32,
        tee_type="x",
        keyset={},
        report_data=bytes(32),
        evidence={str(number): item for number, item in enumerate(items)},
    ).encode()


def test_a_whole_report() -> None:
    items = (EvidenceItem(media_type="x", data=data) for data in (SNP, QUOTE, bytes(9)))
    assert set(requests_for(whole_report(*items))) == {VCEK, AMD_CHAIN, AMD_CRL, *TDX_NEEDS}


def test_a_quote_of_a_tpm_with_its_aks_certificate() -> None:
    quote = b"\xffTCG\x80\x18" + bytes(40)
    for chain, needed in (((der(AK),), 1), ((der(AK), der(ISSUING)), 1), ((), 0)):
        endorsements = (
            *(Endorsement(media_type=MEDIA_TYPE_CERTIFICATE, data=data) for data in chain),
            Endorsement(media_type="text/plain", data=b"no certificate"),
        )
        item = EvidenceItem(media_type="x", data=quote, endorsements=endorsements)
        assert len(requests_for(whole_report(item))) == needed


def test_what_needs_nothing_that_is_known() -> None:
    with pytest.raises(UnsupportedError) as raised:
        requests_for(b"something else")
    assert raised.value.code == "endorsement.evidence"
    with pytest.raises(MalformedError):
        requests_for(QUOTE[:-700])


def pointing(name: str, issuer: Party, *urls: str) -> Party:
    access = x509.AuthorityInformationAccess(
        x509.AccessDescription(
            AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(url)
        )
        for url in urls
    )
    return issue(name, issuer, extensions=[(access, False)] if urls else [])


ROOT = issue("Azure root")
BASE = "http://primary-cdn.pki.core.windows.net"
POLICY = pointing("policy CA", ROOT, f"{BASE}/root")
ISSUING = pointing("issuing CA", POLICY, f"{BASE}/policy")
AK = pointing("AK", ISSUING, f"{BASE}/issuing", "http://secondary-cdn.pki.core.windows.net/issuing")
AZURE = Roots(anchors=(Anchor(vendor=Vendor.AZURE_VTPM, certificate=ROOT.certificate),))


def der(party: Party) -> bytes:
    return party.certificate.public_bytes(Encoding.DER)


class Cdn:
    """Where the CAs above an AK are published; `asked` in order."""

    def __init__(self, **files: bytes) -> None:
        self.files = files
        self.asked: list[str] = []

    def exchange(self, request: HttpRequest, *, limit: int, total_s: float) -> HttpAnswer:
        name = request.url.rpartition("/")[2]
        self.asked.append(name)
        return HttpAnswer(status=200, headers={}, body=self.files[name])


def above_ak(cdn: Cdn, roots: Roots = AZURE) -> AkIntermediates:
    return AkIntermediates(Retriever(cdn, hosts=HostRules(plain_http=True)), roots=roots)


def test_the_cas_above_an_ak_come_together() -> None:
    (request,) = requests_for(der(AK))
    assert (request.kind, request.key) == (ArtefactKind.AZURE_AK_INTERMEDIATE, f"{BASE}/issuing")
    pem = ISSUING.certificate.public_bytes(Encoding.PEM)
    for issuing in (der(ISSUING), pem):
        cdn = Cdn(issuing=issuing, policy=der(POLICY))
        found = above_ak(cdn).fetch(request, at=NOW)
        check_genuine(found, AZURE)
        assert (cdn.asked, found.data) == (["issuing", "policy"], der(ISSUING))


def test_googles_are_told_apart() -> None:
    ak = pointing("AK", ROOT, "https://pki.goog/cloud_integrity/x.crt")
    assert requests_for(der(ak))[0].kind is ArtefactKind.GCP_AK_INTERMEDIATE
    assert requests_for(pointing("AK", ROOT).certificate.public_bytes(Encoding.PEM)) == ()


def test_the_way_up_has_an_end() -> None:
    other = pointing("loop", issue("nobody"), f"{BASE}/policy")
    cdn = Cdn(issuing=der(ISSUING), policy=der(other))
    found = above_ak(cdn).fetch(ak_intermediate(f"{BASE}/issuing", azure=True), at=NOW)
    assert cdn.asked == ["issuing", "policy", "policy"]
    with pytest.raises(AuthenticationError):
        check_genuine(found, AZURE)


def test_what_is_no_ca() -> None:
    request = ak_intermediate(f"{BASE}/issuing", azure=True)
    leaf = issue("leaf", ROOT, ca=False)
    for body in (der(leaf), b"<html>"):
        with pytest.raises(FetchError) as raised:
            above_ak(Cdn(issuing=body)).fetch(request, at=NOW)
        assert raised.value.code == "fetch.content"


def test_another_clouds_root_is_none() -> None:
    made = make_artefact(
        ak_intermediate(f"{BASE}/policy", azure=True), der(POLICY), source="x", fetched_at=NOW
    )
    check_genuine(made, AZURE)
    google = Roots(anchors=(Anchor(vendor=Vendor.GOOGLE_VTPM, certificate=ROOT.certificate),))
    with pytest.raises(AuthenticationError):
        check_genuine(made, google)


def test_a_manifest_asks_about_its_signers() -> None:
    nvidia = SimulatedNvidia.make(now=NOW)
    rim = nvidia.driver_rim(nvidia.device())
    chain = [x509.load_der_x509_certificate(der) for der in parse_rim(rim).certificates]
    asked = requests_for(rim)
    assert [one.kind for one in asked] == [ArtefactKind.NVIDIA_OCSP] * (len(chain) - 1)
    assert [one.key for one in asked] == [
        hashlib.sha256(one.public_bytes(Encoding.DER)).hexdigest() for one in chain[:-1]
    ]
    with pytest.raises(MalformedError):
        requests_for(rim.replace(b"</SoftwareIdentity>", b""))
