"""QEMU's command line for a confidential guest, and the plan that starts one.

Sources: QEMU, "Invocation" and ``qapi/qom.json`` (`SevSnpGuestProperties`, since 9.1;
`TdxGuestProperties`, since 10.1), ``docs/system/i386/amd-memory-encryption.rst``,
``docs/system/i386/tdx.rst``; NVIDIA, "Deployment Guide for SecureAI" (a GPU behind a root port of
its own, a large 64-bit window for its memory).

Devices, drives and objects are given as JSON, so that no value can become a further option. The
guest gets no monitor, no graphics, no default devices; its disks are read-only.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from cloister.deploy import words
from cloister.deploy.deployment import MIB, Deployment
from cloister.deploy.gpu import gpu_steps, gpu_tools
from cloister.deploy.plan import Expect, Plan, Run, Step, Tool
from cloister.errors import ConfigurationError
from cloister.image.machine import BROKER_PORT, OPERATOR_PORT, REQUESTS_PORT
from cloister.strictjson import JsonObject

PROGRAM: Final = "qemu-system-x86_64"
MAX_VCPUS: Final = 512
MAX_MEMORY_MIB: Final = 16 * 1024 * 1024
USER_NETWORK: Final = ipaddress.ip_network("10.0.2.0/24")
USUAL_GUEST: Final = "10.0.2.15"
GUEST: Final = "cc0"
RAM: Final = "ram0"


class Network(StrEnum):
    """How the guest is reached."""

    USER = "user"
    """QEMU's own network: one published port, and nothing goes out."""
    TAP = "tap"
    """An interface that the host made; the guest's own rules hold."""
    SERIAL = "serial"
    """No network card: a virtio-serial port on a UNIX socket of the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """How large the guest is. Both values move measurements.

    Raises:
        ConfigurationError: a size is out of bounds (code ``deploy.machine``).
    """

    vcpus: int
    memory_mib: int

    def __post_init__(self) -> None:
        """Refuse sizes that no machine has."""
        if not 1 <= self.vcpus <= MAX_VCPUS or not 256 <= self.memory_mib <= MAX_MEMORY_MIB:
            raise ConfigurationError(
                f"a machine has 1 to {MAX_VCPUS} processors, and 256 MiB to 16 TiB of memory",
                code="deploy.machine",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the machine that runs QEMU is told besides the deployment.

    Raises:
        ConfigurationError: a word cannot be used.
    """

    firmware: Path
    machine: Machine
    network: Network = Network.USER
    interface: str = ""
    """Of the host, for `Network.TAP`."""
    listen: str = "127.0.0.1"
    """Address of the host where `Network.USER` publishes the port."""
    gpus: tuple[str, ...] = ()
    """PCI addresses, handed through."""

    def __post_init__(self) -> None:
        """Check every word."""
        words.check_path(self.firmware, "the firmware")
        words.guest_address(self.listen)
        for gpu in self.gpus:
            words.PCI_ADDRESS.check(gpu)
        if len(set(self.gpus)) != len(self.gpus):
            raise ConfigurationError("a GPU is named twice", code="deploy.word")
        if self.network is Network.TAP:
            words.INTERFACE.check(self.interface)


def common(deployment: Deployment, host: Host) -> list[str]:
    """What every guest gets, whatever protects its memory."""
    return [
        *(PROGRAM, "-name", deployment.name, "-nodefaults", "-no-user-config"),
        *("-display", "none", "-monitor", "none", "-no-reboot"),
        # The process that parses the guest's requests may start none and gain nothing.
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-accel", "kvm"),
        *("-smp", str(host.machine.vcpus), "-m", f"{host.machine.memory_mib}M"),
        *("-bios", str(host.firmware)),
        *("-serial", f"file:{deployment.folder / 'console.log'}"),
        *("-pidfile", str(deployment.folder / "qemu.pid"), "-daemonize"),
        *_device({"driver": "virtio-rng-pci", "disable-legacy": "on", "iommu_platform": True}),
        *_device({"driver": "virtio-serial-pci", "disable-legacy": "on", "iommu_platform": True}),
        *_port(deployment, "operator", OPERATOR_PORT),
    ]


def ram(host: Host, backend: str) -> list[str]:
    """The guest's memory, from a backend of this kind."""
    size = host.machine.memory_mib * MIB
    options: JsonObject = {"qom-type": backend, "id": RAM, "size": size}
    if backend == "memory-backend-memfd":
        options |= {"share": True, "prealloc": False, "reserve": False}
    return guest_object(options)


def disk(path: Path, role: str, *, boot: bool = False) -> list[str]:
    """A read-only disk; its serial number is its role, which nothing in the guest believes."""
    drive: JsonObject = {
        "node-name": role,
        "driver": "raw",
        "read-only": True,
        "file": {"driver": "file", "filename": str(path), "locking": "auto"},
    }
    device: JsonObject = {
        "driver": "virtio-blk-pci",
        "drive": role,
        "serial": role,
        "disable-legacy": "on",
        "iommu_platform": True,
    }
    if boot:
        device["bootindex"] = 1
    return ["-blockdev", _json(drive), *_device(device)]


