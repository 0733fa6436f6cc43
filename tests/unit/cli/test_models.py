"""``cloister model``, ``quantize`` and ``bench quantization``: files in, files and codes out."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from cloister.cli import bench_tables
from cloister.cli.main import main
from cloister.engine.demo_model import DEMO_MODEL_SHA256, demo_model_path
from cloister.engine.model_record import read_record
from support.tiny_gguf import write_tiny

TEXT = "What is sealed for a worker can be read by that worker and by nobody else. " * 40


def code_of(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


def test_from_a_model_to_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_tiny(tmp_path / "tiny-F16.gguf")
    out = tmp_path / "tiny-F16-quantized"
    assert code_of("quantize", source, "--to", "F16,Q4_K") == 0
    assert read_record(out).operation == "quantize"
    assert str(out / "tiny-Q4_K.gguf") in capsys.readouterr().out
    text, table, page = tmp_path / "t.txt", tmp_path / "t.csv", tmp_path / "t.md"
    text.write_text(TEXT)
    models = [out / "tiny-F16.gguf", out / "tiny-Q4_K.gguf"]
    options = ["-c", "64", "--windows", "2", "--steps", "4", "--threads", "1"]
    code = code_of(
        "bench", "quantization", *models, "--text", text, *options, "--csv", table,
        "--markdown", page,
    )  # fmt: skip
    assert code == 0
    with table.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert set(first) == set(bench_tables.COLUMNS)
    assert (first["type"], second["type"]) == ("F16", "Q4_K_S")
    assert float(first["ratio_to_unquantised"]) == 1
    assert float(second["ratio_to_unquantised"]) == pytest.approx(
        float(second["perplexity"]) / float(first["perplexity"]), rel=1e-9
    )
    assert int(first["file_bytes"]) == models[0].stat().st_size
    assert first["scored_tokens"] == "62"
    lines = page.read_text().splitlines()
    assert "62 tokens scored" in lines[0]
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| tiny")] == [
        "tiny-F16.gguf",
        "tiny-Q4_K.gguf",
    ]
    assert "tiny-Q4_K.gguf" in capsys.readouterr().out


def test_preparing_and_expecting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("model", "prepare", demo_model_path(), "--out", tmp_path / "a") == 0
    said = capsys.readouterr()
    assert DEMO_MODEL_SHA256 in said.out
    assert "cloister serve --model" in said.err
    record = tmp_path / "a/model.json"
    assert (
        code_of("model", "prepare", demo_model_path(), "-o", tmp_path / "b", "--expect", record)
        == 0
    )
    other = write_tiny(tmp_path / "other.gguf")
    assert code_of("model", "prepare", other, "-o", tmp_path / "c", "--expect", record) == 1
    assert "[model.unexpected]" in capsys.readouterr().err
    assert not (tmp_path / "c/model.json").exists()


def test_what_has_to_change_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo, text = demo_model_path(), tmp_path / "t"
    for arguments, code in (
        (("quantize", demo), "quantize.source"),
        (("quantize", demo, "--to", "Q9"), "quantize.type"),
        (("model", "prepare", tmp_path / "no", "-o", tmp_path / "o"), "configuration.model"),
        (("model", "prepare", demo, "-o", tmp_path / "o", "--only", "x"), "model.hub"),
        (("model", "prepare", "hf:a/b@main", "-o", tmp_path / "o"), "model.hub"),
        (("bench", "quantization", demo, "--text", text), "bench.text"),
        (("bench", "serve", "http://127.0.0.1:9", "--streams", "x"), "bench.streams"),
    ):
        assert code_of(*arguments) == 2
        assert f"[{code}]" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_tool_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_of("model", "prepare", tmp_path, "-o", tmp_path / "o", "--tensorrt-llm") == 2
    assert "[model.no_tensorrt_llm]" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["gguf", "numpy"])
def test_a_package_that_is_not_there_is_named(
    package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for command in (("quantize", "x.gguf"), ("bench", "quantization", "x.gguf", "--text", "t")):
        assert code_of(*command) == 2
        assert "cloister[quantize]" in capsys.readouterr().err


def test_a_picture_needs_matplotlib_and_says_so_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = ("bench", "quantization", "x.gguf", "--text", "t", "--png", tmp_path / "p.png")
    assert code_of(*arguments) == 2
    assert "[bench.no_matplotlib]" in capsys.readouterr().err


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path, text = tmp_path / "p.png", tmp_path / "t.txt"
    text.write_text(TEXT)
    options = ["-c", "64", "--windows", "1", "--steps", "1", "--threads", "1"]
    command = ["bench", "quantization", *options, "--text"]
    assert code_of(*command, text, "--png", path, demo_model_path()) == 0
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_numbers_with_errors() -> None:
    assert bench_tables.with_error(15.6716, 0.8336) == "15.67 ± 0.83"
    assert bench_tables.with_error(1.00189, 0.00031) == "1.00189 ± 0.00031"
    assert bench_tables.with_error(16680.2, 952.5) == "16,680 ± 952"
    assert bench_tables.with_error(1.0, 0.0) == "1"


def test_a_name_does_not_end_its_cell() -> None:
    assert bench_tables.table_markdown(["a"], [["x|y"]]).splitlines()[-1] == "| x\\|y |"
