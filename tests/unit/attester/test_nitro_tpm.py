"""A NitroTPM, simulated behind the vendor command; and what any other TPM says to it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import cbor2
import pytest

from cloister.attester import guest
from cloister.attester.guest import Surroundings
from cloister.attester.nitro_tpm import (
    BUFFER_BYTES,
    BUFFERS,
    NitroTpmAttester,
    request_document,
)
from cloister.attester.tpm import Tpm
from cloister.attester.tpm_errors import ResponseCode, TpmError
from cloister.errors import ConfigurationError, FetchError, UnsupportedError
from cloister.evidence.items import ITEM_NITRO_TPM_DOCUMENT, MEDIA_TYPE_NITRO_DOCUMENT
from cloister.evidence.nitro import DocumentKind, parse_document
from cloister.evidence.report import ITEM_EVENT_LOG
from cloister.testing.simulated_nitro import SimulatedNitro
from cloister.testing.simulated_nitro_tpm import SimulatedNitroTpm

NOW = datetime(2026, 11, 3, 12, tzinfo=UTC)
DIGEST = bytes(range(32))
REGISTERS = {index: hashlib.sha384(bytes([index])).digest() for index in range(24)}


class Wire:
    """Keeps every command on its way to a TPM, and may answer one instead of it."""

    def __init__(self, below: SimulatedNitroTpm) -> None:
        self.below = below
        self.commands: list[bytes] = []
        self.instead: dict[int, bytes] = {}
        """Answers by command code."""

    def exchange(self, command: bytes) -> bytes:
        self.commands.append(command)
        code = int.from_bytes(command[6:10], "big")
        return self.instead[code] if code in self.instead else self.below.exchange(command)

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.below.close()


@pytest.fixture
def machine() -> SimulatedNitroTpm:
    nitro = SimulatedNitro(now=NOW)
    return SimulatedNitroTpm(
        lambda **asked: nitro.document(kind=DocumentKind.NITRO_TPM, pcrs=REGISTERS, **asked)
    )


def wired(machine: SimulatedNitroTpm) -> tuple[Tpm, Wire]:
    wire = Wire(machine)
    return Tpm(wire, pause=lambda _: None), wire


def test_a_document_has_the_digest_as_user_data(machine: SimulatedNitroTpm) -> None:
    items = NitroTpmAttester(Tpm(machine), event_log=b"log", public_key=b"key").quote(DIGEST)
    asked = {"user_data": DIGEST, "nonce": None, "public_key": b"key"}
    assert machine.requests == [{"Attestation": asked}]
    item = items[ITEM_NITRO_TPM_DOCUMENT]
    assert item.media_type == MEDIA_TYPE_NITRO_DOCUMENT
    document = parse_document(item.data)
    assert document.kind is DocumentKind.NITRO_TPM
    assert document.pcrs == REGISTERS
    assert (document.user_data, document.public_key, document.nonce) == (DIGEST, b"key", None)
    assert items[ITEM_EVENT_LOG].data == b"log"
    assert ITEM_EVENT_LOG not in NitroTpmAttester(Tpm(machine)).quote(DIGEST)


def test_what_is_sent(machine: SimulatedNitroTpm) -> None:
    """Byte for byte, for no TPM here knows the command."""
    tpm, wire = wired(machine)
    request_document(tpm, user_data=DIGEST)
    index = BUFFERS.start.to_bytes(4, "big")
    password = bytes.fromhex("00000009 40000009 0000 00 0000")
    define, write, vendor, *reads, undefine = wire.commands
    assert define.hex() == (
        "8002"
        "0000002d"
        "0000012a"
        "40000001" + password.hex() + "0000"
        "000e" + index.hex() + "000b"
        "00040004"
        "0000"
        "2000"
    )
    fields = {"user_data": DIGEST, "nonce": None, "public_key": None}
    request = cbor2.dumps({"Attestation": fields})
    assert write[10:] == (
        index + index + password + len(request).to_bytes(2, "big") + request + bytes(2)
    )
    assert vendor.hex() == "80020000001f20000001" + (index + index + password).hex()
    assert len(reads) == BUFFER_BYTES // 512
    assert undefine[6:18] == bytes.fromhex("00000122 40000001") + index


def test_the_buffer_is_gone_afterwards_whatever_happened(machine: SimulatedNitroTpm) -> None:
    request_document(Tpm(machine), nonce=b"n")
    assert machine.buffers == {}
    machine.answer = cbor2.dumps({"Error": "InternalError"})
    with pytest.raises(FetchError):
        request_document(Tpm(machine))
    assert machine.buffers == {}
    for code in (0x20000001, 0x137, 0x14E):
        tpm, wire = wired(machine)
        wire.instead[code] = bytes.fromhex("8001 0000000a 00000101")
        with pytest.raises(TpmError):
            request_document(tpm)
        assert machine.buffers == {}


def test_what_a_killed_process_left_is_taken_over(machine: SimulatedNitroTpm) -> None:
    killed = Tpm(machine)
    for index in BUFFERS:
        killed.buffer_define(index, BUFFER_BYTES)
    killed.buffer_write(BUFFERS[0], b"another's request")
    assert parse_document(request_document(Tpm(machine), user_data=b"u")).user_data == b"u"
    assert set(machine.buffers) == set(BUFFERS[1:])


def test_a_tpm_without_room_says_so(machine: SimulatedNitroTpm) -> None:
    tpm, wire = wired(machine)
    wire.instead[0x12A] = bytes.fromhex("8001 0000000a 0000014b")
    with pytest.raises(FetchError, match="no room left") as caught:
        request_document(tpm)
    assert caught.value.code == "device.busy"


def test_the_first_failure_is_the_one_that_is_told(machine: SimulatedNitroTpm) -> None:
    tpm, wire = wired(machine)
    wire.instead[0x20000001] = bytes.fromhex("8001 0000000a 00000101")
    wire.instead[0x122] = bytes.fromhex("8001 0000000a 0000018b")
    with pytest.raises(TpmError, match="AWS_NSM_REQUEST"):
        request_document(tpm)


def test_requests_longer_than_one_write(machine: SimulatedNitroTpm) -> None:
    document = request_document(
        Tpm(machine), user_data=b"u" * 512, nonce=b"n" * 512, public_key=b"k" * 1024
    )
    found = parse_document(document)
    assert (found.user_data, found.nonce, found.public_key) == (b"u" * 512, b"n" * 512, b"k" * 1024)
    for name, size in (("user_data", 513), ("nonce", 513), ("public_key", 1025)):
        with pytest.raises(ValueError, match=name):
            request_document(Tpm(machine), **{name: bytes(size)})


def test_indices_that_somebody_else_uses(machine: SimulatedNitroTpm) -> None:
    taken = Tpm(machine)
    for index in BUFFERS[:-1]:
        taken.buffer_define(index, 16)
    assert parse_document(request_document(Tpm(machine), user_data=b"u")).user_data == b"u"
    assert set(machine.buffers) == set(BUFFERS[:-1])
    taken.buffer_define(BUFFERS[-1], 16)
    with pytest.raises(FetchError, match="0x01800000") as caught:
        request_document(Tpm(machine))
    assert caught.value.code == "device.busy"
    assert set(machine.buffers) == set(BUFFERS)


@pytest.mark.parametrize("code", [ResponseCode.COMMAND_CODE, ResponseCode.SIZE])
def test_a_tpm_of_another_kind(machine: SimulatedNitroTpm, code: ResponseCode) -> None:
    tpm, wire = wired(machine)
    command = 0x20000001 if code is ResponseCode.COMMAND_CODE else 0x12A
    wire.instead[command] = bytes.fromhex("8001 0000000a") + int(code).to_bytes(4, "big")
    with pytest.raises(UnsupportedError, match="NitroTPM") as caught:
        request_document(tpm)
    assert caught.value.code == "device.absent"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ({"Error": "InvalidArgument"}, "device.refused"),
        ({"Attestation": {}}, "device.answer"),
        ({"Attestation": {"document": b""}}, "device.answer"),
        ({"Attestation": b""}, "device.answer"),
        ({"DescribeNSM": {"document": b"x"}}, "device.answer"),
        ({"Attestation": {"document": b"x"}, "more": 1}, "device.answer"),
        ([], "device.answer"),
    ],
)
def test_answers_that_are_none(machine: SimulatedNitroTpm, answer: object, code: str) -> None:
    request_document(Tpm(machine))
    machine.answer = cbor2.dumps(answer)
    with pytest.raises(FetchError) as caught:
        request_document(Tpm(machine))
    assert caught.value.code == code


def test_an_answer_that_is_no_cbor(machine: SimulatedNitroTpm) -> None:
    request_document(Tpm(machine))
    machine.answer = b"\xff" * 100
    with pytest.raises(FetchError, match="CBOR"):
        request_document(Tpm(machine))


def test_a_document_over_something_else(machine: SimulatedNitroTpm) -> None:
    """Another process wrote its request into the index, or it is no NitroTPM's at all."""
    attester = NitroTpmAttester(Tpm(machine))
    attester.quote(DIGEST)
    nitro = SimulatedNitro(now=NOW)
    for document in (
        nitro.document(kind=DocumentKind.NITRO_TPM, pcrs=REGISTERS, user_data=bytes(32)),
        nitro.document(kind=DocumentKind.NITRO_TPM, pcrs=REGISTERS),
        nitro.document(user_data=DIGEST),
        b"x",
    ):
        machine.answer = cbor2.dumps({"Attestation": {"document": document}})
        with pytest.raises(FetchError) as caught:
            attester.quote(DIGEST)
        assert caught.value.code == "device.answer"


