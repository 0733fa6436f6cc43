"""Compare the engine's tokens with the trainer's: check_tokenizer.py MODEL TOKENIZER DIALOGUES.

A model sees nonsense if the engine splits text in another way than it was trained on, so every
message of some held-out dialogues goes through both.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from ask import Asker

COUNT = 400  # dialogues


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the engine's unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        """Connect to the socket in place of a host."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def engine_tokens(path: Path, text: str) -> list[int]:
    """Return the engine's tokens for a text without special tokens."""
    connection = UnixConnection(path)
    body = json.dumps({"content": text, "add_special": False, "parse_special": False})
    connection.request("POST", "/tokenize", body, {"Content-Type": "application/json"})
    tokens: list[int] = json.loads(connection.getresponse().read())["tokens"]
    connection.close()
    return tokens


def main() -> None:
    """Print how many texts were compared and how many differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("dialogues", type=Path)
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    lines = arguments.dialogues.read_text(encoding="utf-8").splitlines()[:COUNT]
    texts = sorted({content for line in lines for _, content in json.loads(line)})
    texts += ["café 北京 😀", "tabs\tand\n\nlines", "  spaces  ", "x" * 300, "3.14e-5", "it's I'LL"]
    with tempfile.TemporaryDirectory() as directory:
        asker = Asker(arguments.model, Path(directory))
        different = [
            text
            for text in texts
            if engine_tokens(asker.socket, text) != tokenizer.encode(text).ids
        ]
        print(f"{len(texts)} texts, {len(different)} differ", *different[:5], flush=True)
    os._exit(1 if different else 0)


if __name__ == "__main__":
    main()
