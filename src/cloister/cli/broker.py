"""``cloister broker``: keep keys, say who may have them, release them, and show what was decided.

Every command but ``serve`` works on the store directly, also while brokers serve from it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cloister.cli.broker_recovery import backup, owner_key, recover, share
from cloister.cli.broker_root_key import root_key
from cloister.cli.broker_store import (
    DEFAULT_ROOT,
    DEFAULT_STORE,
    RootKeyName,
    StoreAddress,
    opened_store,
)
from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from cloister.channel.resource_uri import ResourceUri
    from cloister.endorsements.roots import Roots
    from cloister.manifest.signatures import IdentityVerifier
    from cloister.verifier.policy import AppraisalPolicy

broker = typer.Typer(no_args_is_help=True)
secret = typer.Typer(no_args_is_help=True)
policy = typer.Typer(no_args_is_help=True)
audit = typer.Typer(no_args_is_help=True)
broker.add_typer(secret, name="secret", help="Secrets that the broker keeps.")
broker.add_typer(policy, name="policy", help="Under which terms a secret is released.")
broker.add_typer(audit, name="audit", help="What was decided, and why.")
broker.add_typer(root_key, name="root-key", help="The key that holds the store's.")
broker.command("owner-key")(owner_key)
broker.command()(backup)
broker.command()(share)
broker.command()(recover)

DEFAULT_PORT: Final = 8450

Name = Annotated[str, typer.Argument(help="kbs:///repository/type/tag")]
SecretFile = Annotated[
    Path | None, typer.Option("--file", help="Read the secret from this file ('-': from stdin).")
]
Generate = Annotated[
    int | None,
    typer.Option("--generate", metavar="BYTES", min=16, max=65536, help="Make a random one."),
]


@broker.command()
def init(store: StoreAddress = DEFAULT_STORE, root_key: RootKeyName = DEFAULT_ROOT) -> None:
    """Make a store with a new identity in an empty database, and print the identity.

    Workers are measured with it: serve --broker-identity, measure --broker-identity.
    """
    from cloister.broker.clock import SteadyWall
    from cloister.broker.database import Database
    from cloister.broker.root_keys.places import open_root_key
    from cloister.broker.store import Store

    database = Database.open(store)
    try:
        made = Store.create(database, open_root_key(root_key), now=SteadyWall())
        typer.echo(str(made.identity))
    finally:
        database.close()


@broker.command()
def identity(store: StoreAddress = DEFAULT_STORE) -> None:
    """Print the identity of the brokers of this store."""
    from cloister.broker.database import Database
    from cloister.broker.store_row import read_row

    database = Database.open(store)
    try:
        typer.echo(str(read_row(database).identity))
    finally:
        database.close()


@broker.command()
def upgrade(store: StoreAddress = DEFAULT_STORE, root_key: RootKeyName = DEFAULT_ROOT) -> None:
    """Bring a store of an earlier version to this one's format. Stop its brokers, and copy it."""
    from cloister.broker import upgrade as upgrading
    from cloister.broker.clock import SteadyWall
    from cloister.broker.database import Database
    from cloister.broker.root_keys.places import open_root_key

    database = Database.open(store)
    try:
        reached = upgrading.upgrade(database, open_root_key(root_key), now=SteadyWall())
        typer.echo(f"the store is of format {reached} now")
    finally:
        database.close()


