"""What is deployed: the image's files with their digests, and debug images by name only."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from cloister.deploy.deployment import Deployment, Machine, read_image
from cloister.errors import ConfigurationError
from support.deployments import deployment, write_image


def test_an_image_is_its_files_and_their_digests(tmp_path: Path) -> None:
    heard: list[str] = []
    image = read_image(write_image(tmp_path / "image"), debug_accepted=False, tell=heard.append)
    root = image.file("root")
    assert root.sha256 == hashlib.sha256((tmp_path / "image" / "root.img").read_bytes()).hexdigest()
    assert root.size == 8192
    assert [role for role, _ in image.disks()] == ["root", "model"]
    assert heard == [
        *("uki.efi", "esp.img", "root.img", "model.img", "image.eif", "reference-values.json")
    ]
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


@pytest.mark.parametrize("member", [{"debug": True}, {"debug": 1}, {"debug": "no"}, {}])
def test_a_debug_image_is_deployed_only_by_name(member: object, tmp_path: Path) -> None:
    image = write_image(tmp_path / "image")
    assert not read_image(image, debug_accepted=False).debug
    (image / "reference-values.json").write_text(json.dumps({"image": member}))
    with pytest.raises(ConfigurationError) as caught:
        read_image(image, debug_accepted=False)
    assert caught.value.code == "deploy.debug"
    assert read_image(image, debug_accepted=True).debug


@pytest.mark.parametrize("text", ["nonsense", "[]", '{"image": 1}', '{"image": {}, "image": {}}'])
def test_reference_values_that_cannot_be_read_stop_it(text: str, tmp_path: Path) -> None:
    image = write_image(tmp_path / "image")
    (image / "reference-values.json").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_image(image, debug_accepted=False)
    assert caught.value.code == "deploy.image"


@pytest.mark.parametrize(("vcpus", "memory"), [(0, 1024), (513, 1024), (1, 255), (1, 1 << 25)])
def test_machines_have_a_size(vcpus: int, memory: int) -> None:
    assert Machine(vcpus=1, memory_mib=256).memory_mib == 256
    with pytest.raises(ConfigurationError):
        Machine(vcpus=vcpus, memory_mib=memory)


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
