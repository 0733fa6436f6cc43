"""The worker's requests to its broker, over what there is instead of a network."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from cloister.errors import ConfigurationError, FetchError
from cloister.worker.broker_http import BrokerHttp

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"


def test_a_broker_is_asked_over_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "broker.sock")
    seen: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                seen.append(connection.recv(65536))
                connection.sendall(ANSWER)

        serving = threading.Thread(target=serve)
        serving.start()
        with BrokerHttp(f"unix:{path}") as broker:
            answer = broker("GET", "/kbs/v0/resource/a/b/c", headers={})
        serving.join()
    assert (answer.status, answer.body) == (200, b"{}")
    assert seen[0].startswith(b"GET /kbs/v0/resource/a/b/c HTTP/1.1\r\n")


def test_nobody_there_is_unreachable(tmp_path: Path) -> None:
    with (
        BrokerHttp(f"virtio:{tmp_path}/absent") as broker,
        pytest.raises(FetchError) as caught,
    ):
        broker("GET", "/", headers={})
    assert caught.value.code == "broker.unreachable"


@pytest.mark.parametrize("address", ["ftp://host", "http://", "http://host/path"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        BrokerHttp(address)
    assert caught.value.code == "broker.address"
    with pytest.raises(ConfigurationError):
        BrokerHttp("vsock://host")
