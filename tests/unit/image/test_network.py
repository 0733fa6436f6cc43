"""The network policy as text, and the rules on a card whose every frame is seen."""

from __future__ import annotations

import ipaddress
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.errors import ConfigurationError
from cloister.image.network import NetworkPolicy, Peer, compile_rules
from support import network_scene as scene

TESTS = Path(__file__).parents[2]
BROKER = Peer(name="broker", address=ipaddress.ip_address(scene.BROKER), port=scene.BROKER_PORT)
IPV4 = (ipaddress.ip_interface(f"{scene.OWN}/24"),)
CLOSED = NetworkPolicy(listen=(scene.PORT,), addresses=IPV4)
WITH_BROKER = NetworkPolicy(listen=(scene.PORT,), allow_out=(BROKER,), addresses=IPV4)
DUAL = NetworkPolicy(
    listen=(scene.PORT,), addresses=(*IPV4, ipaddress.ip_interface(f"{scene.OWN6}/64"))
)

Left = dict[str, list[str]]


def played(rules: str) -> Left:
    """What left the card under these rules, by attempt."""
    for program, package in (("unshare", "util-linux"), ("nft", "nftables"), ("ip", "iproute2")):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} (Debian: {package})")
    confined = ("unshare", "--user", "--map-root-user", "--net")
    tried = subprocess.run((*confined, "ip", "link"), capture_output=True, check=False, timeout=30)
    if tried.returncode or not Path("/dev/net/tun").exists():
        pytest.skip("needs user and network namespaces and /dev/net/tun, which this machine denies")
    done = subprocess.run(
        (*confined, sys.executable, "-m", "support.network_scene"),
        input=rules,
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    left: Left = json.loads(done.stdout)
    return left


def layers(policy: NetworkPolicy) -> tuple[str, str]:
    """The two tables apart."""
    first, second = compile_rules(policy).split("table netdev")
    return first, "table netdev" + second


@pytest.fixture(scope="module")
def without_rules() -> Left:
    return played("")


@pytest.fixture(scope="module")
def closed() -> Left:
    return played(compile_rules(CLOSED))


def test_the_policy_reads_as_it_is_written() -> None:
    text = compile_rules(WITH_BROKER)
    assert "tcp dport { 8440 } tcp flags & (fin | syn | rst | ack) == syn" in text
    assert "ip daddr 192.0.2.7 tcp dport 8443 ct state new,established accept # broker" in text
    assert text == compile_rules(WITH_BROKER)
    assert "icmpv6" not in compile_rules(CLOSED)
    assert text.count("policy drop;") == 4


def peer(address: str, *, name: str = "peer", port: int = 443) -> Peer:
    return Peer(name=name, address=ipaddress.ip_address(address), port=port)


def policy(
    *allow_out: Peer,
    listen: tuple[int, ...] = (8440,),
    own: tuple[str, ...] = ("10.0.2.15/24", "fd00::2/64"),
    gateways: tuple[str, ...] = (),
) -> NetworkPolicy:
    return NetworkPolicy(
        listen=listen,
        allow_out=allow_out,
        addresses=tuple(map(ipaddress.ip_interface, own)),
        gateways=tuple(map(ipaddress.ip_address, gateways)),
    )


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "127.0.0.1", "224.0.0.1", "::", "::1", "ff02::1"),
        # Metadata services of AWS, Google and Azure; Azure's other; AWS's by IPv6.
        *("169.254.169.254", "169.254.169.0", "168.63.129.16", "fd00:ec2::254"),
    ],
)
def test_addresses_that_are_no_peers(address: str) -> None:
    policy(peer("192.0.2.7"), peer("2001:db8::7", name="other"))
    with pytest.raises(ConfigurationError, match=r"nobody's|metadata service"):
        policy(peer(address))


def test_a_metadata_service_goes_by_its_name() -> None:
    policy(peer("169.254.169.254", name="metadata"))
    for name in ("meta", "Metadata"):
        with pytest.raises(ConfigurationError, match="call it `metadata`"):
            policy(peer("169.254.169.254", name=name))
    with pytest.raises(ConfigurationError, match="nobody's"):
        policy(peer("127.0.0.1", name="metadata"))


