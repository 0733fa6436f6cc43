"""What QEMU starts for each connection to a peer: bytes both ways, until both have ended."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
import threading

import pytest

from cloister.errors import ConfigurationError
from cloister.image.machine import Carried


def test_bytes_pass_both_ways_and_each_end_is_heard() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        near, theirs = socket.socketpair()
        carried = Carried(address="10.0.2.100", port=8450, host="127.0.0.1", host_port=port)
        with near, theirs:
            process = subprocess.Popen(
                shlex.split(carried.command), stdin=theirs.fileno(), stdout=theirs.fileno()
            )
            theirs.close()
            peer, _ = listener.accept()
            with peer:
                near.sendall(b"question" * 40000)
                assert received(peer, 320000) == b"question" * 40000
                near.shutdown(socket.SHUT_WR)
                assert peer.recv(1) == b""
                sending = threading.Thread(target=peer.sendall, args=(b"answer" * 50000,))
                sending.start()
                assert received(near, 300000) == b"answer" * 50000
                sending.join()
            assert near.recv(1) == b""
        assert process.wait(60) == 0


def received(connection: socket.socket, size: int) -> bytes:
    connection.settimeout(60)
    data = b""
    while len(data) < size:
        piece = connection.recv(65536)
        assert piece
        data += piece
    return data


def test_a_peer_that_is_not_there_ends_the_connection() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # and does not listen; nor can anybody else here
        port = reserved.getsockname()[1]
        carried = Carried(address="10.0.2.100", port=8450, host="127.0.0.1", host_port=port)
        done = subprocess.run(
            shlex.split(carried.command), stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


@pytest.mark.parametrize(
    "address", ["192.0.2.7", "10.0.2.2", "10.0.2.3", "10.0.2.15", "10.0.2.255", "10.0.3.100"]
)
def test_addresses_that_qemu_gives_to_nobody(address: str) -> None:
    Carried(address="10.0.2.100", port=8450, host="127.0.0.1", host_port=1)
    with pytest.raises(ConfigurationError) as caught:
        Carried(address=address, port=8450, host="127.0.0.1", host_port=1)
    assert caught.value.code == "image.peer"


def test_only_the_standard_library_is_imported() -> None:
    listed = "import sys, cloister.image.dial; print(*(n for n in sys.modules if 'cloister' in n))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", listed], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == {"cloister", "cloister.image", "cloister.image.dial"}