def network(deployment: Deployment, host: Host) -> list[str]:
    """The way in. No card gets a boot program (`romfile`), which firmware would run and measure."""
    require_serial(deployment, host)
    match host.network:
        case Network.SERIAL:
            return [
                *_port(deployment, "worker", REQUESTS_PORT),
                *_port(deployment, "broker", BROKER_PORT),
            ]
        case Network.TAP:
            backend: JsonObject = {
                "type": "tap",
                "id": "net0",
                "ifname": host.interface,
                "script": "no",
                "downscript": "no",
            }
        case Network.USER:
            way = f"tcp:{host.listen}:{deployment.port}-{_guest(deployment)}:{deployment.port}"
            backend = {
                "type": "user",
                "id": "net0",
                "restrict": True,
                "ipv6": False,
                "hostfwd": [{"str": way}],
            }
    card: JsonObject = {
        "driver": "virtio-net-pci",
        "netdev": "net0",
        "romfile": "",
        "disable-legacy": "on",
        "iommu_platform": True,
    }
    return ["-netdev", _json(backend), *_device(card)]


def require_serial(deployment: Deployment, host: Host) -> None:
    """ConfigurationError (``deploy.network``) for an image without a card on a machine with one."""
    network = deployment.image.network
    if network is not None and not network.card and host.network is not Network.SERIAL:
        raise ConfigurationError(
            "this image has no network card: use --network serial", code="deploy.network"
        )


def _guest(deployment: Deployment) -> str:
    """The guest's address, which has to be one of QEMU's own network."""
    address = deployment.address or USUAL_GUEST
    if ipaddress.ip_address(address) not in USER_NETWORK:
        raise ConfigurationError(
            f"the image's address is none of QEMU's own network ({USER_NETWORK}): use --network "
            "tap, or build the image with an address from there",
            code="deploy.network",
        )
    return address


def gpus(host: Host) -> list[str]:
    """GPUs handed through, each behind a port of its own."""
    if not host.gpus:
        return []
    arguments = guest_object({"qom-type": "iommufd", "id": "iommufd0"})
    for number, address in enumerate(host.gpus):
        port = f"gpu{number}"
        arguments += _device(
            {"driver": "pcie-root-port", "id": port, "bus": "pcie.0", "chassis": number + 1}
        )
        arguments += _device(
            {"driver": "vfio-pci", "host": address, "bus": port, "iommufd": "iommufd0"}
        )
    # Room above 4 GiB for all of the GPUs' memory, in MiB; firmware takes it from here.
    window = 262144 * len(host.gpus)
    return [*arguments, "-fw_cfg", f"name=opt/ovmf/X-PciMmio64Mb,string={window}"]


def guest_object(options: JsonObject) -> list[str]:
    """``-object`` with JSON."""
    return ["-object", _json(options)]


def qemu_plan(
    target: str,
    deployment: Deployment,
    host: Host,
    argv: list[str],
    *,
    minimum: tuple[int, ...],
    before: tuple[Step, ...],
    notes: tuple[str, ...],
) -> Plan:
    """The plan around a command line: the host is fit, GPUs are confidential, then the start."""
    start = Run(
        id="start",
        says=f"Start the guest; its console goes to {deployment.folder / 'console.log'}.",
        argv=tuple(argv),
        # QEMU holds its pid file locked, so a second start beside a first one fails by itself.
        undo=("pkill", "-F", str(deployment.folder / "qemu.pid")),
    )
    used = [deployment.image.file("uki"), *(one for _, one in deployment.attached)]
    if "-kernel" not in argv:
        used[0] = deployment.image.file("esp")
    return Plan(
        target=target,
        name=deployment.name,
        folder=deployment.folder,
        tools=(
            Tool(name=PROGRAM, version=("--version",), minimum=minimum, get="qemu.org"),
            Tool(name="pkill", get="package procps"),
            *gpu_tools(host.gpus),
        ),
        inputs=tuple(used),
        steps=(*before, *gpu_steps(host.gpus), start),
        notes=notes,
    )


def kernel_says(name: str, path: str, *, module: str) -> Run:
    """A check that a parameter of the host's kernel module is on."""
    return Run(
        id=name,
        says=f"See that the host's {module} has it switched on.",
        argv=("cat", path),
        expects=(Expect(says=f"{path} says Y", equals=r"\A[Y1]\s*\Z"),),
    )


def _port(deployment: Deployment, name: str, port: str) -> list[str]:
    """A virtio-serial port, whose other end is a UNIX socket in the deployment's folder."""
    path = deployment.folder / f"{name}.sock"
    return [
        *("-chardev", f"socket,id={name},path={path},server=on,wait=off"),
        *_device({"driver": "virtserialport", "chardev": name, "name": port}),
    ]


def _device(options: JsonObject) -> list[str]:
    return ["-device", _json(options)]


def _json(value: JsonObject) -> str:
    return json.dumps(value, separators=(",", ":"))
