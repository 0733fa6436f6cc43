"""Reference values of hardware platforms: accepted values of the registers that name software.

One `PlatformReference` is one accepted state: every register it lists must hold one of the
values listed for it. Several are alternatives, of which one must match whole; a measurement of
one image never combines with a register of another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cloister.errors import ConfigurationError, MalformedError
from cloister.strictjson import (
    Json,
    JsonObject,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
)

MAX_REFERENCES: Final = 256
MAX_REGISTERS: Final = 64
MAX_VALUES: Final = 256

_FIRMWARE_TO_APPLICATION: Final = tuple(
    f"pcr{number}" for number in (*range(10), 11, 12, 13, 14, 15)
)
"""GRUB measures the kernel's command line into PCR 8 alone: without it ``init=/bin/sh`` would pass.
Not PCR 10, into which a kernel that measures files (IMA) writes in whatever order it opens them."""

_KERNEL_TO_APPLICATION: Final = _FIRMWARE_TO_APPLICATION[2:]
"""Without PCR 0 and 1 of a NitroTPM: AWS documents that they "will always contain constant values"
(EC2 User Guide, "NitroTPM Attestation Document contents"), and is who signs all the others."""

_BY_THE_GUEST: Final = ("pcr12", "pcr13", "pcr14", "pcr15")
"""Of a TPM beside a processor that names the boot image: what was added to that, and its disks."""

IDENTITY: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = MappingProxyType(
    {
        "snp": (("measurement",),),
        "tdx": (("mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3"),),
        "sgx": (("mrenclave",), ("mrsigner", "isvprodid", "isvsvn")),
        "nitro": (("pcr0",),),
        "azure-snp": (("measurement", *_FIRMWARE_TO_APPLICATION),),
        "azure-tdx": (("mr_td", *_FIRMWARE_TO_APPLICATION),),
        "gcp-snp": (("measurement", *_FIRMWARE_TO_APPLICATION),),
        "gcp-tdx": (("mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3", *_BY_THE_GUEST),),
        "gcp-vtpm": (_FIRMWARE_TO_APPLICATION,),
        "tpm": (_FIRMWARE_TO_APPLICATION,),
        "nitro-tpm": (_KERNEL_TO_APPLICATION,),
    }
)
"""For each platform, the sets of registers of which a reference must list one: fewer would leave
room for other software (docs/design.md section 5)."""

_WHAT: Final = "a platform of the reference values"
_HEX: Final = re.compile(r"(?:[0-9a-f]{2}){1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceImage:
    """The image that a state is of, where it was built as one."""

    name: str
    version: str
    debug: bool
    """Whether it lets somebody look in; a policy accepts that by name or not at all."""

    def to_json(self) -> JsonObject:
        """The member as the document writes it."""
        return {"name": self.name, "version": self.version, "debug": self.debug}

    def dump_toml(self) -> str:
        """The member as a TOML inline table."""
        name, version = map(_toml, (self.name, self.version))
        return f"{{name = {name}, version = {version}, debug = {json.dumps(self.debug)}}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformReference:
    """One accepted state of one platform.

    Raises:
        ConfigurationError: it does not list what tells software apart on the platform (code
            ``reference_values_malformed``); with no register at all, everything would match.
    """

    platform: str
    """A key of `IDENTITY`."""
    name: str
    """What it is the state of, for people: an image and its version."""
    registers: Mapping[str, tuple[str, ...]]
    """Vendors' register names, each with its accepted values in lower-case hexadecimal."""
    image: ReferenceImage | None = None

    def __post_init__(self) -> None:
        """Refuse a state that leaves room for other software."""
        missing = _missing(self.platform, self.registers)
        if missing:
            raise ConfigurationError(missing, code="reference_values_malformed")

    def matches(self, found: Mapping[str, bytes]) -> bool:
        """Whether every register listed holds one of its values."""
        return not self.differing(found)

    def differing(self, found: Mapping[str, bytes]) -> tuple[str, ...]:
        """The registers that hold something else, or are missing."""
        return tuple(
            name
            for name, accepted in self.registers.items()
            if name not in found or found[name].hex() not in accepted
        )

    def to_json(self) -> JsonObject:
        """The entry as the document writes it."""
        registers: JsonObject = {name: list[Json](v) for name, v in self.registers.items()}
        entry: JsonObject = {"platform": self.platform, "name": self.name, "registers": registers}
        return entry if self.image is None else {**entry, "image": self.image.to_json()}

    def dump_toml(self) -> str:
        """The entry as a TOML table."""
        lines = [
            "[[platforms]]\n",
            f"platform = {json.dumps(self.platform)}\n",
            f"name = {_toml(self.name)}\n",
            *(() if self.image is None else (f"image = {self.image.dump_toml()}\n",)),
            "[platforms.registers]\n",
            *(f"{name} = {json.dumps(list(v))}\n" for name, v in self.registers.items()),
        ]
        return "".join(lines)


def _toml(text: str) -> str:
    """A basic string: as JSON writes it, but for U+007F, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _missing(platform: str, registers: Mapping[str, tuple[str, ...]]) -> str:
    """What a reference lacks, as a sentence; empty where it lacks nothing."""
    if platform not in IDENTITY:
        return f"{_WHAT} is none of {', '.join(IDENTITY)}"
    if any(set(identity) <= registers.keys() for identity in IDENTITY[platform]):
        return ""
    needed = " or ".join(", ".join(identity) for identity in IDENTITY[platform])
    return f"{_WHAT} does not say what software runs on {platform}: it has to list {needed}"


def collect_references(references: Iterable[PlatformReference]) -> tuple[PlatformReference, ...]:
    """Sort `references` and leave out repetitions, so that equal sets are equal values."""
    sorted_ones = {
        json.dumps(reference.to_json(), sort_keys=True): reference for reference in references
    }
    return tuple(reference for _, reference in sorted(sorted_ones.items()))


def parse_reference(value: object) -> PlatformReference:
    """Read one entry of a reference values document.

    Raises MalformedError, and nothing else.
    """
    what = _WHAT
    members = expect_object(value, what)
    expect_keys(members, what, required={"platform", "name", "registers"}, optional={"image"})
    platform = expect_str(members["platform"], "a platform", limit=32)
    listed = expect_object(members["registers"], "registers")
    if len(listed) > MAX_REGISTERS:
        raise MalformedError(f"{what} has more than {MAX_REGISTERS} registers")
    registers = {name: _values(listed[name]) for name in sorted(listed)}
    missing = _missing(platform, registers)
    if missing:
        raise MalformedError(missing)
    return PlatformReference(
        platform=platform,
        name=expect_str(members["name"], "a name", limit=256),
        registers=MappingProxyType(registers),
        image=_image(members["image"]) if "image" in members else None,
    )


def _image(value: object) -> ReferenceImage:
    what = "an image of the reference values"
    members = expect_object(value, what)
    expect_keys(members, what, required={"name", "version", "debug"})
    debug = members["debug"]
    if not isinstance(debug, bool):
        raise MalformedError(f"{what} does not say whether it is for debugging")
    return ReferenceImage(
        name=expect_str(members["name"], "an image's name", limit=128),
        version=expect_str(members["version"], "an image's version", limit=128),
        debug=debug,
    )


def _values(value: object) -> tuple[str, ...]:
    listed = expect_list(value, "a register's values", limit=MAX_VALUES)
    if not listed or not all(isinstance(text, str) and _HEX.fullmatch(text) for text in listed):
        raise MalformedError("a register of the reference values has no list of hexadecimal")
    return tuple(sorted({str(text) for text in listed}))
