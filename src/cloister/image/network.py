"""What may pass a guest's network card, in one readable block, and the nftables rules that hold it.

Data comes in on the ports that are named. Nothing goes out but replies on these connections, and
new connections to the peers named, by address and port. There is no name service, no clock from
the network and no metadata service, unless somebody names them.

The rules stand in two tables, either of which is enough against software that opens sockets:

- ``inet cloister`` follows connections (fragments are put together before it sees them): a packet
  leaves if it answers a connection that was let in, so a forged peer gets none;
- ``netdev cloister`` looks at every frame on its way to the card, those of raw sockets too: TCP
  with the right ports and ARP, IPv6's neighbour discovery if there is an IPv6 address, no more.

The text decides what the guest can do and is measured with the application disk. Source: nft(8) of
nftables 1.0.6; ``egress`` needs Linux 5.16 with ``CONFIG_NETFILTER_EGRESS``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cloister.errors import ConfigurationError
from cloister.strictjson import JsonObject

CARD: Final = "eth0"
MAX_PORTS: Final = 16
MAX_PEERS: Final = 16
METADATA: Final = (
    ipaddress.ip_network("169.254.169.0/24"),
    ipaddress.ip_network("168.63.129.16/32"),
    ipaddress.ip_network("fd00:ec2::/64"),
)
"""Where clouds tell a machine about itself: an address there must be called ``metadata``."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Somebody whom the guest may call."""

    name: str
    address: Address
    port: int

    @property
    def authority(self) -> str:
        """``ADDRESS:PORT``, as a URL has it and as the claims document's ``egress`` lists it."""
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"

    def to_json(self) -> JsonObject:
        """For the configuration."""
        return {"name": self.name, "address": str(self.address), "port": self.port}


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPolicy:
    """What may pass.

    ConfigurationError for what is not a policy (code ``image.network``).
    """

    listen: tuple[int, ...] = ()
    """TCP ports on which connections are let in. None: there is no need of a card."""
    allow_out: tuple[Peer, ...] = ()
    addresses: tuple[Interface, ...] = ()
    """The card's own, with the length of their networks' prefix."""
    gateways: tuple[Address, ...] = ()
    """Where packets for other networks go, at most one of each family."""
    card: bool = True
    """Whether there is one at all. Without, virtio-serial ports of the machine carry what is asked
    of the worker and of its broker."""

    def __post_init__(self) -> None:
        """Refuse what would not mean what it seems to."""
        _check_ports(self.listen)
        _check_peers(self.allow_out)
        if not self.card and (self.listen or self.allow_out or self.addresses or self.gateways):
            raise _refused("without a network card (`card = false`) nothing else is said of one")
        families = {address.version for address in self.addresses}
        if (self.listen or self.allow_out) and not self.addresses:
            raise _refused("`address` is missing: the guest asks nobody for one")
        if any(peer.address.version not in families for peer in self.allow_out):
            raise _refused("a peer has an address of a family in which the guest has none")
        versions = [gateway.version for gateway in self.gateways]
        if len(set(versions)) < len(versions) or not set(versions) <= families:
            raise _refused("`gateway` is one address for each family in which the guest has one")

    @property
    def ipv6(self) -> bool:
        """Whether the guest has an IPv6 address; without one no IPv6 packet passes."""
        return any(address.version == 6 for address in self.addresses)

    def to_json(self) -> JsonObject:
        """For the effective configuration."""
        return {
            **({} if self.card else {"card": False}),
            "listen": list(self.listen),
            "allow_out": [peer.to_json() for peer in self.allow_out],
            "address": [str(address) for address in self.addresses],
            "gateway": [str(gateway) for gateway in self.gateways],
        }

    def interface_conf(self) -> str:
        """What init sets the card up from; empty: it brings up none."""
        lines = [f"address {address}" for address in self.addresses]
        return "".join(f"{line}\n" for line in [*lines, *(f"gateway {g}" for g in self.gateways)])


def compile_rules(policy: NetworkPolicy, *, card: str | None = CARD) -> str:
    """The ruleset that holds `policy`, for ``nft -f``. Equal policies give equal text.

    `card` is None for a machine that has none, as the policy may say: rules that name one would
    not load there.
    """
    rules = (
        "# Written by `cloister image build` from the block [network]. Nothing passes that is not"
        " named here.\n"
        "flush ruleset\n\n" + _table("inet cloister", (_input(policy), _forward(), _output(policy)))
    )
    if card is None or not policy.card:
        return rules
    return rules + "\n" + _table("netdev cloister", (_egress(policy, card),))


