"""An emulated machine for an image: QEMU's command line, and whether the processor can help.

One machine, described once: q35 with OVMF in two flash chips, a TPM, the image's disks read-only on
virtio, at most one network card without an option ROM, one port for the operator, a serial console.
What of it the firmware measures is part of the evidence (docs/how-to/boot-images.md has the table),
so nothing is left to QEMU's defaults.
"""

from __future__ import annotations

import ipaddress
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cloister.errors import ConfigurationError, UnsupportedError

QEMU: Final = "qemu-system-x86_64"
GUEST_ADDRESS: Final = "10.0.2.15"
"""In QEMU's user network."""
USER_NETWORK: Final = ipaddress.ip_network("10.0.2.0/24")
QEMUS_OWN: Final = ("10.0.2.0", "10.0.2.2", "10.0.2.3", GUEST_ADDRESS, "10.0.2.255")
"""Addresses there that can be no peer's: the network, its gateway and name server, the guest."""

FIRMWARE_FOLDERS: Final = (Path("/usr/share/OVMF"), Path("/usr/share/edk2/x64"))
_PLAIN: Final = (
    # Debian 12 has the same firmware for a flash of 2 MB and of 4 MB: both have the same drivers,
    # and measure the same volumes. The first opens its console in half the time, which are seconds
    # where instructions are emulated. Newer distributions lack it.
    ("OVMF_CODE.fd", "OVMF_VARS.fd"),
    ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
)
_SECURE: Final = (("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.fd"),)

EMULATED: Final = "max,erms=off,model=5"
"""A processor for which Linux clears and copies memory in plain words: without ERMS, and of a model
of 2003 (family 15, revision C0), for on later ones it takes `rep stosq` to be quick. On a processor
it is; emulated it is slow, and an image clears all of its memory at its start. The model changes
nothing of what the processor can do."""

OPERATOR_PORT: Final = "cloister.operator"
"""As the guest looks for it (`cloister.attester.guest_port`)."""
REQUESTS_PORT: Final = "cloister.requests"
"""In the guest, ``/dev/virtio-ports/cloister.requests``."""
BROKER_PORT: Final = "cloister.broker"
"""Where the guest's worker asks its broker, if it has no card: the host forwards what comes."""

SYSTEM_PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """The two flash chips of OVMF. The variables are copied for each start."""

    program: Path
    variables: Path
    secure_boot: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """A peer whom the guest may call, by the address that its image names, and where that is.

    ConfigurationError for an address that QEMU cannot give to anybody, or a port that is none (code
    ``image.peer``).
    """

    address: str
    port: int
    """In the guest's eyes."""
    host: str
    host_port: int
    """From this machine."""

    def __post_init__(self) -> None:
        """Refuse what QEMU would refuse only when it starts."""
        address = ipaddress.ip_address(self.address)
        if address not in USER_NETWORK or self.address in QEMUS_OWN:
            raise ConfigurationError(
                f"the image's peer at {self.address} cannot be reached from an emulated machine: "
                f"QEMU's network is {USER_NETWORK}, without {', '.join(QEMUS_OWN)}",
                code="image.peer",
            )
        if not (0 < self.port < 65536 and 0 < self.host_port < 65536):
            raise ConfigurationError("a peer's port is between 1 and 65535", code="image.peer")

    @property
    def command(self) -> str:
        """What QEMU starts for each connection."""
        words = (sys.executable, "-I", "-m", "cloister.image.dial", self.host, str(self.host_port))
        return shlex.join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The shape of a machine, and the files it starts from."""

    firmware: Firmware
    esp: Path
    disks: tuple[Path, ...]
    """Root, application, model; found by what they are, not by their order."""
    start_disk: Path | None = None
    """What is given to guests elsewhere by the operator's port, which this machine has as well."""
    memory_mib: int = 1024
    cpus: int = 1
    accelerated: bool = False
    port: int | None = 8440
    """On this machine's loopback, forwarded to the guest's; None: no network card at all."""
    guest_port: int = 8440
    disk_device: Literal["virtio-blk-pci", "nvme"] = "virtio-blk-pci"
    """How it sees its disks: as here and at Google, or as at AWS and at Google's newer types."""
    peers: tuple[Carried, ...] = ()
    """Whom the guest can call; nobody else, whatever its rules say."""
    boot_entry: bool = True
    """Whether QEMU says which disk to start from. Without, the firmware's variables decide."""
    more: tuple[str, ...] = ()
    """Further arguments of QEMU's, for whoever wants to see what they change."""

    def __post_init__(self) -> None:
        """Refuse what could be no machine, or would be read as something else by QEMU."""
        if not 256 <= self.memory_mib <= 1 << 20 or not 1 <= self.cpus <= 255:
            raise ConfigurationError(
                "a machine has 256 MiB of memory or more, and 1 to 255 processors",
                code="image.machine",
            )
        for path in (self.firmware.program, self.firmware.variables, *self.all_disks):
            if "," in str(path):
                raise ConfigurationError(
                    f"QEMU takes no comma in a path: {path}", code="image.machine"
                )
        if any("," in peer.command for peer in self.peers):
            raise ConfigurationError(
                f"QEMU takes no comma in a command, and Python's is {sys.executable}",
                code="image.machine",
            )
        if self.peers and self.port is None:
            raise ConfigurationError(
                "a machine without a network card calls nobody", code="image.machine"
            )

    @property
    def all_disks(self) -> tuple[Path, ...]:
        """The one that it starts from, and those behind it."""
        start = () if self.start_disk is None else (self.start_disk,)
        return (self.esp, *self.disks, *start)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sockets:
    """Where, in a private folder, QEMU meets what runs beside it."""

    folder: Path

    @property
    def tpm(self) -> Path:
        """Where QEMU finds a TPM: `cloister.image.tpm_relay`."""
        return self.folder / "tpm.sock"

    @property
    def tpm_itself(self) -> Path:
        """The control socket of the software TPM, which the relay takes."""
        return self.folder / "swtpm.sock"

    @property
    def operator(self) -> Path:
        """The host's end of the operator's port."""
        return self.folder / "operator.sock"

    @property
    def requests(self) -> Path:
        """The host's end of the port that a machine without a network card takes requests on."""
        return self.folder / "requests.sock"

    @property
    def broker(self) -> Path:
        """The host's end of the port that such a machine asks its broker through."""
        return self.folder / "broker.sock"

    @property
    def console(self) -> Path:
        """The serial console, as a file."""
        return self.folder / "console.log"

    @property
    def variables(self) -> Path:
        """This start's copy of the firmware's variables."""
        return self.folder / "variables.fd"


