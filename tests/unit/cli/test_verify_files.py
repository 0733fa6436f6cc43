"""``cloister verify`` on files of simulated vendors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cloister.cli import evidence_files
from cloister.cli.evidence_files import EvidenceFile, assemble, read_files
from cloister.cli.verify import _is_address
from cloister.errors import ConfigurationError
from cloister.evidence.nitro import DocumentKind
from cloister.evidence.recognise import Kind
from cloister.evidence.tpm import Alg
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.testing.simulated_vtpm import SimulatedVtpm
from cloister.verifier import policy
from cloister.verifier.ear_jwt import open_ear
from support.evidence_files import AT, NITRO, NOW, Run


@pytest.mark.usefixtures("pinned")
def test_evidence_in_a_file(run: Run, document: Path) -> None:
    options = ("--at", AT, "--development")
    assert run("verify", document, *options)[0] == 0
    code, out, _ = run("verify", document, "--at", AT)
    assert code == 1
    assert "development_refused" in out


@pytest.mark.usefixtures("pinned")
def test_a_nonce_and_expectations(run: Run, document: Path) -> None:
    good = ("--nonce", b"challenge".hex(), "--expect", f"user_data={b'keys'.hex()}")
    verified = ("verify", document, "--at", AT, "--development")
    assert run(*verified, *good)[0] == 0
    assert run(*verified, "--expect", f"user_data^={b'ke'.hex()}")[0] == 0
    code, out, _ = run(*verified, "--nonce", "00")
    assert code == 1
    assert "nonce_mismatch" in out
    code, out, _ = run(*verified, "--expect", "pcr0=00")
    assert code == 1
    assert "measurement_mismatch" in out


@pytest.mark.usefixtures("pinned")
def test_whose_document_it_is(run: Run, document: Path, tmp_path: Path) -> None:
    """An instance's document brings a log along; an enclave has none."""
    vtpm = SimulatedVtpm(banks=(Alg.SHA384,))
    vtpm.boot()
    folder = tmp_path / "instance"
    folder.mkdir()
    (folder / "log").write_bytes(vtpm.event_log())
    measured = folder / "document"
    registers = vtpm.registers[Alg.SHA384]
    measured.write_bytes(NITRO.document(kind=DocumentKind.NITRO_TPM, pcrs=registers, nonce=b"n"))
    options = ("--at", AT, "--development", "--nonce", b"n".hex())
    code, out, _ = run("verify", folder, *options)
    assert code == 0
    assert "NitroTPM" in out
    assert "eventlog.replay" in out
    assert run("verify", measured, *options)[0] == 0
    code, out, err = run("verify", document, folder / "log", "--at", AT, "--development")
    assert code == 0
    assert "Nitro Enclaves" in out
    assert "log" in err
    other = {**registers, 4: bytes([1]) * 48}
    measured.write_bytes(NITRO.document(kind=DocumentKind.NITRO_TPM, pcrs=other, nonce=b"n"))
    code, out, _ = run("verify", folder, *options)
    assert code == 1
    assert "eventlog_mismatch" in out


@pytest.mark.usefixtures("pinned")
def test_the_time_is_an_argument(run: Run, document: Path) -> None:
    assert run("verify", document, "--at", AT, "--development")[0] == 0
    code, out, _ = run("verify", document, "--at", "2030-01-01T00:00:00Z", "--development")
    assert code == 1
    assert "expired" in out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--at", "yesterday"], "verify.time"),
        (["--at", "2026-11-03T12:00:00"], "verify.time"),
        (["--at", "0001-01-01T00:00:00+23:59"], "verify.time"),
        (["--at", "9999-12-31T23:59:59-23:59"], "verify.time"),
        (["--nonce", ""], "verify.hexadecimal"),
        (["--expect", "user_data^="], "expected.contradiction"),
        (["--nonce", "00", "--expect", "nonce^=00"], "expected.contradiction"),
        (["--reference-values", "/nonexistent"], "verify.options"),
        (["--kit", "/nonexistent"], "verify.options"),
        (["--nonce", "xyz"], "verify.hexadecimal"),
        (["--expect", "pcr0"], "verify.expect"),
        (["--expect", "=00"], "verify.expect"),
        (["--expect", "pcr0=zz"], "verify.hexadecimal"),
        (["--expect", "pcr0=00", "--expect", "pcr0=11"], "verify.expect"),
        (["--expect", "mr_td=00"], "expected.unknown"),
        (["--nonce", "00", "--expect", "nonce=11"], "verify.expect"),
        (["--policy", "/nonexistent"], "trust.unreadable"),
        (["--sign-key", "/nonexistent"], "jwt.key"),
    ],
)
def test_options_that_make_no_sense(
    run: Run, document: Path, arguments: list[str], code: str
) -> None:
    left, _, err = run("verify", document, *arguments)
    assert left == 2
    assert f"[{code}]" in err


