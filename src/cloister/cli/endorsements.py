"""``cloister endorsements``: what vendors say about the hardware, fetched, kept and carried.

Exit codes are those of every command; ``status`` leaves with 1 when something needs doing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cloister.cli.exits import AFFIRMED, REFUSED, UNREACHABLE, exit_code
from cloister.errors import CloisterError, ConfigurationError

if TYPE_CHECKING:
    from cloister.endorsements.artefact import Artefact, ArtefactRequest
    from cloister.endorsements.cache import EndorsementCache
    from cloister.endorsements.fetch.fetcher import Fetcher
    from cloister.endorsements.status import Status
    from cloister.evidence.snp import Product
    from cloister.strictjson import JsonObject

endorsements = typer.Typer(no_args_is_help=True)

DEFAULT_FOLDER: Final = Path("~/.cache/cloister/endorsements")
MAX_EVIDENCE_BYTES: Final = 16 * 1024 * 1024

Folder = Annotated[
    Path,
    typer.Option("--cache", help="Where artefacts are kept.", envvar="CLOISTER_ENDORSEMENTS"),
]
What = Annotated[
    list[str] | None,
    typer.Argument(
        help="Files of evidence (a quote, a report), or artefacts as KIND:KEY;"
        " without any, everything that is kept."
    ),
]
ProductName = Annotated[
    str | None,
    typer.Option("--product", help="milan, genoa or turin: for SEV-SNP reports of version 2."),
]
Pccs = Annotated[
    str | None,
    typer.Option(
        "--pccs", help="A PCCS to ask in place of Intel's service.", envvar="CLOISTER_PCCS"
    ),
]
Kds = Annotated[
    str | None,
    typer.Option("--kds", help="A mirror of AMD's service.", envvar="CLOISTER_AMD_KDS"),
]
Rims = Annotated[
    str | None,
    typer.Option("--rim-service", help="A mirror of NVIDIA's.", envvar="CLOISTER_NVIDIA_RIM"),
]
Proxy = Annotated[str | None, typer.Option("--proxy", help="A forward proxy to go through.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@endorsements.command()
def fetch(
    what: What = None,
    *,
    folder: Folder = DEFAULT_FOLDER,
    product: ProductName = None,
    early: Annotated[
        bool, typer.Option("--early", help="Intel's early TCB data, not the standard one.")
    ] = False,
    pccs: Pccs = None,
    kds: Kds = None,
    rim_service: Rims = None,
    proxy: Proxy = None,
) -> None:
    """Fetch what evidence needs, or renew what is kept; copies that are fresh are left alone."""
    cache = open_cache(folder)
    fetcher = make_fetcher(pccs=pccs, kds=kds, rim_service=rim_service, proxy=proxy)
    requests = chosen(what, cache, product=product, early=early)
    worst = AFFIRMED
    for request in requests:
        worst = max(worst, _fetch_one(cache, fetcher, request))
    for request in _following(requests, cache):
        worst = max(worst, _fetch_one(cache, fetcher, request))
    if not requests:
        typer.echo("nothing is kept yet; name a file of evidence, or KIND:KEY", err=True)
    raise typer.Exit(worst)


@endorsements.command("list")
def list_kept(folder: Folder = DEFAULT_FOLDER, *, as_json: AsJson = False) -> None:
    """List what is kept: kind, key, when it was issued, where it came from."""
    found = list(open_cache(folder).entries())
    if as_json:
        typer.echo(json.dumps([describe(one) for one in found], indent=2))
        return
    for one in found:
        typer.echo(f"{one.kind}  {_short(one.key)}  {_day(one.issued_at)}  {one.source}")


@endorsements.command()
def status(
    what: What = None,
    *,
    folder: Folder = DEFAULT_FOLDER,
    product: ProductName = None,
    early: Annotated[
        bool,
        typer.Option(
            "--early",
            help="Hold the platform of a quote against the TCB that Intel will require next.",
        ),
    ] = False,
    pccs: Pccs = None,
    proxy: Proxy = None,
    as_json: AsJson = False,
) -> None:
    """Say how each artefact stands and what to do; exit 1 when something needs doing."""
    if early:
        from cloister.cli.endorsements_early import show_early

        cache, fetcher = open_cache(folder), make_fetcher(pccs=pccs, proxy=proxy)
        raise typer.Exit(show_early(what or [], cache, fetcher, as_json=as_json))
    raise typer.Exit(_show_status(what, open_cache(folder), product=product, as_json=as_json))


@endorsements.command()
def export(
    out: Annotated[Path, typer.Option("--out", help="The bundle to write.")],
    *,
    needed_for: Annotated[
        list[str] | None,
        typer.Option("--for", help="Only what this file of evidence needs, or one KIND:KEY."),
    ] = None,
    folder: Folder = DEFAULT_FOLDER,
    product: ProductName = None,
) -> None:
    """Write artefacts into one file, for a verifier without a network."""
    from cloister.endorsements.bundle import encode_bundle

    cache = open_cache(folder)
    requests = chosen(needed_for, cache, product=product, early=False)
    found = [(request, cache.peek(request)) for request in requests]
    missing = [request for request, artefact in found if artefact is None]
    for request in missing:
        typer.echo(f"missing: {request.kind}  {_short(request.key)}", err=True)
    if missing:
        raise ConfigurationError(
            "the bundle would not be whole; `cloister endorsements fetch` first",
            code="endorsement.missing",
        )
    artefacts = [artefact for _, artefact in found if artefact is not None]
    _write(out, encode_bundle(artefacts))
    typer.echo(f"{len(artefacts)} artefacts in {out}", err=True)


@endorsements.command("import")
def import_bundle(
    file: Annotated[Path, typer.Argument(help="A bundle from `cloister endorsements export`.")],
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Take artefacts from a bundle, each by its own publisher's signature; exit 1 if one fails."""
    from cloister.endorsements.bundle import MAX_BUNDLE_BYTES, parse_bundle

    cache = open_cache(folder)
    artefacts = parse_bundle(read_file(file, MAX_BUNDLE_BYTES), name=str(file))
    worst = AFFIRMED
    for artefact in artefacts:
        worst = max(worst, _import_one(cache, artefact))
    raise typer.Exit(worst)


