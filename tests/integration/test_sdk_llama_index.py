"""LlamaIndex: bare, through `cloister proxy`, and with a verifying transport as its HTTP client.

It brings the OpenAI SDK's second major version, which speaks through `httpx`: what is shown here
is that those who use that one are served as well. `tests/interop/llama_index/asks.py` asks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloister.testing.fake_engine import Answer
from cloister.testing.fake_formats import ToolCall
from support import llama_index
from support.endpoints import WAYS, Ground, Way, embedded, scripted, write_kit
from support.examples import LLAMA_INDEX, placed

pytestmark = pytest.mark.llama_index

WORDS = ("It ", "rains", " \N{SNOWMAN}", ".")
TEXT = "".join(WORDS)
WEATHER = ToolCall(name="weather", arguments=('{"city"', ':"Oslo"}'), id="call_a")
TIME = ToolCall(name="time", arguments=('{"zone":"CET"}',), id="call_b")


def place(ground: Ground, way: Way, kit: Path, *tasks: str) -> dict[str, Any]:
    """What the script is told to do on this way."""
    pins = {"kit": str(write_kit(ground, kit / ground.model))} if way == "sealed" else {}
    return {"model": ground.model, "url": ground.url(way), "tasks": tasks, **pins}


@pytest.mark.sandbox
def test_an_agent_a_chat_and_a_question_about_documents(tmp_path: Path) -> None:
    """An agent on the scripted engine; the rest, and the page's example, on the embedded one.

    All in one process: importing LlamaIndex is what takes long.
    """
    with scripted() as acting, embedded(watched=True) as thinking:
        assert acting.script is not None
        acting.script.turns(Answer(tokens=(), calls=(WEATHER, TIME)), Answer(tokens=WORDS))
        places = [place(acting, way, tmp_path, "agent") for way in WAYS]
        places += [place(thinking, way, tmp_path, "chat", "retrieval") for way in WAYS]
        [example] = (placed(text, thinking, tmp_path / "page") for text in LLAMA_INDEX)
        places.append({"tasks": ["example"], "example": example})
        done = llama_index.run("asks.py", places)
        for way, answer in zip(WAYS, done[:3], strict=True):
            called = [["time", "CET"], ["weather", "Oslo"]]
            assert answer["agent"] == {"final": TEXT, "called": called}
            turns = acting.script.asked(way)["messages"]
            assert [turn["role"] for turn in turns][-3:] == ["assistant", "tool", "tool"]
        assert len(thinking.scene.proxy.sealed) > 10
        for request in thinking.scene.proxy.seen:
            assert b"What is a TEE?" not in request.body
    bare, sealed, proxied, shown = done[3:]
    said, found = bare["chat"], bare["retrieval"]
    assert said["whole"].startswith("No protection is perfect")
    assert "".join(said["pieces"]) == "".join(said["aside"]) == said["whole"]
    assert sorted(found["order"]) == [0, 1, 2]
    assert found["answer"]
    assert sealed == bare
    assert proxied == bare
    assert shown["example"].strip()
