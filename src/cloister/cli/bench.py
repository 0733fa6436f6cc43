"""``cloister bench``: what quantising costs and saves, and what an endpoint delivers."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.asking import ApiKey, Development, Kit, Policy, Proxy, References, Root
from cloister.errors import ConfigurationError

bench = typer.Typer(no_args_is_help=True)

Markdown = Annotated[
    Path | None, typer.Option("--markdown", help="Also write the table as Markdown.")
]
Csv = Annotated[Path | None, typer.Option("--csv", help="Also write the table as CSV.")]
Png = Annotated[Path | None, typer.Option("--png", help="Also draw it; needs matplotlib.")]
Body = Annotated[
    str | None, typer.Option("--body", help="Further fields of each request, as JSON.")
]


@bench.command()
def quantization(
    models: Annotated[list[Path], typer.Argument(help="GGUF files, one of them F16 for ratios.")],
    *,
    text: Annotated[
        Path, typer.Option("--text", help="Text like what the model will be asked, in UTF-8.")
    ],
    window: Annotated[int, typer.Option("--window", "-c", min=4, help="Tokens of context.")] = 512,
    windows: Annotated[
        int | None, typer.Option("--windows", min=1, help="Score so many windows only.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=5, help="Rounds of timing.")] = 5,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Tokens timed in a round.")] = 64,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="By default all cores but one.")
    ] = None,
    special: Annotated[
        bool,
        typer.Option("--special", help="Read control tokens that the text spells out as such."),
    ] = False,
    markdown: Markdown = None,
    csv: Csv = None,
    png: Png = None,
) -> None:
    """Size, memory, time per token and perplexity of models, on your own text."""
    from cloister.cli import bench_tables as tables
    from cloister.cli.quantize import bars
    from cloister.engine.gguf_copy import load_gguf_package
    from cloister.engine.measure_model import MeasureOptions, measure_model, rows

    load_gguf_package()
    if png is not None:
        tables.check_png()
    if not text.is_file():
        raise ConfigurationError(f"there is no text at {text}", code="bench.text")
    options = MeasureOptions(
        text=text,
        window=window,
        windows=windows,
        rounds=rounds,
        steps=min(steps, window // 2),
        threads=threads or max(1, len(os.sched_getaffinity(0)) - 1),
        special=special,
    )
    measured = []
    with bars() as progress:
        for path in models:
            progress(path.name, 0, 1)
            measured.append(measure_model(path, options, functools.partial(progress, path.name)))
    found = rows(measured)
    _show(tables.QUANTIZATION_HEADER, tables.quantization_cells(found))
    typer.echo(tables.description(found, options), err=True)
    _write(markdown, tables.quantization_markdown(found, options))
    _write(csv, tables.quantization_csv(found))
    if png is not None:
        tables.quantization_png(found, png)


@bench.command()
def serve(
    url: Annotated[str, typer.Argument(help="The endpoint, with or without /v1.")],
    *,
    plain: Annotated[
        bool, typer.Option("--plain", help="An endpoint that is not sealed; nothing is checked.")
    ] = False,
    streams: Annotated[
        str, typer.Option("--streams", help="How many at a time, one level after another.")
    ] = "1,8",
    requests: Annotated[
        int, typer.Option("--requests", min=1, help="On each stream, one after another.")
    ] = 4,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1)] = 128,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="What to ask; {marker} must be in it.")
    ] = None,
    body: Body = None,
    model: Annotated[str | None, typer.Option("--model", help="By default the first.")] = None,
    pid: Annotated[
        int | None,
        typer.Option("--pid", help="The server's, if it is here: its CPU and its children's."),
    ] = None,
    kit: Kit = None,
    policy: Policy = None,
    reference_values: References = None,
    root: Root = None,
    development: Development = False,
    proxy: Proxy = None,
    api_key: ApiKey = None,
    markdown: Markdown = None,
    csv: Csv = None,
    png: Png = None,
) -> None:
    """Throughput, latencies and CPU of an endpoint, sealed unless told otherwise."""
    import asyncio

    from cloister.cli import bench_serve
    from cloister.cli.asking import trust_from

    levels = bench_serve.parse_levels(streams)
    extra = bench_serve.parse_body(body)
    _check_png(png)
    if plain:
        endpoint = bench_serve.plain_endpoint(url, proxy)
    else:
        trust = trust_from(kit, policy, reference_values, root, development=development)
        endpoint = bench_serve.sealed_endpoint(url, trust, proxy)
    asked = bench_serve.Asked(
        levels=levels,
        requests=requests,
        max_tokens=max_tokens,
        prompt=prompt,
        extra=extra,
        model=model,
        api_key=api_key,
        pid=pid,
    )
    found = asyncio.run(bench_serve.run(endpoint, asked))
    _show(bench_serve.HEADER, bench_serve.cells(found))
    _write(markdown, bench_serve.markdown(found, sealed=not plain))
    _write(csv, bench_serve.csv(found))
    if png is not None:
        bench_serve.png(found, png)
    code = bench_serve.judge(found)
    if code:
        raise typer.Exit(code)


@bench.command()
def compare(
    model: Annotated[str, typer.Argument(help="demo, a GGUF file, or hf:ORG/REPO/FILE.")] = "demo",
    *,
    model_sha256: Annotated[
        str | None, typer.Option("--model-sha256", help="Its SHA-256; required if it is fetched.")
    ] = None,
    arms: Annotated[
        str,
        typer.Option(
            "--arms",
            help="plain, plain+sandbox, sealed, sealed+sandbox; the first is what the others are "
            "compared with.",
        ),
    ] = "plain,plain+sandbox,sealed+sandbox",
    streams: Annotated[
        str, typer.Option("--streams", help="How many at a time, one level after another.")
    ] = "1,8",
    pairs: Annotated[
        int, typer.Option("--pairs", min=2, help="How often each arm runs on each level.")
    ] = 10,
    requests: Annotated[
        int, typer.Option("--requests", min=1, help="On each stream in each turn.")
    ] = 1,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=2)] = 128,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="What to ask; {marker} must be in it.")
    ] = None,
    body: Body = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="By default all cores but one.")
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", min=1, help="Tokens per request.")
    ] = None,
    markdown: Markdown = None,
    csv: Csv = None,
    png: Png = None,
) -> None:
    """What sandbox and seal cost: one engine served in several ways, measured by turns."""
    import asyncio

    from cloister.cli import bench_arms, bench_compare, bench_serve
    from cloister.cli.model_options import ModelOptions, models_from
    from cloister.cli.quantize import bars

    _check_png(png)
    levels = bench_serve.parse_levels(streams)
    digests = () if model_sha256 is None else (model_sha256,)
    comparison = bench_compare.Comparison(
        arms=bench_arms.parse_arms(arms),
        serving=bench_arms.Serving(
            model=models_from(ModelOptions(models=(model,), sha256=digests))[0],
            parallel=bench_arms.places_for(max(levels)),
            threads=threads or max(1, len(os.sched_getaffinity(0)) - 1),
            context=context,
        ),
        levels=levels,
        pairs=pairs,
        requests=requests,
        max_tokens=max_tokens,
        prompt=prompt or bench_compare.PROMPT,
        extra=bench_serve.parse_body(body),
    )
    with bars() as progress:
        found = asyncio.run(
            bench_compare.compare(comparison, functools.partial(progress, "compare"))
        )
    _show(bench_compare.HEADER, bench_compare.cells(found))
    typer.echo(bench_compare.description(found, comparison), err=True)
    _write(markdown, bench_compare.markdown(found, comparison))
    _write(csv, bench_compare.csv(found))
    if png is not None:
        bench_compare.png(found, png)
    code = bench_compare.judge(found)
    if code:
        raise typer.Exit(code)


def _check_png(path: Path | None) -> None:
    if path is not None:
        from cloister.cli.bench_tables import check_png

        check_png()


def _show(header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """The table on standard output; as Markdown where that is no terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from cloister.cli.asking import plain
    from cloister.cli.bench_tables import table_markdown

    if not sys.stdout.isatty():
        typer.echo(table_markdown(header, lines), nl=False)
        return
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    for line in lines:
        table.add_row(*(Text(plain(cell)) for cell in line))
    Console().print(table)


def _write(path: Path | None, text: str) -> None:
    if path is None:
        return
    try:
        path.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written (errno {error.errno})", code="bench.write"
        ) from None
