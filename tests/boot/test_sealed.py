"""The whole chain in a booted image: sealed weights, a broker, a client that knows the owner alone.

tests/integration/test_guest_sealed.py refuses more, without a machine.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloister.broker.store import Revoked
from cloister.cli.image_boot import predicted
from cloister.engine.demo_model import demo_model_path
from cloister.errors import EngineError
from cloister.image.machine import Carried, Machine
from cloister.manifest import ImageEntry, Serving, SignedManifest
from cloister.testing.signed_manifests import sign_update
from cloister.verifier.appraise.worker import manifest_register
from support.guests import GoodBoot, Operator, booted, changed
from support.manifests import ALICE
from support.owners import (
    MODEL,
    Broker,
    SealedDemo,
    ask_knowing_alice,
    broker_for,
    sealed_demo,
    signed_for,
)

pytestmark = [pytest.mark.boot, pytest.mark.tpm, pytest.mark.slow, pytest.mark.timeout(2400)]

PEER = "10.0.2.100:8450"
IMAGE = """
configuration = 1
name = "sealed-boot-test"
version = "1"

[[model]]
name = "demo"
file = "demo.sealed"

[engine]
context = 512
parallel = 2

[broker]
peer = "broker"
identity = "{identity}"
development = true

[network]
listen = [8440]
allow_out = [{{ name = "broker", address = "10.0.2.100", port = 8450 }}]
"""


@dataclass(frozen=True, kw_only=True)
class Owned:
    """Sealed weights, the image that holds them, the manifest that lists both, and the broker."""

    demo: SealedDemo
    image: Path
    machine: Machine
    signed: SignedManifest
    broker: Broker


def built(folder: Path, text: str) -> Path:
    """The image that this configuration, in `folder`, makes."""
    (folder / "image.toml").write_text(text)
    program = Path(sys.executable).with_name("cloister")
    command = (program, "image", "build", "image.toml", "--out", "image")
    subprocess.run(command, cwd=folder, check=True)
    return folder / "image"


@pytest.fixture(scope="module")
def owned(
    good: GoodBoot, operator: Operator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Owned]:
    """From files alone, but for PCR 0 and 1, which are those of the untouched image's boot."""
    folder = tmp_path_factory.mktemp("owner")
    demo = sealed_demo(folder / "demo.sealed")
    with broker_for(demo, folder / "broker.db", operator.roots) as broker:
        image = built(folder, IMAGE.format(identity=broker.store.identity))
        host, _, port = broker.authority.rpartition(":")
        peer = Carried(address="10.0.2.100", port=8450, host=host, host_port=int(port))
        disks = tuple(image / disk.name for disk in good.machine.disks)
        machine = changed(
            good.machine, {"esp": image / "esp.img", "disks": disks, "peers": (peer,)}
        )
        values = predicted(image, good.boot_log, machine)
        (found,) = values.images
        listed = ImageEntry(
            name=found.name, version=found.version, debug=False, reference_values=values
        )
        serving = Serving(egress=(PEER,), receipts_keep_s=600, stream_bucket=256, body_bucket=1024)
        signed = signed_for(demo, listed, serving)
        yield Owned(demo=demo, image=image, machine=machine, signed=signed, broker=broker)


@pytest.fixture(scope="module")
def unaltered(owned: Owned, operator: Operator) -> str:
    """The chain, and the twin of every refusal: the console's text of a boot that served."""
    with booted(owned.machine, operator, manifest=owned.signed.encode()) as guest:
        assert guest.ready["models"] == [MODEL]
        digest = bytes.fromhex(owned.signed.digest)
        assert guest.registers()[13] == manifest_register("tpm", digest)
        exchange = ask_knowing_alice(guest.url, operator.api_key, operator.roots, timeout=300)
        console = guest.booted.console()
    assert exchange.receipt_verified
    assert exchange.model == (MODEL, owned.demo.header.model_sha256)
    assert owned.broker.events[-2:] == ["attested", "released"]
    return console


def test_from_the_owners_seal_to_the_clients_receipt(unaltered: str, owned: Owned) -> None:
    assert unaltered.index("broker.checked") < unaltered.index("weights.opened")
    disk = (owned.image / "model.img").read_bytes()
    sealed, plain = owned.demo.path.read_bytes(), demo_model_path().read_bytes()
    for at in range(len(sealed) // 2, len(sealed) // 2 + (1 << 20), 4096):
        assert sealed[at : at + 64] in disk
        assert plain[at : at + 64] not in disk
    secret = owned.demo.key
    assert secret.hex() not in unaltered
    assert secret.hex().encode() not in b"".join(owned.broker.store.audit_entries())
    assert not any(secret in path.read_bytes() for path in owned.image.iterdir())


@pytest.fixture
def another_broker(owned: Owned, operator: Operator, tmp_path: Path) -> Iterator[Broker]:
    """One that accepted no manifest yet: of two first versions a broker accepts one."""
    with broker_for(owned.demo, tmp_path / "broker.db", operator.roots) as broker:
        yield broker


def test_a_guest_without_a_network_card(
    owned: Owned, another_broker: Broker, good: GoodBoot, operator: Operator, tmp_path: Path
) -> None:
    """Both ways through ports of the machine; a forwarder carries what the broker is asked."""
    broker = another_broker
    text = IMAGE.format(identity=broker.store.identity).replace('peer = "broker"\n', "")
    text = text[: text.index("[network]")] + "[network]\ncard = false\n"
    (tmp_path / "demo.sealed").symlink_to(owned.demo.path)
    image = built(tmp_path, text)
    disks = tuple(image / disk.name for disk in good.machine.disks)
    machine = changed(good.machine, {"esp": image / "esp.img", "disks": disks})
    machine = dataclasses.replace(machine, port=None)
    values = predicted(image, good.boot_log, machine)
    (of_image,) = values.images
    listed = ImageEntry(
        name=of_image.name, version=of_image.version, debug=False, reference_values=values
    )
    way = "virtio:/dev/virtio-ports/cloister.broker"
    serving = Serving(egress=(way,), receipts_keep_s=600, stream_bucket=256, body_bucket=1024)
    signed = signed_for(owned.demo, listed, serving)
    with booted(machine, operator, manifest=signed.encode(), broker=broker.authority) as guest:
        assert "network: none" in guest.booted.console()
        address = f"virtio:{guest.booted.sockets.requests}"
        exchange = ask_knowing_alice(address, operator.api_key, operator.roots, timeout=300)
    assert exchange.receipt_verified
    assert exchange.model == (MODEL, owned.demo.header.model_sha256)
    assert broker.events[-2:] == ["attested", "released"]


def test_a_revoked_manifest_gets_no_key(unaltered: str, owned: Owned, operator: Operator) -> None:
    """The next version, which is as good as the first but for that."""
    assert unaltered
    signed = sign_update(owned.signed, ALICE)
    owned.broker.store.revoke(Revoked.MANIFEST, f"sha256:{signed.digest}", reason="a test")
    with (
        pytest.raises(EngineError) as caught,
        booted(changed(owned.machine, {}), operator, manifest=signed.encode()),
    ):
        pass
    assert caught.value.code == "guest.ended"
    assert "key_release.revoked" in str(caught.value)
    assert owned.broker.denied() == ("key_release.revoked", "manifest.revoked")
