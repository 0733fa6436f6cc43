"""``cloister verify``: check a worker, files of evidence, or recorded cases; show every claim."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cloister.cli.asking import (
    Development,
    Kit,
    Policy,
    Proxy,
    References,
    Root,
    plain,
    trust_from,
)
from cloister.cli.endorsements import DEFAULT_FOLDER
from cloister.cli.exits import AFFIRMED, exit_code
from cloister.cli.manifest_pins import (
    MANIFEST_OPTIONS,
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
from cloister.cli.verify_evidence import (
    parse_expected,
    parse_hex,
    parse_time,
    report_in,
    verify_cases,
    verify_files,
    verify_report_file,
)
from cloister.errors import (
    AppraisalError,
    ConfigurationError,
    MalformedError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from cloister.client.attestation import Verifier
    from cloister.client.certificate import TlsAddress
    from cloister.endorsements.roots import Roots
    from cloister.strictjson import JsonObject
    from cloister.verifier.policy import AppraisalPolicy
    from cloister.verifier.result import AttestationResult

Targets = Annotated[
    list[str],
    typer.Argument(
        help="A worker's address, files or directories of evidence, or with --case case folders."
    ),
]
At = Annotated[
    str | None,
    typer.Option("--at", help="Verify as of this time (ISO 8601, with its zone); default: now."),
]
Nonce = Annotated[
    str | None,
    typer.Option("--nonce", help="The nonce that the evidence or report answers (hexadecimal)."),
]
Expect = Annotated[
    list[str] | None,
    typer.Option(
        "--expect",
        metavar="NAME=HEX",
        help="What a field has to hold, as measurement=…, mr_td=…, report_data=…; repeatable.",
    ),
]
Captured = Annotated[
    bool,
    typer.Option(
        "--as-captured",
        help="Judge evidence on what it contains: missing collateral is said, not refused.",
    ),
]
Kept = Annotated[
    Path,
    typer.Option(
        "--endorsements",
        help="Where `cloister endorsements` keeps what vouches for evidence; used for files only.",
        envvar="CLOISTER_ENDORSEMENTS",
    ),
]
SignKey = Annotated[
    Path | None,
    typer.Option("--sign-key", help="Print the result as a JWT signed with this PEM key."),
]

WriteCert = Annotated[
    Path | None,
    typer.Option(
        "--write-cert",
        help="Save the certificate of the worker's attested TLS here, if the worker is affirmed and"
        " its keyset lists the certificate's key; for tools that can only pin one.",
    ),
]
Tls = Annotated[
    str | None,
    typer.Option(
        "--tls",
        metavar="HOST[:PORT]",
        help="Where the worker's attested TLS listens; by default its own host, port 8443.",
    ),
]


def verify(
    context: typer.Context,
    targets: Targets,
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
    proxy: Proxy = None,
    at: At = None,
    nonce: Nonce = None,
    expect: Expect = None,
    as_captured: Captured = False,
    endorsements: Kept = DEFAULT_FOLDER,
    anchor: Annotated[
        list[str] | None,
        typer.Option(
            "--anchor",
            metavar="VENDOR=FILE",
            help="A root to pin besides the vendors' own, for evidence in files; as"
            " tpm_manufacturer=root.pem. May be repeated.",
        ),
    ] = None,
    case: Annotated[
        bool,
        typer.Option("--case", help="The targets are case folders; one JSON line for each."),
    ] = False,
    sign_key: SignKey = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an EAT Attestation Result (EAR).")
    ] = False,
    write_cert: WriteCert = None,
    tls: Tls = None,
) -> None:
    """Check a worker or evidence; exit 0 affirmed, 1 refused, 2 usage, 3 cannot decide, 4 gone."""

    def trusted() -> Verifier:
        return trust_from(
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

    if case:
        _refuse_options(context, "recorded cases", _NOT_FOR_CASES)
        raise typer.Exit(_cases(targets, policy, at))
    asked: bytes | None = None
    left_over: tuple[str, ...] = ()
    if _is_address(targets):
        _refuse_options(context, "a worker, asked now with a nonce of our own", _NOT_FOR_WORKERS)
        _check_pinning(write_cert, tls, proxy)
        trust = trusted()
        result, asked = _worker(targets[0], trust, proxy)
    else:
        asked = None if nonce is None else parse_hex("--nonce", nonce)
        _require_files(targets)
        paths, moment = [Path(target) for target in targets], parse_time(at) or datetime.now(UTC)
        report = report_in(paths)
        if report is not None:
            _refuse_options(context, "a worker's report", _NOT_FOR_REPORTS)
            trust = trusted()
            result = verify_report_file(report, trust=trust, nonce=asked, at=moment)
        else:
            _refuse_options(context, "evidence on its own", _NOT_FOR_FILES)
            result, left_over = verify_files(
                paths,
                policy=_policy(policy, development=development, as_captured=as_captured),
                roots=_roots(anchor),
                at=moment,
                expected=parse_expected(expect),
                nonce=asked,
                endorsements=endorsements,
            )
    _print(result, asked, left_over, sign_key=sign_key, as_json=as_json)
    outcome = _outcome(result)
    if write_cert is not None:
        _write_certificate(result, outcome, write_cert, _tls_address(targets[0], tls))
    raise typer.Exit(outcome)


_NOT_FOR_CASES: Final = (
    *("kit", "reference_values", "root", "development"),
    *("nonce", "expect", "sign_key"),
    *("write_cert", "tls"),
    *MANIFEST_OPTIONS,
)
_NOT_FOR_WORKERS: Final = ("at", "nonce", "expect", "as_captured", "anchor")
_NOT_FOR_REPORTS: Final = ("expect", "as_captured", "anchor", "write_cert", "tls")
_NOT_FOR_FILES: Final = (
    *("kit", "reference_values", "root", "write_cert", "tls"),
    *MANIFEST_OPTIONS,
)


def _refuse_options(context: typer.Context, target: str, names: tuple[str, ...]) -> None:
    """Nobody shall think something was compared that nobody looked at.

    What stands in the environment may be meant for other calls, and is let be.
    """
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ConfigurationError(
                f"--{name.replace('_', '-')} says nothing about {target}", code="verify.options"
            )


def _is_address(targets: Sequence[str]) -> bool:
    """One target that looks like an address and is no file; with ``://`` it can be nothing else."""
    if len(targets) != 1:
        return False
    if "://" in targets[0]:
        return True
    if Path(targets[0]).exists():
        return False
    # A name alone may be a host or a mistyped file; most files have a dot and no port.
    return re.match(r"(localhost|[^/\\.]+|[^/\\]+:\d+|[^/\\]+/v1/?)$", targets[0]) is not None


