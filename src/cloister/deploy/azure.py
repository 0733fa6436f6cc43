"""An Azure confidential VM, from a version of an image in a gallery.

Sources: Microsoft, "Create a custom image for Azure confidential VMs", "Prepare … VHD … to upload";
Azure CLI 2.91.0: ``az storage blob upload``, ``az sig image-definition create``, ``az sig
image-version create``, ``az network nsg``, ``az vm create``.

Authorisation is the signed-in person's own (``--auth-mode login``): no account keys and no signed
addresses exist that a log could hold. The image is *specialized*: it takes no user, no password and
no agent. What is encrypted of the disk is the virtual TPM's state; everything else on it is public,
and checked by dm-verity.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.deploy import words
from cloister.deploy.cloud import (
    IPV4,
    disk_step,
    image_name,
    inputs,
    resource_name,
    start_name,
)
from cloister.deploy.deployment import Deployment
from cloister.deploy.ingress import Filter
from cloister.deploy.plan import (
    Argument,
    Capture,
    Captured,
    Convert,
    Expect,
    Look,
    Plan,
    Run,
    Step,
    Tool,
)
from cloister.image.configuration import Platform

AZ: Final = Tool(
    name="az",
    version=("version", "--query", '"azure-cli"', "--output", "tsv"),
    minimum=(2, 60),
    get="learn.microsoft.com/cli/azure",
)
_IMAGE: Final = Captured(name="image")
_IMAGE_ID: Final = (
    "/subscriptions/[0-9a-f-]{36}/resourceGroups/[A-Za-z0-9_.-]+"
    "/providers/Microsoft.Compute/galleries/[A-Za-z0-9_.-]+/images/[A-Za-z0-9_.-]+"
    "/versions/[0-9.]+"
)
NOTES: Final = (
    "Never tried on Azure. Flags were checked against Azure CLI 2.91.0.",
    "That a specialized image starts as a confidential VM is Microsoft's documentation's word.",
    "The guest asks Azure's metadata service, which no security group reaches; the image's own"
    " rules name it.",
    "The paravisor between hardware and guest is Azure's; evidence names it, and it is trusted.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in Azure; group, storage account, container and gallery exist already.

    Raises:
        ConfigurationError: a word cannot be used.
    """

    location: str
    group: str
    storage_account: str
    container: str
    gallery: str
    version: str
    """Of the image in the gallery."""
    machine_type: str = "Standard_DC4as_v5"
    network: str
    subnet: str
    public: bool = False
    secure_boot: bool = False
    """Azure trusts Microsoft's keys there: an image signed by others does not start with it."""

    def __post_init__(self) -> None:
        """Check every word."""
        words.REGION.check(self.location)
        words.RESOURCE_GROUP.check(self.group)
        words.STORAGE_ACCOUNT.check(self.storage_account)
        words.CONTAINER.check(self.container)
        words.GALLERY.check(self.gallery)
        words.VERSION.check(self.version)
        words.MACHINE_TYPE.check(self.machine_type)
        words.NETWORK.check(self.network)
        words.NETWORK.check(self.subnet)


_KIND: Final = re.compile(r"Standard_(?:DC|EC|NCC)[0-9]+([ae])[a-z]*_")
_PLATFORMS: Final = {"a": (Platform.AZURE_SNP,), "e": (Platform.AZURE_TDX,)}


def platforms_of(machine_type: str) -> tuple[Platform, ...]:
    """What an image may be built for, by the letter that names the processor's maker; either where
    a type is of no form that is known here."""
    found = _KIND.match(machine_type)
    return (Platform.AZURE_SNP, Platform.AZURE_TDX) if found is None else _PLATFORMS[found[1]]


def azure_plan(deployment: Deployment, place: Place, allowed: Filter) -> Plan:
    """The plan: fixed VHD, page blob, image version, security group, machine.

    Raises:
        ConfigurationError: the image lacks a part, was built for another platform, or a word cannot
            be used.
    """
    deployment.image.require_platform(*platforms_of(place.machine_type))
    make = _Steps(deployment, place, allowed)
    return Plan(
        target="azure",
        name=deployment.name,
        folder=deployment.folder,
        tools=(AZ,),
        inputs=inputs(deployment),
        steps=(*make.blob(), *make.image(), *make.start_disk(), *make.network(), *make.machine()),
        notes=NOTES,
    )


