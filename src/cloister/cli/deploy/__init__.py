"""``cloister deploy``: start a built image on a platform, or write down how.

A file for each platform; their commands share the options of `cloister.cli.deploy.options`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.deploy.aws import aws
from cloister.cli.deploy.clouds import azure, google
from cloister.cli.deploy.qemu import libvirt, qemu

deploy = typer.Typer(no_args_is_help=True)
deploy.add_typer(qemu, name="qemu", help="A guest under QEMU, on a machine of your own.")
deploy.add_typer(libvirt, name="libvirt", help="The same guests as libvirt domains.")
deploy.add_typer(aws, name="aws", help="Amazon Web Services.")
deploy.command("azure")(azure)
deploy.command("google")(google)


@deploy.command()
def convert(
    kind: Annotated[str, typer.Argument(help="disk, vhd, google, kernel or initrd.")],
    sources: Annotated[
        list[Path], typer.Argument(help="esp.img and the disks; one raw disk; uki.efi.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
) -> None:
    """Make what a platform starts from: one disk, a cloud's own format, a UKI's kernel or initrd.

    Equal inputs give equal bytes. Exit 0 written, 1 the sources cannot be made into that.
    """
    from cloister.deploy.formats import convert as make

    make(kind, sources, out)
