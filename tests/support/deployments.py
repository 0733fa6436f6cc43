"""Deployments of an image made of a few bytes, and tools that record what they are asked."""

from __future__ import annotations

import hashlib
import json
import struct
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cloister.attester.start_disk import Start
from cloister.deploy.apply import Effects
from cloister.deploy.deployment import Deployment, describe, hash_file, read_image
from cloister.deploy.tools import Finished
from support.boot_parts import uki

MANIFEST = bytes(range(32))
ESP_BYTES = 64 * 512
COMMAND_LINE = "quiet cloister.root=a cloister.application=none cloister.model=b"
"""Names every disk, as it has to where no TPM measures them."""


def write_image(folder: Path) -> Path:
    """An image's folder, with a disk that has a partition table and tiny ones behind it."""
    folder.mkdir(parents=True)
    (folder / "uki.efi").write_bytes(uki(cmdline=COMMAND_LINE.encode()))
    (folder / "esp.img").write_bytes(tiny_disk(b"FAT32".ljust(ESP_BYTES, b"\1")))
    (folder / "root.img").write_bytes(b"root".ljust(8192, b"\2"))
    (folder / "model.img").write_bytes(b"model".ljust(12288, b"\3"))
    (folder / "image.eif").write_bytes(b".eif" + bytes(100))
    write_configuration(folder)
    write_record(folder, {"debug": False})
    return folder


def write_configuration(
    folder: Path, *, address: str = "10.0.2.15/24", members: Mapping[str, object] | None = None
) -> None:
    """The image's effective configuration, as far as deploying reads it."""
    peers = [{"name": "broker", "address": "198.51.100.7", "port": 8441}]
    network = {"listen": [8440, 8443], "allow_out": peers, "address": [address]}
    document = {
        "network": {**network, "gateway": ["10.0.2.2"]},
        "manifest_sha256": MANIFEST.hex(),
    }
    (folder / "configuration.json").write_text(json.dumps({**document, **(members or {})}))


def write_record(folder: Path, members: Mapping[str, object]) -> None:
    """The build's record of every file that is there, with these members besides."""
    files = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.iterdir()
        if path.name != "build.json"
    }
    (folder / "build.json").write_text(json.dumps({"files": files, **members}))


def tiny_disk(esp: bytes) -> bytes:
    """A GPT disk with one EFI system partition, written apart from the code under test."""
    sectors = len(esp) // 512
    kind = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le
    entry = struct.pack("<16s16sQQQ72s", kind, bytes(15) + b"\1", 2048, 2047 + sectors, 0, b"")
    entries = entry.ljust(128 * 128, b"\0")
    head = struct.pack("<8sIIIIQQQQ16s", b"EFI PART", 0x10000, 92, 0, 0, 1, 0, 34, 9999, b"")
    head += struct.pack("<QIII", 2, 128, 128, zlib.crc32(entries))
    start = bytes(512) + head.ljust(512, b"\0") + entries
    return start.ljust(2048 * 512, b"\0") + esp + bytes(33 * 512)


def deployment(folder: Path, *, name: str = "web", start_disk: bool = True) -> Deployment:
    """A deployment of such an image, in a folder of its own below `folder`."""
    image = folder / "image"
    if not image.exists():
        write_image(image)
    start = write_start_disk(folder)
    return describe(
        name,
        read_image(image, debug_accepted=False),
        folder / "deployment",
        start_disk=hash_file(start) if start_disk else None,
    )


def write_start_disk(folder: Path) -> Path:
    """A start disk in `folder`."""
    start = folder / "start.img"
    if not start.exists():
        start.write_bytes(Start(api_keys=b"table", manifest=b"bundle").disk())
    return start


def built_for(what: Deployment, platform: str) -> Deployment:
    """`what`, of an image whose configuration names `platform`."""
    return replace(what, image=replace(what.image, platform=platform))


@dataclass
class Recorder:
    """Answers commands by the first of `answers` whose words they begin with, and records them."""

    answers: Mapping[tuple[str, ...], str | Finished] = field(default_factory=dict)
    default: Callable[[Sequence[str]], Finished] | None = None
    calls: list[tuple[str, ...]] = field(default_factory=list)
    fail_at: tuple[str, ...] = ()
    """A command that begins so fails."""

    def __call__(self, argv: Sequence[str], /) -> Finished:
        words = tuple(argv)
        self.calls.append(words)
        if self.fail_at and words[: len(self.fail_at)] == self.fail_at:
            return Finished(code=1, out="", err="made to fail")
        for beginning, answer in self.answers.items():
            if words[: len(beginning)] == beginning:
                return (
                    answer if isinstance(answer, Finished) else Finished(code=0, out=answer, err="")
                )
        if self.default is not None:
            return self.default(words)
        return Finished(code=0, out="", err="")

    @property
    def effects(self) -> Effects:
        """Effects with this as the runner, every tool installed and no waiting."""
        return Effects(run=self, sleep=lambda _: None, which=lambda name: f"/usr/bin/{name}")
