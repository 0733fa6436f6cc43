"""The whole chain: an owner seals, a broker holds the key, an attested worker gets it and serves.

The client knows nothing but the owner's public key (and that this is a development platform).
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cloister.attester.enrolment import EnrolmentCa
from cloister.attester.launcher import launch
from cloister.attester.measure import reference_values
from cloister.attester.swtpm import manufacture
from cloister.cli.broker_options import BrokerOptions
from cloister.cli.measure import EngineOptions
from cloister.cli.model_options import ModelOptions
from cloister.cli.serve import embedded_plan
from cloister.client import connect
from cloister.client.manifest_memory import ProcessMemory
from cloister.endorsements.roots import Roots
from cloister.manifest import ImageEntry, SignedManifest
from cloister.worker.operation import Operation
from support.manifests import ALICE
from support.owners import MODEL, Broker, SealedDemo, broker_for, sealed_demo, signed_for
from support.sealed_weights import filling, sealed_file
from support.software_tpm import HAVE_SWTPM

pytestmark = [
    pytest.mark.tpm,
    pytest.mark.sandbox,
    pytest.mark.skipif(not HAVE_SWTPM, reason="swtpm is not installed"),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
    pytest.mark.timeout(240),
]


@dataclass(frozen=True, kw_only=True)
class Owned:
    """What the owner has, and the machine that workers are started on."""

    folder: Path
    demo: SealedDemo
    broker: Broker
    roots: Roots

    def plan(self, bundle: Path | None = None, digest: str | None = None) -> Any:
        return embedded_plan(
            self.folder / "state",
            Operation(broker=self.broker.url, manifest=bundle),
            models=ModelOptions(models=[f"{MODEL}={self.demo.path}"]),
            options=EngineOptions(
                parallel=1,
                context=256,
                manifest_sha256=digest,
                broker=BrokerOptions(
                    identity=str(self.broker.store.identity), development=True
                ).settings(),
            ),
        )


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owned]:
    folder = tmp_path_factory.mktemp("owned")
    demo = sealed_demo(folder / "demo.sealed")
    made = manufacture(folder / "state")
    ca = EnrolmentCa.open(
        folder / "state" / "enrolment", manufacturers=(made.root,), at=datetime.now(UTC)
    )
    roots = Roots(enrolment_cas=(ca.certificate,))
    with broker_for(demo, folder / "broker.db", roots) as broker:
        yield Owned(folder=folder, demo=demo, broker=broker, roots=roots)


def signed_by_alice(owned: Owned) -> SignedManifest:
    """What the owner signs, from files alone: the model, where its key is, the installation."""
    image = ImageEntry(
        name="installation",
        version="1",
        debug=False,
        reference_values=reference_values(owned.plan().subject),
    )
    return signed_for(owned.demo, image)


def test_from_the_owners_seal_to_the_clients_receipt(owned: Owned, tmp_path: Path) -> None:
    signed = signed_by_alice(owned)
    bundle = tmp_path / "bundle.json"
    bundle.write_bytes(signed.encode())
    with launch(owned.plan(bundle, signed.digest)) as worker:
        ready = worker.wait_ready(120)
        url = f"http://{ready['host']}:{ready['port']}"
        options: dict[str, Any] = {
            "development": True,
            "roots": owned.roots,
            "manifest_memory": ProcessMemory(),
        }
        with connect(url, signer=ALICE.owner, minimum_version=1, **options) as client:
            asked = {"model": MODEL, "messages": [{"role": "user", "content": "What is a TEE?"}]}
            answer = client.http.post("/v1/chat/completions", json={**asked, "max_tokens": 4})
            assert answer.status_code == 200, answer.text
            exchange = answer.extensions["cloister"]
            assert exchange.receipt_verified
            assert exchange.model == (MODEL, owned.demo.header.model_sha256)
            listed = client.http.get("/v1/models").json()["data"]
            assert owned.demo.header.model_sha256 in json.dumps(listed)
    assert owned.broker.events[-2:] == ["attested", "released"]
    logged = b"".join(owned.broker.store.audit_entries())
    assert owned.demo.key.hex().encode() not in logged


OPENER = """
import sys
from pathlib import Path
from cloister.attester.memory import make_memory
from cloister.weights.folder import FolderSink
from cloister.weights.opening import open_sealed
from cloister.weights.reader import SealedFile

folder, path, key = Path(sys.argv[1]), Path(sys.argv[2]), bytes.fromhex(sys.stdin.readline())
make_memory(folder, size=1 << 20, files=1, swaps=Path(sys.argv[3]))

def halfway(size):
    print("written", flush=True)
    sys.stdin.readline()

with SealedFile(path) as sealed, FolderSink(folder) as sink:
    open_sealed(sealed, key, sink, progress=halfway)
"""


def test_who_is_killed_while_opening_leaves_nothing(tmp_path: Path) -> None:
    sealed = sealed_file(tmp_path, 4096)
    shutil.rmtree(tmp_path / "one-source")
    canary = filling("one/model.gguf", 256)  # its first chunk
    (tmp_path / "swaps").write_text("Filename\n")
    folder = tmp_path / "memory"
    command = [sys.executable, "-c", OPENER, str(folder), str(sealed.path), f"{tmp_path}/swaps"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(sealed.key.hex().encode() + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"written\n"
        inside = Path(f"/proc/{process.pid}/root{folder}/model.gguf")
        assert inside.read_bytes() == canary
        process.send_signal(signal.SIGKILL)
    assert not inside.exists()
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in left) == ["one.sealed", "swaps"]
    assert not any(canary in path.read_bytes() for path in left)
