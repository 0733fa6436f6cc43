"""The guest's init, compiled once for all tests that run it on machines of files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from support.init_machine import MACHINES, WORKER, Machine, compile_machine, lines, write_machine


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_machine(tmp_path_factory.mktemp("init"))


@pytest.fixture(scope="session")
def machines(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Machine]:
    made = {}
    for name, files in MACHINES.items():
        root = write_machine(tmp_path_factory.mktemp(name), files())
        told = lines(program, root)
        assert WORKER in told
        made[name] = Machine(root, told)
    return made
