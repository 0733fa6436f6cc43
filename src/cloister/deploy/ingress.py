"""Who may connect to a deployed machine and whom it may call, as the platform's filter has it.

The image's own rules decide (its measured network policy, `ImageNetwork`); the platform's are a
second, outer filter made from them. Nobody is let in who is not named, and nothing goes out but to
the peers of the image.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

from cloister.deploy import words
from cloister.errors import ConfigurationError, MalformedError
from cloister.strictjson import (
    JsonObject,
    expect_int,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
)

MAX_PEERS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """An address and a TCP port that the guest may call."""

    address: str
    port: int

    @property
    def range(self) -> str:
        """The address as a range of one."""
        return str(ipaddress.ip_network(self.address))


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What a platform's filter lets through, replies aside."""

    port: int
    sources: tuple[str, ...]
    """Ranges; never empty."""
    peers: tuple[Peer, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a filter that lets nobody in: it was forgotten, not meant. Check every range."""
        words.port(self.port)
        if not self.sources:
            raise ConfigurationError(
                "say who may connect: --from 203.0.113.0/24, or --from any", code="deploy.range"
            )
        if len(self.peers) > MAX_PEERS:
            raise ConfigurationError(
                f"a guest calls at most {MAX_PEERS} peers", code="deploy.range"
            )
        for one in (*self.sources, *(peer.range for peer in self.peers)):
            words.source_range(one)


NO_PORT: Final = 8440
"""Stands for one in the description of a guest that has no card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageNetwork:
    """What an image's effective configuration says of its card (`cloister.image.network`)."""

    listen: tuple[int, ...]
    addresses: tuple[str, ...]
    """IPv4 addresses, without prefix. The guest asks nobody for one, so the platform has to give
    the machine this one."""
    peers: tuple[Peer, ...]
    card: bool = True
    """Without one, only ports of the machine reach the guest."""

    def port(self, wanted: int | None) -> int:
        """The worker's port: the first that is let in, unless another of them is `wanted`.

        Raises:
            ConfigurationError: the image lets nobody in there (code ``deploy.port``).
        """
        if not self.card and wanted is None:
            return NO_PORT
        if not self.listen or (wanted is not None and wanted not in self.listen):
            raise ConfigurationError(
                "the image's network policy lets nobody in on that port: see `listen` in its "
                "configuration",
                code="deploy.port",
            )
        return self.listen[0] if wanted is None else wanted


def make_filter(port: int, sources: list[str], peers: tuple[Peer, ...]) -> Filter:
    """A filter for people from `sources`, words such as ``203.0.113.0/24`` or ``any``.

    Raises:
        ConfigurationError: a word is no range, or there is none.
    """
    return Filter(
        port=port,
        sources=tuple(dict.fromkeys(words.source_range(text) for text in sources)),
        peers=peers,
    )


def parse_network(value: object) -> ImageNetwork:
    """Read the member ``network`` of an image's effective configuration.

    Raises MalformedError, and nothing else.
    """
    what = "the network of the image's configuration"
    members = expect_object(value, what)
    required = {"listen", "allow_out", "address", "gateway"}
    expect_keys(members, what, required=required, optional={"card"})
    if members.get("card", False) is not False:
        raise MalformedError(f"{what} says of its card what nobody writes")
    ports = expect_list(members["listen"], what, limit=MAX_PEERS)
    peers = expect_list(members["allow_out"], what, limit=MAX_PEERS)
    addresses = expect_list(members["address"], what, limit=MAX_PEERS)
    try:
        interfaces = [ipaddress.ip_interface(expect_str(text, what)) for text in addresses]
        return ImageNetwork(
            listen=tuple(expect_int(port, what, low=1, high=65535) for port in ports),
            addresses=tuple(str(one.ip) for one in interfaces if one.version == 4),
            peers=tuple(_peer(expect_object(peer, what)) for peer in peers),
            card="card" not in members,
        )
    except ValueError:
        raise MalformedError(f"{what} holds something that is no address") from None


def _peer(members: JsonObject) -> Peer:
    what = "a peer of the image's network"
    text = expect_str(members.get("address"), what)
    if "%" in text:  # a zone, which may hold any character and means nothing elsewhere
        raise MalformedError(f"{what} has an address with a zone")
    return Peer(
        address=str(ipaddress.ip_address(text)),
        port=expect_int(members.get("port"), what, low=1, high=65535),
    )
