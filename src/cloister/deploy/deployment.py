"""What is deployed: a built image, a name, and what the host hands it.

The same description serves every target; what only one platform knows (a firmware file, a
resource group) stands beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.deploy import words
from cloister.deploy.ingress import ImageNetwork, parse_network
from cloister.deploy.plan import Input
from cloister.errors import ConfigurationError, MalformedError
from cloister.image.configuration import Platform
from cloister.strictjson import (
    JsonObject,
    expect_hex,
    expect_object,
    expect_str,
    parse_json_object,
)

ARTEFACTS: Final = {
    "uki": "uki.efi",
    "esp": "esp.img",
    "root": "root.img",
    "application": "application.img",
    "model": "model.img",
    "eif": "image.eif",
}
"""What `cloister image build` may leave in its folder, by role."""
RECORD: Final = "build.json"
"""Its record: name, version, whether it is a debug image, and each file's digest."""

CONFIGURATION: Final = "configuration.json"
"""The image's effective configuration, which the application disk holds too."""

MIB: Final = 1 << 20
DEFAULT_PORT: Final = 8440
MAX_RECORD_BYTES: Final = 8 * MIB
_PIECE: Final = 4 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """The files of one image, each with the digest it had when it was read."""

    files: Mapping[str, Input]
    """By role, a key of `ARTEFACTS`."""
    debug: bool
    """Whether the image says that it is a debug image; only the attestation proves it."""
    network: ImageNetwork | None = None
    """What its configuration says of the network; None for a lone enclave image, say."""
    manifest: bytes | None = None
    """SHA-256 of the manifest that its configuration names."""
    platform: str | None = None
    """What makes its evidence, as its configuration says; None where there is none."""

    def file(self, role: str) -> Input:
        """The file of a role.

        Raises:
            ConfigurationError: the image has none (code ``deploy.artefact``).
        """
        found = self.files.get(role)
        if found is None:
            raise ConfigurationError(
                f"the image has no {ARTEFACTS[role]}, which this target starts from",
                code="deploy.artefact",
            )
        return found

    def require_platform(self, *platforms: Platform) -> None:
        """Refuse an image whose worker would look for other evidence than this target gives.

        `platforms` are those that it may be built for. An enclave image alone, without the
        configuration that `cloister image build` writes, says of none, and is taken as it is.

        Raises:
            ConfigurationError: it was built for another one, or does not say for which (code
                ``deploy.platform``).
        """
        if self.platform in platforms:
            return
        if self.platform is None and self.network is None and platforms == (Platform.NITRO,):
            return
        built = (
            "the image does not say what it was built for"
            if self.platform is None
            else f"the image was built for {self.platform}, and could prove nothing here"
        )
        wanted = " or ".join(f'platform = "{one}"' for one in platforms)
        raise ConfigurationError(f"{built}: build it with {wanted}", code="deploy.platform")

    def disks(self) -> tuple[tuple[str, Input], ...]:
        """Root, application and model disk, those that there are."""
        self.file("root")
        return tuple(
            (role, self.files[role])
            for role in ("root", "application", "model")
            if role in self.files
        )

    def boot_disk_parts(self) -> tuple[Input, ...]:
        """What one disk for a cloud is made of."""
        return (self.file("esp"), *(one for _, one in self.disks()))

    @property
    def short(self) -> str:
        """Twelve hexadecimal digits that are others for another image: for names in a cloud."""
        digests = "".join(f"{role}={self.files[role].sha256}," for role in sorted(self.files))
        return hashlib.sha256(digests.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One machine to start from one image.

    Raises:
        ConfigurationError: a name, a path or a port cannot be used.
    """

    name: str
    image: BuiltImage
    folder: Path
    """For files that are written and for progress; one deployment each."""
    port: int
    """Where the worker listens inside the guest, and where the platform lets people in."""
    manifest: bytes | None = None
    """SHA-256 of the manifest, for HOST_DATA or MRCONFIGID; None: the image names none."""
    address: str = ""
    """The guest's IPv4 address, for a platform that gives machines theirs; empty: it has none."""
    start_disk: Input | None = None
    """API keys and manifest, for a guest that nobody gives them through an operator's port."""

    def __post_init__(self) -> None:
        """Check every word, whoever made the description."""
        words.NAME.check(self.name)
        words.port(self.port)
        words.check_path(self.folder, "the deployment's folder")
        if self.address:
            words.guest_address(self.address)
        if self.manifest is not None and len(self.manifest) != hashlib.sha256().digest_size:
            raise ConfigurationError("a manifest's digest has 32 bytes", code="deploy.word")

    def required_start_disk(self) -> Input:
        """The start disk, for platforms whose guests get nothing otherwise.

        Raises:
            ConfigurationError: there is none (code ``deploy.start_disk``).
        """
        if self.start_disk is None:
            raise ConfigurationError(
                "nobody can give a guest in a cloud its API keys once it runs, and without them it"
                " ends: name --start-disk (cloister image start-disk)",
                code="deploy.start_disk",
            )
        return self.start_disk

    @property
    def attached(self) -> tuple[tuple[str, Input], ...]:
        """The disks behind the one that it starts from, where each is a disk of its own."""
        start = () if self.start_disk is None else (("start", self.start_disk),)
        return (*self.image.disks(), *start)


def describe(
    name: str,
    image: BuiltImage,
    folder: Path,
    *,
    port: int | None = None,
    manifest: bytes | None = None,
    start_disk: Input | None = None,
) -> Deployment:
    """A deployment as the image's own configuration has it.

    `port` chooses among the ports that the image lets in; `manifest` has to be the one that it
    names. An image without a configuration takes both as they are (port 8440 unless named).

    Raises:
        ConfigurationError: they contradict the image (codes ``deploy.port``, ``deploy.word``), or
            a name or a path cannot be used.
    """
    if image.manifest is not None and manifest not in {None, image.manifest}:
        raise ConfigurationError(
            "the image names another manifest; its init would halt", code="deploy.word"
        )
    network = image.network
    return Deployment(
        name=name,
        image=image,
        folder=folder,
        port=(port or DEFAULT_PORT) if network is None else network.port(port),
        manifest=image.manifest or manifest,
        address=network.addresses[0] if network is not None and network.addresses else "",
        start_disk=start_disk,
    )


def read_image(
    folder: Path, *, debug_accepted: bool, tell: Callable[[str], object] = lambda _: None
) -> BuiltImage:
    """Find an image's files in `folder` and hash each; `tell` hears of every file before.

    The digests go into the plan: what is uploaded or started later has to be what was planned, and
    what was planned has to be what was built.

    Raises:
        ConfigurationError: no image is there, a file cannot be read or is not what the build's
            record says, or it is a debug image and nobody asked for one (codes ``deploy.image``,
            ``deploy.changed``, ``deploy.debug``).
    """
    root = words.path(folder, "the image")
    files: dict[str, Input] = {}
    for role, name in ARTEFACTS.items():
        path = root / name
        if path.exists():
            tell(name)
            files[role] = hash_file(path)
    if not files.keys() & {"uki", "eif"}:
        raise ConfigurationError(
            f"there is no image in {root}: it has neither {ARTEFACTS['uki']} nor "
            f"{ARTEFACTS['eif']}; make one with `cloister image build`",
            code="deploy.image",
        )
    debug = _check_record(root / RECORD, files)
    if debug and not debug_accepted:
        raise ConfigurationError(
            "this is a debug image: whoever runs it can look inside, and clients refuse it; "
            "name --debug-image to deploy it all the same",
            code="deploy.debug",
        )
    network, manifest, platform = _read_configuration(root / CONFIGURATION)
    return BuiltImage(
        files=files, debug=debug, network=network, manifest=manifest, platform=platform
    )


def hash_file(path: Path) -> Input:
    """Size and SHA-256 of a file, read once from end to end.

    Raises:
        ConfigurationError: it cannot be read, or is no plain file (code ``deploy.image``).
    """
    digest, size = hashlib.sha256(), 0
    try:
        if not path.is_file():
            raise ConfigurationError(f"{path} is no plain file", code="deploy.image")
        with path.open("rb") as opened:
            while piece := opened.read(_PIECE):
                digest.update(piece)
                size += len(piece)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}", code="deploy.image"
        ) from None
    return Input(path=path, size=size, sha256=digest.hexdigest())


