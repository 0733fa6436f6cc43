"""``cloister deploy aws``: Nitro enclaves, SEV-SNP instances, NitroTPM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.deploy import options
from cloister.cli.deploy.aws_key_policy import key_policy
from cloister.cli.deploy.clouds import From, Terraform

aws = typer.Typer(no_args_is_help=True)
aws.command("key-policy")(key_policy)

Region = Annotated[str, typer.Option("--region", help="Such as us-east-2.")]
Bucket = Annotated[str, typer.Option("--bucket", help="An S3 bucket that exists, for the disk.")]
Vpc = Annotated[str, typer.Option("--vpc", help="Where the security group belongs.")]
Subnet = Annotated[str, typer.Option("--subnet", help="Where the instance starts.")]
MachineType = Annotated[str, typer.Option("--machine-type", help="Such as m6a.large.")]


@aws.command()
def nitro(
    image: options.Image,
    name: options.Name,
    *,
    vcpus: options.Vcpus = 2,
    memory: options.Memory = 4096,
    cid: Annotated[int, typer.Option("--cid", help="The enclave's place on the vsock.")] = 16,
    listen: Annotated[
        str, typer.Option("--listen", help="Address of the instance where people connect.")
    ] = "0.0.0.0",  # noqa: S104 - the security group says who gets here
    program: Annotated[
        Path, typer.Option("--program", help="Cloister on the instance, for the forwarder.")
    ] = Path("/usr/local/bin/cloister"),
    port: options.Port = None,
    debug_image: options.DebugImage = False,
    folder: options.Folder = None,
    dry_run: options.DryRun = False,
    apply: options.Apply = False,
    undo: options.Undo = False,
    as_json: options.Json = False,
) -> None:
    """A Nitro enclave on this instance, never in debug mode.

    Exit 0 written or done, 1 a step failed, 2 something has to be changed first.
    """
    from cloister.deploy import words
    from cloister.deploy.aws_nitro import Enclave, aws_nitro_plan

    forwarder = words.path(program, "the program")
    enclave = Enclave(vcpus=vcpus, memory_mib=memory, cid=cid, listen=listen, program=forwarder)
    options.carry_out(
        "aws-nitro",
        options.Common(image, name, port, None, debug_image, folder),
        lambda deployment: aws_nitro_plan(deployment, enclave),
        options.Action(dry_run, apply, undo, as_json),
    )


@aws.command()
def snp(
    image: options.Image,
    name: options.Name,
    *,
    region: Region,
    bucket: Bucket,
    vpc: Vpc,
    subnet: Subnet,
    machine_type: MachineType = "m6a.large",
    sources: From = None,
    port: options.Port = None,
    terraform: Terraform = None,
    start_disk: options.StartDisk = None,
    debug_image: options.DebugImage = False,
    folder: options.Folder = None,
    dry_run: options.DryRun = False,
    apply: options.Apply = False,
    undo: options.Undo = False,
    as_json: options.Json = False,
) -> None:
    """An instance under AMD SEV-SNP, with a NitroTPM that measures the image.

    Exit 0 written or done, 1 a step failed, 2 something has to be changed first.
    """
    common = options.Common(image, name, port, None, debug_image, folder, start_disk)
    action = options.Action(dry_run, apply, undo, as_json)
    place = (region, bucket, vpc, subnet, machine_type)
    _machine("snp", common, place, sources, action, terraform=terraform)


@aws.command()
def nitrotpm(
    image: options.Image,
    name: options.Name,
    *,
    region: Region,
    bucket: Bucket,
    vpc: Vpc,
    subnet: Subnet,
    machine_type: MachineType = "m6a.large",
    sources: From = None,
    port: options.Port = None,
    terraform: Terraform = None,
    start_disk: options.StartDisk = None,
    debug_image: options.DebugImage = False,
    folder: options.Folder = None,
    dry_run: options.DryRun = False,
    apply: options.Apply = False,
    undo: options.Undo = False,
    as_json: options.Json = False,
) -> None:
    """An instance measured by a NitroTPM, any machine type, GPUs too.

    Exit 0 written or done, 1 a step failed, 2 something has to be changed first.
    """
    common = options.Common(image, name, port, None, debug_image, folder, start_disk)
    action = options.Action(dry_run, apply, undo, as_json)
    place = (region, bucket, vpc, subnet, machine_type)
    _machine("nitrotpm", common, place, sources, action, terraform=terraform)


def _machine(
    protection: str,
    common: options.Common,
    place: tuple[str, str, str, str, str],
    sources: list[str] | None,
    action: options.Action,
    *,
    terraform: Path | None,
) -> None:
    from cloister.deploy.aws_machine import Place, Protection, aws_machine_plan
    from cloister.deploy.terraform import aws_module

    region, bucket, vpc, subnet, machine_type = place
    where = Place(region=region, bucket=bucket, vpc=vpc, subnet=subnet, machine_type=machine_type)
    kind = Protection(protection)
    options.carry_out(
        f"aws-{protection}",
        common,
        lambda deployment: aws_machine_plan(
            deployment, where, options.allowed(deployment, sources), kind
        ),
        action,
        terraform=terraform,
        module=lambda deployment: aws_module(
            deployment, where, options.allowed(deployment, sources), kind
        ),
    )
