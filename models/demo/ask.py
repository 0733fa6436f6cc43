"""Ask a GGUF model through llama.cpp at temperature 0.

As a program it reads one JSON list of [role, content] messages per line from standard input
and prints one JSON string, the answer, per line: ask.py MODEL < conversations.jsonl. It runs
without a sandbox, so it is for models that you made yourself.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import xllamacpp

MAX_TOKENS = 256


class Asker:
    """One model in this process. The engine has no stop: end the process with os._exit."""

    def __init__(self, model: Path, socket_directory: Path, threads: int = 1) -> None:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(model)
        parameters.n_ctx = 1024
        parameters.n_parallel = 1
        parameters.cpuparams.n_threads = threads
        parameters.cpuparams_batch.n_threads = threads
        parameters.verbosity = 0
        parameters.ui = False
        # The engine always listens somewhere; a host that ends in .sock is a unix socket.
        self.socket = socket_directory / "engine.sock"
        parameters.hostnames = [str(self.socket)]
        self._server = xllamacpp.Server(parameters)

    def ask(self, messages: Sequence[tuple[str, str]]) -> str:
        """Return the answer to a conversation that ends with a user's message."""
        answers: list[str] = []

        def collect(reply: object) -> bool:
            parsed = json.loads(reply) if isinstance(reply, (str, bytes)) else reply
            if not isinstance(parsed, dict) or "choices" not in parsed:
                raise SystemExit(f"the engine answered {parsed}")
            answers.append(parsed["choices"][0]["message"]["content"])
            return False

        request = {
            "messages": [{"role": role, "content": content} for role, content in messages],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        self._server.handle_chat_completions(request, collect)
        return "".join(answers)


def main() -> None:
    """Answer every line, then leave without waiting for the engine's threads."""
    with tempfile.TemporaryDirectory() as directory:
        asker = Asker(Path(sys.argv[1]), Path(directory))
        for line in sys.stdin:
            print(json.dumps(asker.ask(json.loads(line))), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
