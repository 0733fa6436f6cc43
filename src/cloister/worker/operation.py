"""What the operator decides and nobody measures: where a worker listens, whom it serves."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.errors import ConfigurationError
from cloister.streams.address import Address, TcpAddress, parse_address
from cloister.strictjson import JsonObject
from cloister.worker.settings import RateLimit


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """The operator's part of a hand-over."""

    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free one; the ready message says which."""
    listen: str | None = None
    """Instead of `host` and `port`: an address of `cloister.streams.address`."""
    tls_port: int | None = None
    """Of the listener of attested TLS, where the configuration has one; 0 takes a free one."""
    tls_names: tuple[str, ...] = ()
    """DNS names and IP addresses that clients reach it by, besides `host`."""
    api_keys: Path | None = None
    manifest: Path | None = None
    """The bundle of the manifest whose digest the configuration names."""
    weights_key: Path | None = None
    """The key of sealed weights, where it lies in a file of the operator's."""
    operator_socket: Path | None = None
    """None puts it into the worker's private directory."""
    threads: int | None = None
    """Of the engine; None leaves one core to the worker."""
    broker: str | None = None
    """Address of the broker, where the configuration names one."""
    broker_kit: Path | None = None
    """What that broker has to be, as it was measured."""
    upstream: str | None = None
    """Address of an engine that somebody else runs, where the configuration names such."""
    rate_per_minute: int = 600
    rate_burst: int = 120
    """Per API key."""
    repo_url: str | None = None
    repo_commit: str | None = None
    """Source provenance for the report; nothing binds it."""

    def __post_init__(self) -> None:
        address = self.address
        named = (self.host, address.host) if isinstance(address, TcpAddress) else (self.host,)
        try:
            for host in named:
                ipaddress.ip_address(host)
        except ValueError:
            raise ConfigurationError(
                "a worker listens on an IP address, not on a name", code="configuration.listen"
            ) from None
        if not all(_is_name(name) for name in self.tls_names):
            raise ConfigurationError(
                "a certificate names DNS names, without wildcards, and IP addresses",
                code="configuration.tls_names",
            )

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the worker directly."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def address(self) -> Address:
        """Where sealed requests are taken."""
        if self.listen is None:
            return TcpAddress(host=self.host, port=self.port)
        return parse_address(self.listen)

    @property
    def local_only(self) -> bool:
        """Whether only this machine, or the one it runs on, can reach the worker directly.

        A unix socket is this user's; vsock and a virtio-serial port end at the hypervisor. Whoever
        forwards from there decides who else comes.
        """
        hosts = [self.address.host] if isinstance(self.address, TcpAddress) else []
        if self.tls_port is not None:
            hosts.append(self.host)
        return all(ipaddress.ip_address(host).is_loopback for host in hosts)

    @property
    def certificate_names(self) -> tuple[str, ...]:
        """What the certificate of attested TLS is good for: the `host`, and `tls_names`.

        ConfigurationError where that is nothing.
        """
        own: list[str] = []
        if self.on_loopback:
            own.append("localhost")
        if _is_name(self.host) and not ipaddress.ip_address(self.host).is_unspecified:
            own.append(self.host)
        names = tuple(dict.fromkeys((*own, *self.tls_names)))
        if not names:
            raise ConfigurationError(
                "a worker whose own address names nobody (it listens on every one) has to be told "
                "by which names and addresses its clients reach it (--tls-name)",
                code="configuration.tls_names",
            )
        return names

    @property
    def rate(self) -> RateLimit:
        """The rate limit of each API key."""
        return RateLimit(per_minute=self.rate_per_minute, burst=self.rate_burst)

    @property
    def provenance(self) -> JsonObject | None:
        """``source_provenance`` of the report (`aci/1` section 4.1)."""
        if self.repo_url is None:
            return None
        return {
            "repo_url": self.repo_url,
            "repo_commit": self.repo_commit,
            "image_digest": None,
            "image_provenance": None,
        }

    def to_json(self) -> JsonObject:
        """What the launcher passes on.

        Paths become absolute here, where ``~`` and the current directory are the operator's: a
        worker that looked for its table of API keys elsewhere would find none, and be open.
        """
        values: JsonObject = {}
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, Path):
                values[name] = str(value.expanduser().absolute())
            else:
                values[name] = list(value) if isinstance(value, tuple) else value
        return values

    @classmethod
    def from_json(cls, members: JsonObject) -> Operation:
        """Read it back; ConfigurationError if a member is unknown or of another type."""
        values: dict[str, object] = {}
        for name, value in members.items():
            expected = _TYPES.get(name)
            if expected is None or not (value is None or type(value) is expected):
                raise ConfigurationError(
                    "the operator's settings do not decode", code="configuration.operator"
                )
            is_path = name in _PATHS and value is not None
            values[name] = Path(str(value)) if is_path else value
            if name == "tls_names":
                values[name] = tuple(value) if isinstance(value, list) else ()
            if is_path and not Path(str(value)).is_absolute():
                raise ConfigurationError(
                    "the worker needs absolute paths", code="configuration.operator"
                )
        return cls(**values)  # type: ignore[arg-type]  # checked against _TYPES above


_LABEL: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)", re.ASCII)
_MAX_NAME: Final = 253


def _is_name(name: object) -> bool:
    if not isinstance(name, str):
        return False
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return "%" not in name  # an IPv6 zone means something on one machine only
    labels = name.split(".")
    return len(name) <= _MAX_NAME and all(_LABEL.fullmatch(label) for label in labels)


_PATHS: Final = ("api_keys", "broker_kit", "manifest", "operator_socket", "weights_key")
_TYPES: dict[str, type] = {
    "host": str,
    "port": int,
    "listen": str,
    "tls_port": int,
    "tls_names": list,
    "api_keys": str,
    "manifest": str,
    "operator_socket": str,
    "weights_key": str,
    "threads": int,
    "broker": str,
    "broker_kit": str,
    "upstream": str,
    "rate_per_minute": int,
    "rate_burst": int,
    "repo_url": str,
    "repo_commit": str,
}
