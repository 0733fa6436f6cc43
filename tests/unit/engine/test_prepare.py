"""From files, folders and the hub to what an engine loads, with a record of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.engine.demo_model import DEMO_MODEL_SHA256, demo_model_path
from cloister.engine.hub import HubModel, parse_hub_reference, safe_path
from cloister.engine.model_record import read_record
from cloister.engine.prepare import (
    build_tensorrt,
    check_expected,
    choose,
    kind_of,
    prepare_hub,
    prepare_local,
)
from cloister.errors import BuildError, ConfigurationError, FetchError, MalformedError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = struct.pack("<Q", 2) + b"{}"
FILES = {
    "config.json": b'{"architectures": []}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "model.safetensors.index.json": b'{"weight_map": {"a": "model.safetensors"}}',
    "LICENSE": b"free",
    "pytorch_model.bin": b"a pickle",
    "modeling.py": b"import os",
    ".gitattributes": b"",
}
TAKEN = sorted(set(FILES) - {"pytorch_model.bin", "modeling.py", ".gitattributes"})


def folder(path: Path, files: dict[str, bytes] | None = None) -> Path:
    for name, data in (FILES if files is None else files).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def test_a_gguf_file(tmp_path: Path) -> None:
    done = prepare_local(demo_model_path(), tmp_path / "out")
    assert done.kind == "gguf"
    (file,) = done.record.outputs
    assert file.sha256 == DEMO_MODEL_SHA256
    assert (tmp_path / "out" / file.path).read_bytes() == demo_model_path().read_bytes()
    assert read_record(tmp_path / "out") == done.record
    assert done.record.inputs == done.record.outputs
    assert prepare_local(demo_model_path(), tmp_path / "out") == done  # again


def test_a_folder_of_safetensors_without_what_may_run(tmp_path: Path) -> None:
    done = prepare_local(folder(tmp_path / "in"), tmp_path / "out")
    assert done.kind == "safetensors"
    assert [file.path for file in done.record.outputs] == TAKEN
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [*TAKEN, "model.json"]
    )
    assert done.left == ("modeling.py", "pytorch_model.bin")
    for file in done.record.outputs:
        assert file.sha256 == hashlib.sha256(FILES[file.path]).hexdigest()


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"config.json": None}, ConfigurationError),
        ({"model.safetensors": None, "model.safetensors.index.json": None}, ConfigurationError),
        ({"x.gguf": b"GGUF"}, ConfigurationError),
        ({"model.safetensors": b"\x80\x04pickle..."}, MalformedError),
        ({"tokenizer.json": b"{"}, MalformedError),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "no"}}'}, MalformedError),
        ({"model.safetensors.index.json": b"[]"}, MalformedError),
    ],
)
def test_what_no_engine_would_load(
    changes: dict[str, bytes | None], kind: type[Exception], tmp_path: Path
) -> None:
    prepare_local(folder(tmp_path / "good"), tmp_path / "out")
    files = {name: data for name, data in {**FILES, **changes}.items() if data is not None}
    with pytest.raises(kind):
        prepare_local(folder(tmp_path / "bad", files), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_source_is_not_the_target(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    for target in (source, source / "out"):
        with pytest.raises(ConfigurationError) as caught:
            prepare_local(source, target)
        assert caught.value.code == "model.out_taken"
    with pytest.raises(ConfigurationError):
        prepare_local(tmp_path / "none", tmp_path / "out")


def test_records_are_compared_file_by_file(tmp_path: Path) -> None:
    first = prepare_local(folder(tmp_path / "a"), tmp_path / "out-a").record
    check_expected(first, first)
    second = prepare_local(
        folder(tmp_path / "b", {**FILES, "tokenizer.json": b"[]"}), tmp_path / "out-b"
    ).record
    less = prepare_local(
        folder(tmp_path / "c", {k: v for k, v in FILES.items() if k != "LICENSE"}),
        tmp_path / "out-c",
    ).record
    for other, name in ((second, "tokenizer.json"), (less, "LICENSE")):
        with pytest.raises(MalformedError, match=name) as caught:
            check_expected(other, first)
        assert caught.value.code == "model.unexpected"


def test_choosing_leaves_our_own_record_behind() -> None:
    assert choose(["model.json", "a.gguf", "b.exe"]) == (("a.gguf",), ("b.exe", "model.json"))
    assert kind_of(["a.gguf"]) == "gguf"


# -- the hub ------------------------------------------------------------------------------


class Hub:
    """A fetcher that serves one commit."""

    def __init__(
        self, files: dict[str, bytes], large: tuple[str, ...] = ("model.safetensors",)
    ) -> None:
        self.files = dict(files)
        self.listing: Any = [
            {
                "type": "file",
                "path": name,
                "size": len(data),
                "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
                **({"lfs": {"oid": hashlib.sha256(data).hexdigest()}} if name in large else {}),
            }
            for name, data in files.items()
        ]
        self.listing.append({"type": "directory", "path": "sub", "size": 0, "oid": "0" * 40})
        self.urls: list[str] = []

    @contextlib.contextmanager
    def fetch(self, url: str, *, max_bytes: int) -> Iterator[Iterator[bytes]]:
        self.urls.append(url)
        base = f"https://huggingface.co/org/repo/resolve/{COMMIT}/"
        if url.startswith(base):
            data = self.files[url.removeprefix(base)]
        else:
            assert url == (
                f"https://huggingface.co/api/models/org/repo/tree/{COMMIT}?recursive=true"
            )
            data = json.dumps(self.listing).encode()
        yield (data[at : at + 5] for at in range(0, len(data), 5))


MODEL = HubModel(repo="org/repo", commit=COMMIT)


def test_a_commit_of_the_hub_is_the_folder_it_holds(tmp_path: Path) -> None:
    hub = Hub(FILES)
    done = prepare_hub(MODEL, tmp_path / "hub", fetcher=hub)
    local = prepare_local(folder(tmp_path / "in"), tmp_path / "local")
    check_expected(done.record, local.record)
    assert done.record.options == {"kind": "safetensors", "repository": "org/repo"} | {
        "commit": COMMIT
    }
    assert done.left == (".gitattributes", "modeling.py", "pytorch_model.bin")
    assert not any(name in url for url in hub.urls for name in done.left)
    with pytest.raises(ConfigurationError):
        prepare_hub(MODEL, tmp_path / "hub", fetcher=hub)


def test_one_file_of_a_commit(tmp_path: Path) -> None:
    data = demo_model_path().read_bytes()[:4096]
    hub = Hub({**FILES, "sub/a b.gguf": data}, large=("sub/a b.gguf",))
    hub.files["sub/a%20b.gguf"] = data
    done = None
    with contextlib.suppress(MalformedError):  # it is cut short on purpose
        done = prepare_hub(MODEL, tmp_path / "out", fetcher=hub, only=["sub/a b.gguf"])
    assert done is None
    assert (tmp_path / "out/sub/a b.gguf").read_bytes() == data
    assert not (tmp_path / "out/model.json").exists()
    with pytest.raises(ConfigurationError, match="no file"):
        prepare_hub(MODEL, tmp_path / "other", fetcher=hub, only=["b.gguf"])


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("change", [lambda d: d[:-1] + b"x", lambda d: d + b"x", lambda d: d[:-1]])
def test_a_file_that_is_not_the_listed_one(name: str, change: Any, tmp_path: Path) -> None:
    prepare_hub(MODEL, tmp_path / "good", fetcher=Hub(FILES))
    hub = Hub(FILES)
    hub.files[name] = change(FILES[name])
    with pytest.raises(FetchError) as caught:
        prepare_hub(MODEL, tmp_path / "bad", fetcher=hub)
    assert caught.value.code == "fetch.model_digest"
    assert not (tmp_path / "bad" / name).exists()
    assert not (tmp_path / "bad/model.json").exists()


ENTRY = {"type": "file", "path": "a", "size": 1, "oid": "0" * 40}


@pytest.mark.parametrize(
    "listing",
    [
        {},
        [1],
        [{**ENTRY, "path": 1}],
        [{**ENTRY, "size": -1}],
        [{**ENTRY, "oid": "x"}],
        [{**ENTRY, "lfs": {"oid": "x"}}],
        [{**ENTRY, "lfs": {}}],
        [ENTRY, ENTRY],
    ],
)
def test_listings_that_are_none(listing: Any, tmp_path: Path) -> None:
    hub = Hub(FILES)
    hub.listing = listing
    with pytest.raises(MalformedError):
        prepare_hub(MODEL, tmp_path / "out", fetcher=hub)


def test_a_listing_that_goes_on_elsewhere(tmp_path: Path) -> None:
    hub = Hub(FILES)
    hub.listing = [{**ENTRY, "path": f"{number}.json"} for number in range(1000)]
    with pytest.raises(FetchError) as caught:
        prepare_hub(MODEL, tmp_path / "out", fetcher=hub)
    assert caught.value.code == "fetch.listing"


def test_a_path_that_leads_elsewhere_is_left_behind(tmp_path: Path) -> None:
    hub = Hub(FILES)
    hub.listing += [{**ENTRY, "path": path} for path in ("../x.json", "/x.json", ".h/x.json")]
    done = prepare_hub(MODEL, tmp_path / "out", fetcher=hub)
    assert [file.path for file in done.record.outputs] == TAKEN
    assert {"../x.json", "/x.json", ".h/x.json"} < set(done.left)
    assert safe_path("a/b-1.json")
    assert not any(safe_path(path) for path in ("a//b", "a/../b", "a\nb", "", "a/", "-x"))


@pytest.mark.parametrize(
    "reference",
    [
        "hf:org/repo",
        "hf:org/repo@main",
        f"hf:org@{COMMIT}",
        f"hf:org/repo@{COMMIT[:-1]}",
        f"hf:org/repo@{COMMIT.upper()}",
        f"hf:../repo@{COMMIT}",
        f"hf:org/repo@{COMMIT}/x",
    ],
)
def test_a_hub_model_is_named_by_its_whole_commit(reference: str) -> None:
    assert parse_hub_reference(f"hf:org/repo@{COMMIT}") == MODEL
    with pytest.raises(ConfigurationError) as caught:
        parse_hub_reference(reference)
    assert caught.value.code == "model.hub"


# -- TensorRT-LLM -------------------------------------------------------------------------


def tool(path: Path, script: str) -> str:
    path.mkdir()
    (path / "trtllm-build").write_text(f"#!/bin/sh\n{script}\n")
    (path / "trtllm-build").chmod(0o755)
    return str(path)


CHECKPOINT = {"config.json": b"{}", "rank0.safetensors": WEIGHTS}


def test_an_engine_is_built_where_the_tool_is(tmp_path: Path) -> None:
    search = tool(tmp_path / "bin", 'printf "%s " "$@" > "$4/rank0.engine"')
    source, out = folder(tmp_path / "in", CHECKPOINT), tmp_path / "out"
    done = build_tensorrt(source, out, arguments=["--max_seq_len", "9"], search_path=search)
    assert (out / "rank0.engine").read_text() == (
        f"--checkpoint_dir {source} --output_dir {out} --max_seq_len 9 "
    )
    assert [file.path for file in done.record.outputs] == ["rank0.engine"]
    assert [file.path for file in done.record.inputs] == sorted(CHECKPOINT)
    assert read_record(out).options == {"arguments": "--max_seq_len 9"}


def test_without_the_tool_or_a_checkpoint_it_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", CHECKPOINT)
    with pytest.raises(ConfigurationError, match="not installed") as caught:
        build_tensorrt(source, tmp_path / "out", search_path=str(tmp_path))
    assert caught.value.code == "model.no_tensorrt_llm"
    search = tool(tmp_path / "bin", "exit 3")
    with pytest.raises(ConfigurationError, match="no TensorRT-LLM checkpoint"):
        build_tensorrt(folder(tmp_path / "hf"), tmp_path / "out", search_path=search)
    with pytest.raises(BuildError, match="exit status 3"):
        build_tensorrt(source, tmp_path / "out", search_path=search)
    assert not (tmp_path / "out/model.json").exists()