def open_cache(folder: Path) -> EndorsementCache:
    """The cache in `folder`, admitting what is signed under the pinned roots."""
    from cloister.endorsements.cache import EndorsementCache
    from cloister.endorsements.pinned import pinned_roots

    return EndorsementCache(folder.expanduser(), pinned_roots())


def make_fetcher(
    *,
    pccs: str | None = None,
    kds: str | None = None,
    rim_service: str | None = None,
    proxy: str | None = None,
) -> Fetcher:
    """The vendors' services, or those given in their place."""
    from cloister.endorsements.fetch.httpx2_transport import Httpx2Transport
    from cloister.endorsements.fetch.vendors import Services, vendor_fetcher
    from cloister.endorsements.pinned import pinned_roots

    usual = Services()
    services = Services(
        amd_kds=kds or usual.amd_kds,
        intel_pcs=pccs or usual.intel_pcs,
        nvidia_rim=rim_service or usual.nvidia_rim,
    )
    return vendor_fetcher(Httpx2Transport(proxy=proxy), services=services, roots=pinned_roots())


def chosen(
    what: Sequence[str] | None, cache: EndorsementCache, *, product: str | None, early: bool
) -> list[ArtefactRequest]:
    """The requests that `what` stands for, each once; everything kept when it is empty.

    Raises:
        ConfigurationError: a file cannot be read, or a selector is none.
        MalformedError, UnsupportedError: as `cloister.endorsements.needs.requests_for`.
    """
    from cloister.endorsements.needs import requests_for

    if not what:
        return [artefact.request for artefact in cache.entries()]
    found: list[ArtefactRequest] = []
    for name in what:
        selected = _selected(name)
        if selected is not None:
            found.append(selected)
            continue
        data = read_file(Path(name), MAX_EVIDENCE_BYTES)
        found += requests_for(data, product=_product(product), early=early)
    return list(dict.fromkeys(found))


def _following(
    requests: Iterable[ArtefactRequest], cache: EndorsementCache
) -> list[ArtefactRequest]:
    """What the artefacts that came need in their turn: the status of manifests' signers."""
    from cloister.endorsements.artefact import ArtefactKind
    from cloister.endorsements.needs import for_rim

    rims = (cache.peek(one) for one in requests if one.kind is ArtefactKind.NVIDIA_RIM)
    found = [need for rim in rims if rim is not None for need in for_rim(rim.data)]
    return [need for need in dict.fromkeys(found) if need not in set(requests)]


def read_file(path: Path, limit: int) -> bytes:
    """The file's bytes, at most `limit` of them.

    Raises:
        ConfigurationError: it cannot be read, or is longer.
    """
    try:
        with path.expanduser().open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}", code="endorsement.file") from None
    if len(data) > limit:
        raise ConfigurationError(f"{path} has more than {limit} bytes", code="endorsement.file")
    return data


