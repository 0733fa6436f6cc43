"""What the recipes of all clouds share: names, the one disk, how an address looks."""

from __future__ import annotations

from typing import Final

from cloister.deploy.deployment import Deployment
from cloister.deploy.plan import Convert, Input
from cloister.errors import ConfigurationError

IPV4: Final = r"[0-9]{1,3}(\.[0-9]{1,3}){3}"
"""Of an address that a cloud's tool prints; Python and ``grep -E`` read it alike."""


NO_CERTIFICATE: Final = (
    "An image so far makes its evidence with a key of the machine's TPM, which somebody has to"
    " certify; {}"
)


def resource_name(deployment: Deployment) -> str:
    """How the machine, its filter and what belongs to them are called."""
    return f"cloister-{deployment.name}"


def image_name(deployment: Deployment) -> str:
    """How the uploaded disk and what is made of it are called: another image, another name."""
    return f"{resource_name(deployment)}-{deployment.image.short}"


def start_name(deployment: Deployment) -> str:
    """How the uploaded start disk and what is made of it are called: other content, another name.

    Raises:
        ConfigurationError: there is none (`Deployment.required_start_disk`).
    """
    return f"{resource_name(deployment)}-start-{deployment.required_start_disk().sha256[:12]}"


def inputs(deployment: Deployment) -> tuple[Input, ...]:
    """What a cloud's plan uses: the parts of the one disk, and the start disk.

    Raises:
        ConfigurationError: there is none, or the image has no card (code ``deploy.network``).
    """
    network = deployment.image.network
    if network is not None and not network.card:
        raise ConfigurationError(
            "this image has no network card, and a cloud has nothing else to reach it by",
            code="deploy.network",
        )
    return (*deployment.image.boot_disk_parts(), deployment.required_start_disk())


def disk_step(deployment: Deployment) -> Convert:
    """The step that makes one disk, ``disk.raw``, out of the image's parts."""
    return Convert(
        id="disk",
        says="Make one disk out of the image's parts.",
        kind="disk",
        sources=tuple(one.path for one in deployment.image.boot_disk_parts()),
        target=deployment.folder / "disk.raw",
    )
