"""What results about recorded evidence are worth: labels must not outlive what they rest on."""

from __future__ import annotations

import dataclasses
import shutil
from importlib import import_module
from pathlib import Path

import pytest

from cloister.cli.cases.folder import read_case
from cloister.cli.cases.verdict import READERS, Reader, verdict
from cloister.endorsements.pinned import pinned_roots
from cloister.verifier import policy
from cloister.verifier.evidence import run
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.result import AttestationResult, Finding, Source

EVIDENCE = Path(__file__).parents[3] / "shared" / "evidence"

pytestmark = [
    pytest.mark.evidence,
    pytest.mark.skipif(
        not EVIDENCE.is_dir(), reason="REAL EVIDENCE NOT CHECKED: ../shared/evidence is absent"
    ),
]
STRICT = policy.as_captured(policy.strict())


def result_of(name: str, under: AppraisalPolicy = STRICT) -> AttestationResult:
    case = read_case(EVIDENCE / name)
    reader: Reader = import_module(f"cloister.cli.cases.{READERS[case.platform]}")
    made = reader.read(case)
    pinned = pinned_roots()
    roots = dataclasses.replace(pinned, intermediates=(*pinned.intermediates, *case.certificates))
    return run(
        reader.VERIFY,
        made.evidence,
        policy=under,
        roots=roots,
        at=case.at,
        expected=made.expected,
    )


def sources(result: AttestationResult) -> set[Source]:
    return {claim.source for claim in result.claims}


@pytest.mark.parametrize(
    ("genuine", "forged"),
    [
        ("snp/ms-milan", "snp/neg-measurement-flip"),
        ("tdx/phala-v4-uptodate", "tdx/neg-mrtd-flip"),
        ("nitro/evervault-valid", "nitro/neg-pcr0-flip"),
    ],
)
def test_forged_evidence_is_proven_by_no_hardware(genuine: str, forged: str) -> None:
    assert Source.HARDWARE_PROVEN in sources(result_of(genuine))
    result = result_of(forged)
    assert result.verdict is Finding.CONTRAINDICATED
    assert Source.HARDWARE_PROVEN not in sources(result)
    assert result.memory_confidentiality == "none"


@pytest.mark.parametrize(
    ("sealed", "open_one", "protection"),
    [
        ("snp/ms-milan", "snp/go-sev-guest-milan-debug", "sev_snp"),
        ("tdx/phala-v4-uptodate", "tdx/debug-td-v4", "tdx"),
        ("sgx/cosmian-v3", "sgx/openenclave-v3-debug", "sgx"),
    ],
)
def test_memory_that_a_debugger_reads_is_not_protected(
    sealed: str, open_one: str, protection: str
) -> None:
    """Even where the policy accepts debugging, the label says what that means."""
    lax = dataclasses.replace(STRICT, accept_debug=True)
    assert result_of(sealed, lax).memory_confidentiality == protection
    assert result_of(open_one, lax).memory_confidentiality == "none"


def test_an_empty_certificate_is_none_of_the_others(tmp_path: Path) -> None:
    """A file that is there counts, even where another beside it would do."""
    source = EVIDENCE / "az-vtpm" / "tdx-with-ak-chain"
    copy = tmp_path / "az-vtpm" / source.name
    shutil.copytree(source, copy)
    (tmp_path / "roots").symlink_to(EVIDENCE / "roots")
    assert verdict(copy)["result"] == "pass"
    (copy / "ak_cert_nv.bin").write_bytes(b"")
    assert verdict(copy)["result"] == "fail"
