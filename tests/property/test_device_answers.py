"""Whatever devices and services answer, an attester raises only what it promises."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import cbor2
from hypothesis import given
from hypothesis import strategies as st

from cloister.attester.azure import HCL_REPORT_INDEX, read_hcl_report
from cloister.attester.device_tpm import der_prefix, find_attestation_key
from cloister.attester.machine import decode_item
from cloister.attester.metadata import fetch_td_quote, fetch_vcek_chain
from cloister.attester.nsm import _decode
from cloister.attester.nvgpu import GpuAttester
from cloister.attester.platforms import detect
from cloister.attester.snp_items import snp_items
from cloister.attester.tdx_guest import parse_quote_response
from cloister.errors import FetchError, UnsupportedError
from cloister.strictjson import Json, JsonObject
from support.fake_tpm import FakeTpm

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2**40) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
    ),
    max_leaves=8,
)
PROMISED = (FetchError, UnsupportedError)
TPM = FakeTpm()


class Says:
    def __init__(self, answer: JsonObject, body: bytes = b"") -> None:
        self.answer = answer
        self.body = body

    def ask(self, request: JsonObject) -> JsonObject:
        return self.answer

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        return self.body


@given(st.binary(max_size=200))
def test_of_a_quote_generation_service(answer: bytes) -> None:
    with contextlib.suppress(*PROMISED):
        parse_quote_response(answer)


@given(st.binary(max_size=200) | ANY_JSON.map(cbor2.dumps))
def test_of_a_nitro_module(answer: bytes) -> None:
    with contextlib.suppress(*PROMISED):
        _decode("Attestation", answer)


@given(st.binary(max_size=200))
def test_of_nv_memory(content: bytes) -> None:
    assert content.startswith(der_prefix(content))
    TPM.nv = dict.fromkeys((HCL_REPORT_INDEX, 0x01C10000, 0x01C10001), b"HCLA" + content)
    with contextlib.suppress(*PROMISED):
        read_hcl_report(TPM)
    TPM.nv = dict.fromkeys((0x01C10000, 0x01C10001), content)
    with contextlib.suppress(*PROMISED):
        find_attestation_key(TPM)


@given(st.binary(max_size=2000))
def test_of_a_host_with_certificates(table: bytes) -> None:
    snp_items(bytes(1184), table)


@given(st.binary(max_size=100) | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_of_a_metadata_service(body: bytes) -> None:
    with contextlib.suppress(*PROMISED):
        fetch_vcek_chain(Says({}, body))
    with contextlib.suppress(*PROMISED):
        fetch_td_quote(Says({}, body), bytes(1024))


@given(ANY_JSON)
def test_of_a_child(value: Json) -> None:
    with contextlib.suppress(*PROMISED):
        decode_item(value)
    with contextlib.suppress(*PROMISED):
        decode_item({"media_type": "", "data": "", "endorsements": value})
    with contextlib.suppress(*PROMISED):
        GpuAttester(Says({"cc": True, "dev_tools": False, "gpus": value})).collect(bytes(32))


@given(st.binary(max_size=100))
def test_of_a_file_system(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        for name in ("proc/cpuinfo", "proc/sys/kernel/osrelease", "sys/class/dmi/id/product_name"):
            path = Path(directory) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        assert len(detect(Path(directory))) == 9
