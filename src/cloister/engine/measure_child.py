"""Measures one model in a process of its own: resident memory, time per token, surprises.

The process holds nothing but the interpreter and the engine while memory is read and tokens are
timed; numpy comes in afterwards. If the library does not survive the file, only this process ends.

Usage: ``python -m cloister.engine.measure_child SETTINGS_JSON``. Progress and the result are JSON
objects, one in a line, on standard output.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import time
from pathlib import Path
from typing import Any, Final

from cloister.engine.ggml import open_library
from cloister.engine.llama_api import LlamaModel
from cloister.engine.perplexity import surprises, windows_of
from cloister.errors import CloisterError

WARM_UPS: Final = 1
_KIB: Final = 1024


def main() -> None:
    """Measure, and print the result or the error."""
    settings = json.loads(sys.argv[1])
    try:
        _say(**_measure(settings))
    except CloisterError as error:
        _say(error=type(error).__name__, code=error.code, message=str(error))


def _measure(settings: dict[str, Any]) -> dict[str, Any]:
    before = _resident()
    model = LlamaModel(
        open_library(),
        Path(settings["model"]),
        context=settings["window"],
        threads=settings["threads"],
    )
    tokens = model.tokenise(Path(settings["text"]).read_bytes(), special=settings["special"])
    windows = windows_of(tokens, settings["window"], settings["limit"])
    times = _times(model, windows[0], settings)
    after = _resident()
    found = surprises(model, windows, lambda done: _say(done=done, of=len(windows)))
    packed = struct.pack(f"<{len(tokens)}i", *tokens)
    return {
        "resident": after,
        "resident_before": before,
        "times": times,
        "surprises": found,
        "text_tokens": len(tokens),
        "tokens_sha256": hashlib.sha256(packed).hexdigest(),
        "parameters": model.parameters,
        "trained_context": model.trained_context,
    }


def _times(model: LlamaModel, window: list[int], settings: dict[str, Any]) -> list[float]:
    """Seconds per token of each round: one token at a time, after half a window of text.

    The tokens are those of the text, not drawn: computing them costs the same, and every model
    does the same work. Sampling is not in it.
    """
    half = len(window) // 2
    steps = window[half : half + settings["steps"]]
    found = []
    for number in range(settings["rounds"] + WARM_UPS):
        model.forget()
        model.feed(window[:half], 0, scored_from=half - 1)
        model.wait()
        began = time.perf_counter()
        for index, token in enumerate(steps):
            model.feed([token], half + index, scored_from=0)
            model.wait()
        if number >= WARM_UPS:
            found.append((time.perf_counter() - began) / len(steps))
    return found


def _resident() -> int:
    """Bytes of memory that this process holds, mapped files included; 0 where it is not told."""
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * _KIB for line in lines if line.startswith("VmRSS:"))


def _say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
