"""Launch digests of SEV-SNP guests that QEMU starts, by `sev-snp-measure` (extra ``measure``).

Source: AMD 56860, "SEV Secure Nested Paging Firmware ABI", section 8.17.2 (``PAGE_INFO``): the
firmware, the pages that its metadata list, the page of kernel hashes, then one VMSA for each
virtual processor. That library's own vectors passed here; no guest was started on AMD hardware.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.errors import BuildError, ConfigurationError
from cloister.image.direct_boot import DirectBoot

CODE: Final = "image.snp_launch"

MAX_VCPUS: Final = 512
MAX_FIRMWARE_BYTES: Final = 64 << 20

SNP_ACTIVE: Final = 0x1
"""``SEV_FEATURES`` of Linux' KVM from 6.6 on; add 0x20 (debug swap) where the host sets it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpMachine:
    """What of a machine enters its launch digest besides what it boots."""

    firmware: Path
    """OVMF built for kernel hashes (EDK2's ``OvmfPkg/AmdSev``)."""
    vcpus: int
    vcpu_type: str
    """QEMU's name: ``EPYC-v4``, ``EPYC-Milan``, ``EPYC-Genoa``, …"""
    features: int = SNP_ACTIVE
    """``SEV_FEATURES`` in the VMSAs, as the hypervisor sets them."""

    @property
    def name(self) -> str:
        """For people."""
        return f"QEMU, {self.vcpus} × {self.vcpu_type}, {self.firmware.name}"


def launch_digest(machine: SnpMachine, boot: DirectBoot) -> bytes:
    """MEASUREMENT (48 bytes) of a guest on `machine` that boots `boot` with kernel hashes.

    Raises:
        ConfigurationError: the extra is missing, or a setting is none that is known.
        BuildError: the firmware cannot be measured, or takes no kernel hashes (code
            ``image.snp_launch``).
    """
    try:
        from sevsnpmeasure.guest import calc_launch_digest
        from sevsnpmeasure.sev_mode import SevMode
        from sevsnpmeasure.vcpu_types import CPU_SIGS
    except ImportError:
        raise ConfigurationError(
            "launch digests of SEV-SNP need the extra 'measure': pip install 'cloister[measure]'",
            code=CODE,
        ) from None
    signature = CPU_SIGS.get(machine.vcpu_type)
    if signature is None or not 1 <= machine.vcpus <= MAX_VCPUS:
        raise ConfigurationError(
            f"a machine has 1 to {MAX_VCPUS} virtual processors of one of the types"
            f" {', '.join(CPU_SIGS)}",
            code=CODE,
        )
    _check_firmware(machine.firmware)
    with tempfile.TemporaryDirectory(prefix="cloister-snp-") as folder:
        kernel, initrd = Path(folder, "kernel"), Path(folder, "initrd")
        kernel.write_bytes(boot.kernel)
        initrd.write_bytes(boot.initrd)
        try:
            digest = calc_launch_digest(
                SevMode.SEV_SNP,
                machine.vcpus,
                signature,
                str(machine.firmware),
                str(kernel),
                str(initrd),
                boot.command_line,
                machine.features,
            )
        except (RuntimeError, ValueError, AssertionError) as error:
            raise BuildError(
                f"{machine.firmware} cannot be measured for SEV-SNP: {error}", code=CODE
            ) from None
    return bytes(digest)


def _check_firmware(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror or 'unknown reason'}", code=CODE
        ) from None
    if not 0 < size <= MAX_FIRMWARE_BYTES or size % 4096:
        raise BuildError(f"{path} is no firmware image: not of whole pages", code=CODE)
