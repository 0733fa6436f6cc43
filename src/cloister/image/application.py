"""The application disk: all that is particular to one service, small and apart from the root.

==================== ===============================================================
configuration.json   the image's effective configuration, canonical JSON
worker.json          what the worker reads (`cloister.attester.guest_settings`)
nftables.conf        the network policy, compiled
broker/              what the broker's own evidence has to satisfy, where there is a kit
interface.conf       the card's address; not there: no card is brought up
command              the worker's command, one argument a line
==================== ===============================================================

A manifest is not among them: it lists the registers of images, so none can hold the one that lists
its own. The guest gets it when it starts, and measures it into PCR 13. Nor is any key: what lies
sealed on the model disk, a broker's key opens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cloister.attester.memory import WorkerMemory
from cloister.evidence.component import CONFIGURATION_EGRESS
from cloister.image.configuration import REQUESTS_ADDRESS, ImageConfiguration
from cloister.image.network import CARD, compile_rules
from cloister.image.python_tree import INTERPRETER
from cloister.image.tree import Tree
from cloister.strictjson import Json, JsonObject, canonical

CONFIGURATION_FORMAT: Final = "cloister/image-configuration/1"
COMMAND: Final = (INTERPRETER, "-I", "-B", "-m", "cloister.attester.guest")
APPLICATION_FOLDER: Final = "/application"
MODEL_FOLDER: Final = "/model"
ENCLAVE_REQUESTS: Final = "vsock://any:8440"
"""Where the worker of an enclave listens: its parent is all that can reach it there."""
BROKER_FOLDER: Final = "broker"
"""Of the application disk, which is mounted at ``/application``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestModel:
    """A model on the model disk."""

    name: str
    file: str
    """Its name on the disk."""
    sha256: str
    """Of the model; where it lies sealed, of what is in it."""
    sealed: str | None = None
    """The digest of the header of sealed weights."""
    memory: WorkerMemory | None = None
    """What it is opened into, where it lies sealed."""

    @property
    def path(self) -> str:
        """In the guest."""
        return f"{MODEL_FOLDER}/{self.file}"

    def to_json(self) -> JsonObject:
        """For the configuration."""
        sealed: JsonObject = {} if self.sealed is None else {"sealed": self.sealed}
        return {"name": self.name, "file": self.file, "sha256": self.sha256, **sealed}


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
        "platform": configuration.platform.value,
        "network": configuration.network.to_json(),
        "broker": _broker(configuration),
        "models": [model.to_json() for model in models],
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
    if configuration.is_enclave:
        settings["listen"] = ENCLAVE_REQUESTS
    if not configuration.network.card:
        settings["listen"] = REQUESTS_ADDRESS
    if configuration.limits.threads is not None:
        settings["threads"] = configuration.limits.threads
    if configuration.broker is not None:
        settings["broker"] = configuration.broker_address
        if configuration.broker.kit is not None:
            settings["broker_kit"] = f"{APPLICATION_FOLDER}/{BROKER_FOLDER}"
    return settings


def ways_out(configuration: ImageConfiguration) -> JsonObject:
    """What the worker's configuration says of whom the guest may call; nothing where nobody."""
    named: list[Json] = [peer.authority for peer in configuration.network.allow_out]
    if not configuration.network.card and configuration.broker_address is not None:
        named.append(configuration.broker_address)
    return {CONFIGURATION_EGRESS: named} if named else {}


def _broker(configuration: ImageConfiguration) -> str | None:
    """The peer that is the broker, or the port behind which it is."""
    if configuration.broker is None:
        return None
    return configuration.broker.peer or configuration.broker_address


def application_tree(
    configuration: ImageConfiguration,
    effective: JsonObject,
    *,
    models: Sequence[GuestModel],
    broker_kit: Mapping[str, str],
) -> Tree:
    """The disk's files; `broker_kit` are those of ``broker/``, by name."""
    tree = Tree()
    settings = {
        "configuration": effective["worker"],
        "operator": effective["operator"],
        "models": _guest_models(models),
        "platform": configuration.platform.value,
        **_memory(models),
    }
    card = None if configuration.is_enclave else CARD
    rules = compile_rules(configuration.network, card=card)
    files: Mapping[str, tuple[bytes, str]] = {
        "configuration.json": (canonical(effective), "what this image is"),
        "worker.json": (canonical(settings), "what the worker does"),
        "nftables.conf": (rules.encode(), "what may pass the card"),
        "command": ("".join(f"{word}\n" for word in COMMAND).encode(), "how the worker starts"),
    }
    for path, (content, why) in files.items():
        tree.text(path, content.decode(), why=why)
    interface = configuration.network.interface_conf()
    if interface:
        tree.text("interface.conf", interface, why="the card's address")
    for name, text in broker_kit.items():
        tree.text(f"{BROKER_FOLDER}/{name}", text, why="what the broker has to be")
    return tree


def _guest_models(models: Sequence[GuestModel]) -> JsonObject:
    return {model.name: {"model": _guest_file(model)} for model in models}


def _guest_file(model: GuestModel) -> JsonObject:
    sealed: JsonObject = {} if model.sealed is None else {"sealed": True}
    return {"path": model.path, "sha256": model.sha256, **sealed}


def _memory(models: Sequence[GuestModel]) -> JsonObject:
    """What sealed weights are opened into, all of them together."""
    needed = [model.memory for model in models if model.memory is not None]
    if not needed:
        return {}
    size, files = sum(one.size for one in needed), sum(one.files for one in needed)
    return {"memory": {"size": size, "files": files}}