def _require_files(targets: Sequence[str]) -> None:
    for target in targets:
        if not Path(target).exists():
            raise ConfigurationError(
                f"{target} is no file here; write a worker's address with https://, or its port",
                code="verify.target",
            )


def _worker(url: str, trust: Verifier, proxy: str | None) -> tuple[AttestationResult, bytes | None]:
    from cloister.client.connect import open_connection

    with open_connection(url, verifier=trust, proxy=proxy) as connection:
        result = connection.verify()
        return result, connection.link.attestation.nonce


def _check_pinning(path: Path | None, tls: str | None, proxy: str | None) -> None:
    if path is None and tls is not None:
        raise ConfigurationError(
            "--tls says where the certificate for --write-cert is fetched", code="verify.options"
        )
    if path is not None and proxy is not None:
        raise ConfigurationError(
            "the certificate for --write-cert is fetched without a proxy", code="verify.options"
        )


def _tls_address(url: str, given: str | None) -> TlsAddress:
    """Where attested TLS listens: as given, or the worker's own host at the usual port."""
    from cloister.client.address import WorkerAddress
    from cloister.client.certificate import TlsAddress

    if given is not None:
        return TlsAddress.parse(given)
    return TlsAddress.of_host(WorkerAddress.parse(url).authority)


def _write_certificate(
    result: AttestationResult, outcome: int, path: Path, address: TlsAddress
) -> None:
    from cloister.client.certificate import fetch_pin, write_pin

    if outcome != AFFIRMED:
        typer.echo("cloister: the worker is not affirmed; no certificate was written", err=True)
        return
    pin = fetch_pin(result.require_affirming(), address, at=datetime.now(UTC))
    write_pin(pin, path)
    typer.echo(
        plain(
            f"{path} pins the worker at https://{address}; good until {_time(pin.not_after)}.\n"
            f"Nobody checks the worker again for whoever uses it: do, before"
            f" {_time(pin.verify_again)}, with this same command.\n"
            f"Use it:  curl --cacert {path} https://{address}/v1/models"
        ),
        err=True,
    )


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M UTC")


