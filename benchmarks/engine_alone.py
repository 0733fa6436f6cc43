"""The engine in its sandbox and nothing else: what a start costs before anything is sealed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.children import read_spec, say
from benchmarks.worker_process import llama_engine


async def _run(model: Path) -> None:
    engine = llama_engine(model, parallel=8, context=512)
    await engine.start()
    say(ready=True)
    await engine.aclose()


def main() -> None:
    """Start, say so, end. The spec: ``model``."""
    asyncio.run(_run(Path(read_spec()["model"])))


if __name__ == "__main__":
    main()
