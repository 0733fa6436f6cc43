"""API keys and a manifest on a disk: a guest whom nobody starts through its port.

The port is there for the certificate of the guest's key alone, which in a cloud the provider gives.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.attester.start_disk import Start
from cloister.manifest import ImageEntry, ModelEntry, Serving
from cloister.testing.signed_manifests import make_manifest, sign_first
from cloister.verifier.appraise.worker import manifest_register
from support.guests import GoodBoot, Operator, booted, changed
from support.manifests import ALICE
from support.owners import ask_knowing_alice

pytestmark = [pytest.mark.boot, pytest.mark.tpm, pytest.mark.slow, pytest.mark.timeout(2400)]


def test_a_guest_started_by_a_disk(
    good: GoodBoot, operator: Operator, image: Path, tmp_path: Path
) -> None:
    """A client that knows the manifest's owner alone asks with a key whose hash the disk holds."""
    (model,) = json.loads((image / "configuration.json").read_bytes())["models"]
    (built,) = good.values.images
    manifest = make_manifest(
        owners=[ALICE],
        models=[ModelEntry(name=model["name"], format="gguf", sha256=model["sha256"])],
        images=[
            ImageEntry(
                name=built.name, version=built.version, debug=False, reference_values=good.values
            )
        ],
        serving=Serving(egress=(), receipts_keep_s=600, stream_bucket=256, body_bucket=1024),
    )
    signed = sign_first(manifest, ALICE)
    disk = tmp_path / "start.img"
    disk.write_bytes(Start(api_keys=operator.table, manifest=signed.encode()).disk())
    with booted(changed(good.machine, {"start_disk": disk}), operator) as guest:
        registers = guest.registers()
        exchange = ask_knowing_alice(
            guest.url, operator.api_key, operator.roots, timeout=300, model=model["name"]
        )
        console = guest.booted.console()
    assert exchange.receipt_verified
    assert "] start disk on /dev/" in console
    assert operator.api_key not in console
    assert registers[13] == manifest_register("tpm", bytes.fromhex(signed.digest))
    moved = [pcr for pcr, value in good.registers.items() if registers[pcr] != value]
    assert moved == [13]
