"""``cloister deploy``: start a built image on a platform, or write down how.

A file for each platform; their commands share the options of `cloister.cli.deploy.options`.
"""

from __future__ import annotations

import typer

from cloister.cli.deploy.aws import aws

deploy = typer.Typer(no_args_is_help=True)
deploy.add_typer(aws, name="aws", help="Amazon Web Services.")
