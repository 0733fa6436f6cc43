"""``cloister proxy URL``: a local OpenAI endpoint that checks a worker and seals to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.asking import (
    Development,
    Kit,
    Policy,
    Proxy,
    References,
    Root,
    Url,
    trust_from,
)
from cloister.cli.exits import exit_code
from cloister.cli.manifest_pins import (
    ManifestDigest,
    ManifestFile,
    ManifestMemory,
    ManifestName,
    MinVersion,
    Signer,
    SigstoreRoot,
    UnsafeUnsigned,
    manifest_from,
)
from cloister.errors import AppraisalError, ConfigurationError, UnsupportedError

if TYPE_CHECKING:
    from cloister.client.connection import AsyncConnection

LOOPBACK = "127.0.0.1"
_NAMES = ("127.0.0.1", "localhost", "[::1]")


def proxy(
    url: Url,
    *,
    kit: Kit = None,
    policy: Policy = None,
    reference_values: References = None,
    root: Root = None,
    development: Development = False,
    signer: Signer = None,
    min_version: MinVersion = None,
    manifest: ManifestFile = None,
    manifest_name: ManifestName = None,
    manifest_digest: ManifestDigest = None,
    manifest_memory: ManifestMemory = None,
    unsafe_unsigned_manifest: UnsafeUnsigned = False,
    sigstore_root: SigstoreRoot = None,
    forward_proxy: Proxy = None,
    port: Annotated[int, typer.Option("--port", help="Where to listen on loopback.")] = 8788,
    unsafe_host: Annotated[
        str | None,
        typer.Option(
            "--unsafe-host",
            help="Listen on this address of the machine instead of loopback. Prompts then cross"
            " the network in clear on their way to this proxy.",
        ),
    ] = None,
) -> None:
    """Serve until interrupted; refuses to start when the worker is not affirmed."""
    import anyio

    from cloister.client.connect import open_async_connection

    if unsafe_host in {"0.0.0.0", "::", ""}:  # noqa: S104 - refused here
        raise ConfigurationError(
            "name one address; the proxy answers only to names it knows", code="proxy.address"
        )
    trust = trust_from(
        kit,
        policy,
        reference_values,
        root,
        development=development,
        manifest=manifest_from(
            signer=signer,
            min_version=min_version,
            manifest=manifest,
            name=manifest_name,
            digest=manifest_digest,
            memory=manifest_memory,
            sigstore_root=sigstore_root,
            unsafe_unsigned=unsafe_unsigned_manifest,
        ),
    )
    connection = open_async_connection(url, verifier=trust, proxy=forward_proxy)
    code = anyio.run(serve, connection, unsafe_host or LOOPBACK, port)
    if code:
        raise typer.Exit(code)


async def serve(connection: AsyncConnection, host: str, port: int) -> int:
    """Verify, show the verdict, then serve until interrupted. Returns the exit code."""
    import uvicorn
    from rich.console import Console

    from cloister.cli.asking import claims_table, verdict
    from cloister.cli.verify import encode
    from cloister.client.proxy import LocalProxy

    console = Console(highlight=False)
    async with connection:
        result = await connection.verify()
        console.print(verdict(result))
        try:
            result.require_affirming()
        except (AppraisalError, UnsupportedError) as error:
            console.print(claims_table(result.failures))
            return exit_code(error)
        app = LocalProxy(connection, allowed_hosts=allowed_hosts(host, port), encode=encode)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                # Its log lines hold request lines; a failed answer's traceback says nothing new.
                log_level="critical",
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=5,
            )
        )
        shown = f"[{host}]" if ":" in host else host
        console.print(f"OpenAI endpoint: http://{shown}:{port}/v1", markup=False)
        console.print(f"what was checked: http://{shown}:{port}/", markup=False)
        await server.serve()
    return 0


def allowed_hosts(host: str, port: int) -> frozenset[str]:
    """The values of ``Host`` to answer to: loopback's names, and the address listened on."""
    names = {*_NAMES, f"[{host}]" if ":" in host else host}
    return frozenset(f"{name}:{port}" for name in names) | (
        frozenset(names) if port == 80 else frozenset()
    )
