"""Measures models, each in a fresh process (`cloister.engine.measure_child`)."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from cloister.engine.gguf import parse_gguf
from cloister.engine.perplexity import WINDOW, Perplexity, ratio, scored, summarise
from cloister.errors import ConfigurationError, EngineError

MIN_ROUNDS: Final = 5
_MAX_LINE: Final = 1 << 30
_BASES: Final = ("F16", "BF16", "F32")
"""What a ratio is to: the first of these among the models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOptions:
    """What to measure. `windows` bounds how much of the text is scored; None: all of it.

    `steps` tokens are timed in each of `rounds` rounds. `special` reads control tokens that the
    text spells out as such.
    """

    text: Path
    window: int = WINDOW
    windows: int | None = None
    rounds: int = MIN_ROUNDS
    steps: int = 64
    threads: int = 1
    special: bool = False

    def __post_init__(self) -> None:
        if self.rounds < MIN_ROUNDS:
            raise ConfigurationError(
                f"a median of fewer than {MIN_ROUNDS} rounds says little", code="bench.rounds"
            )
        if not 1 <= self.steps <= self.window // 2 or self.threads < 1 or (self.windows or 1) < 1:
            raise ConfigurationError(
                "the window, the steps in its second half, the windows and the threads are "
                "positive numbers",
                code="bench.sizes",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One model. Sizes in bytes, times in seconds.

    `resident` is what the whole measuring process held after the timed tokens, `resident_before`
    the part of it that was there before the model.
    """

    name: str
    quantisation: str
    file_bytes: int
    parameters: int
    resident: int
    resident_before: int
    times: tuple[float, ...]
    perplexity: Perplexity
    text_tokens: int
    tokens_sha256: str
    surprises: tuple[float, ...] = field(repr=False)

    @property
    def seconds_per_token(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.times)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the table: a model, and its perplexity over the base's with the error of that."""

    model: Measured
    ratio: tuple[float, float] | None


def measure_model(
    path: Path, options: MeasureOptions, progress: Callable[[int, int], None] = lambda *_: None
) -> Measured:
    """Measure one model; `progress` is called with the windows done and the windows there are.

    Raises:
        ConfigurationError: the file or the text cannot be used; MalformedError: it is not GGUF.
        EngineError: the engine does not load or survive it.
        UnsupportedError: the engine's interface is another than the one known.
    """
    described = _describe(path)
    if options.window > described.context_length > 0:
        raise ConfigurationError(
            f"{path.name} was trained for {described.context_length} tokens of context: choose "
            "a smaller --window",
            code="perplexity.window",
        )
    found = _run(path, options, progress)
    surprises = tuple(float(value) for value in found["surprises"])
    if not surprises or len(surprises) % scored(options.window):
        raise EngineError("the measuring process does not tell what it was asked", code="engine")
    if not all(map(math.isfinite, surprises)):
        raise EngineError(
            f"{path.name} gives no numbers: the file is damaged, or its type overflows",
            code="engine.not_finite",
        )
    return Measured(
        name=path.name,
        quantisation=described.quantisation,
        file_bytes=path.stat().st_size,
        parameters=int(found["parameters"]),
        resident=int(found["resident"]),
        resident_before=int(found["resident_before"]),
        times=tuple(float(value) for value in found["times"]),
        perplexity=summarise(surprises),
        text_tokens=int(found["text_tokens"]),
        tokens_sha256=str(found["tokens_sha256"]),
        surprises=surprises,
    )


def rows(models: Sequence[Measured]) -> tuple[Row, ...]:
    """The models with their ratios to the one that is not quantised, where there is one.

    No ratio is given to a model that splits the text in another way.
    """
    base = next((m for name in _BASES for m in models if m.quantisation == name), None)
    return tuple(Row(model=model, ratio=_ratio(model, base)) for model in models)


def _ratio(model: Measured, base: Measured | None) -> tuple[float, float] | None:
    if base is None or model.tokens_sha256 != base.tokens_sha256:
        return None
    return ratio(model.surprises, base.surprises)


def _describe(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return parse_gguf(file)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read (errno {error.errno})", code="configuration.model"
        ) from None


def _run(
    path: Path, options: MeasureOptions, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    settings = {
        "model": str(path.resolve()),
        "text": str(options.text.resolve()),
        "window": options.window,
        "limit": options.windows,
        "rounds": options.rounds,
        "steps": options.steps,
        "threads": options.threads,
        "special": options.special,
    }
    command = [sys.executable, "-m", "cloister.engine.measure_child", json.dumps(settings)]
    with subprocess.Popen(  # noqa: S603 - our own program
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    ) as child:
        try:
            assert child.stdout is not None  # noqa: S101 - it was asked for
            return _result(child.stdout, progress)
        except EOFError:
            code = child.wait()
            raise EngineError(
                f"the engine did not survive {path.name} (exit status {code})", code="engine.ended"
            ) from None
        finally:
            child.kill()


def _result(lines: IO[bytes], progress: Callable[[int, int], None]) -> dict[str, Any]:
    while line := lines.readline(_MAX_LINE):
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            continue  # the library prints now and then
        if "error" in message:
            raise _error(message)
        if "surprises" in message:
            return message
        progress(int(message["done"]), int(message["of"]))
    raise EOFError


def _error(message: dict[str, Any]) -> Exception:
    """The child's deliberate error, as the same kind of error here."""
    from cloister import errors

    kind = getattr(errors, str(message["error"]), EngineError)
    made: Exception = kind(str(message["message"]), code=str(message["code"]))
    return made
