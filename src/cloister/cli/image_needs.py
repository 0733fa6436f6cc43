"""What an image's folder says about the machine that it is to be booted on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from cloister.image.machine import Carried
    from cloister.strictjson import JsonObject

CONFIGURATION: Final = "configuration.json"
MODEL_DISK: Final = "model.img"
MAX_CONFIGURATION_BYTES: Final = 1024 * 1024
SYSTEM_MIB: Final = 384
"""For the guest's system and its worker."""
MEMORY_STEP_MIB: Final = 256
MIB: Final = 1024 * 1024
DEFAULT_PORT: Final = 8440


def fitting_memory(directory: Path) -> int:
    """MiB for a machine that has an image, in steps, for the firmware may measure how much it is.

    A model is mapped, and its computations need room.
    """
    model = directory / MODEL_DISK
    size = model.stat().st_size if model.is_file() else 0
    return -(-(SYSTEM_MIB + 2 * -(-size // MIB)) // MEMORY_STEP_MIB) * MEMORY_STEP_MIB


def carried_peers(directory: Path, written: Sequence[str]) -> tuple[Carried, ...]:
    """Where those are whom the image may call, by name; ConfigurationError (``image.peer``)."""
    from cloister.image.machine import Carried
    from cloister.streams.address import TcpAddress, parse_address

    known, found = _allowed(directory), dict[str, Carried]()
    for one in written:
        name, _, target = one.partition("=")
        if name not in known or name in found:
            raise ConfigurationError(
                f"--peer {name}=… names nobody whom this image may call, or somebody twice; its "
                f"peers: {', '.join(known) or 'none'}",
                code="image.peer",
            )
        where = parse_address(f"tcp://{target}")
        if not isinstance(where, TcpAddress):
            raise TypeError("tcp:// gives an address of TCP")
        address, port = known[name]
        found[name] = Carried(address=address, port=port, host=where.host, host_port=where.port)
    missing = [name for name in known if name not in found]
    if missing:
        typer.echo(f"Nobody carries what the guest tells {', '.join(missing)} (--peer).", err=True)
    return tuple(found.values())


def effective_configuration(directory: Path) -> JsonObject:
    """The effective configuration of an image; empty where its folder does not say."""
    from cloister.strictjson import parse_json_object

    path = directory / CONFIGURATION
    if not path.is_file():
        return {}
    limit = MAX_CONFIGURATION_BYTES
    return parse_json_object(path.read_bytes(), limit=limit, what=CONFIGURATION)


def network_policy(directory: Path) -> JsonObject:
    """The network policy of an image; empty where its folder does not say."""
    from cloister.strictjson import expect_object

    document = effective_configuration(directory)
    return expect_object(document.get("network"), "the network's policy") if document else {}


def own_port(directory: Path) -> int:
    """The port that the worker in an image listens on."""
    from cloister.strictjson import expect_int, expect_object

    operator = expect_object(
        effective_configuration(directory).get("operator", {}), "where it listens"
    )
    return expect_int(operator.get("port", DEFAULT_PORT), "the worker's port", low=1, high=65535)


def require_tpm_boot(directory: Path) -> None:
    """Refuse an image whose worker would look for evidence that this machine cannot make."""
    from cloister.evidence.items import TEE_TYPE_TPM_BOOT

    platform = effective_configuration(directory).get("platform", TEE_TYPE_TPM_BOOT)
    if platform != TEE_TYPE_TPM_BOOT:
        raise ConfigurationError(
            f"the image was built for {platform}, and a guest here has a TPM alone: build it with"
            f' platform = "{TEE_TYPE_TPM_BOOT}", or start it there (cloister deploy)',
            code="image.platform",
        )


def _allowed(directory: Path) -> dict[str, tuple[str, int]]:
    """Address and port of each peer of an image, by name; none where its folder does not say."""
    from cloister.strictjson import expect_int, expect_list, expect_object, expect_str

    network = network_policy(directory)
    if not network:
        return {}
    listed = expect_list(network.get("allow_out"), "the peers", limit=16)
    peers = [expect_object(entry, "a peer") for entry in listed]
    return {
        expect_str(one.get("name"), "a peer's name"): (
            expect_str(one.get("address"), "a peer's address"),
            expect_int(one.get("port"), "a peer's port", low=1, high=65535),
        )
        for one in peers
    }
