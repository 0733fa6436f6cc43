"""A worker starts under a manifest only as one that the manifest lists, and shows it."""

from __future__ import annotations

import dataclasses
import io
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cloister.channel.claims import ClaimsDocument, ModelClaim
from cloister.errors import ConfigurationError, MalformedError
from cloister.evidence.report import (
    ITEM_MANIFEST,
    MEDIA_TYPE_MANIFEST,
    parse_attestation_report,
)
from cloister.manifest import EngineEntry, ModelEntry, SignedManifest, load_bundle
from cloister.manifest.dsse import Envelope
from cloister.strictjson import JsonObject
from cloister.testing.fake_engine import FakeEngine
from cloister.testing.signed_manifests import make_manifest, sign_first, sign_update
from cloister.worker.app import build_worker
from cloister.worker.configuration import (
    claims_described,
    claims_of,
    effective_configuration,
    settings_of,
)
from cloister.worker.logs import EventLog
from cloister.worker.manifest import manifest_to_serve
from cloister.worker.operation import Operation
from cloister.worker.settings import Separation, WorkerSettings
from support.asgi import call
from support.manifests import ALICE, AT, BOB, ISSUED
from support.worker import FakeEvidence

MODEL = ModelEntry(name="fake", format="gguf", sha256="0" * 64)


def signed(**fields: Any) -> SignedManifest:
    options: dict[str, Any] = {"owners": [ALICE], "models": [MODEL], "at": ISSUED, **fields}
    return sign_first(make_manifest(**options), ALICE)


SIGNED = signed()


def described(under: SignedManifest | None) -> JsonObject:
    settings = WorkerSettings(
        manifest_sha256=None if under is None else under.digest,
        separation=Separation.of_one_process(),
    )
    return effective_configuration([FakeEngine()], settings)


def claims(under: SignedManifest | None = SIGNED) -> ClaimsDocument:
    return dataclasses.replace(
        claims_of(described(under), [FakeEngine()]),
        models=(ModelClaim(name="fake", sha256="0" * 64),),
    )


def written(tmp_path: Path, bundle: SignedManifest) -> Path:
    path = tmp_path / "bundle.json"
    path.write_bytes(bundle.encode())
    return path


def refused(match: str, *given: Any, **named: Any) -> None:
    with pytest.raises(ConfigurationError, match=match) as found:
        manifest_to_serve(*given, **named)
    assert found.value.code == "configuration.manifest"


def test_the_configuration_and_the_claims_name_it() -> None:
    configuration = described(SIGNED)
    assert configuration["manifest_sha256"] == SIGNED.digest
    assert settings_of(configuration).manifest_sha256 == SIGNED.digest
    assert claims_of(configuration, [FakeEngine()]).manifest_sha256 == SIGNED.digest
    assert claims_described(configuration).manifest_sha256 == SIGNED.digest
    assert "manifest_sha256" not in described(None)
    assert claims(None).manifest_sha256 is None


def test_a_worker_shows_the_bundle_it_runs_under(tmp_path: Path) -> None:
    shown = manifest_to_serve(written(tmp_path, SIGNED), claims(), at=AT)
    assert shown is not None
    assert load_bundle(shown).digest == SIGNED.digest
    assert manifest_to_serve(None, claims(None), at=AT) is None


def test_a_manifest_is_measured_and_shown_or_neither(tmp_path: Path) -> None:
    path = written(tmp_path, SIGNED)
    manifest_to_serve(path, claims(), at=AT)
    refused("both", None, claims(), at=AT)
    refused("both", path, claims(None), at=AT)


def test_another_bundle_than_the_measured_one(tmp_path: Path) -> None:
    other = sign_update(SIGNED, ALICE)
    manifest_to_serve(written(tmp_path, SIGNED), claims(), at=AT)
    refused("another one", written(tmp_path, other), claims(), at=AT)


@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_a_bundle_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bundle.json"
    if content is not None:
        path.write_bytes(content)
    refused("bundle", path, claims(), at=AT)


def test_no_worker_starts_under_what_its_owners_did_not_sign(tmp_path: Path) -> None:
    both = signed(owners=[ALICE, BOB], threshold=2)
    refused("signed by 1", written(tmp_path, both), claims(both), at=AT)


def test_no_worker_starts_under_what_is_not_in_force(tmp_path: Path) -> None:
    path = written(tmp_path, SIGNED)
    manifest_to_serve(path, claims(), at=AT)
    refused("expired", path, claims(), at=ISSUED + timedelta(days=91))


def test_no_worker_starts_with_a_model_that_is_not_listed(tmp_path: Path) -> None:
    manifest_to_serve(written(tmp_path, SIGNED), claims(), at=AT)
    for listed in (
        [],
        [dataclasses.replace(MODEL, sha256="1" * 64)],
        [dataclasses.replace(MODEL, name="other")],
    ):
        other = signed(models=listed)
        refused("does not list fake", written(tmp_path, other), claims(other), at=AT)


def test_no_worker_starts_with_an_engine_that_is_not_listed(tmp_path: Path) -> None:
    other = signed(engines=(EngineEntry(name="llama.cpp", version="1"),))
    refused("does not list the engine", written(tmp_path, other), claims(other), at=AT)


def test_what_is_shown_is_as_much_of_the_newest_as_fits(tmp_path: Path) -> None:
    chain = SIGNED
    for _ in range(4):
        chain = sign_update(chain, ALICE)
    size = len(chain.encode())
    assert chain.tail(size).links == chain.links
    shorter = chain.tail(size - 1)
    assert shorter.links == chain.links[1:]
    assert load_bundle(shorter.encode()).digest == chain.digest


def test_what_fits_is_found_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trying each length anew took tens of seconds for a bundle of a thousand versions."""
    chain = SIGNED
    for _ in range(7):
        chain = sign_update(chain, ALICE)
    encode = Envelope.to_json
    calls: list[Envelope] = []

    def counted(envelope: Envelope) -> JsonObject:
        calls.append(envelope)
        return encode(envelope)

    for kept in range(1, 9):
        tail = dataclasses.replace(chain, links=chain.links[-kept:])
        limit = len(tail.encode())
        with monkeypatch.context() as patched:
            patched.setattr(Envelope, "to_json", counted)
            assert chain.tail(limit).links == tail.links
        assert len(calls) <= len(chain.links)
        calls.clear()
    with pytest.raises(MalformedError):
        chain.tail(len(dataclasses.replace(chain, links=chain.links[-1:]).encode()) - 1)


def test_the_operators_part_carries_the_path(tmp_path: Path) -> None:
    operation = Operation(manifest=tmp_path / "bundle.json")
    assert Operation.from_json(operation.to_json()) == operation


async def test_the_report_holds_it() -> None:
    worker = build_worker(
        engines=[FakeEngine()],
        source=FakeEvidence(),
        claims=claims(),
        manifest=SIGNED.encode(),
        log=EventLog(io.StringIO()),
        settings=WorkerSettings(separation=Separation.of_one_process()),
        open_when_empty=True,
    )
    answer = await call(worker, "GET", "/v1/aci/attestation")
    item = parse_attestation_report(answer.body).evidence[ITEM_MANIFEST]
    assert item.media_type == MEDIA_TYPE_MANIFEST
    assert load_bundle(item.data).digest == SIGNED.digest