def qemu_command(machine: Machine, sockets: Sockets, *, program: str = QEMU) -> tuple[str, ...]:
    """The command that runs `machine`."""
    secure = machine.firmware.secure_boot
    command = [
        program,
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35,smm=on" if secure else "q35"),
        *("-accel", "kvm" if machine.accelerated else "tcg,thread=multi"),
        *("-cpu", "host" if machine.accelerated else EMULATED),
        *("-m", str(machine.memory_mib), "-smp", str(machine.cpus)),
        *_flash(0, machine.firmware.program, ",readonly=on"),
        *_flash(1, sockets.variables, ""),
        *(("-global", "driver=cfi.pflash01,property=secure,value=on") if secure else ()),
        *("-chardev", f"socket,id=tpm,path={sockets.tpm}"),
        *("-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"),
        *_disk(machine.disk_device, machine.esp, ",bootindex=1" if machine.boot_entry else ""),
    ]
    for disk in machine.disks:
        command += _disk(machine.disk_device, disk, "")
    if machine.start_disk is not None:
        command += _disk(machine.disk_device, machine.start_disk, "", name="start")
    command += [
        *("-device", "virtio-rng-pci"),
        *("-device", "virtio-serial-pci"),
        *_port(OPERATOR_PORT, sockets.operator),
        *("-serial", f"file:{sockets.console}"),
    ]
    if machine.port is None:
        command += _port(REQUESTS_PORT, sockets.requests)
        command += _port(BROKER_PORT, sockets.broker)
    else:
        forward = f"hostfwd=tcp:127.0.0.1:{machine.port}-{GUEST_ADDRESS}:{machine.guest_port}"
        # restrict: QEMU too lets nothing out that the guest begins, but to these addresses.
        out = "".join(
            f",guestfwd=tcp:{peer.address}:{peer.port}-cmd:{peer.command}" for peer in machine.peers
        )
        command += [
            *("-netdev", f"user,id=net,restrict=on,ipv6=off,{forward}{out}"),
            # An option ROM would be measured into PCR 2.
            *("-device", "virtio-net-pci,netdev=net,romfile="),
        ]
    return (*command, *machine.more)


def _flash(unit: int, path: Path, options: str) -> tuple[str, str]:
    return "-drive", f"if=pflash,format=raw,unit={unit},file={path}{options}"


def _port(name: str, path: Path) -> tuple[str, ...]:
    return (
        *("-chardev", f"socket,id={name},path={path},server=on,wait=off"),
        *("-device", f"virtserialport,chardev={name},name={name}"),
    )


def _disk(device: str, path: Path, options: str, name: str = "") -> tuple[str, ...]:
    name = name or path.stem
    return (
        *("-drive", f"if=none,id={name},format=raw,readonly=on,file={path}"),
        *("-device", f"{device},drive={name},serial={name}{options}"),
    )


def find_qemu() -> str:
    """The path of QEMU; UnsupportedError (code ``image.qemu_missing``) where there is none."""
    found = shutil.which(QEMU, path=SYSTEM_PATH)
    if found is None:
        raise UnsupportedError(
            f"{QEMU} is not installed; on Debian: apt install qemu-system-x86 ovmf",
            code="image.qemu_missing",
        )
    return found


def find_firmware(
    *, secure_boot: bool = False, folders: Sequence[Path] = FIRMWARE_FOLDERS
) -> Firmware:
    """OVMF as distributions install it; UnsupportedError (``image.firmware_missing``) if not."""
    names = _SECURE if secure_boot else _PLAIN
    for folder in folders:
        for pair in names:
            program, variables = (folder / name for name in pair)
            if program.is_file() and variables.is_file():
                return Firmware(program=program, variables=variables, secure_boot=secure_boot)
    raise UnsupportedError(
        f"{names[-1][0]} is not installed; on Debian: apt install ovmf",
        code="image.firmware_missing",
    )


def can_accelerate(
    *,
    cpuinfo: Path = Path("/proc/cpuinfo"),
    device: Path = Path("/dev/kvm"),
    may_use: Callable[[Path], bool] = lambda path: os.access(path, os.R_OK | os.W_OK),
) -> bool:
    """Whether KVM runs this machine's instructions on the processor.

    The device alone says nothing: inside some virtual machines it opens, and starts guests whose
    firmware then hangs or stops. Only a processor that says so virtualises.
    """
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    return not {"vmx", "svm"}.isdisjoint(flags) and may_use(device)
