"""Gramine's pseudo-files, simulated by ordinary ones and by a pipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.attester import gramine
from cloister.attester.gramine import GramineAttester
from cloister.errors import FetchError, UnsupportedError
from cloister.evidence.items import ITEM_SGX_QUOTE

DIGEST = bytes(range(32))


def quote_over(user_data: bytes) -> bytes:
    return bytes(48 + 320) + user_data + b"signature"


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    (tmp_path / "attestation_type").write_bytes(b"dcap\0")
    (tmp_path / "user_report_data").touch()
    (tmp_path / "quote").write_bytes(quote_over(DIGEST + bytes(32)))
    return tmp_path


def test_a_quote_is_over_the_digest(inside: Path) -> None:
    items = GramineAttester(inside).quote(DIGEST)
    assert items[ITEM_SGX_QUOTE].data == quote_over(DIGEST + bytes(32))
    assert (inside / "user_report_data").read_bytes() == DIGEST + bytes(32)


def test_a_quote_over_other_data_is_refused(inside: Path) -> None:
    (inside / "quote").write_bytes(quote_over(bytes(64)))
    with pytest.raises(FetchError) as caught:
        GramineAttester(inside).quote(DIGEST)
    assert caught.value.code == "device.answer"


def test_a_quote_has_a_size(inside: Path) -> None:
    (inside / "quote").write_bytes(
        quote_over(DIGEST + bytes(32)).ljust(gramine.MAX_QUOTE_BYTES, b"\0")
    )
    assert GramineAttester(inside).quote(DIGEST)
    with (inside / "quote").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(FetchError, match="longer than"):
        GramineAttester(inside).quote(DIGEST)


@pytest.mark.parametrize("kind", ["none", "epid", ""])
def test_a_manifest_without_dcap_is_unsupported(inside: Path, kind: str) -> None:
    (inside / "attestation_type").write_text(kind)
    with pytest.raises(UnsupportedError, match=r"sgx\.remote_attestation"):
        GramineAttester(inside).quote(DIGEST)


def test_outside_gramine_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="not on this machine"):
        GramineAttester(tmp_path).quote(DIGEST)


def test_a_file_that_fails_is_told_apart(inside: Path) -> None:
    (inside / "user_report_data").unlink()
    (inside / "user_report_data").symlink_to("/dev/full")
    with pytest.raises(FetchError, match="No space") as caught:
        GramineAttester(inside).quote(DIGEST)
    assert caught.value.code == "device.io"
