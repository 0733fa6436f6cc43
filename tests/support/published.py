"""What simulated vendors publish, as artefacts and as the answers of their services."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements.artefact import (
    Artefact,
    ArtefactRequest,
    amd_chain,
    amd_crl,
    amd_vcek,
    intel_pck_crl,
    intel_qe_identity,
    intel_root_crl,
    intel_tcb_info,
)
from cloister.endorsements.contents import make_artefact
from cloister.endorsements.intel import Collateral
from cloister.endorsements.roots import Anchor, Roots, Vendor
from cloister.evidence.snp import Product
from cloister.testing.simulated_dcap import TDX, SimulatedIntel, date, tcb_level
from cloister.testing.simulated_snp import SimulatedAmd, SimulatedKey
from support.certificates import Party, issue
from support.vendor_server import Reply, VendorServer

NOW = datetime(2026, 6, 1, tzinfo=UTC)
FMSPC = bytes.fromhex("90c06f000000")
TCB_INFO = intel_tcb_info("tdx", FMSPC)
EARLY = intel_tcb_info("tdx", FMSPC, early=True)
QE_IDENTITY = intel_qe_identity("tdx")
PCK_CRL = intel_pck_crl("platform")
ROOT_CRL = intel_root_crl()
TDX_NEEDS = (TCB_INFO, QE_IDENTITY, PCK_CRL, ROOT_CRL)

INTEL = SimulatedIntel(now=NOW)
AMD = SimulatedAmd(now=NOW, product=Product.MILAN)
CHIP: SimulatedKey = AMD.key()
NVIDIA: Party = issue("Simulated NVIDIA root")
VCEK = amd_vcek(Product.MILAN, CHIP.chip_id, CHIP.tcb)
AMD_CHAIN = amd_chain(Product.MILAN)
AMD_CRL = amd_crl(Product.MILAN)

ROOTS = INTEL.roots.merged(AMD.roots).merged(
    Roots(anchors=(Anchor(vendor=Vendor.NVIDIA_DEVICE, certificate=NVIDIA.certificate),))
)

TCB_PATH = "/tdx/certification/v4/tcb?fmspc=90C06F000000&update=standard"
EARLY_PATH = "/tdx/certification/v4/tcb?fmspc=90C06F000000&update=early"
QE_PATH = "/tdx/certification/v4/qe/identity?update=standard"
PCK_CRL_PATH = "/sgx/certification/v4/pckcrl?ca=platform&encoding=der"
ROOT_CRL_PATH = "/sgx/certification/v4/rootcacrl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """One issue of Intel's collateral."""

    issued: datetime = NOW - timedelta(hours=1)
    lasts: timedelta = timedelta(days=30)
    number: int = 19
    svn: int | None = None
    """What the newest level asks of the first SGX component, if more than the platform has."""
    collateral: Collateral = field(init=False)

    def __post_init__(self) -> None:
        level = tcb_level(TDX)
        levels = [level]
        if self.svn is not None:
            newer = json.loads(json.dumps(level))
            newer["tcb"]["sgxtcbcomponents"][0]["svn"] = self.svn
            newer["tcbDate"] = date(NOW)
            levels = [newer, {**level, "tcbStatus": "OutOfDate", "advisoryIDs": ["INTEL-SA-1"]}]
        until = self.issued + self.lasts
        info = INTEL.tcb_info(
            TDX, levels=levels, issued=self.issued, until=until, evaluation_number=self.number
        )
        identity = INTEL.qe_identity(
            TDX, issued=self.issued, until=until, evaluation_number=self.number
        )
        made = INTEL.collateral(
            TDX,
            tcb_info=info,
            qe_identity=identity,
            pck_crl=INTEL.crl(
                INTEL.cas["platform"],
                INTEL.ca_keys["platform"],
                issued=self.issued,
                until=until,
            ),
            root_crl=INTEL.crl(INTEL.root, INTEL.root_key, issued=self.issued, until=until),
        )
        object.__setattr__(self, "collateral", made)

    @property
    def tcb_info(self) -> Reply:
        made = self.collateral
        return _signed(
            "tcbInfo",
            made.tcb_info,
            made.tcb_info_signature,
            "TCB-Info-Issuer-Chain",
            made.tcb_info_issuer_chain,
        )

    @property
    def qe_identity(self) -> Reply:
        made = self.collateral
        return _signed(
            "enclaveIdentity",
            made.qe_identity,
            made.qe_identity_signature,
            "SGX-Enclave-Identity-Issuer-Chain",
            made.qe_identity_issuer_chain,
        )

    @property
    def pck_crl(self) -> Reply:
        chain = quote(self.collateral.pck_crl_issuer_chain)
        return Reply(body=self.collateral.pck_crl, headers={"SGX-PCK-CRL-Issuer-Chain": chain})

    @property
    def root_crl(self) -> Reply:
        return Reply(body=self.collateral.root_ca_crl.hex().encode())

    def artefact(self, request: ArtefactRequest, *, fetched_at: datetime = NOW) -> Artefact:
        """As a fetcher would make it."""
        reply, chain = {
            TCB_INFO: (self.tcb_info, self.collateral.tcb_info_issuer_chain),
            EARLY: (self.tcb_info, self.collateral.tcb_info_issuer_chain),
            QE_IDENTITY: (self.qe_identity, self.collateral.qe_identity_issuer_chain),
            PCK_CRL: (self.pck_crl, self.collateral.pck_crl_issuer_chain),
            ROOT_CRL: (Reply(body=self.collateral.root_ca_crl), b""),
        }[request]
        return make_artefact(
            request, reply.body, source="simulated", fetched_at=fetched_at, issuer_chain=chain
        )

    def publish(self, server: VendorServer) -> None:
        """Answer as Intel's service does."""
        server.answers |= {
            TCB_PATH: self.tcb_info,
            EARLY_PATH: self.tcb_info,
            QE_PATH: self.qe_identity,
            PCK_CRL_PATH: self.pck_crl,
            ROOT_CRL_PATH: self.root_crl,
        }


