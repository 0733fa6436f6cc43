"""What this machine could attest, told from its files alone.

Nothing is opened, called or changed: a finding says what lies there, not that it works. The
machine's root directory and what this user may open are arguments.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from cloister.evidence.items import (
    TEE_TYPE_AZURE_SNP,
    TEE_TYPE_GCP_VTPM,
    TEE_TYPE_NITRO,
    TEE_TYPE_NITRO_TPM,
    TEE_TYPE_SEV_SNP,
    TEE_TYPE_SGX,
    TEE_TYPE_TDX,
)
from cloister.evidence.report import TEE_TYPE_TPM

GPU: Final = "nvidia-gpu"

AZURE_ASSET_TAG: Final = "7783-7084-3265-9085-8269-3286-77"
"""SMBIOS chassis asset tag of every virtual machine of Azure."""
GOOGLE_PRODUCT: Final = "Google Compute Engine"
AMAZON_VENDOR: Final = "Amazon EC2"
"""``sys_vendor`` of instances (AWS, "EC2 User Guide", "Identify EC2 instances")."""

TSM_REPORTS: Final = "sys/kernel/config/tsm/report"
_TSM_KERNEL: Final = (6, 7)

_MAX_BYTES: Final = 256 * 1024
_MAX_GPUS: Final = 16

Access = Callable[[Path], bool]


class State(enum.StrEnum):
    """How far a platform is from attesting."""

    READY = "ready"
    """Everything it needs lies there and may be used by this user."""
    BLOCKED = "blocked"
    """The machine has it, but something is missing: the steps say what."""
    ABSENT = "absent"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformFinding:
    """One platform and how this machine stands to it."""

    platform: str
    """A ``tee_type``, or `GPU`."""
    title: str
    state: State
    found: tuple[str, ...] = ()
    """What speaks for it."""
    steps: tuple[str, ...] = ()
    """What to do, where something is missing."""
    confidential: bool = True
    """Whether its evidence speaks of memory: a TPM's does not."""
    complete: bool = True
    """Whether its evidence stands alone: a GPU's is an addition to a CPU's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The files of a machine, read with bounds and without exceptions."""

    root: Path = Path("/")
    may_use: Access = field(default=lambda path: os.access(path, os.R_OK | os.W_OK))

    def has(self, name: str) -> bool:
        """Whether the file or directory is there."""
        try:
            return (self.root / name).exists()
        except OSError:
            return False

    def text(self, name: str) -> str:
        """The beginning of a file; empty if it cannot be read."""
        try:
            with (self.root / name).open("rb") as file:
                return file.read(_MAX_BYTES).decode("utf-8", errors="replace").strip("\0\n ")
        except OSError:
            return ""

    def usable(self, name: str) -> bool:
        """Whether it is there and this user may read and write it."""
        return self.has(name) and self.may_use(self.root / name)

    @property
    def cpu_flags(self) -> frozenset[str]:
        """Flags of the first processor in ``/proc/cpuinfo``."""
        for line in self.text("proc/cpuinfo").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "flags":
                return frozenset(value.split())
        return frozenset()

    @property
    def kernel(self) -> tuple[int, int]:
        """Major and minor version; (0, 0) if unknown."""
        parts = self.text("proc/sys/kernel/osrelease").split(".")[:2]
        if len(parts) == 2 and all(part.isdigit() for part in parts):
            return int(parts[0]), int(parts[1])
        return 0, 0

    @property
    def virtual(self) -> bool:
        """Whether a hypervisor runs it."""
        return "hypervisor" in self.cpu_flags

    def smbios(self, name: str) -> str:
        """A string that the firmware gives, such as ``product_name``."""
        return self.text(f"sys/class/dmi/id/{name}")


def detect(root: Path = Path("/"), *, may_use: Access | None = None) -> tuple[PlatformFinding, ...]:
    """Look for every platform that Cloister can make evidence of. Never raises."""
    machine = Machine(root=root) if may_use is None else Machine(root=root, may_use=may_use)
    return (
        _sev_snp(machine),
        _tdx(machine),
        _sgx(machine),
        _nitro(machine),
        _nitro_tpm(machine),
        _azure(machine),
        _google(machine),
        _tpm(machine),
        _gpu(machine),
    )


