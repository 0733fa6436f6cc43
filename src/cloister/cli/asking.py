"""What ``verify``, ``chat`` and ``proxy`` share: options of trust, and how a result is shown."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.verifier.result import Claim, Finding

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from cloister.client.attestation import Verifier
    from cloister.client.exchange import SealedExchange
    from cloister.client.manifest_options import ManifestOptions
    from cloister.verifier.result import AttestationResult

Url = Annotated[str, typer.Argument(help="The worker's address, with or without /v1.")]
Kit = Annotated[
    Path | None,
    typer.Option(
        "--kit",
        help="A directory with policy.toml, reference-values.json and enrolment-ca.pem.",
        envvar="CLOISTER_KIT",
    ),
]
Policy = Annotated[
    Path | None, typer.Option("--policy", help="An appraisal policy, instead of the kit's.")
]
References = Annotated[
    Path | None,
    typer.Option("--reference-values", help="What the worker must be made of."),
]
Root = Annotated[
    list[Path] | None,
    typer.Option(
        "--root", help="An enrolment CA (PEM) to pin besides the vendors' roots; may be repeated."
    ),
]
Development = Annotated[
    bool,
    typer.Option(
        "--development",
        help="Accept a development platform, which proves nothing to anyone else.",
    ),
]
Proxy = Annotated[
    str | None,
    typer.Option("--proxy", help="A forward proxy, instead of the environment's."),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key", help="Sent inside the seal only.", envvar="CLOISTER_API_KEY", show_envvar=True
    ),
]

_SYMBOLS = {
    Finding.AFFIRMING: ("✓", "green"),
    Finding.WARNING: ("!", "yellow"),
    Finding.CONTRAINDICATED: ("✗", "bold red"),
    Finding.NONE: ("?", "yellow"),
}
_VERDICTS = {
    Finding.AFFIRMING: "affirmed: every claim holds",
    Finding.WARNING: "refused: a claim is doubtful",
    Finding.CONTRAINDICATED: "refused: a claim is contradicted",
    Finding.NONE: "cannot decide",
}


def trust_from(
    kit: Path | None,
    policy: Path | None,
    reference_values: Path | None,
    root: Sequence[Path] | None,
    *,
    development: bool,
    manifest: ManifestOptions | None = None,
) -> Verifier:
    """Read what the options name. Raises ConfigurationError."""
    from cloister.client.trust import (
        make_verifier,
        read_policy,
        read_reference_values,
        read_roots,
    )
    from cloister.endorsements.pinned import pinned_roots

    pinned = pinned_roots()
    for path in root or ():
        pinned = pinned.merged(read_roots(path))
    return make_verifier(
        manifest,
        kit=kit,
        policy=None if policy is None else read_policy(policy),
        reference_values=(
            None if reference_values is None else read_reference_values(reference_values)
        ),
        roots=pinned if root else None,
        development=development,
    )


def plain(text: str) -> str:
    """`text` without what a terminal would obey: it may come from a worker, or a model."""
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cf", "Cs"} else "�"
        for char in text
    )


def verdict(result: AttestationResult) -> Text:
    """One line: the verdict, and the platform with the word development where it is one."""
    from rich.text import Text

    symbol, style = _SYMBOLS[result.verdict]
    line = Text.assemble((f"{symbol} {_VERDICTS[result.verdict]}", style))
    line.append(f"  platform: {plain(result.platform)}")
    if result.development and "development" not in result.platform:
        line.append(" (development)")
    line.append(f", memory confidentiality: {plain(result.memory_confidentiality)}")
    return line


def claims_table(claims: Sequence[Claim]) -> Table:
    """Every claim with its finding, a sentence, and who the finding is taken from.

    Claims about several devices say which one they are about.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    several = len({claim.device for claim in claims}) > 1
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    table.add_column("")
    if several:
        table.add_column("device", overflow="fold")
    table.add_column("claim", overflow="fold")
    table.add_column("what was found", overflow="fold", ratio=1)
    for claim in claims:
        symbol, style = _SYMBOLS[claim.finding]
        sentence = Text(plain(claim.explanation))
        source = claim.source.value.replace("_", " ")
        code = "" if claim.code is None else f" [{plain(claim.code)}]"
        sentence.append(f"{code} ({source})", style="dim")
        device = (Text(plain(claim.device)),) if several else ()
        table.add_row(Text(symbol, style=style), *device, Text(plain(claim.name)), sentence)
    return table


def not_proven(result: AttestationResult) -> Text:
    """What the evidence does not show, always part of a result."""
    from rich.text import Text

    lines = ["Not proven:", *(f"  · {plain(sentence)}" for sentence in result.not_proven)]
    return Text("\n".join(lines), style="dim")


def whole(result: AttestationResult) -> list[RenderableType]:
    """Verdict, claims, and what is not proven."""
    return [verdict(result), claims_table(result.claims), not_proven(result)]


def receipt_line(exchange: SealedExchange | None) -> str:
    """What the receipt of the answer just read says, in one line."""
    if exchange is None or not exchange.complete:
        return "no authenticated end was seen"
    if exchange.receipt is None or not exchange.receipt_verified:
        return "sealed to its end; no receipt came with it"
    model = exchange.model
    served = "" if model is None else f"; model {plain(model[0])} sha256:{(model[1] or '?')[:16]}…"
    return f"receipt {plain(exchange.receipt.receipt_id)} verified{served}"
