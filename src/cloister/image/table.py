"""Reads tables of a TOML file member by member; what nobody asked for is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cloister.errors import ConfigurationError

MAX_TEXT: Final = 4096
MAX_ENTRIES: Final = 64
MAX_NUMBER: Final = (1 << 53) - 1
_MISSING: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a string is written: for programs, and for whoever wrote another."""

    pattern: re.Pattern[str]
    told: str


class Table:
    """One table; `name` is how errors call it, empty for the top.

    Every reader takes its member away; `done` refuses what is left. All raise ConfigurationError
    (code ``image.configuration``).
    """

    def __init__(self, members: Mapping[str, object], name: str) -> None:
        self._members = dict(members)
        self._name = name

    def done(self) -> None:
        """Refuse members that nobody read."""
        if self._members:
            known = ", ".join(sorted(self._members))
            raise self._refused(f"has members that are not known: {known}")

    def text(self, key: str, *, default: str | None = None) -> str:
        """A string that is not empty."""
        found = self._take(key, default)
        if not isinstance(found, str) or not 0 < len(found) <= MAX_TEXT:
            raise self._refused(f"needs a string `{key}`")
        return found

    def optional_text(self, key: str) -> str | None:
        """A string, or None where there is none."""
        return self.text(key) if key in self._members else None

    def matching(self, key: str, form: Form) -> str:
        """A string of a given form."""
        found = self.text(key)
        if form.pattern.fullmatch(found) is None:
            raise self._refused(
                f"has a `{key}` that is not written as it should be, which is: {form.told}"
            )
        return found

    def optional_matching(self, key: str, form: Form) -> str | None:
        """A string of a given form, or None where there is none."""
        return self.matching(key, form) if key in self._members else None

    def integer(
        self, key: str, *, low: int, high: int = MAX_NUMBER, default: int | None = None
    ) -> int:
        """A whole number in ``low..high``."""
        return self._number(self._take(key, default), key, low, high)

    def optional_integer(self, key: str, *, low: int, high: int = MAX_NUMBER) -> int | None:
        """A whole number, or None where there is none."""
        return self.integer(key, low=low, high=high) if key in self._members else None

    def boolean(self, key: str, *, default: bool) -> bool:
        """``true`` or ``false``."""
        found = self._take(key, default)
        if not isinstance(found, bool):
            raise self._refused(f"needs `{key}` to be true or false")
        return found

    def integers(self, key: str, *, low: int, high: int) -> list[int]:
        """A list of whole numbers; empty where there is none."""
        return [self._number(one, key, low, high) for one in self._list(key, ())]

    def texts(self, key: str, *, default: Sequence[str] = ()) -> list[str]:
        """A list of strings; a single string counts as a list of one."""
        if isinstance(self._members.get(key), str):
            return [self.text(key)]
        found = self._list(key, default)
        if not all(isinstance(one, str) and 0 < len(one) <= MAX_TEXT for one in found):
            raise self._refused(f"needs `{key}` to be a list of strings")
        return [str(one) for one in found]

    def table(self, key: str) -> Table:
        """A table inside; an empty one where there is none."""
        found = self._take(key, {})
        if not isinstance(found, dict):
            raise self._refused(f"needs `{key}` to be a table")
        return Table(found, self._path(key))

    def optional_table(self, key: str) -> Table | None:
        """A table inside, or None where there is none."""
        return self.table(key) if key in self._members else None

    def tables(self, key: str) -> Iterator[Table]:
        """A list of tables; empty where there is none."""
        for one in self._list(key, ()):
            if not isinstance(one, dict):
                raise self._refused(f"needs `{key}` to be a list of tables")
            yield Table(one, self._path(key))

    def _take(self, key: str, default: object = None) -> object:
        found = self._members.pop(key, _MISSING)
        if found is not _MISSING:
            return found
        if default is None:
            raise self._refused(f"lacks `{key}`")
        return default

    def _list(self, key: str, default: Sequence[object]) -> Sequence[object]:
        found = self._members.pop(key, default)
        if not isinstance(found, list | tuple) or len(found) > MAX_ENTRIES:
            raise self._refused(f"needs `{key}` to be a list of at most {MAX_ENTRIES} entries")
        return found

    def _number(self, found: object, key: str, low: int, high: int) -> int:
        if isinstance(found, bool) or not isinstance(found, int) or not low <= found <= high:
            raise self._refused(f"needs `{key}` to be a whole number from {low} to {high}")
        return found

    def _path(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key

    def _refused(self, why: str) -> ConfigurationError:
        where = f"[{self._name}]" if self._name else "the image's configuration"
        return ConfigurationError(f"{where} {why}", code="image.configuration")
