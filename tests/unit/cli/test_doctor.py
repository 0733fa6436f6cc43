"""``cloister doctor``: what it says of made-up machines, and that it runs on this one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from cloister.attester import swtpm
from cloister.attester.platforms import State
from cloister.cli import doctor as command
from cloister.cli.doctor import Diagnosis, attempt, examine, show, verdict
from cloister.cli.main import main
from cloister.errors import FetchError, UnsupportedError
from cloister.evidence.report import EvidenceItem

ALL = {"bwrap", *swtpm.PROGRAMS}


def machine(root: Path, *files: str, programs: frozenset[str] = frozenset(ALL)) -> Diagnosis:
    for name in (*files, "proc/self/ns/user"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return examine(
        root,
        may_use=lambda _: True,
        find_program=lambda name: f"/usr/bin/{name}" if name in programs else None,
    )


def text(diagnosis: Diagnosis) -> str:
    console = Console(width=200, highlight=False)
    with console.capture() as captured:
        for part in show(diagnosis):
            console.print(part)
    return captured.get()


def test_it_runs_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["doctor"])
    assert left.value.code in {0, 3}
    assert "This machine" in capsys.readouterr().out


def test_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert left.value.code == (0 if document["attests"] else 3)
    assert {entry["platform"] for entry in document["platforms"]} >= {"sev-snp", "tdx", "tpm"}


def test_the_software_tpms_programs_are_those_it_needs() -> None:
    assert command._SWTPM == swtpm.PROGRAMS


def test_a_machine_without_tee_is_good_for_development(tmp_path: Path) -> None:
    diagnosis = machine(tmp_path)
    assert (diagnosis.exit_code, diagnosis.attests, diagnosis.development) == (3, (), True)
    assert "good for development" in text(diagnosis)


def test_a_machine_with_nothing_at_all_says_so(tmp_path: Path) -> None:
    diagnosis = machine(tmp_path, programs=frozenset())
    assert diagnosis.exit_code == 3
    assert not diagnosis.development
    said = text(diagnosis)
    assert "can attest nothing" in said
    assert "apt-get install bubblewrap" in said
    assert "swtpm_localca missing" in said


def test_a_tee_is_enough(tmp_path: Path) -> None:
    diagnosis = machine(tmp_path, "dev/sev-guest", programs=frozenset())
    assert diagnosis.exit_code == 0
    assert diagnosis.attests == ("sev-snp",)
    assert "memory is sealed: AMD SEV-SNP" in verdict(diagnosis)


def test_a_tpm_alone_seals_no_memory(tmp_path: Path) -> None:
    diagnosis = machine(tmp_path, "dev/tpmrm0")
    assert diagnosis.exit_code == 0
    assert "nothing here keeps its memory" in verdict(diagnosis)


def test_a_gpu_alone_attests_nothing(tmp_path: Path) -> None:
    diagnosis = machine(tmp_path, "dev/nvidiactl", "dev/nvidia0")
    assert diagnosis.exit_code == 3
    assert diagnosis.attests == ()


def test_steps_are_shown(tmp_path: Path) -> None:
    diagnosis = machine(tmp_path, "dev/nitro_enclaves")
    assert "→ run inside an enclave: nitro-cli run-enclave" in text(diagnosis)


@pytest.mark.parametrize(
    ("file", "value", "step"),
    [
        ("user/max_user_namespaces", "0", "max_user_namespaces"),
        ("kernel/unprivileged_userns_clone", "0", "unprivileged_userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "apparmor_restrict"),
    ],
)
def test_what_forbids_namespaces_is_named(tmp_path: Path, file: str, value: str, step: str) -> None:
    def entry() -> tuple[bool, str]:
        (only,) = (
            entry for entry in machine(tmp_path).prerequisites if entry.name == "user namespaces"
        )
        return only.met, only.step

    path = tmp_path / "proc/sys" / file
    path.parent.mkdir(parents=True)
    path.write_text("7\n")
    assert entry() == (True, "")
    path.write_text(f"{value}\n")
    met, said = entry()
    assert not met
    assert step in said


def test_a_kernel_without_namespaces_is_named(tmp_path: Path) -> None:
    met = {
        entry.name: entry.met
        for entry in examine(tmp_path, find_program=lambda _: None).prerequisites
    }
    assert met == {"bubblewrap": False, "user namespaces": False, "software TPM": False}


class Made:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.digests: list[bytes] = []

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        self.digests.append(statement_digest)
        if self.error is not None:
            raise self.error
        return {"snp.report": EvidenceItem(media_type="text/x", data=bytes(1184))}


def test_trying_asks_only_what_lacks_nothing(tmp_path: Path) -> None:
    made = Made()
    asked: list[str] = []

    def open_attester(platform: str) -> Made:
        asked.append(platform)
        return made

    diagnosis = attempt(
        machine(tmp_path, "dev/sev-guest", "dev/nitro_enclaves"),
        open_attester=open_attester,
        random_bytes=lambda size: b"r" * size,
    )
    assert asked == ["sev-snp"]
    assert made.digests == [b"r" * 32]
    assert diagnosis.exit_code == 0
    assert "asked: gave snp.report (1184 bytes)" in text(diagnosis)


@pytest.mark.parametrize(
    "error",
    [
        UnsupportedError("not on this machine: a provider", code="device.absent"),
        FetchError("the device gave no answer", code="device.timeout"),
    ],
)
def test_a_device_that_gives_nothing_does_not_count(tmp_path: Path, error: Exception) -> None:
    before = machine(tmp_path, "dev/sev-guest")
    assert before.exit_code == 0
    after = attempt(before, open_attester=lambda _: Made(error))
    assert after.exit_code == 3
    assert after.platforms[0].state is State.BLOCKED
    assert str(error) in text(after)
    assert after.to_json()["attests"] == []
