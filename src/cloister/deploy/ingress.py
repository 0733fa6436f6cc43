"""Who may connect to a deployed machine and whom it may call, as the platform's filter has it.

The image's own rules decide (its measured network policy); the platform's are a second, outer
filter. Nobody is let in who is not named, and nothing goes out but to the peers that are.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from cloister.deploy import words
from cloister.errors import ConfigurationError

MAX_PEERS: Final = 16
_PEER: Final = re.compile(r"([0-9a-fA-F.:\[\]]{2,45}):(\d{1,5})")


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
        """Refuse a filter that lets nobody in: it was forgotten, not meant."""
        words.port(self.port)
        if not self.sources:
            raise ConfigurationError(
                "say who may connect: --from 203.0.113.0/24, or --from any", code="deploy.range"
            )
        if len(self.peers) > MAX_PEERS:
            raise ConfigurationError(
                f"a guest calls at most {MAX_PEERS} peers", code="deploy.range"
            )


def make_filter(port: int, sources: list[str], peers: list[str]) -> Filter:
    """A filter from words such as ``203.0.113.0/24`` and ``198.51.100.7:8441``.

    Raises:
        ConfigurationError: a word is no range, or no address with a port.
    """
    return Filter(
        port=port,
        sources=tuple(dict.fromkeys(words.source_range(text) for text in sources)),
        peers=tuple(_peer(text) for text in peers),
    )


def _peer(text: str) -> Peer:
    found = _PEER.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        address = str(ipaddress.ip_address(found[1].removeprefix("[").removesuffix("]")))
    except ValueError:
        raise ConfigurationError(
            "a peer is an address and a port, such as 198.51.100.7:8441 or [2001:db8::7]:8441; "
            "names are not looked up",
            code="deploy.range",
        ) from None
    return Peer(address=address, port=words.port(int(found[2])))
