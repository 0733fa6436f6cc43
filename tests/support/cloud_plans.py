"""A plan of every target, and tools that answer as the platforms' own do where all is well."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cloister.deploy import aws_machine, azure, google, qemu
from cloister.deploy.aws_nitro import Enclave, aws_nitro_plan, predicted_pcr0
from cloister.deploy.deployment import Deployment
from cloister.deploy.ingress import Filter, make_filter
from cloister.deploy.libvirt import libvirt_snp_plan, libvirt_tdx_plan
from cloister.deploy.plan import Plan
from cloister.deploy.qemu_snp import qemu_snp_plan
from cloister.deploy.qemu_tdx import QuoteService, qemu_tdx_plan
from cloister.deploy.tools import Finished
from cloister.image.eif_write import EifParts, write_eif
from support.deployments import built_for, deployment, write_image, write_record

GPU = "0000:41:00.0"
AWS_PLACE = aws_machine.Place(
    region="us-east-2",
    bucket="my-images",
    vpc="vpc-0123abcd",
    subnet="subnet-0123abcd",
    machine_type="m6a.large",
)
GOOGLE_PLACE = google.Place(
    project="my-project",
    zone="us-central1-a",
    bucket="my-images",
    machine_type="n2d-standard-4",
    subnet="default",
)
AZURE_PLACE = azure.Place(
    location="northeurope",
    group="cloister",
    storage_account="myimages",
    container="disks",
    gallery="images",
    version="1.0.0",
    network="net",
    subnet="default",
)


def allowed(what: Deployment) -> Filter:
    """People of two ranges, and the image's own peers."""
    assert what.image.network is not None
    return make_filter(what.port, ["203.0.113.0/24", "2001:db8::/32"], what.image.network.peers)


def with_enclave_image(folder: Path) -> None:
    """An image whose enclave image is a real, tiny one."""
    image = write_image(folder / "image")
    kernel, ramdisk = folder / "kernel", folder / "ramdisk"
    kernel.write_bytes(b"kernel".ljust(4096, b"\0"))
    ramdisk.write_bytes(b"ramdisk".ljust(4096, b"\0"))
    from datetime import UTC, datetime

    parts = EifParts(
        kernel=kernel,
        cmdline="reboot=k",
        ramdisks=(ramdisk, ramdisk),
        name="demo",
        version="1",
        built_at=datetime.fromtimestamp(0, UTC),
        arm64=False,
        signer=None,
    )
    (image / "image.eif").unlink()
    write_eif(parts, image / "image.eif")
    write_record(image, {"debug": False})


TARGETS = (
    *("qemu-snp", "qemu-tdx", "libvirt-snp", "libvirt-tdx"),
    *("aws-snp", "aws-nitrotpm", "aws-nitro", "azure"),
    *("google-snp", "google-tdx", "google-vtpm"),
)


PLATFORMS = {
    "qemu-snp": "sev-snp",
    "qemu-tdx": "tdx",
    "libvirt-snp": "sev-snp",
    "libvirt-tdx": "tdx",
    "aws-snp": "tpm-boot",
    "aws-nitrotpm": "nitro-tpm",
    "aws-nitro": "nitro",
    "google-snp": "gcp-snp",
    "google-tdx": "gcp-tdx",
    "google-vtpm": "gcp-vtpm",
    "azure": "azure-snp",
}
"""What an image has to be built for, by target."""


def plan_of(target: str, folder: Path) -> Plan:
    """The plan of a target, for a tiny image below `folder`: for the target's platform, unless the
    image's configuration says another one."""
    if not (folder / "image").exists():
        with_enclave_image(folder)
    what = deployment(folder)
    if what.image.platform is None:
        what = built_for(what, PLATFORMS[target])
    host = qemu.Host(
        firmware=Path("/usr/share/ovmf/OVMF.fd"),
        machine=qemu.Machine(vcpus=4, memory_mib=8192),
        network=qemu.Network.SERIAL if target.startswith("libvirt") else qemu.Network.USER,
        gpus=(GPU,) if target == "qemu-snp" else (),
    )
    match target:
        case "qemu-snp":
            return qemu_snp_plan(what, host)
        case "qemu-tdx":
            return qemu_tdx_plan(what, host, quotes=QuoteService())
        case "libvirt-snp":
            return libvirt_snp_plan(what, host)
        case "libvirt-tdx":
            return libvirt_tdx_plan(what, host, quotes=Path("/run/qgs.socket"))
        case "aws-nitro":
            return aws_nitro_plan(what, Enclave(vcpus=2, memory_mib=512))
        case "aws-snp" | "aws-nitrotpm":
            protection = aws_machine.Protection(target.removeprefix("aws-"))
            return aws_machine.aws_machine_plan(what, AWS_PLACE, allowed(what), protection)
        case "google-snp" | "google-tdx" | "google-vtpm":
            kind = google.Kind(target.removeprefix("google-"))
            return google.google_plan(what, GOOGLE_PLACE, allowed(what), kind)
    return azure.azure_plan(what, AZURE_PLACE, allowed(what))


