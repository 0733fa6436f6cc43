"""The whole chain: an owner seals, a broker holds the key, an attested worker gets it and serves.

The client knows nothing but the owner's public key (and that this is a development platform).
"""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cloister.attester.enrolment import EnrolmentCa
from cloister.attester.launcher import launch
from cloister.attester.measure import reference_values
from cloister.attester.swtpm import manufacture
from cloister.broker.database import Database
from cloister.broker.policy import ManifestTerms, ResourcePolicy
from cloister.broker.root_keys.development import MemoryRootKey
from cloister.broker.serve import Listening, Service, serve
from cloister.broker.store import Store
from cloister.channel.resource_uri import ResourceUri
from cloister.cli.broker_options import BrokerOptions
from cloister.cli.measure import EngineOptions
from cloister.cli.model_options import ModelOptions
from cloister.cli.serve import embedded_plan
from cloister.client import connect
from cloister.client.manifest_memory import ProcessMemory
from cloister.endorsements.roots import Roots
from cloister.engine.demo_model import demo_model_path
from cloister.manifest import (
    ImageEntry,
    ModelEntry,
    SealedWeights,
    Serving,
    SignedManifest,
    SignerPin,
)
from cloister.testing.signed_manifests import make_manifest, sign_first
from cloister.verifier import policy as policies
from cloister.verifier.policy import UNCHECKED
from cloister.weights.header import Header, Kind
from cloister.weights.seal import seal
from cloister.worker.logs import EventLog
from cloister.worker.operation import Operation
from cloister.worker.weights import describe
from support.manifests import ALICE
from support.sealed_weights import filling, sealed_file
from support.software_tpm import HAVE_SWTPM

pytestmark = [
    pytest.mark.tpm,
    pytest.mark.sandbox,
    pytest.mark.skipif(not HAVE_SWTPM, reason="swtpm is not installed"),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
    pytest.mark.timeout(240),
]

MODEL = "demo"
URI = ResourceUri(repository="acme", type="weights", tag="demo")


@dataclass(kw_only=True)
class Owned:
    """What the owner has: sealed weights, their key, a broker that holds it, its address."""

    folder: Path
    header: Header
    store: Store
    roots: Roots
    address: str = ""
    key: bytes = b""

    def plan(self, bundle: Path | None = None, digest: str | None = None) -> Any:
        return embedded_plan(
            self.folder / "state",
            Operation(broker=self.address, manifest=bundle),
            models=ModelOptions(models=[f"{MODEL}={self.folder / 'demo.sealed'}"]),
            options=EngineOptions(
                parallel=1,
                context=256,
                manifest_sha256=digest,
                broker=BrokerOptions(
                    identity=str(self.store.identity), development=True
                ).settings(),
            ),
        )

    def events(self) -> list[str]:
        return [json.loads(entry)["event"] for entry in self.store.audit_entries()]


@contextmanager
def broker_of(store: Store, roots: Roots) -> Iterator[str]:
    """Serve a broker in a thread; the value is its address."""
    ready, stopping = threading.Event(), threading.Event()
    found: list[Listening] = []

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def listening(where: Listening) -> None:
            found.append(where)
            ready.set()

        waiting = loop.run_in_executor(None, stopping.wait)
        waiting.add_done_callback(lambda _: stop.set())
        service = Service(host="127.0.0.1", port=0, roots=roots)
        await serve(store, service, log=EventLog(io.StringIO()), stop=stop, ready=listening)
        await waiting

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(60)
        yield f"http://127.0.0.1:{found[0].port}"
    finally:
        stopping.set()
        thread.join()


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owned]:
    folder = tmp_path_factory.mktemp("owned")
    source, keys = demo_model_path(), list[bytes]()
    header = seal(
        {source.name: source},
        folder / "demo.sealed",
        kind=Kind.GGUF,
        about=describe(Kind.GGUF, source.parent, [source.name]),
        keep_key=keys.append,
    )
    at = datetime.now(UTC)
    made = manufacture(folder / "state")
    ca = EnrolmentCa.open(folder / "state" / "enrolment", manufacturers=(made.root,), at=at)
    roots = Roots(enrolment_cas=(ca.certificate,))
    database = Database.open(f"sqlite:///{folder / 'broker.db'}")
    try:
        store = Store.create(database, MemoryRootKey(b"r" * 32), now=time.time)
        store.put(URI, keys[0])
        terms = ManifestTerms(pin=SignerPin(signers=(ALICE.owner,), minimum_version=1))
        policy = ResourcePolicy(
            appraisal=policies.development(),
            manifest=terms,
            reference_values=None,
            models=(header.model_sha256,),
        )
        store.set_policy(URI, policy)
        with broker_of(store, roots) as address:
            yield Owned(
                folder=folder,
                header=header,
                store=store,
                roots=roots,
                address=address,
                key=keys[0],
            )
    finally:
        database.close()


def signed_for(owned: Owned) -> SignedManifest:
    """What the owner signs, from files alone: the model, where its key is, the installation."""
    entry = ModelEntry(
        name=MODEL,
        format="gguf",
        sha256=owned.header.model_sha256,
        sealed=SealedWeights(key=str(URI), header_sha256=owned.header.sha256),
    )
    image = ImageEntry(
        name="installation",
        version="1",
        debug=False,
        reference_values=reference_values(owned.plan().subject),
    )
    serving = Serving(egress=UNCHECKED)
    manifest = make_manifest(owners=[ALICE], models=[entry], images=[image], serving=serving)
    return sign_first(manifest, ALICE)


def test_from_the_owners_seal_to_the_clients_receipt(owned: Owned, tmp_path: Path) -> None:
    signed = signed_for(owned)
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
            assert exchange.model == (MODEL, owned.header.model_sha256)
            listed = client.http.get("/v1/models").json()["data"]
            assert owned.header.model_sha256 in json.dumps(listed)
    assert owned.events()[-2:] == ["attested", "released"]
    logged = b"".join(owned.store.audit_entries())
    assert owned.key.hex().encode() not in logged


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
