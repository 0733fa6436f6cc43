"""Nitro documents and logs of TDX guests from anyone: they decode, or are malformed."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import MalformedError
from cloister.evidence.cbor import parse_cbor
from cloister.evidence.ccel import parse_ccel, replay_rtmrs
from cloister.evidence.dstack import parse_dstack_log
from cloister.evidence.nitro import DocumentKind, parse_document, unwrap_document
from cloister.testing.simulated_nitro import SimulatedNitro, nsm_answer
from cloister.verifier.appraise.tdx_log import LOG_CLAIMS, judge_ccel
from cloister.verifier.evidence import run
from cloister.verifier.ledger import Ledger
from cloister.verifier.platforms.nitro import NitroEvidence, verify_nitro
from cloister.verifier.platforms.nitro_tpm import NitroTpmEvidence, verify_nitro_tpm
from cloister.verifier.policy import development
from cloister.verifier.result import Finding
from support.tdx_logs import boot, ccel, dstack_events, dstack_log

NOW = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)
NITRO = SimulatedNitro(now=NOW)
DOCUMENT = NITRO.document(user_data=bytes(32), nonce=bytes(8))
TPM_DOCUMENT = NITRO.document(kind=DocumentKind.NITRO_TPM, user_data=bytes(32), nonce=bytes(8))
SCALE = (
    b"\x00\x02"
    + (len(DOCUMENT) << 2 | 1).to_bytes(2, "little")
    + DOCUMENT
    + b"\x04\x04a\x04b"
    + bytes(64)
    + b"\x08{}"
)


def any_cbor(data: bytes) -> object:
    return parse_cbor(data, limit=8192, depth=8, what="it", indefinite=True)


def document(data: bytes) -> object:
    return parse_document(unwrap_document(data))


def replayed(data: bytes) -> object:
    return replay_rtmrs(parse_ccel(data).events)


def dstack(data: bytes) -> object:
    return replay_rtmrs([event.as_event() for event in parse_dstack_log(data).events])


GOOD: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "cbor": (any_cbor, cbor2.loads(DOCUMENT)[2]),
    "document": (parse_document, DOCUMENT),
    "of a NitroTPM": (parse_document, TPM_DOCUMENT),
    "tagged": (document, b"\xd2" + DOCUMENT),
    "nsm": (document, nsm_answer(DOCUMENT)),
    "scale": (document, SCALE),
    "base64": (document, base64.b64encode(DOCUMENT)),
    "ccel": (replayed, ccel(boot())),
    "dstack": (dstack, dstack_log(dstack_events())),
    "dstack, newer": (dstack, dstack_log(dstack_events(version=2, digest=False))),
}


@pytest.mark.parametrize("name", GOOD)
def test_the_examples_are_good(name: str) -> None:
    parse, good = GOOD[name]
    parse(good)


@pytest.mark.parametrize("name", GOOD)
@given(data=st.binary(max_size=600))
def test_any_bytes(name: str, data: bytes) -> None:
    parse, _ = GOOD[name]
    with contextlib.suppress(MalformedError):
        parse(data)


@pytest.mark.parametrize("name", GOOD)
@given(place=st.integers(0), cut=st.integers(0, 8), more=st.binary(max_size=8))
def test_altered(name: str, place: int, cut: int, more: bytes) -> None:
    """A few bytes replaced, added or left out, anywhere."""
    parse, good = GOOD[name]
    place %= len(good)
    with contextlib.suppress(MalformedError):
        parse(good[:place] + more + good[place + cut :])


_LEAVES = st.none() | st.booleans() | st.integers() | st.binary() | st.text() | st.floats()
_ITEMS = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)
_MEMBERS = st.sampled_from([*NITRO.payload(), "nitrotpm_pcrs", "unknown"])


@settings(max_examples=60)
@given(changes=st.dictionaries(_MEMBERS, _ITEMS, max_size=3))
def test_members_of_any_kind(changes: dict[str, object]) -> None:
    """Signed all the same: whatever a payload holds is a claim, never an exception."""
    data = NITRO.sign({**NITRO.payload(), **changes})
    with contextlib.suppress(MalformedError):
        parse_document(data)
    for verify, evidence in (
        (verify_nitro, NitroEvidence(document=data)),
        (verify_nitro_tpm, NitroTpmEvidence(document=data)),
    ):
        result = run(verify, evidence, policy=development(), roots=NITRO.roots, at=NOW)
        assert result.claims


@settings(max_examples=60)
@given(place=st.integers(0, len(DOCUMENT) - 1), flip=st.integers(1, 255))
def test_no_byte_of_a_document_is_ignored(place: int, flip: int) -> None:
    altered = bytearray(DOCUMENT)
    altered[place] ^= flip
    result = run(
        verify_nitro,
        NitroEvidence(document=bytes(altered)),
        policy=development(),
        roots=NITRO.roots,
        at=NOW,
    )
    assert result.verdict is not Finding.AFFIRMING


@given(place=st.integers(0, len(ccel(boot(), padding=0)) - 1), flip=st.integers(1, 255))
def test_digests_and_registers_of_a_log_count(place: int, flip: int) -> None:
    """A changed log affirms only where nothing was changed that a register vouches for."""
    good = ccel(boot(), padding=0)
    altered = bytearray(good)
    altered[place] ^= flip
    ledger = Ledger()
    ledger.expect(*LOG_CLAIMS)
    judge_ccel(bytes(altered), replay_rtmrs(boot()), authenticated=True, ledger=ledger)
    ledger.close(development=False)
    if ledger.holds(*LOG_CLAIMS):
        events = parse_ccel(bytes(altered)).events
        assert replay_rtmrs(events) == replay_rtmrs(boot())
