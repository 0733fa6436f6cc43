"""What was deployed, kept beside its progress: so that it can be taken back without the image.

A plan names resources after digests of the image and of the start disk. Once either is gone, or
another one lies in its place, nobody could make the plan again whose steps are to be undone. Kept
are names, sizes and digests, never a command: those come from Cloister's code alone, and from words
that are checked when they are read.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from cloister.deploy import words
from cloister.deploy.deployment import ARTEFACTS, BuiltImage, Deployment
from cloister.deploy.ingress import ImageNetwork, parse_network
from cloister.deploy.plan import Input
from cloister.errors import ConfigurationError, MalformedError
from cloister.strictjson import (
    MAX_INTEGER,
    Json,
    JsonObject,
    canonical,
    expect_hex,
    expect_int,
    expect_keys,
    expect_object,
    expect_str,
    parse_json_object,
)

FILE: Final = "deployment.json"
FORMAT: Final = "cloister/deployment/1"
MAX_BYTES: Final = 256 * 1024
DIGEST_BYTES: Final = hashlib.sha256().digest_size


def kept_text(deployment: Deployment) -> str:
    """The description to keep as `FILE` in the deployment's folder."""
    image = deployment.image
    document: JsonObject = {
        "format": FORMAT,
        "name": deployment.name,
        "port": deployment.port,
        "address": deployment.address,
        "manifest": _hex(deployment.manifest),
        "start_disk": None if deployment.start_disk is None else _input(deployment.start_disk),
        "image": {
            "files": {role: _input(one) for role, one in image.files.items()},
            "debug": image.debug,
            "network": None if image.network is None else _network(image.network),
            "manifest": _hex(image.manifest),
            "platform": image.platform,
        },
    }
    return canonical(document).decode() + "\n"


def read_kept(folder: Path) -> Deployment | None:
    """The description that is kept in `folder`; None where there is none.

    Raises:
        ConfigurationError: it cannot be read, or is not as `kept_text` writes it (code
            ``deploy.progress``), or holds a word that no deployment has.
    """
    path = folder / FILE
    try:
        with path.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}", code="deploy.progress"
        ) from None
    try:
        return _deployment(parse_json_object(data, limit=MAX_BYTES, what=FILE), folder)
    except MalformedError as error:
        raise ConfigurationError(f"{path}: {error}", code="deploy.progress") from None


def _deployment(document: JsonObject, folder: Path) -> Deployment:
    names = {"format", "name", "port", "address", "manifest", "start_disk", "image"}
    expect_keys(document, "the description", required=names)
    if document["format"] != FORMAT:
        raise MalformedError(f"the description is not one of {FORMAT}")
    start = document["start_disk"]
    return Deployment(
        name=expect_str(document["name"], "the name", limit=64),
        image=_image(expect_object(document["image"], "the image")),
        folder=folder,
        port=expect_int(document["port"], "the port", high=65535),
        manifest=_digest(document["manifest"]),
        address=expect_str(document["address"], "the address", limit=64),
        start_disk=None if start is None else _parse_input(start),
    )


def _image(document: JsonObject) -> BuiltImage:
    names = {"files", "debug", "network", "manifest", "platform"}
    expect_keys(document, "the image", required=names)
    files = expect_object(document["files"], "the image's files")
    expect_keys(files, "the image's files", required=set(), optional=set(ARTEFACTS))
    network, platform, debug = (document[name] for name in ("network", "platform", "debug"))
    if not isinstance(debug, bool):
        raise MalformedError("the image does not say whether it is a debug image")
    return BuiltImage(
        files={role: _parse_input(one) for role, one in files.items()},
        debug=debug,
        network=None if network is None else parse_network(network),
        manifest=_digest(document["manifest"]),
        platform=None if platform is None else expect_str(platform, "the platform", limit=32),
    )


def _network(network: ImageNetwork) -> JsonObject:
    """As an image's configuration has it, as far as deploying reads it."""
    document: JsonObject = {
        "listen": list(network.listen),
        "allow_out": [{"address": one.address, "port": one.port} for one in network.peers],
        "address": list(network.addresses),
        "gateway": [],
    }
    return document if network.card else {**document, "card": False}


def _input(one: Input) -> JsonObject:
    return {"path": str(one.path), "size": one.size, "sha256": one.sha256}


def _parse_input(value: Json) -> Input:
    what = "a file of the description"
    members = expect_object(value, what)
    expect_keys(members, what, required={"path", "size", "sha256"})
    path = Path(expect_str(members["path"], what))
    words.check_path(path, what)
    return Input(
        path=path,
        size=expect_int(members["size"], what, high=MAX_INTEGER),
        sha256=expect_hex(members["sha256"], what, size=DIGEST_BYTES).hex(),
    )


def _hex(digest: bytes | None) -> str | None:
    return None if digest is None else digest.hex()


def _digest(value: Json) -> bytes | None:
    return None if value is None else expect_hex(value, "a manifest's digest", size=DIGEST_BYTES)