@pytest.mark.parametrize(
    "option", [("--at", AT), ("--nonce", "00"), ("--expect", "pcr0=00"), ("--as-captured",)]
)
def test_a_worker_is_asked_now(run: Run, option: tuple[str, ...]) -> None:
    left, _, err = run("verify", "http://127.0.0.1:9", *option)
    assert left == 2
    assert "[verify.options]" in err


def test_a_folder_called_like_a_worker(
    run: Run, document: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for a worker by its whole address is not shown a file instead."""
    folder = document.parent / "http:" / "127.0.0.1:9"
    folder.mkdir(parents=True)
    (folder / "document.cbor").write_bytes(document.read_bytes())
    monkeypatch.chdir(document.parent)
    left, _, err = run("verify", "http://127.0.0.1:9", "--at", AT)
    assert left == 2
    assert "[verify.options]" in err


@pytest.mark.usefixtures("pinned")
def test_a_kit_in_the_environment_is_for_other_calls(
    run: Run, document: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOISTER_KIT", "/nonexistent")
    assert run("verify", document, "--at", AT, "--development")[0] == 0


@pytest.mark.parametrize("option", [("--expect", "measurement=00"), ("--as-captured",)])
def test_nothing_is_expected_of_a_report(run: Run, tmp_path: Path, option: tuple[str, ...]) -> None:
    worker, nonce = SimulatedHardware.make("snp", now=NOW), bytes(range(32))
    (tmp_path / "report.json").write_bytes(worker.report(nonce))
    left, _, err = run("verify", tmp_path / "report.json", "--nonce", nonce.hex(), *option)
    assert left == 2
    assert "[verify.options]" in err


def made_case(folder: Path, **members: object) -> Path:
    """A recorded case of the simulated enclave."""
    folder.mkdir(parents=True)
    (folder / "document.cbor").write_bytes(NITRO.document(nonce=b"challenge"))
    case = {
        "case": "nitro/made-up",
        "platform": "nitro",
        "files": [{"role": "document", "file": "document.cbor", "encoding": "binary"}],
        "inputs": {"expected_nonce": b"challenge".hex()},
        "verification_time": AT,
        "expected": {"verdict": "fail"},
    }
    (folder / "case.json").write_text(json.dumps({**case, **members}))
    return folder


@pytest.fixture
def lenient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A policy under which cases of the simulated vendor pass."""
    monkeypatch.setattr("cloister.cli.cases.verdict.pinned_roots", lambda: NITRO.roots)
    path = tmp_path / "policy.toml"
    path.write_text(policy.as_captured(policy.development()).dump_toml())
    return path


@pytest.mark.parametrize(
    "option",
    [
        ("--nonce", "00"),
        ("--expect", "pcr0=00"),
        ("--reference-values", "/nonexistent"),
        ("--kit", "/nonexistent"),
        ("--root", "/nonexistent"),
        ("--development",),
        ("--sign-key", "/nonexistent"),
    ],
)
def test_a_case_says_itself_what_is_expected(
    run: Run, tmp_path: Path, lenient: Path, option: tuple[str, ...]
) -> None:
    command = ("verify", "--case", made_case(tmp_path / "case"), "--policy", lenient)
    code, out, _ = run(*command)
    assert code == 0
    assert json.loads(out)["result"] == "pass"
    left, out, err = run(*command, *option)
    assert left == 2
    assert not out
    assert "[verify.options]" in err


@pytest.mark.parametrize(
    "members",
    [
        {"inputs": {"expected_nonse": "00"}},
        {"inputs": {"expected_pcr0": "00" * 48}},
        {"inputs": {"policy": "strictest"}},
        {"files": [{"role": "document", "file": "document.cbor\0", "encoding": "binary"}]},
        {"files": [{"role": "document", "file": "../case/document.cbor", "encoding": "binary"}]},
        {"files": [{"role": "document", "file": "..", "encoding": "binary"}]},
        {"verification_time": "0001-01-01T00:00:00+23:59"},
        {"verification_time": "9999-12-31T23:59:59-23:59"},
        {"roots": ["../../etc/passwd"]},
        {"roots": ["/etc/passwd"]},
    ],
)
def test_a_case_that_cannot_be_judged_whole(
    run: Run, tmp_path: Path, lenient: Path, members: dict[str, object]
) -> None:
    """The others are judged all the same."""
    good = made_case(tmp_path / "good", inputs={"expected_nonce": b"challenge".hex(), "fwid": None})
    bad = made_case(tmp_path / "case", **members)
    left, out, err = run("verify", "--case", bad, good, "--policy", lenient)
    assert left == 2
    assert [json.loads(line)["result"] for line in out.splitlines()] == ["undecided", "pass"]
    assert "[case.malformed]" in err


def test_words_of_a_case_are_not_obeyed_by_a_terminal(
    run: Run, tmp_path: Path, lenient: Path
) -> None:
    bad = made_case(tmp_path / "case", case="\x1b]0;mine\x07\x9b31m", files=[])
    left, _, err = run("verify", "--case", bad, "--policy", lenient)
    assert left == 2
    assert "has no document" in err
    assert not set("\x1b\x07\x9b") & set(err)


@pytest.mark.usefixtures("pinned")
def test_names_of_files_are_not_obeyed_by_a_terminal(
    run: Run, document: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes\x1b[31m.txt").write_text("hello")
    code, _, err = run("verify", tmp_path, "--at", AT, "--development")
    assert code == 0
    assert "was of no use" in err
    assert "\x1b" not in err
    left, _, err = run("verify", tmp_path / "none\x1b[31m.txt", document)
    assert left == 2
    assert "is no file here" in err
    assert "\x1b" not in err


def test_files_that_hold_no_evidence(run: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    for target, code in (
        (empty, "evidence.none"),
        (tmp_path / "missing.bin", "verify.target"),
    ):
        left, _, err = run("verify", target, empty)
        assert left == 2
        assert f"[{code}]" in err


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("localhost", True),
        ("worker:8443", True),
        ("worker", True),
        ("worker.example.com/v1", True),
        ("https://worker.example.com", True),
        ("quote.bin", False),
        ("worker.example.com", False),
        ("folder/quote", False),
    ],
)
def test_what_is_taken_for_an_address(target: str, *, address: bool) -> None:
    assert _is_address([target]) is address


def test_a_mistyped_file_is_no_worker(run: Run) -> None:
    code, _, err = run("verify", "no-such-quote.bin")
    assert code == 2
    assert "[verify.target]" in err
    assert "https://" in err


def test_a_root_of_the_callers_own(run: Run, document: Path, tmp_path: Path) -> None:
    root = tmp_path / "elsewhere" / "root.pem"
    root.parent.mkdir()
    root.write_bytes(NITRO.root.certificate.public_bytes(Encoding.PEM))
    verified = ("verify", document, "--at", AT)
    assert run(*verified)[0] == 1
    # Named by the caller, it is no simulated vendor's but one that the caller answers for.
    assert run(*verified, "--anchor", f"aws_nitro={root}")[0] == 0
    for wrong in (f"aws={root}", f"aws_nitro={document}", "aws_nitro=/nonexistent", "aws_nitro"):
        code, _, err = run(*verified, "--anchor", wrong)
        assert code == 2
        assert "[verify.anchor]" in err
    code, _, err = run("verify", "http://127.0.0.1:9", "--anchor", f"aws_nitro={root}")
    assert code == 2
    assert "[verify.options]" in err


def test_too_many_files(tmp_path: Path) -> None:
    for number in range(evidence_files.MAX_FILES + 1):
        (tmp_path / str(number)).touch()
    with pytest.raises(ConfigurationError) as raised:
        read_files([tmp_path])
    assert raised.value.code == "evidence.many"


def test_two_files_of_one_kind(run: Run, document: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.cbor"
    again.write_bytes(document.read_bytes())
    left, _, err = run("verify", document, again)
    assert left == 2
    assert "[evidence.ambiguous]" in err


def test_of_several_quotes_by_a_paravisors_tpm_none_goes_unread() -> None:
    pieces = (
        (Kind.TPM_QUOTE, b"quote"),
        (Kind.RSA_SIGNATURE, b"signature"),
        (Kind.PCR_VALUES, b'{"sha256": {}}'),
    )
    report = EvidenceFile(name="report", kind=Kind.HCL_REPORT, data=b"HCLA")
    one, other = (
        [EvidenceFile(name=f"{kind}{number}", kind=kind, data=data) for kind, data in pieces]
        for number in range(2)
    )
    assert assemble([report, *one]).used
    with pytest.raises(ConfigurationError) as raised:
        assemble([report, *one, *other])
    assert raised.value.code == "evidence.ambiguous"


@pytest.mark.usefixtures("pinned")
def test_a_file_of_no_use_is_named(run: Run, document: Path, tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("hello")
    code, _, err = run("verify", tmp_path, "--at", AT, "--development")
    assert code == 0
    assert "notes.txt was of no use" in err


@pytest.mark.usefixtures("pinned")
def test_a_signed_result(run: Run, document: Path, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path / "key.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    code, out, _ = run("verify", document, "--at", AT, "--development", "--sign-key", path)
    assert code == 0
    ear = open_ear(out.strip(), key.public_key(), at=NOW)
    submodules = ear["submods"]
    assert isinstance(submodules, dict)
    cpu = submodules["cpu0"]
    assert isinstance(cpu, dict)
    assert cpu["ear.status"] == "affirming"


def test_a_saved_report(run: Run, tmp_path: Path) -> None:
    """A report proves freshness against the nonce that was sent, and nothing without one."""
    worker, nonce = SimulatedHardware.make("snp", now=NOW), bytes(range(32))
    (tmp_path / "report.json").write_bytes(worker.report(nonce))
    (tmp_path / "values.json").write_text(worker.reference_values.dump_json())
    command = ("verify", tmp_path / "report.json", "--reference-values", tmp_path / "values.json")
    options = ("--at", AT, "--development")
    left, _, err = run(*command, *options)
    assert left == 2
    assert "[verify.nonce]" in err
    # Nobody pins a simulated vendor's root.
    code, out, _ = run(*command, *options, "--nonce", nonce.hex())
    assert code == 1
    assert "bad_chain" in out


@pytest.mark.usefixtures("pinned")
def test_results_for_programs_are_not_obeyed_by_a_terminal(
    run: Run, tmp_path: Path, lenient: Path
) -> None:
    name = "nitro/\x9b31mmine"
    folder = made_case(tmp_path / "case", case=name)
    code, out, _ = run("verify", "--case", folder, "--policy", lenient)
    assert code == 0
    assert json.loads(out)["case"] == name
    assert out.isascii()
    nitro = NITRO.payload()
    nitro["module_id"] = "i-\x9b31mred"
    path = tmp_path / "document"
    path.write_bytes(NITRO.sign(nitro))
    code, out, _ = run("verify", path, "--at", AT, "--development", "--json")
    assert code == 0
    assert out.isascii()
