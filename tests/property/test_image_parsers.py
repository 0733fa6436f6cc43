"""Whatever bytes stand where parts of an image belong: a record, or one kind of error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import ConfigurationError, MalformedError, UnsupportedError
from cloister.image.authenticode import parse_pe
from cloister.image.corim import encode_corim, parse_corim
from cloister.image.firmware_volumes import unpacked_volumes
from cloister.image.golden import golden_from_log, load_golden
from cloister.image.gramine import parse_sigstruct
from cloister.image.ovmf_variables import read_variables
from cloister.image.partition_table import measured_table
from cloister.image.secure_boot import list_entries
from cloister.image.stub import parse_uki
from cloister.image.tdx_launch import mrtd
from cloister.verifier.platform_references import PlatformReference
from cloister.verifier.reference_values import ReferenceValues
from support import boot_parts as made

REFERENCE = PlatformReference(platform="snp", name="n", registers={"measurement": ("11" * 48,)})

PARSERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "program": (parse_pe, made.kernel()),
    "unified kernel image": (parse_uki, made.uki()),
    "partition table": (measured_table, made.disk()),
    "variable store": (read_variables, made.variable_store(("Lang", b"eng"), size=512)),
    "signature lists": (list_entries, b""),
    "firmware's volumes": (unpacked_volumes, made.ovmf_code(made.PEI_VOLUME, made.DXE_VOLUME)),
    "TDX firmware": (mrtd, made.tdvf(*made.TDX_SECTIONS)),
    "CoRIM": (parse_corim, encode_corim(ReferenceValues.from_platforms(REFERENCE))),
    "enclave signature": (parse_sigstruct, b""),
    "golden values": (load_golden, b'{"format": "cloister/golden/1", "golden": []}'),
    "event log": (lambda data: golden_from_log(data, firmware="f", machine="m"), b""),
}
ALLOWED = (MalformedError, UnsupportedError)


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.binary(max_size=2000))
@settings(max_examples=60, deadline=None)
def test_arbitrary_bytes(name: str, data: bytes) -> None:
    parse, _ = PARSERS[name]
    allowed = (*ALLOWED, ConfigurationError) if name == "golden values" else ALLOWED
    with contextlib.suppress(*allowed):
        parse(data)


@pytest.mark.parametrize("name", [name for name, (_, good) in PARSERS.items() if good])
@given(at=st.integers(0, 1 << 16), put=st.binary(min_size=1, max_size=8))
@settings(max_examples=120, deadline=None)
def test_a_good_one_with_something_else_in_it(name: str, at: int, put: bytes) -> None:
    parse, good = PARSERS[name]
    at %= len(good)
    changed = good[:at] + put + good[at + len(put) :]
    allowed = (*ALLOWED, ConfigurationError) if name == "golden values" else ALLOWED
    with contextlib.suppress(*allowed):
        parse(changed)
