"""Opens a root key by its name on the command line: ``KIND:REST``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from cloister.broker.root_keys.development import development_file
from cloister.broker.root_keys.protocol import RootKey
from cloister.errors import ConfigurationError

Opener = Callable[[str], RootKey]


def _development(rest: str) -> RootKey:
    return development_file(Path(rest).expanduser())


OPENERS: Final[Mapping[str, Opener]] = {"development-file": _development}
"""By kind; each takes what stands after the colon."""


def open_root_key(name: str) -> RootKey:
    """Open the root key called `name`, such as ``development-file:/var/lib/broker/root.key``.

    ConfigurationError (``root_key.kind``) for an unknown kind; raises what the kind raises.
    """
    kind, colon, rest = name.partition(":")
    opener = OPENERS.get(kind)
    if opener is None or not colon or not rest:
        raise ConfigurationError(
            f"a root key is named KIND:REST, and the kinds are {', '.join(sorted(OPENERS))}",
            code="root_key.kind",
        )
    return opener(rest)
