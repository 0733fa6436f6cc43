"""Launch digests: the library's arithmetic against the specification's, and what is refused."""

from __future__ import annotations

import hashlib
import struct
import uuid
from pathlib import Path

import pytest
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vcpu_types import CPU_SIGS
from sevsnpmeasure.vmm_types import VMMType
from sevsnpmeasure.vmsa import VMSA

from cloister.errors import BuildError, ConfigurationError, UnsupportedError
from cloister.image.direct_boot import DirectBoot, direct_boot
from cloister.image.snp_launch import SnpMachine, launch_digest
from cloister.image.stub import parse_uki
from support import boot_parts as made

BOOT = DirectBoot(kernel=b"kernel", initrd=b"initrd", command_line="quiet")


@pytest.fixture
def machine(tmp_path: Path) -> SnpMachine:
    (tmp_path / "OVMF.fd").write_bytes(made.snp_firmware())
    return SnpMachine(firmware=tmp_path / "OVMF.fd", vcpus=2, vcpu_type="EPYC-v4")


def page(digest: bytes, content: bytes, kind: int, at: int) -> bytes:
    """``PAGE_INFO`` (AMD 56860, section 8.17.2) hashed into the digest so far."""
    info = digest + content + struct.pack("<HBBBBBBQ", 0x70, kind, 0, 0, 0, 0, 0, at)
    return hashlib.sha384(info).digest()


def guid(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


def hashes_page(boot: DirectBoot) -> bytes:
    entries = b"".join(
        guid(name) + struct.pack("<H", 50) + hashlib.sha256(data).digest()
        for name, data in (
            ("97d02dd8-bd20-4c94-aa78-e7714d36ab2a", boot.command_line.encode() + b"\0"),
            ("44baf731-3a2f-4bd7-9af1-41e29169781d", boot.initrd),
            ("4de79437-abd2-427f-b835-d5b172d2045b", boot.kernel),
        )
    )
    table = guid("9438d606-4f22-4cc9-b479-a793d411fd21") + struct.pack("<H", 18 + len(entries))
    return (bytes(made.SNP_HASHES_AT % 4096) + table + entries).ljust(4096, b"\0")


def by_hand(data: bytes, boot: DirectBoot, vcpus: int) -> bytes:
    digest, start = bytes(48), (1 << 32) - len(data)
    for at in range(0, len(data), 4096):
        content = hashlib.sha384(data[at : at + 4096]).digest()
        digest = page(digest, content, 1, start + at)
    kinds = {1: 3, 2: 5, 3: 6}  # zero, secrets and CPUID pages
    for gpa, size, kind in made.SNP_SECTIONS:
        for at in range(gpa, gpa + size, 4096):
            digest = page(digest, bytes(48), kinds[kind], at)
    content = hashlib.sha384(hashes_page(boot)).digest()
    digest = page(digest, content, 1, made.SNP_HASHES[0])
    vmsa = VMSA(SevMode.SEV_SNP, made.SNP_RESET, CPU_SIGS["EPYC-v4"], 1, VMMType.QEMU)
    for content in vmsa.pages(vcpus):
        digest = page(digest, hashlib.sha384(content).digest(), 2, 0xFFFFFFFFF000)
    return digest


@pytest.mark.parametrize("vcpus", [1, 2, 512])
def test_the_digest_is_the_specifications(machine: SnpMachine, vcpus: int) -> None:
    data = machine.firmware.read_bytes()
    counted = SnpMachine(firmware=machine.firmware, vcpus=vcpus, vcpu_type=machine.vcpu_type)
    assert launch_digest(counted, BOOT) == by_hand(data, BOOT, vcpus)


@pytest.mark.parametrize(
    "changes",
    [{"vcpus": 3}, {"vcpu_type": "EPYC-Genoa"}, {"features": 0x21}],
    ids=lambda changes: str(*changes),
)
def test_what_of_the_machine_matters(machine: SnpMachine, changes: dict[str, object]) -> None:
    fields = {"firmware": machine.firmware, "vcpus": 2, "vcpu_type": "EPYC-v4", **changes}
    other = SnpMachine(**fields)  # type: ignore[arg-type]  # as the test says
    assert launch_digest(other, BOOT) != launch_digest(machine, BOOT)


@pytest.mark.parametrize("part", ["kernel", "initrd", "command_line"])
def test_what_of_the_image_matters(machine: SnpMachine, part: str) -> None:
    before = {"kernel": b"kernel", "initrd": b"initrd", "command_line": "quiet"}
    after = {**before, part: "loud" if part == "command_line" else b"other"}
    changed = DirectBoot(**after)  # type: ignore[arg-type]  # as the test says
    assert launch_digest(machine, changed) != launch_digest(machine, BOOT)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (None, ConfigurationError),
        (b"", BuildError),
        (bytes(5000), BuildError),
        (bytes(8192), BuildError),
        (made.snp_firmware(*made.SNP_SECTIONS), BuildError),
        (made.snp_firmware(*made.SNP_SECTIONS, (0, 4096, 99)), BuildError),
    ],
    ids=["missing", "empty", "half a page", "no metadata", "no kernel hashes", "unknown section"],
)
def test_firmware_that_cannot_be_measured(
    machine: SnpMachine, data: bytes | None, error: type[Exception]
) -> None:
    assert launch_digest(machine, BOOT)
    machine.firmware.unlink()
    if data is not None:
        machine.firmware.write_bytes(data)
    with pytest.raises(error):
        launch_digest(machine, BOOT)


@pytest.mark.parametrize("size", [0, 5000, (64 << 20) + 4096])
def test_files_that_are_not_even_read(machine: SnpMachine, size: int) -> None:
    with machine.firmware.open("wb") as file:
        file.truncate(size)
    with pytest.raises(BuildError, match="no firmware image"):
        launch_digest(machine, BOOT)


@pytest.mark.parametrize("changes", [{"vcpus": 0}, {"vcpus": 513}, {"vcpu_type": "Pentium"}])
def test_machines_that_there_are_not(machine: SnpMachine, changes: dict[str, object]) -> None:
    fields = {"firmware": machine.firmware, "vcpus": 2, "vcpu_type": "EPYC-v4", **changes}
    with pytest.raises(ConfigurationError):
        launch_digest(SnpMachine(**fields), BOOT)  # type: ignore[arg-type]  # as the test says


PINNED = "quiet cloister.root=a cloister.application=b cloister.model=none"


def test_every_disk_has_to_be_named() -> None:
    """Without a TPM nothing else says which disks a guest reads."""

    def boot(line: str) -> DirectBoot:
        return direct_boot(parse_uki(made.uki(cmdline=line.encode())))

    found = boot(PINNED)
    assert (found.kernel, found.initrd) == (made.kernel(), made.INITRD)
    assert found.command_line == PINNED
    for line in (
        PINNED.replace("application=b", "application=measured"),
        PINNED.replace("model=none", "model=measured"),
        PINNED.replace(" cloister.model=none", ""),
        PINNED.replace(" cloister.root=a", ""),
        PINNED + " cloister.model=c",
    ):
        with pytest.raises(UnsupportedError) as caught:
            boot(line)
        assert caught.value.code == "image.unpinned"
