"""Sealed weights in the worker: what is measured is what is opened, or nothing is."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cloister.attester.handover import MeasuredFile
from cloister.engine.models import describe_model
from cloister.engine.protocol import ModelInfo
from cloister.errors import (
    AuthenticationError,
    ConfigurationError,
    KeyReleaseDenied,
    MalformedError,
)
from cloister.model_digest import Role
from cloister.weights.header import About, Kind
from cloister.weights.seal import seal
from cloister.worker.weights import (
    SealedModel,
    describe,
    open_weights,
    sealed_model,
    sealed_models,
)
from cloister.worker.weights_keys import weights_keys
from support.tiny_gguf import write_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


class Place:
    """Sealed weights, their key, and a folder to open them in."""

    def __init__(self, folder: Path, source: Path, about: About | None = None) -> None:
        self.memory = folder / "memory"
        self.memory.mkdir()
        self.path = folder / "tiny.sealed"
        self.key_file = folder / "key"
        self.key_file.touch(0o600)
        self.header = seal(
            {source.name: source},
            self.path,
            kind=Kind.GGUF,
            about=about or describe(Kind.GGUF, source.parent, [source.name]),
            keep_key=self._keep,
        )
        self.closed: list[Path] = []

    def _keep(self, key: bytes) -> None:
        self.key_file.write_bytes(key)

    @property
    def measured(self) -> MeasuredFile:
        return MeasuredFile(
            name="tiny", path=self.path, sha256=self.header.model_sha256, sealed=True
        )

    @property
    def model(self) -> SealedModel:
        return sealed_model("tiny", self.measured, self.memory)

    async def open(self, keys: object = None) -> None:
        await open_weights(
            [self.model],
            keys or weights_keys(self.key_file, None, None),  # type: ignore[arg-type]  # a stand-in
            self.memory,
            close=self.closed.append,
        )

    @property
    def empty(self) -> bool:
        return not [path for path in self.memory.rglob("*") if path.is_file()]


@pytest.fixture
def place(tmp_path: Path, tiny: Path) -> Place:
    return Place(tmp_path, tiny)


def plain(model: ModelInfo) -> ModelInfo:
    """Without what only sealed weights have."""
    return replace(model, sealed=None, path=None, files={})


async def test_what_is_opened_is_what_was_measured(place: Place, tiny: Path) -> None:
    model = place.model
    assert model.info.sealed == place.header.sha256
    assert plain(model.info) == plain(describe_model(tiny, name="tiny"))
    await place.open()
    assert place.closed == [place.memory]
    assert model.info.path is not None
    assert model.info.path.read_bytes() == tiny.read_bytes()
    assert model.info.files[Role.MODEL].proven


def test_another_sealed_file_in_its_place_is_refused(
    place: Place, tmp_path: Path, tiny: Path
) -> None:
    assert place.model.header == place.header
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny.read_bytes() + b"\0")
    (tmp_path / "swapped").mkdir()
    swapped = Place(tmp_path / "swapped", other)
    place.path.write_bytes(swapped.path.read_bytes())
    with pytest.raises(ConfigurationError) as refused:
        _ = place.model
    assert refused.value.code == "configuration.model_digest"


async def test_the_same_model_sealed_again_is_other_weights(
    place: Place, tmp_path: Path, tiny: Path
) -> None:
    """Between its header was read and it was opened."""
    model = place.model
    (tmp_path / "again").mkdir()
    again = Place(tmp_path / "again", tiny)
    place.path.write_bytes(again.path.read_bytes())
    for keys in (place.key_file, again.key_file):
        with pytest.raises(AuthenticationError) as refused:
            await open_weights(
                [model], weights_keys(keys, None, None), place.memory, close=place.closed.append
            )
        assert refused.value.code == "weights.header"
        model.folder.rmdir()
    assert place.closed == []


async def test_altered_weights_leave_nothing_and_are_not_closed(place: Place) -> None:
    data = bytearray(place.path.read_bytes())
    data[-1] ^= 1
    place.path.write_bytes(data)
    with pytest.raises(AuthenticationError):
        await place.open()
    assert place.empty
    assert place.closed == []


@pytest.mark.parametrize(
    "change",
    [
        lambda about: replace(about, context_length=about.context_length + 1),
        lambda about: replace(about, cache_bytes=about.cache_bytes + 1),
        lambda about: replace(about, quantisation="Q8_1"),
        lambda about: replace(about, template_words=frozenset({"other"})),
    ],
)
async def test_a_header_that_lies_about_its_model_is_refused(
    tmp_path: Path, tiny: Path, change: Callable[[About], About]
) -> None:
    """It would have the engine's measured settings follow from what the model is not."""
    lying = Place(tmp_path, tiny, change(describe(Kind.GGUF, tiny.parent, [tiny.name])))
    with pytest.raises(AuthenticationError) as refused:
        await lying.open()
    assert refused.value.code == "weights.about"
    assert lying.empty
    assert lying.closed == []


async def test_what_was_sealed_and_is_no_model_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "x.gguf"
    source.write_bytes(b"GGUX" * 100)
    place = Place(tmp_path, source, About(name="x"))
    with pytest.raises(MalformedError):
        await place.open()
    assert place.empty


async def test_no_key_no_file(place: Place) -> None:
    class Denied:
        def key(self, _model: SealedModel) -> bytes:
            raise KeyReleaseDenied("no")

    with pytest.raises(KeyReleaseDenied):
        await place.open(Denied())
    assert place.empty
    assert place.closed == []


async def test_a_worker_told_to_stop_stops_opening(place: Place) -> None:
    asked, go_on = threading.Event(), threading.Event()

    class Slow:
        def key(self, _model: SealedModel) -> bytes:
            asked.set()
            go_on.wait(60)
            return place.key_file.read_bytes()

    opening = asyncio.create_task(place.open(Slow()))
    await asyncio.to_thread(asked.wait, 60)
    opening.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert place.empty
    assert place.closed == []


def test_folders_are_described_by_their_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"max_position_embeddings": 64, "torch_dtype": "bfloat16"})
    )
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    paths = ["config.json", "model.safetensors"]
    about = describe(Kind.SAFETENSORS, tmp_path, paths)
    assert (about.context_length, about.quantisation) == (64, "bfloat16")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(MalformedError):
        describe(Kind.SAFETENSORS, tmp_path, paths)


def test_models_that_nothing_is_there_to_open_for_are_refused(place: Place) -> None:
    models = {"tiny": {Role.MODEL: place.measured}}
    assert [one.info.name for one in sealed_models(models, place.memory)] == ["tiny"]
    assert sealed_models({"tiny": {Role.MODEL: replace(place.measured, sealed=False)}}, None) == ()
    with pytest.raises(ConfigurationError):
        sealed_models(models, None)
    beside = replace(place.measured, sealed=False)
    with pytest.raises(ConfigurationError):
        sealed_models({"tiny": {**models["tiny"], Role.ADAPTER: beside}}, place.memory)
