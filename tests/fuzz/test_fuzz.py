"""Parsers stay within their bounds: one kind of error, memory, and work that grows with input."""

from __future__ import annotations

import contextlib
import json
import random
import sys
import tracemalloc
from collections.abc import Callable
from functools import cache

import pytest

from cloister.evidence.eventlog import Event, encode_event_log
from cloister.evidence.tpm import Alg
from fuzz.one import altered
from fuzz.simulated import simulated_examples
from fuzz.targets import KIB, TARGETS, Target, examples
from support.tdx_logs import ccel, measured

ALL = pytest.mark.parametrize("name", TARGETS)

SMALL = 16 * KIB
TIMES = 4
MORE_WORK = 6
"""Work for input `TIMES` as long; 16 would be quadratic."""
FIXED_WORK = 2000

FILLERS = (b"\0", b"\xff", b"A", b"[", b'{"a":', b"-----BEGIN CERTIFICATE-----\n", b"\x30\x82")


@cache
def examples_of(name: str) -> tuple[bytes, ...]:
    found = sorted(examples(TARGETS[name]), key=len)
    return tuple(found[:: max(1, len(found) // 8)])


def attempt(target: Target, data: bytes) -> None:
    with contextlib.suppress(target.raises):
        target.parse(data)


def steps(target: Target, data: bytes) -> int:
    """How many functions are called, of Python and of C."""
    count = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(note)
    try:
        attempt(target, data)
    finally:
        sys.setprofile(None)
    return count


def peak(target: Target, data: bytes) -> int:
    tracemalloc.start()
    try:
        attempt(target, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@ALL
def test_there_are_examples(name: str) -> None:
    assert examples_of(name)


@ALL
def test_altered_examples(name: str) -> None:
    """A few; ``make fuzz`` tries millions."""
    target, chance = TARGETS[name], random.Random(name)
    corpus = [data[: target.longest] for data in examples_of(name)]
    for _ in range(100):
        attempt(target, altered(corpus, target.words, chance))


@ALL
def test_memory(name: str) -> None:
    target = TARGETS[name]
    attempt(target, examples_of(name)[0])  # what is kept for good is not counted
    chance = random.Random(name)
    inputs = [*examples_of(name), *(filler * (64 * KIB // len(filler)) for filler in FILLERS)]
    inputs += [altered(inputs, target.words, chance) for _ in range(10)]
    for data in inputs:
        assert peak(target, data) <= target.memory(len(data)), data[:40]


@ALL
def test_work_grows_no_faster_than_input(name: str) -> None:
    target, first = TARGETS[name], examples_of(name)[0]
    attempt(target, first)
    for head in (b"", first[: len(first) // 2]):
        for filler in (*FILLERS, *target.words[:4]):
            small = steps(target, head + filler * (SMALL // len(filler)))
            large = steps(target, head + filler * (TIMES * SMALL // len(filler)))
            assert large <= MORE_WORK * small + FIXED_WORK, filler


def tcg_log(count: int) -> bytes:
    event = Event(pcr=1, type=4, digests={Alg.SHA256: bytes(32)}, data=b"x" * 20)
    return encode_event_log([event] * count)


def ccel_log(count: int) -> bytes:
    return ccel([measured(1, 4, b"x" * 20)] * count)


def legacy_log(count: int) -> bytes:
    event = (
        (4).to_bytes(4, "little") + (4).to_bytes(4, "little") + bytes(20) + b"\4\0\0\0" + b"x" * 4
    )
    return event * count


def dstack_log(count: int) -> bytes:
    event = {
        "imr": 3,
        "event_type": 134217729,
        "digest": "",
        "event": "e",
        "event_payload": "00" * 20,
    }
    return json.dumps([event] * count).encode()


def policy_json(count: int) -> bytes:
    members = json.loads(simulated_examples()["simulated/policy.json"])
    return json.dumps({**members, "chip_ids": [f"{n:08x}" for n in range(count)]}).encode()


def hexadecimal(count: int) -> bytes:
    return simulated_examples()["simulated/snp_report"].hex().encode() + b"\n" * count


GROWING: dict[str, Callable[[int], bytes]] = {
    "event_log": tcg_log,
    "legacy_event_log": legacy_log,
    "ccel": ccel_log,
    "dstack_log": dstack_log,
    "policy_json": policy_json,
    "recognise": hexadecimal,
}


@pytest.mark.parametrize("name", GROWING)
def test_work_grows_with_what_is_in_it(name: str) -> None:
    target, make = TARGETS[name], GROWING[name]
    target.parse(make(100))
    small, large = steps(target, make(200)), steps(target, make(TIMES * 200))
    assert large <= MORE_WORK * small + FIXED_WORK
    assert peak(target, make(800)) <= target.memory(len(make(800)))
