"""What an image is to be: the file that an operator writes (``image.toml``), read strictly.

Every member has a type and a place; what is unknown, doubled or of another type is refused by
name, because a mistyped limit is a limit that is not there. Paths are relative to the file.

What a guest does follows from the file and from the bytes that it names, never from where these
lie: `cloister.image.application` writes the effective configuration.
"""

from __future__ import annotations

import enum
import ipaddress
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from cloister.errors import ConfigurationError
from cloister.evidence.items import (
    TEE_TYPE_AZURE_SNP,
    TEE_TYPE_AZURE_TDX,
    TEE_TYPE_GCP_SNP,
    TEE_TYPE_GCP_TDX,
    TEE_TYPE_GCP_VTPM,
    TEE_TYPE_NITRO,
    TEE_TYPE_NITRO_TPM,
    TEE_TYPE_SEV_SNP,
    TEE_TYPE_TDX,
    TEE_TYPE_TPM_BOOT,
)
from cloister.image.network import NetworkPolicy, Peer
from cloister.image.table import Form, Table

CONFIGURATION_VERSION: Final = 1
MAX_CONFIGURATION_BYTES: Final = 256 * 1024
BROKER_ADDRESS: Final = "virtio:/dev/virtio-ports/cloister.broker"
REQUESTS_ADDRESS: Final = "virtio:/dev/virtio-ports/cloister.requests"
"""Where the worker of an image without a network card asks its broker, and is asked: ports that the
machine has (`cloister.image.machine`), as addresses of `cloister.streams`."""
METADATA_ADDRESS: Final = "169.254.169.254"
METADATA_PORT: Final = 80
"""Of Azure's metadata service (`cloister.attester.metadata`)."""
DEFAULT_ADDRESS: Final = ("10.0.2.15/24",)
"""What QEMU's own network gives a guest."""
FIRST_PORT: Final = 1024
"""Linux' ``net.ipv4.ip_unprivileged_port_start``, which the guest's init leaves."""

_NAME: Final = Form(
    pattern=re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"),
    told="letters, digits, `.`, `_` and `-`, at most 128, the first a letter or a digit",
)
_VERSION: Final = Form(
    pattern=re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}"),
    told="letters, digits, `.`, `+`, `_` and `-`, at most 64, the first a letter or a digit",
)
_DIGEST: Final = Form(
    pattern=re.compile(r"[0-9a-f]{64}"), told="64 digits in hexadecimal, in lower case"
)
_IDENTITY: Final = Form(
    pattern=re.compile(r"ed25519:[0-9a-f]{64}"),
    told="ed25519: and 64 digits in hexadecimal, as `cloister broker identity` prints it",
)
FLAVOURS: Final = ("cpu",)
_Address = TypeVar("_Address")


