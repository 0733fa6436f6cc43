"""An image for Google, started from the one disk of its deployment, without a cloud.

The machine is emulated, its software TPM brings a certified key where Google's do, and the start
disk says who is served: the guest does here what it does there, but for the processor's evidence.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attester.start_disk import Start
from cloister.attester.swtpm import Manufactured, SoftwareTpm
from cloister.attester.tpm import signing_template
from cloister.deploy.formats import convert
from cloister.endorsements.roots import Roots, Vendor
from cloister.evidence.tpm import EccPublic, parse_public
from cloister.image.boot import BootedGuest, BootPlan
from cloister.image.golden import golden_from_report
from cloister.image.image_files import read_image
from cloister.image.machine import Machine
from cloister.image.references import machine_references
from cloister.manifest import Manifest, ModelEntry, Serving, SignedManifest
from cloister.testing.signed_manifests import make_manifest, sign_first
from cloister.testing.simulated_vtpm import SimulatedAkVendor
from cloister.verifier import policy
from cloister.verifier.appraise.worker import manifest_register
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.report import verify_report
from support.guests import LIMIT_S, Operator, built_for, machine_for, registers_of
from support.manifests import ALICE, IMAGE

pytestmark = [pytest.mark.boot, pytest.mark.tpm, pytest.mark.slow, pytest.mark.timeout(3000)]

PARTS = ("esp.img", "root.img", "application.img", "model.img")
NOW = datetime.now(UTC)


def one_disk(image: Path) -> Path:
    disk = image.parent / "disk.raw"
    convert("disk", [image / name for name in PARTS], disk)
    return disk


def provided(operator: Operator, folder: Path, vendor: SimulatedAkVendor) -> Manufactured:
    """A TPM that has a certified key in its memory, as a provider leaves it."""
    made = Manufactured(
        state=shutil.copytree(operator.tpm.state, folder / "provided"),
        root=operator.tpm.root,
        issuer=operator.tpm.issuer,
    )
    runtime = folder / "runtime"
    runtime.mkdir(mode=0o700)
    running = SoftwareTpm.start(made, runtime=runtime)
    try:
        public = parse_public(running.tpm.create_primary(signing_template()).public).key
        assert isinstance(public, EccPublic)
        numbers = ec.EllipticCurvePublicNumbers(
            int.from_bytes(public.x, "big"), int.from_bytes(public.y, "big"), ec.SECP256R1()
        )
        certificate = vendor.certify(numbers.public_key())
        for index, content in ((0x01C10002, certificate), (0x01C10003, signing_template())):
            running.tpm.nv_define(index, len(content))
            running.tpm.nv_write(index, content)
    finally:
        running.stop()
    shutil.rmtree(made.state)
    shutil.copytree(runtime / "tpm", made.state)
    return made


@contextlib.contextmanager
def started(machine: Machine, tpm: Manufactured, operator: Operator) -> Iterator[BootedGuest]:
    with BootedGuest(BootPlan(machine=machine, tpm=tpm, ca=operator.ca), progress=print) as guest:
        yield guest


def until(guest: BootedGuest, text: str) -> str:
    """Until the console says so; AssertionError if the machine ends before."""
    deadline = time.monotonic() + LIMIT_S
    while text not in guest.console():
        assert guest.process.poll() is None, guest.console()
        assert time.monotonic() < deadline, guest.console()
        time.sleep(0.2)
    return guest.console()


def report_of(guest: BootedGuest, machine: Machine, nonce: bytes) -> bytes:
    until(guest, "worker.ready")
    address = f"http://127.0.0.1:{machine.port}/v1/aci/attestation"
    answer = httpx2.get(address, params={"nonce": nonce.hex()}, timeout=60)
    answer.raise_for_status()
    return answer.content


def manifest_for(image: Path) -> Manifest:
    """One that lists the image's model, without which its worker does not start."""
    (model,) = json.loads((image / "configuration.json").read_bytes())["models"]
    return make_manifest(
        owners=[ALICE],
        models=[ModelEntry(name=model["name"], format="gguf", sha256=model["sha256"])],
        images=[IMAGE],
        serving=Serving(egress=(), receipts_keep_s=600, stream_bucket=256, body_bucket=1024),
    )


def start_disk(folder: Path, operator: Operator, manifest: SignedManifest) -> Path:
    disk = folder / "start.img"
    disk.write_bytes(Start(api_keys=operator.table, manifest=manifest.encode()).disk())
    return disk


def test_every_register_is_as_predicted_for_the_disk_of_a_deployment(
    image: Path, operator: Operator, tmp_path: Path
) -> None:
    cloud = built_for(image, tmp_path, "gcp-vtpm")
    google = SimulatedAkVendor(Vendor.GOOGLE_VTPM, now=NOW)
    signed = sign_first(manifest_for(cloud), ALICE)
    machine = replace(
        machine_for(image),
        esp=one_disk(cloud),
        disks=(),
        start_disk=start_disk(tmp_path, operator, signed),
    )
    nonce = secrets.token_bytes(32)
    with started(machine, provided(operator, tmp_path, google), operator) as guest:
        report = report_of(guest, machine, nonce)
    golden = golden_from_report(report, firmware="OVMF", machine="emulated")
    values = ReferenceValues.from_platforms(*machine_references(read_image(cloud), [golden]))
    result = verify_report(
        report,
        nonce=nonce,
        policy=policy.development(),
        reference_values=values,
        roots=google.roots.merged(Roots(intermediates=(google.intermediate,))),
        at=datetime.now(UTC),
    )
    result.require_affirming()
    registers = registers_of(report)
    assert registers[13] == manifest_register("gcp-vtpm", bytes.fromhex(signed.digest))
    # The ESP's own table, from which images for a TPM alone are predicted, is another.
    assert read_image(cloud).partition_table != read_image(image).partition_table


METADATA = """\
gateway = "10.0.2.2"
allow_out = [{ name = "metadata", address = "169.254.169.254", port = 80 }]
"""


@pytest.mark.parametrize("platform", ["gcp-snp", "gcp-tdx", "azure-snp", "azure-tdx", "nitro-tpm"])
def test_a_guest_elsewhere_than_it_was_built_for_ends_for_want_of_evidence(
    platform: str, image: Path, operator: Operator, tmp_path: Path
) -> None:
    """Its disks are opened and measured; a TPM that is not that provider's is not enough."""
    cloud = built_for(image, tmp_path, platform, METADATA if "azure" in platform else "")
    google = SimulatedAkVendor(Vendor.GOOGLE_VTPM, now=NOW)
    signed = sign_first(manifest_for(cloud), ALICE)
    machine = replace(
        machine_for(image),
        esp=one_disk(cloud),
        disks=(),
        start_disk=start_disk(tmp_path, operator, signed),
    )
    with started(machine, provided(operator, tmp_path, google), operator) as guest:
        console = until(guest, '"guest.failed"')
    for line in ("] application ", "] model ", "network rules", "start disk on", "] worker"):
        assert line in console, line
    assert '"code": "device.' in console
    assert "worker.ready" not in console
