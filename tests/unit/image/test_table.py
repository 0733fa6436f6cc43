"""Members of a TOML table: each of its type and size, and nothing that nobody asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import pytest

from cloister.errors import ConfigurationError
from cloister.image.table import MAX_ENTRIES, MAX_NUMBER, MAX_TEXT, Form, Table

Read = Callable[[Table], object]
KEY = "k"
LONGEST = "x" * 4096


def entries(table: Table) -> object:
    return [one.text(KEY) for one in table.tables(KEY)]


def inner(table: Table) -> object:
    return table.table(KEY).boolean(KEY, default=False)


def form(pattern: str) -> Form:
    return Form(pattern=re.compile(pattern), told="as it is")


READERS: Mapping[str, tuple[Read, list[object], list[object]]] = {
    "text": (lambda t: t.text(KEY), ["x", LONGEST], ["", LONGEST + "x", 1, True, ["x"], {}]),
    "matching": (lambda t: t.matching(KEY, form("ab*")), ["a", "abb"], ["", "ac", "ab\n", 1]),
    "integer": (
        lambda t: t.integer(KEY, low=2, high=4),
        [2, 3, 4],
        [1, 5, True, "2", 2.0, [2]],
    ),
    "large integer": (lambda t: t.integer(KEY, low=0), [0, (1 << 53) - 1], [1 << 53, -1]),
    "boolean": (lambda t: t.boolean(KEY, default=False), [True, False], [0, 1, "true", [True]]),
    "integers": (
        lambda t: t.integers(KEY, low=2, high=4),
        [[], [2, 4], [2] * 64],
        [2, "2", [1], [5], [True], ["2"], [2] * 65, {"2": 2}],
    ),
    "texts": (
        lambda t: t.texts(KEY),
        ["x", [], ["x", LONGEST], ["x"] * 64],
        ["", 1, [""], [1], [LONGEST + "x"], ["x"] * 65, {"x": "x"}],
    ),
    "table": (inner, [{}, {KEY: True}], ["x", [], [{}], True, {KEY: "x"}]),
    "tables": (
        entries,
        [[], [{KEY: "x"}], [{KEY: "x"}] * 64],
        [{}, "x", ["x"], [{}], [{KEY: "x"}] * 65, [{KEY: "x"}, 1]],
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_each_member_is_of_its_type_and_size(name: str) -> None:
    read, good, bad = READERS[name]
    for value in good:
        table = Table({KEY: value}, "")
        found = read(table)
        table.done()
        if name not in {"texts", "table", "tables"}:
            assert found == value
    for value in bad:
        with pytest.raises(ConfigurationError) as caught:
            read(Table({KEY: value}, ""))
        assert caught.value.code == "image.configuration"


def test_bounds() -> None:
    assert (MAX_TEXT, MAX_ENTRIES, MAX_NUMBER) == (4096, 64, (1 << 53) - 1)


def test_what_is_missing_is_missed_or_has_a_default() -> None:
    needed: list[Read] = [
        lambda t: t.text(KEY),
        lambda t: t.matching(KEY, form("a")),
        lambda t: t.integer(KEY, low=0),
    ]
    for read in needed:
        with pytest.raises(ConfigurationError, match=r"\[inner\] lacks `k`"):
            read(Table({}, "inner"))
    empty = Table({}, "")
    assert empty.text(KEY, default="x") == "x"
    assert empty.integer(KEY, low=0, default=7) == 7
    assert empty.boolean(KEY, default=True) is True
    assert empty.texts(KEY, default=("a", "b")) == ["a", "b"]
    assert (empty.integers(KEY, low=0, high=1), list(empty.tables(KEY))) == ([], [])
    for optional in (
        empty.optional_text(KEY),
        empty.optional_matching(KEY, form("a")),
        empty.optional_integer(KEY, low=0),
        empty.optional_table(KEY),
    ):
        assert optional is None
    empty.table(KEY).done()


def test_what_is_there_and_optional_is_read_as_strictly() -> None:
    assert Table({KEY: "a"}, "").optional_matching(KEY, form("a")) == "a"
    strict: list[Read] = [
        lambda t: t.optional_text(KEY),
        lambda t: t.optional_matching(KEY, form("a")),
        lambda t: t.optional_integer(KEY, low=0),
        lambda t: t.optional_table(KEY),
    ]
    for read in strict:
        with pytest.raises(ConfigurationError):
            read(Table({KEY: [""]}, ""))


def test_what_nobody_asked_for_is_named() -> None:
    table = Table({"a": {"b": {"more": 1, "other": 2}}}, "")
    deepest = table.table("a").table("b")
    table.done()
    with pytest.raises(
        ConfigurationError, match=r"\[a\.b\] has members that are not known: more, other"
    ):
        deepest.done()
