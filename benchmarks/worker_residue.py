"""How long a prompt stays in the worker's own memory: ``python -m benchmarks.worker_residue``.

A count, no comparison, so that it is not among the benchmarks. Prompts with markers go through a
worker with the embedded engine; after each answer, and after others, the memory of the worker's
process (not of the engine's, which is exchanged) is searched for the markers. Needs root.
``PYTHONMALLOC`` and ``MALLOC_PERTURB_`` reach the worker, to see what they change.
"""

from __future__ import annotations

import os
import secrets
import time

import httpx2

from benchmarks.children import child
from benchmarks.memory import count_in
from benchmarks.stand_ins import UnsafeNoVerifier
from cloister.client.httpx2_transport import Httpx2Transport
from cloister.engine.demo_model import demo_model_path

AFTER = (0, 1, 2, 4, 8, 16, 64, 256)
SIZES = tuple((f"of {size} bytes", size) for size in (64, 256, 400, 1 << 10, 8 << 10, 512 << 10))
_SPEC = {"engine": "llama", "model": str(demo_model_path()), "parallel": 2, "context": 512}


def main() -> None:
    """Print how often each marker is found after so many further requests."""
    settings = {name: os.environ.get(name, "") for name in ("PYTHONMALLOC", "MALLOC_PERTURB_")}
    print(settings, "further requests:", *AFTER)
    with child("benchmarks.worker_process", _SPEC) as worker:
        origin = f"http://127.0.0.1:{worker.ready['port']}"
        with httpx2.Client(transport=Httpx2Transport(origin, UnsafeNoVerifier())) as client:

            def ask(text: str) -> None:
                message = {"role": "user", "content": text}
                body = {"model": worker.ready["model"], "messages": [message], "max_tokens": 4}
                client.post(f"{origin}/v1/chat/completions", json=body, timeout=60)

            for _ in range(20):
                ask("warm up")
            for name, size in SIZES:
                marker = secrets.token_hex(16)
                ask(f"{marker} ".ljust(size, "x"))  # too long a prompt is refused after it was read
                found, asked = [], 0
                for count in AFTER:
                    while asked < count:
                        ask("other words " * 8)
                        asked += 1
                    time.sleep(0.2)
                    found.append(count_in(worker.pid, marker.encode()))
                print(f"prompt {name}:", *found, flush=True)


if __name__ == "__main__":
    main()
