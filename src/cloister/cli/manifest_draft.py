"""``cloister manifest init``, ``add-image`` and ``add-model``: drafts, which nobody signed yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from cloister.errors import ConfigurationError, MalformedError

if TYPE_CHECKING:
    from cloister.manifest.entries import EngineEntry, ImageEntry, ModelEntry
    from cloister.manifest.model import Manifest
    from cloister.manifest.owners import Owners
    from cloister.verifier.policy import Checked

Draft = Annotated[Path, typer.Argument(help="The draft, a JSON file to edit.")]

T = TypeVar("T")
NOT_BUILT: Final = (
    "WARNING: {path} does not say that it comes from an image build. If it was read from a running"
    " machine, whoever runs that machine chose what it says, and everybody who trusts this manifest"
    " will trust that. Take it only from files you trust: `cloister image build`, or `cloister"
    " measure` on a machine of your own."
)


def init(
    draft: Draft,
    *,
    name: Annotated[
        str | None, typer.Option("--name", help="Of the service; the same in all versions.")
    ] = None,
    owner: Annotated[
        list[str] | None,
        typer.Option(
            "--owner",
            metavar="NAME=FILE",
            help="Who signs: NAME=public.pem, or NAME=sigstore:IDENTITY,ISSUER. Repeatable.",
        ),
    ] = None,
    threshold: Annotated[
        int | None, typer.Option("--threshold", min=1, help="How many owners have to sign.")
    ] = None,
    after: Annotated[
        Path | None,
        typer.Option("--after", metavar="BUNDLE", help="Begin the version after this bundle's."),
    ] = None,
    days: Annotated[int, typer.Option("--days", min=1, help="How long it is in force.")] = 90,
    overlap: Annotated[
        int,
        typer.Option(
            "--overlap",
            metavar="HOURS",
            min=0,
            help="With --after: how long workers under the version before are still accepted by"
            " clients that have seen this one.",
        ),
    ] = 0,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", metavar="NAME=VERSION", help="An engine to list. Repeatable."),
    ] = None,
) -> None:
    """Begin a draft: the first version, or with --after the next one, which begins like it."""
    from cloister.cli.manifest_files import write_draft

    issued = datetime.now(UTC).replace(microsecond=0)
    if draft.exists():
        raise ConfigurationError(f"{draft} is there already", code="manifest.file")
    if after is None:
        if overlap:
            raise ConfigurationError(
                "--overlap goes with --after: there is no version before the first",
                code="manifest.draft",
            )
        if name is None or not owner:
            raise ConfigurationError(
                "a first version needs --name and --owner", code="manifest.draft"
            )
        made = _first(name, _owners(owner, threshold or 1), issued, timedelta(days=days))
    else:
        if name is not None:
            raise ConfigurationError("a manifest keeps its name", code="manifest.draft")
        made = _next(
            after,
            owner or (),
            threshold,
            issued=issued,
            lifetime=timedelta(days=days),
            overlap=timedelta(hours=overlap),
        )
    if engine:
        made = dataclasses.replace(made, engines=_engines(engine))
    write_draft(draft, made)
    typer.echo(
        f"{draft}: version {made.header.version} of {made.header.name}. Add images and models, set"
        " serving and policy by hand, then `cloister manifest sign`.",
        err=True,
    )


def add_image(
    draft: Draft,
    file: Annotated[
        Path, typer.Argument(help="Reference values (JSON or TOML), of an image build or measured.")
    ],
    *,
    name: Annotated[
        str | None, typer.Option("--name", help="Where the file does not name an image.")
    ] = None,
    version: Annotated[str | None, typer.Option("--version", help="Likewise.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Drop the images that are there.")
    ] = False,
) -> None:
    """List an image that workers may run from, with what it measures as."""
    from cloister.cli.manifest_files import read_draft, write_draft

    manifest = read_draft(draft)
    image = _image(file, name, version)
    kept = () if replace else manifest.images
    write_draft(draft, _changed(manifest, images=(*kept, image)))
    typer.echo(
        f"{draft}: image {image.name} {image.version}{' (FOR DEBUGGING)' if image.debug else ''}",
        err=True,
    )


def add_model(
    draft: Draft,
    model: Annotated[
        str,
        typer.Argument(help="Weights, as for `cloister serve --model`, or a file of sealed ones."),
    ],
    *,
    name: Annotated[
        str | None, typer.Option("--name", help="The name that it is served under.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="URI", help="Of sealed weights: kbs:///REPOSITORY/TYPE/TAG."),
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", help="As for `cloister serve`. Repeatable.")
    ] = None,
    draft_model: Annotated[
        list[str] | None, typer.Option("--draft-model", help="As for `cloister serve`.")
    ] = None,
    projector: Annotated[
        list[str] | None, typer.Option("--projector", help="As for `cloister serve`.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Drop the model of that name if it is there.")
    ] = False,
) -> None:
    """List a model, by its digest, computed from the files."""
    from cloister.cli.manifest_files import read_draft, write_draft

    manifest = read_draft(draft)
    sealed = _sealed(model, name, key)
    added = (
        [sealed]
        if sealed is not None
        else _plain(model, name, adapter or (), draft_model or (), projector or ())
    )
    names = {one.name for one in added} if replace else set()
    kept = [one for one in manifest.models if one.name not in names]
    write_draft(draft, _changed(manifest, models=(*kept, *added)))
    for one in added:
        typer.echo(f"{draft}: model {one.name}, {one.format}, sha256:{one.sha256}", err=True)


def _first(name: str, owners: Owners, issued: datetime, lifetime: timedelta) -> Manifest:
    from cloister.manifest.entries import Serving
    from cloister.manifest.model import Manifest, ManifestHeader
    from cloister.verifier.policy import UNCHECKED

    return _made(
        lambda: Manifest(
            header=ManifestHeader(
                name=name,
                version=1,
                previous=None,
                issued=issued,
                expires=issued + lifetime,
                owners=owners,
            ),
            models=(),
            engines=UNCHECKED,
            images=(),
            serving=Serving(),
            policy={},
        )
    )


def _next(
    bundle: Path,
    owners: Sequence[str],
    threshold: int | None,
    *,
    issued: datetime,
    lifetime: timedelta,
    overlap: timedelta,
) -> Manifest:
    from cloister.client.manifest_options import read_bundle

    signed = read_bundle(bundle)
    last = signed.manifest
    needed = threshold or last.header.owners.threshold
    kept = dataclasses.replace(last.header.owners, threshold=needed)
    header = _made(
        lambda: dataclasses.replace(
            last.header,
            version=signed.version + 1,
            previous=signed.digest,
            issued=issued,
            expires=issued + lifetime,
            owners=_owners(owners, needed) if owners else kept,
            overlap_until=issued + overlap if overlap else None,
        )
    )
    return dataclasses.replace(last, header=header)


def _owners(written: Sequence[str], threshold: int) -> Owners:
    from cloister.client.manifest_options import read_signer
    from cloister.manifest.owners import Owners

    listed = []
    for one in written:
        name, _, place = one.partition("=")
        if not name or not place:
            raise ConfigurationError("an owner is written --owner NAME=FILE", code="manifest.draft")
        listed.append(dataclasses.replace(read_signer(place), name=name))
    return _made(lambda: Owners(threshold=threshold, listed=tuple(listed)))


def _engines(written: Sequence[str]) -> Checked[tuple[EngineEntry, ...]]:
    from cloister.manifest.entries import EngineEntry

    pairs = [one.partition("=") for one in written]
    if not all(name and version for name, _, version in pairs):
        raise ConfigurationError("an engine is written NAME=VERSION", code="manifest.draft")
    return tuple(EngineEntry(name=name, version=version) for name, _, version in pairs)


def _image(file: Path, name: str | None, version: str | None) -> ImageEntry:
    from cloister.client.trust import read_reference_values
    from cloister.manifest.entries import ImageEntry

    values = read_reference_values(file)
    if len(values.images) > 1:
        raise ConfigurationError(
            f"{file} is of several images; add the file of each build", code="manifest.draft"
        )
    if values.images:
        (built,) = values.images
        name, version, debug = built.name, built.version, built.debug
    else:
        typer.echo(NOT_BUILT.format(path=file), err=True)
        debug = False
    if name is None or version is None:
        raise ConfigurationError(
            f"{file} names no image: say what it is with --name and --version",
            code="manifest.draft",
        )
    given = (name, version)
    return _made(
        lambda: ImageEntry(name=given[0], version=given[1], debug=debug, reference_values=values)
    )


def _sealed(model: str, name: str | None, key: str | None) -> ModelEntry | None:
    """The entry of a file of sealed weights; None where it is none."""
    from cloister.manifest.entries import ModelEntry, parse_sealed
    from cloister.weights.reader import SealedFile, is_sealed

    path = Path(model).expanduser()
    if not path.is_file() or not is_sealed(path):
        if key is not None:
            raise ConfigurationError(
                f"--key is for sealed weights, and {model} is none", code="manifest.draft"
            )
        return None
    if key is None:
        raise ConfigurationError(
            "sealed weights need --key: where workers get their key", code="manifest.draft"
        )
    with SealedFile(path) as file:
        header = file.header
    return _made(
        lambda: ModelEntry(
            name=name or header.about.name,
            format=header.kind.value,
            sha256=header.model_sha256,
            sealed=parse_sealed({"key": key, "header_sha256": header.sha256}),
        )
    )


def _plain(
    model: str,
    name: str | None,
    adapters: Sequence[str],
    drafts: Sequence[str],
    projectors: Sequence[str],
) -> list[ModelEntry]:
    from cloister.cli.model_options import ModelOptions, models_from
    from cloister.manifest.entries import ModelEntry

    options = ModelOptions.written(
        models=[model],
        sha256=None,
        name=name,
        adapters=adapters,
        drafts=drafts,
        projectors=projectors,
    )
    return [
        ModelEntry(name=one.name, format="gguf", sha256=one.sha256 or "")
        for one in models_from(options)
    ]


def _changed(manifest: Manifest, **fields: object) -> Manifest:
    return _made(lambda: dataclasses.replace(manifest, **fields))  # type: ignore[arg-type]  # the caller's own fields


def _made(make: Callable[[], T]) -> T:
    """What `make` makes; what a manifest may not say is the caller's mistake here."""
    try:
        return make()
    except MalformedError as error:
        raise ConfigurationError(str(error), code="manifest.draft") from None
