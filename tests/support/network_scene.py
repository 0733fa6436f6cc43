"""A guest's network card under its rules, in namespaces of its own.

Run as ``unshare --user --map-root-user --net python -m support.network_scene < ruleset``: makes a
TAP device called ``eth0``, whose other end is read here frame by frame, so that nothing that leaves
goes unseen; loads the rules; then acts as software inside the guest and as a host outside. Prints
what left, by attempt, as JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

OWN, HOST, OTHER = "10.0.2.15", "10.0.2.2", "198.51.100.7"
OWN6, HOST6 = "fd00:2::15", "fd00:2::2"
NAMES, BROKER = "10.0.2.3", "192.0.2.7"
PORT, BROKER_PORT = 8440, 8443
HOST_MAC, OWN_MAC = bytes.fromhex("020000000002"), bytes.fromhex("020000000015")
SYN, ACK, RST = 2, 16, 4


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def pseudo(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    both = packed(source) + packed(target)
    if ":" in source:
        return both + struct.pack("!II", len(payload), protocol)
    return both + struct.pack("!BBH", 0, protocol, len(payload))


def ip(source: str, target: str, protocol: int, payload: bytes, fragment: int = 0) -> bytes:
    if ":" in source:
        head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
        return head + packed(source) + packed(target) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 7, fragment, 64, protocol, 0)
    head += packed(source) + packed(target)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def tcp(
    source: tuple[str, int],
    target: tuple[str, int],
    flags: int,
    *,
    sequence: int = 1000,
    acknowledged: int = 0,
    data: bytes = b"",
) -> bytes:
    segment = struct.pack(
        "!HHIIBBHHH", source[1], target[1], sequence, acknowledged, 0x50, flags, 65535, 0, 0
    )
    segment += data
    total = checksum(pseudo(source[0], target[0], 6, segment) + segment)
    segment = segment[:16] + struct.pack("!H", total) + segment[18:]
    return ip(source[0], target[0], 6, segment)


def udp(source: tuple[str, int], target: tuple[str, int], data: bytes) -> bytes:
    datagram = struct.pack("!HHHH", source[1], target[1], 8 + len(data), 0) + data
    total = checksum(pseudo(source[0], target[0], 17, datagram) + datagram)
    return ip(source[0], target[0], 17, datagram[:6] + struct.pack("!H", total) + datagram[8:])


def echo(source: str, target: str) -> bytes:
    message = struct.pack("!BBHHH", 8, 0, 0, 1, 1)
    return ip(source, target, 1, message[:2] + struct.pack("!H", checksum(message)) + message[4:])


def described(frame: bytes) -> str:
    """One word or a few for a frame, enough to tell an answer from anything else."""
    kind = int.from_bytes(frame[12:14], "big")
    if kind == 0x0806:
        return "arp"
    if kind == 0x86DD:
        return _transport("6", frame[20], frame[54:], fragment=frame[20] == 44)
    if kind == 0x0800:
        fragment = int.from_bytes(frame[20:22], "big") & 0x3FFF
        return _transport("4", frame[23], frame[34:], fragment=bool(fragment))
    return f"frame of type {kind:#06x}"


def _transport(family: str, protocol: int, payload: bytes, *, fragment: bool) -> str:
    if fragment:
        return f"fragment{family}"
    if protocol in {6, 17}:
        source, target = struct.unpack("!HH", payload[:4])
        if protocol == 17:
            return f"udp{family} {source}>{target}" if source == PORT else f"udp{family} >{target}"
        names = {SYN: "syn", SYN | ACK: "syn+ack", ACK: "ack", RST: "rst", RST | ACK: "rst+ack"}
        flags = names.get(payload[13] & ~8, str(payload[13]))
        where = f"{PORT}>" if source == PORT else f">{target}"
        return f"tcp{family} {flags} {where}"
    if protocol == 58 and payload[0] in {135, 136}:
        return "neighbour"
    return f"{'icmp' if protocol in {1, 58} else protocol}{family}"


@dataclass
class Card:
    """The outer end of the guest's card."""

    descriptor: int

    def put(self, packet: bytes) -> None:
        kind = 0x86DD if packet[0] >> 4 == 6 else 0x0800
        os.write(self.descriptor, OWN_MAC + HOST_MAC + struct.pack("!H", kind) + packet)

    def seen(self, wait_ms: int = 50) -> Iterator[bytes]:
        """The frames that have left; the kernel hands them over as it sends them."""
        while select.select([self.descriptor], [], [], wait_ms / 1000)[0]:
            yield os.read(self.descriptor, 65536)