def describe(artefact: Artefact) -> JsonObject:
    """An artefact for programs; times in RFC 3339."""
    until = artefact.valid_until
    return {
        "kind": str(artefact.kind),
        "key": artefact.key,
        "sha256": artefact.sha256,
        "source": artefact.source,
        "fetched_at": artefact.fetched_at.isoformat(),
        "issued_at": artefact.issued_at.isoformat(),
        "valid_until": None if until is None else until.isoformat(),
        "number": None if artefact.number is None else str(artefact.number),
    }


def now() -> datetime:
    """The time at which a command looks."""
    return datetime.now(UTC)


def _fetch_one(cache: EndorsementCache, fetcher: Fetcher, request: ArtefactRequest) -> int:
    name = f"{request.kind}  {_short(request.key)}"
    try:
        got = cache.get(request, fetcher, at=now())
    except CloisterError as error:
        typer.echo(f"{name}  failed: {error} [{error.code}]")
        return exit_code(error)
    if got.stale_because is not None:
        typer.echo(f"{name}  kept the copy of {_day(got.artefact.fetched_at)}: {got.stale_because}")
        return UNREACHABLE
    until = got.artefact.valid_until
    typer.echo(f"{name}  {'no date of expiry' if until is None else f'until {_day(until)}'}")
    return AFFIRMED


def _import_one(cache: EndorsementCache, artefact: Artefact) -> int:
    name = f"{artefact.kind}  {_short(artefact.key)}"
    # Whoever wrote the bundle says when it was fetched; at best it was just now.
    fetched_at = min(artefact.fetched_at, now())
    try:
        cache.put(replace(artefact, fetched_at=fetched_at))
    except CloisterError as error:
        typer.echo(f"{name}  refused: {error} [{error.code}]")
        return exit_code(error)
    typer.echo(f"{name}  taken")
    return AFFIRMED


def _show_status(
    what: Sequence[str] | None, cache: EndorsementCache, *, product: str | None, as_json: bool
) -> int:
    from cloister.endorsements.status import USABLE, report

    requests = chosen(what, cache, product=product, early=False)
    kept = {request: cache.peek(request) for request in requests}
    missing = [request for request, artefact in kept.items() if artefact is None]
    found = report(
        (artefact for artefact in kept.values() if artefact is not None),
        at=now(),
        freshness=cache.freshness,
    )
    if as_json:
        typer.echo(json.dumps(_status_document(found, missing), indent=2))
    else:
        _print_status(found, missing)
    good = not missing and all(one.state in USABLE for one in found)
    return AFFIRMED if good else REFUSED


def _print_status(found: Iterable[Status], missing: Iterable[ArtefactRequest]) -> None:
    for one in found:
        typer.echo(f"{one.artefact.kind}  {_short(one.artefact.key)}  {one.state}")
        typer.echo(f"    {one.sentence}")
    for request in missing:
        typer.echo(f"{request.kind}  {_short(request.key)}  missing")
        typer.echo("    Evidence needs it. Run `cloister endorsements fetch`, or import a bundle.")


def _status_document(
    found: Iterable[Status], missing: Iterable[ArtefactRequest]
) -> list[JsonObject]:
    document: list[JsonObject] = [
        {**describe(one.artefact), "state": str(one.state), "sentence": one.sentence}
        for one in found
    ]
    document += [
        {"kind": str(request.kind), "key": request.key, "state": "missing"} for request in missing
    ]
    return document


def _selected(name: str) -> ArtefactRequest | None:
    """``KIND:KEY``; anything else is the name of a file."""
    from cloister.endorsements.artefact import ArtefactKind, ArtefactRequest

    kind, colon, key = name.partition(":")
    if not colon or kind not in list(ArtefactKind):
        return None
    return ArtefactRequest(kind=ArtefactKind(kind), key=key)


def _product(name: str | None) -> Product | None:
    from cloister.evidence.snp import Product

    if name is None:
        return None
    if name not in list(Product):
        raise ConfigurationError(
            f"{name!r} is none of {', '.join(Product)}", code="endorsement.product"
        )
    return Product(name)


def _write(path: Path, data: bytes) -> None:
    try:
        path.expanduser().write_bytes(data)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}", code="endorsement.file") from None


def _short(key: str) -> str:
    """A key for a line of text; the middle of a chip's id says nothing to people."""
    return key if len(key) <= 72 else f"{key[:24]}…{key[-40:]}"


def _day(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"
