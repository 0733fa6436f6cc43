"""``cloister model``: from what is published to what an engine loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from cloister.engine.prepare import Prepared

model = typer.Typer(no_args_is_help=True)


@model.callback()
def _group() -> None:
    """Prepare models."""


@model.command()
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            help="A GGUF file, a Hugging Face folder of safetensors, or hf:ORG/REPO@COMMIT."
        ),
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder of its own.")],
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Of a hub model: this file only; may be repeated."),
    ] = None,
    expect: Annotated[
        Path | None,
        typer.Option("--expect", help="A model.json whose files these have to be, to the byte."),
    ] = None,
    tensorrt_llm: Annotated[
        bool,
        typer.Option("--tensorrt-llm", help="Build an engine from a TensorRT-LLM checkpoint."),
    ] = False,
    trtllm_argument: Annotated[
        list[str] | None,
        typer.Option("--trtllm-argument", help="For trtllm-build, as it is; may be repeated."),
    ] = None,
) -> None:
    """Check a model's files, put what an engine needs into a folder, and record the digests."""
    from cloister.engine.model_record import NAME, read_record
    from cloister.engine.prepare import build_tensorrt, check_expected

    expected = None if expect is None else read_record(expect)
    if tensorrt_llm:
        done = build_tensorrt(Path(source), out, arguments=trtllm_argument or ())
    else:
        done = _copied(source, out, only or ())
    if expected is not None:
        try:
            check_expected(done.record, expected)
        except BaseException:
            # Without its record nothing takes the folder for prepared.
            (out / NAME).unlink(missing_ok=True)
            raise
    for file in done.record.outputs:
        typer.echo(f"{file.sha256}  {out / file.path}")
    if done.left:
        typer.echo(f"left behind: {', '.join(done.left)}", err=True)
    typer.echo(_next(done, out), err=True)


def _copied(source: str, out: Path, only: tuple[str, ...] | list[str]) -> Prepared:
    from cloister.cli.quantize import bars
    from cloister.engine.fetch import HttpsFetcher
    from cloister.engine.hub import parse_hub_reference
    from cloister.engine.prepare import prepare_hub, prepare_local

    with bars() as progress:
        if source.startswith("hf:"):
            hub = parse_hub_reference(source)
            return prepare_hub(hub, out, fetcher=HttpsFetcher(), only=only, progress=progress)
        if only:
            raise ConfigurationError("--only is for hub models", code="model.hub")
        return prepare_local(Path(source).expanduser(), out, progress=progress)


def _next(done: Prepared, out: Path) -> str:
    if done.kind == "gguf":
        first = next(file for file in done.record.outputs if file.path.endswith(".gguf"))
        return f"serve it: cloister serve --model {out / first.path} --model-sha256 {first.sha256}"
    return (
        f"an engine of your own loads {out}; put Cloister before it with cloister serve --upstream"
    )
