"""What of PCR 0 follows from the firmware's file, and what is a boot's alone."""

from __future__ import annotations

import base64
import hashlib
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.errors import AuthenticationError, MalformedError
from cloister.evidence.eventlog import EventType
from cloister.evidence.tpm import Alg
from cloister.image.firmware_volumes import MAX_CODE_BYTES, unpacked_volumes
from cloister.image.golden import check_firmware
from cloister.testing.simulated_vtpm import SimulatedVtpm
from support import boot_parts as made

CODE = made.ovmf_code(made.PEI_VOLUME, made.DXE_VOLUME)
PEI, DXE = (made.firmware_volume(one) for one in (made.PEI_VOLUME, made.DXE_VOLUME))
VECTORS = Path(__file__).parents[2] / "vectors" / "measured_boot"


def boot_log(
    *blobs: bytes, kind: int = EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB, pcr: int = 0
) -> bytes:
    """Of a boot that measured these volumes."""
    vtpm = SimulatedVtpm(banks=(Alg.SHA256,))
    vtpm.measure(0, EventType.EV_S_CRTM_VERSION, b"\0\0")
    for blob in blobs:
        vtpm.measure(pcr, kind, blob)
    return vtpm.event_log()


CHANGED = PEI[:200] + b"two processors" + PEI[214:]


def test_the_volume_that_is_measured_as_it_was_unpacked() -> None:
    pei, dxe = unpacked_volumes(CODE)
    assert (pei.data, dxe.data) == (PEI, DXE)
    assert (pei.changes_itself, dxe.changes_itself) == (True, False)
    assert dxe.sha256 == hashlib.sha256(DXE).digest()


@pytest.mark.parametrize(
    "kind",
    [EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB, EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB2],
)
def test_a_boot_of_this_firmware(kind: int) -> None:
    (recorded,) = check_firmware(boot_log(CHANGED, DXE, kind=kind), CODE)
    assert recorded.data == PEI


OTHER = {
    "another volume": boot_log(CHANGED, DXE[:-1] + b"!"),
    "no volume": boot_log(),
    "one more than it has": boot_log(CHANGED, DXE, b"more firmware"),
    "only the one that changes": boot_log(CHANGED),
    "in another register": boot_log(DXE, pcr=2),
    "as another event": boot_log(DXE, kind=EventType.EV_POST_CODE),
}


@pytest.mark.parametrize("name", OTHER)
def test_a_boot_of_another_firmware_is_refused(name: str) -> None:
    check_firmware(boot_log(CHANGED, DXE), CODE)
    with pytest.raises(AuthenticationError) as refused:
        check_firmware(OTHER[name], CODE)
    assert refused.value.code == "image.other_firmware"


def altered(change: Callable[[bytearray], None]) -> bytes:
    data = bytearray(CODE)
    change(data)
    return bytes(data)


FIRST = 4096 + 56
SECOND = (FIRST + int.from_bytes(CODE[FIRST + 20 : FIRST + 23], "little") + 7) & ~7
LONG = bytes(18) + bytes([made.DXE_CORE, 0]) + (8192).to_bytes(3, "little") + b"\xf8"
PACKED = CODE.index(made.LZMA_SECTION) + 20
GUID = PACKED - 20
NO_FIRMWARE = {
    "a section in another compression": altered(lambda d: d.__setitem__(GUID, d[GUID] ^ 1)),
    "a section of another kind": altered(lambda d: d.__setitem__(GUID - 1, 3)),
    "a file of no size": altered(lambda d: d.__setitem__(slice(FIRST + 20, FIRST + 23), bytes(3))),
    "a section of no size": altered(
        lambda d: d.__setitem__(slice(FIRST + 24, FIRST + 27), bytes(3))
    ),
    "nothing": b"",
    "no volume": bytes(8192),
    "no DXE core": made.ovmf_code(made.PEI_VOLUME),
    "a volume that is longer than the file": CODE[:-4096],
    "a file that is longer than its volume": altered(lambda d: d.__setitem__(4096 + 56 + 22, 9)),
    "a second file that is": altered(lambda d: d.__setitem__(slice(SECOND, SECOND + 24), LONG)),
    "a section that is longer than its file": altered(lambda d: d.__setitem__(4096 + 80 + 2, 9)),
    "a damaged stream": altered(lambda d: d.__setitem__(PACKED, 0xFF)),
    "a stream that ends early": altered(
        lambda d: d.__setitem__(slice(PACKED + 60, PACKED + 400), b"\0" * 340)
    ),
    "a larger file than is read": bytes(MAX_CODE_BYTES) + CODE,
}


