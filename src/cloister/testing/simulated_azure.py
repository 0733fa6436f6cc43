"""A simulated Azure confidential VM: a paravisor's report over simulated hardware, and its vTPM.

What it makes verifies like Azure's own (`cloister.verifier.platforms.azure`), but chains to roots
marked as development: it is affirmed only by a policy that accepts development, under
`SimulatedAzure.roots`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa

from cloister.endorsements.roots import Roots, Vendor
from cloister.evidence.hcl import (
    AK_NAME,
    EK_NAME,
    HARDWARE_REPORT_BYTES,
    MAGIC,
    HardwareType,
    RuntimeHash,
)
from cloister.evidence.snp import REPORT_BYTES
from cloister.strictjson import JsonObject
from cloister.testing.simulated_snp import DEFAULT_POLICY, SimulatedAmd, SimulatedKey
from cloister.testing.simulated_vtpm import (
    SimulatedAkVendor,
    SimulatedVtpm,
    simulated_rsa_key,
)
from cloister.verifier.authenticate.ak import AkEvidence
from cloister.verifier.platforms.azure import AzureEvidence

NV_BYTES: Final = 2600
"""Size of the NV index that reports are read from."""


@dataclass(slots=True, kw_only=True)
class SimulatedAzure:
    """A virtual machine with all of its secrets; every field may be replaced."""

    amd: SimulatedAmd
    chip: SimulatedKey
    azure: SimulatedAkVendor
    vtpm: SimulatedVtpm
    configuration: JsonObject = field(
        default_factory=lambda: {
            "secure-boot": True,
            "tpm-enabled": True,
            "vmUniqueId": "SIMULATED",
        }
    )

    @classmethod
    def make(cls, *, now: datetime) -> SimulatedAzure:
        """A machine that has booted, with a key that Azure certified."""
        amd = SimulatedAmd(now=now)
        vtpm = SimulatedVtpm(key=simulated_rsa_key("HCLAkPub"))
        vtpm.boot()
        return cls(
            amd=amd,
            chip=amd.key(),
            azure=SimulatedAkVendor(Vendor.AZURE_VTPM, now=now),
            vtpm=vtpm,
        )

    @property
    def roots(self) -> Roots:
        """AMD's and Azure's, both simulated."""
        return self.amd.roots.merged(self.azure.roots)

    def runtime_data(self, *, user_data: bytes = bytes(64)) -> bytes:
        """The paravisor's JSON: both keys of the virtual TPM, configuration, user data."""
        members = {
            "keys": [
                rsa_jwk(AK_NAME, "sign", self.vtpm.key.public_key()),
                rsa_jwk(EK_NAME, "encrypt", simulated_rsa_key("HCLEkPub").public_key()),
            ],
            "vm-configuration": self.configuration,
            "user-data": user_data.hex().upper(),
        }
        return json.dumps(members, separators=(",", ":")).encode()

    def hcl_report(
        self,
        *,
        runtime_data: bytes | None = None,
        report_data: bytes | None = None,
        version: int = 2,
        vmpl: int = 0,
        policy: int = DEFAULT_POLICY,
    ) -> bytes:
        """The paravisor's report; `vmpl` and `policy` are those of the SNP report inside.

        `report_data` is what the hardware signs, if not the hash of the runtime data.
        """
        runtime = self.runtime_data() if runtime_data is None else runtime_data
        bound = hashlib.sha256(runtime).digest().ljust(64, b"\0")
        report = self.amd.report(
            self.chip,
            report_data=bound if report_data is None else report_data,
            vmpl=vmpl,
            policy=policy,
        )
        return encode_hcl_report(report, runtime, version=version)

    def evidence(self, extra_data: bytes = b"") -> AzureEvidence:
        """Everything that the machine collects for a challenge."""
        return AzureEvidence(
            hcl_report=self.hcl_report(),
            quote=self.vtpm.quote(extra_data, bare=True),
            snp_certificates=(self.chip.certificate,),
            ak=AkEvidence(
                certificate=self.azure.certify(self.vtpm.key.public_key(), padding_bytes=100),
                intermediates=self.azure.intermediates,
            ),
            event_log=self.vtpm.event_log(),
        )

    def without_certificate(self, extra_data: bytes = b"") -> AzureEvidence:
        """As `evidence`, but nobody vouches for the virtual TPM's key save the hardware."""
        return replace(self.evidence(extra_data), ak=None)


def encode_hcl_report(
    hardware_report: bytes,
    runtime_data: bytes,
    *,
    version: int = 2,
    hash_algorithm: int = RuntimeHash.SHA256,
    pad_to: int = NV_BYTES,
) -> bytes:
    """Lay out a report: one of 1184 bytes is SNP's, any other a TDREPORT."""
    is_snp = len(hardware_report) == REPORT_BYTES
    kind = HardwareType.SNP if is_snp else HardwareType.TDX
    part = _words(20 + len(runtime_data), 1, kind, hash_algorithm, len(runtime_data)) + runtime_data
    size = 32 + HARDWARE_REPORT_BYTES + len(part)
    header = MAGIC + _words(version, size, 2, 0, 0, 0, 0)
    return (header + hardware_report.ljust(HARDWARE_REPORT_BYTES, b"\0") + part).ljust(
        pad_to, b"\0"
    )


def rsa_jwk(kid: str, use: str, key: object) -> JsonObject:
    """An RSA public key as the paravisor writes it (RFC 7518 section 6.3.1)."""
    if not isinstance(key, rsa.RSAPublicKey):
        raise TypeError("the keys of a virtual TPM of Azure are RSA keys")
    numbers = key.public_numbers()
    return {
        "kid": kid,
        "key_ops": [use],
        "kty": "RSA",
        "e": _base64url(numbers.e),
        "n": _base64url(numbers.n),
    }


def _base64url(number: int) -> str:
    data = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _words(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "little") for number in numbers)
