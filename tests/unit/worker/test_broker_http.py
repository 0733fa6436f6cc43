"""The worker's requests to its broker, over what there is instead of a network."""

from __future__ import annotations

import gzip
import socket
import threading
from pathlib import Path

import pytest

from cloister.channel import rcar
from cloister.channel.key_release import BrokerIdentity
from cloister.errors import ConfigurationError, FetchError, KeyReleaseDenied
from cloister.worker.broker_http import BrokerHttp
from cloister.worker.key_release import Answer, check_broker
from support.broker import CLOCK_START

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"


def asked(tmp_path: Path, answer: bytes = ANSWER) -> tuple[Answer | FetchError, bytes]:
    """What comes of one request to a broker that answers so, and the request."""
    path = str(tmp_path / "broker.sock")
    seen: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                seen.append(connection.recv(65536))
                connection.sendall(answer)

        serving = threading.Thread(target=serve)
        serving.start()
        found: Answer | FetchError
        with BrokerHttp(f"unix:{path}") as broker:
            try:
                found = broker("GET", "/kbs/v0/resource/a/b/c", headers={})
            except FetchError as error:
                found = error
        serving.join()
    return found, seen[0]


def test_a_broker_is_asked_over_a_unix_socket(tmp_path: Path) -> None:
    answer, request = asked(tmp_path)
    assert isinstance(answer, Answer)
    assert (answer.status, answer.body) == (200, b"{}")
    assert request.startswith(b"GET /kbs/v0/resource/a/b/c HTTP/1.1\r\n")


def test_a_compressed_answer_is_not_unpacked(tmp_path: Path) -> None:
    """Whoever carries answers may write them: a few bytes, and as many as memory holds."""
    body = gzip.compress(b"{}")
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
    plain, request = asked(tmp_path, head + b"\r\n" + body)
    assert isinstance(plain, Answer)
    assert plain.body == body
    assert b"accept-encoding: identity\r\n" in request.lower()
    (tmp_path / "broker.sock").unlink()
    refused, _ = asked(tmp_path, head + b"content-encoding: gzip\r\n\r\n" + body)
    assert isinstance(refused, FetchError)
    assert refused.code == "broker.unreachable"
    assert "compressed" in str(refused)


def test_nobody_there_is_unreachable(tmp_path: Path) -> None:
    with (
        BrokerHttp(f"virtio:{tmp_path}/absent") as broker,
        pytest.raises(FetchError) as caught,
    ):
        broker("GET", "/", headers={})
    assert caught.value.code == "broker.unreachable"


@pytest.mark.parametrize("token", ["\u00e9", "\u20ac", "a\r\nx: y"])
def test_a_token_that_no_field_can_hold_is_not_sent(token: str) -> None:
    """The host writes what the broker's answers say, until they are sealed."""
    with (
        BrokerHttp("http://127.0.0.1:1") as broker,
        pytest.raises(FetchError) as caught,
    ):
        broker("GET", "/", headers={"authorization": f"Bearer {token}"})
    assert caught.value.code == "broker.unreachable"


@pytest.mark.parametrize(
    ("code", "taken"),
    [
        ("key_release.spent", True),
        ("key_release.\u00e9", False),
        ("key_release." + "a" * 99, False),
    ],
)
def test_only_a_code_is_taken_over_from_a_refusal(code: str, *, taken: bool) -> None:
    def send(*_: object, **__: object) -> Answer:
        return Answer(status=403, body=rcar.encode_error("Denied", f"no [{code}]"))

    with pytest.raises(KeyReleaseDenied) as denied:
        check_broker(send, BrokerIdentity(bytes(32)), None, at=CLOCK_START)
    assert denied.value.code == (code if taken else "key_release.denied")


@pytest.mark.parametrize("address", ["ftp://host", "http://", "http://host/path"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        BrokerHttp(address)
    assert caught.value.code == "broker.address"
    with pytest.raises(ConfigurationError):
        BrokerHttp("vsock://host")
