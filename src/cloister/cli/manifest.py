"""``cloister manifest``: write, sign, check and compare what may see prompts.

The commands that edit a draft are in `cli.manifest_draft`.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cloister.cli.asking import plain
from cloister.cli.manifest_draft import add_image, add_model, init
from cloister.errors import AuthenticationError, ConfigurationError

if TYPE_CHECKING:
    from cloister.manifest.authenticate import AuthenticatedManifest
    from cloister.manifest.bundle import SignedManifest
    from cloister.manifest.dsse import Envelope
    from cloister.manifest.model import Manifest
    from cloister.manifest.signatures import IdentityVerifier

manifest = typer.Typer(no_args_is_help=True)
manifest.command()(init)
manifest.command("add-image")(add_image)
manifest.command("add-model")(add_model)

PASSWORD: Final = "CLOISTER_KEY_PASSWORD"  # noqa: S105 - a variable's name
Bundle = Annotated[Path, typer.Argument(help="The bundle: every version with its signatures.")]
SigstoreRoot = Annotated[
    Path | None,
    typer.Option("--sigstore-root", help="Sigstore's trusted root (JSON), for owners by identity."),
]


@manifest.command()
def keygen(
    name: Annotated[str, typer.Argument(help="Whose key it is; names the files.")],
    *,
    folder: Annotated[Path, typer.Option("--folder", help="Where to write them.")] = Path(),
    algorithm: Annotated[
        str, typer.Option("--algorithm", help="ed25519, or ml-dsa-65 against quantum computers.")
    ] = "ed25519",
) -> None:
    """Make an owner's key: NAME.key.pem is secret, NAME.pem is for everybody.

    With CLOISTER_KEY_PASSWORD in the environment the secret one is encrypted.
    """
    from cloister.manifest.signing import generate_pem

    secret, public = generate_pem(algorithm, password=_password())
    for path, data, mode in (
        (folder / f"{name}.key.pem", secret, 0o600),
        (folder / f"{name}.pem", public, 0o644),
    ):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except OSError as error:
            raise ConfigurationError(
                f"{path} cannot be written: {error.strerror}", code="manifest.file"
            ) from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        typer.echo(str(path))


@manifest.command()
def sign(
    draft: Annotated[Path, typer.Argument(help="The draft.")],
    *,
    bundle: Annotated[
        Path, typer.Option("--bundle", help="The bundle that it goes behind; made for version 1.")
    ],
    key: Annotated[
        Path | None, typer.Option("--key", help="Your secret key (PEM).", exists=True)
    ] = None,
    sigstore_bundle: Annotated[
        Path | None,
        typer.Option("--sigstore-bundle", help="Your signature by identity, made elsewhere."),
    ] = None,
    sigstore_root: SigstoreRoot = None,
) -> None:
    """Sign a draft; once enough owners have, put it behind the versions in the bundle.

    What to sign by identity is written by `cloister manifest payload`.
    """
    from cloister.cli.manifest_files import (
        append_version,
        check_conflict,
        envelope_path,
        read_draft,
        read_envelope,
        write_envelope,
    )

    manifest = read_draft(draft)
    pending = envelope_path(draft)
    envelope = read_envelope(pending, manifest.encode())
    check_conflict(bundle, envelope)
    if (key is None) == (sigstore_bundle is None):
        raise ConfigurationError("sign with --key or with --sigstore-bundle", code="manifest.key")
    identities = _identities(sigstore_root)
    if key is not None:
        envelope = _signed_with_key(envelope, key, _signers(manifest, bundle))
    elif sigstore_bundle is not None:
        envelope = _signed_by_identity(envelope, manifest, sigstore_bundle, identities)
    try:
        accepted = append_version(bundle, envelope, at=datetime.now(UTC), identities=identities)
    except AuthenticationError as error:
        if error.code != "manifest.threshold":
            raise
        write_envelope(pending, envelope)
        typer.echo(f"{plain(str(error))}.\nGive the others {draft} and {pending}.", err=True)
        return
    pending.unlink(missing_ok=True)
    _tell(accepted, bundle)


@manifest.command()
def payload(
    draft: Annotated[Path, typer.Argument(help="The draft.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write it.")],
) -> None:
    """Write the canonical bytes, to be signed as a file with Sigstore's tools."""
    from cloister.cli.manifest_files import read_draft

    output.write_bytes(read_draft(draft).encode())


@manifest.command()
def verify(
    bundle: Bundle,
    *,
    signer: Annotated[
        list[str] | None,
        typer.Option(
            "--signer", help="An owner you trust (PEM file, or sigstore:IDENTITY,ISSUER)."
        ),
    ] = None,
    min_version: Annotated[int, typer.Option("--min-version", min=1)] = 1,
    sigstore_root: SigstoreRoot = None,
) -> None:
    """Check every signature from the first version on, and that it is in force."""
    from cloister.client.manifest_options import read_bundle, read_signer
    from cloister.manifest.authenticate import authenticate_bundle
    from cloister.manifest.pin import DigestPin, Remembered, SignerPin

    signed = read_bundle(bundle)
    first = signed.links[0]
    accepted = authenticate_bundle(
        signed,
        SignerPin(signers=tuple(read_signer(one) for one in signer), minimum_version=min_version)
        if signer
        else DigestPin(sha256=signed.digest),
        at=datetime.now(UTC),
        # Every version counts here, not only those since the signer's last one.
        remembered=None
        if signer
        else Remembered(version=first.header.version, sha256=first.digest),
        identities=_identities(sigstore_root),
    )
    _tell(accepted, bundle)
    if not signer:
        typer.echo(
            "Nobody you named signed it: it only holds by its own word. Name whom you trust with"
            " --signer.",
            err=True,
        )


