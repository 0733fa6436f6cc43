"""The attester of device TPMs against a software TPM, which answers as a device does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloister.attester.device_tpm import DeviceTpmAttester, find_attestation_key
from cloister.attester.tpm import AK_ATTRIBUTES, Tpm, signing_template
from cloister.attester.tpm_errors import ResponseCode, TpmError
from cloister.errors import FetchError
from cloister.evidence.items import ITEM_TPM_PCRS
from cloister.evidence.pcrs import parse_pcrs_json
from cloister.evidence.report import ITEM_QUOTE
from cloister.evidence.tpm import Alg, ObjectAttribute, parse_quote
from support.software_tpm import ak_certificate, software_tpm

pytestmark = pytest.mark.tpm

DIGEST = bytes(range(32))


@pytest.fixture
def tpm() -> Iterator[Tpm]:
    with software_tpm() as (running, _):
        yield running.tpm


def test_a_made_key_quotes_every_register(tpm: Tpm) -> None:
    tpm.extend(10, DIGEST)
    items = DeviceTpmAttester(tpm, find_attestation_key(tpm), registers=range(24)).quote(DIGEST)
    assert parse_quote(items[ITEM_QUOTE].data).extra_data == DIGEST
    values = parse_pcrs_json(items[ITEM_TPM_PCRS].data)[Alg.SHA256]
    assert len(values) == 24
    assert values[10] != bytes(32)


def test_a_provided_key_is_found_in_nv_memory(tpm: Tpm) -> None:
    ak = tpm.create_primary(signing_template())
    der = ak_certificate(ak.public)
    for index, content in ((0x01C10002, der + bytes(20)), (0x01C10003, signing_template())):
        tpm.nv_define(index, len(content))
        tpm.nv_write(index, content)
    found = find_attestation_key(tpm)
    assert found.chain == (der,)
    assert found.public == ak.public


def test_a_certificate_for_another_key_is_refused(tpm: Tpm) -> None:
    other = tpm.create_primary(signing_template(AK_ATTRIBUTES & ~ObjectAttribute.RESTRICTED))
    der = ak_certificate(other.public)
    for index, content in ((0x01C10002, der), (0x01C10003, signing_template())):
        tpm.nv_define(index, len(content))
        tpm.nv_write(index, content)
    with pytest.raises(FetchError, match="another key"):
        find_attestation_key(tpm)


def test_nv_memory_is_written_from_its_start(tpm: Tpm) -> None:
    with pytest.raises(TpmError) as caught:
        tpm.nv_write(0x01400002, b"x")
    assert caught.value.response_code == ResponseCode.HANDLE
    tpm.nv_define(0x01400002, 64)
    tpm.nv_write(0x01400002, b"a" * 64)
    tpm.nv_write(0x01400002, b"b")
    assert tpm.nv_read(0x01400002) == b"b" + b"a" * 63
    with pytest.raises(ValueError, match="at most 512 bytes"):
        tpm.nv_write(0x01400002, bytes(513))
