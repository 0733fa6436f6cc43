"""An AMD SEV-SNP guest under QEMU.

Sources: QEMU 9.1, ``qapi/qom.json``, `SevSnpGuestProperties`; AMD 56860 (SEV Secure Nested Paging
Firmware ABI), table 9 (guest policy). The firmware has to be OVMF's `AmdSev` build: it starts only
the kernel whose hash stands in the measured memory (``kernel-hashes``). That "kernel" is the whole
UKI, with initrd and command line inside, so the launch digest covers them.
"""

from __future__ import annotations

import base64
from typing import Final

from cloister.deploy import qemu, words
from cloister.deploy.deployment import Deployment
from cloister.deploy.plan import Plan
from cloister.strictjson import JsonObject

MINIMUM: Final = (9, 1)
POLICY: Final = 0x30000
"""Bit 17 is always one; bit 16 lets the host use both threads of a core. No debug (19), no
migration agent (18)."""

NOTES: Final = (
    "Never tried on an SEV-SNP host: there was none. The words are QEMU's documented ones.",
    "The number of processors and the CPU model are part of the launch digest: predict with the "
    "same.",
    "`cloister image measure` predicts another launch digest: of a guest that is given kernel, "
    "initrd and command line apart, not the UKI whole. Clients refuse this one until both do the "
    "same.",
    "HOST_DATA is the host's word; the image's init compares it with the manifest that it reads.",
)


def qemu_snp_plan(deployment: Deployment, host: qemu.Host, *, cpu: str = "EPYC-v4") -> Plan:
    """The plan for one guest.

    Raises:
        ConfigurationError: the image lacks a part, or a word cannot be used.
    """
    words.CPU_MODEL.check(cpu)
    argv = [
        *qemu.common(deployment, host),
        *(
            "-machine",
            f"q35,confidential-guest-support={qemu.GUEST},memory-backend={qemu.RAM},vmport=off",
        ),
        *("-cpu", cpu),
        *qemu.ram(host, "memory-backend-memfd"),
        *qemu.guest_object(snp_guest(deployment)),
        *("-kernel", str(deployment.image.file("uki").path)),
        *(word for role, one in deployment.image.disks() for word in qemu.disk(one.path, role)),
        *qemu.network(deployment, host),
        *qemu.gpus(host),
    ]
    check = qemu.kernel_says(
        "snp", "/sys/module/kvm_amd/parameters/sev_snp", module="kvm_amd module"
    )
    return qemu.qemu_plan(
        "qemu-snp", deployment, host, argv, minimum=MINIMUM, checks=(check,), notes=NOTES
    )


def snp_guest(deployment: Deployment) -> JsonObject:
    """The object that makes it an SEV-SNP guest."""
    guest: JsonObject = {
        "qom-type": "sev-snp-guest",
        "id": qemu.GUEST,
        "cbitpos": 51,
        "reduced-phys-bits": 1,
        "policy": POLICY,
        "kernel-hashes": True,
    }
    if deployment.manifest is not None:
        guest["host-data"] = base64.b64encode(deployment.manifest).decode("ascii")
    return guest