def _input(policy: NetworkPolicy) -> str:
    rules = [
        'iifname "lo" accept',
        "ct state established accept",
        # A route that takes smaller packets only has to say so.
        "ct state related icmp type destination-unreachable accept",
    ]
    if not policy.ipv6:
        rules.insert(1, "meta nfproto ipv6 drop")
    else:
        rules += [
            "ct state related icmpv6 type { destination-unreachable, packet-too-big } accept",
            f"icmpv6 type {_NEIGHBOURS} ip6 hoplimit 255 accept",
        ]
    if policy.listen:
        # Only a first packet makes a connection: others would be taken for one half seen.
        first = "tcp flags & (fin | syn | rst | ack) == syn"
        rules.append(f"tcp dport {_ports(policy.listen)} {first} ct state new accept")
    return _chain("input", "type filter hook input priority filter; policy drop;", rules)


def _forward() -> str:
    return _chain("forward", "type filter hook forward priority filter; policy drop;", ())


def _output(policy: NetworkPolicy) -> str:
    rules = ['oifname "lo" accept']
    if not policy.ipv6:
        rules.append("meta nfproto ipv6 drop")
    if policy.listen:
        ports = _ports(policy.listen)
        rules.append(f"tcp sport {ports} ct state established ct direction reply accept")
    rules += [
        f"{_destination(peer)} ct state new,established accept # {peer.name}"
        for peer in policy.allow_out
    ]
    if policy.ipv6:
        rules.append(f"icmpv6 type {_NEIGHBOURS} ip6 hoplimit 255 accept")
    return _chain("output", "type filter hook output priority filter; policy drop;", rules)


def _egress(policy: NetworkPolicy, card: str) -> str:
    """Frames on their way to the card. A later fragment has no ports, so it matches nothing."""
    rules: list[str] = []
    if any(address.version == 4 for address in policy.addresses):
        rules.append("arp operation { request, reply } accept")
    if policy.ipv6:
        rules.append(f"icmpv6 type {_NEIGHBOURS} ip6 hoplimit 255 accept")
    else:
        rules.append("ether type ip6 drop")
    rules.append("ip frag-off & 0x3fff != 0 drop")
    rules.append("exthdr frag exists drop")
    if policy.listen:
        rules.append(f"tcp sport {_ports(policy.listen)} accept")
    rules += [f"{_destination(peer)} accept # {peer.name}" for peer in policy.allow_out]
    hook = f'type filter hook egress device "{card}" priority filter; policy drop;'
    return _chain("egress", hook, rules)


_NEIGHBOURS: Final = "{ nd-neighbor-solicit, nd-neighbor-advert }"


def _destination(peer: Peer) -> str:
    family = "ip" if peer.address.version == 4 else "ip6"
    return f"{family} daddr {peer.address} tcp dport {peer.port}"


def _ports(ports: Sequence[int]) -> str:
    return "{ " + ", ".join(map(str, ports)) + " }"


def _table(name: str, chains: Iterable[str]) -> str:
    return f"table {name} {{\n" + "\n".join(chains) + "}\n"


def _chain(name: str, hook: str, rules: Iterable[str]) -> str:
    lines = "".join(f"\t\t{rule}\n" for rule in (hook, *rules))
    return f"\tchain {name} {{\n{lines}\t}}\n"


def _check_ports(ports: Sequence[int]) -> None:
    if len(ports) > MAX_PORTS or len(set(ports)) < len(ports):
        raise _refused(f"`listen` is at most {MAX_PORTS} ports, each once")
    if not all(0 < port < 65536 for port in ports):
        raise _refused("a port is between 1 and 65535")


def _check_peers(peers: Sequence[Peer]) -> None:
    names = [peer.name for peer in peers]
    if len(peers) > MAX_PEERS or len(set(names)) < len(names):
        raise _refused(f"`allow_out` is at most {MAX_PEERS} peers, each of another name")
    for peer in peers:
        if not 0 < peer.port < 65536:
            raise _refused("a port is between 1 and 65535")
        address = peer.address
        if address.is_unspecified or address.is_multicast or address.is_loopback:
            raise _refused(f"{peer.name} has an address that is nobody's")
        if peer.name != "metadata" and any(address in network for network in METADATA):
            raise _refused(
                f"{peer.name} has the address of a cloud's metadata service, which tells the "
                "provider's wishes to whoever asks; call it `metadata` if that is meant"
            )
        if peer.port == 53:
            raise _refused(
                f"{peer.name} is a name service (port 53): names carry data to anybody; give peers "
                "by address"
            )


def _refused(why: str) -> ConfigurationError:
    return ConfigurationError(f"[network] {why}", code="image.network")
