"""A guest halts unless it was started for the manifest that it loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from cloister.attester.started_for import require_started_for
from cloister.errors import ConfigurationError, MalformedError, UnsupportedError
from cloister.evidence import items
from cloister.evidence.report import EvidenceItem
from cloister.testing.simulated_hardware import SimulatedHardware

NOW = datetime(2026, 11, 3, 12, tzinfo=UTC)
DIGEST = hashlib.sha256(b'{"the":"manifest"}').digest()
FIELDS: Mapping[str, dict[str, Any]] = {
    "snp": {"host_data": DIGEST},
    "tdx": {"mr_config_id": DIGEST + bytes(16)},
    "sgx": {"config_id": DIGEST + bytes(32)},
    "nitro": {"pcrs": {0: bytes(48), 16: hashlib.sha384(bytes(48) + DIGEST).digest()}},
}


def evidence(platform: str, **fields: Any) -> Mapping[str, EvidenceItem]:
    return SimulatedHardware.make(platform, now=NOW, **fields).issue(bytes(32))


@pytest.mark.parametrize("platform", FIELDS)
def test_a_guest_goes_on_only_under_the_manifest_it_was_started_for(platform: str) -> None:
    started = evidence(platform, **FIELDS[platform])
    require_started_for(started, DIGEST.hex())
    with pytest.raises(ConfigurationError, match="names another") as refused:
        require_started_for(started, hashlib.sha256(b"another").hexdigest())
    assert refused.value.code == "attester.manifest"


@pytest.mark.parametrize("platform", FIELDS)
def test_a_guest_that_was_started_for_none_halts(platform: str) -> None:
    with pytest.raises(ConfigurationError, match="names none") as refused:
        require_started_for(evidence(platform), DIGEST.hex())
    assert refused.value.code == "attester.manifest"


def test_a_digest_with_something_behind_it_is_another() -> None:
    longer = evidence("tdx", mr_config_id=DIGEST + bytes(15) + b"\x01")
    require_started_for(evidence("tdx", **FIELDS["tdx"]), DIGEST.hex())
    with pytest.raises(ConfigurationError):
        require_started_for(longer, DIGEST.hex())


def test_what_cannot_be_read_is_never_a_pass() -> None:
    snp = evidence("snp", **FIELDS["snp"])
    with pytest.raises(UnsupportedError):
        require_started_for({}, DIGEST.hex())
    with pytest.raises(UnsupportedError):
        require_started_for({**snp, **evidence("tdx", **FIELDS["tdx"])}, DIGEST.hex())
    cut = EvidenceItem(media_type="x", data=snp[items.ITEM_SNP_REPORT].data[:-1])
    with pytest.raises(MalformedError):
        require_started_for({items.ITEM_SNP_REPORT: cut}, DIGEST.hex())


@pytest.mark.parametrize("platform", FIELDS)
def test_no_manifest_is_right_only_where_the_machine_names_none(platform: str) -> None:
    require_started_for(evidence(platform), None)
    require_started_for({}, None)  # no register could name one
    with pytest.raises(ConfigurationError, match="was given none") as refused:
        require_started_for(evidence(platform, **FIELDS[platform]), None)
    assert refused.value.code == "attester.manifest"


@pytest.mark.parametrize(
    ("made", "other"),
    [
        ((items.ITEM_TDX_QUOTE, "tdx"), (items.ITEM_SGX_QUOTE, "sgx")),
        ((items.ITEM_SGX_QUOTE, "sgx"), (items.ITEM_TDX_QUOTE, "tdx")),
    ],
    ids=["tdx", "sgx"],
)
def test_a_quote_of_the_other_kind_names_no_manifest(
    made: tuple[str, str], other: tuple[str, str]
) -> None:
    """Quotes of enclaves and of trust domains have one format, and registers in other places."""
    (item, platform), (other_item, other_platform) = made, other
    right = evidence(platform, **FIELDS[platform])
    require_started_for({item: right[item]}, DIGEST.hex())
    wrong = evidence(other_platform, **FIELDS[other_platform])
    with pytest.raises(MalformedError, match="the quote is not one of"):
        require_started_for({item: wrong[other_item]}, DIGEST.hex())
