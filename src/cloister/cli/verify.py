"""``cloister verify URL``: fetch one report, check it, show every claim."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.asking import Development, Kit, Policy, Proxy, References, Root, Url, trust_from
from cloister.cli.exits import exit_code
from cloister.errors import AppraisalError, UnsupportedError

if TYPE_CHECKING:
    from cloister.strictjson import JsonObject
    from cloister.verifier.result import AttestationResult


def verify(
    url: Url,
    *,
    kit: Kit = None,
    policy: Policy = None,
    reference_values: References = None,
    root: Root = None,
    development: Development = False,
    proxy: Proxy = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an EAT Attestation Result (EAR).")
    ] = False,
) -> None:
    """Check a worker; exit 0 affirmed, 1 refused, 2 usage, 3 cannot decide, 4 unreachable."""
    from cloister.client.connect import open_connection

    trust = trust_from(kit, policy, reference_values, root, development=development)
    with open_connection(url, verifier=trust, proxy=proxy) as connection:
        result = connection.verify()
        if as_json:
            document = encode(result, connection.link.attestation.nonce)
            typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
        else:
            from rich.console import Console

            from cloister.cli.asking import whole

            console = Console(highlight=False)
            for part in whole(result):
                console.print(part)
    try:
        result.require_affirming()
    except (AppraisalError, UnsupportedError) as error:
        raise typer.Exit(exit_code(error)) from None


def encode(result: AttestationResult, nonce: bytes | None) -> JsonObject:
    """The result as an EAR, unsigned."""
    from cloister.verifier.ear import to_ear

    return to_ear(result, build=f"cloister {version('cloister')}", nonce=nonce)
