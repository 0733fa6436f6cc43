"""The page about platforms: its table of cases is current, its claims and fields exist."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from docs.generate_platforms import BEGIN, END, PAGE, Row, cases, render

from cloister.cli.cases.folder import read_case
from cloister.cli.cases.verdict import appraise_case
from cloister.verifier.appraise.nitro import FIELD_NAMES as NITRO
from cloister.verifier.appraise.nitro_tpm import FIELD_NAMES as NITRO_TPM
from cloister.verifier.appraise.tpm_quote import FIELD_NAMES as TPM
from cloister.verifier.ledger import NOT_CHECKED, UNAUTHENTICATED
from cloister.verifier.platforms import dstack, nvgpu, sgx, snp, tdx
from cloister.verifier.policy import as_captured, strict

EVIDENCE = Path(__file__).parents[4] / "shared" / "evidence"
CODES = (PAGE.parent / "codes.md").read_text()
TEXT = PAGE.read_text()

with_evidence = pytest.mark.skipif(
    not EVIDENCE.is_dir(), reason="PAGE OF PLATFORMS NOT CHECKED: ../shared/evidence is absent"
)

ROW = Row(
    platform="tpm",
    name="a-quote",
    expected="fail",
    result="fail",
    reason="bad_signature",
    wanted="bad_signature",
    layers=4,
    agreed=4,
)


@pytest.mark.evidence
@with_evidence
def test_the_page_is_current() -> None:
    """`python docs/generate_platforms.py ../shared/evidence` writes it."""
    rows = cases(EVIDENCE)
    assert len(rows) >= 121
    assert render(TEXT, rows) == TEXT


@pytest.mark.evidence
@with_evidence
def test_codes_are_explained_for_the_claims_that_carry_them() -> None:
    explained: dict[str, str] = {}
    for first, second in re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", CODES, flags=re.MULTILINE):
        explained |= dict.fromkeys(re.findall(r"`([a-z0-9_.]+)`", first), second)
    unexplained = set()
    for path in sorted(EVIDENCE.glob("*/*/case.json")):
        case = read_case(path.parent)
        for policy in (strict(), as_captured(strict())):
            result = appraise_case(case, policy=policy, at=case.at)
            for claim in result.failures:
                written = re.findall(r"`([a-z0-9_.…]+)`", explained.get(str(claim.code), ""))
                if claim.code not in {NOT_CHECKED, UNAUTHENTICATED} and not any(
                    re.fullmatch(re.escape(one).replace("…", ".*"), claim.name) for one in written
                ):
                    unexplained.add((claim.code, claim.name))
    assert unexplained == set()


def test_a_row_that_agrees_and_one_that_does_not() -> None:
    assert ROW.agrees
    assert ROW.cells() == "| a-quote | fail | fail | `bad_signature` | 4 of 4 |"
    for other in (replace(ROW, agreed=3), replace(ROW, result="pass"), replace(ROW, wanted=None)):
        assert not other.agrees
    assert "`bad_signature` (expected: none)" in replace(ROW, wanted=None).cells()
    assert replace(ROW, reason=None, wanted=None).cells().endswith("| – | 4 of 4 |")


def test_only_the_table_is_replaced() -> None:
    page = f"before\n{BEGIN}old\n{END}after\n"
    written = render(page, (ROW, replace(ROW, name="another", agreed=1)))
    assert written.startswith(f"before\n{BEGIN}\n1 of 2 cases agree")
    assert written.endswith(f"| 1 of 4 |\n\n{END}after\n")
    assert "old" not in written
    assert render(written, (ROW, replace(ROW, name="another", agreed=1))) == written
    with pytest.raises(ValueError, match="no place"):
        render("a page without it", (ROW,))


@pytest.mark.parametrize(
    ("title", "names"),
    [
        ("SNP", snp.FIELD_NAMES),
        ("TDX", tdx.FIELD_NAMES),
        ("SGX", sgx.FIELD_NAMES),
        ("dstack", tuple(dstack.EVENT_FIELDS)),
        ("Nitro", NITRO),
        ("NitroTPM", NITRO_TPM),
        ("TPM, Google Cloud", TPM),
        ("NVIDIA", nvgpu.FIELD_NAMES),
    ],
)
def test_fields_are_those_that_may_be_expected(title: str, names: tuple[str, ...]) -> None:
    fields = TEXT.partition("\n## Fields\n")[2].partition("\n## ")[0]
    (cell,) = re.findall(rf"^\| {title} \| (.*) \|$", fields, flags=re.MULTILINE)
    written = re.findall(r"`(\w+)`", cell)
    assert set(written) <= set(names)
    registers = re.compile(r"pcr\d+(_\w+)?")
    assert {name for name in names if not registers.fullmatch(name)} <= set(written)
