"""A guest's program in a cloud, from the image's folder to the verifier's word.

Every refusal is that of a worker that was affirmed before one thing about it was changed. Vendors
are simulated (`support.cloud_guests`); no such cloud was at hand.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Final

import pytest
from typer.testing import CliRunner, Result

from cloister.attester.handover import Handover
from cloister.cli.main import build_app
from cloister.endorsements.roots import Roots, Vendor
from cloister.errors import ConfigurationError, MalformedError
from cloister.evidence.component import CONFIGURATION_MANIFEST
from cloister.evidence.items import ITEM_TPM_PCRS
from cloister.evidence.report import ITEM_QUOTE, EvidenceItem
from cloister.image.image_files import read_image
from cloister.image.rtmrs import predicted_rtmrs
from cloister.manifest import SignedManifest
from cloister.testing.signed_manifests import make_manifest, sign_first, sign_update
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.testing.simulated_vtpm import SimulatedAkVendor, SimulatedVtpm, simulated_rsa_key
from cloister.verifier import policy
from cloister.verifier.platforms.gcp_confidential import NOT_JOINED
from cloister.verifier.reference_values import ReferenceValues, load_json
from cloister.verifier.result import Finding
from support.cloud_guests import (
    NOW,
    BootedTpm,
    CloudGuest,
    Image,
    boot,
    deployed_parts,
    golden_of,
    judged,
    references,
    refused,
    worker_of,
)
from support.manifests import ALICE, IMAGE

GOOGLE: Final = ("gcp-snp", "gcp-tdx", "gcp-vtpm")
LAUNCH_DIGEST: Final = b"\x77" * 48
"""Of a cloud's own firmware: the same whatever image it starts."""


def google(platform: str, folder: Path, *, certified: bool = True) -> CloudGuest:
    """A machine of Google's that was started from the image in `folder`."""
    vtpm, ca = boot(folder), SimulatedAkVendor(Vendor.GOOGLE_VTPM, now=NOW)
    certificate = ca.certify(vtpm.key.public_key(), padding_bytes=64)
    nv = {0x01C10000: certificate, 0x01C10001: vtpm.public()} if certified else {}
    roots = ca.roots.merged(Roots(intermediates=(ca.intermediate,)))
    below: SimulatedHardware | None = None
    if platform == "gcp-snp":
        below = SimulatedHardware.make("snp", now=NOW, measurement=LAUNCH_DIGEST)
    if platform == "gcp-tdx":
        predicted = predicted_rtmrs(deployed_parts(folder))
        registers: dict[str, object] = {name: values[0] for name, values in predicted.items()}
        registers["mr_td"] = LAUNCH_DIGEST
        below = SimulatedHardware.make("tdx", now=NOW, worker=None, **registers)
    return CloudGuest(
        platform=platform,
        folder=folder,
        tpm=BootedTpm(vtpm, nv),
        roots=roots if below is None else roots.merged(below.roots),
        processor=None if below is None else below.issue,
    )


