"""An Intel TDX guest under QEMU.

Sources: QEMU 10.1, ``qapi/qom.json``, `TdxGuestProperties`, and ``docs/system/i386/tdx.rst``;
Intel, "TDX Module ABI Specification" (TD_PARAMS: MRCONFIGID has 48 bytes). The firmware (TDVF) is
measured into MRTD, and measures the disk's table, the UKI and what its stub loads into RTMR 0 to 2.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.deploy import qemu, words
from cloister.deploy.deployment import Deployment
from cloister.deploy.plan import Plan
from cloister.image.configuration import Platform
from cloister.strictjson import JsonObject

MINIMUM: Final = (10, 1)
CONFIG_ID_BYTES: Final = 48
QUOTE_SOCKET: Final = Path("/var/run/tdx-qgs/qgs.socket")

NOTES: Final = (
    "Never tried on a TDX host: there was none. The words are QEMU's documented ones.",
    "Quotes come from Intel's quote generation service on the host; without it the guest's report "
    "cannot be made, and the worker does not start.",
    "MRCONFIGID is the host's word; the image's init compares it with the manifest that it reads.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteService:
    """Where the host's quote generation service listens: a socket's path, or vsock."""

    path: Path | None = QUOTE_SOCKET
    vsock_port: int = 4050

    def __post_init__(self) -> None:
        """Check every word."""
        if self.path is not None:
            words.check_path(self.path, "the quote service's socket")
        words.port(self.vsock_port)

    def to_json(self) -> JsonObject:
        """QEMU's `SocketAddress`; on vsock, 2 is the host."""
        if self.path is not None:
            return {"type": "unix", "path": str(self.path)}
        return {"type": "vsock", "cid": "2", "port": str(self.vsock_port)}


def qemu_tdx_plan(deployment: Deployment, host: qemu.Host, *, quotes: QuoteService) -> Plan:
    """The plan for one guest.

    Raises:
        ConfigurationError: the image lacks a part, or a word cannot be used.
    """
    deployment.image.require_platform(Platform.TDX)
    argv = [
        *qemu.common(deployment, host),
        *(
            "-machine",
            f"q35,kernel-irqchip=split,confidential-guest-support={qemu.GUEST},"
            f"memory-backend={qemu.RAM},hpet=off",
        ),
        *("-cpu", "host"),
        *qemu.ram(host, "memory-backend-ram"),
        *qemu.guest_object(tdx_guest(deployment, quotes)),
        *qemu.disk(deployment.image.file("esp").path, "esp", boot=True),
        *(word for role, one in deployment.attached for word in qemu.disk(one.path, role)),
        *qemu.network(deployment, host),
        *qemu.gpus(host),
    ]
    check = qemu.kernel_says(
        "tdx", "/sys/module/kvm_intel/parameters/tdx", module="kvm_intel module"
    )
    return qemu.qemu_plan(
        "qemu-tdx", deployment, host, argv, minimum=MINIMUM, before=(check,), notes=NOTES
    )


def tdx_guest(deployment: Deployment, quotes: QuoteService) -> JsonObject:
    """The object that makes it a trust domain; debug stays off, as QEMU has it."""
    guest: JsonObject = {
        "qom-type": "tdx-guest",
        "id": qemu.GUEST,
        "sept-ve-disable": True,
        "quote-generation-socket": quotes.to_json(),
    }
    if deployment.manifest is not None:
        guest["mrconfigid"] = base64.b64encode(config_id(deployment.manifest)).decode("ascii")
    return guest


def config_id(manifest: bytes) -> bytes:
    """MRCONFIGID of a manifest: its SHA-256, then zeros (docs/design.md section 5)."""
    return manifest.ljust(CONFIG_ID_BYTES, b"\0")
