"""``cloister deploy aws``: Nitro enclaves, SEV-SNP instances, NitroTPM."""

from __future__ import annotations

import typer

from cloister.cli.deploy.aws_key_policy import key_policy

aws = typer.Typer(no_args_is_help=True)
aws.command("key-policy")(key_policy)
