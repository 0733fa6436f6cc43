"""The application disk: all that is particular to one service, small and apart from the root.

==================== ===============================================================
configuration.json   the image's effective configuration, canonical JSON
worker.json          what the worker reads (`cloister.attester.guest`)
nftables.conf        the network policy, compiled
interface.conf       the card's address; not there: no card is brought up
command              the worker's command, one argument a line
==================== ===============================================================

A manifest is not among them: it lists the registers of images, so none can hold the one that lists
its own. The guest gets it when it starts, and measures it into PCR 13.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cloister.image.configuration import ImageConfiguration
from cloister.image.network import compile_rules
from cloister.image.python_tree import INTERPRETER
from cloister.image.tree import Tree
from cloister.strictjson import JsonObject, canonical

CONFIGURATION_FORMAT: Final = "cloister/image-configuration/1"
COMMAND: Final = (INTERPRETER, "-I", "-B", "-m", "cloister.attester.guest")
MODEL_FOLDER: Final = "/model"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestModel:
    """A model on the model disk."""

    name: str
    file: str
    """Its name on the disk."""
    sha256: str

    @property
    def path(self) -> str:
        """In the guest."""
        return f"{MODEL_FOLDER}/{self.file}"


def effective_configuration(
    configuration: ImageConfiguration,
    *,
    worker: JsonObject,
    models: Sequence[GuestModel],
) -> JsonObject:
    """What the image is, by content: no path of the builder's machine is in it.

    `worker` is the worker's own effective configuration, which the claims document repeats.
    """
    return {
        "format": CONFIGURATION_FORMAT,
        "name": configuration.name,
        "version": configuration.version,
        "debug": configuration.debug,
        "flavour": configuration.flavour,
        "network": configuration.network.to_json(),
        "broker": configuration.broker,
        "models": [
            {"name": model.name, "file": model.file, "sha256": model.sha256} for model in models
        ],
        "operator": operator_settings(configuration),
        "worker": worker,
    }


def operator_settings(configuration: ImageConfiguration) -> JsonObject:
    """Where the guest's worker listens and how often it may be asked; measured in an image."""
    ports = configuration.network.listen
    settings: JsonObject = {
        "host": "0.0.0.0" if ports else "127.0.0.1",  # noqa: S104 - the rules say who gets in
        "port": ports[0] if ports else 8440,
        "rate_per_minute": configuration.limits.rate_per_minute,
        "rate_burst": configuration.limits.rate_burst,
    }
    if configuration.network.ipv6 and ports:
        settings["host"] = "::"
    if configuration.limits.threads is not None:
        settings["threads"] = configuration.limits.threads
    return settings


def application_tree(
    configuration: ImageConfiguration,
    effective: JsonObject,
    *,
    models: Sequence[GuestModel],
) -> Tree:
    """The disk's files."""
    tree = Tree()
    settings = {
        "configuration": effective["worker"],
        "operator": effective["operator"],
        "models": _guest_models(models),
    }
    files: Mapping[str, tuple[bytes, str]] = {
        "configuration.json": (canonical(effective), "what this image is"),
        "worker.json": (canonical(settings), "what the worker does"),
        "nftables.conf": (compile_rules(configuration.network).encode(), "what may pass the card"),
        "command": ("".join(f"{word}\n" for word in COMMAND).encode(), "how the worker starts"),
    }
    for path, (content, why) in files.items():
        tree.text(path, content.decode(), why=why)
    interface = configuration.network.interface_conf()
    if interface:
        tree.text("interface.conf", interface, why="the card's address")
    return tree


def _guest_models(models: Sequence[GuestModel]) -> JsonObject:
    return {model.name: {"model": {"path": model.path, "sha256": model.sha256}} for model in models}
