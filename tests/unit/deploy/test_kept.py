"""What was deployed is known again, whole, and nothing else is taken for it."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.deploy.deployment import Deployment
from cloister.deploy.ingress import ImageNetwork, Peer
from cloister.deploy.kept import FILE, kept_text, read_kept
from cloister.errors import ConfigurationError
from support.deployments import deployment

CARDLESS = ImageNetwork(listen=(), addresses=(), peers=(), card=False)
SIX = ImageNetwork(
    listen=(8440, 1), addresses=("10.0.0.4",), peers=(Peer(address="2001:db8::1", port=65535),)
)


def keep(one: Deployment) -> None:
    one.folder.mkdir(exist_ok=True)
    (one.folder / FILE).write_text(kept_text(one))


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one,
        lambda one: dataclasses.replace(one, start_disk=None, manifest=None, address=""),
        lambda one: dataclasses.replace(
            one, image=dataclasses.replace(one.image, network=CARDLESS, platform="tdx")
        ),
        lambda one: dataclasses.replace(
            one, image=dataclasses.replace(one.image, network=SIX, debug=True, manifest=None)
        ),
        lambda one: dataclasses.replace(one, image=dataclasses.replace(one.image, network=None)),
    ],
    ids=["as it is", "bare", "without a card", "debug", "without a network"],
)
def test_a_description_is_read_as_it_was(
    tmp_path: Path, change: Callable[[Deployment], Deployment]
) -> None:
    one = change(deployment(tmp_path))
    keep(one)
    assert read_kept(one.folder) == one


def test_where_none_is_there_is_none(tmp_path: Path) -> None:
    assert read_kept(tmp_path / "nowhere") is None


def _set(*path: str, to: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        *parents, last = path
        for name in parents:
            document = document[name]
        document[last] = to

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("format", to="cloister/deployment/2"),
        _set("more", to=1),
        _set("name", to="web; touch canary"),
        _set("name", to=1),
        _set("port", to=0),
        _set("port", to="8440"),
        _set("address", to="10.0.2.15 --x"),
        _set("manifest", to="00"),
        _set("start_disk", to="start.img"),
        _set("start_disk", "path", to="start.img"),
        _set("start_disk", "path", to="/a$(touch canary)"),
        _set("start_disk", "sha256", to="$(touch canary)"),
        _set("start_disk", "size", to=-1),
        _set("image", "files", "kernel", to={"path": "/a", "size": 1, "sha256": "00" * 32}),
        _set("image", "files", "root", "more", to=1),
        _set("image", "debug", to=0),
        _set("image", "platform", to=["tdx"]),
        _set("image", "network", "allow_out", to=[{"address": "1.2.3.4 x", "port": 1}]),
        _set("image", "network", "card", to=True),
        lambda document: document.pop("image"),
        lambda document: document["image"].pop("platform"),
    ],
)
def test_what_is_kept_is_believed_only_as_it_is_written(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    one = deployment(tmp_path)
    keep(one)
    document = json.loads((one.folder / FILE).read_text())
    assert read_kept(one.folder) == one
    altered = copy.deepcopy(document)
    change(altered)
    (one.folder / FILE).write_text(json.dumps(altered))
    with pytest.raises(ConfigurationError) as caught:
        read_kept(one.folder)
    assert caught.value.code.startswith("deploy.")


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_kept(tmp_path)


@pytest.mark.parametrize("address", ["10.0.0.4,x=y", "10.0.0.4-1", "::1"])
def test_an_address_that_is_none_of_ipv4_reaches_no_command(tmp_path: Path, address: str) -> None:
    one = dataclasses.replace(deployment(tmp_path), address="10.0.0.4")
    with pytest.raises(ConfigurationError) as caught:
        dataclasses.replace(one, address=address)
    assert caught.value.code == "deploy.address"
