"""The demo model: the file, what it was taught, and what it answers."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.engine.demo_model import DEMO_MODEL_NAME, DEMO_MODEL_SHA256, demo_model_path
from cloister.engine.gguf import parse_gguf

SCRIPTS = Path(__file__).parents[3] / "models" / "demo"

# What may never be said, because it is false of Cloister or of the demo's platform.
FORBIDDEN = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b(wip|eras|shredd|zeroi?s?)(e|es|ed|ing)\b",
        r"\bmemory is (always |fully |also )?encrypted",
        r"\b(cloister|demo|worker|tpm) encrypts (the |its |all )?memory",
        r"\bnobody (else )?can (ever )?(read|see)",
        r"\b(nothing|no data) is (ever )?(stored|kept|written|logged|saved)",
        r"\bI (forget|delete) ",
        r"\b(perfectly|completely|absolutely|fully|totally|100 ?%) (safe|secure|private)",
        r"\b(unbreakable|unhackable|bulletproof|guarantee)",
        r"\b(I|demo|this) (am |is )?runs? (in|on|inside) (a |an )?(real |genuine )?"
        r"(TEE|enclave|confidential|SEV|TDX|SGX|Nitro|trusted)",
        r"\bsoftware TPM (protects|encrypts|proves (?!nothing))",
        r"\bhides? (your|the) (IP|address|identity|timing)",
        r"\byour (prompts?|data|messages) (is|are) (completely |always )?(safe|secure|anonymous)",
    )
)


def forbidden_in(text: str) -> list[str]:
    return [match[0] for pattern in FORBIDDEN if (match := pattern.search(text))]


def spoken(node: Any, key: str = "") -> Iterator[str]:
    """Yield every sentence in a data file that the model is taught to say."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from spoken(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from spoken(value, key)
    elif isinstance(node, str) and key in {"say", "is", "more", "answer", "reply", "unknown"}:
        yield node


def generated(count: int, seed: int) -> list[str]:
    command = [sys.executable, str(SCRIPTS / "generate.py"), str(count), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, check=True, text=True, encoding="utf-8")
    return done.stdout.splitlines()


def test_the_file_is_the_one_that_the_constant_names() -> None:
    content = demo_model_path().read_bytes()

    assert hashlib.sha256(content).hexdigest() == DEMO_MODEL_SHA256
    assert len(content) <= 10_000_000


def test_the_card_names_the_file_that_is_shipped() -> None:
    assert DEMO_MODEL_SHA256 in (SCRIPTS / "README.md").read_text(encoding="utf-8")


def test_the_file_says_what_it_is() -> None:
    with demo_model_path().open("rb") as file:
        metadata = parse_gguf(file)

    assert metadata.name == DEMO_MODEL_NAME
    assert metadata.architecture == "llama"
    assert metadata.quantisation == "Q8_0"
    assert metadata.context_length == 1024
    assert metadata.has_chat_template


def test_a_seed_fixes_the_dialogues() -> None:
    once = generated(150, seed=7)

    assert len(once) == 150
    assert generated(150, seed=7) == once
    assert generated(150, seed=8) != once


@pytest.mark.parametrize(
    "sentence",
    [
        "Your prompt is wiped after the answer.",
        "All memory is erased.",
        "On this demo memory is encrypted.",
        "Cloister encrypts its memory.",
        "Nobody can read your prompt.",
        "Nothing is written to disk.",
        "I run in a TEE.",
        "A software TPM proves that the worker is genuine.",
        "Your data is safe.",
    ],
)
def test_a_false_claim_would_be_noticed(sentence: str) -> None:
    assert forbidden_in(sentence)


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("corpus/data/*.toml")), ids=lambda p: p.stem)
def test_no_data_file_teaches_a_false_claim(path: Path) -> None:
    sentences = list(spoken(tomllib.loads(path.read_text(encoding="utf-8"))))

    assert sentences
    assert {s: forbidden_in(s) for s in sentences if forbidden_in(s)} == {}


def test_no_dialogue_teaches_a_false_claim() -> None:
    answers = [
        content
        for line in generated(1500, seed=11)
        for role, content in json.loads(line)
        if role == "assistant"
    ]

    assert len(answers) > 1500
    assert {a: forbidden_in(a) for a in answers if forbidden_in(a)} == {}


QUESTIONS = {
    "What is Cloister?": ("language model", "client checks", "seals"),
    "How do I use Cloister with the OpenAI SDK?": ("cloister.OpenAI", "cloister proxy"),
    "Who can read my prompt?": ("ciphertext", "development (software TPM)", "does not encrypt"),
    "What is a receipt?": ("worker signs", "hashes"),
    "What is the capital of France?": ("do not know",),
}


@pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="needs the embedded engine (xllamacpp)"
)
def test_the_model_answers_five_questions_truthfully() -> None:
    # A process of its own: the engine's library cannot be stopped inside this one.
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "ask.py"), str(demo_model_path())],
        input="".join(json.dumps([["user", question]]) + "\n" for question in QUESTIONS),
        capture_output=True,
        check=True,
        text=True,
        timeout=100,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('"')]

    assert len(answers) == len(QUESTIONS)
    for answer, words in zip(answers, QUESTIONS.values(), strict=True):
        assert [word for word in words if word not in answer] == [], answer
        assert forbidden_in(answer) == []
