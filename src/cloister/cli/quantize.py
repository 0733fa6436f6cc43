"""``cloister quantize``: smaller copies of a GGUF model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_TYPES = "Q8_0,Q5_1,Q4_0"


def quantize(
    model: Annotated[Path, typer.Argument(help="A GGUF file, not quantised (F16, BF16 or F32).")],
    *,
    to: Annotated[
        str,
        typer.Option(
            "--to", help="Types, with commas between: F16, Q8_0, Q5_1, Q4_0, Q6_K, Q4_K, …"
        ),
    ] = DEFAULT_TYPES,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A folder; by default NAME-quantized beside the model."),
    ] = None,
    pure: Annotated[
        bool, typer.Option("--pure", help="Do not spare the output matrix (at least Q6_K).")
    ] = False,
    requantize: Annotated[
        bool,
        typer.Option("--requantize", help="Accept a quantised model: what it lost stays lost."),
    ] = False,
    threads: Annotated[int | None, typer.Option("--threads", min=1)] = None,
) -> None:
    """Write MODEL in other types, and model.json with what was read, made and used."""
    from cloister.engine.gguf_copy import load_gguf_package
    from cloister.engine.quantize import (
        QuantizeOptions,
        find_quantiser,
        parse_kinds,
        quantize_model,
    )

    kinds = parse_kinds(to)
    load_gguf_package()
    folder = (
        model.with_name(model.name.removesuffix(".gguf") + "-quantized") if out is None else out
    )
    options = QuantizeOptions(
        pure=pure, requantize=requantize, threads=threads or len(os.sched_getaffinity(0))
    )
    with bars() as progress:
        record = quantize_model(
            model, kinds, folder, quantiser=find_quantiser(), options=options, progress=progress
        )
    original = record.inputs[0].bytes
    for file in record.outputs:
        share = file.bytes / original
        typer.echo(
            f"{folder / file.path}  {file.bytes:,} bytes ({share:.0%})  sha256:{file.sha256}"
        )


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """Progress on standard error: a bar for each name, while the block runs."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    shown: dict[str, TaskID] = {}
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def update(name: str, done: int, total: int) -> None:
            if name not in shown:
                shown[name] = progress.add_task(name, total=total)
            progress.update(shown[name], completed=done, total=total)

        yield update
