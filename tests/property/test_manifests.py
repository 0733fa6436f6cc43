"""Manifest bundles from anyone: they decode, or are malformed."""

from __future__ import annotations

import contextlib
import json

from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedError
from cloister.manifest.bundle import load_bundle
from cloister.manifest.model import parse_manifest, read_manifest
from cloister.testing.signed_manifests import sign_first
from support.manifests import ALICE, full_manifest

PAYLOAD = full_manifest().encode()
BUNDLE = sign_first(full_manifest(), ALICE).encode()

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def test_the_examples_are_good() -> None:
    assert load_bundle(BUNDLE).manifest == parse_manifest(PAYLOAD)


@given(st.binary(max_size=400))
def test_any_bytes_decode_or_are_malformed(data: bytes) -> None:
    for parse in (load_bundle, parse_manifest):
        with contextlib.suppress(MalformedError):
            parse(data)


@given(st.integers(0, len(PAYLOAD) - 1), st.integers(0, 255))
def test_every_byte_of_a_manifest_counts(at: int, byte: int) -> None:
    """Canonical bytes are read in one way: what reads alike is alike."""
    changed = PAYLOAD[:at] + bytes([byte]) + PAYLOAD[at + 1 :]
    with contextlib.suppress(MalformedError):
        assert parse_manifest(changed).encode() == changed


@given(st.data())
def test_any_value_in_place_of_a_member_is_read_or_malformed(data: st.DataObject) -> None:
    members = json.loads(PAYLOAD)
    holder = members
    name = data.draw(st.sampled_from(sorted(members)))
    if isinstance(members[name], dict) and data.draw(st.booleans()):
        holder = members[name]
        name = data.draw(st.sampled_from(sorted(holder) or ["new"]))
    holder[name] = data.draw(json_values)
    with contextlib.suppress(MalformedError):
        read_manifest(json.dumps(members).encode())
