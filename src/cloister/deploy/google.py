"""A machine of Google Cloud: a Confidential VM (SEV-SNP or TDX), or a Shielded VM with a TPM alone.

Sources: Google Cloud, "Create a Confidential VM instance", "Modify Shielded VM options" and
``ShieldedInstanceConfig`` of the Compute API v1 (secure boot, vTPM, integrity monitoring; what any
machine with a UEFI image may have), "Manually import boot disks" (a gzipped tar with ``disk.raw``),
"Guest operating system features"; ``gcloud compute images create``, ``instances create`` and
``firewall-rules create`` of Google Cloud SDK 528.0.0.

The machine gets no service account, no metadata keys and no public key of anybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
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
    Convert,
    Expect,
    Look,
    Plan,
    Run,
    Step,
    Tool,
)
from cloister.image.configuration import Platform

GCLOUD: Final = Tool(
    name="gcloud", version=("--version",), minimum=(500, 0), get="cloud.google.com/sdk"
)
NOTES: Final = (
    "Never tried on Google Cloud. Flags and their values were checked against gcloud 528.0.0.",
    "The virtual TPM is Google's: that it belongs to this guest is Google's word.",
    "Where the TPM has no certificate of Google's for its key the guest ends, and says so"
    " (guest.no_certificate).",
)
UNPROTECTED: Final = (
    "MEMORY IS NOT PROTECTED FROM GOOGLE on this machine: no confidential processor encrypts it,"
    " and prompts, answers and weights lie in it. The TPM measures what started, which is Google's"
    " word too. Clients refuse it unless their policy accepts memory_confidentiality = none."
)
"""Of a Shielded VM, before all other notes."""


class Kind(StrEnum):
    """What protects the guest's memory from Google: a processor, or nothing (`VTPM`)."""

    SNP = "snp"
    TDX = "tdx"
    VTPM = "vtpm"


TYPE: Final = {Kind.SNP: "SEV_SNP", Kind.TDX: "TDX"}
"""Google's own words, for those that it calls confidential."""
PLATFORM: Final = {
    Kind.SNP: Platform.GCP_SNP,
    Kind.TDX: Platform.GCP_TDX,
    Kind.VTPM: Platform.GCP_VTPM,
}
"""What an image has to be built for, to prove itself on such a machine."""
DEFAULT_MACHINE: Final = {
    Kind.SNP: "n2d-standard-4",
    Kind.TDX: "c3-standard-4",
    Kind.VTPM: "n2-standard-4",
}