@manifest.command()
def diff(
    old: Annotated[Path, typer.Argument(help="A bundle or a draft.")],
    new: Annotated[
        Path | None,
        typer.Argument(help="Another one; without it, the last two versions of the bundle."),
    ] = None,
) -> None:
    """Say in words what changed. Exit 0 if nothing did, 1 if something did."""
    from cloister.cli.manifest_files import read_any
    from cloister.client.manifest_options import read_bundle
    from cloister.manifest.difference import changes
    from cloister.manifest.model import parse_manifest

    if new is None:
        links = read_bundle(old).links[-2:]
        before, after = (parse_manifest(link.envelope.payload) for link in (links[0], links[-1]))
    else:
        before, after = read_any(old), read_any(new)
    found = changes(before, after)
    for change in found:
        typer.echo(plain(str(change)))
    raise typer.Exit(1 if found else 0)


@manifest.command()
def history(bundle: Bundle) -> None:
    """List every version: when, who signed, what changed. Signatures are not checked here."""
    from cloister.client.manifest_options import read_bundle
    from cloister.manifest.difference import changes
    from cloister.manifest.model import encode_time, parse_manifest

    signed = read_bundle(bundle)
    before: Manifest | None = None
    for link in signed.links:
        after = parse_manifest(link.envelope.payload)
        header = link.header
        typer.echo(
            plain(
                f"version {header.version}  {encode_time(header.issued)} to"
                f" {encode_time(header.expires)}  sha256:{link.digest}\n  signed by"
                f" {_names(signed, header.version) or 'nobody'}"
            )
        )
        for change in () if before is None else changes(before, after):
            typer.echo(plain(f"  {change}"))
        before = after


def _names(signed: SignedManifest, version: int) -> str:
    """Whose signatures a version bears, by the names that it and the one before give them."""
    index = version - signed.links[0].header.version
    link = signed.links[index]
    known = {
        owner.key_id: owner.name
        for one in signed.links[max(0, index - 1) : index + 1]
        for owner in one.header.owners.listed
    }
    ids = (signature.key_id for signature in link.envelope.signatures)
    return ", ".join(known[key_id] for key_id in ids if key_id in known)


def _signers(manifest: Manifest, bundle: Path) -> frozenset[str]:
    """Ids of those whose signatures count: the draft's owners, and those of the version before."""
    from cloister.client.manifest_options import read_bundle

    before = read_bundle(bundle).manifest.header.owners.listed if bundle.exists() else ()
    return frozenset(owner.key_id for owner in (*manifest.header.owners.listed, *before))


def _signed_with_key(envelope: Envelope, path: Path, signers: frozenset[str]) -> Envelope:
    from cloister.client.manifest_options import read_file
    from cloister.manifest.signing import KeySigner, add_signature, load_private_key

    key = load_private_key(read_file(path), password=_password())
    signer = KeySigner.of(path.stem, key)
    if signer.key_id not in signers:
        raise ConfigurationError(
            f"{path} is the key of nobody who owns this manifest, or owned the version before it",
            code="manifest.key",
        )
    return add_signature(envelope, signer)


def _signed_by_identity(
    envelope: Envelope, manifest: Manifest, path: Path, identities: IdentityVerifier | None
) -> Envelope:
    """The envelope with a Sigstore bundle, by whichever owner of the manifest it is."""
    from cloister.client.manifest_options import read_file
    from cloister.manifest.dsse import Signature
    from cloister.manifest.owners import SigstoreOwner
    from cloister.manifest.signing import with_signature

    if identities is None:
        raise ConfigurationError(
            "--sigstore-root is needed to see whose signature it is", code="manifest.sigstore_root"
        )
    data = read_file(path)
    for owner in manifest.header.owners.listed:
        if isinstance(owner, SigstoreOwner):
            try:
                identities.verify(owner, data, envelope.payload)
            except AuthenticationError:
                continue
            return with_signature(envelope, Signature(key_id=owner.key_id, data=data))
    raise AuthenticationError(
        f"{path} is no signature over this draft by an owner that it lists",
        code="manifest.signature",
    )


def _identities(root: Path | None) -> IdentityVerifier | None:
    if root is None:
        return None
    from cloister.manifest.sigstore_identity import SigstoreIdentities

    return SigstoreIdentities.from_trusted_root(root)


def _tell(accepted: AuthenticatedManifest, bundle: Path) -> None:
    from cloister.manifest.terms import standing

    typer.echo(plain(standing(accepted)))
    typer.echo(f"{bundle}  sha256:{accepted.digest}")


def _password() -> bytes | None:
    given = os.environ.get(PASSWORD)
    return given.encode() if given else None