def _check_record(path: Path, files: Mapping[str, Input]) -> bool:
    """Whether the build's record calls it a debug image; files that it lists are as it says.

    An image without a record (a lone enclave image, say) is taken as it is.
    """
    if not path.exists():
        return False
    try:
        with path.open("rb") as opened:
            record = parse_json_object(
                opened.read(MAX_RECORD_BYTES + 1), limit=MAX_RECORD_BYTES, what=path.name
            )
        listed = expect_object(record.get("files"), f"`files` of {path.name}")
        here = {ARTEFACTS[role]: found.sha256 for role, found in files.items()}
        if (path.parent / CONFIGURATION).exists():
            here[CONFIGURATION] = hash_file(path.parent / CONFIGURATION).sha256
        for name, digest in here.items():
            if name not in listed and name != ARTEFACTS["eif"]:  # which may be made later
                raise ConfigurationError(
                    f"{name} was not built with the image: {path.name} does not list it",
                    code="deploy.changed",
                )
            if name in listed and _recorded(listed, name) != digest:
                raise ConfigurationError(
                    f"{name} is not what was built: {path.name} lists another digest",
                    code="deploy.changed",
                )
    except MalformedError as error:
        raise ConfigurationError(str(error), code="deploy.image") from None
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}", code="deploy.image"
        ) from None
    return record.get("debug") is not False  # one that leaves it open is not believed


def _read_configuration(path: Path) -> tuple[ImageNetwork | None, bytes | None, str | None]:
    """The image's network, its manifest's digest and its platform."""
    if not path.exists():
        return None, None, None
    try:
        with path.open("rb") as opened:
            document = parse_json_object(
                opened.read(MAX_RECORD_BYTES + 1), limit=MAX_RECORD_BYTES, what=path.name
            )
        named = document.get("manifest_sha256")
        manifest = None if named is None else expect_hex(named, "the manifest's digest", size=32)
        platform = document.get("platform")
        if platform is not None:
            platform = expect_str(platform, "the image's platform", limit=32)
        return parse_network(document.get("network")), manifest, platform
    except MalformedError as error:
        raise ConfigurationError(str(error), code="deploy.image") from None
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}", code="deploy.image"
        ) from None


def _recorded(listed: JsonObject, name: str) -> str:
    entry = expect_object(listed[name], "a file of the record")
    return expect_str(entry.get("sha256"), "a digest of the record", limit=64)
