"""What is read from recorded cases of Nitro enclaves and dstack guests."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cloister.cli.cases import dstack, nitro, nitro_tpm
from cloister.cli.cases.folder import CaseFile, CaseFiles
from cloister.cli.cases.verdict import READERS
from cloister.errors import ConfigurationError
from cloister.verifier.expected import NOTHING_EXPECTED, Expected
from cloister.verifier.platforms.dstack import DstackEvidence
from cloister.verifier.platforms.nitro import NitroEvidence
from cloister.verifier.platforms.nitro_tpm import NitroTpmEvidence
from cloister.verifier.platforms.tdx import TdxEvidence


def case(roles: tuple[str, ...], **inputs: object) -> CaseFiles:
    """Files whose contents are their roles."""
    return CaseFiles(
        name="made up",
        platform="any",
        variant=None,
        files=tuple(
            CaseFile(role=role, name=role, encoding="binary", data=role.encode()) for role in roles
        ),
        inputs=inputs,
        certificates=(),
        at=datetime(2026, 3, 1, tzinfo=UTC),
    )


def test_nitro() -> None:
    made = nitro.read(case(("original_bundle", "document", "document_unwrapped")))
    assert made.evidence == NitroEvidence(document=b"document")
    assert made.expected == NOTHING_EXPECTED
    with pytest.raises(ConfigurationError):
        nitro.read(case(("original_bundle",)))


def test_what_is_expected_of_an_enclave() -> None:
    made = nitro.read(
        case(
            ("document",),
            expected_nonce="6e",
            expected_user_data="75",
            expected_public_key="70",
            expected_pcrs={"0": "00" * 48, "16": "16" * 48},
        )
    )
    assert made.expected == Expected(
        values={
            "nonce": b"n",
            "user_data": b"u",
            "public_key": b"p",
            "pcr0": bytes(48),
            "pcr16": b"\x16" * 48,
        }
    )
    wrong: tuple[object, ...] = ([], {"0": 0}, {"0": "0"}, {"0": "XY"})
    for bad in wrong:
        with pytest.raises(ConfigurationError):
            nitro.read(case(("document",), expected_pcrs=bad))


def test_nitro_tpm() -> None:
    made = nitro_tpm.read(
        case(("document", "event_log"), expected_nonce="6e", expected_pcrs={"4": "04" * 48})
    )
    assert made.evidence == NitroTpmEvidence(document=b"document", event_log=b"event_log")
    assert made.expected == Expected(values={"nonce": b"n", "pcr4": b"\4" * 48})
    assert nitro_tpm.read(case(("document",))).evidence == NitroTpmEvidence(document=b"document")
    assert READERS["nitro-tpm"] == "nitro_tpm"


def test_dstack() -> None:
    made = dstack.read(
        case(
            ("quote", "collateral", "original_bundle", "event_log", "app_compose"),
            expected_report_data="72",
            expected_compose_hash="63",
        )
    )
    assert made.evidence == DstackEvidence(
        tdx=TdxEvidence(quote=b"quote", collateral=b"collateral"),
        event_log=b"event_log",
        app_compose=b"app_compose",
    )
    assert made.expected == Expected(values={"report_data": b"r", "compose_hash": b"c"})


def test_a_quote_alone() -> None:
    made = dstack.read(case(("quote",)))
    assert made.evidence == DstackEvidence(tdx=TdxEvidence(quote=b"quote"))
    assert made.expected == NOTHING_EXPECTED
