"""How much the embedded engine may take: more with what it has to hold, never all there is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cloister.engine.llama_memory import Sizes, addresses_for, memory_for, threads_for

GIB = 1 << 30
SIZES = Sizes(files=5 * GIB, cache=131_072, tokens=32_768, threads=200)


def test_it_covers_what_an_engine_of_that_size_holds() -> None:
    memory = memory_for(SIZES, physical=1 << 50)
    assert memory > SIZES.files + SIZES.cache * SIZES.tokens + SIZES.threads * (8 << 20)
    assert memory < 40 * GIB
    assert addresses_for(SIZES, memory) > memory + SIZES.files
    assert addresses_for(SIZES, memory) < 100 * GIB


@pytest.mark.parametrize("name", ["files", "cache", "tokens", "threads"])
def test_it_grows_with_each_size(name: str) -> None:
    more = replace(SIZES, **{name: 2 * getattr(SIZES, name)})
    assert memory_for(more, physical=1 << 50) > memory_for(SIZES, physical=1 << 50)


def test_a_cache_that_is_not_known_is_guessed_from_the_file() -> None:
    unknown = replace(SIZES, cache=0)
    assert memory_for(unknown, physical=1 << 50) > memory_for(SIZES, physical=1 << 50)


def test_it_is_never_the_whole_machine_but_for_stacks_that_stay_empty() -> None:
    stacks = memory_for(SIZES, physical=8 * GIB) - 8 * GIB * 9 // 10
    assert SIZES.threads * (8 << 20) < stacks < SIZES.threads * (10 << 20)


def test_threads_grow_with_connections_and_cores() -> None:
    assert threads_for(connections=128, computing=1) >= 134  # as measured
    assert threads_for(connections=129, computing=2) > threads_for(connections=128, computing=1)
