"""The Nitro secure module, simulated behind its ioctl."""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import pytest

from cloister.attester import nsm
from cloister.attester.nsm import NSM_IOCTL, NitroAttester, Nsm, fix_manifest
from cloister.errors import AuthenticationError, FetchError, UnsupportedError
from cloister.evidence.items import ITEM_NITRO_DOCUMENT

DIGEST = bytes(range(32))


class Module:
    """Answers requests as the module does; `answer` overrides what it says."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.refusals: list[int] = []
        self.answer: bytes | None = None
        self.announced: int | None = None
        self.registers = {16: bytes(48)}
        self.locked: set[int] = set()

    def __call__(self, descriptor: int, request: int, argument: bytearray, /) -> int:
        assert request == NSM_IOCTL
        if self.refusals:
            raise OSError(self.refusals.pop(0), "simulated")
        asked, asked_size, where, room = struct.unpack("=QQQQ", argument)
        assert room == 0x3000
        question = cbor2.loads(ctypes.string_at(asked, asked_size))
        self.requests.append(question)
        answer = cbor2.dumps(self.reply(question)) if self.answer is None else self.answer
        ctypes.memmove(where, answer, len(answer))
        size = len(answer) if self.announced is None else self.announced
        argument[24:32] = size.to_bytes(8, "little")
        return 0

    def reply(self, question: Any) -> Any:
        if question == "GetRandom":
            return {"GetRandom": {"random": bytes(range(256))}}
        if question == "DescribeNSM":
            return {"DescribeNSM": {"module_id": "i-1", "locked_pcrs": [0, 1], "max_pcrs": 32}}
        ((name, fields),) = question.items()
        match name:
            case "Attestation":
                return {name: {"document": cbor2.dumps(fields)}}
            case "DescribePCR":
                index = fields["index"]
                return {name: {"lock": index in self.locked, "data": self.registers[index]}}
            case "ExtendPCR":
                if fields["index"] in self.locked:
                    return {"Error": "ReadOnlyIndex"}
                self.registers[fields["index"]] = fields["data"].ljust(48, b"\0")
                return {name: {"data": self.registers[fields["index"]]}}
            case "LockPCR":
                self.locked.add(fields["index"])
                return name
        return {"Error": "InvalidOperation"}


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[Module], Nsm]:
    (tmp_path / "nsm").touch()
    return lambda module: Nsm(ioctl=module, device=tmp_path / "nsm")


Open = Callable[[Module], Nsm]


def test_the_number_is_that_of_the_driver() -> None:
    assert NSM_IOCTL == 0xC0200A00


def test_a_document_has_the_digest_as_user_data(opened: Open) -> None:
    module = Module()
    items = NitroAttester(opened(module), public_key=b"key").quote(DIGEST)
    fields = {"user_data": DIGEST, "nonce": None, "public_key": b"key"}
    assert module.requests == [{"Attestation": fields}]
    assert cbor2.loads(items[ITEM_NITRO_DOCUMENT].data) == fields


def test_registers_are_described_extended_and_locked(opened: Open) -> None:
    module = Module()
    device = opened(module)
    assert device.describe_pcr(16) == nsm.Register(value=bytes(48), locked=False)
    assert device.extend_pcr(16, b"x") == b"x".ljust(48, b"\0")
    device.lock_pcr(16)
    assert device.describe_pcr(16).locked
    with pytest.raises(FetchError, match="ReadOnlyIndex") as caught:
        device.extend_pcr(16, b"x")
    assert caught.value.code == "device.refused"


def test_it_describes_itself_and_gives_random_bytes(opened: Open) -> None:
    device = opened(Module())
    assert device.describe()["max_pcrs"] == 32
    assert len(device.random()) == 256


def test_byte_strings_may_come_as_lists_of_integers(opened: Open) -> None:
    module = Module()
    module.answer = cbor2.dumps({"Attestation": {"document": [1, 2, 255]}})
    assert opened(module).attestation() == b"\x01\x02\xff"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff",
        cbor2.dumps({"Attestation": {"document": b"d"}}) + b"\0",
        cbor2.dumps({"Attestation": {"document": b"d"}})[:-1],
        cbor2.dumps({"Attestation": {}}),
        cbor2.dumps({"Attestation": {"document": b""}}),
        cbor2.dumps({"Attestation": {"document": "text"}}),
        cbor2.dumps({"Attestation": {"document": [256]}}),
        cbor2.dumps({"GetRandom": {"random": b"d"}}),
        cbor2.dumps({"Attestation": b"d"}),
        cbor2.dumps([1]),
        cbor2.dumps({"Attestation": {"document": b"d"}, "Error": "x"}),
    ],
)
def test_what_is_no_answer_is_refused(opened: Open, answer: bytes) -> None:
    module = Module()
    assert opened(module).attestation()
    module.answer = answer
    with pytest.raises(FetchError) as caught:
        opened(module).attestation()
    assert caught.value.code == "device.answer"


def test_a_length_beyond_the_buffer_is_refused(opened: Open) -> None:
    module = Module()
    module.announced = 0x3001
    with pytest.raises(FetchError, match="longer than 12288 bytes"):
        opened(module).attestation()


def test_an_error_that_is_no_word_is_not_repeated(opened: Open) -> None:
    module = Module()
    module.answer = cbor2.dumps({"Error": "\x1b[2J nasty"})
    with pytest.raises(FetchError, match="refused: unknown"):
        opened(module).attestation()


def test_an_interrupted_call_is_made_again_and_given_up(opened: Open) -> None:
    module = Module()
    module.refusals = [errno.EINTR, errno.EBUSY]
    assert opened(module).random()
    module.refusals = [errno.EBUSY] * 100
    with pytest.raises(FetchError) as caught:
        opened(module).random()
    assert caught.value.code == "device.busy"


def test_a_driver_that_fails_is_named(opened: Open) -> None:
    module = Module()
    module.refusals = [errno.EIO]
    with pytest.raises(FetchError) as caught:
        opened(module).random()
    assert caught.value.code == "device.io"


def test_limits_of_the_module_are_kept_before_it_is_asked(opened: Open) -> None:
    module = Module()
    device = opened(module)
    assert device.attestation(user_data=bytes(512), nonce=bytes(512), public_key=bytes(1024))
    module.requests.clear()
    for fields in ({"user_data": bytes(513)}, {"nonce": bytes(513)}, {"public_key": bytes(1025)}):
        with pytest.raises(ValueError, match="at most"):
            device.attestation(**fields)
    with pytest.raises(ValueError, match="from 0 to 31"):
        device.describe_pcr(32)
    with pytest.raises(ValueError, match="4096 bytes"):
        device.extend_pcr(16, bytes(4096))
    assert module.requests == []


def test_outside_an_enclave_there_is_no_module(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="not on this machine"):
        NitroAttester(Nsm(device=tmp_path / "nsm")).quote(DIGEST)


def test_a_digest_has_32_bytes(opened: Open) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        NitroAttester(opened(Module())).quote(bytes(64))


@pytest.mark.parametrize("digest", [DIGEST, None])
def test_the_register_for_the_manifest_is_written_once(opened: Open, digest: bytes | None) -> None:
    module = Module()
    device = opened(module)
    fix_manifest(device, digest)
    assert module.registers[16] == (digest or b"").ljust(48, b"\0")
    assert module.locked == {16}
    with pytest.raises(FetchError, match="ReadOnlyIndex"):
        device.extend_pcr(16, DIGEST)


@pytest.mark.parametrize("found", ["locked", "written to"])
def test_a_register_that_somebody_had_before_is_refused(opened: Open, found: str) -> None:
    fix_manifest(opened(Module()), DIGEST)
    module = Module()
    if found == "locked":
        module.locked = {16}
    else:
        module.registers[16] = b"x".ljust(48, b"\0")
    with pytest.raises(AuthenticationError) as caught:
        fix_manifest(opened(module), DIGEST)
    assert caught.value.code == "attester.manifest"
    assert [next(iter(asked)) for asked in module.requests] == ["DescribePCR"]
