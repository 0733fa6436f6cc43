"""Nothing unchecked reaches appraisal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import cloister
from cloister.verifier.authenticated import Authenticated
from cloister.verifier.ledger import Ledger
from cloister.verifier.result import Source


def test_there_is_no_public_constructor() -> None:
    with pytest.raises(TypeError, match="authenticate"):
        Authenticated("evidence")
    with pytest.raises(TypeError, match="authenticate"):
        Authenticated("evidence", object())


def test_only_what_authenticates_grants() -> None:
    source = Path(cloister.__file__).parent
    users = {
        path.relative_to(source)
        for path in source.rglob("*.py")
        if re.search(r"\b_grant\b|\b_GRANT\b", path.read_text())
    }
    users.remove(Path("verifier/authenticated.py"))
    assert Path("verifier/authenticate/tpm.py") in users
    users.remove(Path("manifest/authenticate.py"))  # a type of its own, for manifests
    assert {path.parent for path in users} == {Path("verifier/authenticate")}


def test_a_claim_is_made_once_and_only_from_the_list() -> None:
    ledger = Ledger()
    ledger.affirm("a", "It holds.")
    with pytest.raises(RuntimeError, match="twice"):
        ledger.refuse("a", "code", "It does not.")
    with pytest.raises(RuntimeError, match="outside"):
        ledger.close(("b",), development=False)


def test_what_was_not_decided_names_what_failed() -> None:
    ledger = Ledger()
    ledger.affirm("a", "It holds.")
    ledger.refuse("b", "code", "It does not.")
    claims = ledger.close(("a", "b", "c"), development=False)
    assert [claim.code for claim in claims] == [None, "code", "not_checked"]
    assert claims[2].explanation == "Not checked, because b did not hold."
    assert ledger.holds("a")
    assert not ledger.holds("a", "b")
    assert not Ledger().holds("a")


def test_nothing_is_hardware_proven_on_a_development_platform() -> None:
    def claims(*, development: bool) -> list[Source]:
        ledger = Ledger()
        ledger.affirm("signed", "by a TPM", source=Source.HARDWARE_PROVEN)
        ledger.affirm("computed", "here")
        return [
            claim.source for claim in ledger.close(("signed", "computed"), development=development)
        ]

    assert claims(development=False) == [Source.HARDWARE_PROVEN, Source.VERIFIER_DERIVED]
    assert claims(development=True) == [Source.OPERATOR_ASSERTED, Source.VERIFIER_DERIVED]
