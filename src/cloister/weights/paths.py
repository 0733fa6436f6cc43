"""Paths inside sealed weights: those that mean one file below a folder, everywhere.

Relative, with forward slashes, in the one spelling that needs no cleaning. Whoever opens a file
may append such a path to a folder of their own and stay inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cloister.errors import MalformedError

MAX_PATH: Final = 512
MAX_PART: Final = 255
"""Bytes that one name may have on common file systems."""


def check_path(path: str) -> str:
    """Return `path`, or raise MalformedError if it could lead or be read elsewhere."""
    parts = path.split("/")
    if (
        len(path.encode("utf-8", "surrogatepass")) > MAX_PATH
        or any(len(part.encode("utf-8", "surrogatepass")) > MAX_PART for part in parts)
        or any(part in ("", ".", "..") for part in parts)
        or not path.isprintable()
        # Two spaces part digest and path where a folder's digest is made.
        or any(trick in path for trick in ("\\", ":", "  "))
    ):
        raise MalformedError(
            "sealed weights name a path that leads elsewhere, or that cannot be written down",
            code="weights.path",
        )
    return path


def check_paths(paths: Sequence[str]) -> None:
    """MalformedError if two are one file on some file system, or one is a folder of another."""
    folded = {check_path(path).casefold() for path in paths}
    if len(folded) != len(paths):
        raise MalformedError("sealed weights name a file twice", code="weights.path")
    for path in folded:
        parts = path.split("/")
        if any("/".join(parts[:end]) in folded for end in range(1, len(parts))):
            raise MalformedError(
                "sealed weights name a file as a folder of others", code="weights.path"
            )
