"""Kernel, initrd and command line apart, for a guest that QEMU starts with ``-kernel``.

SEV-SNP's kernel hashes cover these three, each by itself. They are taken out of the image's UKI by
what `cloister image measure` predicts from (`cloister.image.direct_boot`), so that the guest's
launch digest is the predicted one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cloister.deploy.deployment import Deployment
from cloister.deploy.plan import Convert
from cloister.errors import ConfigurationError
from cloister.image.authenticode import MAX_PE_BYTES
from cloister.image.direct_boot import DirectBoot, direct_boot
from cloister.image.stub import parse_uki


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelParts:
    """Where the parts will lie, and the steps that put them there."""

    kernel: Path
    initrd: Path
    command_line: str
    steps: tuple[Convert, ...]


def kernel_parts(deployment: Deployment) -> KernelParts:
    """The parts of the deployment's UKI.

    Raises:
        ConfigurationError: there is no UKI, or it is no longer the one that was hashed (code
            ``deploy.changed``).
        MalformedError: it does not decode.
        UnsupportedError: its command line does not name every disk (code ``image.unpinned``).
    """
    uki = deployment.image.file("uki")
    data = _read(uki.path)
    if hashlib.sha256(data).hexdigest() != uki.sha256:
        raise ConfigurationError(
            f"{uki.path} changed while the plan was made", code="deploy.changed"
        )
    kernel, initrd = (deployment.folder / name for name in ("kernel", "initrd"))
    steps = tuple(
        Convert(
            id=target.name,
            says=f"Take the {target.name} out of the UKI.",
            kind=target.name,
            sources=(uki.path,),
            target=target,
        )
        for target in (kernel, initrd)
    )
    return KernelParts(
        kernel=kernel,
        initrd=initrd,
        command_line=direct_boot(parse_uki(data)).command_line,
        steps=steps,
    )


def read_parts(uki: Path) -> DirectBoot:
    """The parts of a UKI.

    Raises:
        ConfigurationError: it cannot be read (code ``deploy.image``).
        MalformedError, UnsupportedError: as for `kernel_parts`.
    """
    return direct_boot(parse_uki(_read(uki)))


def _read(uki: Path) -> bytes:
    try:
        with uki.open("rb") as opened:
            return opened.read(MAX_PE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{uki} cannot be read: {error.strerror}", code="deploy.image"
        ) from None
