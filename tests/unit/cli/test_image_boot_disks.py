"""``cloister image boot`` with a start disk: what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from cloister.attester.start_disk import Start
from cloister.cli.main import build_app
from cloister.errors import CloisterError


def refused(words: list[str]) -> CloisterError:
    done = CliRunner().invoke(build_app(["image"]), ["image", "boot", *words])
    assert isinstance(done.exception, CloisterError), done.output
    return done.exception


def test_a_start_disk_is_read_before_anything_starts(tmp_path: Path) -> None:
    """And goes with nothing that says the same; here a whole one comes as far as the image."""
    disk = tmp_path / "start.img"
    disk.write_bytes(Start(api_keys=b"table").disk())
    words = [str(tmp_path), "--start-disk", str(disk), "--firmware", str(disk), "--variables"]
    assert refused([*words, str(disk)]).code == "image.folder"
    for more in (["--api-keys", str(disk)], ["--manifest", str(disk)]):
        assert refused([*words, str(disk), *more]).code == "image.start_disk"
    assert refused([*words, str(disk), "--ask", "Who?"]).code == "image.ask"
    for data in (b"", Start(api_keys=b"table").disk() + b"\0", b"x" * 4096):
        disk.write_bytes(data)
        assert refused([*words, str(disk)]).code == "image.start_disk"
    disk.unlink()
    assert refused([str(tmp_path), "--start-disk", str(disk)]).code == "image.start_disk"
