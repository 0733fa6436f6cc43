"""One key per call: kept over its tries, never shared with another call."""

from __future__ import annotations

import itertools

from cloister.client import retries
from cloister.client.retries import RetryKeys


def keys() -> RetryKeys:
    numbers = itertools.count()
    return RetryKeys(lambda: b"key-%d" % next(numbers))


def test_tries_of_one_call_share_a_key() -> None:
    memory = keys()
    first = memory.key(b"0", b"POST", b"/v1/x", b"", b"body")
    assert memory.key(b"1", b"POST", b"/v1/x", b"", b"body") == first
    assert memory.key(b"2", b"POST", b"/v1/x", b"", b"body") == first


def test_the_same_words_again_are_another_call() -> None:
    memory = keys()
    first = memory.key(b"0", b"body")
    second = memory.key(b"0", b"body")
    assert first != second
    assert memory.key(b"1", b"body") == second


def test_other_words_are_another_call() -> None:
    memory = keys()
    first = memory.key(b"0", b"a", b"bc")
    assert memory.key(b"1", b"ab", b"c") != first
    assert memory.key(b"1", b"a", b"bc") == first


def test_a_retry_nobody_remembers_gets_a_new_key_and_keeps_it() -> None:
    memory = keys()
    first = memory.key(b"1", b"body")
    assert memory.key(b"2", b"body") == first


def test_the_memory_is_bounded() -> None:
    memory = keys()
    first = memory.key(b"0", b"first")
    for number in range(retries.CAPACITY):
        memory.key(b"0", b"%d" % number)
    assert memory.key(b"1", b"first") != first
