"""`docs/how-to/frameworks.md`: every example there is run as it stands, against the demo model.

Only the addresses and the directory of pins are exchanged for those of the test.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import llama_index
from support.endpoints import Ground, embedded, write_kit
from support.node import installed

pytestmark = pytest.mark.sandbox

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "frameworks.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXAMPLES = [(kind, text) for kind, text in BLOCK.findall(PAGE.read_text()) if kind != "sh"]
QUIET = {"NO_PROXY": "127.0.0.1", "LANGSMITH_TRACING": "false"}


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with embedded(watched=True) as made:
        yield made


def marks(kind: str, text: str) -> list[pytest.MarkDecorator]:
    needs = (
        (pytest.mark.node, kind == "js"),
        (pytest.mark.langchain, "langchain" in text),
        (pytest.mark.llama_index, "llama_index" in text),
    )
    return [mark for mark, needed in needs if needed]


@pytest.mark.parametrize(
    ("kind", "text"),
    [pytest.param(kind, text, marks=marks(kind, text)) for kind, text in EXAMPLES],
    ids=[f"{number}-{kind}" for number, (kind, _) in enumerate(EXAMPLES)],
)
def test_an_example(ground: Ground, kind: str, text: str, tmp_path: Path) -> None:
    for written, real in (
        ("http://127.0.0.1:8440", ground.worker),
        ("http://127.0.0.1:8788", ground.proxied),
        ("kit/", str(write_kit(ground, tmp_path))),
    ):
        text = text.replace(written, real)
    watched = ground.scene.proxy
    before = len(watched.sealed)
    done = run(kind, text, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) > 10  # the model's words; examples leave them to chance
    assert len(watched.sealed) > before
    for request in watched.seen:
        assert b"What is a TEE?" not in request.body


def run(kind: str, text: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run an example as a program of its own."""
    if "llama_index" in text:
        return llama_index.python("-W", "ignore", "-c", text)
    command = [sys.executable, "-W", "ignore", "-c", text]
    if kind == "js":
        directory = installed("sdk.mjs")
        command = ["node", "--input-type=module", "--eval", text]
    return subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **QUIET},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_there_are_examples_for_all() -> None:
    """Of the SDKs that the page names, none is without one."""
    imported = " ".join(re.findall(r"(?:import|from) .*", "\n".join(text for _, text in EXAMPLES)))
    for name in ("cloister", "openai", "anthropic", "langchain_openai", "llama_index"):
        assert name in imported
    assert sum(kind == "js" for kind, _ in EXAMPLES) == 2
