"""A real worker under a manifest, and a client that knows only who signed it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cloister.attester.launcher import LaunchedWorker, launch
from cloister.attester.measure import reference_values
from cloister.cli.main import main
from cloister.cli.measure import EngineOptions
from cloister.cli.model_options import ModelOptions
from cloister.cli.serve import embedded_plan
from cloister.client import connect
from cloister.client.manifest_memory import ProcessMemory
from cloister.errors import AuthenticationError
from cloister.manifest import EngineEntry, ImageEntry, ModelEntry, Serving, SignedManifest
from cloister.testing.signed_manifests import make_manifest, sign_first
from cloister.verifier.policy import development
from cloister.worker.operation import Operation
from support.manifests import ALICE, MALLORY
from support.software_tpm import HAVE_SWTPM

pytestmark = [
    pytest.mark.tpm,
    pytest.mark.sandbox,
    pytest.mark.skipif(not HAVE_SWTPM, reason="swtpm is not installed"),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
    pytest.mark.timeout(240),
]


MODEL = "cloister-demo"


def planned(folder: Path, signed: SignedManifest | None, bundle: Path | None = None) -> Any:
    return embedded_plan(
        folder / "state",
        Operation(manifest=bundle),
        models=ModelOptions(models=["demo"]),
        options=EngineOptions(
            parallel=1, context=256, manifest_sha256=None if signed is None else signed.digest
        ),
    )


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> SignedManifest:
    """What an owner signs, from files alone, before any worker runs."""
    subject = planned(tmp_path_factory.mktemp("ahead"), None).subject
    (engine,) = subject.configuration["engines"]
    library, model = engine["library"], engine["model"]
    manifest = make_manifest(
        owners=[ALICE],
        models=[ModelEntry(name=model["name"], format="gguf", sha256=model["sha256"])],
        engines=(EngineEntry(name=engine["engine"], version=library["version"]),),
        images=[
            ImageEntry(
                name="installation",
                version="1",
                debug=False,
                reference_values=reference_values(subject),
            )
        ],
        serving=Serving(egress=(), receipts_keep_s=600, stream_bucket=256, body_bucket=1024),
    )
    return sign_first(manifest, ALICE)


@contextmanager
def running(folder: Path, signed: SignedManifest) -> Iterator[LaunchedWorker]:
    bundle = folder / "bundle.json"
    bundle.write_bytes(signed.encode())
    with launch(planned(folder, signed, bundle)) as worker:
        yield worker


def test_who_knows_only_the_signer_talks_to_the_worker(
    signed: SignedManifest, tmp_path: Path
) -> None:
    with running(tmp_path, signed) as worker:
        ready = worker.wait_ready(120)
        url = f"http://{ready['host']}:{ready['port']}"
        roots = worker.client_kit(development()).roots
        options: dict[str, Any] = {
            "development": True,
            "roots": roots,
            "manifest_memory": ProcessMemory(),
        }
        with connect(url, signer=ALICE.owner, minimum_version=1, **options) as client:
            answer = client.http.post(
                "/v1/chat/completions",
                json={
                    "model": MODEL,
                    "messages": [{"role": "user", "content": "What is a TEE?"}],
                    "max_tokens": 4,
                },
            )
            assert answer.status_code == 200, answer.text
            exchange = answer.extensions["cloister"]
            assert exchange.receipt_verified
            assert exchange.model == (MODEL, signed.manifest.models[0].sha256)
            assert client.link.attestation.result is not None
            standing = client.link.attestation.result.claims
            assert any("alice (ed25519" in claim.explanation for claim in standing)
        with pytest.raises(AuthenticationError) as refused:
            connect(url, signer=MALLORY.owner, **options)
        assert refused.value.code == "manifest.signer"


def test_the_command_says_at_once_what_is_not_listed(
    signed: SignedManifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle.json"
    other = sign_first(make_manifest(owners=[ALICE], images=signed.manifest.images), ALICE)
    bundle.write_bytes(other.encode())
    with pytest.raises(SystemExit) as left:
        main(["serve", "--manifest", str(bundle), "--state", str(tmp_path / "state"), "--prepare"])
    assert left.value.code == 2
    assert f"does not list {MODEL}" in capsys.readouterr().err