def test_as_many_ports_and_peers_as_somebody_reads() -> None:
    peers = [peer(f"192.0.2.{number}", name=f"p{number}") for number in range(1, 18)]
    ports = tuple(range(1, 18))
    policy(*peers[:16], listen=ports[:16])
    with pytest.raises(ConfigurationError, match="at most 16 ports"):
        policy(listen=ports)
    with pytest.raises(ConfigurationError, match="at most 16 peers"):
        policy(*peers)
    with pytest.raises(ConfigurationError, match="each of another name"):
        policy(peers[0], peer("192.0.2.9", name="p1"))
    with pytest.raises(ConfigurationError, match="each once"):
        policy(listen=(1, 1))


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_ports_that_there_are_not(port: int) -> None:
    for there in (1, 65535):
        policy(peer("192.0.2.7", port=there), listen=(there,))
    with pytest.raises(ConfigurationError, match="between 1 and 65535"):
        policy(listen=(port,))
    with pytest.raises(ConfigurationError, match="between 1 and 65535"):
        policy(peer("192.0.2.7", port=port))
    with pytest.raises(ConfigurationError, match="name service"):
        policy(peer("192.0.2.7", port=53))


def test_a_card_needs_an_address_of_each_family_that_is_spoken() -> None:
    policy(listen=(), own=())
    for made in ((), (peer("192.0.2.7"),)):
        policy(*made, gateways=("10.0.2.2", "fd00::1"))
        with pytest.raises(ConfigurationError, match="`address` is missing"):
            policy(*made, listen=() if made else (8440,), own=())
    with pytest.raises(ConfigurationError, match="a family in which the guest has none"):
        policy(peer("2001:db8::7"), own=("10.0.2.15/24",))
    for gateways in (("10.0.2.2", "10.0.2.3"), ("fd00::1",)):
        with pytest.raises(ConfigurationError, match="one address for each family"):
            policy(gateways=gateways, own=("10.0.2.15/24",))


@pytest.mark.parametrize("name", [*scene.INSIDE, *scene.OUTSIDE])
def test_nothing_leaves_but_answers(name: str, without_rules: Left, closed: Left) -> None:
    assert without_rules[name] or name in {"ack without a connection"}, "the attempt is none"
    assert closed[name] == []


def test_clients_are_answered(without_rules: Left, closed: Left) -> None:
    answered = [f"tcp4 syn+ack {scene.PORT}>", "answer"]
    assert without_rules["a client"] == answered
    assert closed["a client"] == answered


def test_the_broker_is_reached_only_where_it_is_named(closed: Left) -> None:
    named = played(compile_rules(WITH_BROKER))
    assert named["tcp to the broker"] == [f"tcp4 syn >{scene.BROKER_PORT}"]
    assert closed["tcp to the broker"] == []
    assert all(named[name] == [] for name in [*scene.INSIDE, *scene.OUTSIDE])


def test_each_layer_holds_on_its_own(without_rules: Left) -> None:
    connections, frames = layers(CLOSED)
    first, second = played(connections), played(frames)
    past_connections = {name for name in scene.INSIDE if first[name]}
    # Frames of raw sockets never meet the first table; software in the guest has no right to them.
    assert past_connections == {name for name in scene.INSIDE if name.startswith("frame:")} | {
        "udp from the worker's port"
    }
    # The second knows ports, not connections.
    past_frames = {name for name in scene.INSIDE if second[name]}
    assert past_frames == {
        "tcp from the worker's port",
        "tcp answer to a forged peer",
    }
    assert first["a client"] == second["a client"] == without_rules["a client"]


def test_ipv6_is_answered_where_the_guest_has_an_address(closed: Left) -> None:
    dual = played(compile_rules(DUAL))
    assert f"tcp6 syn+ack {scene.PORT}>" in dual["syn6 to the worker's port"]
    assert closed["syn6 to the worker's port"] == []
    for name in [*scene.INSIDE, *scene.OUTSIDE]:
        if name != "syn6 to the worker's port":
            assert set(dual[name]) <= {"neighbour"}, name