class Scene:
    """An image that was built, a machine that was started from it, and what is accepted of it."""

    def __init__(self, platform: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.platform, self.folder, self.patch = platform, folder, monkeypatch
        self.built = Image().write(folder / "image", platform)
        self.machine = google(platform, self.built)
        self.handover = self.started(self.machine)
        # What the firmware is, somebody read off a machine of their own with another image.
        trial = Image(application="7", command_line="trial").write(folder / "trial", platform)
        recorded = google(platform, trial)
        report = worker_of(recorded, self.started(recorded)).report(bytes(32))
        self.values = references(self.built, golden_of(report))
        judged(worker_of(self.machine, self.handover), self.values).require_affirming()

    def started(self, machine: CloudGuest, manifest: SignedManifest | None = None) -> Handover:
        self.count = getattr(self, "count", 0) + 1
        handover = machine.run(self.folder / f"run-{self.count}", self.patch, manifest)
        assert handover is not None
        return handover

    def of(self, image: Image) -> tuple[CloudGuest, Handover]:
        """Another image on another such machine."""
        folder = image.write(self.folder / "other", self.platform)
        other = google(self.platform, folder)
        # The same vendors, so that nothing but the image differs.
        other.roots = other.roots.merged(self.machine.roots)
        return other, self.started(other)


@pytest.fixture(params=GOOGLE)
def scene(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(request.param, tmp_path, monkeypatch)


def test_a_guest_is_affirmed_by_what_its_image_predicts(scene: Scene) -> None:
    result = judged(worker_of(scene.machine, scene.handover), scene.values)
    assert result.require_affirming().platform.startswith("development (")
    (image,) = scene.values.images
    assert (image.name, image.version, image.debug) == ("demo", "1", False)
    assert (NOT_JOINED in result.not_proven) is (scene.platform != "gcp-vtpm")
    assert scene.machine.tpm.written == []  # without a manifest nothing is measured


CHANGES: Final = {
    "application": (Image(application="c"), {"boot.application"}),
    "model": (Image(model="c"), {"boot.model"}),
    "kernel": (Image(kernel=b"another"), {"boot.loader", "boot.image"}),
    "initrd": (
        Image(initrd=b"another"),
        {"boot.loader", "boot.image", "boot.kernel_inputs"},
    ),
    "command line": (
        Image(command_line="init=/bin/sh"),
        {"boot.loader", "boot.image", "boot.kernel_inputs"},
    ),
}
"""Another part of the image, and the claims about registers that tell of it."""


@pytest.mark.parametrize("change", CHANGES)
def test_another_image_is_refused_by_the_part_that_differs(scene: Scene, change: str) -> None:
    image, named = CHANGES[change]
    other, handover = scene.of(image)
    found = refused(judged(worker_of(other, handover), scene.values))
    if scene.platform == "gcp-tdx":
        # The processor's own registers tell; of the TPM's those are compared that the init wrote.
        named = named & {"boot.application", "boot.model"}
        result = judged(worker_of(other, handover), scene.values)
        (whole,) = [one for one in result.claims if one.name == "software.registers"]
        assert "rtmr1" in whole.explanation
    assert found == dict.fromkeys({"software.registers", *named}, "measurement_mismatch")


def test_a_debug_image_is_called_one(scene: Scene) -> None:
    other, handover = scene.of(Image(debug=True))
    worker = worker_of(other, handover)
    assert "software.registers" in refused(judged(worker, scene.values))
    golden = golden_of(worker.report(bytes(32)))
    own = references(other.folder, golden)
    assert [image.debug for image in own.images] == [True]
    assert refused(judged(worker, own)) == {"image.debug": "image_debug"}
    by_name = dataclasses.replace(policy.development(), accept_debug=True)
    judged(worker, own, under=by_name).require_affirming()


@pytest.fixture(scope="module")
def manifest() -> SignedManifest:
    return sign_first(make_manifest(owners=[ALICE], images=[IMAGE]), ALICE)


def test_the_manifest_is_measured_and_compared(scene: Scene, manifest: SignedManifest) -> None:
    machine = google(scene.platform, scene.built)
    machine.roots = machine.roots.merged(scene.machine.roots)
    handover = scene.started(machine, manifest)
    assert machine.tpm.written == [13]
    assert handover.configuration[CONFIGURATION_MANIFEST] == manifest.digest
    worker = worker_of(machine, handover, manifest=manifest.digest)
    result = judged(worker, scene.values)
    result.require_affirming()
    assert [c.finding for c in result.claims if c.name == "manifest.bound"] == [Finding.AFFIRMING]

    another = worker_of(machine, handover, manifest=sign_update(manifest, ALICE).digest)
    found = refused(judged(another, scene.values))
    assert found["manifest.bound"] == "manifest_mismatch"
    assert found["boot.additions"] == "measurement_mismatch"

    unmeasured = worker_of(scene.machine, scene.handover, manifest=manifest.digest)
    assert refused(judged(unmeasured, scene.values)) == {"manifest.bound": "manifest_mismatch"}

    # One that the worker does not name was measured all the same.
    silent = refused(judged(worker_of(machine, handover), scene.values))
    assert silent["boot.additions"] == "measurement_mismatch"


def test_a_guest_whose_key_google_does_not_certify_ends(
    scene: Scene, capfd: pytest.CaptureFixture[str]
) -> None:
    bare = google(scene.platform, scene.built, certified=False)
    capfd.readouterr()
    assert bare.run(scene.folder / "bare", scene.patch) is None
    (line,) = capfd.readouterr().err.splitlines()
    assert json.loads(line)["code"] == "guest.no_certificate"


def test_a_certificate_of_somebody_else_than_google(scene: Scene) -> None:
    worker = worker_of(scene.machine, scene.handover)
    stranger = google(scene.platform, scene.built)
    kept = tuple(
        anchor for anchor in scene.machine.roots.anchors if anchor.vendor is not Vendor.GOOGLE_VTPM
    )
    roots = dataclasses.replace(stranger.roots, anchors=(*kept, *stranger.roots.anchors))
    found = refused(judged(worker, scene.values, roots=roots))
    assert found == {"ak.chain": "bad_chain"}


def test_a_key_that_the_certificate_is_not_for(scene: Scene) -> None:
    other = SimulatedVtpm(key=simulated_rsa_key("another's"), banks=scene.machine.tpm.vtpm.banks)
    judged(worker_of(scene.machine, scene.handover), scene.values).require_affirming()
    scene.machine.tpm.signing = other
    found = refused(judged(worker_of(scene.machine, scene.handover), scene.values))
    assert found == {"tpm.signature": "bad_signature"}


@pytest.mark.parametrize("platform", ["gcp-snp", "gcp-tdx"])
def test_parts_of_two_machines(
    platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TPM and a processor of two machines: refused where they answered apart. Where both were
    asked at once nothing tells, and the result says whose word that rests on."""
    scene = Scene(platform, tmp_path, monkeypatch)
    second = google(platform, scene.built)
    scene.machine.roots = scene.machine.roots.merged(second.roots)
    handover, other = scene.handover, scene.started(second)

    def halves(digest: bytes, of_second: bytes) -> dict[str, EvidenceItem]:
        tpm = {
            name: item
            for name, item in other.attester.quote(of_second).items()
            if name in {ITEM_QUOTE, "tpm.signature", "tpm.pcrs", "tpm.eventlog"}
        }
        assert ITEM_QUOTE in tpm
        return {**handover.attester.quote(digest), **tpm}

    apart = worker_of(scene.machine, handover, quote=lambda digest: halves(digest, bytes(32)))
    assert refused(judged(apart, scene.values)) == {"gcp.same_challenge": "report_data_mismatch"}
    at_once = worker_of(scene.machine, handover, quote=lambda digest: halves(digest, digest))
    result = judged(at_once, scene.values)
    result.require_affirming()
    assert NOT_JOINED in result.not_proven


def test_other_firmware_than_was_recorded(scene: Scene) -> None:
    if scene.platform == "gcp-vtpm":
        register, claim = "pcr0", "boot.firmware"
    else:
        register = {"gcp-snp": "measurement", "gcp-tdx": "mr_td"}[scene.platform]
        claim = "software.registers"
    (reference,) = scene.values.platforms
    (value,) = reference.registers[register]
    changed = {**reference.registers, register: (bytes(len(value) // 2).hex(),)}
    values = ReferenceValues.from_platforms(dataclasses.replace(reference, registers=changed))
    found = refused(judged(worker_of(scene.machine, scene.handover), values))
    assert found == dict.fromkeys({"software.registers", claim}, "measurement_mismatch")


def called(*words: str | Path) -> Result:
    return CliRunner().invoke(build_app(["image"]), ["image", *map(str, words)])


def test_the_commands_record_and_predict_the_same(scene: Scene) -> None:
    """`image golden` from a report of the machine, and `image measure` with what it wrote."""
    report, golden = scene.folder / "report.json", scene.folder / "golden.json"
    report.write_bytes(worker_of(scene.machine, scene.handover).report(bytes(32)))
    named = ("--firmware", "cloud 1", "--machine", "small", "-o", golden)
    assert called("golden", report, *named).exit_code == 0
    printed = called("measure", scene.built, "--golden", golden)
    assert load_json(printed.stdout.encode()) == scene.values

    # A log alone does not say what the processor measured of the firmware.
    log = scene.folder / "boot.log"
    log.write_bytes(scene.machine.tpm.vtpm.event_log())
    golden.unlink()
    assert called("golden", log, *named).exit_code == 0
    without = called("measure", scene.built, "--golden", golden)
    if scene.platform == "gcp-vtpm":
        assert without.exit_code == 0
    else:
        assert isinstance(without.exception, ConfigurationError)
        assert without.exception.code == "image.no_golden"
        assert scene.platform in str(without.exception)

    whole = worker_of(scene.machine, scene.handover).attestation_report(bytes(32))
    item = whole.evidence[ITEM_TPM_PCRS]
    registers = json.loads(item.data)
    registers["sha256"]["0"] = "00" * 32
    altered = dataclasses.replace(item, data=json.dumps(registers).encode())
    evidence = {**whole.evidence, ITEM_TPM_PCRS: altered}
    report.write_bytes(dataclasses.replace(whole, evidence=evidence).encode())
    assert isinstance(called("golden", report, *named).exception, MalformedError)


def test_a_folder_that_names_no_platform_that_is_known(scene: Scene) -> None:
    read_image(scene.built)
    for text in ('{"platform": "sparc"}', '{"platform": 1}', "{", '{"platform": null}'):
        (scene.built / "configuration.json").write_text(text)
        with pytest.raises(ConfigurationError, match="platform"):
            read_image(scene.built)