def guest_features(kind: Kind) -> tuple[str, ...]:
    """What an image says it can do: start by UEFI, drive Google's card, run as confidential."""
    confidential = (f"{TYPE[kind]}_CAPABLE",) if kind in TYPE else ()
    return ("UEFI_COMPATIBLE", "GVNIC", *confidential)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in Google Cloud.

    Raises:
        ConfigurationError: a word cannot be used.
    """

    project: str
    zone: str
    bucket: str
    """Holds the disk until it is an image."""
    machine_type: str
    network: str = "default"
    subnet: str = ""
    public: bool = False
    """Whether the machine gets a public address."""

    def __post_init__(self) -> None:
        """Check every word."""
        words.PROJECT.check(self.project)
        words.REGION.check(self.zone)
        words.BUCKET.check(self.bucket)
        words.MACHINE_TYPE.check(self.machine_type)
        words.NETWORK.check(self.network)
        if self.subnet:
            words.NETWORK.check(self.subnet)


def google_plan(deployment: Deployment, place: Place, allowed: Filter, kind: Kind) -> Plan:
    """The plan: disk, image, firewall, machine.

    Raises:
        ConfigurationError: the image lacks a part, was built for another platform, or a word cannot
            be used.
    """
    deployment.image.require_platform(PLATFORM[kind])
    make = _Steps(deployment, place, allowed, kind)
    return Plan(
        target=f"google-{kind}",
        name=deployment.name,
        folder=deployment.folder,
        tools=(GCLOUD,),
        inputs=inputs(deployment),
        steps=(*make.image(), *make.start_disk(), *make.firewall(), *make.machine()),
        notes=NOTES if kind in TYPE else (UNPROTECTED, *NOTES),
    )


class _Steps:
    """The steps of one plan, in groups."""

    def __init__(self, deployment: Deployment, place: Place, allowed: Filter, kind: Kind) -> None:
        self._deployment = deployment
        self._place = place
        self._allowed = allowed
        self._kind = kind
        self._name = resource_name(deployment)
        self._image = image_name(deployment)

    def image(self) -> tuple[Step, ...]:
        disk = disk_step(self._deployment)
        features = ",".join(guest_features(self._kind))
        return (
            disk,
            *self._imported(
                "",
                "it",
                disk.target,
                self._image,
                *(f"--guest-os-features={features}", "--architecture=X86_64"),
            ),
        )

    def start_disk(self) -> tuple[Step, ...]:
        """An image of it; the disk itself comes and goes with the machine."""
        start, name = self._deployment.required_start_disk(), start_name(self._deployment)
        return self._imported("start-", "the start disk", start.path, name, "--architecture=X86_64")

    def _imported(
        self, prefix: str, what: str, source: Path, name: str, *flags: str
    ) -> tuple[Step, ...]:
        """An image of a disk called `what`; `prefix` is that of steps and files."""
        packed = self._deployment.folder / f"{'start' if prefix else 'disk'}.tar.gz"
        address = f"gs://{self._place.bucket}/{name}.tar.gz"
        return (
            Convert(
                id=f"{prefix}pack",
                says=f"Pack {what} as Google takes it.",
                kind="google",
                sources=(source,),
                target=packed,
            ),
            Run(
                id=f"{prefix}upload",
                says=f"Upload {what}.",
                argv=self._gcloud("storage", "cp", str(packed), address),
                undo=self._gcloud("storage", "rm", address),
            ),
            Run(
                id=f"{prefix}image",
                says="Make an image of it."
                if prefix
                else "Make an image of it; this takes minutes.",
                argv=self._gcloud(
                    *("compute", "images", "create", name, f"--source-uri={address}"), *flags
                ),
                look=self._exists("images", name, "READY"),
                undo=self._gcloud("compute", "images", "delete", name),
            ),
        )

    def firewall(self) -> tuple[Step, ...]:
        allowed = self._allowed
        steps: list[Step] = [
            self._rule(
                "in",
                "Let in who was named, on the worker's port.",
                *("--direction=INGRESS", "--action=ALLOW", "--priority=900"),
                f"--rules=tcp:{allowed.port}",
                f"--source-ranges={','.join(allowed.sources)}",
            ),
            self._rule(
                "no-in",
                "Let nobody else in, whatever the network's other rules say.",
                *("--direction=INGRESS", "--action=DENY", "--priority=901"),
                *("--rules=all", "--source-ranges=0.0.0.0/0"),
            ),
        ]
        steps += [
            self._rule(
                f"out-{number}",
                "Let out what was named.",
                *("--direction=EGRESS", "--action=ALLOW", "--priority=900"),
                f"--rules=tcp:{peer.port}",
                f"--destination-ranges={peer.range}",
            )
            for number, peer in enumerate(allowed.peers)
        ]
        steps.append(
            self._rule(
                "no-out",
                "Let nothing else out.",
                *("--direction=EGRESS", "--action=DENY", "--priority=901"),
                *("--rules=all", "--destination-ranges=0.0.0.0/0"),
            )
        )
        return tuple(steps)

    def machine(self) -> tuple[Step, ...]:
        place = self._place
        card = f"network={place.network},nic-type=GVNIC"
        if place.subnet:
            card += f",subnet={place.subnet}"
        if self._deployment.address:
            card += f",private-network-ip={self._deployment.address}"
        if not place.public:
            card += ",no-address"
        zone = f"--zone={place.zone}"
        one = ("compute", "instances", "describe", self._name, zone)
        address = (
            "networkInterfaces[0].accessConfigs[0].natIP"
            if place.public
            else "networkInterfaces[0].networkIP"
        )
        return (
            Run(
                id="machine",
                says="Start the machine.",
                argv=self._gcloud(
                    *("compute", "instances", "create", self._name, zone),
                    f"--machine-type={place.machine_type}",
                    *self._confidential(),
                    *(f"--image={self._image}", f"--image-project={place.project}"),
                    # The smallest balanced disk has 10 GB; the guest finds it by its beginning.
                    f"--create-disk=image={start_name(self._deployment)}"
                    f",image-project={place.project},type=pd-balanced,size=10GB"
                    ",boot=no,auto-delete=yes",
                    f"--network-interface={card}",
                    *("--shielded-vtpm", "--shielded-integrity-monitoring"),
                    # Secure Boot there trusts Microsoft's keys unless the image brings its own;
                    # clients verify what was measured, not who signed it.
                    "--no-shielded-secure-boot",
                    *("--no-service-account", "--no-scopes", f"--tags={self._name}"),
                ),
                look=self._exists("instances", self._name, "RUNNING"),
                undo=self._gcloud("compute", "instances", "delete", self._name, zone),
            ),
            self._asked(one),
            Run(
                id="address",
                says="Ask for its address.",
                argv=self._gcloud(*one, f"--format=value({address})"),
                capture=Capture(name="address", pattern=IPV4),
            ),
        )

    def _confidential(self) -> tuple[str, ...]:
        """Such a machine cannot be moved while it runs; Google moves others as it likes."""
        if self._kind not in TYPE:
            return ()
        return (
            f"--confidential-compute-type={TYPE[self._kind]}",
            "--maintenance-policy=TERMINATE",
        )

    def _asked(self, describe: tuple[str, ...]) -> Run:
        """The step that asks for what the machine became."""
        if self._kind not in TYPE:
            return Run(
                id="measured",
                says="Ask Google whether it has a TPM. Nothing protects its memory from Google.",
                argv=self._gcloud(*describe, "--format=value(shieldedInstanceConfig.enableVtpm)"),
                expects=(Expect(says="it says True", equals=r"\ATrue\s*\Z"),),
            )
        word = TYPE[self._kind]
        return Run(
            id="protected",
            says="Ask Google whether it is protected as it was asked for.",
            argv=self._gcloud(
                *describe, "--format=value(confidentialInstanceConfig.confidentialInstanceType)"
            ),
            expects=(Expect(says=f"its type is {word}", equals=rf"\A{word}\s*\Z"),),
        )

    def _rule(self, name: str, says: str, *flags: str) -> Run:
        rule = f"{self._name}-{name}"
        return Run(
            id=f"firewall-{name}",
            says=says,
            argv=self._gcloud(
                *("compute", "firewall-rules", "create", rule),
                *(f"--network={self._place.network}", f"--target-tags={self._name}", *flags),
            ),
            look=Look(
                argv=self._gcloud(
                    *("compute", "firewall-rules", "list", f"--filter=name={rule}"),
                    "--format=value(name)",
                ),
                finds=rule,
            ),
            undo=self._gcloud("compute", "firewall-rules", "delete", rule),
        )

    def _exists(self, kind: str, name: str, state: str) -> Look:
        return Look(
            argv=self._gcloud(
                *("compute", kind, "list", f"--filter=name={name}", "--format=value(status)")
            ),
            finds=state,
        )

    def _gcloud(self, *words_: str) -> tuple[Argument, ...]:
        return ("gcloud", *words_, f"--project={self._place.project}", "--quiet")
