"""Collateral from anyone: it decodes or is malformed, and only what was signed is believed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from cloister.endorsements.intel import (
    Collateral,
    parse_chain,
    parse_collateral,
    parse_crl,
    parse_pck_extensions,
    parse_qe_identity,
    parse_tcb_info,
)
from cloister.endorsements.intel_pck import SGX_EXTENSIONS
from cloister.errors import MalformedError
from cloister.testing.simulated_dcap import SimulatedIntel
from cloister.testing.simulated_dcap_parts import sgx_extensions
from cloister.verifier.authenticate.intel_collateral import authenticate_collateral
from cloister.verifier.ledger import Ledger

NOW = datetime(2026, 6, 1, tzinfo=UTC)
INTEL = SimulatedIntel(now=NOW)
GOOD = INTEL.collateral()
MEMBERS = [field.name for field in dataclasses.fields(Collateral)][:9]
EXTENSIONS = sgx_extensions()

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)


def extensions(data: bytes) -> object:
    """As in a certificate, without the cost of making one."""

    class Made:
        extensions = x509.Extensions(
            [
                x509.Extension(
                    SGX_EXTENSIONS, False, x509.UnrecognizedExtension(SGX_EXTENSIONS, data)
                )
            ]
        )

    return parse_pck_extensions(Made())  # type: ignore[arg-type]  # all that is looked at


@pytest.mark.parametrize(
    "parse",
    [parse_collateral, parse_tcb_info, parse_qe_identity, parse_crl, parse_chain, extensions],
)
@given(data=st.binary(max_size=400))
def test_any_bytes(parse: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        parse(data)


@pytest.mark.parametrize("parse", [parse_collateral, parse_tcb_info, parse_qe_identity])
@given(value=JSON)
def test_any_json(parse: Callable[[bytes], object], value: object) -> None:
    with contextlib.suppress(MalformedError):
        parse(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("parse", "text"), [(parse_tcb_info, GOOD.tcb_info), (parse_qe_identity, GOOD.qe_identity)]
)
@given(data=st.data())
def test_any_member_replaced(
    parse: Callable[[bytes], object], text: bytes, data: st.DataObject
) -> None:
    members = json.loads(text)
    place = members
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JSON)
    with contextlib.suppress(MalformedError):
        parse(json.dumps(members).encode())


@given(st.integers(0, len(EXTENSIONS) - 1), st.integers(0, 255))
def test_a_changed_byte_of_the_extensions_is_seen(place: int, byte: int) -> None:
    changed = bytearray(EXTENSIONS)
    changed[place] = byte
    with contextlib.suppress(MalformedError):
        same = extensions(bytes(changed)) == extensions(EXTENSIONS)
        assert same == (bytes(changed) == EXTENSIONS)


@given(st.sampled_from(MEMBERS), st.integers(0, 1 << 16), st.integers(1, 255))
def test_any_changed_byte_of_what_is_signed_is_refused(name: str, place: int, bits: int) -> None:
    """Chains apart: of those, only keys and names matter, and a root in them is never used."""
    if name.endswith("_chain"):
        return
    data = bytearray(getattr(GOOD, name))
    data[place % len(data)] ^= bits
    changed = dataclasses.replace(GOOD, **{name: bytes(data)})
    found = authenticate_collateral(changed, roots=INTEL.roots, at=NOW, ledger=Ledger(), prefix="")
    assert found is None
