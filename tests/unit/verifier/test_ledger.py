"""The ledger: claims by device, what unauthenticated evidence says, promises kept."""

from __future__ import annotations

import pytest

from cloister.verifier.ledger import NOT_CHECKED, UNAUTHENTICATED, Ledger
from cloister.verifier.result import Claim, Finding, Source


def by_name(claims: tuple[Claim, ...]) -> dict[tuple[str, str], Claim]:
    return {(claim.device, claim.name): claim for claim in claims}


def test_claims_come_in_the_order_that_was_promised() -> None:
    ledger = Ledger()
    ledger.on("gpu0").expect("b")
    ledger.expect("b", "a")
    ledger.affirm("a", "It holds.")
    ledger.affirm("b", "It holds.")
    ledger.on("gpu0").refuse("b", "why", "It does not.")
    claims = ledger.close(development=False)
    assert [(claim.device, claim.name) for claim in claims] == [
        ("gpu0", "b"),
        ("cpu0", "b"),
        ("cpu0", "a"),
    ]


def test_a_promise_that_was_not_kept_is_listed() -> None:
    ledger = Ledger()
    ledger.on("gpu0").expect("first", "second")
    ledger.on("gpu0").refuse("first", "why", "It does not.")
    second = ledger.close(development=False)[1]
    assert (second.finding, second.code, second.device) == (Finding.NONE, NOT_CHECKED, "gpu0")
    assert "first" in second.explanation
    assert second.value is None


def test_a_claim_nobody_promised_is_a_fault() -> None:
    ledger = Ledger()
    ledger.affirm("a", "It holds.")
    with pytest.raises(RuntimeError):
        ledger.close(development=False)


def test_one_claim_for_each_device() -> None:
    ledger = Ledger()
    ledger.affirm("a", "It holds.")
    ledger.on("gpu0").affirm("a", "It holds.")
    with pytest.raises(RuntimeError):
        ledger.on("gpu0").affirm("a", "It holds.")
    assert ledger.made("a")
    assert ledger.on("gpu0").holds("a")
    assert not ledger.on("gpu1").holds("a")


def test_unauthenticated_evidence_affirms_nothing_and_can_be_refused() -> None:
    ledger = Ledger()
    ledger.expect("off", "on")
    ledger.affirm("off", "Debugging is off.", value="off")
    said = Ledger()
    said.expect("off", "on")
    said.stated().affirm("off", "Debugging is off.", value="off")
    said.stated().check(
        "on", holds=False, affirmed="", code="debug", refused="Debugging is on.", value="on"
    )
    assert ledger.holds("off")
    assert not said.holds("off")
    found = by_name(said.close(development=False))
    off, on = found["cpu0", "off"], found["cpu0", "on"]
    assert (off.finding, off.code, off.value) == (Finding.NONE, UNAUTHENTICATED, "off")
    assert (on.finding, on.code, on.value) == (Finding.CONTRAINDICATED, "debug", "on")


def test_views_of_views_keep_device_and_doubt() -> None:
    ledger = Ledger()
    view = ledger.stated().on("gpu0")
    view.expect("a")
    view.affirm("a", "It holds.")
    claim = ledger.close(development=False)[0]
    assert (claim.device, claim.finding) == ("gpu0", Finding.NONE)


def test_values() -> None:
    ledger = Ledger()
    ledger.expect("a", "b", "c", "d")
    ledger.affirm("a", "It holds.")
    ledger.refuse("b", "why", "It does not.")
    ledger.check("c", holds=True, affirmed="Yes.", code="no", refused="No.", value="UpToDate")
    ledger.warn("d", "old", "It is old.", value="OutOfDate")
    claims = ledger.close(development=False)
    assert [claim.value for claim in claims] == ["pass", "fail", "UpToDate", "OutOfDate"]
    assert claims[3].finding is Finding.WARNING


def test_on_a_development_platform_nothing_is_proven_by_hardware() -> None:
    ledger = Ledger()
    ledger.expect("a")
    ledger.affirm("a", "It holds.", source=Source.HARDWARE_PROVEN)
    assert ledger.close(development=False)[0].source is Source.HARDWARE_PROVEN
    assert ledger.close(development=True)[0].source is Source.OPERATOR_ASSERTED


def test_a_providers_word_is_not_proven_by_hardware_nor_more_than_the_evidence() -> None:
    """Nor is what this verifier derives, or does not believe, anybody's word."""
    ledger = Ledger()
    said = ledger.on("vtpm0").asserted()
    said.expect("a", "b", "c")
    said.affirm("a", "It holds.", source=Source.HARDWARE_PROVEN)
    said.affirm("b", "It follows.")
    said.stated().affirm("c", "It says so.", source=Source.HARDWARE_PROVEN)
    ledger.expect("d")
    ledger.affirm("d", "It holds.", source=Source.HARDWARE_PROVEN)

    def sources(*, development: bool = False, proven: bool = True) -> list[Source]:
        return [one.source for one in ledger.close(development=development, proven=proven)]

    derived = Source.VERIFIER_DERIVED
    assert sources() == [Source.PROVIDER_ASSERTED, derived, derived, Source.HARDWARE_PROVEN]
    operator = Source.OPERATOR_ASSERTED
    assert sources(development=True) == [operator, derived, derived, operator]
    assert sources(proven=False) == [derived] * 4
    assert [one.finding for one in ledger.made_claims()][2] is Finding.NONE


def test_what_holds_of_other_devices() -> None:
    ledger = Ledger()
    ledger.refuse("own", "why", "It does not.")
    assert ledger.others_hold()
    ledger.on("gpu0").expect("promised")
    assert not ledger.others_hold()
    ledger.on("gpu0").affirm("promised", "It holds.")
    assert ledger.others_hold()
    assert not ledger.on("gpu0").others_hold()
    ledger.on("gpu1").warn("more", "why", "Not quite.", value="half")
    assert not ledger.others_hold()
