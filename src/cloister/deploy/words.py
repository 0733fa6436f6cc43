"""What a deployment's words may look like, each kind with one pattern.

A name that reaches a cloud's tool, an XML document, a Terraform module or a person's shell is
refused here unless it is plainly a name: nothing begins with a hyphen, and nothing holds a space,
a quote, a comma, a dollar sign or a control character. Commands are argument lists and documents
are written by encoders as well; this is the first of two locks.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.errors import ConfigurationError

CODE: Final = "deploy.word"


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A kind of word: how it is called, its pattern, and the pattern in words."""

    what: str
    pattern: re.Pattern[str]
    says: str

    def check(self, text: str) -> str:
        """Return `text` if it is such a word.

        Raises:
            ConfigurationError: it is not (code ``deploy.word``). The message does not repeat it.
        """
        if self.pattern.fullmatch(text) is None:
            raise ConfigurationError(f"{self.what} has to be {self.says}", code=CODE)
        return text


def _word(what: str, pattern: str, says: str) -> Word:
    return Word(what=what, pattern=re.compile(pattern, re.ASCII), says=says)


NAME: Final = _word(
    "a deployment's name",
    r"[a-z](?:[a-z0-9-]{0,28}[a-z0-9])?",
    "at most 30 lower-case letters, digits and hyphens, beginning with a letter and not ending "
    "with a hyphen",
)
REGION: Final = _word(
    "a region or zone",
    r"(?=.{1,40}$)[a-z][a-z0-9]*(?:-[a-z0-9]+)*",
    "at most 40 lower-case letters and digits with single hyphens between them",
)
MACHINE_TYPE: Final = _word(
    "a machine type",
    r"(?=.{1,60}$)[A-Za-z][A-Za-z0-9]*(?:[._-][A-Za-z0-9]+)*",
    "at most 60 letters and digits with single dots, hyphens or underscores between them",
)
RESOURCE_GROUP: Final = _word(
    "an Azure resource group",
    r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,88}[A-Za-z0-9_])?",
    "at most 90 letters, digits, hyphens and underscores",
)
GALLERY: Final = _word(
    "an Azure image gallery",
    r"[A-Za-z0-9](?:[A-Za-z0-9_.]{0,78}[A-Za-z0-9])?",
    "at most 80 letters, digits, dots and underscores",
)
STORAGE_ACCOUNT: Final = _word(
    "an Azure storage account", r"[a-z0-9]{3,24}", "3 to 24 lower-case letters and digits"
)
CONTAINER: Final = _word(
    "an Azure blob container",
    r"(?=.{3,63}$)[a-z0-9]+(?:-[a-z0-9]+)*",
    "3 to 63 lower-case letters and digits with single hyphens between them",
)
BUCKET: Final = _word(
    "a bucket",
    r"(?=.{3,63}$)[a-z0-9]+(?:[-.][a-z0-9]+)*",
    "3 to 63 lower-case letters and digits with single hyphens or dots between them",
)
PROJECT: Final = _word(
    "a Google Cloud project",
    r"[a-z][a-z0-9-]{4,28}[a-z0-9]",
    "6 to 30 lower-case letters, digits and hyphens, beginning with a letter",
)
NETWORK: Final = _word(
    "a network or subnet",
    r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,78}[A-Za-z0-9_])?",
    "at most 80 letters, digits, dots, hyphens and underscores",
)
SUBNET_ID: Final = _word(
    "an AWS subnet", r"subnet-[0-9a-f]{8,17}", "subnet- and 8 to 17 hexadecimal digits"
)
VPC_ID: Final = _word("an AWS VPC", r"vpc-[0-9a-f]{8,17}", "vpc- and 8 to 17 hexadecimal digits")
VERSION: Final = _word(
    "an image version",
    r"(?:0|[1-9]\d{0,4})\.(?:0|[1-9]\d{0,4})\.(?:0|[1-9]\d{0,4})",
    "three numbers with dots between them, such as 1.0.3",
)
CPU_MODEL: Final = _word(
    "a CPU model of QEMU",
    r"EPYC(?:-[A-Z][a-z]+)?(?:-v\d{1,2})?",
    "one of AMD's server models, such as EPYC-v4 or EPYC-Genoa-v1",
)
INTERFACE: Final = _word(
    "a network interface", r"[a-z][a-z0-9_-]{0,14}", "at most 15 letters, digits and hyphens"
)
PCI_ADDRESS: Final = _word(
    "a PCI address",
    r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]",
    "such as 0000:41:00.0, in lower-case hexadecimal",
)
DIGEST: Final = _word(
    "a manifest's digest", r"(?:sha256:)?[0-9a-f]{64}", "64 lower-case hexadecimal digits"
)


def digest(text: str) -> bytes:
    """The 32 bytes of a SHA-256, written with or without ``sha256:``."""
    return bytes.fromhex(DIGEST.check(text).removeprefix("sha256:"))


def path(given: Path, what: str) -> Path:
    """Return `given`, absolute, if it can stand in commands and documents.

    Spaces and other alphabets are welcome; control characters, quotes, backslashes, dollar signs
    and commas are not: QEMU, libvirt, Terraform and shells read meaning into them, and clouds'
    tools into what stands for several files, brackets among it.

    Raises:
        ConfigurationError: it cannot (code ``deploy.path``).
    """
    try:
        absolute = given.expanduser().absolute()
    except RuntimeError:
        raise ConfigurationError(
            f"the path of {what} begins with somebody who has no home here", code="deploy.path"
        ) from None
    text = str(absolute)
    if not text.isprintable() or any(sign in text for sign in "\"'`\\$%,<>&|;*?[]"):
        raise ConfigurationError(
            f"the path of {what} holds a character that commands or documents read meaning into; "
            "rename it",
            code="deploy.path",
        )
    return absolute


def check_path(given: Path, what: str) -> None:
    """Refuse a path that is not as `path` returns it: a command may run in another folder.

    Raises:
        ConfigurationError: it is relative, or cannot stand in commands (code ``deploy.path``).
    """
    if path(given, what) != given:
        raise ConfigurationError(f"the path of {what} has to be absolute", code="deploy.path")


def port(number: int) -> int:
    """Return a TCP port.

    Raises:
        ConfigurationError: it is none (code ``deploy.port``).
    """
    if not 1 <= number <= 65535:
        raise ConfigurationError("a port is a number from 1 to 65535", code="deploy.port")
    return number


def source_range(text: str) -> str:
    """An address range in its own spelling, such as ``203.0.113.0/24``; ``any`` is everybody.

    A zone (``fe80::1%eth0``) is refused: it means something on one machine only, and Python lets
    any character stand in it.

    Raises:
        ConfigurationError: it is none (code ``deploy.range``).
    """
    if text == "any":
        return "0.0.0.0/0"
    try:
        if "%" in text:
            raise ValueError
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ConfigurationError(
            "who may connect is a range such as 203.0.113.0/24, without bits behind the prefix, "
            "or the word any",
            code="deploy.range",
        ) from None


def guest_address(text: str) -> str:
    """One IPv4 address.

    Raises:
        ConfigurationError: it is none (code ``deploy.address``).
    """
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise ConfigurationError(
            "a guest's address is one of IPv4, such as 10.0.2.15", code="deploy.address"
        ) from None
