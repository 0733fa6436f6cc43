"""Authenticates the report of one NVIDIA GPU or NVSwitch.

Steps; each makes one claim:

1. ``nvgpu.report``: a request and a signed response, with opaque fields that make sense.
2. ``nvgpu.chain``, ``nvgpu.validity``, ``nvgpu.revocation``: the certificate of the reporting key
   leads to NVIDIA's pinned root (`cloister.verifier.authenticate.nvidia_chain`).
3. ``nvgpu.signature``: that key signed request and response, ECDSA on P-384 with SHA-384.
4. ``nvgpu.firmware``: the firmware that the report names is the one that the certificate was
   issued to. Early drivers name none, and then there is nothing to compare.
5. ``nvgpu.measurements``: the measurement blocks decode. Last, for nobody has to look into them
   before somebody has answered for them.

What the caller still owes: the nonce, manifests, and everything between devices.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.endorsements.nvidia import (
    SWITCHES,
    UNDERSTOOD,
    device_model,
    firmware_ids,
    parse_chain,
)
from cloister.endorsements.roots import Roots, Vendor
from cloister.errors import MalformedError
from cloister.evidence.nvgpu import DeviceReport, GpuDevice, parse_device_report
from cloister.evidence.spdm import (
    SIGNATURE_BYTES,
    Measurement,
    MeasurementsReport,
    parse_measurements,
)
from cloister.verifier.authenticate.nvidia_chain import (
    Revocation,
    chain_claims,
    record_chain,
    signing_key,
)
from cloister.verifier.authenticated import Authenticated, _grant
from cloister.verifier.chain import Chain, authenticate_chain
from cloister.verifier.ledger import Ledger
from cloister.verifier.result import Source

PREFIX: Final = "nvgpu."
REPORT: Final = "nvgpu.report"
CHAIN: Final = "nvgpu.chain"
VALIDITY: Final = "nvgpu.validity"
SIGNATURE: Final = "nvgpu.signature"
FIRMWARE: Final = "nvgpu.firmware"
MEASUREMENTS: Final = "nvgpu.measurements"

NOT_PRESENT: Final = "not_present"


@dataclass(frozen=True, slots=True, kw_only=True)
class NvDevice:
    """What is known of one device; authentic where it comes as `Authenticated`."""

    report: DeviceReport
    measurements: Mapping[int, Measurement] | None
    """``None`` where they do not decode."""
    chain: Chain | None
    """``None`` where the certificates do not decode."""

    @property
    def model(self) -> str:
        """``GH100``, ``LS10``; as certified."""
        return "" if self.chain is None else device_model(self.chain.leaf)

    @property
    def is_switch(self) -> bool:
        """Whether it is an NVSwitch rather than a GPU."""
        return self.model in SWITCHES

    @property
    def keys(self) -> frozenset[bytes]:
        """Public keys that no other device has: that of the leaf, and the device's own.

        One device can have several leaves, one for each firmware that it ever ran.
        """
        chain = () if self.chain is None else self.chain.certificates[:2]
        return frozenset(
            certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            for certificate in chain
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A device's evidence with its certificates decoded, which is all that is known at first."""

    evidence: GpuDevice
    certificates: tuple[x509.Certificate, ...] = ()
    malformed: str = ""
    """Why there are none."""

    @property
    def says_switch(self) -> bool:
        """Whether the leaf calls itself a switch: a label until the chain is authenticated."""
        return bool(self.certificates) and device_model(self.certificates[0]) in SWITCHES


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """One device after authentication."""

    certificates: tuple[x509.Certificate, ...]
    """As they arrived, so far as they decode."""
    stated: NvDevice | None
    """What it says, authentic or not; ``None`` where the report does not decode."""
    authenticated: Authenticated[NvDevice] | None


def device_claims(revocation: Revocation) -> tuple[str, ...]:
    """Names of the claims that `authenticate_device` makes, in order."""
    return (REPORT, *chain_claims(PREFIX, revocation), SIGNATURE, FIRMWARE, MEASUREMENTS)