def open_card() -> Card:
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    tap_without_header = 0x0002 | 0x1000
    fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH", b"eth0", tap_without_header))
    mac, host_mac = OWN_MAC.hex(":"), HOST_MAC.hex(":")
    for line in (
        "link set lo up",
        f"link set eth0 address {mac}",
        "link set eth0 up",
        f"addr add {OWN}/24 dev eth0",
        f"-6 addr add {OWN6}/64 dev eth0 nodad",
        # Routes everywhere, and a neighbour that needs no asking: only the rules hold.
        f"neigh add {NAMES} lladdr {host_mac} dev eth0 nud permanent",
        f"neigh add {HOST} lladdr {host_mac} dev eth0 nud permanent",
        f"-6 neigh add {HOST6} lladdr {host_mac} dev eth0 nud permanent",
        f"route add default via {HOST}",
        f"-6 route add default via {HOST6}",
    ):
        subprocess.run(("ip", *line.split()), check=True)
    return Card(descriptor)


def attempt(send: Callable[[], object]) -> None:
    """A refusal is as good as a silence."""
    with contextlib.suppress(OSError):
        send()


def connect(target: tuple[str, int], own_port: int = 0) -> None:
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as opened:
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if own_port:
            opened.bind(("", own_port))
        opened.connect(target)


def send_udp(target: tuple[str, int], data: bytes = b"secret") -> None:
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        opened.sendto(data, target)


def send_raw(packet: bytes, target: str) -> None:
    """An IP packet that the kernel sends as it is."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as opened:
        opened.sendto(packet, (target, 0))


def send_icmp6(target: str) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as opened:
        opened.sendto(struct.pack("!BBHHH", 128, 0, 0, 1, 1), (target, 0))


def send_frame(packet: bytes, kind: int = 0x0800) -> None:
    """A frame past the IP stack."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as opened:
        opened.bind(("eth0", 0))
        opened.send(HOST_MAC + OWN_MAC + struct.pack("!H", kind) + packet)


PORTS = struct.pack("!HHIIBBHHH", PORT, 9, 1, 1, 0x50, ACK, 100, 0, 0) + b"more"
FIRST = ip(OWN, OTHER, 6, PORTS, fragment=0x2000)
FIRST6 = ip(OWN6, HOST6, 44, struct.pack("!BBHI", 6, 0, 1, 7) + PORTS)
FRAGMENT = ip(OWN, OTHER, 17, b"secret..", fragment=0x2003)

