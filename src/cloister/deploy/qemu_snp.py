"""An AMD SEV-SNP guest under QEMU.

Sources: QEMU 9.1, ``qapi/qom.json``, `SevSnpGuestProperties`; AMD 56860 (SEV Secure Nested Paging
Firmware ABI), table 9 (guest policy). The firmware has to be OVMF's `AmdSev` build: it starts only
the kernel, initrd and command line whose hashes stand in the measured memory (``kernel-hashes``).
They come out of the UKI, as `cloister image measure` takes them.
"""

from __future__ import annotations

import base64
from typing import Final

from cloister.deploy import qemu, words
from cloister.deploy.deployment import Deployment
from cloister.deploy.kernel_parts import kernel_parts
from cloister.deploy.plan import Plan, Step
from cloister.image.configuration import Platform
from cloister.strictjson import JsonObject

MINIMUM: Final = (9, 1)
POLICY: Final = 0x30000
"""Bit 17 is always one; bit 16 lets the host use both threads of a core. No debug (19), no
migration agent (18)."""

NOTES: Final = (
    "Never tried on an SEV-SNP host: there was none. The words are QEMU's documented ones.",
    "Firmware, number of processors and CPU model are part of the launch digest: predict with the "
    "same (`cloister image measure --snp-firmware FIRMWARE --vcpus N --vcpu-type CPU`).",
    "HOST_DATA is the host's word; the image's init compares it with the manifest that it reads.",
)


def qemu_snp_plan(deployment: Deployment, host: qemu.Host, *, cpu: str = "EPYC-v4") -> Plan:
    """The plan for one guest.

    Raises:
        ConfigurationError: the image lacks a part, or a word cannot be used.
        MalformedError, UnsupportedError: its UKI cannot be taken apart.
    """
    deployment.image.require_platform(Platform.SEV_SNP)
    words.CPU_MODEL.check(cpu)
    parts = kernel_parts(deployment)
    argv = [
        *qemu.common(deployment, host),
        *(
            "-machine",
            f"q35,confidential-guest-support={qemu.GUEST},memory-backend={qemu.RAM},vmport=off",
        ),
        *("-cpu", cpu),
        *qemu.ram(host, "memory-backend-memfd"),
        *qemu.guest_object(snp_guest(deployment)),
        *("-kernel", str(parts.kernel), "-initrd", str(parts.initrd)),
        *("-append", parts.command_line),
        *(word for role, one in deployment.attached for word in qemu.disk(one.path, role)),
        *qemu.network(deployment, host),
        *qemu.gpus(host),
    ]
    check = qemu.kernel_says(
        "snp", "/sys/module/kvm_amd/parameters/sev_snp", module="kvm_amd module"
    )
    before: tuple[Step, ...] = (check, *parts.steps)
    return qemu.qemu_plan(
        "qemu-snp", deployment, host, argv, minimum=MINIMUM, before=before, notes=NOTES
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
