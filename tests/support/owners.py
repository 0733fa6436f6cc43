"""What the owner of a secret model has: sealed weights, and a broker on loopback with their key."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloister.broker.database import Database
from cloister.broker.policy import ManifestTerms, ResourcePolicy
from cloister.broker.root_keys.development import MemoryRootKey
from cloister.broker.serve import Listening, Service, serve
from cloister.broker.store import Store
from cloister.channel.resource_uri import ResourceUri
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
from cloister.worker.weights import describe
from support.manifests import ALICE

MODEL = "demo"
URI = ResourceUri(repository="acme", type="weights", tag="demo")


@dataclass(frozen=True, kw_only=True)
class SealedDemo:
    """The demonstration model, sealed."""

    path: Path
    header: Header
    key: bytes = field(repr=False)

    @property
    def entry(self) -> ModelEntry:
        """What the owner says of it in a manifest."""
        return ModelEntry(
            name=MODEL,
            format="gguf",
            sha256=self.header.model_sha256,
            sealed=SealedWeights(key=str(URI), header_sha256=self.header.sha256),
        )


def sealed_demo(path: Path) -> SealedDemo:
    """Seal it at `path`."""
    source, keys = demo_model_path(), list[bytes]()
    header = seal(
        {source.name: source},
        path,
        kind=Kind.GGUF,
        about=describe(Kind.GGUF, source.parent, [source.name]),
        keep_key=keys.append,
    )
    return SealedDemo(path=path, header=header, key=keys[0])


def signed_for(
    demo: SealedDemo, image: ImageEntry, serving: Serving | None = None
) -> SignedManifest:
    """The manifest that lists this model and this image, signed by Alice."""
    manifest = make_manifest(
        owners=[ALICE],
        models=[demo.entry],
        images=[image],
        serving=Serving(egress=UNCHECKED) if serving is None else serving,
    )
    return sign_first(manifest, ALICE)


@dataclass(frozen=True, kw_only=True)
class Broker:
    """A broker that holds the key, and releases it under manifests that Alice signed."""

    store: Store
    url: str

    @property
    def authority(self) -> str:
        """``HOST:PORT``."""
        return self.url.removeprefix("http://")

    @property
    def log(self) -> list[dict[str, Any]]:
        """The audit log."""
        return [json.loads(entry) for entry in self.store.audit_entries()]

    def denied(self) -> tuple[str, str]:
        """Code and cause of the last entry, which is a denial."""
        last = self.log[-1]
        assert last["event"] == "denied"
        return last["detail"]["code"], last["detail"]["because"]

    @property
    def events(self) -> list[str]:
        return [entry["event"] for entry in self.log]


@contextmanager
def broker_for(demo: SealedDemo, database: Path, roots: Roots) -> Iterator[Broker]:
    """Make a broker's store at `database`, and serve it."""
    opened = Database.open(f"sqlite:///{database}")
    try:
        store = Store.create(opened, MemoryRootKey(b"r" * 32), now=time.time)
        store.put(URI, demo.key)
        store.set_policy(
            URI,
            ResourcePolicy(
                appraisal=policies.development(),
                manifest=ManifestTerms(pin=SignerPin(signers=(ALICE.owner,), minimum_version=1)),
                reference_values=None,
                models=(demo.header.model_sha256,),
            ),
        )
        with served(store, roots) as url:
            yield Broker(store=store, url=url)
    finally:
        opened.close()


@contextmanager
def served(store: Store, roots: Roots) -> Iterator[str]:
    """Serve a broker in a thread; the value is its address."""
    ready, stopping = threading.Event(), threading.Event()
    found: list[Listening] = []

    async def run() -> None:
        stop = asyncio.Event()
        waiting = asyncio.get_running_loop().run_in_executor(None, stopping.wait)
        waiting.add_done_callback(lambda _: stop.set())
        service = Service(host="127.0.0.1", port=0, roots=roots)
        await serve(
            store, service, log=EventLog(io.StringIO()), stop=stop, ready=_told(found, ready)
        )
        await waiting

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(60)
        yield f"http://127.0.0.1:{found[0].port}"
    finally:
        stopping.set()
        thread.join()


def _told(found: list[Listening], ready: threading.Event) -> Callable[[Listening], None]:
    def listening(where: Listening) -> None:
        found.append(where)
        ready.set()

    return listening


def ask_knowing_alice(
    url: str, api_key: str, roots: Roots, *, timeout: float = 60, model: str = MODEL
) -> Any:
    """What a client makes of one answer that knows Alice's public key, and of images nothing."""
    options: dict[str, Any] = {
        "development": True,
        "roots": roots,
        "manifest_memory": ProcessMemory(),
        "trust_env": False,
    }
    with connect(url, signer=ALICE.owner, minimum_version=1, **options) as client:
        answer = client.http.post(
            "/v1/chat/completions",
            headers={"authorization": f"Bearer {api_key}"},
            json={
                "model": model,
                "messages": [{"role": "user", "content": "What is a TEE?"}],
                "max_tokens": 4,
            },
            timeout=timeout,
        )
        assert answer.status_code == 200, answer.text
        listed = client.http.get("/v1/models", headers={"authorization": f"Bearer {api_key}"})
    exchange = answer.extensions["cloister"]
    assert exchange.model[1] in listed.text
    return exchange
