"""An image for AWS instances with a NitroTPM: from its folder to what a report is judged by."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloister.cli.main import build_app
from cloister.evidence.eventlog import EventType
from cloister.evidence.tpm import Alg
from cloister.image.boot_disk import write_boot_disk
from cloister.image.boot_events import BANKS
from cloister.image.image_files import read_image
from cloister.image.measurements import write_measurements
from cloister.image.partition_table import PREFIX_BYTES, measured_table
from cloister.image.pcrs import PREDICTED, predict
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.testing.simulated_vtpm import SimulatedVtpm
from cloister.verifier import policy
from cloister.verifier.reference_values import ReferenceValues, load_json
from cloister.verifier.report import verify_report
from cloister.verifier.result import Finding
from support import boot_parts as made
from support.deployments import ESP_BYTES, tiny_disk

NOW = datetime(2026, 11, 3, 12, tzinfo=UTC)
LINE = b"cloister-disk/1 model erofs 1 1 " + b"00" * 32 + b" " + b"11" * 32 + b"\n"

GENUINE = {
    2: "518923b0f955d08da077c96aaba522b9decede61c599cea6c41889cfbea4ae4d"
    "50529d96fe4d1afdafb65e7f95bf23c4",
    7: "98441c7f7625d10058c47683aec486ce311c633235eb555593a7ee791121e357"
    "8ae72d04ecef661f272d59058b77af35",
}
"""What an instance's NitroTPM held with Secure Boot off: a document of February 2026 in the test
data of github.com/lockboot/vaportpm, whose signature and chain hold."""


def image(folder: Path, *, platform: str = "nitro-tpm") -> Path:
    folder.mkdir()
    release, line = b"ID=cloister\nVERSION_ID=7\n", b"quiet cloister.model=measured"
    (folder / "uki.efi").write_bytes(made.uki(osrel=release, cmdline=line))
    one = tiny_disk(b"FAT32".ljust(ESP_BYTES, b"\1")) if platform == "nitro-tpm" else made.disk()
    (folder / "esp.img").write_bytes(one)
    (folder / "root.img").write_bytes(bytes(8192))
    (folder / "model.img").write_bytes(b"content" + bytes(4096 - 7) + LINE.ljust(4096, b"\0"))
    (folder / "configuration.json").write_text(json.dumps({"platform": platform}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return image(tmp_path / "image")


def boot(folder: Path, *more: tuple[int, bytes]) -> SimulatedVtpm:
    """What AWS' firmware and the image measure, in a TPM of this process."""
    vtpm = SimulatedVtpm(banks=BANKS)
    for pcr in (0, 1):
        vtpm.measure(pcr, EventType.EV_EFI_VARIABLE_BOOT, b"a constant")
        vtpm.measure(pcr, EventType.EV_SEPARATOR, bytes(4))
    for predicted in predict(read_image(folder).parts()).events:
        event = dataclasses.replace(predicted.event(), digests=predicted.digests)
        vtpm.extend(event)
        if event.pcr < 14:  # what the init measures, the firmware's log does not hold
            vtpm.events.append(event)
    for pcr, data in more:
        event = vtpm.measure(pcr, EventType.EV_IPL, data)
        if pcr >= 14:
            vtpm.events.remove(event)
    return vtpm


def judged(vtpm: SimulatedVtpm, values: ReferenceValues) -> dict[str, str | None]:
    worker = SimulatedHardware.make("nitro-tpm", now=NOW, vtpm=vtpm)
    result = verify_report(
        worker.report(bytes(32)),
        nonce=bytes(32),
        policy=policy.development(),
        reference_values=values,
        roots=worker.roots,
        at=NOW,
    )
    assert (result.verdict is Finding.AFFIRMING) == (not result.failures)
    return {c.name: c.code for c in result.failures if c.finding is Finding.CONTRAINDICATED}


def printed(folder: Path, *more: str) -> str:
    done = CliRunner().invoke(build_app(["image"]), ["image", "measure", str(folder), *more])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_what_is_measured_is_what_a_report_is_judged_by(folder: Path) -> None:
    values = load_json(printed(folder).encode())
    (reference,) = values.platforms
    assert (reference.platform, reference.name) == ("nitro-tpm", "cloister 7")
    assert set(reference.registers) == {f"pcr{pcr}" for pcr in PREDICTED}
    assert judged(boot(folder), values) == {}
    for pcr, claim in ((9, "boot.kernel_inputs"), (12, "boot.additions"), (15, "boot.model")):
        assert judged(boot(folder, (pcr, b"something else")), values) == {
            claim: "measurement_mismatch",
            "software.registers": "measurement_mismatch",
        }


def test_registers_that_no_image_decides_are_those_of_a_genuine_instance(folder: Path) -> None:
    registers = predict(read_image(folder).parts(), bank=Alg.SHA384).registers
    assert {pcr: registers[pcr].hex() for pcr in GENUINE} == GENUINE
    assert registers[3] == registers[6] == registers[2]
    assert registers[12] == registers[13] == bytes(48)


def test_the_partition_table_is_that_of_the_one_disk(folder: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    write_boot_disk(folder / "esp.img", [folder / "root.img", folder / "model.img"], disk)
    table = measured_table(disk.read_bytes()[:PREFIX_BYTES])
    assert read_image(folder).partition_table == table
    alone = read_image(image(tmp_path / "other", platform="tpm-boot"))
    assert alone.partition_table != table


def test_a_build_writes_reference_values_without_golden_ones(folder: Path, tmp_path: Path) -> None:
    assert write_measurements(folder) == ("measurements.json", "reference-values.json")
    assert (folder / "reference-values.json").read_text() == printed(folder)
    told = json.loads((folder / "measurements.json").read_text())
    assert told["pcr2"]["value"] == GENUINE[2]
    assert set(told["pcr2"]["events"][0]) == {"what", "sha384"}
    assert told == json.loads(printed(folder, "--events"))
    other = image(tmp_path / "other", platform="tpm-boot")
    assert write_measurements(other) == ("measurements.json",)
