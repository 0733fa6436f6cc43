"""Attesters by name, and their evidence on its way out of a child."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from cloister.attester import machine
from cloister.attester.azure import AzureAttester
from cloister.attester.configfs_tsm import TsmAttester
from cloister.attester.device_tpm import DeviceTpmAttester
from cloister.attester.gramine import GramineAttester
from cloister.attester.machine import (
    PLATFORMS,
    MachineAttester,
    Together,
    decode_item,
    encode_item,
    open_attester,
    read_ccel,
)
from cloister.attester.nitro_tpm import NitroTpmAttester
from cloister.attester.nsm import NitroAttester
from cloister.attester.sev_guest import SevGuestAttester
from cloister.attester.tdx_guest import TdxGuestAttester
from cloister.errors import ConfigurationError, FetchError, UnsupportedError
from cloister.evidence.report import Endorsement, EvidenceItem
from cloister.strictjson import JsonObject
from support.fake_tpm import FakeTpm

DIGEST = bytes(range(32))
ITEM = EvidenceItem(
    media_type="text/x",
    data=b"\0evidence",
    endorsements=(Endorsement(media_type="text/y", data=b"\xff"),),
)


class Made:
    def __init__(self, name: str) -> None:
        self.name = name

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        return {self.name: EvidenceItem(media_type="text/x", data=statement_digest)}


class InProcess:
    def ask(self, request: JsonObject) -> JsonObject:
        return machine.handle(request)


def test_items_survive_the_way_out_of_the_child() -> None:
    assert decode_item(encode_item(ITEM)) == ITEM


def test_a_platform_is_asked_through_the_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_opened", Made)
    items = MachineAttester("tpm", device=InProcess()).quote(DIGEST)
    assert items == {"tpm": EvidenceItem(media_type="text/x", data=DIGEST)}


def test_several_attesters_answer_over_one_digest() -> None:
    items = Together((Made("a"), Made("b"))).quote(DIGEST)
    assert {name: item.data for name, item in items.items()} == {"a": DIGEST, "b": DIGEST}


def test_unknown_platforms_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="sev-snp") as caught:
        open_attester("vax")
    assert caught.value.code == "configuration.platform"
    with pytest.raises(UnsupportedError):
        MachineAttester("vax")


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"items": []},
        {"items": {"a": 1}},
        {"items": {"a": {"data": "", "endorsements": 1}}},
        {"items": {"a": {"data": "*", "endorsements": []}}},
        {"items": {"a": {"data": "", "endorsements": [1]}}},
    ],
)
def test_a_child_that_talks_nonsense_is_refused(answer: JsonObject) -> None:
    class Says:
        def ask(self, request: JsonObject) -> JsonObject:
            return answer

    with pytest.raises(FetchError) as caught:
        MachineAttester("tpm", device=Says()).quote(DIGEST)
    assert caught.value.code == "device.answer"


def test_a_digest_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        MachineAttester("tpm", device=InProcess()).quote(b"")


def test_the_event_log_of_a_tdx_machine_is_optional(tmp_path: Path) -> None:
    assert read_ccel(tmp_path / "CCEL") is None
    (tmp_path / "CCEL").write_bytes(b"")
    assert read_ccel(tmp_path / "CCEL") is None
    (tmp_path / "CCEL").write_bytes(b"log")
    assert read_ccel(tmp_path / "CCEL") == b"log"


OPENED = {
    "sev-snp": (TsmAttester, SevGuestAttester),
    "tdx": (TsmAttester, TdxGuestAttester),
    "sgx": (GramineAttester, GramineAttester),
    "nitro": (NitroAttester, NitroAttester),
    "nitro-tpm": (NitroTpmAttester, NitroTpmAttester),
    "azure-snp": (AzureAttester, AzureAttester),
    "azure-tdx": (AzureAttester, AzureAttester),
    "gcp-snp": (Together, Together),
    "gcp-tdx": (Together, Together),
    "gcp-vtpm": (DeviceTpmAttester, DeviceTpmAttester),
    "tpm": (DeviceTpmAttester, DeviceTpmAttester),
}
"""With configfs-tsm, and without."""


@pytest.mark.parametrize("platform", PLATFORMS)
def test_each_platform_has_its_attester(
    platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "open_tpm", lambda *_: FakeTpm())
    with_configfs, without = OPENED[platform]
    monkeypatch.setattr(machine, "REPORTS", tmp_path)
    assert type(open_attester(platform)) is with_configfs
    monkeypatch.setattr(machine, "REPORTS", tmp_path / "absent")
    assert type(open_attester(platform)) is without


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.tee
def test_a_real_machine_answers_or_says_what_it_lacks(platform: str) -> None:
    try:
        assert MachineAttester(platform).quote(DIGEST)
    except (UnsupportedError, FetchError) as error:
        assert str(error)