def _sev_snp(machine: Machine) -> PlatformFinding:
    flags = machine.cpu_flags
    found = []
    if machine.virtual and "sev_snp" in flags:
        found.append("the processor says that this is an SNP guest")
    if machine.has("sys/module/sev_guest"):
        found.append("the kernel's sev-guest driver is loaded")
    if machine.has("dev/sev-guest"):
        found.append("/dev/sev-guest")
    named = PlatformFinding(platform=TEE_TYPE_SEV_SNP, title="AMD SEV-SNP", state=State.ABSENT)
    return _guest(machine, named, found, module="sev-guest", device="dev/sev-guest")


def _tdx(machine: Machine) -> PlatformFinding:
    found = []
    if "tdx_guest" in machine.cpu_flags:
        found.append("the processor says that this is a TDX guest")
    if machine.has("sys/module/tdx_guest"):
        found.append("the kernel's tdx-guest driver is loaded")
    if machine.has("dev/tdx_guest"):
        found.append("/dev/tdx_guest")
    named = PlatformFinding(platform=TEE_TYPE_TDX, title="Intel TDX", state=State.ABSENT)
    return _guest(machine, named, found, module="tdx-guest", device="dev/tdx_guest")


def _guest(
    machine: Machine, named: PlatformFinding, found: list[str], *, module: str, device: str
) -> PlatformFinding:
    if not found:
        return named
    tsm = machine.usable(TSM_REPORTS)
    if tsm:
        found.append("configfs-tsm")
    steps = [] if tsm or machine.usable(device) else _guest_steps(machine, module, device)
    state = State.BLOCKED if steps else State.READY
    return replace(named, state=state, found=tuple(found), steps=tuple(steps))


def _guest_steps(machine: Machine, module: str, device: str) -> list[str]:
    steps = []
    if not machine.has(f"sys/module/{module.replace('-', '_')}") and not machine.has(device):
        steps.append(f"load the kernel module: modprobe {module}")
    if machine.kernel < _TSM_KERNEL and not machine.has(device):
        steps.append("use Linux 6.7 or later, which has configfs-tsm")
    elif machine.kernel >= _TSM_KERNEL and not machine.has(TSM_REPORTS):
        steps.append("mount configfs: mount -t configfs none /sys/kernel/config")
    if machine.has(TSM_REPORTS) or machine.has(device):
        where = TSM_REPORTS if machine.has(TSM_REPORTS) else device
        steps.append(f"run as root, or give this user /{where} (read and write)")
    return steps


def _sgx(machine: Machine) -> PlatformFinding:
    title = "Intel SGX (Gramine)"
    if machine.has("dev/attestation/attestation_type"):
        kind = machine.text("dev/attestation/attestation_type")
        steps = () if kind == "dcap" else ('set sgx.remote_attestation = "dcap" in the manifest',)
        return PlatformFinding(
            platform=TEE_TYPE_SGX,
            title=title,
            state=State.BLOCKED if steps else State.READY,
            found=("this runs inside Gramine",),
            steps=steps,
        )
    if machine.has("dev/sgx_enclave"):
        return PlatformFinding(
            platform=TEE_TYPE_SGX,
            title=title,
            state=State.BLOCKED,
            found=("/dev/sgx_enclave",),
            steps=("run inside an enclave: gramine-sgx with DCAP attestation",),
        )
    return PlatformFinding(platform=TEE_TYPE_SGX, title=title, state=State.ABSENT)


def _nitro(machine: Machine) -> PlatformFinding:
    title = "AWS Nitro Enclaves"
    if machine.has("dev/nsm"):
        usable = machine.usable("dev/nsm")
        return PlatformFinding(
            platform=TEE_TYPE_NITRO,
            title=title,
            state=State.READY if usable else State.BLOCKED,
            found=("/dev/nsm: this is an enclave",),
            steps=() if usable else ("give this user /dev/nsm (read and write)",),
        )
    if machine.has("dev/nitro_enclaves"):
        return PlatformFinding(
            platform=TEE_TYPE_NITRO,
            title=title,
            state=State.BLOCKED,
            found=("/dev/nitro_enclaves: this is an enclave's parent",),
            steps=("run inside an enclave: nitro-cli run-enclave",),
        )
    return PlatformFinding(platform=TEE_TYPE_NITRO, title=title, state=State.ABSENT)


def _nitro_tpm(machine: Machine) -> PlatformFinding:
    title = "AWS NitroTPM"
    named = PlatformFinding(
        platform=TEE_TYPE_NITRO_TPM, title=title, state=State.ABSENT, confidential=False
    )
    if machine.smbios("sys_vendor") != AMAZON_VENDOR:
        return named
    found = ("the firmware says that this is an instance of Amazon EC2",)
    if machine.has("dev/tpm0"):
        usable = machine.usable("dev/tpm0")
        steps = () if usable else ("give this user /dev/tpm0 (read and write)",)
    else:
        usable = False
        steps = ("start it from an AMI with UEFI and --tpm-support v2.0",)
    return replace(
        named,
        state=State.READY if usable else State.BLOCKED,
        found=(*found, "whether its TPM gives documents, --try tells"),
        steps=steps,
    )


