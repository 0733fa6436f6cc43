"""Installations of engines that are not there, and models for them."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path

from cloister.engine.command_lines import ManagedKind
from cloister.engine.installation import Installation, find_installation
from cloister.engine.model_folder import describe_folder
from cloister.engine.protocol import ModelInfo

HERE = Path(__file__).parent
NAMES = {
    ManagedKind.VLLM: "vllm",
    ManagedKind.SGLANG: "sglang",
    ManagedKind.TGI: "text-generation-launcher",
    ManagedKind.LLAMA_SERVER: "llama-server",
}
VERSION = "0.33.0+standin"


def install(kind: ManagedKind, place: Path) -> Installation:
    """Make a virtual environment at `place` that holds a stand-in for `kind`."""
    base = Path(sys._base_executable)  # type: ignore[attr-defined]
    (place / "bin").mkdir(parents=True)
    (place / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
    python = place / "bin" / "python3"
    python.symlink_to(base)
    if kind is ManagedKind.TRITON:
        program = place / "python" / "openai" / "openai_frontend" / "main.py"
        program.parent.mkdir(parents=True)
        (place / "pyvenv.cfg").unlink()
    else:
        program = place / "bin" / NAMES[kind]
    script = "stand_in_server.py"
    if kind is ManagedKind.LLAMA_SERVER:
        script = "stand_in_llama_server.py"
        _copy_wheel(place / "wheel")
    program.write_text(f"#!{python}\n{(HERE / script).read_text()}")
    program.chmod(0o755)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = place / "lib" / version / "site-packages"
    (site / f"{kind.value}-{VERSION}.dist-info").mkdir(parents=True)
    (site / f"{kind.value}-{VERSION}.dist-info" / "METADATA").write_text("Name: stand-in\n")
    return find_installation(kind, program=program)


def _copy_wheel(target: Path) -> None:
    import xllamacpp

    package = Path(xllamacpp.__file__).parent
    for folder in (package, package.with_name("xllamacpp.libs")):
        if folder.is_dir():
            shutil.copytree(folder, target / folder.name)


def wheel_library() -> Path:
    """llama.cpp's library, for its parser."""
    import xllamacpp

    return next(Path(xllamacpp.__file__).parent.glob("*.so"))


def safetensors(path: Path, content: bytes = bytes(8)) -> None:
    """Write a file with one tensor."""
    entry = {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}
    header = json.dumps({"weight": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content)


def folder(place: Path, *, context: int = 512, content: bytes = bytes(8)) -> Path:
    """Make a small model's folder."""
    place.mkdir(parents=True, exist_ok=True)
    configuration = {"model_type": "llama", "max_position_embeddings": context, "dtype": "bfloat16"}
    (place / "config.json").write_text(json.dumps(configuration))
    (place / "tokenizer_config.json").write_text("{}")
    safetensors(place / "model.safetensors", content)
    return place


def folder_model(place: Path, *, name: str = "stand-in") -> ModelInfo:
    """Describe the folder at `place` as `cloister serve` does."""
    facts = describe_folder(place)
    return ModelInfo(
        name=name,
        sha256=facts.sha256,
        path=place,
        context_length=facts.context_length,
        quantisation=facts.quantisation,
    )