def _cases(targets: Sequence[str], policy: Path | None, at: str | None) -> int:
    from cloister.client.trust import read_policy

    given = None if policy is None else read_policy(policy)
    return verify_cases([Path(target) for target in targets], policy=given, at=parse_time(at))


def _policy(path: Path | None, *, development: bool, as_captured: bool) -> AppraisalPolicy:
    from cloister.client.trust import read_policy
    from cloister.verifier import policy as policies

    if path is not None:
        made = read_policy(path)
    else:
        made = policies.development() if development else policies.strict()
    return policies.as_captured(made) if as_captured else made


def _roots(anchors: Sequence[str] | None) -> Roots:
    """The vendors' pinned roots, and those that ``--anchor VENDOR=FILE`` adds."""
    from cloister.endorsements.certificates import parse_certificates
    from cloister.endorsements.pinned import pinned_roots
    from cloister.endorsements.roots import Anchor, Roots, Vendor

    roots = pinned_roots()
    for option in anchors or ():
        name, _, path = option.partition("=")
        try:
            vendor = Vendor(name)
            certificates = parse_certificates(Path(path).expanduser().read_bytes())
        except (ValueError, OSError, MalformedError):
            raise ConfigurationError(
                f"--anchor needs VENDOR=FILE with certificates; vendors are {', '.join(Vendor)}",
                code="verify.anchor",
            ) from None
        added = tuple(Anchor(vendor=vendor, certificate=one) for one in certificates)
        roots = roots.merged(Roots(anchors=added))
    return roots


def _print(
    result: AttestationResult,
    nonce: bytes | None,
    left_over: tuple[str, ...],
    *,
    sign_key: Path | None,
    as_json: bool,
) -> None:
    for name in left_over:
        typer.echo(plain(f"cloister: {name} was of no use and not looked at"), err=True)
    if sign_key is not None:
        typer.echo(_signed(encode(result, nonce), sign_key))
    elif as_json:
        typer.echo(json.dumps(encode(result, nonce), indent=2))  # ASCII: no terminal obeys it
    else:
        from rich.console import Console

        from cloister.cli.asking import whole

        console = Console(highlight=False)
        for part in whole(result):
            console.print(part)


def _signed(ear: JsonObject, path: Path) -> str:
    from cloister.verifier.ear_jwt import load_signing_key, sign_ear

    try:
        pem = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror or 'unknown reason'}", code="jwt.key"
        ) from None
    return sign_ear(ear, load_signing_key(pem))


def _outcome(result: AttestationResult) -> int:
    try:
        result.require_affirmed_evidence()
    except (AppraisalError, UnsupportedError) as error:
        return exit_code(error)
    return AFFIRMED


def encode(result: AttestationResult, nonce: bytes | None) -> JsonObject:
    """The result as an EAR, unsigned."""
    from cloister.verifier.ear import to_ear

    return to_ear(result, build=f"cloister {version('cloister')}", nonce=nonce)
