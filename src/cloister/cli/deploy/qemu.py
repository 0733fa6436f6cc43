"""``cloister deploy qemu`` and ``libvirt``: confidential guests on a machine of your own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.deploy import options

if TYPE_CHECKING:
    from cloister.deploy.qemu import Host

qemu = typer.Typer(no_args_is_help=True)
libvirt = typer.Typer(no_args_is_help=True)

Firmware = Annotated[Path, typer.Option("--firmware", help="OVMF, built for this platform.")]
Network = Annotated[
    str, typer.Option("--network", help="user (not with libvirt), tap or serial (no card at all).")
]
Interface = Annotated[str, typer.Option("--interface", help="Of the host, for --network tap.")]
Listen = Annotated[str, typer.Option("--listen", help="Of the host, for --network user.")]
Gpu = Annotated[
    list[str] | None,
    typer.Option("--gpu", help="PCI address of a GPU to hand through in confidential mode."),
]
Cpu = Annotated[str, typer.Option("--cpu", help="CPU model; part of the launch digest.")]
Quotes = Annotated[
    Path, typer.Option("--quotes", help="Socket of the host's quote generation service.")
]
SNP_FIRMWARE = Path("/usr/share/ovmf/OVMF.amdsev.fd")
TDX_FIRMWARE = Path("/usr/share/ovmf/OVMF.inteltdx.fd")
QUOTE_SOCKET = Path("/var/run/tdx-qgs/qgs.socket")


@qemu.command("snp")
def qemu_snp(
    image: options.Image,
    name: options.Name,
    *,
    vcpus: options.Vcpus = 4,
    memory: options.Memory = 8192,
    port: options.Port = None,
    manifest_digest: options.Manifest = None,
    firmware: Firmware = SNP_FIRMWARE,
    cpu: Cpu = "EPYC-v4",
    network: Network = "user",
    interface: Interface = "",
    listen: Listen = "127.0.0.1",
    gpu: Gpu = None,
    start_disk: options.StartDisk = None,
    debug_image: options.DebugImage = False,
    folder: options.Folder = None,
    dry_run: options.DryRun = False,
    apply: options.Apply = False,
    undo: options.Undo = False,
    as_json: options.Json = False,
) -> None:
    """An SEV-SNP guest under QEMU 9.1 or newer.

    Exit 0 written or done, 1 a step failed, 2 something has to be changed first.
    """
    from cloister.deploy.qemu_snp import qemu_snp_plan

    common = options.Common(image, name, port, manifest_digest, debug_image, folder, start_disk)
    host = _host(firmware, (vcpus, memory), network, interface, gpu, listen=listen)
    options.carry_out(
        "qemu-snp",
        common,
        lambda deployment: qemu_snp_plan(deployment, host, cpu=cpu),
        options.Action(dry_run, apply, undo, as_json),
    )


@qemu.command("tdx")
def qemu_tdx(
    image: options.Image,
    name: options.Name,
    *,
    vcpus: options.Vcpus = 4,
    memory: options.Memory = 8192,
    port: options.Port = None,
    manifest_digest: options.Manifest = None,
    firmware: Firmware = TDX_FIRMWARE,
    quotes: Quotes = QUOTE_SOCKET,
    network: Network = "user",
    interface: Interface = "",
    listen: Listen = "127.0.0.1",
    gpu: Gpu = None,
    start_disk: options.StartDisk = None,
    debug_image: options.DebugImage = False,
    folder: options.Folder = None,
    dry_run: options.DryRun = False,
    apply: options.Apply = False,
    undo: options.Undo = False,
    as_json: options.Json = False,
) -> None:
    """A TDX guest under QEMU 10.1 or newer.

    Exit 0 written or done, 1 a step failed, 2 something has to be changed first.
    """
    from cloister.deploy.qemu_tdx import QuoteService, qemu_tdx_plan

    service = QuoteService(path=_socket(quotes))
    common = options.Common(image, name, port, manifest_digest, debug_image, folder, start_disk)
    host = _host(firmware, (vcpus, memory), network, interface, gpu, listen=listen)
    options.carry_out(
        "qemu-tdx",
        common,
        lambda deployment: qemu_tdx_plan(deployment, host, quotes=service),
        options.Action(dry_run, apply, undo, as_json),
    )


@libvirt.command("snp")
def libvirt_snp(
    image: options.Image,
    name: options.Name,
    *,
    vcpus: options.Vcpus = 4,
    memory: options.Memory = 8192,
    port: options.Port = None,
    manifest_digest: options.Manifest = None,
    firmware: Firmware = SNP_FIRMWARE,
    cpu: Cpu = "EPYC-v4",
    network: Network = "serial",
    interface: Interface = "",
    gpu: Gpu = None,
    start_disk: options.StartDisk = None,
    debug_image: options.DebugImage = False,
    folder: options.Folder = None,
    dry_run: options.DryRun = False,
    apply: options.Apply = False,
    undo: options.Undo = False,
    as_json: options.Json = False,
) -> None:
    """An SEV-SNP domain of libvirt 10.5 or newer.

    Exit 0 written or done, 1 a step failed, 2 something has to be changed first.
    """
    from cloister.deploy.libvirt import libvirt_snp_plan

    common = options.Common(image, name, port, manifest_digest, debug_image, folder, start_disk)
    host = _host(firmware, (vcpus, memory), network, interface, gpu)
    options.carry_out(
        "libvirt-snp",
        common,
        lambda deployment: libvirt_snp_plan(deployment, host, cpu=cpu),
        options.Action(dry_run, apply, undo, as_json),
    )


@libvirt.command("tdx")
def libvirt_tdx(
    image: options.Image,
    name: options.Name,
    *,
    vcpus: options.Vcpus = 4,
    memory: options.Memory = 8192,
    port: options.Port = None,
    manifest_digest: options.Manifest = None,
    firmware: Firmware = TDX_FIRMWARE,
    quotes: Quotes = QUOTE_SOCKET,
    network: Network = "serial",
    interface: Interface = "",
    gpu: Gpu = None,
    start_disk: options.StartDisk = None,
    debug_image: options.DebugImage = False,
    folder: options.Folder = None,
    dry_run: options.DryRun = False,
    apply: options.Apply = False,
    undo: options.Undo = False,
    as_json: options.Json = False,
) -> None:
    """A TDX domain of libvirt 11.6 or newer.

    Exit 0 written or done, 1 a step failed, 2 something has to be changed first.
    """
    from cloister.deploy.libvirt import libvirt_tdx_plan

    service = _socket(quotes)
    common = options.Common(image, name, port, manifest_digest, debug_image, folder, start_disk)
    host = _host(firmware, (vcpus, memory), network, interface, gpu)
    options.carry_out(
        "libvirt-tdx",
        common,
        lambda deployment: libvirt_tdx_plan(deployment, host, quotes=service),
        options.Action(dry_run, apply, undo, as_json),
    )


def _socket(quotes: Path) -> Path:
    from cloister.deploy import words

    return words.path(quotes, "the quote service's socket")


def _host(
    firmware: Path,
    size: tuple[int, int],
    network: str,
    interface: str,
    gpus: list[str] | None,
    *,
    listen: str = "127.0.0.1",
) -> Host:
    from cloister.deploy import qemu as recipes
    from cloister.deploy import words
    from cloister.errors import ConfigurationError

    if network not in list(recipes.Network):
        raise ConfigurationError(
            f"--network is one of {', '.join(recipes.Network)}", code="deploy.options"
        )
    return recipes.Host(
        firmware=words.path(firmware, "the firmware"),
        machine=recipes.Machine(vcpus=size[0], memory_mib=size[1]),
        network=recipes.Network(network),
        interface=interface,
        listen=listen,
        gpus=tuple(gpus or ()),
    )
