"""``cloister image measure`` and ``golden``: an image's folder to what a report is judged by."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cloister.cli.main import build_app
from cloister.errors import (
    AuthenticationError,
    ConfigurationError,
    MalformedError,
    UnsupportedError,
)
from cloister.evidence.eventlog import EventType
from cloister.evidence.tpm import Alg
from cloister.image.corim import parse_corim
from cloister.image.golden import dump_golden, load_golden
from cloister.image.image_files import read_image
from cloister.image.pcrs import predict
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.testing.simulated_vtpm import SimulatedVtpm
from cloister.verifier import policy
from cloister.verifier.reference_values import ReferenceValues, load_json
from cloister.verifier.report import verify_report
from cloister.verifier.result import Finding
from support import boot_parts as made
from support.tdx_logs import ccel, measured

MEASURED = b"quiet cloister.model=measured"
SPEC = b"erofs:1:1:" + b"00" * 32 + b":" + b"11" * 32
PINNED = b"quiet cloister.root=a cloister.application=none cloister.model=" + SPEC
OTHER = PINNED.replace(b"erofs:1", b"erofs:2")
NOW = datetime(2026, 11, 3, 12, tzinfo=UTC)
LINE = b"cloister-disk/1 model erofs 1 1 " + b"00" * 32 + b" " + b"11" * 32 + b"\n"


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(build_app(["image"]), ["image", *map(str, words)])


def boot(folder: Path, *more: tuple[int, bytes]) -> SimulatedVtpm:
    """What firmware and image measure, in a TPM of this process."""
    vtpm = SimulatedVtpm(banks=(Alg.SHA256,))
    vtpm.measure(0, EventType.EV_S_CRTM_VERSION, b"firmware 1")
    vtpm.measure(1, EventType.EV_EFI_VARIABLE_BOOT, b"order")
    for pcr in (0, 1):
        vtpm.measure(pcr, EventType.EV_SEPARATOR, bytes(4))
    for predicted in predict(read_image(folder).parts()).events:
        digests = {int(Alg.SHA256): predicted.digests[Alg.SHA256]}
        event = dataclasses.replace(predicted.event(), digests=digests)
        vtpm.extend(event)
        if event.pcr < 14:  # what the init measures, the firmware's log does not hold
            vtpm.events.append(event)
    for pcr, data in more:
        vtpm.measure(pcr, EventType.EV_IPL, data)
    return vtpm


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    release = b"ID=cloister\nVERSION_ID=7\n"
    (tmp_path / "uki.efi").write_bytes(made.uki(osrel=release, cmdline=MEASURED))
    (tmp_path / "esp.img").write_bytes(made.disk())
    (tmp_path / "model.img").write_bytes(b"content" + bytes(4096 - 7) + LINE.ljust(4096, b"\0"))
    (tmp_path / "boot.log").write_bytes(boot(tmp_path).event_log())
    return tmp_path


def record(folder: Path, *more: str | Path) -> Result:
    named = ("--firmware", "OVMF 1", "--machine", "q35, 1 GiB")
    return run("golden", folder / "boot.log", *named, "-o", folder / "golden.json", *more)


def judged(vtpm: SimulatedVtpm, values: ReferenceValues) -> dict[str, str | None]:
    nonce = bytes(32)
    worker = SimulatedHardware.make("tpm", now=NOW, vtpm=vtpm)
    result = verify_report(
        worker.report(nonce),
        nonce=nonce,
        policy=policy.development(),
        reference_values=values,
        roots=worker.roots,
        at=NOW,
    )
    return {c.name: c.code for c in result.failures if c.finding is Finding.CONTRAINDICATED}


def test_what_is_measured_is_what_a_report_is_judged_by(folder: Path) -> None:
    assert record(folder).exit_code == 0
    printed = run("measure", folder)
    values = load_json(printed.stdout.encode())
    (image,) = values.images
    assert (image.name, image.version, image.debug) == ("cloister", "7", False)
    (reference,) = values.platforms
    assert reference.name == "cloister 7 on OVMF 1, q35, 1 GiB"
    assert judged(boot(folder), values) == {}
    assert judged(boot(folder, (9, b"another command line")), values) == {
        "boot.kernel_inputs": "measurement_mismatch",
        "software.registers": "measurement_mismatch",
    }


def test_a_log_can_be_compared_with_the_firmwares_file(folder: Path) -> None:
    code = made.ovmf_code(made.PEI_VOLUME, made.DXE_VOLUME)
    (folder / "code.fd").write_bytes(code)
    (folder / "other.fd").write_bytes(made.ovmf_code(made.PEI_VOLUME, (made.DXE_CORE, b"other")))
    vtpm = SimulatedVtpm(banks=(Alg.SHA256,))
    kind = EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB
    vtpm.measure(0, kind, b"what has changed itself")
    vtpm.measure(0, kind, made.firmware_volume(made.DXE_VOLUME))
    (folder / "boot.log").write_bytes(vtpm.event_log())
    written = record(folder, "--code", folder / "code.fd")
    assert written.exit_code == 0
    assert "but for 4096 bytes" in written.stderr
    (folder / "golden.json").unlink()
    refused = record(folder, "--code", folder / "other.fd")
    assert isinstance(refused.exception, AuthenticationError)
    assert refused.exception.code == "image.other_firmware"
    assert not (folder / "golden.json").exists()


def test_each_firmware_is_a_state_of_its_own(folder: Path) -> None:
    record(folder)
    other = SimulatedVtpm(banks=(Alg.SHA256,))
    other.boot(secure_boot=False)
    (folder / "boot.log").write_bytes(other.event_log())
    run("golden", folder / "boot.log", "--firmware", "2", "--machine", "m", "-o", folder / "two")
    secured = SimulatedVtpm(banks=(Alg.SHA256,))
    secured.boot(secure_boot=True)
    (folder / "boot.log").write_bytes(secured.event_log())
    run("golden", folder / "boot.log", "--firmware", "3", "--machine", "m", "-o", folder / "two")
    assert [entry.secure_boot for entry in load_golden((folder / "two").read_bytes())] == [
        False,
        True,
    ]
    chosen = ("--golden", folder / "golden.json", "--golden", folder / "two")
    values = load_json(run("measure", folder, *chosen).stdout.encode())
    names = [reference.name for reference in values.platforms]
    assert names == ["cloister 7 on 2, m", "cloister 7 on OVMF 1, q35, 1 GiB"]


def test_a_debug_image_says_so(folder: Path) -> None:
    record(folder)
    named = made.uki(osrel=b"ID=cloister-debug\nVERSION_ID=7\n", cmdline=MEASURED)
    told = (b"quiet cloister.debug=1", b"quiet cloister.debug=yes")  # the init takes any value
    open_ones = [made.uki(osrel=b"ID=cloister\nVERSION_ID=7\n", cmdline=line) for line in told]
    for uki in (named, *open_ones):
        (folder / "uki.efi").write_bytes(uki)
        values = load_json(run("measure", folder).stdout.encode())
        assert [image.debug for image in values.images] == [True]
        assert judged(boot(folder), values) == {"image.debug": "image_debug"}


def test_which_disk_is_measured_is_the_command_lines_to_say(folder: Path) -> None:
    """As the init reads it: none, any one, or one that is named."""
    release = b"ID=cloister\nVERSION_ID=7\n"
    for line, measured_line in ((MEASURED, LINE), (PINNED, LINE), (b"quiet", None)):
        (folder / "uki.efi").write_bytes(made.uki(osrel=release, cmdline=line))
        assert read_image(folder).model == measured_line
    (folder / "uki.efi").write_bytes(made.uki(osrel=release, cmdline=PINNED))
    (folder / "model.img").unlink()
    assert read_image(folder).model == LINE


def test_it_is_written_where_it_is_wanted(folder: Path) -> None:
    record(folder)
    printed = run("measure", folder).stdout
    assert run("measure", folder, "-o", folder / "reference-values.json").stdout == ""
    assert (folder / "reference-values.json").read_text() == printed
    assert run("measure", folder).stdout == printed  # and nothing of it depends on the time


def test_launch_digests_of_snp_guests(folder: Path) -> None:
    release = b"ID=cloister\nVERSION_ID=7\n"
    firmware = folder / "OVMF.fd"
    firmware.write_bytes(made.snp_firmware())
    options = ("--snp-firmware", firmware, "--vcpus", "1", "--vcpus", "4")
    refused = run("measure", folder, *options).exception
    assert isinstance(refused, UnsupportedError)
    assert refused.code == "image.unpinned"
    (folder / "uki.efi").write_bytes(made.uki(osrel=release, cmdline=PINNED))
    values = load_json(run("measure", folder, *options).stdout.encode())
    assert {entry.platform for entry in values.platforms} == {"snp"}
    digests = [entry.registers["measurement"] for entry in values.platforms]
    assert len(set(digests)) == 2
    assert "4 × EPYC-v4" in values.platforms[1].name
    for alone in (("--vcpus", "4"), ("--vcpu-type", "EPYC-v4")):
        refused = run("measure", folder, *alone).exception
        assert isinstance(refused, ConfigurationError)
        assert refused.code == "image.snp_options"


def test_tdx_guests(folder: Path) -> None:
    release = b"ID=cloister\nVERSION_ID=7\n"
    firmware, log = folder / "OVMF.fd", folder / "ccel"
    firmware.write_bytes(made.tdvf(*made.TDX_SECTIONS))
    log.write_bytes(ccel([measured(0, 1, b"firmware configuration"), measured(1, 1, b"boot")]))
    options = ("--tdvf", firmware, "--ccel", log)
    refused = run("measure", folder, *options).exception
    assert isinstance(refused, UnsupportedError)
    (folder / "uki.efi").write_bytes(made.uki(osrel=release, cmdline=PINNED))
    (reference,) = load_json(run("measure", folder, *options).stdout.encode()).platforms
    assert reference.platform == "tdx"
    assert set(reference.registers) == {"mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3"}
    assert len(reference.registers["rtmr2"]) == 2
    sectioned = run("measure", folder, *options, "--tdx-order", "section").stdout.encode()
    (other,) = load_json(sectioned).platforms
    assert other.registers["mr_td"] != reference.registers["mr_td"]
    order = ("--tdx-order", "section")
    for wrong in (options[:2], options[2:], order, (*options, "--tdx-order", "backwards")):
        refused = run("measure", folder, *wrong).exception
        assert isinstance(refused, ConfigurationError)
        assert refused.code == "image.tdx_order"
    log.write_bytes(ccel([measured(1, 1, b"boot")]))
    assert isinstance(run("measure", folder, *options).exception, MalformedError)


def test_corim(folder: Path) -> None:
    record(folder)
    values = folder / "reference-values.json"
    run("measure", folder, "-o", values)
    assert run("corim", values, "-o", folder / "it.corim").exit_code == 0
    read = parse_corim((folder / "it.corim").read_bytes())
    assert read.digest == load_json(values.read_bytes()).digest
    assert isinstance(
        run("corim", values, "-o", folder / "none" / "it").exception, ConfigurationError
    )


def test_enclave_images(folder: Path) -> None:
    """PCR0 to PCR2 of an enclave image, under the name of the image beside it."""
    for part in ("kernel", "first", "second"):
        (folder / part).write_bytes(part.encode())
    parts = ("--kernel", folder / "kernel", "--ramdisk", folder / "first")
    built = ("eif", "build", *parts, "--ramdisk", folder / "second", "-o", folder / "image.eif")
    printed = json.loads(run(*built).stdout)["Measurements"]
    (nitro,) = load_json(
        run("measure", folder, "--eif", folder / "image.eif").stdout.encode()
    ).platforms
    assert nitro.registers["pcr0"] == (printed["PCR0"],)
    assert nitro.image is not None
    assert nitro.image.version == "7"
    signed = run("eif", "from-image", folder, "-o", folder / "again.eif")
    assert json.loads(signed.stdout)["Measurements"] == printed
    (folder / "image.eif").unlink()
    refused = run("eif", "from-image", folder, "-o", folder / "again.eif").exception
    assert isinstance(refused, ConfigurationError)
    assert refused.code == "image.folder"


def test_sgx_enclaves(folder: Path) -> None:
    sigstruct = bytearray(1808)
    sigstruct[:16] = bytes.fromhex("06000000e10000000000010000000000")
    sigstruct[24:40] = bytes.fromhex("01010000600000006000000001000000")
    sigstruct[960:992] = b"\xab" * 32
    (folder / "worker.sig").write_bytes(sigstruct)
    printed = run("measure", folder, "--sgx-signature", folder / "worker.sig").stdout
    (reference,) = load_json(printed.encode()).platforms
    assert reference.registers == {"mrenclave": ("ab" * 32,)}


def test_events_are_told(folder: Path) -> None:
    told = json.loads(run("measure", folder, "--events").stdout)
    assert [event["what"] for event in told["pcr15"]["events"]] == ["model disk", "separator"]
    assert told["pcr12"] == {"value": "00" * 32, "events": []}


def test_golden_values_are_needed(folder: Path) -> None:
    raised = run("measure", folder).exception
    assert isinstance(raised, ConfigurationError)
    assert raised.code == "image.no_golden"


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("uki.efi", None, ConfigurationError),
        ("esp.img", None, ConfigurationError),
        ("esp.img", b"short", MalformedError),
        ("model.img", b"short", MalformedError),
        ("model.img", bytes(8192), MalformedError),
        ("model.img", (LINE + b"x").ljust(4096, b"\0"), MalformedError),
        ("model.img", b"\xff\n".ljust(4096, b"\0"), MalformedError),
        ("model.img", LINE.replace(b"model", b"root").ljust(4096, b"\0"), MalformedError),
        ("model.img", None, ConfigurationError),
        ("uki.efi", made.uki(osrel=b"ID=c\nVERSION_ID=7", cmdline=MEASURED * 2), MalformedError),
        ("uki.efi", made.uki(osrel=b"ID=c\nVERSION_ID=7", cmdline=OTHER), MalformedError),
        ("uki.efi", made.uki(osrel=b"ID=cloister\n"), MalformedError),
        ("uki.efi", made.uki(release="300"), UnsupportedError),
        ("golden.json", b"{}", ConfigurationError),
    ],
)
def test_a_folder_that_cannot_be_measured(
    folder: Path, name: str, content: bytes | None, error: type[Exception]
) -> None:
    record(folder)
    assert run("measure", folder).exit_code == 0
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_bytes(content)
    assert isinstance(run("measure", folder).exception, error)


@pytest.mark.parametrize(
    "log", [b"", b"no log", SimulatedVtpm(banks=(Alg.SHA256,)).event_log()], ids=["", "no", "bare"]
)
def test_a_log_without_a_firmware(folder: Path, log: bytes) -> None:
    assert record(folder).exit_code == 0
    (folder / "boot.log").write_bytes(log)
    assert isinstance(record(folder).exception, MalformedError)


ENTRY = {
    "firmware": "f",
    "machine": "m",
    "secure_boot": False,
    "pcr0": "00" * 32,
    "pcr1": "11" * 32,
}


@pytest.mark.parametrize(
    "changes",
    [
        {"secure_boot": 0},
        {"pcr0": "00" * 31},
        {"pcr1": "00" * 33},
        {"pcr1": "AA" * 32},
        {"firmware": "x" * 97},
        {"more": 1},
        {"hardware": []},
        {"hardware": {"measurement": "00" * 47}},
        {"hardware": {"pcr2": "00" * 48}},
    ],
)
def test_golden_values_are_read_strictly(changes: dict[str, object]) -> None:
    def document(entry: dict[str, object]) -> bytes:
        return json.dumps({"format": "cloister/golden/1", "golden": [entry]}).encode()

    assert load_golden(document(dict(ENTRY)))[0].pcr1 == b"\x11" * 32
    whole = {**ENTRY, "hardware": {"measurement": "22" * 48, "mr_td": "33" * 48}}
    (entry,) = load_golden(document(whole))
    assert entry.hardware == (("measurement", b"\x22" * 48), ("mr_td", b"\x33" * 48))
    assert load_golden(dump_golden([entry]).encode()) == (entry,)
    with pytest.raises(ConfigurationError):
        load_golden(document({**ENTRY, **changes}))
    with pytest.raises(ConfigurationError):
        load_golden(document(dict(ENTRY)).replace(b"golden/1", b"golden/2"))