class _Steps:
    """The steps of one plan, in groups."""

    def __init__(self, deployment: Deployment, place: Place, allowed: Filter) -> None:
        self._deployment = deployment
        self._place = place
        self._allowed = allowed
        self._name = resource_name(deployment)
        self._blob = f"{image_name(deployment)}.vhd"
        self._start = start_name(deployment)

    def blob(self) -> tuple[Step, ...]:
        disk = disk_step(self._deployment)
        return (disk, *self._uploaded("", "it", disk.target, "disk.vhd", self._blob))

    def start_disk(self) -> tuple[Step, ...]:
        """A managed disk of it, which nobody can export."""
        start, group = self._deployment.required_start_disk(), self._place.group
        one = ("--resource-group", group, "--name", self._start)
        found = f"[?name=='{self._start}'].provisioningState | [0]"
        return (
            *self._uploaded(
                "start-", "the start disk", start.path, "start.vhd", f"{self._start}.vhd"
            ),
            Run(
                id="start-disk",
                says="Make a disk of it.",
                argv=self._az(
                    *("disk", "create", *one, "--location", self._place.location),
                    *("--source", self._uri(f"{self._start}.vhd"), "--sku", "StandardSSD_LRS"),
                    *("--network-access-policy", "DenyAll", "--output", "none"),
                ),
                look=Look(
                    argv=self._az(
                        *("disk", "list", "--resource-group", group),
                        *("--query", found, "--output", "tsv"),
                    ),
                    finds="Succeeded",
                ),
                undo=self._az("disk", "delete", *one, "--yes"),
            ),
        )

    def _uploaded(
        self, prefix: str, what: str, source: Path, file: str, name: str
    ) -> tuple[Step, ...]:
        """Steps that make a disk a fixed VHD, and a page blob called `name`."""
        place, vhd = self._place, self._deployment.folder / file
        blob = (
            *("--account-name", place.storage_account, "--container-name", place.container),
            *("--name", name, "--auth-mode", "login"),
        )
        return (
            Convert(
                id=f"{prefix}vhd",
                says=f"Make {what} a fixed VHD.",
                kind="vhd",
                sources=(source,),
                target=vhd,
            ),
            Run(
                id=f"{prefix}upload",
                says=f"Upload {what} as a page blob.",
                argv=self._az(
                    *("storage", "blob", "upload", *blob, "--file", str(vhd), "--type", "page"),
                    *("--overwrite", "true", "--no-progress", "--output", "none"),
                ),
                undo=self._az("storage", "blob", "delete", *blob, "--output", "none"),
            ),
        )

    def _uri(self, blob: str) -> str:
        place = self._place
        return f"https://{place.storage_account}.blob.core.windows.net/{place.container}/{blob}"

    def image(self) -> tuple[Step, ...]:
        place = self._place
        definition = (
            *("--resource-group", place.group, "--gallery-name", place.gallery),
            *("--gallery-image-definition", self._name),
        )
        version = (*definition, "--gallery-image-version", place.version)
        found = "[?name=='{}' && provisioningState=='Succeeded'].id | [0]"
        return (
            Run(
                id="definition",
                says="Say in the gallery what kind of image it is.",
                argv=self._az(
                    *("sig", "image-definition", "create", *definition),
                    *("--location", place.location, "--publisher", "cloister"),
                    *("--offer", "cloister", "--sku", self._name, "--os-type", "Linux"),
                    *("--os-state", "Specialized", "--hyper-v-generation", "V2"),
                    *("--architecture", "x64"),
                    *("--features", "SecurityType=ConfidentialVmSupported", "--output", "none"),
                ),
                undo=self._az("sig", "image-definition", "delete", *definition),
            ),
            Run(
                id="image",
                says="Make a version of it from the blob; this takes minutes.",
                argv=self._az(
                    *("sig", "image-version", "create", *version, "--location", place.location),
                    *(
                        "--os-vhd-uri",
                        self._uri(self._blob),
                        "--os-vhd-storage-account",
                        place.storage_account,
                    ),
                    *("--query", "id", "--output", "tsv"),
                ),
                capture=Capture(name="image", pattern=_IMAGE_ID),
                look=Look(
                    argv=self._az(
                        *("sig", "image-version", "list", *definition),
                        *("--query", found.format(place.version), "--output", "tsv"),
                    )
                ),
                undo=self._az("sig", "image-version", "delete", *version),
            ),
        )

    def network(self) -> tuple[Step, ...]:
        group = ("--resource-group", self._place.group)
        allowed = self._allowed
        everything = (
            *("--protocol", "*", "--source-address-prefixes", "*", "--source-port-ranges", "*"),
            *("--destination-address-prefixes", "*", "--destination-port-ranges", "*"),
        )
        steps: list[Step] = [
            Run(
                id="nsg",
                says="Make a network security group.",
                argv=self._az(
                    *("network", "nsg", "create", *group, "--name", self._name),
                    *("--location", self._place.location, "--output", "none"),
                ),
                undo=self._az("network", "nsg", "delete", *group, "--name", self._name),
            ),
            self._rule(
                "in",
                "Let in who was named, on the worker's port.",
                *("--priority", "100", "--direction", "Inbound", "--access", "Allow"),
                *("--protocol", "Tcp", "--destination-port-ranges", str(allowed.port)),
                *("--source-address-prefixes", *allowed.sources),
            ),
            self._rule(
                "no-in",
                "Let nobody else in, neighbours of the network included.",
                *("--priority", "4000", "--direction", "Inbound", "--access", "Deny"),
                *everything,
            ),
        ]
        steps += [
            self._rule(
                f"out-{number}",
                "Let out what was named.",
                *("--priority", str(100 + number), "--direction", "Outbound"),
                *("--access", "Allow", "--protocol", "Tcp"),
                *("--destination-address-prefixes", peer.range),
                *("--destination-port-ranges", str(peer.port)),
            )
            for number, peer in enumerate(allowed.peers)
        ]
        steps.append(
            self._rule(
                "no-out",
                "Let nothing else out.",
                *("--priority", "4000", "--direction", "Outbound", "--access", "Deny"),
                *everything,
            )
        )
        return tuple(steps)

    def machine(self) -> tuple[Step, ...]:
        place = self._place
        one = ("--resource-group", place.group, "--name", self._name)
        found = f"[?name=='{self._name}'].provisioningState | [0]"
        addresses = "publicIps" if place.public else "privateIps"
        address = self._deployment.address  # the guest asks nobody for one
        return (
            *self._public_address(),
            Run(
                id="machine",
                says="Start the machine.",
                argv=self._az(
                    *("vm", "create", *one, "--location", place.location),
                    *("--image", _IMAGE, "--specialized", "true", "--size", place.machine_type),
                    *("--security-type", "ConfidentialVM"),
                    *("--os-disk-security-encryption-type", "VMGuestStateOnly"),
                    *("--enable-vtpm", "true"),
                    *("--enable-secure-boot", "true" if place.secure_boot else "false"),
                    *("--vnet-name", place.network, "--subnet", place.subnet),
                    *("--nsg", self._name),
                    *(("--private-ip-address", address) if address else ()),
                    *("--public-ip-address", f"{self._name}-ip" if place.public else ""),
                    *("--attach-data-disks", self._start),
                    *("--nic-delete-option", "Delete", "--os-disk-delete-option", "Delete"),
                    *("--output", "none"),
                ),
                look=Look(
                    argv=self._az(
                        *("vm", "list", "--resource-group", place.group),
                        *("--query", found, "--output", "tsv"),
                    ),
                    finds="Succeeded",
                ),
                undo=self._az("vm", "delete", *one, "--yes"),
            ),
            Run(
                id="protected",
                says="Ask Azure whether it is protected as it was asked for.",
                argv=self._az(
                    *("vm", "show", *one, "--query", "securityProfile", "--output", "json")
                ),
                expects=(
                    Expect(
                        says="its securityType is ConfidentialVM",
                        member=("securityType",),
                        equals="ConfidentialVM",
                    ),
                    Expect(
                        says="it has a virtual TPM",
                        member=("uefiSettings", "vTpmEnabled"),
                        equals="true",
                    ),
                ),
            ),
            Run(
                id="address",
                says="Ask for its address.",
                argv=self._az(
                    *("vm", "show", *one, "--show-details", "--query", addresses),
                    *("--output", "tsv"),
                ),
                capture=Capture(name="address", pattern=IPV4),
            ),
        )

    def _public_address(self) -> tuple[Step, ...]:
        if not self._place.public:
            return ()
        one = ("--resource-group", self._place.group, "--name", f"{self._name}-ip")
        return (
            Run(
                id="public-address",
                says="Take a public address.",
                argv=self._az(
                    *("network", "public-ip", "create", *one, "--sku", "Standard"),
                    *("--location", self._place.location, "--output", "none"),
                ),
                undo=self._az("network", "public-ip", "delete", *one),
            ),
        )

    def _rule(self, name: str, says: str, *flags: str) -> Run:
        group = ("--resource-group", self._place.group, "--nsg-name", self._name)
        return Run(
            id=f"nsg-{name}",
            says=says,
            argv=self._az(
                *("network", "nsg", "rule", "create", *group, "--name", name, *flags),
                *("--output", "none"),
            ),
        )

    def _az(self, *words_: Argument) -> tuple[Argument, ...]:
        return ("az", *words_, "--only-show-errors")
