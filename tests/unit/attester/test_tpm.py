"""The TPM client against scripted responses: framing, resubmission, refusals."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence

import pytest

from cloister.attester.tpm import AK_ATTRIBUTES, Tpm, signing_template
from cloister.attester.tpm_errors import ResponseCode, TpmError, base_code
from cloister.attester.transport import SocketTransport
from cloister.errors import MalformedError
from cloister.evidence.tpm import Alg, Curve, EccPublic, parse_public


def response(code: int, body: bytes = b"", tag: int = 0x8001) -> bytes:
    return (
        tag.to_bytes(2, "big")
        + (10 + len(body)).to_bytes(4, "big")
        + code.to_bytes(4, "big")
        + body
    )


class Script:
    """A transport that answers from a list and remembers what it was sent."""

    def __init__(self, answers: Sequence[bytes]) -> None:
        self.answers = list(answers)
        self.sent: list[bytes] = []

    def exchange(self, command: bytes) -> bytes:
        self.sent.append(command)
        return self.answers.pop(0)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass


def client(*answers: bytes) -> tuple[Tpm, Script]:
    script = Script(answers)
    return Tpm(script, pause=lambda _: None), script


@pytest.mark.parametrize("code", [ResponseCode.RETRY, ResponseCode.TESTING, ResponseCode.YIELDED])
def test_busy_tpm_is_asked_again_with_the_same_bytes(code: int) -> None:
    tpm, script = client(response(code), response(code), response(0))
    tpm.flush(0x80000000)
    assert len(script.sent) == 3
    assert len(set(script.sent)) == 1


def test_a_tpm_that_stays_busy_is_given_up() -> None:
    tpm, script = client(*[response(ResponseCode.RETRY)] * 300)
    with pytest.raises(TpmError) as caught:
        tpm.flush(0x80000000)
    assert caught.value.response_code == ResponseCode.RETRY
    assert len(script.sent) < 300


def test_refusal_names_the_command_and_carries_the_code() -> None:
    tpm, _ = client(response(0x1DF))  # integrity, parameter 1
    with pytest.raises(TpmError, match="FLUSH_CONTEXT: INTEGRITY") as caught:
        tpm.flush(1)
    assert caught.value.response_code == ResponseCode.INTEGRITY
    assert caught.value.code == "tpm.refused"


@pytest.mark.parametrize(
    ("raw", "base"), [(0x922, 0x922), (0x18B, 0x8B), (0x98E, 0x8E), (0x100, 0x100)]
)
def test_base_code_drops_handle_and_parameter_numbers(raw: int, base: int) -> None:
    assert base_code(raw) == base


def test_response_with_a_wrong_length_is_malformed() -> None:
    tpm, _ = client(response(0)[:-1] + b"\0\0")
    with pytest.raises(MalformedError):
        tpm.flush(1)


def test_command_framing_with_a_password_session() -> None:
    tpm, script = client(response(0, bytes(4) + b"\0\0\0\0\0", tag=0x8002))
    tpm.extend(8, bytes(range(32)))
    assert script.sent[0].hex() == (
        "8002" "00000041" "00000182" "00000008" "00000009" "40000009" "0000" "00" "0000"
        "00000001" "000b" + bytes(range(32)).hex()
    )  # fmt: skip


def test_extend_wants_a_sha256_digest() -> None:
    tpm, script = client()
    with pytest.raises(ValueError, match="32 bytes"):
        tpm.extend(8, b"short")
    assert script.sent == []


def test_register_missing_from_the_bank_is_refused() -> None:
    empty_selection = bytes.fromhex("00000001000b03000000")
    tpm, _ = client(response(0, bytes(4) + empty_selection + bytes(4)))
    with pytest.raises(TpmError, match="no such register"):
        tpm.read_pcrs([8])


def test_startup_of_a_started_tpm_is_harmless_and_other_refusals_are_not() -> None:
    tpm, _ = client(response(0x100), response(0x101))
    tpm.startup()
    with pytest.raises(TpmError):
        tpm.startup()


def test_ak_template_is_a_restricted_p256_signing_key() -> None:
    area = parse_public(signing_template())
    assert area.attributes == AK_ATTRIBUTES
    assert isinstance(area.key, EccPublic)
    assert area.key.curve == Curve.NIST_P256
    assert (area.scheme, area.scheme_hash, area.symmetric) == (Alg.ECDSA, Alg.SHA256, None)


@pytest.fixture
def pair() -> Iterator[tuple[SocketTransport, socket.socket]]:
    ours, theirs = socket.socketpair()
    transport = SocketTransport(ours, timeout=60.0)
    yield transport, theirs
    transport.close()
    theirs.close()


def test_socket_response_may_come_in_pieces(pair: tuple[SocketTransport, socket.socket]) -> None:
    transport, theirs = pair
    answer = response(0, b"abcdef")

    def serve() -> None:
        theirs.recv(100)
        for byte in answer:
            theirs.sendall(bytes([byte]))

    thread = threading.Thread(target=serve)
    thread.start()
    assert transport.exchange(b"command") == answer
    thread.join()


def test_socket_closed_midway_is_an_error(pair: tuple[SocketTransport, socket.socket]) -> None:
    transport, theirs = pair
    theirs.sendall(response(0, b"abcdef")[:12])
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(TpmError) as caught:
        transport.exchange(b"command")
    assert caught.value.code == "tpm.io"


@pytest.mark.parametrize("size", [0, 9, 4097, 2**32 - 1])
def test_socket_response_of_absurd_length_is_refused_unread(
    pair: tuple[SocketTransport, socket.socket], size: int
) -> None:
    transport, theirs = pair
    theirs.sendall(b"\x80\x01" + size.to_bytes(4, "big") + bytes(4))
    with pytest.raises(TpmError, match="announced"):
        transport.exchange(b"command")
