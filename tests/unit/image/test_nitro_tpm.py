"""An image for AWS instances with a NitroTPM: from its folder to what a report is judged by, and to
what a KMS key opens to."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloister.aws.recipient import AttestedKms
from cloister.cli.main import build_app, guard
from cloister.errors import KeyReleaseDenied
from cloister.evidence.eventlog import EventType
from cloister.evidence.nitro import DocumentKind
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
from cloister.verifier.appraise.worker import manifest_register
from cloister.verifier.platform_references import PlatformReference, ReferenceImage
from cloister.verifier.reference_values import ReferenceValues, load_json
from cloister.verifier.report import verify_report
from cloister.verifier.result import Finding
from support import boot_parts as made
from support.deployments import ESP_BYTES, tiny_disk
from support.kms import ADMIN, CONTEXT, ENCLAVE, RSA_KEY, Cloud

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


MANIFEST = bytes(range(32))


class Instance:
    """A NitroTPM of an instance at `cloud`, with these registers."""

    def __init__(self, cloud: Cloud, registers: Mapping[int, bytes]) -> None:
        self.cloud, self.registers = cloud, registers

    def attestation(
        self,
        *,
        user_data: bytes | None = None,
        nonce: bytes | None = None,
        public_key: bytes | None = None,
    ) -> bytes:
        return self.cloud.nitro.document(
            pcrs=self.registers,
            user_data=user_data,
            nonce=nonce,
            public_key=public_key,
            kind=DocumentKind.NITRO_TPM,
        )


def key_policy(*more: str) -> tuple[int, str, str]:
    """Status, standard output, standard error."""
    named = ("--administrator", ADMIN, "--enclave-role", ENCLAVE)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = guard(lambda: build_app(["deploy"])(["deploy", "aws", "key-policy", *named, *more]))
    return code, out.getvalue(), err.getvalue()


def opens(cloud: Cloud, arn: str, registers: Mapping[int, bytes]) -> bool:
    kms = AttestedKms(
        cloud.client(), Instance(cloud, registers), key_arn=arn, new_key=lambda: RSA_KEY
    )
    try:
        return len(kms.generate_data_key(CONTEXT).key) == 32
    except KeyReleaseDenied:
        return False


def test_a_kms_key_opens_to_the_image_that_was_built_and_to_no_other(folder: Path) -> None:
    """By every register that was predicted; PCR13 is that of the manifests that were named."""
    write_measurements(folder)
    named = ("--nitro-tpm", "--reference-values", str(folder / "reference-values.json"))
    other = bytes([7]) * 32
    registers = {
        **dict.fromkeys(range(16), bytes([9]) * 48),
        **predict(read_image(folder).parts(), bank=Alg.SHA384).registers,
    }
    with_manifest = {**registers, 13: manifest_register("nitro-tpm", MANIFEST)}
    with_other = {**registers, 13: manifest_register("nitro-tpm", other)}
    cloud = Cloud()
    for manifests, states in (
        ((), (True, False, False)),
        ((MANIFEST,), (False, True, False)),
        ((MANIFEST, other), (False, True, True)),
    ):
        told = [word for one in manifests for word in ("--manifest", one.hex())]
        code, out, err = key_policy(*named, *told)
        assert code == 0, err
        arn = cloud.kms.create_key(json.loads(out))
        cases = (registers, with_manifest, with_other)
        assert tuple(opens(cloud, arn, one) for one in cases) == states
    once, prefixed = MANIFEST.hex(), f"sha256:{MANIFEST.hex()}"
    alone = key_policy(*named, "--manifest", once)
    assert key_policy(*named, "--manifest", once, "--manifest", prefixed) == alone
    good = {**with_manifest}
    assert opens(cloud, arn, good)
    for pcr in PREDICTED:
        assert not opens(cloud, arn, {**good, pcr: bytes([5]) * 48}), pcr
    # PCR 0 and 1 are constants of AWS', PCR 10 is the kernel's: nothing is predicted of them.
    for pcr in {*range(16)} - {*PREDICTED}:
        assert opens(cloud, arn, {**good, pcr: bytes([5]) * 48}), pcr


def test_references_make_a_policy_only_for_what_they_are_of(folder: Path, tmp_path: Path) -> None:
    write_measurements(folder)
    path = tmp_path / "reference-values.json"
    (built,) = load_json((folder / "reference-values.json").read_bytes()).platforms
    enclave = PlatformReference(
        platform="nitro",
        name="enclave",
        registers={f"pcr{index}": (f"{index + 1:02x}" * 48,) for index in range(3)},
    )

    def refused(references: tuple[PlatformReference, ...], *more: str) -> str:
        path.write_text(ReferenceValues.from_platforms(*references).dump_json())
        code, out, err = key_policy("--reference-values", str(path), *more)
        assert (code, out) == (2, ""), err
        assert "[kms.policy]" in err
        return " ".join(err.split())

    path.write_text(ReferenceValues.from_platforms(built, enclave).dump_json())
    both = [
        key_policy("--reference-values", str(path), *more)[1] for more in ((), ("--nitro-tpm",))
    ]
    assert ["NitroTPMPCR4" in one for one in both] == [False, True]
    assert ["Attestation:PCR0" in one for one in both] == [True, False]

    assert "add --nitro-tpm" in refused((built,))
    assert "leave out --nitro-tpm" in refused((enclave,), "--nitro-tpm")
    sha = MANIFEST.hex()
    assert "--manifest goes with" in refused((enclave,), "--manifest", sha)
    taken = dataclasses.replace(built, registers={**built.registers, "pcr13": ("ab" * 48,)})
    path.write_text(ReferenceValues.from_platforms(taken).dump_json())
    assert key_policy("--reference-values", str(path), "--nitro-tpm")[0] == 0
    assert "already" in refused((taken,), "--nitro-tpm", "--manifest", sha)
    for reference, flag in ((built, ("--nitro-tpm",)), (enclave, ())):
        shown = ReferenceImage(name="x", version="1", debug=True)
        debug = dataclasses.replace(reference, image=shown)
        assert "debug image" in refused((debug,), *flag)
    path.write_text(ReferenceValues.from_platforms(built).dump_json())
    assert key_policy("--reference-values", str(path), "--nitro-tpm", "--manifest", sha)[0] == 0
    assert "zeros are none's" in refused((built,), "--nitro-tpm", "--manifest", "0" * 64)
    many = [word for n in range(1, 34) for word in ("--manifest", f"{n:064x}")]
    assert "room for 32" in refused((built,), "--nitro-tpm", *many)
    assert "AWS takes 32768" in refused((built,), "--nitro-tpm", *many[:-2])