INSIDE: dict[str, Callable[[], object]] = {
    "udp to a name server": lambda: send_udp((NAMES, 53)),
    "udp to the internet": lambda: send_udp((OTHER, 53)),
    "udp from the worker's port": lambda: send_frame(udp((OWN, PORT), (OTHER, 9), b"secret")),
    "udp broadcast": lambda: send_udp(("10.0.2.255", 67)),
    "udp multicast": lambda: send_udp(("224.0.0.251", 5353)),
    "udp in fragments": lambda: send_udp((OTHER, 9), bytes(4000)),
    "tcp to the host": lambda: connect((HOST, 22)),
    "tcp to the metadata service": lambda: connect(("169.254.169.254", 80)),
    "tcp from the worker's port": lambda: connect((OTHER, 443), own_port=PORT),
    "tcp to the broker's host, another port": lambda: connect((BROKER, 22)),
    "tcp answer to a forged peer": lambda: send_raw(
        tcp((OWN, PORT), (OTHER, 5555), ACK, data=b"secret"), OTHER
    ),
    "icmp echo": lambda: send_raw(echo(OWN, OTHER), OTHER),
    "protocol 47": lambda: send_raw(ip(OWN, OTHER, 47, b"secret"), OTHER),
    "group membership": lambda: send_raw(ip(OWN, "224.0.0.22", 2, b"secret"), "224.0.0.22"),
    "udp6 to a name server": lambda: send_udp(("2001:db8::53", 53)),
    "tcp6 to the internet": lambda: connect(("2001:db8::7", 443)),
    "tcp6 from the worker's port": lambda: connect(("2001:db8::7", 443), own_port=PORT),
    "icmp6 echo": lambda: send_icmp6("2001:db8::7"),
    "frame: udp": lambda: send_frame(udp((OWN, 1), (OTHER, 9), b"secret")),
    "frame: later fragment": lambda: send_frame(FRAGMENT),
    "frame: first fragment of an answer": lambda: send_frame(FIRST),
    "frame: first fragment of an answer, IPv6": lambda: send_frame(FIRST6, 0x86DD),
    "frame: udp6": lambda: send_frame(udp((OWN6, 1), (HOST6, 9), b"secret"), 0x86DD),
    "frame: of an unknown type": lambda: send_frame(b"secret" * 10, 0x88B5),
}
OUTSIDE: dict[str, bytes] = {
    "syn to another port": tcp((HOST, 4001), (OWN, 22), SYN),
    "ack without a connection": tcp((HOST, 4002), (OWN, PORT), ACK, data=b"x"),
    "udp to the worker's port": udp((HOST, 4003), (OWN, PORT), b"x"),
    "udp to another port": udp((HOST, 4004), (OWN, 9), b"x"),
    "icmp echo request": echo(HOST, OWN),
    "protocol 47 from outside": ip(HOST, OWN, 47, b"x"),
    "syn6 to the worker's port": tcp((HOST6, 4005), (OWN6, PORT), SYN),
    "udp6 to another port": udp((HOST6, 4006), (OWN6, 9), b"x"),
}


def converse(card: Card, listener: socket.socket) -> list[str]:
    """A client's connection: what leaves for its handshake and for its request."""
    peer, own = (HOST, 4000), (OWN, PORT)
    card.put(tcp(peer, own, SYN))
    frames = [frame for frame in card.seen() if frame[23] == 6]
    left = [described(frame) for frame in frames]
    if not frames:
        return left
    theirs = int.from_bytes(frames[0][38:42], "big") + 1
    card.put(tcp(peer, own, ACK, sequence=1001, acknowledged=theirs))
    card.put(tcp(peer, own, ACK, sequence=1001, acknowledged=theirs, data=b"ask"))
    accepted = listener.accept()[0]
    with accepted:
        accepted.settimeout(60)
        accepted.sendall(accepted.recv(16).upper())
        answers = [frame for frame in card.seen() if frame[23] == 6]
        card.put(tcp(peer, own, RST, sequence=1004))
    said = any(frame.endswith(b"ASK") for frame in answers)
    return [*left, "answer" if said else "no answer"]


def main() -> None:
    card = open_card()
    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    rules = sys.stdin.read()
    if rules:
        subprocess.run(("nft", "-f", "-"), input=rules, text=True, check=True)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("", PORT))
    listener.listen()
    listener.settimeout(60)
    for _ in card.seen(200):
        pass  # what the kernel itself says when a card comes up
    left: dict[str, list[str]] = {"a client": converse(card, listener)}
    for name, send in INSIDE.items():
        attempt(send)
        left[name] = [described(frame) for frame in card.seen()]
    for name, packet in OUTSIDE.items():
        card.put(packet)
        left[name] = [described(frame) for frame in card.seen()]
    attempt(lambda: connect((BROKER, BROKER_PORT)))
    left["tcp to the broker"] = [described(frame) for frame in card.seen()]
    print(json.dumps(left), flush=True)
    # Sockets that still hold timers would speak when they are closed.
    os._exit(0)


if __name__ == "__main__":
    main()