@pytest.mark.parametrize("name", NO_FIRMWARE)
def test_what_is_no_firmware(name: str) -> None:
    assert unpacked_volumes(CODE)
    with pytest.raises(MalformedError) as refused:
        unpacked_volumes(NO_FIRMWARE[name])
    assert refused.value.code == "image.firmware"


def test_volumes_are_few_and_of_whole_pages() -> None:
    volume = CODE[4096:]
    small = bytearray(made.firmware_volume())
    assert len(unpacked_volumes(volume * 16)) == 32
    with pytest.raises(MalformedError, match="told apart"):
        unpacked_volumes(volume * 17)
    assert unpacked_volumes(volume + small)
    small[32:40] = (4095).to_bytes(8, "little")
    with pytest.raises(MalformedError, match="told apart"):
        unpacked_volumes(volume + small)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda volume: volume[:40] + b"_FVX" + volume[44:], "has no header"),
        (lambda volume: volume[:44], "has no header"),
        (lambda volume: volume[:32] + (55).to_bytes(8, "little") + volume[40:], "is longer than"),
        (lambda volume: volume[:-1], "is longer than"),
    ],
    ids=["another mark", "cut off", "smaller than its header", "a byte short"],
)
def test_a_volume_that_was_packed_is_whole(change: Callable[[bytes], bytes], why: str) -> None:
    def packed(volume: bytes) -> bytes:
        inner = lzma.compress(made.firmware_section(0x17, volume), format=lzma.FORMAT_ALONE)
        guided = made.LZMA_SECTION + (24).to_bytes(2, "little") + b"\1\0" + inner
        file = (made.VOLUME_FILE, made.firmware_section(2, guided))
        return made.firmware_volume(file, size=8192)

    assert [one.data for one in unpacked_volumes(packed(DXE))] == [DXE]
    with pytest.raises(MalformedError, match=why):
        unpacked_volumes(packed(change(DXE)))


def test_a_small_file_that_unpacks_to_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister.image.firmware_volumes.MAX_UNPACKED_BYTES", 4096 * 3)
    assert unpacked_volumes(CODE)
    monkeypatch.setattr("cloister.image.firmware_volumes.MAX_UNPACKED_BYTES", 4096)
    with pytest.raises(MalformedError, match="too large"):
        unpacked_volumes(CODE)


INSTALLED = {
    "default": (
        "OVMF_CODE_4M.fd",
        "b157d97b1f69729514feb7f201d2cbe4957f23ab77920e361fe9f822ba49ca4c",
    ),
    "memory-1024": (
        "OVMF_CODE_4M.fd",
        "b157d97b1f69729514feb7f201d2cbe4957f23ab77920e361fe9f822ba49ca4c",
    ),
    "two-processors": (
        "OVMF_CODE_4M.fd",
        "b157d97b1f69729514feb7f201d2cbe4957f23ab77920e361fe9f822ba49ca4c",
    ),
    "secure-boot": (
        "OVMF_CODE_4M.secboot.fd",
        "d50189a486d22af418198226a3a5bcb6ddac775590f6a808bd629474ee034d62",
    ),
}
"""By recorded boot: the file of Debian 12's ovmf 2022.11-6+deb12u2, and its SHA-256."""


@pytest.mark.parametrize("name", INSTALLED)
def test_recorded_boots_ran_the_file_that_they_say(name: str) -> None:
    """With the firmware itself, where it is installed; it is too large to keep here."""
    file, digest = INSTALLED[name]
    path = Path("/usr/share/OVMF") / file
    code = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(code).hexdigest() != digest:
        pytest.skip(f"{path} of ovmf 2022.11-6+deb12u2 is not installed")
    recorded = json.loads((VECTORS / f"{name}.json").read_text())
    log = base64.b64decode(recorded["event_log_b64"])
    (early,) = check_firmware(log, code)
    assert len(early.data) == 0xE0000
    other = made.ovmf_code(made.PEI_VOLUME, made.DXE_VOLUME)
    with pytest.raises(AuthenticationError):
        check_firmware(log, other)
