"""Devices and manifests' signers that were revoked, or that the policy denies."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID

from cloister.endorsements.roots import fingerprint
from cloister.testing.simulated_nvgpu import (
    DRIVER_INDICES,
    Signer,
    SimulatedGpu,
    digest,
    golden,
    rim_text,
)
from cloister.verifier.authenticate.rim import authenticate_rim
from cloister.verifier.platforms.nvgpu import GpuChain, GpuEvidence, RimEvidence
from cloister.verifier.policy import UNCHECKED, development
from support.certificates import P384_ORDER, respelled
from support.nvgpu import (
    BARE,
    GOOD,
    GPU,
    NOW,
    NVIDIA,
    affirmed,
    evidence,
    failures,
    verify,
)


@pytest.mark.parametrize(
    "certificate",
    [GPU.leaf.certificate, GPU.leaf.above[1], NVIDIA.rim_signer.certificate],
    ids=["leaf", "intermediate", "signer"],
)
def test_denied_certificates_are_refused(certificate: x509.Certificate) -> None:
    affirmed(GOOD)
    policy = dataclasses.replace(development(), denied=(fingerprint(certificate),))
    assert failures(verify(GOOD, policy=policy)) == {("gpu0", "denied"): "denied"}
    affirmed(GOOD, dataclasses.replace(development(), denied=UNCHECKED))


def test_a_denied_certificate_with_its_signature_spelt_otherwise() -> None:
    """Anyone can write another signature that holds: (r, n - s) for (r, s)."""
    leaf = GPU.leaf.certificate
    other = respelled(leaf, P384_ORDER).public_bytes(Encoding.DER)
    device = GOOD.devices[0]
    assert device.chain[0] == leaf.public_bytes(Encoding.DER) != other
    made = dataclasses.replace(
        GOOD, devices=(dataclasses.replace(device, chain=(other, *device.chain[1:])),)
    )
    affirmed(made)
    policy = dataclasses.replace(development(), denied=(fingerprint(leaf),))
    assert failures(verify(made, policy=policy)) == {("gpu0", "denied"): "denied"}


LISTED = x509.CRLDistributionPoints(
    [
        x509.DistributionPoint(
            full_name=[x509.UniformResourceIdentifier("http://crl.invalid/")],
            relative_name=None,
            reasons=None,
            crl_issuer=None,
        )
    ]
)
ASKABLE = x509.AuthorityInformationAccess(
    [
        x509.AccessDescription(
            AuthorityInformationAccessOID.OCSP,
            x509.UniformResourceIdentifier("http://ocsp.invalid/"),
        )
    ]
)


def revocable(how: x509.ExtensionType) -> tuple[SimulatedGpu, Signer]:
    """A device whose own certificate says where to ask, and that certificate."""
    own = NVIDIA.provisioner.issue("GH100 A01 GSP BROM", extensions=[(how, False)])
    fwid = digest("firmware")
    leaf = NVIDIA.firmware_key(own, "GH100", fwid)
    return dataclasses.replace(NVIDIA.device(), leaf=leaf, fwid=fwid), own


def crl(signer: Signer, *revoked: x509.Certificate) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(NVIDIA.provisioner.certificate.subject)
        .last_update(NOW)
        .next_update(NOW + timedelta(days=7))
    )
    for certificate in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(certificate.serial_number)
            .revocation_date(NOW)
            .build()
        )
    return builder.sign(signer.key, hashes.SHA384()).public_bytes(Encoding.DER)


def test_revocation_lists_are_required_where_they_exist() -> None:
    gpu, own = revocable(LISTED)
    bare = evidence(gpu)
    affirmed(bare, BARE)
    assert failures(verify(bare))["gpu0", "nvgpu.revocation"] == "endorsements_missing"
    listed = dataclasses.replace(bare, crls=(crl(NVIDIA.provisioner),))
    affirmed(listed)
    revoked = dataclasses.replace(bare, crls=(crl(NVIDIA.provisioner, own.certificate),))
    for policy in (development(), BARE):
        found = failures(verify(revoked, policy=policy))
        assert found["gpu0", "nvgpu.revocation"] == "revoked"
    forged = dataclasses.replace(bare, crls=(crl(own),))
    assert failures(verify(forged))["gpu0", "nvgpu.revocation"] == "crl_signature"
    late = failures(verify(listed, at=NOW + timedelta(days=8)))
    assert late["gpu0", "nvgpu.validity"] == "expired"
    unreadable = dataclasses.replace(listed, crls=(*listed.crls, b"x"))
    found = failures(verify(unreadable))
    assert found["gpus", "nvgpu.crls"] == "malformed"
    assert found["gpu0", "nvgpu.revocation"] == "endorsements_missing"


def answer(
    about: Signer, signer: Signer, status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD
) -> bytes:
    revoked = NOW if status is ocsp.OCSPCertStatus.REVOKED else None
    return (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=about.certificate,
            issuer=about.above[0],
            algorithm=hashes.SHA384(),
            cert_status=status,
            this_update=NOW,
            next_update=NOW + timedelta(days=1),
            revocation_time=revoked,
            revocation_reason=None,
        )
        .responder_id(ocsp.OCSPResponderEncoding.NAME, signer.certificate)
        .sign(signer.key, hashes.SHA384())
        .public_bytes(Encoding.DER)
    )


def test_answers_about_revocation_count() -> None:
    gpu, own = revocable(ASKABLE)
    bare = evidence(gpu)
    affirmed(bare, BARE)
    assert failures(verify(bare))["gpu0", "nvgpu.revocation"] == "endorsements_missing"
    issuer = NVIDIA.provisioner

    def answered(*answers: bytes) -> GpuEvidence:
        return dataclasses.replace(bare, ocsp=answers)

    affirmed(answered(answer(own, issuer)))
    # Both answers are heard, in any order, and so is the worse one.
    revoked = answer(own, issuer, ocsp.OCSPCertStatus.REVOKED)
    for made in (answered(revoked), answered(answer(own, issuer), revoked)):
        assert failures(verify(made))["gpu0", "nvgpu.revocation"] == "revoked"
    unknown = answered(answer(own, issuer, ocsp.OCSPCertStatus.UNKNOWN))
    assert failures(verify(unknown))["gpu0", "nvgpu.revocation"] == "revoked"
    forged = answered(answer(own, own))
    assert failures(verify(forged))["gpu0", "nvgpu.revocation"] == "crl_signature"
    late = failures(verify(answered(answer(own, issuer)), at=NOW + timedelta(days=3)))
    assert late["gpu0", "nvgpu.revocation"] == "crl_signature"
    for other in (answer(revocable(ASKABLE)[1], issuer), b"x"):
        found = failures(verify(answered(other)))
        assert found["gpu0", "nvgpu.revocation"] == "endorsements_missing"


def test_certificates_and_manifests_alone_can_be_asked_about() -> None:
    gpu, own = revocable(ASKABLE)
    bare = GpuChain(chain=gpu.chain)
    name = ("gpu0", "nvgpu.revocation")
    assert failures(verify(bare)) == {name: "endorsements_missing"}
    affirmed(dataclasses.replace(bare, ocsp=(answer(own, NVIDIA.provisioner),)))
    revoked = dataclasses.replace(bare, crls=(crl(NVIDIA.provisioner, own.certificate),))
    assert failures(verify(revoked)) == {name: "revoked"}
    signer = NVIDIA.rim_issuer.issue("Signer", ca=False, extensions=[(ASKABLE, False)])
    text = rim_text(golden(GPU, DRIVER_INDICES), version="550.90.07")
    rim = RimEvidence(document=NVIDIA.sign(text, signer=signer))
    found = failures(verify(rim))
    assert found["rim", "rim_revocation"] == "endorsements_missing"
    assert found["rim", "rim"] == "unauthenticated"
    affirmed(dataclasses.replace(rim, ocsp=(answer(signer, NVIDIA.rim_issuer),)))


def test_revoked_signers_of_manifests_are_refused() -> None:
    signer = NVIDIA.rim_issuer.issue(
        "Signer", ca=False, not_after=NOW + timedelta(days=9), extensions=[(ASKABLE, False)]
    )
    text = rim_text(golden(GPU, DRIVER_INDICES), version="550.90.07")
    made = dataclasses.replace(GOOD, driver_rims=(NVIDIA.sign(text, signer=signer),))
    name = ("gpu0", "nvgpu.driver_rim_revocation")
    found = failures(verify(made))
    assert found[name] == "endorsements_missing"
    assert found["gpu0", "nvgpu.driver_rim_measurements"] == "unauthenticated"
    good = answer(signer, NVIDIA.rim_issuer)
    affirmed(dataclasses.replace(made, ocsp=(good,)))
    bad = answer(signer, NVIDIA.rim_issuer, ocsp.OCSPCertStatus.REVOKED)
    for policy in (development(), BARE):
        found = failures(verify(dataclasses.replace(made, ocsp=(bad,)), policy=policy))
        assert found[name] == "rim_revoked"
    # One that was authenticated before is asked about again.
    (document,) = made.driver_rims
    assert isinstance(document, bytes)
    warm = dataclasses.replace(
        made, driver_rims=(authenticate_rim(document, roots=NVIDIA.roots, at=NOW),)
    )
    affirmed(dataclasses.replace(warm, ocsp=(good,)))
    assert failures(verify(dataclasses.replace(warm, ocsp=(bad,))))[name] == "rim_revoked"
    assert failures(verify(warm))[name] == "endorsements_missing"
