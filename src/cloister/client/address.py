"""Where a worker is, and which requests are for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import httpx2

from cloister.errors import ChannelError, ConfigurationError
from cloister.streams.address import Address, TcpAddress, is_address, parse_address

SEALED_URL: Final = "https://sealed.invalid/v1"
"""A base URL that means the worker of whichever verifying transport gets it, and nobody else.

The name cannot be resolved (RFC 6761 §6.4). A framework that makes a client of its own beside
the one it was given, which happens when only one of the blocking and the asynchronous one was,
then finds nobody to talk to, where the worker's own address would have got the prompt in clear.
"""
_SEALED_HOST: Final = b"sealed.invalid"
_CARRIED_HOST: Final = "worker.invalid"
"""The host in requests that go over a unix socket, vsock or a port; nobody else has that name."""

OHTTP_PATH = "/ohttp"
ATTESTATION_PATH = "/v1/aci/attestation"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAddress:
    """A worker's origin, and the path it is mounted at (``""`` for the root)."""

    scheme: str
    authority: str
    """Host and, where it is not the scheme's own, port; IPv6 hosts in brackets."""
    prefix: str
    carrier: Address | None = None
    """What is dialled, where that is not the authority over TCP."""

    @classmethod
    def parse(cls, url: str) -> WorkerAddress:
        """Read ``http(s)://host[:port][/prefix][/v1][/]``: an SDK's base URL, or without ``/v1``.

        Or any address of `cloister.streams.address`: ``unix:/path``, ``vsock://CID:PORT``,
        ``virtio:/path``, or ``tcp://host:port``, which is ``http://host:port``.

        Raises:
            ConfigurationError: not such a URL, or one with a user, query or fragment.
        """
        if is_address(url):
            return cls._carried(parse_address(url))
        try:
            parsed = httpx2.URL(url)
        except (httpx2.InvalidURL, TypeError):
            raise ConfigurationError(
                "the worker's address is not a URL", code="client.url"
            ) from None
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise ConfigurationError(
                "the worker's address must begin with http:// or https:// and name a host, "
                "or with unix:, vsock:// or virtio:",
                code="client.url",
            )
        if parsed.userinfo or parsed.query or parsed.fragment:
            raise ConfigurationError(
                "the worker's address must not hold a user name, a query or a fragment",
                code="client.url",
            )
        path = parsed.raw_path.decode("ascii").rstrip("/")
        return cls(
            scheme=parsed.scheme,
            authority=parsed.netloc.decode("ascii"),
            prefix=path.removesuffix("/v1").rstrip("/"),
        )

    @classmethod
    def _carried(cls, address: Address) -> WorkerAddress:
        if isinstance(address, TcpAddress):
            authority = str(address).removeprefix("tcp://")
            return cls(scheme="http", authority=authority, prefix="")
        return cls(scheme="http", authority=_CARRIED_HOST, prefix="", carrier=address)

    @property
    def root(self) -> str:
        """The worker's URL without a trailing slash."""
        return f"{self.scheme}://{self.authority}{self.prefix}"

    @property
    def ohttp_url(self) -> str:
        """Where sealed requests are posted."""
        return self.root + OHTTP_PATH

    def report_url(self, nonce: bytes) -> str:
        """Where a report over `nonce` (32 bytes) is fetched."""
        return f"{self.root}{ATTESTATION_PATH}?nonce={nonce.hex()}"

    def inner_path(self, scheme: str, authority: bytes, target: bytes) -> bytes:
        """The path and query to seal for a request to `scheme`, `authority` and `target`.

        At the host of `SEALED_URL` the worker is mounted at the root, wherever it really is.

        Raises:
            ChannelError: the request is for somebody else, whom nobody verified (code
                ``channel.other_worker``). Nothing was sent.
        """
        if scheme == "https" and authority == _SEALED_HOST:
            return target
        prefix = self.prefix.encode("ascii")
        if scheme != self.scheme or authority != self.authority.encode("ascii"):
            raise _elsewhere()
        if not target.startswith(prefix + b"/"):
            raise _elsewhere()
        return target[len(prefix) :]


def _elsewhere() -> ChannelError:
    return ChannelError(
        "this client speaks to one verified worker only, and the request is for another address",
        code="channel.other_worker",
    )
