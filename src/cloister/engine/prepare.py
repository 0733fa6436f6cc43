"""Turns a model as it is published into a folder that an engine loads, with ``model.json``.

Three kinds: ``gguf`` (llama.cpp), ``safetensors`` (a Hugging Face folder, as vLLM and others load
it) and ``tensorrt-llm`` (an engine, built by NVIDIA's own tool where that is installed). Files are
checked for being what they are called, and copied as they are. Files that hold or may hold code
(pickles, Python) are left behind: no engine needs them to load these kinds, and none should run
them.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.engine.gguf import parse_gguf
from cloister.engine.hub import HubModel, fetch_file, fetch_listing, safe_path
from cloister.engine.model_record import (
    NAME,
    FileRecord,
    ModelRecord,
    check_room,
    describe_file,
)
from cloister.engine.models import Fetcher
from cloister.engine.safetensors import check_safetensors
from cloister.errors import BuildError, ConfigurationError, MalformedError

OPERATION: Final = "prepare"
TRTLLM_BUILD: Final = "trtllm-build"
_TAKEN: Final = (".safetensors", ".json", ".gguf", ".model", ".txt", ".jinja", ".tiktoken")
"""Endings of files that are taken: weights, configuration, tokenizers, templates, licences."""
_NAMED: Final = ("LICENSE", "LICENCE", "NOTICE", "README.md", "USE_POLICY.md")
_INDEX: Final = "model.safetensors.index.json"
_MAX_JSON: Final = 256 << 20

Progress = Callable[[str, int, int], None]
"""Called with a file's name, the bytes done and the bytes there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What came of it."""

    kind: str
    record: ModelRecord
    left: tuple[str, ...]
    """Files that were left behind."""


def _quiet(_name: str, _done: int, _total: int) -> None:
    """No progress is wanted."""


def prepare_local(source: Path, folder: Path, *, progress: Progress = _quiet) -> Prepared:
    """Check a GGUF file or a folder and copy what an engine needs into `folder`.

    Raises:
        ConfigurationError: there is no such source, or nothing an engine loads in it, or `folder`
            is taken.
        MalformedError: a file is not what its name says.
    """
    if source.is_file():
        names, root = [source.name], source.parent
    elif source.is_dir():
        names, root = _listed(source), source
    else:
        raise ConfigurationError(f"there is no model at {source}", code="configuration.model")
    _check_apart(source, folder)
    taken, left = choose(names)
    kind = kind_of(taken)
    for name in taken:
        _check_file(root / name)
    inputs = tuple(describe_file(root / name, name) for name in taken)
    folder.mkdir(parents=True, exist_ok=True)
    check_room(folder, operation=OPERATION, inputs=inputs)
    for file in inputs:
        _copy(root / file.path, folder / file.path)
        progress(file.path, file.bytes, file.bytes)
    options = {"kind": kind}
    return _finish(kind, inputs, folder, options, left)


