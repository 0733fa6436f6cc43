"""Fuzzes one parser in this process: ``python -m fuzz.one NAME SECONDS FOLDER``.

With atheris (libFuzzer), guided by what code runs; without it, by hand: examples are spliced and
altered, and inputs that make the parser say something new are kept. Exits with 0 where nothing was
found; what was found lies in FOLDER.
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

MEMORY_MIB: Final = 2048
TIMEOUT_S: Final = 10
EVERYTHING: Final = ("cloister.evidence", "cloister.endorsements", "cloister.strictjson")


def main(name: str, seconds: int, folder: Path) -> int:
    """Fuzz the target with `name` for so many seconds."""
    warnings.simplefilter("ignore")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        return _by_hand(name, seconds, folder)
    return _guided(atheris, name, seconds, folder)


def _checked(name: str) -> Callable[[bytes], None]:
    """The parser; anything that it may not raise gets out."""
    from fuzz.targets import TARGETS

    target = TARGETS[name]

    def check(data: bytes) -> None:
        with contextlib.suppress(target.raises):
            target.parse(data)

    return check


def _guided(atheris: Any, name: str, seconds: int, folder: Path) -> int:
    with atheris.instrument_imports(include=list(EVERYTHING)):
        from fuzz.targets import TARGETS, examples
    target, corpus = TARGETS[name], folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(examples(target)):
        (corpus / f"example{number}").write_bytes(data[: target.longest])
    words = folder / "words"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
    atheris.Setup(
        [
            "fuzz",
            f"-max_total_time={seconds}",
            f"-max_len={target.longest}",
            f"-rss_limit_mb={MEMORY_MIB}",
            f"-timeout={TIMEOUT_S}",
            *([f"-dict={words}"] if target.words else []),
            f"-artifact_prefix={folder}/found-",
            "-print_final_stats=1",
            "-verbosity=1",
            str(corpus),
        ],
        _checked(name),
    )
    atheris.Fuzz()
    return 0  # unless libFuzzer has already left with its own status


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def _by_hand(name: str, seconds: float, folder: Path) -> int:
    from fuzz.targets import TARGETS, examples

    target, chance = TARGETS[name], random.Random(name)
    corpus = [data[: target.longest] for data in examples(target)] or [b""]
    said: set[str] = set()
    until, runs = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        data = altered(corpus, target.words, chance)[: target.longest]
        runs += 1
        try:
            target.parse(data)
            word = "decodes"
        except target.raises as error:
            word = "".join(letter for letter in str(error) if not letter.isdigit())
        except Exception:
            (folder / "found-by-hand").write_bytes(data)
            traceback.print_exc()
            return 1
        if word not in said and len(corpus) < 1000:
            said.add(word)
            corpus.append(data)
    print(f"stat::number_of_executed_units: {runs}")
    return 0


def altered(corpus: list[bytes], words: tuple[bytes, ...], chance: random.Random) -> bytes:
    """One of `corpus` with a few changes of the usual kinds."""
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(7):
            case 0:
                data[at : at + 1] = chance.randbytes(1)
            case 1:
                del data[at : at + chance.randrange(1, 64)]
            case 2:
                data[at:at] = chance.choice(words or (b"\0\0\0\0", b"\xff\xff\xff\xff"))
            case 3:
                data[at : at + 4] = chance.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff"))
            case 4:
                other = chance.choice(corpus)
                begin = chance.randrange(len(other) + 1)
                data[at:] = other[begin:]
            case 5:
                data[at:at] = data[at : at + chance.randrange(1, 256)]
            case _:
                if at < len(data):
                    data[at] ^= 1 << chance.randrange(8)
    return bytes(data)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