class Platform(enum.StrEnum):
    """What makes the evidence of an image's guest: its ``tee_type``."""

    TPM_BOOT = TEE_TYPE_TPM_BOOT
    """A TPM, physical or of the hypervisor."""
    SEV_SNP = TEE_TYPE_SEV_SNP
    TDX = TEE_TYPE_TDX
    NITRO = TEE_TYPE_NITRO
    """An enclave, which has a vsock and neither disks nor a card."""
    NITRO_TPM = TEE_TYPE_NITRO_TPM
    """An AWS instance with a NitroTPM."""
    GCP_SNP = TEE_TYPE_GCP_SNP
    """SEV-SNP at Google, whose launch digest covers Google's firmware alone, and its TPM."""
    GCP_TDX = TEE_TYPE_GCP_TDX
    """TDX at Google, whose registers cover the boot image, and its TPM."""
    GCP_VTPM = TEE_TYPE_GCP_VTPM
    """Google's TPM alone: nothing protects the memory."""
    AZURE_SNP = TEE_TYPE_AZURE_SNP
    """An Azure confidential VM: a paravisor's TPM above SEV-SNP."""
    AZURE_TDX = TEE_TYPE_AZURE_TDX
    """The same above TDX."""

    @property
    def asks_metadata(self) -> bool:
        """Whether its guests get from a metadata service what completes their evidence."""
        return self in {Platform.AZURE_SNP, Platform.AZURE_TDX}

    @property
    def one_disk(self) -> bool:
        """Whether a machine starts from one disk that holds all parts of an image."""
        return self in {
            Platform.NITRO_TPM,
            Platform.GCP_SNP,
            Platform.GCP_TDX,
            Platform.GCP_VTPM,
            Platform.AZURE_SNP,
            Platform.AZURE_TDX,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model to put on the model disk."""

    name: str
    """Under which it is served."""
    file: str
    """``demo``, or a path: of a GGUF file, or of one that lies sealed."""
    sha256: str | None = None
    """What the file has to be, where somebody pins it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSource:
    """How models are computed: by llama.cpp inside the worker's sandbox."""

    context: int | None = None
    """Tokens per request; None is what the model was trained with."""
    parallel: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Separation:
    """How people are kept apart in the engine's memory; None where the worker's default stands."""

    mode: str = "shared"
    max_processes: int | None = None
    recycle_after: int | None = None
    recycle_idle: int | None = None
    recycle_age: int | None = None
    recycle_each: bool = False
    warm: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What whoever asks may use."""

    rate_per_minute: int = 600
    rate_burst: int = 120
    threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSource:
    """The broker that releases the keys of sealed weights, and what it has to be."""

    peer: str | None
    """Its name in ``allow_out``, which says where it is; None where a port carries it."""
    identity: str
    """``ed25519:<64 hex>``, as ``cloister broker identity`` prints it."""
    kit: str | None = None
    """A folder that says what its own evidence has to satisfy."""
    development: bool = False
    """Accept a development platform, or without a kit no evidence at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfiguration:
    """An image as an operator wants it."""

    name: str
    version: str
    debug: bool = False
    """A product of its own, which clients refuse unless their policy says otherwise."""
    flavour: str = "cpu"
    platform: Platform = Platform.TPM_BOOT
    models: tuple[ModelSource, ...]
    engine: EngineSource = EngineSource()
    network: NetworkPolicy
    separation: Separation = Separation()
    limits: ImageLimits = ImageLimits()
    compat: tuple[str, ...] = ()
    broker: BrokerSource | None = None
    folder: Path
    """What relative paths are relative to."""

    @property
    def is_enclave(self) -> bool:
        """Whether it is to be a Nitro enclave."""
        return self.platform is Platform.NITRO

    @property
    def pins_disks(self) -> bool:
        """Whether the command line names every disk, for no register of the processor's measures
        one that comes later."""
        return self.platform in {Platform.SEV_SNP, Platform.TDX, Platform.GCP_TDX}

    def path(self, written: str | Path) -> Path:
        """A path as it was written, from where it was written."""
        return self.folder / Path(written).expanduser()

    @property
    def broker_address(self) -> str | None:
        """Where the worker asks for keys: an address of the network policy, or the port."""
        if self.broker is None:
            return None
        if self.broker.peer is None:
            return BROKER_ADDRESS
        peers = {peer.name: peer for peer in self.network.allow_out}
        return f"http://{peers[self.broker.peer].authority}"


def read_configuration(path: Path) -> ImageConfiguration:
    """Read ``image.toml``. Raises ConfigurationError (``image.configuration``)."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}", code="image.configuration"
        ) from None
    return parse_configuration(data, folder=path.parent)


def parse_configuration(data: bytes, *, folder: Path) -> ImageConfiguration:
    """Decode an image's configuration; paths in it are relative to `folder`.

    Raises ConfigurationError, and nothing else.
    """
    if len(data) > MAX_CONFIGURATION_BYTES:
        raise _refused(f"an image's configuration has at most {MAX_CONFIGURATION_BYTES} bytes")
    try:
        members = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise _refused(f"the image's configuration is not TOML: {error}") from None
    return _image(Table(members, ""), folder)


def _image(top: Table, folder: Path) -> ImageConfiguration:
    if top.integer("configuration", low=0) != CONFIGURATION_VERSION:
        raise _refused(f"`configuration` has to be {CONFIGURATION_VERSION}")
    flavour = top.text("flavour", default="cpu")
    if flavour not in FLAVOURS:
        raise _refused(
            "`flavour` is cpu; an image for GPUs is planned (docs/how-to/images.md) and not built"
        )
    named = top.text("platform", default=Platform.TPM_BOOT)
    if named not in set(Platform):
        raise _refused(f"`platform` is one of {', '.join(Platform)}")
    platform = Platform(named)
    models = tuple(_model(one) for one in top.tables("model"))
    if not models:
        raise _refused("there is no [[model]]")
    if len({model.name for model in models}) < len(models):
        raise _refused("two models have the same name")
    read = ImageConfiguration(
        name=top.matching("name", _NAME),
        version=top.matching("version", _VERSION),
        debug=top.boolean("debug", default=False),
        flavour=flavour,
        platform=platform,
        models=models,
        engine=_engine(top.table("engine")),
        network=_network(top, platform),
        separation=_separation(top.table("separation")),
        limits=_limits(top.table("limits")),
        compat=tuple(sorted(top.texts("compat"))),
        broker=_broker(top),
        folder=folder,
    )
    top.done()
    if platform.asks_metadata:
        _require_metadata(read.network)
    peers = {peer.name for peer in read.network.allow_out}
    if read.broker is not None and read.network.card and read.broker.peer not in peers:
        raise _refused(
            "[broker] `peer` names no peer of [network] allow_out: the guest could not reach it"
        )
    if read.broker is not None and not read.network.card and read.broker.peer is not None:
        raise _refused(
            "[broker] `peer` names a peer of the network, and there is no card: a port of the "
            "machine carries what the broker is asked, so leave it out"
        )
    return read


def _require_metadata(network: NetworkPolicy) -> None:
    """That the guest may ask the metadata service, and that the policy says so by name.

    Not added by itself: whom a guest may call, its operator reads and signs for.
    """
    named = {(peer.name, str(peer.address), peer.port) for peer in network.allow_out}
    if ("metadata", METADATA_ADDRESS, METADATA_PORT) not in named:
        raise _refused(
            "guests at Azure get certificates of their processor, or its signature, from Azure's "
            "metadata service, so their network policy has to name it: [network] allow_out = "
            f'[{{ name = "metadata", address = "{METADATA_ADDRESS}", port = {METADATA_PORT} }}]'
        )
    if not any(gateway.version == 4 for gateway in network.gateways):
        raise _refused(
            "guests at Azure reach its metadata service through their network's router: name it as "
            "[network] `gateway`"
        )


def _model(one: Table) -> ModelSource:
    model = ModelSource(
        name=one.matching("name", _NAME),
        file=one.text("file"),
        sha256=one.optional_matching("sha256", _DIGEST),
    )
    one.done()
    return model


def _broker(top: Table) -> BrokerSource | None:
    one = top.optional_table("broker")
    if one is None:
        return None
    broker = BrokerSource(
        peer=one.optional_matching("peer", _NAME),
        identity=one.matching("identity", _IDENTITY),
        kit=one.optional_text("kit"),
        development=one.boolean("development", default=False),
    )
    one.done()
    if broker.kit is None and not broker.development:
        raise _refused(
            "[broker] says neither what the broker's own evidence has to satisfy (`kit`) nor "
            "`development = true`, which accepts a broker without any"
        )
    return broker


def _engine(one: Table) -> EngineSource:
    engine = EngineSource(
        context=one.optional_integer("context", low=1),
        parallel=one.integer("parallel", low=1, high=1024, default=8),
    )
    one.done()
    return engine


def _network(top: Table, platform: Platform) -> NetworkPolicy:
    if platform is Platform.NITRO:
        if top.optional_table("network") is not None:
            raise _refused(
                "an enclave has no network card, so there is no [network]: it is reached through"
                " its parent (cloister forward)"
            )
        return NetworkPolicy()
    one = top.table("network")
    card = one.boolean("card", default=True)
    peers = tuple(_peer(peer) for peer in one.tables("allow_out"))
    addresses = one.texts("address", default=DEFAULT_ADDRESS if card else ())
    if any(":" in address for address in addresses):
        raise _refused("[network] `address` holds an IPv6 address; the guest's init sets up none")
    ports = tuple(one.integers("listen", low=1, high=65535))
    policy = NetworkPolicy(
        listen=ports,
        allow_out=peers,
        addresses=tuple(_parsed(ipaddress.ip_interface, text, "address") for text in addresses),
        gateways=tuple(
            _parsed(ipaddress.ip_address, text, "gateway") for text in one.texts("gateway")
        ),
        card=card,
    )
    one.done()
    _check_card(policy, addresses)
    return policy


def _check_card(policy: NetworkPolicy, written: Sequence[str]) -> None:
    """Refuse a card that the guest's init cannot set up, or that nobody reaches the worker by."""
    if not policy.card:
        return
    if not policy.listen:
        raise _refused(
            "[network] `listen` names no port, so nobody could ask the worker: listen = [8440], or"
            " card = false for a guest without a network card"
        )
    if min(policy.listen) < FIRST_PORT:
        raise _refused(
            f"[network] `listen` names a port below {FIRST_PORT}, which the guest's worker, an"
            " ordinary user there, may not take"
        )
    if any("/" not in address for address in written):
        raise _refused(
            "[network] `address` has no length of its network's prefix, such as"
            f" {DEFAULT_ADDRESS[0]}"
        )
    if len(policy.addresses) > 1:
        raise _refused("[network] `address` is one: the guest's init gives its card no more")
    for own in policy.addresses:
        if own.ip.is_loopback or own.ip.is_multicast or own.ip.is_unspecified:
            raise _refused(f"[network] `address` {own} is not one that a card can have")
    for gateway in policy.gateways:
        if not any(_neighbour(gateway, own) for own in policy.addresses):
            raise _refused(
                f"[network] `gateway` {gateway} is not another machine of the network of `address`"
                f" ({', '.join(written)}), so the guest could not reach it"
            )


def _neighbour(
    gateway: ipaddress.IPv4Address | ipaddress.IPv6Address,
    own: ipaddress.IPv4Interface | ipaddress.IPv6Interface,
) -> bool:
    """Whether `gateway` can be another machine of the network of `own`."""
    network = own.network
    ends = (network.network_address, network.broadcast_address) if network.num_addresses > 2 else ()
    return gateway in network and gateway != own.ip and gateway not in ends


def _peer(one: Table) -> Peer:
    peer = Peer(
        name=one.matching("name", _NAME),
        address=_parsed(ipaddress.ip_address, one.text("address"), "allow_out address"),
        port=one.integer("port", low=1, high=65535),
    )
    one.done()
    return peer


def _separation(one: Table) -> Separation:
    separation = Separation(
        mode=one.text("mode", default="shared"),
        max_processes=one.optional_integer("max_processes", low=1),
        recycle_after=one.optional_integer("recycle_after", low=0),
        recycle_idle=one.optional_integer("recycle_idle", low=0),
        recycle_age=one.optional_integer("recycle_age", low=0),
        recycle_each=one.boolean("recycle_each", default=False),
        warm=one.optional_integer("warm", low=0),
    )
    one.done()
    return separation


def _limits(one: Table) -> ImageLimits:
    limits = ImageLimits(
        rate_per_minute=one.integer("rate_per_minute", low=0, default=600),
        rate_burst=one.integer("rate_burst", low=1, default=120),
        threads=one.optional_integer("threads", low=1),
    )
    one.done()
    return limits


def _parsed(parse: Callable[[str], _Address], text: str, what: str) -> _Address:
    try:
        return parse(text)
    except ValueError:
        raise _refused(
            f"[network] `{what}` holds {text!r}, which is no IP address; names are not looked up"
        ) from None


def _refused(why: str) -> ConfigurationError:
    return ConfigurationError(why, code="image.configuration")
