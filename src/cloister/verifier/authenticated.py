"""A type that only authentication can make, so that nothing unchecked is ever appraised."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

T = TypeVar("T")

_GRANT: Final = object()


class Authenticated(Generic[T]):
    """Evidence whose signatures, chain and binding were all checked.

    There is no public constructor: the functions under `cloister.verifier.authenticate` hand
    these out, and the functions under `cloister.verifier.appraise` take nothing else.
    """

    __slots__ = ("_value",)

    def __init__(self, value: T, grant: object = None) -> None:
        if grant is not _GRANT:
            raise TypeError("only the authenticate functions make Authenticated evidence")
        self._value = value

    @property
    def value(self) -> T:
        """The evidence."""
        return self._value


def _grant(value: T) -> Authenticated[T]:
    """Make one. For `cloister.verifier.authenticate` alone; a test looks for other callers."""
    return Authenticated(value, _GRANT)
