"""Expectations of named fields."""

from __future__ import annotations

import pytest

from cloister.errors import ConfigurationError
from cloister.verifier.expected import NOTHING_EXPECTED, Expected, check_names, compare
from cloister.verifier.ledger import Ledger
from cloister.verifier.result import Claim, Finding

FIELDS: dict[str, bytes | None] = {
    "report_data": b"data",
    "measurement": b"code",
    "nonce": None,
    "user_data": b"user",
}


def claims(expected: Expected) -> dict[str, Claim]:
    ledger = Ledger()
    ledger.expect(*expected.names)
    compare(expected, FIELDS, ledger)
    return {claim.name: claim for claim in ledger.close(development=False)}


def test_what_holds() -> None:
    found = claims(Expected(values={"report_data": b"data"}, prefixes={"measurement": b"co"}))
    assert {claim.finding for claim in found.values()} == {Finding.AFFIRMING}
    assert set(found) == {"expected.report_data", "expected.measurement"}
    assert claims(NOTHING_EXPECTED) == {}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("report_data", "report_data_mismatch"),
        ("measurement", "measurement_mismatch"),
        ("nonce", "nonce_mismatch"),
        ("user_data", "user_data_mismatch"),
    ],
)
@pytest.mark.parametrize("wrong", [b"other", b"", b"dat", b"data\0"])
def test_what_does_not(name: str, code: str, wrong: bytes) -> None:
    claim = claims(Expected(values={name: wrong}))[f"expected.{name}"]
    assert (claim.finding, claim.code) == (Finding.CONTRAINDICATED, code)


def test_a_beginning_longer_than_the_field() -> None:
    claim = claims(Expected(prefixes={"report_data": b"data and more"}))["expected.report_data"]
    assert claim.code == "report_data_mismatch"


def test_a_field_that_there_is_not() -> None:
    check_names(Expected(values={"measurement": b""}), FIELDS)
    for expected in (Expected(values={"mr_td": b""}), Expected(prefixes={"mr_td": b"x"})):
        with pytest.raises(ConfigurationError) as raised:
            check_names(expected, FIELDS)
        assert raised.value.code == "expected.unknown"
        assert "measurement" in str(raised.value)


@pytest.mark.parametrize(
    ("values", "prefixes"),
    [({}, {"report_data": b""}), ({"report_data": b"data"}, {"report_data": b"da"})],
)
def test_what_anything_would_meet_or_nothing_once(
    values: dict[str, bytes], prefixes: dict[str, bytes]
) -> None:
    assert claims(Expected(values={"measurement": b"code"}, prefixes={"report_data": b"da"}))
    with pytest.raises(ConfigurationError) as raised:
        Expected(values=values, prefixes=prefixes)
    assert raised.value.code == "expected.contradiction"
