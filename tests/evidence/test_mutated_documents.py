"""Genuine Nitro documents and logs of TDX guests, damaged: they decode, or are malformed."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.errors import MalformedError
from cloister.evidence.ccel import parse_ccel
from cloister.evidence.dstack import parse_dstack_log
from cloister.evidence.nitro import parse_document, unwrap_document

EVIDENCE = Path(__file__).parents[3] / "shared" / "evidence"
ROUNDS = 300

pytestmark = [
    pytest.mark.evidence,
    pytest.mark.skipif(
        not EVIDENCE.is_dir(), reason="REAL EVIDENCE NOT CHECKED: ../shared/evidence is absent"
    ),
]


def document(data: bytes) -> object:
    return parse_document(unwrap_document(data))


CASES: list[tuple[Callable[[bytes], object], str]] = [
    (document, "nitro/veracruz/document.cbor"),
    (document, "nitro/evervault-valid/document.cbor"),
    (document, "nitro/dstack-nsm/nsm_response.bin"),
    (parse_ccel, "tdx/gcp-v4-cos113-ccel/ccel_data.bin"),
    (parse_ccel, "tdx/live-v4-ccel/ccel_data.bin"),
    (parse_dstack_log, "dstack/rtmr3-compose/event_log.json"),
    (parse_dstack_log, "dstack/tdx-lite/event_log.json"),
]


@pytest.mark.parametrize(("parse", "name"), CASES, ids=[name for _, name in CASES])
def test_damaged(parse: Callable[[bytes], object], name: str) -> None:
    good = (EVIDENCE / name).read_bytes()
    parse(good)
    chance = random.Random(name)
    # Padding aside, which is most of a CCEL area.
    end = len(good.rstrip(b"\xff"))
    for _ in range(ROUNDS):
        place, size = chance.randrange(end), chance.randrange(9)
        bad = good[:place] + chance.randbytes(chance.randrange(9)) + good[place + size :]
        with contextlib.suppress(MalformedError):
            parse(bad)
        with contextlib.suppress(MalformedError):
            parse(good[:place])
