"""The same guests as libvirt domains.

Source: libvirt, "Domain XML format" (`launchSecurity`: ``sev-snp`` since 10.5.0, ``tdx`` since
11.6.0) and its schema ``domaincommon.rng``. Documents are written by an XML encoder from checked
words. ``virsh define --validate`` compares them with the schema of the host's own libvirt.
"""

from __future__ import annotations

import base64
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Final

from cloister.deploy import qemu_snp, qemu_tdx, words
from cloister.deploy.deployment import Deployment
from cloister.deploy.gpu import gpu_steps, gpu_tools
from cloister.deploy.kernel_parts import KernelParts, kernel_parts
from cloister.deploy.plan import Look, Plan, Run, Tool, Write
from cloister.deploy.qemu import Host, Network, require_serial
from cloister.errors import ConfigurationError
from cloister.image.configuration import Platform
from cloister.image.machine import BROKER_PORT, OPERATOR_PORT, REQUESTS_PORT

CONNECT: Final = ("virsh", "--connect", "qemu:///system")
SNP_MINIMUM: Final = (10, 5)
TDX_MINIMUM: Final = (11, 6)


def libvirt_snp_plan(deployment: Deployment, host: Host, *, cpu: str = "EPYC-v4") -> Plan:
    """The plan for an SEV-SNP domain.

    Raises:
        ConfigurationError: the image lacks a part, or a word cannot be used.
        MalformedError, UnsupportedError: its UKI cannot be taken apart.
    """
    deployment.image.require_platform(Platform.SEV_SNP)
    words.CPU_MODEL.check(cpu)
    parts = kernel_parts(deployment)
    domain = _domain(deployment, host)
    backing = ET.SubElement(domain, "memoryBacking")
    ET.SubElement(backing, "source", type="memfd")
    ET.SubElement(backing, "access", mode="shared")
    _os(domain, host, parts)
    _features(domain, {"vmport": "off"})
    cpu_element = ET.SubElement(domain, "cpu", mode="custom", match="exact", check="none")
    ET.SubElement(cpu_element, "model", fallback="forbid").text = cpu
    _devices(domain, deployment, host, boot=None)
    security = ET.SubElement(domain, "launchSecurity", type="sev-snp", kernelHashes="yes")
    ET.SubElement(security, "cbitpos").text = "51"
    ET.SubElement(security, "reducedPhysBits").text = "1"
    ET.SubElement(security, "policy").text = f"0x{qemu_snp.POLICY:08x}"
    if deployment.manifest is not None:
        _base64(security, "hostData", deployment.manifest)
    plan = _plan("libvirt-snp", deployment, host, domain, minimum=SNP_MINIMUM, notes=qemu_snp.NOTES)
    return replace(plan, steps=(*parts.steps, *plan.steps))


def libvirt_tdx_plan(deployment: Deployment, host: Host, *, quotes: Path) -> Plan:
    """The plan for a TDX domain; `quotes` is the quote generation service's socket.

    Raises:
        ConfigurationError: the image lacks a part, or a word cannot be used.
    """
    deployment.image.require_platform(Platform.TDX)
    domain = _domain(deployment, host)
    _os(domain, host, None)
    features = _features(domain, {"smm": "off"})
    ET.SubElement(features, "ioapic", driver="qemu")  # QEMU's `kernel-irqchip=split`
    ET.SubElement(domain, "cpu", mode="host-passthrough", check="none")
    clock = ET.SubElement(domain, "clock", offset="utc")
    ET.SubElement(clock, "timer", name="hpet", present="no")
    _devices(domain, deployment, host, boot=deployment.image.file("esp").path)
    security = ET.SubElement(domain, "launchSecurity", type="tdx")
    # Bit 28: no exceptions into the guest by the host's choice; bit 0 would be debug.
    ET.SubElement(security, "policy").text = "0x10000000"
    if deployment.manifest is not None:
        _base64(security, "mrConfigId", qemu_tdx.config_id(deployment.manifest))
    words.check_path(quotes, "the quote service's socket")
    ET.SubElement(security, "quoteGenerationService", path=str(quotes))
    return _plan("libvirt-tdx", deployment, host, domain, minimum=TDX_MINIMUM, notes=qemu_tdx.NOTES)


def document(domain: ET.Element) -> str:
    """The domain as text, indented for people."""
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def _domain(deployment: Deployment, host: Host) -> ET.Element:
    require_serial(deployment, host)
    if host.network is Network.USER:
        raise ConfigurationError(
            "libvirt publishes no single port of a guest that may not call out: use --network tap "
            "or --network serial",
            code="deploy.network",
        )
    domain = ET.Element("domain", type="kvm")
    ET.SubElement(domain, "name").text = deployment.name
    ET.SubElement(domain, "memory", unit="MiB").text = str(host.machine.memory_mib)
    ET.SubElement(domain, "vcpu", placement="static").text = str(host.machine.vcpus)
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        # A second start inside one process would begin with registers that were never measured.
        ET.SubElement(domain, event).text = "destroy"
    return domain


