"""``cloister image sign`` and ``enrol``: Secure Boot with an operator's own keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloister.errors import ConfigurationError

KEYS_HELP = "Folder with pk.pem, kek.pem, db.pem, and to sign db.key."


def sign(
    program: Annotated[Path, typer.Argument(help="A unified kernel image, not signed yet.")],
    *,
    keys: Annotated[Path, typer.Option("--keys", help=KEYS_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The signed image to write.")],
) -> None:
    """Sign an image for Secure Boot. Equal inputs give equal bytes; PCR 4 and 11 stay as they are.

    Exit 0 written, 1 it cannot be signed.
    """
    from cloister.image.authenticode_sign import sign_program
    from cloister.image.secure_boot_keys import load_keys, load_signing_key

    certificate = load_keys(keys).db
    signed = sign_program(_read(program), key=load_signing_key(keys), certificate=certificate)
    _write(signed, output)


def enrol(
    store: Annotated[
        Path, typer.Argument(help="OVMF's empty variable store, such as OVMF_VARS_4M.fd.")
    ],
    *,
    keys: Annotated[Path, typer.Option("--keys", help=KEYS_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The store to write.")],
) -> None:
    """Put keys into a variable store, with Secure Boot on from the first start.

    Exit 0 written, 1 the store cannot take them.
    """
    from cloister.image.ovmf_variables import enrol as enrol_keys
    from cloister.image.secure_boot_keys import load_keys

    _write(enrol_keys(_read(store), load_keys(keys).state()), output)


def _read(path: Path) -> bytes:
    from cloister.image.authenticode import MAX_PE_BYTES

    try:
        with path.open("rb") as file:
            return file.read(MAX_PE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror or 'unknown reason'}", code="image.folder"
        ) from None


def _write(data: bytes, output: Path) -> None:
    try:
        output.write_bytes(data)
    except OSError as error:
        raise ConfigurationError(
            f"{output} cannot be written: {error.strerror or 'unknown reason'}",
            code="image.folder",
        ) from None
