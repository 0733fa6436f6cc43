"""LlamaIndex as a program would use it: a chat, an agent, and a question about documents.

Run in LlamaIndex's own environment (see `tests/support/llama_index.py`) with one JSON argument, a
list of objects: `tasks`; `url`, a root without a path; `model`; for the sealed way `kit`, a
directory of pins; and for the task of that name `example`, a program. Prints one line of JSON, the
answers in the same order.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sys
from typing import Any

import httpx
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

QUESTION = "What is a TEE?"
TEXTS = [
    "A trusted execution environment is an isolated area of a processor.",
    "A hypervisor is the software that runs virtual machines on a host.",
    "A password manager keeps long random passwords for you.",
]


def clients(settings: dict[str, Any]) -> dict[str, Any]:
    """HTTP clients for one task: verifying ones where there are pins."""
    if "kit" not in settings:
        return {
            "http_client": httpx.Client(trust_env=False),
            "async_http_client": httpx.AsyncClient(trust_env=False),
        }
    from cloister.client import make_trust
    from cloister.client.httpx_transport import AsyncHttpxTransport, HttpxTransport

    trust = make_trust(kit=settings["kit"], development=True)
    url = settings["url"]
    return {
        "http_client": httpx.Client(transport=HttpxTransport(url, trust, trust_env=False)),
        "async_http_client": httpx.AsyncClient(
            transport=AsyncHttpxTransport(url, trust, trust_env=False)
        ),
    }


def model_of(settings: dict[str, Any]) -> OpenAILike:
    """The language model at `url`."""
    return OpenAILike(
        model=settings["model"],
        api_base=settings["url"] + "/v1",
        api_key="unused",
        is_chat_model=True,
        is_function_calling_model=True,
        context_window=1024,
        max_tokens=24,
        temperature=0,
        max_retries=0,
        **clients(settings),
    )


def embedding_of(settings: dict[str, Any]) -> OpenAILikeEmbedding:
    """The embedding model at `url`."""
    given = clients(settings)
    return OpenAILikeEmbedding(
        model_name=settings["model"],
        api_base=settings["url"] + "/v1",
        api_key="unused",
        http_client=given["http_client"],
        async_http_client=given["async_http_client"],
        # llama.cpp computes other vectors for texts that share a batch; Cloister never lets them.
        embed_batch_size=1,
    )


def chat(settings: dict[str, Any]) -> dict[str, Any]:
    """Whole, in pieces, and asynchronously."""

    async def aside() -> list[str]:
        stream = await model_of(settings).astream_complete(QUESTION)
        return [piece.delta or "" async for piece in stream]

    model = model_of(settings)
    return {
        "whole": str(model.complete(QUESTION)),
        "pieces": [piece.delta or "" for piece in model.stream_complete(QUESTION)],
        "aside": asyncio.run(aside()),
    }


def agent(settings: dict[str, Any]) -> dict[str, Any]:
    """An agent that may call two tools."""
    called: list[list[str]] = []

    def weather(city: str) -> str:
        """Say the weather."""
        called.append(["weather", city])
        return "rain"

    def time(zone: str) -> str:
        """Say the time."""
        called.append(["time", zone])
        return "noon"

    async def run() -> str:
        made = FunctionAgent(tools=[weather, time], llm=model_of(settings))
        return str(await made.run(QUESTION))

    return {"final": asyncio.run(run()), "called": sorted(called)}


def retrieval(settings: dict[str, Any]) -> dict[str, Any]:
    """Ask about documents: vectors from the model, the nearest text into the question."""
    # LlamaIndex would fetch a tokeniser to count tokens with; words will do.
    Settings.tokenizer = str.split
    Settings.embed_model = embedding_of(settings)
    Settings.llm = MockLLM()
    index = VectorStoreIndex.from_documents(
        [Document(text=text) for text in TEXTS],
        transformations=[SentenceSplitter(chunk_size=128, chunk_overlap=0)],
    )
    found = index.as_retriever(similarity_top_k=3).retrieve(QUESTION)
    engine = index.as_query_engine(llm=model_of(settings), similarity_top_k=1)
    return {
        "order": [TEXTS.index(node.text) for node in found],
        "scores": [node.score for node in found],
        "answer": str(engine.query(QUESTION)),
    }


def example(settings: dict[str, Any]) -> str:
    """Run a program, and say what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(settings["example"], "<example>", "exec"), {"__name__": "example"})
    return output.getvalue()


TASKS = {"chat": chat, "agent": agent, "retrieval": retrieval, "example": example}


def main() -> None:
    """Do what was asked for, one after the other; importing LlamaIndex is what takes long."""
    done = [
        {task: TASKS[task](settings) for task in settings["tasks"]}
        for settings in json.loads(sys.argv[1])
    ]
    print(json.dumps(done))


if __name__ == "__main__":
    main()
