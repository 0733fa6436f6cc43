"""Where a program listens, or whom it dials: one syntax for every carrier.

::

    tcp://127.0.0.1:8440   tcp://[::1]:8440   tcp://kms.eu-west-1.amazonaws.com:443
    unix:/run/cloister/worker.sock
    vsock://3:8000                 vsock://any:8440 (to listen on)
    virtio:/dev/virtio-ports/cloister

``virtio:`` is a virtio-serial port: in the guest its character device, on the host the unix
socket that QEMU makes for it (``-chardev socket``). Such a port carries one stream of bytes, so
that both ends speak the framing of `cloister.streams.frames` on it.

vsock is described in vsock(7); context ids 0 to 2 are the hypervisor, the machine itself and
the host, and a Nitro enclave's parent is 3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, TypeAlias

from cloister.errors import ConfigurationError

VSOCK_ANY: Final = 0xFFFF_FFFF
"""``VMADDR_CID_ANY``: every context id of this machine."""
MAX_SOCKET_PATH: Final = 107
"""Of ``sun_path``, 108 bytes with its end (unix(7))."""
MAX_ADDRESS: Final = 4096
MAX_LABEL: Final = 63
"""Bytes between two dots of a name (RFC 1035 section 2.3.4)."""

_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]")
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,9}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpAddress:
    """A host (name or IP address, IPv6 without brackets) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixAddress:
    """The absolute path of a unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VsockAddress:
    """A context id and a port of vsock."""

    cid: int
    port: int

    def __str__(self) -> str:
        cid = "any" if self.cid == VSOCK_ANY else str(self.cid)
        return f"vsock://{cid}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtioAddress:
    """The absolute path of a virtio-serial port, or of the socket at its other end."""

    path: str

    def __str__(self) -> str:
        return f"virtio:{self.path}"


Address: TypeAlias = TcpAddress | UnixAddress | VsockAddress | VirtioAddress


def parse_address(text: str) -> Address:
    """Read one address.

    Raises ConfigurationError (code ``configuration.address``), whose message repeats nothing.
    """
    if len(text) <= MAX_ADDRESS and text.isprintable():
        scheme, colon, rest = text.partition(":")
        match scheme if colon else "":
            case "tcp":
                return _tcp(rest)
            case "vsock":
                return _vsock(rest)
            case "unix":
                return UnixAddress(path=_path(rest, limit=MAX_SOCKET_PATH))
            case "virtio":
                return VirtioAddress(path=_path(rest, limit=MAX_ADDRESS))
            case _:
                pass
    raise _wrong(
        "an address is tcp://HOST:PORT, unix:/PATH, vsock://CID:PORT or virtio:/PATH", None
    )


def is_address(text: str) -> bool:
    """Whether `text` begins like an address of this syntax (and not like a URL of HTTP)."""
    return text.partition(":")[0] in {"tcp", "unix", "vsock", "virtio"}


def _tcp(rest: str) -> TcpAddress:
    host, port = _split(rest, "tcp://HOST:PORT")
    labels = [] if host.startswith("[") else host.split(".")
    if _HOST.fullmatch(host) is None or any(not 0 < len(one) <= MAX_LABEL for one in labels):
        raise _wrong("in tcp://HOST:PORT the host is a name, or an IP address", "IPv6 in brackets")
    return TcpAddress(host=host.strip("[]"), port=_number(port, 0, 65535, "a TCP port"))


def _vsock(rest: str) -> VsockAddress:
    cid, port = _split(rest, "vsock://CID:PORT")
    # The last number is VMADDR_PORT_ANY: a port that is nobody's.
    return VsockAddress(
        cid=VSOCK_ANY if cid == "any" else _number(cid, 0, VSOCK_ANY - 1, "a context id"),
        port=_number(port, 0, VSOCK_ANY - 1, "a vsock port"),
    )


def _split(rest: str, form: str) -> tuple[str, str]:
    host, colon, port = rest.removeprefix("//").rpartition(":")
    if not rest.startswith("//") or not colon or not host:
        raise _wrong(f"an address of this kind is {form}", None)
    return host, port


def _path(rest: str, *, limit: int) -> str:
    if not rest.startswith("/") or rest.startswith("//") or rest.endswith("/"):
        raise _wrong("unix: and virtio: are followed by an absolute path", "unix:/run/worker.sock")
    if len(rest.encode()) > limit:
        raise _wrong(f"the path in an address has at most {limit} bytes", None)
    return rest


def _number(text: str, least: int, most: int, what: str) -> int:
    if _DECIMAL.fullmatch(text) is None or not least <= int(text) <= most:
        raise _wrong(f"{what} is a number from {least} to {most}", None)
    return int(text)


def _wrong(sentence: str, example: str | None) -> ConfigurationError:
    added = "" if example is None else f" ({example})"
    return ConfigurationError(sentence + added, code="configuration.address")
