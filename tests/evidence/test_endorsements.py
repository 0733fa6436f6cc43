"""Artefacts that vendors really published: read, and signed under the pinned roots."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements.amd import parse_endorsement_key
from cloister.endorsements.artefact import (
    Artefact,
    ArtefactKind,
    ArtefactRequest,
    amd_chain,
    amd_crl,
    amd_vcek,
    intel_pck_crl,
    intel_qe_identity,
    intel_root_crl,
    intel_tcb_info,
    nvidia_rim,
)
from cloister.endorsements.certificates import parse_certificates, parse_crl
from cloister.endorsements.contents import make_artefact
from cloister.endorsements.genuine import check_genuine
from cloister.endorsements.needs import requests_for
from cloister.endorsements.pinned import pinned_roots
from cloister.errors import AuthenticationError
from cloister.evidence.snp import Product

EVIDENCE = Path(__file__).parents[3] / "shared" / "evidence"
NOW = datetime(2026, 6, 1, tzinfo=UTC)

pytestmark = [
    pytest.mark.evidence,
    pytest.mark.skipif(not EVIDENCE.is_dir(), reason=f"no evidence at {EVIDENCE}"),
]


def made(request: ArtefactRequest, data: bytes, chain: str = "") -> Artefact:
    return make_artefact(
        request, data, source="captured", fetched_at=NOW, issuer_chain=chain.encode()
    )


def flipped(artefact: Artefact) -> Artefact:
    """One bit of the end changed, where a signature is."""
    return replace(
        artefact, data=artefact.data[:-9] + bytes([artefact.data[-9] ^ 1]) + artefact.data[-8:]
    )


def collateral() -> list[Path]:
    found = (*EVIDENCE.glob("tdx/*/collateral.json"), *EVIDENCE.glob("sgx/*/collateral.json"))
    return sorted(path for path in found if not path.parent.name.startswith("neg-"))


def intel(members: dict[str, Any]) -> Iterator[Artefact]:
    info, identity = json.loads(members["tcb_info"]), json.loads(members["qe_identity"])
    for name, request in (
        (
            "tcb_info",
            intel_tcb_info(info.get("id", "SGX").lower(), bytes.fromhex(info["fmspc"])),
        ),
        ("qe_identity", intel_qe_identity({"QE": "sgx", "TD_QE": "tdx"}[identity["id"]])),
    ):
        outer = {"tcb_info": "tcbInfo", "qe_identity": "enclaveIdentity"}[name]
        whole = f'{{"{outer}":{members[name]},"signature":"{members[f"{name}_signature"]}"}}'
        yield made(request, whole.encode(), members[f"{name}_issuer_chain"])
    pck_crl = bytes.fromhex(members["pck_crl"])
    ca = "platform" if "Platform" in parse_crl(pck_crl).issuer.rfc4514_string() else "processor"
    yield made(intel_pck_crl(ca), pck_crl, members["pck_crl_issuer_chain"])
    yield made(intel_root_crl(), bytes.fromhex(members["root_ca_crl"]))


@pytest.mark.parametrize("path", collateral(), ids=lambda path: path.parent.name)
def test_intel(path: Path) -> None:
    for artefact in intel(json.loads(path.read_text())):
        check_genuine(artefact, pinned_roots())
        assert artefact.valid_until is not None
        assert artefact.issued_at < artefact.valid_until
        assert artefact.number is not None
        if artefact.kind in {ArtefactKind.INTEL_PCK_CRL, ArtefactKind.INTEL_ROOT_CRL}:
            with pytest.raises(AuthenticationError):
                check_genuine(flipped(artefact), pinned_roots())


@pytest.mark.parametrize("path", sorted(EVIDENCE.glob("snp/*/vcek*")), ids=lambda p: p.parent.name)
def test_amd_chips(path: Path) -> None:
    certificate = parse_certificates(path.read_bytes())[0]
    key = parse_endorsement_key(certificate)
    assert key.hwid is not None
    artefact = made(
        amd_vcek(key.product, key.hwid, key.tcb), certificate.public_bytes(Encoding.DER)
    )
    check_genuine(artefact, pinned_roots())
    with pytest.raises(AuthenticationError):
        check_genuine(flipped(artefact), pinned_roots())


@pytest.mark.parametrize("product", Product)
def test_amd_chains(product: Product) -> None:
    amd = EVIDENCE / "roots" / "amd"
    root = (amd / f"ark_{product}.pem").read_bytes()
    for signer, vlek in (("ask", False), ("asvk", True)):
        chain = (amd / f"{signer}_{product}.pem").read_bytes() + root
        check_genuine(made(amd_chain(product, vlek=vlek), chain), pinned_roots())


@pytest.mark.parametrize("product", [Product.MILAN, Product.GENOA])
def test_amd_lists(product: Product) -> None:
    data = (EVIDENCE / "roots" / "amd" / f"ark_{product}.crl").read_bytes()
    artefact = made(amd_crl(product), data)
    check_genuine(artefact, pinned_roots())
    assert artefact.number is not None
    with pytest.raises(AuthenticationError):
        check_genuine(flipped(artefact), pinned_roots())


@pytest.mark.parametrize("path", sorted(EVIDENCE.glob("nvidia-gpu/*/*rim.xml")), ids=str)
def test_nvidia_manifests(path: Path) -> None:
    artefact = made(nvidia_rim("NV_X"), path.read_bytes())
    assert artefact.valid_until is not None


def test_what_a_gpu_needs() -> None:
    path = EVIDENCE / "nvidia-gpu" / "h100-590-evidence-json" / "hopper_evidence.json"
    kinds = [request.kind for request in requests_for(path.read_bytes())]
    assert ArtefactKind.NVIDIA_OCSP in kinds
    rims = [one.key for one in requests_for(path.read_bytes()) if one.kind == "nvidia.rim"]
    assert all(key.startswith(("NV_GPU_DRIVER_GH100_", "NV_GPU_VBIOS_")) for key in rims)
    assert len(rims) >= 2


@pytest.mark.parametrize(
    "name", ["snp/ms-turin", "snp/ms-genoa", "tdx/azure-v4-2025", "az-vtpm/snp-genoa"]
)
def test_what_a_machine_needs(name: str) -> None:
    case = json.loads((EVIDENCE / name / "case.json").read_text())
    roles = {"report", "quote", "hcl_report"}
    file = next(one for one in case["files"] if one["role"] in roles)
    assert len(requests_for((EVIDENCE / name / file["file"]).read_bytes())) in {3, 4}
