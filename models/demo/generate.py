"""Write the training dialogues as JSON lines: generate.py COUNT --seed N --out FILE."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from corpus.dialogue import dialogues


def main() -> None:
    """Write one dialogue per line, as a list of [role, content] pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, help="standard output if left out")
    arguments = parser.parse_args()
    made = dialogues(arguments.count, arguments.seed)
    lines = (json.dumps(messages, ensure_ascii=False) + "\n" for messages in made)
    if arguments.out is None:
        sys.stdout.writelines(lines)
        return
    with arguments.out.open("w", encoding="utf-8") as file:
        file.writelines(lines)


if __name__ == "__main__":
    main()
