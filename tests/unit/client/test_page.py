"""The proxy's page says what was found, and lets nothing through that a browser would obey."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cloister.client.page import PageState, render
from cloister.verifier.result import AttestationResult, Claim, Finding, Source
from support.fake_worker import FakeWorker, attester_of

EVIL = "<script>alert(1)</script>\"'&"


def result(finding: Finding = Finding.AFFIRMING, *, development: bool = True) -> AttestationResult:
    return AttestationResult(
        platform="development (software TPM)" if development else "SEV-SNP",
        development=development,
        memory_confidentiality="none",
        claims=(
            Claim(
                name="claim " + EVIL,
                finding=finding,
                source=Source.HARDWARE_PROVEN,
                explanation="sentence " + EVIL,
                code=None if finding is Finding.AFFIRMING else "code" + EVIL,
            ),
        ),
        not_proven=("nothing " + EVIL,),
        appraised_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        policy_id="sha256:00",
    )


def page(of: AttestationResult | None, **changes: object) -> str:
    state: dict[str, object] = {
        "worker": "http://worker.test/" + EVIL,
        "result": of,
        "attester": attester_of(FakeWorker()),
        "failure": "because " + EVIL,
        "exchanges": 3,
        "last": None,
    }
    return render(PageState(**(state | changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize("of", [None, *[result(finding) for finding in Finding]])
def test_nothing_is_unescaped(of: AttestationResult | None) -> None:
    text = page(of)
    assert "<script" not in text
    assert EVIL not in text
    assert "&lt;script&gt;alert(1)" in text


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        (Finding.AFFIRMING, "Affirmed: every claim holds."),
        (Finding.WARNING, "Refused: a claim is doubtful."),
        (Finding.CONTRAINDICATED, "Refused: a claim is contradicted."),
        (Finding.NONE, "Cannot decide."),
    ],
)
def test_the_verdict_in_words(finding: Finding, words: str) -> None:
    text = page(result(finding))
    assert words in text
    assert "What is not proven" in text
    assert "hardware proven" in text
    assert "2026-01-02 03:04:05 UTC" in text


def test_development_is_said_in_words() -> None:
    assert "This is a development platform." in page(result())
    assert "development platform" not in page(result(development=False))


def test_a_verdict_whose_time_is_over() -> None:
    assert "time is over" in page(result(), attester=None)
    assert "time is over" not in page(result())


def test_the_page_refreshes_itself_without_scripts() -> None:
    assert '<meta http-equiv="refresh" content="5">' in page(result())
