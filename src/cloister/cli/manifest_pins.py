"""Options of ``verify``, ``chat`` and ``proxy`` that say whose manifest to trust."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from cloister.client.manifest_options import ManifestOptions

Signer = Annotated[
    list[str] | None,
    typer.Option(
        "--signer",
        metavar="FILE",
        help="Trust the manifest that this owner signs, and take reference values from it: a public"
        " key (PEM), or sigstore:IDENTITY,ISSUER. May be repeated; one of them is enough.",
    ),
]
MinVersion = Annotated[
    int | None,
    typer.Option("--min-version", min=1, help="The lowest version of the manifest to accept."),
]
ManifestFile = Annotated[
    Path | None,
    typer.Option(
        "--manifest",
        metavar="BUNDLE",
        help="A manifest's bundle, instead of the one that the worker shows; without --signer,"
        " exactly this manifest.",
    ),
]
ManifestName = Annotated[
    str | None, typer.Option("--manifest-name", help="Whose manifest it has to be, by its name.")
]
ManifestDigest = Annotated[
    str | None,
    typer.Option("--manifest-digest", metavar="SHA256", help="Accept this manifest and no other."),
]
ManifestMemory = Annotated[
    Path | None,
    typer.Option(
        "--manifest-memory",
        help="Where the highest version that was accepted is remembered; default:"
        " ~/.local/state/cloister/manifests.json.",
        envvar="CLOISTER_MANIFEST_MEMORY",
    ),
]
UnsafeUnsigned = Annotated[
    bool,
    typer.Option(
        "--unsafe-unsigned-manifest",
        help="Accept a manifest that nobody you know signed: whoever wrote it decides everything.",
    ),
]
SigstoreRoot = Annotated[
    Path | None,
    typer.Option(
        "--sigstore-root", help="Sigstore's trusted root (JSON), for signers by identity."
    ),
]
MANIFEST_OPTIONS: Final = (
    *("signer", "min_version", "manifest", "manifest_name", "manifest_digest"),
    *("manifest_memory", "unsafe_unsigned_manifest", "sigstore_root"),
)
"""Parameters of a command that say which manifest to trust."""


def manifest_from(
    *,
    signer: Sequence[str] | None,
    min_version: int | None,
    manifest: Path | None,
    name: str | None,
    digest: str | None,
    memory: Path | None,
    sigstore_root: Path | None,
    unsafe_unsigned: bool,
) -> ManifestOptions | None:
    """What the options say of a manifest; None where they say nothing.

    A memory may stand in the environment for other calls, and alone it asks for nothing.
    """
    asked = (signer, min_version, manifest, name, digest, sigstore_root)
    if all(one is None for one in asked) and not unsafe_unsigned:
        return None
    from cloister.client.manifest_options import ManifestOptions

    return ManifestOptions(
        signers=tuple(signer or ()),
        bundle=manifest,
        digest=digest,
        minimum_version=min_version,
        name=name,
        memory=memory,
        unsafe_unsigned=unsafe_unsigned,
        sigstore_root=sigstore_root,
    )
