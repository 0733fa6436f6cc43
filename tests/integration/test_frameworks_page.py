"""`docs/how-to/frameworks.md`: every example there is run as it stands, against the demo model.

Only the addresses and the directory of pins are exchanged for those of the test. The one with
LlamaIndex runs with its other tests (`test_sdk_llama_index.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.endpoints import Ground, embedded
from support.examples import LLAMA_INDEX, NODE, PYTHON, placed
from support.node import installed

pytestmark = pytest.mark.sandbox

QUIET = {"NO_PROXY": "127.0.0.1", "LANGSMITH_TRACING": "false"}
ONE_AFTER_ANOTHER = """
import json, sys
for text in json.loads(sys.argv[1]):
    exec(compile(text, "<example>", "exec"), {"__name__": "example"})
    print("\\x1e")
"""


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with embedded(watched=True) as made:
        yield made


@pytest.mark.langchain
def test_the_examples_in_python(ground: Ground, tmp_path: Path) -> None:
    examples = [placed(text, ground, tmp_path) for text in PYTHON]
    command = [sys.executable, "-W", "ignore", "-c", ONE_AFTER_ANOTHER, json.dumps(examples)]
    checked(ground, command, tmp_path, count=len(examples))


@pytest.mark.node
def test_the_examples_for_node(ground: Ground, tmp_path: Path) -> None:
    packages = installed("sdk.mjs")
    for text in NODE:
        example = placed(text, ground, tmp_path)
        checked(ground, ["node", "--input-type=module", "--eval", example], packages, count=1)


def checked(ground: Ground, command: list[str], directory: Path, *, count: int) -> None:
    """Run `count` examples: each prints the model's words, and what passes by is sealed."""
    watched = ground.scene.proxy
    before = len(watched.sealed)
    done = subprocess.run(
        command, cwd=directory, env={**os.environ, **QUIET}, capture_output=True, text=True,
        check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = done.stdout.removesuffix("\x1e\n").split("\x1e")
    assert len(shown) == count
    assert all(len(one.strip()) > 10 for one in shown)  # which words, examples leave to chance
    assert len(watched.sealed) - before >= count
    for request in watched.seen:
        assert b"What is a TEE?" not in request.body


def test_there_are_examples_for_all() -> None:
    """Of the SDKs that the page names, none is without one."""
    text = "\n".join(PYTHON)
    for name in ("cloister", "openai", "anthropic", "langchain_openai"):
        assert f"import {name}\n" in text or f"from {name} import" in text
    assert ["openai" in NODE[0], "@anthropic-ai/sdk" in NODE[1]] == [True, True]
    assert (len(NODE), len(LLAMA_INDEX)) == (2, 1)