@broker.command()
def serve(
    *,
    store: StoreAddress = DEFAULT_STORE,
    root_key: RootKeyName = DEFAULT_ROOT,
    host: Annotated[str, typer.Option("--host", help="An IP address of this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = DEFAULT_PORT,
    status_port: Annotated[
        int | None,
        typer.Option(
            "--status-port", min=0, max=65535, help="Of a read-only page, on the loopback."
        ),
    ] = None,
    root: Annotated[
        list[Path] | None,
        typer.Option(
            "--root",
            help="PEM of roots to accept evidence from, besides the hardware vendors' own: an "
            "enrolment CA, for workers on a TPM. May be repeated.",
        ),
    ] = None,
    platform: Annotated[
        str | None,
        typer.Option(
            "--platform",
            help="Where this broker itself is sealed, as in `cloister doctor`: it then shows "
            "evidence for its identity. Without it workers accept it for development only.",
        ),
    ] = None,
    stock_clients: Annotated[
        str | None,
        typer.Option(
            "--stock-clients",
            metavar="strict|development",
            help="Answer stock RCAR clients as well, for secrets marked for them.",
        ),
    ] = None,
    endorsements: Annotated[
        Path | None,
        typer.Option(
            "--endorsements",
            help="Where `cloister endorsements` keeps what vouches for stock clients' evidence.",
            envvar="CLOISTER_ENDORSEMENTS",
        ),
    ] = None,
    sigstore_root: Annotated[
        Path | None,
        typer.Option(
            "--sigstore-root",
            help="Sigstore's trusted root (JSON), for manifests that owners signed by identity. "
            "Read once: renew the file, and start again.",
        ),
    ] = None,
) -> None:
    """Release keys to workers whose evidence holds, until SIGTERM or Ctrl-C."""
    from cloister.attester.machine import MachineAttester
    from cloister.attester.stapling import stapled_from, stapler
    from cloister.broker.serve import Listening, Service, run

    evidence = None if platform is None else MachineAttester(platform)
    kept = None if endorsements is None else endorsements.expanduser()
    service = Service(
        host=host,
        port=port,
        status_port=status_port,
        roots=_roots(root),
        stock=_stock(stock_clients),
        staple=(lambda item: item) if kept is None else stapler(kept),
        identities=_identities(sigstore_root),
        evidence=evidence if evidence is None or kept is None else stapled_from(evidence, kept),
        tee_type=platform or "",
    )
    with opened_store(store, root_key) as opened:

        def ready(listening: Listening) -> None:
            page = listening.status_port
            typer.echo(
                f"Releasing keys at http://{host}:{listening.port}\n"
                f"  identity   {opened.identity}\n"
                f"  evidence   "
                + (platform or "none: workers accept this broker for development only")
                + ("" if page is None else f"\n  status     http://127.0.0.1:{page}/"),
                err=True,
            )

        run(opened, service, ready=ready)


@secret.command("put")
def secret_put(
    name: Name,
    file: SecretFile = None,
    generate: Generate = None,
    store: StoreAddress = DEFAULT_STORE,
    root_key: RootKeyName = DEFAULT_ROOT,
) -> None:
    """Store a new secret. Nobody gets it before `policy set` says under which terms."""
    value = _secret(file, generate)
    with opened_store(store, root_key) as opened:
        version = opened.put(_uri(name), value)
    typer.echo(f"{name}  version {version}; released to nobody yet (cloister broker policy set)")


@secret.command("list")
def secret_list(store: StoreAddress = DEFAULT_STORE, root_key: RootKeyName = DEFAULT_ROOT) -> None:
    """List the secrets: name, version in force, whether there is a policy."""
    with opened_store(store, root_key) as opened:
        for resource in opened.resources():
            terms = "no policy" if resource.policy is None else resource.policy.digest
            typer.echo(f"{resource.uri}  version {resource.current}  {terms}")


@broker.command()
def rotate(
    name: Name,
    *,
    file: SecretFile = None,
    generate: Generate = None,
    overlap: Annotated[
        int,
        typer.Option(
            "--overlap",
            metavar="SECONDS",
            min=0,
            help="How long the version before is still released to who asks for it by number.",
        ),
    ] = 7 * 24 * 3600,
    store: StoreAddress = DEFAULT_STORE,
    root_key: RootKeyName = DEFAULT_ROOT,
) -> None:
    """Give a secret a new version."""
    value = _secret(file, generate)
    with opened_store(store, root_key) as opened:
        version = opened.rotate(_uri(name), value, overlap_s=overlap)
    typer.echo(f"{name}  version {version}; version {version - 1} for {overlap} seconds more")


@policy.command("set")
def policy_set(
    name: Name,
    file: Annotated[Path, typer.Argument(help="The policy, in TOML.")],
    reference_values: Annotated[
        Path | None,
        typer.Option(
            "--reference-values", help='For a policy without a manifest (manifest = "unchecked").'
        ),
    ] = None,
    store: StoreAddress = DEFAULT_STORE,
    root_key: RootKeyName = DEFAULT_ROOT,
) -> None:
    """Say under which terms a secret is released. Sessions that are open end."""
    from cloister.broker.policy import load_toml
    from cloister.client.trust import read_reference_values

    values = None if reference_values is None else read_reference_values(reference_values)
    terms = load_toml(_read(file), reference_values=values)
    with opened_store(store, root_key) as opened:
        opened.set_policy(_uri(name), terms)
    typer.echo(f"{name}  policy {terms.digest}")
    if terms.appraisal.accept_development:
        typer.echo(
            "Note: development platforms get this secret, which prove nothing to anyone else.",
            err=True,
        )
    if terms.stock_clients:
        typer.echo(
            "Note: stock clients get this secret; their evidence binds neither purpose nor broker.",
            err=True,
        )


@policy.command("show")
def policy_show(
    name: Name, store: StoreAddress = DEFAULT_STORE, root_key: RootKeyName = DEFAULT_ROOT
) -> None:
    """Print a secret's policy as JSON."""
    import json

    from cloister.broker.store import unknown

    uri = _uri(name)
    with opened_store(store, root_key) as opened:
        found = [resource for resource in opened.resources() if resource.uri == uri]
        if not found:
            raise unknown(uri)
        terms = found[0].policy
    typer.echo("null" if terms is None else json.dumps(terms.to_json(), indent=2))


@broker.command()
def revoke(
    kind: Annotated[str, typer.Argument(help="manifest, platform or worker")],
    value: Annotated[
        str, typer.Argument(help="sha256:… of what it is; for a processor its id in hex.")
    ],
    reason: Annotated[str, typer.Option("--reason", help="For the audit log.")],
    store: StoreAddress = DEFAULT_STORE,
    root_key: RootKeyName = DEFAULT_ROOT,
) -> None:
    """Release nothing any more to what is named. Sessions that are open end."""
    from cloister.broker.store import Revoked

    try:
        named = Revoked(kind)
    except ValueError:
        raise ConfigurationError(
            f"what is revoked is one of {', '.join(Revoked)}", code="broker.revocation"
        ) from None
    with opened_store(store, root_key) as opened:
        opened.revoke(named, value, reason)
    typer.echo(f"{kind} {value}  revoked")


@audit.command("export")
def audit_export(
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write; by default standard output.")
    ] = None,
    store: StoreAddress = DEFAULT_STORE,
    root_key: RootKeyName = DEFAULT_ROOT,
) -> None:
    """Write the whole audit log, one JSON line an entry, and a checkpoint signed by the broker."""
    from cloister.broker.audit import export_lines

    with opened_store(store, root_key) as opened:
        lines = export_lines(opened.audit_entries(), opened.identity_key)
        if out is None:
            for line in lines:
                typer.echo(line.decode("utf-8"))
            return
        with out.open("wb") as file:
            file.writelines(line + b"\n" for line in lines)


@audit.command("verify")
def audit_verify(
    file: Annotated[Path, typer.Argument(help="What `audit export` wrote.")],
    identity: Annotated[
        str, typer.Option("--identity", metavar="ed25519:HEX", help="The broker's, as you know it.")
    ],
    since: Annotated[
        Path | None,
        typer.Option(
            "--since", help="An earlier export: everything in it has to be in this one, unchanged."
        ),
    ] = None,
) -> None:
    """Check an exported audit log; exit 0 if it is whole, 1 otherwise."""
    from cloister.broker.audit import verify_export
    from cloister.channel.key_release import BrokerIdentity

    known = BrokerIdentity.parse(identity)
    earlier = None if since is None else verify_export(_lines(since), known)
    head = verify_export(_lines(file), known, earlier=earlier)
    typer.echo(f"{head.sequence} entries, whole; the last one is sha256:{head.digest.hex()}")


@audit.command("show")
def audit_show(
    store: StoreAddress = DEFAULT_STORE,
    root_key: RootKeyName = DEFAULT_ROOT,
    last: Annotated[int, typer.Option("--last", min=1, help="How many entries.")] = 50,
) -> None:
    """Print the last entries, a line each."""
    from cloister.broker.audit import show

    with opened_store(store, root_key) as opened:
        for entry in opened.last_entries(last):
            typer.echo(show(entry))


def _uri(name: str) -> ResourceUri:
    from cloister.channel.resource_uri import ResourceUri

    return ResourceUri.parse(name)


def _secret(file: Path | None, generate: int | None) -> bytes:
    """From a file or made here: never from the command line, which others can see."""
    if (file is None) == (generate is None):
        raise ConfigurationError(
            "give the secret with --file, or have one made with --generate BYTES",
            code="broker.secret",
        )
    if generate is not None:
        return os.urandom(generate)
    from cloister.channel.key_release import MAX_SECRET_BYTES

    if str(file) == "-":
        return sys.stdin.buffer.read(MAX_SECRET_BYTES + 1)
    return _read(Path(str(file)), limit=MAX_SECRET_BYTES + 1)


def _read(path: Path, *, limit: int = 8 * 1024 * 1024 + 1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}", code="broker.file"
        ) from None


def _lines(path: Path) -> Iterator[bytes]:
    from cloister.broker.audit import MAX_ENTRY_BYTES

    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_ENTRY_BYTES + 1):
                yield line.rstrip(b"\n")
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}", code="broker.file"
        ) from None


def _identities(root: Path | None) -> IdentityVerifier | None:
    if root is None:
        return None
    from cloister.manifest.sigstore_identity import SigstoreIdentities

    return SigstoreIdentities.from_trusted_root(root)


def _roots(paths: list[Path] | None) -> Roots:
    from cloister.client.trust import read_roots
    from cloister.endorsements.pinned import pinned_roots

    roots = pinned_roots()
    for path in paths or ():
        roots = roots.merged(read_roots(path))
    return roots


def _stock(name: str | None) -> AppraisalPolicy | None:
    from cloister.verifier import policy as policies

    known = {"strict": policies.strict, "development": policies.development}
    if name is None:
        return None
    if name not in known:
        raise ConfigurationError(
            "--stock-clients is strict or development", code="broker.stock_clients"
        )
    return known[name]()
