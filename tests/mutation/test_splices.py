"""Genuine pieces put together wrongly: one's beginning with another's end, or one for another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cache

import pytest

from cloister.verifier.result import AttestationResult
from mutation.spelling import same_value
from mutation.subjects import EVIDENCE, Part, Subject, affirmed, recorded
from mutation.unsigned import Affirmed, excuse

PLACES = 4
"""Where two parts are cut and joined."""

OF_ONE_CHIP = ("snp/genoa-v5-json",)
"""The next evidence is of the same processor: its certificate vouches for both."""

pytestmark = [
    pytest.mark.evidence,
    pytest.mark.skipif(not EVIDENCE.is_dir(), reason="REAL EVIDENCE NOT SPLICED"),
]


@cache
def alike() -> dict[tuple[str, str], list[tuple[Subject, Part]]]:
    """Parts of one platform and name."""
    found = defaultdict(list)
    for subject in recorded():
        for part in subject.parts:
            found[subject.name.partition("/")[0], part.name].append((subject, part))
    return found


def neighbours() -> Iterator[tuple[Subject, Part, bytes]]:
    """Each part, and the same part of the next evidence, if that is another."""
    for group in alike().values():
        for number, (subject, part) in enumerate(group):
            other = group[(number + 1) % len(group)][1].plan.data
            if other != part.plan.data:
                yield subject, part, other


def joined(one: bytes, other: bytes) -> Iterator[bytes]:
    size = min(len(one), len(other))
    for number in range(1, PLACES + 1):
        place = number * size // (PLACES + 1)
        yield one[:place] + other[place:]
        yield other[:place] + one[place:]


def is_spelling(
    subject: Subject, part: Part, whole: bytes, data: bytes, result: AttestationResult
) -> bool:
    """Whether `data` is `whole` but for what nothing is decided by, such as padding."""
    if same_value(whole, data, encoding=part.encoding):
        return True
    mutant = Affirmed(
        subject=subject.name,
        part=part.name,
        encoding=part.encoding,
        original=whole,
        changed=data,
        roots=subject.roots,
        result=result,
    )
    return excuse(mutant) is not None


def test_two_halves_are_no_whole() -> None:
    judged = 0
    for subject, part, other in neighbours():
        assert affirmed(subject.judge(part.name, part.plan.data))
        for data in joined(part.plan.data, other):
            judged += 1
            result = subject.judge(part.name, data)
            assert not affirmed(result) or any(
                is_spelling(subject, part, whole, data, result) for whole in (part.plan.data, other)
            ), (subject.name, part.name)
    assert judged > 300


def test_what_vouches_for_one_does_not_vouch_for_another() -> None:
    """Certificates, collateral, signatures and registers of the next evidence."""
    judged = 0
    for subject, part, other in neighbours():
        shared = part.name.startswith(("pcrs", "collateral")) or subject.name in OF_ONE_CHIP
        if len(subject.parts) == 1 or shared:
            continue
        judged += 1
        assert not affirmed(subject.judge(part.name, other)), (subject.name, part.name)
    assert judged > 50
