"""Certificates of NVIDIA's devices: models, and the firmware that a key belongs to."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from cryptography import x509

from cloister.endorsements.nvidia import (
    COMPOSITE_DEVICE_ID,
    TCB_INFO,
    device_model,
    firmware_ids,
    names_revocation,
    parse_chain,
)
from cloister.errors import MalformedError
from cloister.testing.simulated_nvgpu import SimulatedNvidia, digest

NVIDIA = SimulatedNvidia.make(now=datetime(2026, 1, 1, tzinfo=UTC))
ONE, TWO = digest("one"), bytes(48)
SHA384 = bytes.fromhex("0609608648016503040202")
SHA256 = bytes.fromhex("0609608648016503040201")


def der(tag: int, *bodies: bytes) -> bytes:
    body = b"".join(bodies)
    if len(body) < 0x80:
        return bytes((tag, len(body))) + body
    if len(body) < 0x100:
        return bytes((tag, 0x81, len(body))) + body
    return bytes((tag, 0x82)) + len(body).to_bytes(2) + body


def fwid(value: bytes = ONE, algorithm: bytes = SHA384) -> bytes:
    return der(0x30, algorithm, der(0x04, value))


def tcb_info(*fwids: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    return der(0x30, before, der(0xA6, *fwids), after)


def composite(last: bytes) -> bytes:
    return der(0x30, der(0x02, b"\x01"), der(0x30, bytes(120)), last)


def leaf(*extensions: tuple[x509.ObjectIdentifier, bytes]) -> x509.Certificate:
    return NVIDIA.provisioner.issue(
        "LS_10 A01 FSP FMC LF",
        ca=False,
        extensions=[(x509.UnrecognizedExtension(*one), False) for one in extensions],
    ).certificate


def test_models_are_read() -> None:
    assert device_model(leaf()) == "LS10"
    assert device_model(NVIDIA.device("GB100").leaf.certificate) == "GB100"
    assert not names_revocation(leaf())


def test_firmware_is_read_from_either_extension() -> None:
    assert firmware_ids(leaf()) == ()
    assert firmware_ids(leaf((COMPOSITE_DEVICE_ID, composite(fwid())))) == (ONE,)
    assert firmware_ids(leaf((TCB_INFO, tcb_info(fwid(), fwid(TWO))))) == (ONE, TWO)
    long = der(0x80, bytes(300))
    assert firmware_ids(leaf((TCB_INFO, tcb_info(fwid(), before=long)))) == (ONE,)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        tcb_info(),
        tcb_info(fwid(bytes(47))),
        tcb_info(fwid(bytes(49))),
        tcb_info(fwid(algorithm=SHA256)),
        tcb_info(der(0x31, SHA384, der(0x04, ONE))),
        tcb_info(der(0x30, SHA384, der(0x05, ONE))),
        tcb_info(der(0x30, SHA384, der(0x04, ONE), der(0x04, ONE))),
        tcb_info(fwid(), after=der(0xA6, fwid())),
        tcb_info(fwid(), after=b"\x87\x05\x00"),
        tcb_info(fwid(), after=b"\x87"),
        tcb_info(fwid(), after=b"\x87\x80"),
        tcb_info(fwid(), after=b"\x87\x81\x01\x00"),
        tcb_info(fwid(), after=b"\x87\x82\x00\x01\x00"),
        tcb_info(fwid(), after=b"\x87\x83\x00\x00\x01\x00"),
        tcb_info(fwid()) + b"\x00\x00",
        der(0x31, der(0xA6, fwid())),
    ],
)
def test_other_forms_are_refused(value: bytes) -> None:
    firmware_ids(leaf((TCB_INFO, tcb_info(fwid()))))
    with pytest.raises(MalformedError):
        firmware_ids(leaf((TCB_INFO, value)))


@pytest.mark.parametrize(
    "change",
    [
        lambda good: der(0x30, good[3:] + der(0x05)),
        lambda good: der(0x30, der(0x02, b"\x01"), fwid()),
        lambda good: composite(der(0x31, SHA384, der(0x04, ONE))),
    ],
)
def test_other_device_ids_are_refused(change: Callable[[bytes], bytes]) -> None:
    good = composite(fwid())
    firmware_ids(leaf((COMPOSITE_DEVICE_ID, good)))
    with pytest.raises(MalformedError):
        firmware_ids(leaf((COMPOSITE_DEVICE_ID, change(good))))


def test_chains_have_some_certificates_and_not_many() -> None:
    chain = NVIDIA.device().chain
    assert len(parse_chain(chain)) == 5
    for wrong in ((), chain * 2, (b"x",)):
        with pytest.raises(MalformedError):
            parse_chain(wrong)
