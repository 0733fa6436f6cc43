"""Stands in for vLLM, SGLang, TGI and Triton: takes their words, and answers as OpenAI's API.

It is run by the exact command line that is built for the real one, and ends at a word that the
real one does not know. Its answers tell what a test asks about: words, environment, what arrived,
how much of a prompt it had cached. Standard library only; runs inside the sandbox.

Usage: by the engine's own command line; the name of the script says which engine it is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

# Options of the releases that cloister.engine.command_lines names: with a value, and without.
VALUED = {
    "vllm": """
        uds served-model-name max-model-len max-num-seqs tensor-parallel-size load-format
        prefix-caching-hash-algo uvicorn-log-level gpu-memory-utilization mm-processor-cache-gb
    """,
    "sglang": """
        model-type model-path served-model-name host port context-length max-running-requests
        tp-size device load-format log-level log-level-http file-storage-path
        allowed-media-domains mm-preprocess-cache-size-mb
    """,
    "text-generation-launcher": """
        model-id tokenizer-config-path hostname port prometheus-port shard-uds-path
        huggingface-hub-cache max-total-tokens max-input-tokens max-concurrent-requests num-shard
        payload-limit usage-stats
    """,
    "main.py": """
        model-repository tokenizer backend host openai-port model-control-mode
        tritonserver-log-verbose-level uvicorn-log-level
    """,
}
SWITCHES = {
    "vllm": """
        no-trust-remote-code no-trust-request-chat-template enable-prefix-caching
        no-enable-prefix-caching no-enable-prompt-tokens-details no-enable-prompt-embeds
        no-enable-log-requests no-enable-log-outputs no-enable-log-deltas no-log-error-stack
        disable-log-stats disable-uvicorn-access-log disable-fastapi-docs no-enable-lora
        no-enable-sleep-mode enforce-eager
    """,
    "sglang": "disable-radix-cache",
}
ME = Path(sys.argv[0]).name


class Server:
    """One engine: what it was told, and what it remembers."""

    def __init__(self, words: argparse.Namespace) -> None:
        self.words = words
        self.given_up = 0
        self.prefixes: dict[str, list[str]] = {}
        self.ready = False

    @property
    def name(self) -> str:
        """What the model is called."""
        found: str = getattr(self.words, "served_model_name", None) or "tgi"
        if ME == "main.py":
            found = next(Path(self.words.model_repository).iterdir()).name
        return found

    def cached(self, body: dict[str, Any]) -> int:
        """How many characters of the prompt were there already, by vLLM's rule."""
        prompt = json.dumps(body.get("messages", body.get("prompt")))
        if not getattr(self.words, "enable_prefix_caching", False):
            return 0
        known = self.prefixes.setdefault(body.get("cache_salt", ""), [])
        best = max((_common(prompt, old) for old in known), default=0)
        known.append(prompt)
        return best

    def told(self, body: dict[str, Any]) -> dict[str, Any]:
        """What a test wants to know."""
        return {
            "words": sys.argv[1:],
            "environment": dict(os.environ),
            "fields": sorted(body),
            "salt": body.get("cache_salt"),
            "cached": self.cached(body),
            "given_up": self.given_up,
            "pid": os.getpid(),
        }

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests of one connection."""
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, ValueError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ", 2)[1].decode()
        length = next(
            (
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length:")
            ),
            0,
        )
        body = json.loads(await reader.readexactly(length) or b"{}")
        if path in ("/health", "/health/ready"):
            wrong = path != ("/health/ready" if ME == "main.py" else "/health")
            await _send(writer, 404 if wrong else 200 if self.ready else 503, {})
        elif path == "/v1/models":
            await _send(writer, 200, {"object": "list", "data": [{"id": self.name}]})
        elif path == "/v1/chat/completions" and body.get("stream"):
            await self._stream(reader, writer, body)
        elif path in ("/v1/chat/completions", "/v1/completions"):
            text = json.dumps(self.told(body))
            choice = {"index": 0, "message": {"role": "assistant", "content": text}}
            choice["text"] = text
            choice["finish_reason"] = "stop"
            answer = {"id": "x", "object": "chat.completion", "model": body["model"]}
            await _send(writer, 200, {**answer, "created": 1, "choices": [choice]})
        else:
            await _send(writer, 404, {"error": {"message": path}})
        return True

    async def _stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: dict[str, Any]
    ) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
        writer.write(b"transfer-encoding: chunked\r\n\r\n")
        gone = asyncio.create_task(reader.read(1))
        async for event in _events(body):
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await writer.drain()
            # One that computes without a word learns only from the connection who is gone.
            await asyncio.wait({gone}, timeout=None if body.get("silent") else 0.01)
            if gone.done():
                self.given_up += 1
                raise OSError("the client is gone")
        gone.cancel()
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _common(one: str, other: str) -> int:
    return next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if len(set(pair)) > 1),
        len(one),
    )


async def _events(body: dict[str, Any]) -> AsyncGenerator[bytes]:
    shell = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
    for at in range(int(body.get("max_tokens", 4))):
        choice = {"index": 0, "delta": {"content": f" word{at}"}, "finish_reason": None}
        yield b"data: %s\n\n" % json.dumps({**shell, "choices": [choice]}).encode()
    done = {"index": 0, "delta": {}, "finish_reason": "stop"}
    yield b"data: %s\n\n" % json.dumps({**shell, "choices": [done]}).encode()
    yield b"data: [DONE]\n\n"


async def _send(writer: asyncio.StreamWriter, status: int, document: object) -> None:
    body = json.dumps(document).encode()
    writer.write(b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n" % status)
    writer.write(b"content-length: %d\r\n\r\n%s" % (len(body), body))
    await writer.drain()


def parse() -> argparse.Namespace:
    """Take the command line as the engine would: an unknown word ends the program."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    if ME in ("vllm", "sglang"):
        parser.add_argument("command", choices=["serve"])
    if ME == "vllm":
        parser.add_argument("model")
    for name in VALUED[ME].split():
        parser.add_argument(f"--{name}")
    for name in SWITCHES.get(ME, "").split():
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args()


async def main() -> None:
    """Load for a while, then answer."""
    words = parse()
    server = Server(words)
    folder = Path("/model")
    if not (folder / "config.json").is_file() or not os.access("/tmp", os.W_OK):
        sys.exit(3)
    sys.stdout.write("loading, and a prompt that must not be seen: MARKER\n")
    sys.stdout.flush()
    if ME == "vllm":
        listener = await asyncio.start_unix_server(server.handle, words.uds)
    else:
        port = int(getattr(words, "port", None) or words.openai_port)
        host = getattr(words, "host", None) or words.hostname
        listener = await asyncio.start_server(server.handle, host, port)
    await asyncio.sleep(0.3)
    if (folder / "added_tokens.json").exists():  # the sign of a model that it cannot load
        sys.exit(4)
    server.ready = True
    await listener.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
