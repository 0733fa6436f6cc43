"""The page about the sandbox: every probe has a row, every row a test that exists."""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from support.sandbox_table import TESTS, Row, rows, sandbox_probe

LAYERS = {"namespaces", "seccomp", "landlock", "limits", "worker"}
NOT_ON_EVERY_MACHINE = {"modify_ldt"}


def test_every_probe_has_one_row_and_every_row_a_probe_that_exists() -> None:
    named = Counter(name for row in rows() for name in row.probes)
    assert named.keys() - sandbox_probe.PROBES.keys() <= NOT_ON_EVERY_MACHINE
    assert sandbox_probe.PROBES.keys() - named.keys() == set()
    assert [name for name, count in named.items() if count > 1] == []


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.attack)
def test_every_row_names_who_stops_it_and_a_test_that_exists(row: Row) -> None:
    assert row.stopped_by
    assert set(row.stopped_by) <= LAYERS
    assert row.tests
    for test in row.tests:
        file, _, function = test.partition("::")
        path = TESTS / "integration" / file
        assert path.is_file(), test
        if function:
            tree = ast.parse(path.read_text())
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
            assert function in {node.name for node in tree.body if isinstance(node, kinds)}, test


def test_the_page_has_rows_for_every_layer() -> None:
    assert {layer for row in rows() for layer in row.stopped_by} == LAYERS
    assert len(rows()) > 50
