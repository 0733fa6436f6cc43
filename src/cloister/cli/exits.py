"""Exit codes of the command line: who has to act."""

from __future__ import annotations

from typing import Final

from cloister.errors import (
    AppraisalError,
    AuthenticationError,
    ChannelError,
    CloisterError,
    ConfigurationError,
    FetchError,
    MalformedError,
    UnsupportedError,
)

AFFIRMED: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
CANNOT_DECIDE: Final = 3
UNREACHABLE: Final = 4

_CODES: Final[tuple[tuple[type[CloisterError], int], ...]] = (
    (ConfigurationError, USAGE),
    (UnsupportedError, CANNOT_DECIDE),
    (FetchError, UNREACHABLE),
    (AppraisalError, REFUSED),
    (AuthenticationError, REFUSED),
    (MalformedError, REFUSED),
    (ChannelError, REFUSED),
)


def exit_code(error: CloisterError) -> int:
    """The exit code for a deliberate error; 1 where nothing more precise is known."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), REFUSED)
