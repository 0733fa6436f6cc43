"""``cloister weights``: seal a model's weights, check sealed ones, open them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.quantize import bars
from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from cloister.manifest import Manifest, ModelEntry
    from cloister.weights.header import Header, Kind

weights = typer.Typer(no_args_is_help=True)

SealedPath = Annotated[Path, typer.Argument(metavar="SEALED", help="A file of sealed weights.")]
ForManifest = Annotated[
    Path | None,
    typer.Option(
        "--for",
        metavar="MANIFEST",
        help="A manifest, signed or not yet, that has to list this very model.",
    ),
]
Signature = Annotated[
    Path | None,
    typer.Option("--signature", help="An OpenSSF model signature (model.sig) over the files."),
]
SignerKey = Annotated[
    Path | None,
    typer.Option("--signer", metavar="PEM", help="The public key that has to have made it."),
]


@weights.callback()
def _group() -> None:
    """Weights that stay secret."""


@weights.command()
def seal(
    source: Annotated[Path, typer.Argument(help="A GGUF file, or a folder of safetensors.")],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="By default SOURCE.sealed beside it.")
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", help="The new file for the key (0600). By default OUT.key."),
    ] = None,
    manifest: ForManifest = None,
    signature: Signature = None,
    signer: SignerKey = None,
) -> None:
    """Encrypt weights under a new key, once; give the file to anybody, and the key to a broker."""
    from cloister.weights.seal import seal as seal_files
    from cloister.worker.weights import describe

    kind, root, paths = _listed(source)
    source = source.resolve()
    target = source.with_name(source.name + ".sealed") if out is None else out
    key_file = target.with_name(target.name + ".key") if key is None else key
    if key_file.exists():
        raise ConfigurationError(
            f"{key_file} exists already, and a key is never written over: choose another --key",
            code="weights.out_taken",
        )
    about = describe(kind, root, paths)

    def check(header: Header) -> None:
        _check(header, manifest, signature, signer, sealed=False)

    with _progress(root, paths) as progress:
        header = seal_files(
            {path: root / path for path in paths},
            target,
            kind=kind,
            about=about,
            keep_key=lambda secret: _write_key(key_file, secret),
            check=check,
            progress=progress,
        )
    _show(header)
    typer.echo(
        f"sealed    {target}\n"
        f"key       {key_file}\n"
        "Put the key into a broker, list the sealed weights in the manifest, destroy the file:",
        err=True,
    )
    for step in _next_steps(header, target, key_file, manifest):
        typer.echo(f"  {step}", err=True)


@weights.command()
def verify(
    path: SealedPath,
    *,
    key: Annotated[
        Path | None, typer.Option("--key", help="Its key; without it the content is not checked.")
    ] = None,
    header_sha256: Annotated[
        str | None, typer.Option("--header-sha256", help="What the header's digest has to be.")
    ] = None,
    manifest: ForManifest = None,
    signature: Signature = None,
    signer: SignerKey = None,
) -> None:
    """Check sealed weights: the header and the length; with the key every byte."""
    from cloister.weights.opening import Nowhere, open_sealed
    from cloister.weights.reader import SealedFile
    from cloister.worker.weights_keys import read_key

    with SealedFile(path) as sealed:
        if header_sha256 is not None:
            sealed.expect(header_sha256.strip().lower().removeprefix("sha256:"))
        _check(sealed.header, manifest, signature, signer, sealed=True)
        if key is not None:
            with _counted("opening", sealed.header.plaintext_bytes) as progress:
                open_sealed(sealed, read_key(key), Nowhere(), threads=_threads(), progress=progress)
        _show(sealed.header)
    typer.echo(
        "every byte is what was sealed under this header"
        if key is not None
        else "NOT CHECKED: the content, for which the key is needed; the digests are what the "
        "header says"
    )


@weights.command("open")
def open_command(
    path: SealedPath,
    *,
    key: Annotated[Path, typer.Option("--key", help="Its key.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder, for the plaintext.")],
) -> None:
    """Write the plaintext into a new folder. For who owns the weights: workers never do this."""
    from cloister.weights.folder import FolderSink
    from cloister.weights.opening import open_sealed
    from cloister.weights.reader import SealedFile
    from cloister.worker.weights_keys import read_key

    with SealedFile(path) as sealed:
        secret = read_key(key)
        try:
            out.mkdir(mode=0o700)
        except OSError as error:
            raise ConfigurationError(
                f"{out} has to be a new folder, and cannot be made (errno {error.errno})",
                code="weights.out_taken",
            ) from None
        try:
            with (
                FolderSink(out) as sink,
                _counted("opening", sealed.header.plaintext_bytes) as progress,
            ):
                open_sealed(sealed, secret, sink, threads=_threads(), progress=progress)
        except BaseException:
            out.rmdir()
            raise
        _show(sealed.header)


def _next_steps(header: Header, sealed: Path, key: Path, manifest: Path | None) -> list[str]:
    """Commands for who sealed: where the key goes, and who may have it. The address is theirs."""
    address = "kbs:///REPOSITORY/TYPE/TAG"
    draft, names, replace = "DRAFT", [header.about.name], ""
    steps = [shlex.join(["cloister", "broker", "secret", "put", address, "--file", str(key)])]
    if manifest is not None:
        found, signed = _manifest(manifest)
        names = [one.name for one in found.models if one.sha256 == header.model_sha256]
        draft, replace = str(manifest), " --replace"
        if signed:
            draft = "next.json"
            begin = ["cloister", "manifest", "init", draft, "--after", str(manifest)]
            steps.append(shlex.join(begin))
    add = ["cloister", "manifest", "add-model", draft, str(sealed), "--key", address]
    return steps + [shlex.join([*add, "--name", name]) + replace for name in names]


def _listed(source: Path) -> tuple[Kind, Path, list[str]]:
    """The kind of a model, the folder that it lies in, and its files there."""
    from cloister.engine.model_folder import open_folder
    from cloister.weights.header import Kind

    if source.is_dir():
        with open_folder(source) as opened:
            return Kind.SAFETENSORS, source.resolve(), list(opened.descriptors)
    if not source.is_file():
        raise ConfigurationError(f"there is no model at {source}", code="weights.source")
    return Kind.GGUF, source.parent.resolve(), [source.name]


def _check(
    header: Header,
    manifest: Path | None,
    signature: Path | None,
    signer: Path | None,
    *,
    sealed: bool,
) -> None:
    """What was asked for besides: that a manifest lists the model, that a signer signed it."""
    if manifest is not None:
        _check_listed(header, _manifest(manifest)[0], sealed=sealed)
    if (signature is None) is not (signer is None):
        raise ConfigurationError(
            "--signature and --signer go together: a signature by just anybody says nothing",
            code="weights.signer",
        )
    if signature is not None and signer is not None:
        from cloister.weights.model_signing import MAX_SIGNATURE, authenticate_model, load_signer

        authenticate_model(
            _read(signature, MAX_SIGNATURE), load_signer(_read(signer, 1 << 16)), header
        )


def _check_listed(header: Header, manifest: Manifest, *, sealed: bool) -> None:
    """ConfigurationError unless the manifest lists this model, and these sealed weights if any.

    To be `sealed` the manifest must name this header; weights that are only about to be sealed
    have none yet, and a manifest that already names another is for other weights.
    """
    listed = [model for model in manifest.models if model.sha256 == header.model_sha256]
    if not listed:
        raise ConfigurationError(
            f"the manifest lists no model with the digest {header.model_sha256}",
            code="weights.manifest",
        )
    if sealed and not any(_names(model, header) for model in listed):
        raise ConfigurationError(
            f"the manifest lists the model, and not these sealed weights, whose header has the "
            f"digest {header.sha256}",
            code="weights.manifest",
        )


def _names(model: ModelEntry, header: Header) -> bool:
    return model.sealed is not None and model.sealed.header_sha256 == header.sha256


def _manifest(path: Path) -> tuple[Manifest, bool]:
    """A signed bundle's manifest in force, or one that nobody has signed yet; and which it is."""
    from cloister.errors import MalformedError
    from cloister.manifest.bundle import MAX_BUNDLE_BYTES, load_bundle
    from cloister.manifest.model import read_manifest

    data = _read(path, MAX_BUNDLE_BYTES)
    try:
        return load_bundle(data).manifest, True
    except MalformedError:
        return read_manifest(data), False


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read (errno {error.errno})", code="weights.source"
        ) from None


def _write_key(path: Path, secret: bytes) -> None:
    """Write it to a new file that only its owner reads, and have it on the disk."""
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"the key cannot be written to {path} (errno {error.errno})", code="weights.out"
        ) from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())


def _show(header: Header) -> None:
    about = header.about
    typer.echo(
        f"model     {about.name} ({header.kind.value}) sha256:{header.model_sha256}\n"
        f"header    sha256:{header.sha256}\n"
        f"key id    {header.key_id.hex()}\n"
        f"files     {len(header.files)}, {header.plaintext_bytes:,} bytes"
    )


def _threads() -> int:
    return len(os.sched_getaffinity(0))


@contextmanager
def _progress(root: Path, paths: list[str]) -> Iterator[Callable[[str, int], None]]:
    total = sum((root / path).stat().st_size for path in paths)
    with bars() as update:
        yield lambda step, done: update(step, done, total)


@contextmanager
def _counted(step: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar that is told of pieces, from any thread."""
    from threading import Lock

    done, lock = 0, Lock()
    with bars() as update:

        def count(size: int) -> None:
            nonlocal done
            with lock:
                done += size
                update(step, done, total)

        yield count
