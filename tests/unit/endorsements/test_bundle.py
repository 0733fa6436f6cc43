"""Bundles: the same artefacts give the same bytes, and nothing is trusted for being in one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from cloister.endorsements.bundle import encode_bundle, parse_bundle
from cloister.endorsements.cache import EndorsementCache
from cloister.errors import ConfigurationError, MalformedError
from support.published import ROOTS, TDX_NEEDS, Issue, amd_artefacts

ARTEFACTS = (*map(Issue().artefact, TDX_NEEDS), *amd_artefacts())
BUNDLE = encode_bundle(ARTEFACTS)


def test_there_and_back() -> None:
    found = parse_bundle(BUNDLE, name="b")
    assert set(found) == set(ARTEFACTS)
    assert encode_bundle(found) == BUNDLE


def test_the_order_and_repetition_make_no_difference() -> None:
    assert encode_bundle((*reversed(ARTEFACTS), ARTEFACTS[0])) == BUNDLE


def test_a_bundle_says_where_each_came_from() -> None:
    entry = json.loads(BUNDLE)["artefacts"][0]
    assert entry["kind"] == "amd.crl"
    assert entry["source"] == "simulated"


def change(members: dict[str, Any], **changed: object) -> None:
    members["artefacts"][0] |= changed


def first(members: dict[str, Any]) -> Any:
    return members["artefacts"][0]


BAD: dict[str, Callable[[dict[str, Any]], object]] = {
    "another format": lambda all_: all_.update(format="cloister-endorsements/2"),
    "a member too many": lambda all_: all_.update(more=1),
    "no artefacts": lambda all_: all_.pop("artefacts"),
    "too many": lambda all_: all_.update(artefacts=[{}] * 5000),
    "another digest": lambda all_: change(all_, sha256="00" * 32),
    "other bytes": lambda all_: change(all_, data_b64="AAAA"),
    "an unknown kind": lambda all_: change(all_, kind="amd.poem"),
    "a key that leads away": lambda all_: change(all_, key="../../etc/passwd"),
    "the key of another": lambda all_: change(all_, key="Genoa/vcek"),
    "no source": lambda all_: first(all_).pop("source"),
    "a member of an artefact too many": lambda all_: change(all_, path="/etc/passwd"),
    "a time beyond time": lambda all_: change(all_, fetched_at=1 << 40),
    "a chain that is none": lambda all_: change(all_, issuer_chain="chain"),
    "a chain that is no text": lambda all_: change(all_, issuer_chain="\u00e9"),
    "twice the same": lambda all_: all_["artefacts"].append(first(all_)),
}


@pytest.mark.parametrize("what", BAD)
def test_bundles_that_do_not_decode(what: str) -> None:
    members = json.loads(BUNDLE)
    parse_bundle(json.dumps(members).encode(), name="b")
    BAD[what](members)
    with pytest.raises(MalformedError) as raised:
        parse_bundle(json.dumps(members).encode(), name="b")
    assert raised.value.code == "endorsement.bundle"
    assert str(raised.value).startswith("b: ")


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b", b"[]", b"{" * 1000, BUNDLE[:-1]])
def test_what_is_no_bundle(data: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_bundle(data, name="b")


def test_an_endless_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister.endorsements.bundle.MAX_BUNDLE_BYTES", len(BUNDLE))
    assert encode_bundle(parse_bundle(BUNDLE, name="b")) == BUNDLE
    monkeypatch.setattr("cloister.endorsements.bundle.MAX_BUNDLE_BYTES", len(BUNDLE) - 1)
    with pytest.raises(MalformedError):
        parse_bundle(BUNDLE, name="b")
    with pytest.raises(ConfigurationError):
        encode_bundle(ARTEFACTS)


def test_from_cache_to_cache(tmp_path: Any) -> None:
    here, there = (EndorsementCache(tmp_path / name, ROOTS) for name in ("here", "there"))
    for artefact in ARTEFACTS:
        here.put(artefact)
    for artefact in parse_bundle(encode_bundle(here.entries()), name="b"):
        there.put(artefact)
    assert list(there.entries()) == list(here.entries())