def test_digests_of_another_size(machine: SimulatedNitroTpm) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        NitroTpmAttester(Tpm(machine)).quote(bytes(31))


def test_a_guest_without_a_log_or_an_answer_ends(tmp_path: Path) -> None:
    """Nobody would accept its evidence, so its console says so before anybody asks."""
    nitro = SimulatedNitro(now=datetime.now(UTC))
    registers = {number: bytes([number]) * 48 for number in range(24)}
    asked: list[bytes] = []

    def attest(*, user_data: bytes, **_: object) -> bytes:
        asked.append(user_data)
        return nitro.document(kind=DocumentKind.NITRO_TPM, pcrs=registers, user_data=user_data)

    def refuses(**_: object) -> bytes:
        raise FetchError("no answer", code="device.timeout")

    def evidence(answers: Callable[..., bytes]) -> object:
        around = Surroundings(run=tmp_path, open_nitro_tpm=lambda: Tpm(SimulatedNitroTpm(answers)))
        return guest._evidence("nitro-tpm", around, ())

    (tmp_path / "boot-log").write_bytes(b"a log")
    assert evidence(attest)
    assert asked == [bytes(32)]
    with pytest.raises(FetchError):
        evidence(refuses)
    (tmp_path / "boot-log").write_bytes(b"")
    with pytest.raises(ConfigurationError) as caught:
        evidence(attest)
    assert caught.value.code == "guest.no_boot_log"
