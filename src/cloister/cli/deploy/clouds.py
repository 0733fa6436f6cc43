"""``cloister deploy azure`` and ``google``: machines of two clouds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.deploy import options

From = Annotated[
    list[str] | None,
    typer.Option("--from", help="Who may connect: a range such as 203.0.113.0/24, or any."),
]
Public = Annotated[bool, typer.Option("--public", help="Give the machine a public address.")]
Terraform = Annotated[
    Path | None,
    typer.Option("--terraform", help="Write a Terraform module into this folder instead."),
]


def azure(
    image: options.Image,
    name: options.Name,
    *,
    location: Annotated[str, typer.Option("--location", help="Such as northeurope.")],
    group: Annotated[str, typer.Option("--group", help="A resource group that exists.")],
    storage_account: Annotated[str, typer.Option("--storage-account", help="One that exists.")],
    container: Annotated[str, typer.Option("--container", help="Of the account, for the disk.")],
    gallery: Annotated[str, typer.Option("--gallery", help="A compute gallery that exists.")],
    image_version: Annotated[str, typer.Option("--image-version", help="Such as 1.0.3.")],
    network: Annotated[str, typer.Option("--network", help="A virtual network that exists.")],
    subnet: Annotated[str, typer.Option("--subnet", help="Of that network.")],
    sources: From = None,
    machine_type: Annotated[
        str,
        typer.Option("--machine-type", help="SEV-SNP: DCasv5 and later; TDX: DCesv5 and later."),
    ] = "Standard_DC4as_v5",
    public: Public = False,
    secure_boot: Annotated[
        bool, typer.Option("--secure-boot", help="Needs an image that Microsoft's keys signed.")
    ] = False,
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
    """A confidential VM of Azure, from a version of an image in a gallery.

    Exit 0 written or done, 1 a step failed, 2 something has to be changed first.
    """
    from cloister.deploy.azure import Place, azure_plan
    from cloister.deploy.terraform import azure_module

    place = Place(
        location=location,
        group=group,
        storage_account=storage_account,
        container=container,
        gallery=gallery,
        version=image_version,
        machine_type=machine_type,
        network=network,
        subnet=subnet,
        public=public,
        secure_boot=secure_boot,
    )
    options.carry_out(
        "azure",
        options.Common(image, name, port, None, debug_image, folder, start_disk),
        lambda deployment: azure_plan(deployment, place, options.allowed(deployment, sources)),
        options.Action(dry_run, apply, undo, as_json),
        terraform=terraform,
        module=lambda deployment: azure_module(
            deployment, place, options.allowed(deployment, sources)
        ),
    )


def google(
    image: options.Image,
    name: options.Name,
    *,
    project: Annotated[str, typer.Option("--project", help="A project of yours.")],
    zone: Annotated[str, typer.Option("--zone", help="Such as us-central1-a.")],
    bucket: Annotated[str, typer.Option("--bucket", help="One that exists, for the disk.")],
    kind: Annotated[
        str, typer.Option("--kind", help="snp, tdx, or vtpm: memory not protected from Google.")
    ] = "snp",
    sources: From = None,
    machine_type: Annotated[
        str,
        typer.Option(
            "--machine-type",
            help="Default: n2d-standard-4, c3-standard-4 or n2-standard-4, by kind.",
        ),
    ] = "",
    network: Annotated[str, typer.Option("--network", help="One that exists.")] = "default",
    subnet: Annotated[str, typer.Option("--subnet", help="Of that network, if it wants one.")] = "",
    public: Public = False,
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
    """A Confidential VM of Google Cloud, SEV-SNP or TDX, or a Shielded VM with a TPM alone.

    Exit 0 written or done, 1 a step failed, 2 something has to be changed first.
    """
    from cloister.deploy.google import DEFAULT_MACHINE, Kind, Place, google_plan
    from cloister.deploy.terraform import google_module
    from cloister.errors import ConfigurationError

    if kind not in list(Kind):
        raise ConfigurationError(f"--kind is one of {', '.join(Kind)}", code="deploy.options")
    chosen = Kind(kind)
    place = Place(
        project=project,
        zone=zone,
        bucket=bucket,
        machine_type=machine_type or DEFAULT_MACHINE[chosen],
        network=network,
        subnet=subnet,
        public=public,
    )
    options.carry_out(
        f"google-{chosen}",
        options.Common(image, name, port, None, debug_image, folder, start_disk),
        lambda deployment: google_plan(
            deployment, place, options.allowed(deployment, sources), chosen
        ),
        options.Action(dry_run, apply, undo, as_json),
        terraform=terraform,
        module=lambda deployment: google_module(
            deployment, place, options.allowed(deployment, sources), chosen
        ),
    )
