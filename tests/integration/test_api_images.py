"""Images in every format of the API, with the embedded engine and a projector made up for it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from cloister.engine.llama import LlamaEngine, LlamaSettings
from cloister.engine.models import model_of_files, resolve_model, sha256_file
from cloister.engine.protocol import CHAT_COMPLETIONS, ModelFile
from cloister.engine.sandbox import Sandbox
from cloister.model_digest import Role
from support.pictures import data_url, jpeg_of_scans, png
from support.sealed import Inner, Peer
from support.tiny_parts import write_projector
from support.worker import running

pytestmark = pytest.mark.sandbox

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
RED, BLUE = png(28, 28, (255, 0, 0)), png(28, 28, (0, 0, 255))
TEXT = "What is it?"


def engine(projector: Path | None) -> LlamaEngine:
    files = dict(resolve_model("demo").files)
    if projector is not None:
        files[Role.PROJECTOR] = ModelFile(path=projector, sha256=sha256_file(projector))
    settings = LlamaSettings(parallel=1, threads=1, embeddings=False)
    return LlamaEngine(model_of_files(files, name="seeing"), isolation=Sandbox(), settings=settings)


def asked(path: str, image: bytes) -> dict[str, Any]:
    """A question about an image, in the words of each format."""
    parts: dict[str, list[dict[str, Any]]] = {
        CHAT_COMPLETIONS: [
            {"type": "text", "text": TEXT},
            {"type": "image_url", "image_url": {"url": data_url(image)}},
        ],
        RESPONSES: [
            {"type": "input_text", "text": TEXT},
            {"type": "input_image", "image_url": data_url(image)},
        ],
        MESSAGES: [
            {"type": "text", "text": TEXT},
            {
                "type": "image",
                "source": {
                    "type": "base64",
                    "media_type": "image/png",
                    "data": base64.b64encode(image).decode(),
                },
            },
        ],
    }
    conversation = [{"role": "user", "content": parts[path]}]
    limit = "max_output_tokens" if path == RESPONSES else "max_tokens"
    name = "input" if path == RESPONSES else "messages"
    return {"model": "seeing", name: conversation, limit: 24, "temperature": 0}


async def said(peer: Peer, path: str, image: bytes) -> str:
    inner = await peer.ask(path, asked(path, image))
    assert inner.status == 200, inner.body
    match path:
        case "/v1/responses":
            text: str = inner.json["output"][0]["content"][0]["text"]
        case "/v1/messages":
            text = inner.json["content"][0]["text"]
        case _:
            text = inner.json["choices"][0]["message"]["content"]
    return text


async def test_every_format_shows_the_same_image(tmp_path: Path) -> None:
    made = engine(write_projector(tmp_path / "projector.gguf"))
    async with running(engine=made) as bench:  # type: ignore[arg-type]  # an engine like others
        red, blue = [
            {
                await said(bench.peer, path, image)
                for path in (CHAT_COMPLETIONS, RESPONSES, MESSAGES)
            }
            for image in (RED, BLUE)
        ]
        listed = (await bench.peer.ask("/v1/models")).json["data"]
    assert len(red) == len(blue) == 1
    assert red != blue
    assert sorted(listed[0]["cloister"]["files"]) == ["model", "projector"]


@pytest.mark.parametrize("path", [CHAT_COMPLETIONS, RESPONSES, MESSAGES])
async def test_what_cannot_be_read_is_refused_by_name(path: str, tmp_path: Path) -> None:
    def refused(inner: Inner, why: str) -> None:
        assert (inner.status, inner.error["code"]) == (400, "engine_refused")
        assert why in inner.error["message"]

    blind = engine(None)
    async with running(engine=blind) as bench:  # type: ignore[arg-type]  # as above
        refused(await bench.peer.ask(path, asked(path, RED)), "'image_url'")
    seeing = engine(write_projector(tmp_path / "projector.gguf"))
    async with running(engine=seeing) as bench:  # type: ignore[arg-type]  # as above
        assert await said(bench.peer, path, RED)
        assert await said(bench.peer, path, jpeg_of_scans(28, 28, scans=2))
        many = jpeg_of_scans(28, 28, scans=1_000)
        refused(await bench.peer.ask(path, asked(path, many)), "PNG, JPEG or GIF")
        refused(await bench.peer.ask(path, asked(path, b"canary")), "PNG, JPEG or GIF")
        refused(await bench.peer.ask(path, asked(path, png(8_000, 8_000))), "pixels")
