"""Opens and makes a root key by its name on the command line: ``KIND:REST``.

Each kind's module is loaded when one of it is named: some need packages of their own.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from cloister.broker.root_keys.development import development_file
from cloister.broker.root_keys.protocol import RootKey
from cloister.errors import ConfigurationError

Opener = Callable[[str], RootKey]


def _development(rest: str) -> RootKey:
    return development_file(Path(rest).expanduser())


def _open_sealed_file(rest: str) -> RootKey:
    from cloister.broker.root_keys import sealed_file

    return sealed_file.open_key(rest, ask=getpass.getpass)


def _make_sealed_file(rest: str) -> RootKey:
    from cloister.broker.root_keys import sealed_file

    return sealed_file.make(rest, ask=getpass.getpass)


def _open_tpm(rest: str) -> RootKey:
    from cloister.broker.root_keys import tpm_sealed

    return tpm_sealed.open_key(rest)


def _make_tpm(rest: str) -> RootKey:
    from cloister.broker.root_keys import tpm_sealed

    return tpm_sealed.make(rest)


def _open_pkcs11(rest: str) -> RootKey:
    from cloister.broker.root_keys import pkcs11

    return pkcs11.open_key(rest)


def _make_pkcs11(rest: str) -> RootKey:
    from cloister.broker.root_keys import pkcs11

    return pkcs11.make(rest)


def _open_vault(rest: str) -> RootKey:
    from cloister.broker.root_keys import vault

    return vault.open_key(rest)


def _open_aws_kms(rest: str) -> RootKey:
    from cloister.broker.root_keys import aws_kms

    return aws_kms.open_key(rest)


OPENERS: Final[Mapping[str, Opener]] = {
    "aws-kms": _open_aws_kms,
    "development-file": _development,
    "pkcs11": _open_pkcs11,
    "sealed-file": _open_sealed_file,
    "tpm": _open_tpm,
    "vault": _open_vault,
}
"""By kind; each takes what stands after the colon."""

MAKERS: Final[Mapping[str, Opener]] = {
    "development-file": _development,
    "pkcs11": _make_pkcs11,
    "sealed-file": _make_sealed_file,
    "tpm": _make_tpm,
}
"""The kinds of which a key is made here; the services make theirs themselves."""


def open_root_key(name: str) -> RootKey:
    """Open the root key called `name`, such as ``development-file:/var/lib/broker/root.key``.

    ConfigurationError (``root_key.kind``) for an unknown kind; raises what the kind raises.
    """
    return _named(name, OPENERS)


def make_root_key(name: str) -> RootKey:
    """Make one where there is none. Raises as `open_root_key`."""
    return _named(name, MAKERS)


def _named(name: str, kinds: Mapping[str, Opener]) -> RootKey:
    kind, colon, rest = name.partition(":")
    opener = kinds.get(kind)
    if opener is None or not colon or not rest:
        raise ConfigurationError(
            f"a root key is named KIND:REST, and the kinds are {', '.join(sorted(kinds))}",
            code="root_key.kind",
        )
    return opener(rest)
