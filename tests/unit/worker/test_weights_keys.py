"""Where a worker asks for keys: the manifest decides, for one sealed file and no other."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from cloister.channel.key_release import Released
from cloister.channel.resource_uri import ResourceUri
from cloister.errors import ConfigurationError
from cloister.manifest import ModelEntry, SealedWeights
from cloister.testing.signed_manifests import make_manifest, sign_first
from cloister.worker.releases import KeyReleases
from cloister.worker.weights import SealedModel, info_of
from cloister.worker.weights_keys import weights_keys
from support.manifests import ALICE
from support.sealed_weights import sealed_file

KEY = "kbs:///acme/weights/one"


class Releases:
    """A broker that gives a secret to anybody, and remembers for what it was asked."""

    def __init__(self) -> None:
        self.asked: list[ResourceUri] = []

    def release(self, uri: ResourceUri) -> Released:
        self.asked.append(uri)
        return Released(secret=b"s" * 32, version=1)


@pytest.fixture
def model(tmp_path: Path) -> SealedModel:
    sealed = sealed_file(tmp_path, 10)
    path = tmp_path / "memory" / "model.gguf"
    return SealedModel(
        source=sealed.path,
        header=sealed.header,
        folder=path.parent,
        info=info_of(sealed.header, path, name="one"),
    )


def bundle(model: SealedModel, sealed: SealedWeights | None, name: str = "one") -> bytes:
    entry = ModelEntry(name=name, format="gguf", sha256=model.header.model_sha256, sealed=sealed)
    return sign_first(make_manifest(owners=[ALICE], models=[entry]), ALICE).encode()


def ask(model: SealedModel, manifest: bytes | None, file: Path | None = None) -> list[str]:
    """Which secrets the broker was asked for."""
    releases = Releases()
    keys = weights_keys(file, cast(KeyReleases, releases), manifest)
    assert len(keys.key(model)) == 32
    return [str(uri) for uri in releases.asked]


def test_the_manifest_says_where_the_key_is(model: SealedModel) -> None:
    named = SealedWeights(key=KEY, header_sha256=model.header.sha256)
    assert ask(model, bundle(model, named)) == [KEY]


def test_other_sealed_weights_of_the_same_model_get_no_key(
    model: SealedModel, tmp_path: Path
) -> None:
    other = bundle(model, SealedWeights(key=KEY, header_sha256="0" * 64))
    file = tmp_path / "key"
    file.touch(0o600)
    file.write_bytes(b"k" * 32)
    for place in (None, file):
        with pytest.raises(ConfigurationError) as refused:
            ask(model, other, place)
        assert refused.value.code == "weights.manifest"
    assert ask(model, bundle(model, None), file) == []


def test_a_broker_without_a_manifest_that_names_the_key_is_not_asked(model: SealedModel) -> None:
    named = SealedWeights(key=KEY, header_sha256=model.header.sha256)
    for manifest in (None, bundle(model, None), bundle(model, named, name="two")):
        with pytest.raises(ConfigurationError) as refused:
            ask(model, manifest)
        assert refused.value.code == "weights.key_file"


def test_a_worker_with_neither_broker_nor_file_is_told(model: SealedModel) -> None:
    with pytest.raises(ConfigurationError) as refused:
        weights_keys(None, None, None).key(model)
    assert refused.value.code == "weights.key_file"
