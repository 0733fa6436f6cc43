"""``cloister inspect`` on files."""

from __future__ import annotations

import json
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from cloister.testing.simulated_hardware import SimulatedHardware
from support.evidence_files import NITRO, NOW, Run


def test_inspect(run: Run, document: Path, tmp_path: Path) -> None:
    code, out, _ = run("inspect", document)
    assert code == 0
    assert "not verified" in out
    assert "module_id" in out
    code, out, _ = run("inspect", document, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["kind"] == "nitro-document"
    assert found["decoded"]["user_data"] == b"keys".hex()


def test_inspect_says_what_it_cannot_read(run: Run, document: Path, tmp_path: Path) -> None:
    broken, unknown = tmp_path / "broken", tmp_path / "unknown"
    broken.write_bytes(document.read_bytes()[:-1])
    unknown.write_bytes(b"hello")
    assert run("inspect", broken)[0] == 1
    assert run("inspect", unknown)[0] == 3
    code, out, _ = run("inspect", document, broken, unknown, "--json")
    assert code == 3
    assert ["error" in json.loads(line) for line in out.splitlines()] == [False, True, True]


def test_inspect_a_report_looks_into_its_evidence(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(SimulatedHardware.make("tdx", now=NOW).report(None))
    code, out, _ = run("inspect", path, "--json")
    assert code == 0
    evidence = json.loads(out)["decoded"]["evidence"]
    assert evidence["tdx.quote"]["decoded"]["body"]["mr_td"] == "a1" * 48


def test_inspect_prints_nothing_that_a_terminal_obeys(run: Run, tmp_path: Path) -> None:
    nitro = NITRO.payload()
    nitro["module_id"] = "i-\x1b[31m\x9b31mred\npcrs: as you expect"
    path = tmp_path / "document"
    path.write_bytes(NITRO.sign(nitro))
    code, out, _ = run("inspect", path)
    assert code == 0
    assert "red" in out
    assert not set("\x1b\x9b") & set(out)
    assert not any(line.startswith("pcrs") for line in out.splitlines())
    code, out, _ = run("inspect", "--json", path)
    assert code == 0
    assert json.loads(out)["decoded"]["module_id"] == nitro["module_id"]
    assert out.isascii()


def test_inspect_a_certificate_with_a_key_of_no_known_kind(run: Run, tmp_path: Path) -> None:
    known = bytes.fromhex("06072a8648ce3d0201")  # id-ecPublicKey
    path = tmp_path / "root.der"
    for kind, shown in ((known, "ECDSA"), (known[:-1] + b"\x7d", "unreadable")):
        path.write_bytes(
            NITRO.roots.anchors[0].certificate.public_bytes(Encoding.DER).replace(known, kind)
        )
        code, out, _ = run("inspect", path)
        assert code == 0
        assert shown in out