def answers(plan: Plan) -> Mapping[tuple[str, ...], str | Finished]:
    """What the tools say, by the words with which a command begins."""
    pcr0 = ""
    if plan.target == "aws-nitro":
        pcr0 = predicted_pcr0(plan.inputs[0].path)
    enclaves = [
        {
            "EnclaveName": "web",
            "EnclaveID": "i-0-enc0",
            "ProcessID": 1,
            "EnclaveCID": 16,
            "State": "RUNNING",
            "Flags": "NONE",
            "Measurements": {"HashAlgorithm": "Sha384 { ... }", "PCR0": pcr0},
        }
    ]
    instance = {"found": "enabled" if plan.target == "aws-snp" else "v2.0"}
    security = {"securityType": "ConfidentialVM", "uefiSettings": {"vTpmEnabled": True}}
    aws = ("aws", "--region", "us-east-2", "ec2")
    machine = {"google-snp": "SEV_SNP\n", "google-tdx": "TDX\n", "google-vtpm": "True\n"}
    image = (
        "/subscriptions/01234567-89ab-cdef-0123-456789abcdef/resourceGroups/cloister/providers/"
        "Microsoft.Compute/galleries/images/images/cloister-web/versions/1.0.0"
    )
    return {
        ("qemu-system-x86_64", "--version"): "QEMU emulator version 10.1.0 (Debian)",
        ("virsh", "--version"): "11.6.0",
        ("nitro-cli", "--version"): "Nitro CLI 1.4.2",
        ("aws", "--version"): "aws-cli/2.17.1 Python/3.11.8 Linux/6.1",
        ("gcloud", "--version"): "Google Cloud SDK 528.0.0\nalpha 2025.06.20",
        ("az", "version"): "2.91.0",
        ("cat",): "Y\n",
        ("nvidia_gpu_tools.py", "--devices", GPU, "--query-cc-mode"): "CC mode is on\n",
        ("readlink",): "../../../bus/pci/drivers/vfio-pci\n",
        ("nitro-cli", "describe-eif"): json.dumps(
            {"Measurements": {"PCR0": pcr0}, "CheckCRC": True}
        ),
        ("nitro-cli", "describe-enclaves"): json.dumps(enclaves, indent=2),
        (*aws, "import-snapshot"): "import-snap-0123abcd\n",
        (*aws, "describe-import-snapshot-tasks", "--import-task-ids"): "snap-0123abcd\n",
        (*aws, "register-image"): "ami-0123abcd\n",
        (*aws, "create-security-group"): "sg-0123abcd\n",
        (*aws, "authorize-security-group-ingress"): "True\n",
        (*aws, "authorize-security-group-egress"): "True\n",
        (*aws, "run-instances"): "i-0123abcd\n",
        (*aws, "describe-instances", "--instance-ids", "i-0123abcd", "--query"): Finished(
            code=0, out=json.dumps(instance), err=""
        ),
        ("gcloud", "compute", "instances", "describe"): machine.get(plan.target, ""),
        ("az", "sig", "image-version", "create"): image + "\n",
        ("az", "vm", "show", "--resource-group", "cloister", "--name", "cloister-web", "--query"): (
            json.dumps(security)
        ),
        ("az", "vm", "show"): "10.0.0.4\n",
    }


def by_query(words: Sequence[str]) -> Finished | None:
    """Addresses, which are asked for with the same words as other things."""
    text = " ".join(words)
    if "PublicIpAddress" in text or "networkIP" in text:
        return Finished(code=0, out="10.0.0.4\n", err="")
    return None
