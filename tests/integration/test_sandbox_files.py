"""What the engine reads is what was opened and measured, not what lies there by then."""

from __future__ import annotations

import asyncio
import json
import os
import py_compile
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloister.engine.confined import DESCRIPTORS, Program
from cloister.engine.sandbox import Sandbox
from cloister.errors import SandboxError
from support.exchanging_bwrap import exchanging_bwrap

pytestmark = pytest.mark.sandbox

READER = Path(__file__).parent / "sandbox_reader.py"


def poisoned_package(directory: Path) -> Path:
    """A package whose source says one thing and whose compiled code says another."""
    package = directory / "poisoned"
    package.mkdir()
    source = package / "__init__.py"
    source.write_text("VALUE = 'compiled'\n")
    py_compile.compile(
        str(source), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    source.write_text("VALUE = 'source'\n")
    return package


async def report(
    package: Path,
    file: Path,
    inherited: tuple[int, ...] = (),
    sandbox: Sandbox | None = None,
) -> dict[str, Any]:
    program = Program(
        script=READER,
        packages=(package,),
        files={"model.gguf": file},
        inherited=inherited,
        arguments=(json.dumps(["/data/model.gguf", package.name]),),
    )
    confined = await (sandbox or Sandbox()).spawn(program)
    try:
        assert await confined.word() == b"ready"
        reader, writer = await asyncio.open_unix_connection(confined.open_socket("engine.sock"))
        found: dict[str, Any] = json.loads(await reader.read())
        writer.close()
        await writer.wait_closed()
        return found
    finally:
        await confined.aclose()


async def test_a_file_exchanged_after_it_was_opened_is_not_read(tmp_path: Path) -> None:
    package = poisoned_package(tmp_path)
    model = tmp_path / "model.gguf"
    model.write_text("measured")
    descriptor = os.open(model, os.O_RDONLY)
    try:
        model.rename(tmp_path / "aside")
        model.write_text("exchanged")
        by_path = await report(package, model)
        by_descriptor = await report(package, DESCRIPTORS / str(descriptor), (descriptor,))
    finally:
        os.close(descriptor)
    assert by_path["content"] == "exchanged"
    assert by_descriptor["content"] == "measured"


async def test_a_file_exchanged_while_the_sandbox_is_made_is_not_read(tmp_path: Path) -> None:
    package = poisoned_package(tmp_path)
    model, other = tmp_path / "model.gguf", tmp_path / "other.gguf"
    model.write_text("measured")
    other.write_text("exchanged")
    with model.open("rb") as opened:
        descriptor = opened.fileno()
        at = DESCRIPTORS / str(descriptor)
        slow = Sandbox(bwrap=exchanging_bwrap(tmp_path / "bwrap", model, None))
        assert (await report(package, at, (descriptor,), slow))["content"] == "measured"
        late = Sandbox(bwrap=exchanging_bwrap(tmp_path / "bwrap", model, other))
        with pytest.raises(SandboxError, match="exchanged"):
            await report(package, at, (descriptor,), late)
    assert model.read_text() == "exchanged"


async def test_compiled_code_beside_the_source_does_not_run(tmp_path: Path) -> None:
    package = poisoned_package(tmp_path)
    model = tmp_path / "model.gguf"
    model.write_text("x")
    outside = subprocess.run(
        [sys.executable, "-c", "import poisoned; print(poisoned.VALUE)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert outside.stdout.strip() == "compiled"
    assert (await report(package, model))["value"] == "source"


async def test_where_it_was_measured_too_it_runs(tmp_path: Path) -> None:
    """As in a machine image, which then starts its engine sooner."""
    package = poisoned_package(tmp_path)
    model = tmp_path / "model.gguf"
    model.write_text("x")
    read = await report(package, model, sandbox=Sandbox(compiled=True))
    assert read["value"] == "compiled"
