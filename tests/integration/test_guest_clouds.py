"""A guest's program in a cloud, from the image's folder to the verifier's word.

Every refusal is that of a worker that was affirmed before one thing about it was changed. Vendors
are simulated (`support.cloud_guests`); no such cloud was at hand.
"""

from __future__ import annotations

import base64
import dataclasses
import errno
import hashlib
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest
from typer.testing import CliRunner, Result

from cloister.attester.azure import AK_CERTIFICATE_INDEX, HCL_REPORT_INDEX
from cloister.attester.handover import Handover
from cloister.attester.metadata import CERTIFICATION, TD_QUOTE
from cloister.cli.main import build_app
from cloister.endorsements.roots import Roots, Vendor
from cloister.errors import ConfigurationError, FetchError, MalformedError, UnsupportedError
from cloister.evidence import items
from cloister.evidence.component import CONFIGURATION_MANIFEST
from cloister.evidence.items import ITEM_TPM_PCRS
from cloister.evidence.report import ITEM_QUOTE, Endorsement, EvidenceItem
from cloister.image.image_files import read_image
from cloister.image.rtmrs import predicted_rtmrs
from cloister.manifest import SignedManifest
from cloister.strictjson import JsonObject
from cloister.testing.signed_manifests import make_manifest, sign_first, sign_update
from cloister.testing.simulated_azure import SimulatedAzure, encode_hcl_report
from cloister.testing.simulated_dcap import SimulatedIntel
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.testing.simulated_snp import SimulatedAmd
from cloister.testing.simulated_vtpm import SimulatedAkVendor, SimulatedVtpm, simulated_rsa_key
from cloister.verifier import policy
from cloister.verifier.platforms.gcp_confidential import NOT_JOINED
from cloister.verifier.reference_values import ReferenceValues, load_json
from cloister.verifier.result import Finding
from support.cloud_guests import (
    NONCE,
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

AZURE: Final = ("azure-snp", "azure-tdx")
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


class Metadata:
    """Azure's metadata service, for one machine."""

    def __init__(self, answers: Mapping[str, JsonObject]) -> None:
        self.answers = dict(answers)

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        if path not in self.answers:
            raise FetchError("the service cannot be asked", code="device.io")
        return json.dumps(self.answers[path]).encode()


def td_report(quote: bytes) -> bytes:
    """The TDREPORT that a quote of version 4 is of, its MAC and hashes zero."""
    body, report = quote[48 : 48 + 584], bytearray(1024)
    report[0] = 0x81
    report[128:192] = body[520:]
    report[264:384] = body[:120]
    report[512:912] = body[120:520]
    return bytes(report)


def azure(
    platform: str, folder: Path, *, key: str = "HCLAkPub", certified: bool = True
) -> CloudGuest:
    """A confidential machine of Azure's that was started from the image in `folder`; `key` is the
    one that its paravisor says to be the TPM's."""
    vtpm, amd = boot(folder), SimulatedAmd(now=NOW)
    vtpm.key = simulated_rsa_key("HCLAkPub")
    ca, chip = SimulatedAkVendor(Vendor.AZURE_VTPM, now=NOW), amd.key()
    machine = SimulatedAzure(amd=amd, chip=chip, azure=ca, vtpm=vtpm)
    named = dataclasses.replace(machine, vtpm=SimulatedVtpm(key=simulated_rsa_key(key)))
    roots = ca.roots.merged(Roots(intermediates=(ca.intermediate,)))
    if platform == "azure-snp":
        report = named.hcl_report()
        vcek, *above = (
            ssl.DER_cert_to_PEM_cert(der) for der in (chip.certificate, *amd.authorities())
        )
        answers: dict[str, JsonObject] = {
            CERTIFICATION: {"vcekCert": vcek, "certificateChain": "".join(above)}
        }
        crl = Endorsement(media_type=items.MEDIA_TYPE_CRL, data=amd.crl())
        vouching = {items.ITEM_AZURE_HCL_REPORT: (crl,)}
        roots = roots.merged(amd.roots)
    else:
        intel, runtime = SimulatedIntel(now=NOW), named.runtime_data()
        bound = hashlib.sha256(runtime).digest()
        quote = intel.platform().tdx_quote(report_data=bound, mr_td=LAUNCH_DIGEST)
        report = encode_hcl_report(td_report(quote), runtime)
        answers = {TD_QUOTE: {"quote": base64.urlsafe_b64encode(quote).rstrip(b"=").decode()}}
        collateral = Endorsement(
            media_type=items.MEDIA_TYPE_COLLATERAL, data=intel.collateral().encode()
        )
        vouching = {items.ITEM_AZURE_TD_QUOTE: (collateral,)}
        roots = roots.merged(intel.roots)
    certificate = ca.certify(vtpm.key.public_key(), padding_bytes=64)
    memory = {HCL_REPORT_INDEX: report}
    if certified:
        memory[AK_CERTIFICATE_INDEX] = certificate
    return CloudGuest(
        platform=platform,
        folder=folder,
        tpm=BootedTpm(vtpm, memory),
        roots=roots,
        service=Metadata(answers),
        vouching=vouching,
    )


def machine_of(platform: str, folder: Path) -> CloudGuest:
    return (azure if platform in AZURE else google)(platform, folder)


class Scene:
    """An image that was built, a machine that was started from it, and what is accepted of it."""

    def __init__(self, platform: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.platform, self.folder, self.patch = platform, folder, monkeypatch
        self.built = Image().write(folder / "image", platform)
        self.machine = machine_of(platform, self.built)
        self.handover = self.started(self.machine)
        # What the firmware is, somebody read off a machine of their own with another image.
        trial = Image(application="7", command_line="trial").write(folder / "trial", platform)
        recorded = machine_of(platform, trial)
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
        other = machine_of(self.platform, folder)
        # The same vendors, so that nothing but the image differs.
        other.roots = other.roots.merged(self.machine.roots)
        return other, self.started(other)


@pytest.fixture(params=(*GOOGLE, *AZURE))
def scene(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(request.param, tmp_path, monkeypatch)


@pytest.fixture(params=GOOGLE)
def at_google(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Scene:
    return Scene(request.param, tmp_path, monkeypatch)


@pytest.fixture(params=AZURE)
def at_azure(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Scene:
    return Scene(request.param, tmp_path, monkeypatch)


def test_a_guest_is_affirmed_by_what_its_image_predicts(scene: Scene) -> None:
    result = judged(worker_of(scene.machine, scene.handover), scene.values)
    assert result.require_affirming().platform.startswith("development (")
    (image,) = scene.values.images
    assert (image.name, image.version, image.debug) == ("demo", "1", False)
    assert (NOT_JOINED in result.not_proven) is (scene.platform in {"gcp-snp", "gcp-tdx"})
    assert scene.machine.tpm.written == []  # without a manifest nothing is measured


def test_an_image_that_leaves_disks_open_is_none_for_a_processor_that_has_to_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene("gcp-tdx", tmp_path, monkeypatch)
    entry = golden_of(worker_of(scene.machine, scene.handover).report(bytes(32)))
    assert references(scene.built, entry).images == scene.values.images
    opened = Image().write(tmp_path / "open", "gcp-snp")
    (opened / "configuration.json").write_text('{"platform": "gcp-tdx"}')
    with pytest.raises(UnsupportedError) as caught:
        references(opened, entry)
    assert caught.value.code == "image.unpinned"


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
    machine = machine_of(scene.platform, scene.built)
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
    at_google: Scene, capfd: pytest.CaptureFixture[str]
) -> None:
    bare = google(at_google.platform, at_google.built, certified=False)
    capfd.readouterr()
    assert bare.run(at_google.folder / "bare", at_google.patch) is None
    (line,) = capfd.readouterr().err.splitlines()
    assert json.loads(line)["code"] == "guest.no_certificate"


def test_a_guest_whose_key_azure_does_not_certify_ends(
    at_azure: Scene, capfd: pytest.CaptureFixture[str]
) -> None:
    bare = azure(at_azure.platform, at_azure.built, certified=False)
    capfd.readouterr()
    assert bare.run(at_azure.folder / "bare", at_azure.patch) is None
    (line,) = capfd.readouterr().err.splitlines()
    assert json.loads(line)["code"] == "guest.no_certificate"


def test_a_certificate_of_somebody_else_than_google(at_google: Scene) -> None:
    worker = worker_of(at_google.machine, at_google.handover)
    stranger = google(at_google.platform, at_google.built)
    kept = tuple(
        anchor
        for anchor in at_google.machine.roots.anchors
        if anchor.vendor is not Vendor.GOOGLE_VTPM
    )
    roots = dataclasses.replace(stranger.roots, anchors=(*kept, *stranger.roots.anchors))
    found = refused(judged(worker, at_google.values, roots=roots))
    assert found == {"ak.chain": "bad_chain"}


def test_a_key_that_the_certificate_is_not_for(at_google: Scene) -> None:
    other = SimulatedVtpm(
        key=simulated_rsa_key("another's"), banks=at_google.machine.tpm.vtpm.banks
    )
    judged(worker_of(at_google.machine, at_google.handover), at_google.values).require_affirming()
    at_google.machine.tpm.signing = other
    found = refused(judged(worker_of(at_google.machine, at_google.handover), at_google.values))
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
        register = "mr_td" if scene.platform.endswith("tdx") else "measurement"
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

    # What was recorded of another kind of machine counts for nothing.
    document = json.loads(golden.read_text())
    (entry,) = document["golden"]
    assert entry["platform"] == scene.platform
    other = scene.folder / "other.json"
    entry["platform"] = "gcp-vtpm" if scene.platform != "gcp-vtpm" else "tpm-boot"
    other.write_text(json.dumps(document))
    elsewhere = called("measure", scene.built, "--golden", other)
    assert isinstance(elsewhere.exception, ConfigurationError)
    assert elsewhere.exception.code == "image.no_golden"

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

    pcrs = items.ITEM_AZURE_PCRS if scene.platform in AZURE else ITEM_TPM_PCRS
    whole = worker_of(scene.machine, scene.handover).attestation_report(bytes(32))
    item = whole.evidence[pcrs]
    registers = json.loads(item.data)
    registers["sha256"]["0"] = "00" * 32
    altered = dataclasses.replace(item, data=json.dumps(registers).encode())
    evidence = {**whole.evidence, pcrs: altered}
    report.write_bytes(dataclasses.replace(whole, evidence=evidence).encode())
    assert isinstance(called("golden", report, *named).exception, MalformedError)


def test_a_folder_that_names_no_platform_that_is_known(scene: Scene) -> None:
    read_image(scene.built)
    for text in ('{"platform": "sparc"}', '{"platform": 1}', "{", '{"platform": null}'):
        (scene.built / "configuration.json").write_text(text)
        with pytest.raises(ConfigurationError, match="platform"):
            read_image(scene.built)


def ended(machine: CloudGuest, scene: Scene, capfd: pytest.CaptureFixture[str]) -> str:
    """Why the guest's program ended before its worker began."""
    capfd.readouterr()
    scene.count += 1
    assert machine.run(scene.folder / f"run-{scene.count}", scene.patch) is None
    (line,) = capfd.readouterr().err.splitlines()
    return str(json.loads(line)["code"])


@pytest.mark.parametrize("platform", ["gcp-snp", "gcp-tdx"])
def test_a_machine_at_google_without_the_processor_ends(
    platform: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    scene = Scene(platform, tmp_path, monkeypatch)
    bare, asked = google(platform, scene.built), scene.machine.processor
    assert asked is not None

    def silent(digest: bytes) -> Mapping[str, EvidenceItem]:
        if digest == NONCE:  # which the scene asks for by itself, for the host's table
            return asked(digest)
        raise OSError(errno.ENXIO, "no such processor")

    bare.processor = silent
    assert ended(bare, scene, capfd) == "device.absent"


def test_a_paravisor_that_names_another_key(at_azure: Scene) -> None:
    """The hardware vouches for a key that is not the one that quotes."""
    other = azure(at_azure.platform, at_azure.built, key="another")
    other.roots = other.roots.merged(at_azure.machine.roots)
    handover = at_azure.started(other)
    found = refused(judged(worker_of(other, handover), at_azure.values))
    assert found == {"tpm.signature": "bad_signature", "ak.matches": "bad_ak_binding"}


def test_a_tpm_of_one_machine_above_the_hardware_of_another(at_azure: Scene) -> None:
    """Genuine each, and of two paravisors: the hardware's report does not name the other's key."""
    second = azure(at_azure.platform, at_azure.built)
    second.tpm.vtpm.key = simulated_rsa_key("second")
    second.roots = second.roots.merged(at_azure.machine.roots)
    other = at_azure.started(second)
    below = {items.ITEM_AZURE_HCL_REPORT, items.ITEM_AZURE_TD_QUOTE}

    def spliced(digest: bytes) -> dict[str, EvidenceItem]:
        first = at_azure.handover.attester.quote(digest)
        tpm = {n: i for n, i in other.attester.quote(digest).items() if n not in below}
        return {**first, **tpm}

    found = refused(judged(worker_of(at_azure.machine, other, quote=spliced), at_azure.values))
    assert found["tpm.signature"] == "bad_signature"


def test_an_image_for_the_other_processor_ends(
    at_azure: Scene, capfd: pytest.CaptureFixture[str]
) -> None:
    (other,) = set(AZURE) - {at_azure.platform}
    wrong = azure(other, at_azure.built)
    wrong.platform = at_azure.platform
    assert ended(wrong, at_azure, capfd) == "guest.platform"


def test_a_machine_without_a_paravisor_or_a_service_ends(
    at_azure: Scene, capfd: pytest.CaptureFixture[str]
) -> None:
    silent = azure(at_azure.platform, at_azure.built)
    silent.service = Metadata({})
    assert ended(silent, at_azure, capfd) == "device.io"
    bare = azure(at_azure.platform, at_azure.built)
    del bare.tpm.nv[HCL_REPORT_INDEX]
    assert ended(bare, at_azure, capfd) == "device.absent"
