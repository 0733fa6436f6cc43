"""Names of secrets: ``kbs:///<repository>/<type>/<tag>``, as Confidential Containers writes them.

Source: "KBS Attestation Protocol" (confidential-containers/trustee), section "Secret Resource".
Cloister accepts fewer spellings than that document, so that one secret has one name: each part
is 1 to 64 of the letters, digits, ``.``, ``_`` and ``-``, and begins with a letter or a digit.
No host, no query, no percent-encoding, and nothing that a file system or a proxy could take for
a way out (``..``, ``//``, ``\\``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cloister.errors import MalformedError

SCHEME: Final = "kbs:///"
PATH_PREFIX: Final = "/kbs/v0/resource/"
_PART: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_CODE: Final = "resource.name"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ResourceUri:
    """One secret's name. Every value is well-formed: the constructor refuses others."""

    repository: str
    type: str
    tag: str

    def __post_init__(self) -> None:
        for part in (self.repository, self.type, self.tag):
            if _PART.fullmatch(part) is None or ".." in part:
                raise MalformedError(
                    "a secret is named kbs:///repository/type/tag, each part 1 to 64 of"
                    " A-Z a-z 0-9 . _ - and beginning with a letter or digit",
                    code=_CODE,
                )

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}/{self.type}/{self.tag}"

    @property
    def path(self) -> str:
        """Where the broker serves it."""
        return f"{PATH_PREFIX}{self.repository}/{self.type}/{self.tag}"

    @classmethod
    def parse(cls, text: str) -> ResourceUri:
        """Read ``kbs:///repository/type/tag``; MalformedError (``resource.name``) otherwise."""
        return cls._after(SCHEME, text)

    @classmethod
    def from_path(cls, path: str) -> ResourceUri:
        """Read a request's path as it was sent, undecoded; raises as `parse`."""
        return cls._after(PATH_PREFIX, path)

    @classmethod
    def _after(cls, prefix: str, text: str) -> ResourceUri:
        parts = text.removeprefix(prefix).split("/") if text.startswith(prefix) else []
        if len(parts) != 3:
            parts = ["", "", ""]  # refused below, with the one sentence there is
        return cls(repository=parts[0], type=parts[1], tag=parts[2])
