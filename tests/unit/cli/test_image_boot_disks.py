"""``cloister image boot``: start disks, and images without a network card or for no TPM."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

from typer.testing import CliRunner

from cloister.attester.start_disk import Start
from cloister.cli.image_carry import carried_broker
from cloister.cli.main import build_app
from cloister.errors import CloisterError
from cloister.streams.address import VirtioAddress
from cloister.streams.route import Route
from support.links import virtio_port


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


def test_an_image_for_other_evidence_than_a_tpms_is_not_started(tmp_path: Path) -> None:
    """One for a TPM comes as far as its disks, which this folder lacks."""
    flash = tmp_path / "flash"
    flash.touch()
    words = [str(tmp_path), "--firmware", str(flash), "--variables", str(flash)]
    nothing: dict[str, object] = {name: [] for name in ("listen", "allow_out", "address")}
    for platform, code in (
        ("tpm-boot", "image.folder"),
        ("sev-snp", "image.platform"),
        ("tdx", "image.platform"),
        ("nitro", "image.platform"),
        ("gcp-snp", "image.platform"),
        ("gcp-tdx", "image.platform"),
        ("gcp-vtpm", "image.platform"),
        ("azure-snp", "image.platform"),
        ("azure-tdx", "image.platform"),
    ):
        document = {"network": nothing, "platform": platform}
        (tmp_path / "configuration.json").write_text(json.dumps(document))
        assert refused(words).code == code


def test_a_cardless_images_broker_is_its_only_peer(tmp_path: Path) -> None:
    nothing: dict[str, object] = {name: [] for name in ("listen", "allow_out", "address")}
    (tmp_path / "configuration.json").write_text(
        json.dumps({"network": {"card": False, "gateway": [], **nothing}})
    )
    code = ["--firmware", str(tmp_path / "configuration.json"), "--variables"]
    words = [str(tmp_path), *code, str(tmp_path / "configuration.json")]
    assert refused([*words, "--peer", "broker=127.0.0.1:8450"]).code == "image.folder"
    assert refused([*words, "--ask", "Who?"]).code == "image.ask"
    for peers in (["other=127.0.0.1:1"], ["broker=127.0.0.1:1", "broker=127.0.0.1:1"]):
        more = [word for peer in peers for word in ("--peer", peer)]
        assert refused([*words, *more]).code == "image.peer"
    assert refused([*words, "--peer", "broker=127.0.0.1"]).code == "configuration.address"


def test_what_a_cardless_guest_asks_is_carried_to_its_broker() -> None:
    with (
        TemporaryDirectory(prefix="cloister-") as name,
        virtio_port(Path(name)) as (device, host),
        socket.socket() as broker,
    ):
        broker.bind(("127.0.0.1", 0))
        broker.listen(1)
        guest = SimpleNamespace(sockets=SimpleNamespace(broker=host))
        address = f"tcp://127.0.0.1:{broker.getsockname()[1]}"
        with (
            carried_broker(guest, address),  # type: ignore[arg-type]
            Route(VirtioAddress(path=str(device))) as route,
            socket.socket(socket.AF_UNIX) as asks,
        ):
            asks.connect(route.socket_path)
            asks.sendall(b"which key?")
            theirs, _ = broker.accept()
            with theirs:
                theirs.settimeout(60)
                assert theirs.recv(64) == b"which key?"
        with carried_broker(guest, None):  # type: ignore[arg-type]
            pass