def prepare_hub(
    model: HubModel,
    folder: Path,
    *,
    fetcher: Fetcher,
    only: Sequence[str] = (),
    progress: Progress = _quiet,
) -> Prepared:
    """Fetch a commit of the hub into `folder`, `only` the files named where any are.

    Raises as `prepare_local`, and FetchError.
    """
    listed = fetch_listing(model, fetcher)
    listing = {file.path: file for file in listed if safe_path(file.path)}
    missing = sorted(set(only) - listing.keys())
    if missing:
        raise ConfigurationError(f"the commit has no file {missing[0]}", code="model.hub")
    taken, left = choose(sorted(only) or [file.path for file in listed])
    left = tuple(sorted({*left, *(name for name in taken if name not in listing)}))
    taken = tuple(name for name in taken if name in listing)
    kind = kind_of(taken)
    options = {"kind": kind, "repository": model.repo, "commit": model.commit}
    if (folder / NAME).exists():
        raise ConfigurationError(
            f"{folder} holds {NAME} already: choose another --out", code="model.out_taken"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in taken:
        file = listing[name]
        fetch_file(model, file, folder / name, fetcher, _of(progress, name, file.size))
    for name in taken:
        _check_file(folder / name)
    inputs = tuple(describe_file(folder / name, name) for name in taken)
    return _finish(kind, inputs, folder, options, left)


def _of(progress: Progress, name: str, size: int) -> Callable[[int], None]:
    return lambda done: progress(name, done, size)


def check_expected(record: ModelRecord, expected: ModelRecord) -> None:
    """Compare the files of two records.

    MalformedError (code ``model.unexpected``) names the first that differs.
    """
    found = {file.path: file for file in record.outputs}
    wanted = {file.path: file for file in expected.outputs}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise MalformedError(
                f"{name} is not what the expected record says", code="model.unexpected"
            )


def choose(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Part file names into those an engine needs and those left behind, both in order."""
    taken = sorted(
        name
        for name in names
        if Path(name).name != NAME and (name.endswith(_TAKEN) or Path(name).name in _NAMED)
    )
    return tuple(taken), tuple(sorted(set(names) - set(taken)))


def kind_of(names: Sequence[str]) -> str:
    """``gguf`` or ``safetensors``; ConfigurationError for neither, or both, or parts missing."""
    gguf = any(name.endswith(".gguf") for name in names)
    tensors = any(name.endswith(".safetensors") for name in names)
    if gguf and tensors:
        raise ConfigurationError(
            "there are GGUF files and safetensors: name those wanted (--only)", code="model.kind"
        )
    if gguf:
        return "gguf"
    if not tensors:
        raise ConfigurationError(
            "there are neither GGUF files nor safetensors; pickled weights (.bin, .pt) are not "
            "loaded, since they can hold code",
            code="model.kind",
        )
    if "config.json" not in names:
        raise ConfigurationError("there is no config.json beside the weights", code="model.kind")
    return "safetensors"


def _listed(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        # Caches of tools (".cache", ".git") are no part of the model.
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )


def _check_apart(source: Path, folder: Path) -> None:
    root = (source if source.is_dir() else source.parent).resolve()
    target = folder.resolve()
    if target == root or (source.is_dir() and target.is_relative_to(root)):
        raise ConfigurationError(
            "--out has to be a folder of its own, outside the source", code="model.out_taken"
        )


def _check_file(path: Path) -> None:
    """MalformedError unless the file is what its ending says."""
    try:
        if path.suffix == ".gguf":
            with path.open("rb") as file:
                parse_gguf(file)
        elif path.suffix == ".safetensors":
            check_safetensors(path)
        elif path.suffix == ".json":
            _check_json(path)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read (errno {error.errno})", code="configuration.model"
        ) from None
    except MalformedError as error:
        raise MalformedError(f"{path.name}: {error}", code=error.code) from None


def _check_json(path: Path) -> None:
    if path.stat().st_size > _MAX_JSON:
        raise MalformedError("the JSON is too long")
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise MalformedError("this is not JSON") from None
    if path.name == _INDEX:
        parts = document.get("weight_map") if isinstance(document, dict) else None
        names = set(parts.values()) if isinstance(parts, dict) else {None}
        if not all(isinstance(name, str) and (path.parent / name).is_file() for name in names):
            raise MalformedError("the index names weights that are not there")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".part-{target.name}")
    try:
        shutil.copyfile(source, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _finish(
    kind: str,
    inputs: tuple[FileRecord, ...],
    folder: Path,
    options: dict[str, str],
    left: tuple[str, ...],
) -> Prepared:
    """Hash what lies there now, and record it. BuildError if a copy is not like its source."""
    outputs = tuple(describe_file(folder / file.path, file.path) for file in inputs)
    if outputs != inputs:
        raise BuildError("a file changed while it was copied", code="model.changed")
    record = ModelRecord(
        operation=OPERATION,
        inputs=inputs,
        outputs=outputs,
        tools={"cloister": importlib.metadata.version("cloister")},
        options=options,
    )
    record.write(folder)
    return Prepared(kind=kind, record=record, left=left)


def build_tensorrt(
    checkpoint: Path,
    folder: Path,
    *,
    arguments: Sequence[str] = (),
    search_path: str | None = None,
) -> Prepared:
    """Build a TensorRT-LLM engine from a checkpoint in TensorRT-LLM's format.

    `arguments` go to ``trtllm-build`` as they are; `search_path` is where it is looked for (by
    default PATH). An engine fits one kind of GPU and one version of TensorRT-LLM. The build is
    not known to be deterministic: its digests say what was built, not what would be built again.

    Raises:
        ConfigurationError: the tool is not installed, or `checkpoint` is none.
        BuildError: the tool failed.
    """
    tool = shutil.which(TRTLLM_BUILD, path=search_path)
    if tool is None:
        raise ConfigurationError(
            f"{TRTLLM_BUILD} is not installed: it comes with TensorRT-LLM (pip install "
            "tensorrt-llm, on a machine with an NVIDIA GPU)",
            code="model.no_tensorrt_llm",
        )
    names = _listed(checkpoint) if checkpoint.is_dir() else []
    if "config.json" not in names or "rank0.safetensors" not in names:
        raise ConfigurationError(
            f"{checkpoint} is no TensorRT-LLM checkpoint (config.json and rank0.safetensors): "
            "make one with the convert_checkpoint.py of the model's family",
            code="model.kind",
        )
    _check_apart(checkpoint, folder)
    inputs = tuple(describe_file(checkpoint / name, name) for name in names)
    folder.mkdir(parents=True, exist_ok=True)
    check_room(folder, operation="build tensorrt-llm", inputs=inputs)
    command = [tool, "--checkpoint_dir", str(checkpoint), "--output_dir", str(folder), *arguments]
    # What it says goes to standard error: standard output is for our digests.
    done = subprocess.run(  # noqa: S603 - the tool that was asked for
        command, stdin=subprocess.DEVNULL, stdout=2, check=False
    )
    if done.returncode != 0:
        raise BuildError(
            f"{TRTLLM_BUILD} failed (exit status {done.returncode})", code="model.tensorrt_llm"
        )
    outputs = tuple(describe_file(folder / n, n) for n in _listed(folder) if n != NAME)
    record = ModelRecord(
        operation="build tensorrt-llm",
        inputs=inputs,
        outputs=outputs,
        tools={
            "cloister": importlib.metadata.version("cloister"),
            "tensorrt_llm": _version("tensorrt_llm"),
        },
        options={"arguments": " ".join(arguments)},
    )
    record.write(folder)
    return Prepared(kind="tensorrt-llm", record=record, left=())


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # the tool may lie in another environment than this one
