"""What is deployed: the image's files with their digests, and debug images by name only."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cloister.deploy.deployment import Deployment, describe, read_image
from cloister.errors import ConfigurationError
from support.deployments import MANIFEST, deployment, write_configuration, write_image, write_record


def test_an_image_is_its_files_and_their_digests(tmp_path: Path) -> None:
    heard: list[str] = []
    image = read_image(write_image(tmp_path / "image"), debug_accepted=False, tell=heard.append)
    root = image.file("root")
    assert root.sha256 == hashlib.sha256((tmp_path / "image" / "root.img").read_bytes()).hexdigest()
    assert root.size == 8192
    assert [role for role, _ in image.disks()] == ["root", "model"]
    assert heard == [*("uki.efi", "esp.img", "root.img", "model.img", "image.eif")]
    with pytest.raises(ConfigurationError) as caught:
        image.file("application")
    assert caught.value.code == "deploy.artefact"


def test_a_folder_without_an_image_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_image(tmp_path, debug_accepted=False)
    assert caught.value.code == "deploy.image"
    (tmp_path / "uki.efi").mkdir()
    with pytest.raises(ConfigurationError, match="no plain file"):
        read_image(tmp_path, debug_accepted=False)


@pytest.mark.parametrize(
    "members", [{"debug": True}, {"debug": 1}, {"debug": "no"}, {"debug": None}, {}]
)
def test_a_debug_image_is_deployed_only_by_name(members: dict[str, object], tmp_path: Path) -> None:
    image = write_image(tmp_path / "image")
    assert not read_image(image, debug_accepted=False).debug
    write_record(image, members)
    with pytest.raises(ConfigurationError) as caught:
        read_image(image, debug_accepted=False)
    assert caught.value.code == "deploy.debug"
    assert read_image(image, debug_accepted=True).debug


@pytest.mark.parametrize(
    "name", [*("uki.efi", "esp.img", "root.img", "model.img", "image.eif"), "configuration.json"]
)
def test_what_is_deployed_is_what_was_built(name: str, tmp_path: Path) -> None:
    image = write_image(tmp_path / "image")
    read_image(image, debug_accepted=False)
    data = bytearray((image / name).read_bytes())
    data[-1] ^= 1
    (image / name).write_bytes(data)
    with pytest.raises(ConfigurationError, match=name) as caught:
        read_image(image, debug_accepted=False)
    assert caught.value.code == "deploy.changed"


@pytest.mark.parametrize(
    "text",
    [
        *("nonsense", "[]", '{"debug": false}', '{"files": 1, "debug": false}'),
        *('{"files": {"uki.efi": 1}}', '{"files": {"uki.efi": {}}}', '{"files": {}, "files": {}}'),
    ],
)
def test_a_record_that_cannot_be_read_stops_it(text: str, tmp_path: Path) -> None:
    image = write_image(tmp_path / "image")
    (image / "build.json").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_image(image, debug_accepted=False)
    assert caught.value.code == "deploy.image"


def test_port_peers_address_and_manifest_are_the_images_own(tmp_path: Path) -> None:
    image = read_image(write_image(tmp_path / "image"), debug_accepted=False)
    assert image.network is not None
    assert [(peer.range, peer.port) for peer in image.network.peers] == [("198.51.100.7/32", 8441)]
    made = describe("web", image, tmp_path)
    assert (made.port, made.address, made.manifest) == (8440, "10.0.2.15", MANIFEST)
    assert describe("web", image, tmp_path, port=8443, manifest=MANIFEST).port == 8443
    with pytest.raises(ConfigurationError) as caught:
        describe("web", image, tmp_path, port=22)
    assert caught.value.code == "deploy.port"
    with pytest.raises(ConfigurationError, match="another manifest"):
        describe("web", image, tmp_path, manifest=bytes(32))


def test_an_image_without_a_configuration_takes_what_it_is_given(tmp_path: Path) -> None:
    folder = write_image(tmp_path / "image")
    (folder / "configuration.json").unlink()
    image = read_image(folder, debug_accepted=False)
    made = describe("web", image, tmp_path, port=9000, manifest=bytes(32))
    assert (made.port, made.address, made.manifest) == (9000, "", bytes(32))


def peer_at(address: str) -> dict[str, object]:
    """A network whose image calls that address."""
    peer = {"name": "x", "address": address, "port": 1}
    return {"listen": [8440], "allow_out": [peer], "address": ["10.0.0.9/24"], "gateway": []}


def test_a_peer_has_an_address_of_either_kind(tmp_path: Path) -> None:
    folder = write_image(tmp_path / "image")
    for address in ("fe80::1", "198.51.100.7"):
        write_configuration(folder, members={"network": peer_at(address)})
        write_record(folder, {"debug": False})
        network = read_image(folder, debug_accepted=False).network
        assert network is not None
        assert [peer.address for peer in network.peers] == [address]


@pytest.mark.parametrize(
    "members",
    [
        {"network": None},
        {"network": {"listen": [8440]}},
        {"network": {"listen": [0], "allow_out": [], "address": [], "gateway": []}},
        {"network": {"listen": [], "allow_out": [{}], "address": [], "gateway": []}},
        {"network": {"listen": [], "allow_out": [], "address": ["10.0.0.9;x"], "gateway": []}},
        {"network": peer_at("fe80::1%${file('x')}")},
        {"network": peer_at("fe80::1%,::")},
        {"manifest_sha256": "00"},
    ],
)
def test_a_configuration_that_cannot_be_read_stops_it(
    members: dict[str, object], tmp_path: Path
) -> None:
    folder = write_image(tmp_path / "image")
    read_image(folder, debug_accepted=False)
    write_configuration(folder, members=members)
    write_record(folder, {"debug": False})
    with pytest.raises(ConfigurationError) as caught:
        read_image(folder, debug_accepted=False)
    assert caught.value.code == "deploy.image"


def test_another_image_has_other_names(tmp_path: Path) -> None:
    first = read_image(write_image(tmp_path / "a"), debug_accepted=False)
    again = read_image(write_image(tmp_path / "b"), debug_accepted=False)
    assert first.short == again.short
    (tmp_path / "b" / "model.img").write_bytes(bytes(4096))
    write_record(tmp_path / "b", {"debug": False})
    assert read_image(tmp_path / "b", debug_accepted=False).short != first.short


def test_every_word_of_a_description_is_checked(tmp_path: Path) -> None:
    good = deployment(tmp_path)
    changes: list[dict[str, object]] = [
        {"name": "a b"},
        {"port": 0},
        {"folder": Path("relative")},
        {"folder": tmp_path / "a'b"},
        {"manifest": b"short"},
    ]
    for change in changes:
        fields = {name: getattr(good, name) for name in good.__slots__}
        with pytest.raises(ConfigurationError):
            Deployment(**{**fields, **change})


def test_a_disk_that_was_not_built_with_the_image_is_refused(tmp_path: Path) -> None:
    folder = write_image(tmp_path / "image")
    read_image(folder, debug_accepted=False)
    (folder / "application.img").write_bytes(b"planted".ljust(4096, b"\0"))
    with pytest.raises(ConfigurationError, match=r"application\.img") as caught:
        read_image(folder, debug_accepted=False)
    assert caught.value.code == "deploy.changed"
