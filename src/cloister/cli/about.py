"""Says of which file an error is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cloister.errors import ConfigurationError, MalformedError, UnsupportedError

_KINDS = (ConfigurationError, MalformedError, UnsupportedError)


@contextlib.contextmanager
def about(path: Path) -> Iterator[None]:
    """Put the name of a file before what is said of its content, where that does not have it.

    Kind and code stay.
    """
    try:
        yield
    except _KINDS as error:
        if str(path) in str(error):
            raise
        kind = next(kind for kind in _KINDS if isinstance(error, kind))
        raise kind(f"{path}: {error}", code=error.code) from None
