"""From ``--model`` to a file whose digest is known."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.engine import models
from cloister.engine.demo_model import DEMO_MODEL_SHA256, demo_model_path
from cloister.engine.models import resolve_model, sha256_file
from cloister.errors import ConfigurationError, FetchError, MalformedError

DATA = demo_model_path().read_bytes()
HUB = "hf:some-org/some.repo/sub/file.Q8_0.gguf"


class Fetcher:
    """Serves `body` in blocks and remembers what it was asked for."""

    def __init__(self, body: bytes = DATA) -> None:
        self.body = body
        self.urls: list[str] = []

    @contextlib.contextmanager
    def fetch(self, url: str, *, max_bytes: int) -> Iterator[Iterator[bytes]]:
        assert max_bytes == models.MAX_DOWNLOAD
        self.urls.append(url)
        yield (self.body[at : at + 100_000] for at in range(0, len(self.body), 100_000))


def test_the_demo_model_and_paths(tmp_path: Path) -> None:
    demo = resolve_model("demo")
    assert demo.sha256 == DEMO_MODEL_SHA256
    assert demo.context_length > 0
    assert demo.quantisation == "Q8_0"
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(DATA)
    found = resolve_model(str(copy), sha256=f"sha256:{DEMO_MODEL_SHA256.upper()}", name="my model!")
    assert (found.path, found.sha256, found.name) == (copy, demo.sha256, "my-model")
    assert sha256_file(copy) == demo.sha256


def test_a_file_of_another_digest_is_refused() -> None:
    for wrong in ("0" * 64, "abc", ""):
        with pytest.raises(ConfigurationError) as caught:
            resolve_model("demo", sha256=wrong)
        assert caught.value.code == "configuration.model_digest"


@pytest.mark.parametrize("reference", [HUB, "https://user:pw@example.org/m.gguf?token=secret"])
def test_what_is_fetched_needs_its_digest_beforehand(reference: str, tmp_path: Path) -> None:
    fetcher = Fetcher()
    with pytest.raises(ConfigurationError, match="SHA-256 beforehand") as caught:
        resolve_model(reference, cache=tmp_path, fetcher=fetcher)
    assert fetcher.urls == []
    assert "secret" not in str(caught.value)
    assert "pw" not in str(caught.value)
    found = resolve_model(reference, sha256=DEMO_MODEL_SHA256, cache=tmp_path, fetcher=fetcher)
    assert found.path == tmp_path / f"{DEMO_MODEL_SHA256}.gguf"
    assert found.name in {"file.Q8_0", "m"}
    again = resolve_model(reference, sha256=DEMO_MODEL_SHA256, cache=tmp_path, fetcher=fetcher)
    assert again == found
    assert len(fetcher.urls) == 1


def test_the_hub_address(tmp_path: Path) -> None:
    fetcher = Fetcher(b"")
    with pytest.raises(FetchError):
        resolve_model(HUB, sha256="0" * 64, cache=tmp_path, fetcher=fetcher)
    assert fetcher.urls == [
        "https://huggingface.co/some-org/some.repo/resolve/main/sub/file.Q8_0.gguf"
    ]


def test_what_arrives_is_compared_before_it_gets_its_name(tmp_path: Path) -> None:
    with pytest.raises(FetchError) as caught:
        resolve_model(
            HUB, sha256=DEMO_MODEL_SHA256, cache=tmp_path, fetcher=Fetcher(DATA[:-1] + b"\0")
        )
    assert caught.value.code == "fetch.model_digest"
    assert list(tmp_path.iterdir()) == []


def test_a_cached_file_that_was_changed_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / f"{DEMO_MODEL_SHA256}.gguf").write_bytes(b"GGUF")
    found = resolve_model(HUB, sha256=DEMO_MODEL_SHA256, cache=tmp_path, fetcher=Fetcher())
    assert found.path is not None
    assert found.path.read_bytes() == DATA


def test_a_download_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MAX_DOWNLOAD", 150_000)
    with pytest.raises(FetchError) as caught:
        resolve_model(HUB, sha256=DEMO_MODEL_SHA256, cache=tmp_path, fetcher=Fetcher())
    assert caught.value.code == "fetch.model_size"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "reference",
    [
        "http://example.org/m.gguf",
        "ftp://example.org/m.gguf",
        "hf:org/file.gguf",
        "hf:org/repo/../../x.gguf",
        "hf:org/repo/file.bin",
        "hf:org/repo/file.gguf?x",
        "/nowhere/model.gguf",
        "/",
    ],
)
def test_references_that_name_no_model(reference: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        resolve_model(reference, sha256="0" * 64, cache=tmp_path, fetcher=Fetcher())


def test_a_file_that_is_not_gguf(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(MalformedError):
        resolve_model(str(path))
    assert hashlib.sha256(b"PK\x03\x04").hexdigest() == sha256_file(path)
