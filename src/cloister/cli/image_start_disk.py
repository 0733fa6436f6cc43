"""``cloister image start-disk``: what a guest waits for, on a disk, where it has no port."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cloister.cli.image_start import Bundle, read_api_keys, read_manifest_digest
from cloister.errors import ConfigurationError, MalformedError

if TYPE_CHECKING:
    from cloister.attester.start_disk import Start

CODE: Final = "image.start_disk"


def start_disk(
    *,
    api_keys: Annotated[Path, typer.Option("--api-keys", help="Who is served (cloister keys).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The disk to write.")],
    manifest: Bundle = None,
) -> None:
    """Write a start disk: API keys (their hashes) and manifest, for guests in a cloud.

    Attach it to the guest beside its image. Equal inputs give equal bytes. Exit 0 written, 2 an
    input has to be changed.
    """
    from cloister.attester.start_disk import Start

    bundle, under = None, "no manifest"
    if manifest is not None:
        bundle, digest = read_manifest_digest(manifest)
        under = f"the manifest sha256:{digest}"
    start = Start(api_keys=read_api_keys(api_keys), manifest=bundle)
    _write(output, start.disk())
    typer.echo(f"{output} is written: API keys of {api_keys}, and {under}.", err=True)


def read_start_disk(path: Path) -> Start:
    """What the start disk at `path` says.

    Raises:
        ConfigurationError: it is none, or cannot be read (code ``image.start_disk``).
    """
    from cloister.attester.start_disk import DISK_BYTES, parse_disk

    try:
        with path.expanduser().open("rb") as disk:
            data = disk.read(DISK_BYTES + 1)
        if len(data) > DISK_BYTES:
            raise MalformedError(f"a start disk has {DISK_BYTES} bytes")
        return parse_disk(data)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", code=CODE) from None
    except MalformedError as error:
        raise ConfigurationError(
            f"{path}: {error}; make one with `cloister image start-disk`", code=CODE
        ) from None


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, for this user alone."""
    path = path.expanduser()
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        unfinished = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data.rstrip(b"\0"))
                file.truncate(len(data))  # the rest stays a hole
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}", code=CODE) from None
