"""``cloister deploy aws``: Nitro enclaves, SEV-SNP instances, NitroTPM."""

from __future__ import annotations

import typer

aws = typer.Typer(no_args_is_help=True)