def _os(domain: ET.Element, host: Host, parts: KernelParts | None) -> None:
    system = ET.SubElement(domain, "os")
    ET.SubElement(system, "type", arch="x86_64", machine="q35").text = "hvm"
    ET.SubElement(system, "loader", readonly="yes", type="rom").text = str(host.firmware)
    if parts is not None:
        ET.SubElement(system, "kernel").text = str(parts.kernel)
        ET.SubElement(system, "initrd").text = str(parts.initrd)
        ET.SubElement(system, "cmdline").text = parts.command_line


def _features(domain: ET.Element, states: dict[str, str]) -> ET.Element:
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    for name, state in states.items():
        ET.SubElement(features, name, state=state)
    return features


def _devices(domain: ET.Element, deployment: Deployment, host: Host, *, boot: Path | None) -> None:
    devices = ET.SubElement(domain, "devices")
    disks = [(role, one.path) for role, one in deployment.attached]
    if boot is not None:
        disks.insert(0, ("esp", boot))
    for number, (role, path) in enumerate(disks):
        disk = ET.SubElement(devices, "disk", type="file", device="disk")
        ET.SubElement(disk, "driver", name="qemu", type="raw", iommu="on")
        ET.SubElement(disk, "source", file=str(path))
        ET.SubElement(disk, "target", dev=f"vd{'abcdefgh'[number]}", bus="virtio")
        ET.SubElement(disk, "readonly")
        ET.SubElement(disk, "serial").text = role
        if path == boot:
            ET.SubElement(disk, "boot", order="1")
    ET.SubElement(devices, "controller", type="usb", model="none")
    _way_in(devices, host)
    console = ET.SubElement(devices, "serial", type="pty")
    ET.SubElement(console, "target", port="0")
    source = ET.SubElement(devices, "rng", model="virtio")
    ET.SubElement(source, "backend", model="random").text = "/dev/urandom"
    ET.SubElement(source, "driver", iommu="on")
    for gpu in host.gpus:
        _hostdev(devices, gpu)
    ET.SubElement(devices, "memballoon", model="none")


def _way_in(devices: ET.Element, host: Host) -> None:
    _channel(devices, OPERATOR_PORT)
    if host.network is Network.SERIAL:
        _channel(devices, REQUESTS_PORT)
        _channel(devices, BROKER_PORT)
        return
    card = ET.SubElement(devices, "interface", type="ethernet")
    ET.SubElement(card, "target", dev=host.interface, managed="no")
    ET.SubElement(card, "model", type="virtio")
    ET.SubElement(card, "driver", iommu="on")
    ET.SubElement(card, "rom", enabled="no")


def _channel(devices: ET.Element, port: str) -> None:
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "source", mode="bind")  # libvirt chooses the path
    ET.SubElement(channel, "target", type="virtio", name=port)


def _hostdev(devices: ET.Element, gpu: str) -> None:
    domain, bus, rest = gpu.split(":")
    slot, function = rest.split(".")
    device = ET.SubElement(devices, "hostdev", mode="subsystem", type="pci", managed="yes")
    source = ET.SubElement(device, "source")
    ET.SubElement(
        source,
        "address",
        domain=f"0x{domain}",
        bus=f"0x{bus}",
        slot=f"0x{slot}",
        function=f"0x{function}",
    )
    ET.SubElement(device, "rom", enabled="no")


def _base64(parent: ET.Element, name: str, value: bytes) -> None:
    ET.SubElement(parent, name).text = base64.b64encode(value).decode("ascii")


def _plan(
    target: str,
    deployment: Deployment,
    host: Host,
    domain: ET.Element,
    *,
    minimum: tuple[int, ...],
    notes: tuple[str, ...],
) -> Plan:
    path = deployment.folder / "domain.xml"
    first = deployment.image.file("uki" if target.endswith("snp") else "esp")
    return Plan(
        target=target,
        name=deployment.name,
        folder=deployment.folder,
        tools=(
            Tool(name="virsh", version=("--version",), minimum=minimum, get="libvirt.org"),
            *gpu_tools(host.gpus),
        ),
        inputs=(first, *(one for _, one in deployment.attached)),
        steps=(
            Write(id="domain", says="Write the domain.", path=path, content=document(domain)),
            *gpu_steps(host.gpus, held=False),
            Run(
                id="define",
                says="Define the domain, if it is as libvirt's schema wants it.",
                argv=(*CONNECT, "define", "--validate", str(path)),
                undo=(*CONNECT, "undefine", deployment.name),
            ),
            Run(
                id="start",
                says="Start it.",
                argv=(*CONNECT, "start", deployment.name),
                look=Look(argv=(*CONNECT, "domstate", deployment.name), finds="running"),
                undo=(*CONNECT, "destroy", deployment.name),
            ),
        ),
        notes=notes,
    )
