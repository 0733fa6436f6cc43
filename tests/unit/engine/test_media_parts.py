"""Images, sounds and videos come along or have an address in the web, and have no name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cloister.engine.media_parts import refused_medium

Part = dict[str, Any]
DATA = "data:image/png;base64,AA=="
IMAGE: Part = {"type": "image_url", "image_url": {"url": DATA}}

HOLDERS: list[Callable[[Part], Part]] = [
    lambda part: {"messages": [{"role": "user", "content": [part]}]},
    lambda part: {"messages": [1, {"role": "tool", "content": ["text", {}, part]}]},
    lambda part: {"query": {"content": [part]}, "documents": ["a"]},
    lambda part: {"query": [part], "documents": ["a"]},
    lambda part: {"query": "a", "documents": {"content": [part]}},
    lambda part: {"query": "a", "documents": ["b", {"content": [part]}]},
    lambda part: {"query": "a", "documents": ["b", ["c", part]]},
    lambda part: {"input": ["a", part]},
]


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize(
    ("part", "why"),
    [
        ({**IMAGE, "uuid": "x"}, "uuid"),
        ({**IMAGE, "uuid": None}, "uuid"),
        ({"type": "image_url", "uuid": "x"}, "uuid"),
        ({"image_url": None, "uuid": "x"}, "uuid"),
        ({"type": "input_audio", "input_audio": {"data": "AA=="}, "uuid": "x"}, "uuid"),
        ({"type": "image_url", "image_url": {"url": DATA, "content_hash": "x"}}, "content_hash"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "data: URL"),
        ({"type": "image_url", "image_url": "/tmp/other.png"}, "data: URL"),
        ({"type": "video_url", "video_url": {"url": "other.mp4"}}, "data: URL"),
        ({"type": "audio_url", "audio_url": {"url": "FILE:///tmp/other.wav"}}, "data: URL"),
        ({"type": "input_image", "image_url": [DATA]}, "data: URL"),
    ],
)
def test_what_names_another_medium_or_a_file_is_refused(
    holder: Callable[[Part], Part], part: Part, why: str
) -> None:
    for good in (
        IMAGE,
        {"type": "image_url", "image_url": "https://a.example/b.png"},
        {"text": "/a"},
    ):
        assert refused_medium(holder(good)) is None
    refused = refused_medium(holder(part))
    assert refused is not None
    assert why in refused


@pytest.mark.parametrize("kind", ["image", "video", "audio"])
def test_what_is_embedded_comes_along_too(kind: str) -> None:
    assert refused_medium({"input": [{"text": "/a", kind: DATA}]}) is None
    assert refused_medium({"input": [{"text": "/a", kind: "/tmp/other.png"}]}) is not None


def test_the_same_words_elsewhere_are_nobodys_image() -> None:
    schema = {"type": "object", "properties": {"uuid": {"type": "string"}, "image_url": {}}}
    assert (
        refused_medium(
            {
                "messages": [{"role": "user", "content": "uuid file:///a", "uuid": 1}, None],
                "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
                "documents": [{"title": "a", "text": "b", "uuid": "c"}],
                "input": "file:///a",
                "query": "uuid",
            }
        )
        is None
    )
