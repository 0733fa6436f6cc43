"""``cloister image boot --peer``: whom an image may call, and where that is from here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.cli.image_boot import carried_peers
from cloister.errors import ConfigurationError
from cloister.image.machine import Carried

PEERS = [
    {"name": "broker", "address": "10.0.2.100", "port": 8450},
    {"name": "clock", "address": "10.0.2.101", "port": 123},
]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    document = {"network": {"listen": [8440], "allow_out": PEERS}}
    (tmp_path / "configuration.json").write_text(json.dumps(document))
    return tmp_path


def test_peers_are_found_by_name(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = carried_peers(image, ["broker=127.0.0.1:8450", "clock=[::1]:1123"])
    assert found == (
        Carried(address="10.0.2.100", port=8450, host="127.0.0.1", host_port=8450),
        Carried(address="10.0.2.101", port=123, host="::1", host_port=1123),
    )
    assert capsys.readouterr().err == ""


def test_who_is_left_out_is_told_of(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (only,) = carried_peers(image, ["clock=localhost:1123"])
    assert only.host == "localhost"
    assert "tells broker" in capsys.readouterr().err


@pytest.mark.parametrize(
    "written",
    [
        ["stranger=127.0.0.1:1"],
        ["broker=127.0.0.1:1", "broker=127.0.0.1:2"],
        ["127.0.0.1:1"],
    ],
)
def test_a_name_that_is_not_the_images(written: list[str], image: Path) -> None:
    carried_peers(image, ["broker=127.0.0.1:1"])
    with pytest.raises(ConfigurationError, match="its peers: broker, clock") as caught:
        carried_peers(image, written)
    assert caught.value.code == "image.peer"


@pytest.mark.parametrize("target", ["", "127.0.0.1", "127.0.0.1:0", ":1", "a b:1", "127.0.0.1:1,x"])
def test_a_place_that_is_none(target: str, image: Path) -> None:
    carried_peers(image, ["broker=127.0.0.1:1"])
    with pytest.raises(ConfigurationError):
        carried_peers(image, [f"broker={target}"])


def test_an_image_that_does_not_say_whom_it_calls(tmp_path: Path) -> None:
    assert carried_peers(tmp_path, []) == ()
    with pytest.raises(ConfigurationError, match="its peers: none"):
        carried_peers(tmp_path, ["broker=127.0.0.1:1"])