def _azure(machine: Machine) -> PlatformFinding:
    title = "Azure confidential VM"
    if machine.smbios("chassis_asset_tag") != AZURE_ASSET_TAG:
        return PlatformFinding(platform=TEE_TYPE_AZURE_SNP, title=title, state=State.ABSENT)
    found = ["the firmware says that this is a machine of Azure"]
    steps = _tpm_steps(machine)
    return PlatformFinding(
        platform=TEE_TYPE_AZURE_SNP,
        title=title,
        state=State.BLOCKED if steps else State.READY,
        # Only the TPM itself tells whether a paravisor is below it.
        found=(*found, "whether it is a confidential one, --try tells"),
        steps=tuple(steps),
    )


def _google(machine: Machine) -> PlatformFinding:
    title = "Google Compute Engine vTPM"
    if machine.smbios("product_name") != GOOGLE_PRODUCT:
        return PlatformFinding(
            platform=TEE_TYPE_GCP_VTPM, title=title, state=State.ABSENT, confidential=False
        )
    steps = _tpm_steps(machine)
    return PlatformFinding(
        platform=TEE_TYPE_GCP_VTPM,
        title=title,
        state=State.BLOCKED if steps else State.READY,
        found=("the firmware says that this is a machine of Google's",),
        steps=tuple(steps),
        confidential=False,
    )


def _tpm(machine: Machine) -> PlatformFinding:
    title = "TPM 2.0"
    device = "dev/tpmrm0"
    if not machine.has(device) and not machine.has("sys/class/tpm/tpm0"):
        return PlatformFinding(
            platform=TEE_TYPE_TPM, title=title, state=State.ABSENT, confidential=False
        )
    steps = _tpm_steps(machine)
    found = ["/dev/tpmrm0" if machine.has(device) else "a TPM that the kernel knows"]
    if machine.has("sys/kernel/security/tpm0/binary_bios_measurements"):
        found.append("the firmware's event log")
    return PlatformFinding(
        platform=TEE_TYPE_TPM,
        title=title,
        state=State.BLOCKED if steps else State.READY,
        found=tuple(found),
        steps=tuple(steps),
        confidential=False,
    )


def _tpm_steps(machine: Machine) -> list[str]:
    if machine.usable("dev/tpmrm0"):
        return []
    if machine.has("dev/tpmrm0"):
        return ["add this user to the device's group: usermod -aG tss USER, then log in again"]
    if machine.text("sys/class/tpm/tpm0/tpm_version_major") == "1":
        return ["use a machine with a TPM 2.0; this one has version 1.2"]
    return [
        "switch on the machine's TPM, and load its driver: modprobe tpm_crb || modprobe tpm_tis"
    ]


def _gpu(machine: Machine) -> PlatformFinding:
    title = "NVIDIA GPU"
    if machine.has("dev/nvidiactl"):
        count = sum(machine.has(f"dev/nvidia{index}") for index in range(_MAX_GPUS))
        usable = machine.usable("dev/nvidiactl")
        return PlatformFinding(
            platform=GPU,
            title=title,
            state=State.READY if usable else State.BLOCKED,
            found=(
                f"{count} GPU{'s' if count != 1 else ''} with a driver",
                "whether in confidential mode, --try tells",
            ),
            steps=() if usable else ("give this user /dev/nvidia* (read and write)",),
            complete=False,
        )
    if _has_nvidia_card(machine):
        return PlatformFinding(
            platform=GPU,
            title=title,
            state=State.BLOCKED,
            found=("an NVIDIA GPU on the PCI bus",),
            steps=("install NVIDIA's driver (550 or later, open kernel modules)",),
            complete=False,
        )
    return PlatformFinding(platform=GPU, title=title, state=State.ABSENT, complete=False)


def _has_nvidia_card(machine: Machine) -> bool:
    try:
        devices = sorted((machine.root / "sys/bus/pci/devices").iterdir())[:1024]
    except OSError:
        return False
    names = [f"sys/bus/pci/devices/{path.name}" for path in devices]
    return any(
        machine.text(f"{name}/vendor") == "0x10de" and machine.text(f"{name}/class")[:4] == "0x03"
        for name in names
    )