def amd_artefacts(*, fetched_at: datetime = NOW) -> tuple[Artefact, ...]:
    """VCEK, chain and revocation list."""
    data = ((VCEK, CHIP.certificate), (AMD_CHAIN, amd_chain_pem()), (AMD_CRL, AMD.crl()))
    return tuple(
        make_artefact(request, body, source="simulated", fetched_at=fetched_at)
        for request, body in data
    )


def amd_chain_pem() -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in (AMD.ask, AMD.ark))


def publish_amd(server: VendorServer) -> None:
    """Answer as AMD's service does."""
    server.answers |= {
        f"/vcek/v1/{VCEK.key}": Reply(body=CHIP.certificate),
        "/vcek/v1/Milan/cert_chain": Reply(body=amd_chain_pem()),
        "/vcek/v1/Milan/crl": Reply(body=AMD.crl()),
    }


def manifest(signer: Party = NVIDIA) -> bytes:
    """A manifest in form, with a signature that is none."""
    certificate = base64.b64encode(signer.certificate.public_bytes(Encoding.DER)).decode()
    dsig = "http://www.w3.org/2000/09/xmldsig#"
    c14n = "http://www.w3.org/2006/12/xml-c14n11"
    sha = "http://www.w3.org/2001/04/xmlenc#sha384"
    more = "http://www.w3.org/2001/04/xmldsig-more#"
    return (
        '<SoftwareIdentity xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd"'
        f' xmlns:h="{sha}" xmlns:ds="{dsig}" tagId="1">'
        '<Meta colloquialVersion="550.1" product="GH100" edition="GPU"/>'
        f'<Payload><Resource type="Measurement" index="0" active="True" alternatives="1"'
        f' size="48" h:Hash0="{"00" * 48}"/></Payload>'
        "<ds:Signature><ds:SignedInfo>"
        f'<ds:CanonicalizationMethod Algorithm="{c14n}"/>'
        f'<ds:SignatureMethod Algorithm="{more}ecdsa-sha384"/>'
        f'<ds:Reference URI=""><ds:Transforms>'
        f'<ds:Transform Algorithm="{dsig}enveloped-signature"/>'
        f'<ds:Transform Algorithm="{c14n}"/></ds:Transforms>'
        f'<ds:DigestMethod Algorithm="{more}sha384"/><ds:DigestValue>AA==</ds:DigestValue>'
        "</ds:Reference></ds:SignedInfo><ds:SignatureValue>AA==</ds:SignatureValue>"
        f"<ds:KeyInfo><ds:X509Data><ds:X509Certificate>{certificate}</ds:X509Certificate>"
        "</ds:X509Data></ds:KeyInfo></ds:Signature></SoftwareIdentity>"
    ).encode()


def rim_answer(rim_id: str, data: bytes, **changed: object) -> Reply:
    """As NVIDIA's RIM service answers."""
    members: dict[str, object] = {
        "id": rim_id,
        "rim": base64.b64encode(data).decode(),
        "sha256": hashlib.sha256(data).hexdigest(),
        "last_updated": "2026-01-01T00:00:00Z",
        "rim_format": "SWID",
        "request_id": "1",
    }
    return Reply(body=json.dumps({**members, **changed}).encode())


def _signed(name: str, body: bytes, signature: bytes, header: str, chain: bytes) -> Reply:
    whole = b'{"%s":%s,"signature":"%s"}' % (name.encode(), body, signature.hex().encode())
    return Reply(body=whole, headers={header: quote(chain)})
