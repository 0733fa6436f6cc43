"""``cloister verify`` and ``inspect`` on recorded evidence of real machines."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.cli.cases.verdict import RESULTS, reason
from cloister.cli.evidence_files import assemble, read_files
from cloister.endorsements.artefact import amd_vcek
from cloister.endorsements.cache import EndorsementCache
from cloister.endorsements.certificates import parse_certificates
from cloister.endorsements.contents import make_artefact
from cloister.endorsements.pinned import pinned_roots
from cloister.errors import ConfigurationError
from cloister.evidence.snp import parse_report
from cloister.verifier import policy
from cloister.verifier.evidence import run as verify
from support.evidence_files import NOW, Run

EVIDENCE = Path(__file__).parents[4] / "shared" / "evidence"
recorded = [
    pytest.mark.evidence,
    pytest.mark.skipif(
        not EVIDENCE.is_dir(), reason="REAL EVIDENCE NOT CHECKED: ../shared/evidence is absent"
    ),
]


class TestRecorded:
    """Evidence of real machines, given as files and found out by their bytes."""

    pytestmark = recorded

    AMBIGUOUS = ("nitro/dstack-debug", "nitro/dstack-nsm")
    """Two files that are the same document."""
    NOT_RECOGNISED = ("snp/neg-truncated", "snp/neg-version-zero")

    @staticmethod
    def cases() -> list[tuple[Path, dict[str, object]]]:
        told = [
            (path.parent, json.loads(path.read_text())) for path in EVIDENCE.glob("*/*/case.json")
        ]
        return [
            (path, case)
            for path, case in sorted(told, key=lambda pair: pair[0])
            if "inputs" not in case
        ]

    def test_folders_give_the_verdicts_of_their_cases(self) -> None:
        wrong, count = [], 0
        for path, told in self.cases():
            if told["case"] in (*self.AMBIGUOUS, *self.NOT_RECOGNISED):
                with pytest.raises(ConfigurationError):
                    assemble(read_files([path]))
                continue
            made = assemble(read_files([path]))
            result = verify(
                made.verify,
                made.evidence,
                policy=policy.as_captured(policy.strict()),
                roots=pinned_roots(),
                at=datetime.fromisoformat(str(told["verification_time"])),
            )
            expected = told["expected"]
            assert isinstance(expected, dict)
            found = (RESULTS[result.verdict], reason(result))
            count += 1
            if found != (expected["result"], expected.get("reason")):
                wrong.append((told["case"], found))
        assert count > 90
        assert wrong == []

    def test_every_file_of_evidence_is_decoded(self, run: Run) -> None:
        for platform in (
            "snp",
            "tdx",
            "nitro",
            "az-vtpm",
            "nvidia-gpu",
            "tpm",
            "gcp-vtpm",
            "dstack",
        ):
            for folder in sorted((EVIDENCE / platform).iterdir()):
                if folder.name.startswith("neg-"):
                    continue
                files = [path for path in sorted(folder.iterdir()) if path.name != "case.json"]
                _, out, _ = run("inspect", *files, "--json")
                lines = [json.loads(line) for line in out.splitlines()]
                failed = [line for line in lines if "error" in line and line["kind"] != "unknown"]
                assert failed == []

    def test_what_is_missing_comes_from_what_is_kept(self, run: Run, tmp_path: Path) -> None:
        folder = EVIDENCE / "snp" / "ms-turin"
        report = folder / "report.bin"
        kept = EndorsementCache(tmp_path / "kept", pinned_roots())
        verified = ("verify", report, "--at", "2026-03-01T00:00:00Z", "--as-captured")
        assert run(*verified, "--endorsements", kept.folder)[0] == 1
        decoded = parse_report(report.read_bytes())
        assert decoded.product is not None
        request = amd_vcek(decoded.product, decoded.chip_id, decoded.reported_tcb)
        vcek = parse_certificates((folder / "vcek.pem").read_bytes())[0]
        kept.put(
            make_artefact(
                request,
                vcek.public_bytes(Encoding.DER),
                source="https://kdsintf.amd.com/",
                fetched_at=NOW,
            )
        )
        code, _, err = run(*verified, "--endorsements", kept.folder)
        assert code == 0
        assert err == ""

    def test_case_lines(self, run: Run) -> None:
        folders = [EVIDENCE / name for name in ("snp/ms-turin", "tdx/neg-mrtd-flip")]
        code, out, _ = run("verify", "--case", *folders, "--json")
        assert code == 1
        lines = [json.loads(line) for line in out.splitlines()]
        assert [(line["case"], line["result"], line["reason"]) for line in lines] == [
            ("snp/ms-turin", "pass", None),
            ("tdx/neg-mrtd-flip", "fail", "bad_signature"),
        ]
        assert set(lines[0]) == {"case", "result", "reason", "layers", "facts"}
        assert run("verify", "--case", folders[0])[0] == 0

    def test_a_case_at_another_time(self, run: Run) -> None:
        folder = EVIDENCE / "snp" / "ms-turin"
        code, out, _ = run("verify", "--case", folder, "--at", "2050-01-01T00:00:00Z")
        assert code == 1
        assert json.loads(out)["reason"] == "expired"

    def test_a_folder_that_is_no_case(self, run: Run, tmp_path: Path) -> None:
        code, out, err = run("verify", "--case", tmp_path, EVIDENCE / "snp" / "ms-turin")
        assert code == 2
        assert [json.loads(line)["result"] for line in out.splitlines()] == ["undecided", "pass"]
        assert "[case.malformed]" in err