def authenticate_device(
    device: Decoded, *, roots: Roots, at: datetime, revocation: Revocation, ledger: Ledger
) -> Examined:
    """Run every step, adding the claims of `device_claims` to `ledger`, a view on the device.

    A step is left out of `ledger` only when one it builds on did not hold.
    """
    report = _report(device.evidence, ledger)
    certificates = device.certificates
    chain = authenticate_certificates(
        device, roots=roots, at=at, revocation=revocation, ledger=ledger
    )
    if report is None:
        return Examined(certificates=certificates, stated=None, authenticated=None)
    if certificates:
        _signature(report.spdm, certificates[0], ledger)
        _firmware(report, certificates[0], ledger)
    stated = NvDevice(report=report, measurements=_measurements(report, ledger), chain=chain)
    authentic = ledger.holds(*device_claims(revocation))
    return Examined(
        certificates=certificates,
        stated=stated,
        authenticated=_grant(stated) if authentic else None,
    )


def decode_device(evidence: GpuDevice) -> Decoded:
    """Decode the certificates of `evidence`; what is wrong with them is claimed later."""
    try:
        return Decoded(evidence=evidence, certificates=parse_chain(evidence.chain))
    except MalformedError as error:
        return Decoded(evidence=evidence, malformed=str(error))


def authenticate_certificates(
    device: Decoded, *, roots: Roots, at: datetime, revocation: Revocation, ledger: Ledger
) -> Chain | None:
    """Step 2; ``None`` where the certificates did not decode."""
    certificates = device.certificates
    if not certificates:
        ledger.refuse(CHAIN, "malformed", f"The chain is refused: {device.malformed}.")
        return None
    chain = authenticate_chain(
        certificates[0],
        (*certificates[1:], *roots.intermediates),
        anchors=roots.vendor(Vendor.NVIDIA_DEVICE),
        at=at,
        crls=revocation.crls,
        understood=UNDERSTOOD,
    )
    chain = revocation.apply(chain, at)
    record_chain(PREFIX, chain, revocation, ledger)
    return chain


def _report(evidence: GpuDevice, ledger: Ledger) -> DeviceReport | None:
    """Step 1."""
    try:
        report = parse_device_report(evidence.report)
    except MalformedError as error:
        ledger.refuse(REPORT, "malformed", f"The report is refused: {error}.")
        return None
    ledger.affirm(REPORT, "The report is a signed answer to a request for all measurements.")
    return report


def _signature(report: MeasurementsReport, leaf: x509.Certificate, ledger: Ledger) -> None:
    """Step 3. A key that nobody vouches for is tried too: it says which of the two is wrong."""
    ledger.check(
        SIGNATURE,
        holds=_signed(report, leaf),
        affirmed="The key in the device's certificate signed this report.",
        code="bad_signature",
        refused="The report was not signed by the key in the certificate, or was changed since.",
        source=Source.HARDWARE_PROVEN,
    )


def _signed(report: MeasurementsReport, leaf: x509.Certificate) -> bool:
    key = signing_key(leaf)
    if key is None:
        return False
    half = SIGNATURE_BYTES // 2
    r, s = (int.from_bytes(part) for part in (report.signature[:half], report.signature[half:]))
    try:
        key.verify(encode_dss_signature(r, s), report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True


def _firmware(report: DeviceReport, leaf: x509.Certificate, ledger: Ledger) -> None:
    """Step 4. Blackwell certifies a second digest, which is zero as long as nothing uses it."""
    try:
        first, *others = firmware_ids(leaf) or (b"",)
    except MalformedError as error:
        ledger.refuse(FIRMWARE, "malformed", f"The chain is refused: {error}.")
        return
    if report.fwid is None:
        ledger.affirm(
            FIRMWARE,
            "The report is of a version that names no firmware besides the measurements.",
            value=NOT_PRESENT,
        )
        return
    ledger.check(
        FIRMWARE,
        holds=hmac.compare_digest(report.fwid, first) and not any(map(any, others)),
        affirmed="The device's certificate was issued to the firmware that the report names.",
        code="firmware_mismatch",
        refused="The device's certificate was issued to another firmware than the report names.",
    )


def _measurements(report: DeviceReport, ledger: Ledger) -> Mapping[int, Measurement] | None:
    """Step 5."""
    try:
        measurements = parse_measurements(report.spdm)
    except MalformedError as error:
        ledger.refuse(MEASUREMENTS, "malformed", f"The measurements are refused: {error}.")
        return None
    ledger.affirm(MEASUREMENTS, f"The report holds {len(measurements)} measurements.")
    return measurements
