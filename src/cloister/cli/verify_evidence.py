"""What ``cloister verify`` does with files: evidence, reports, recorded cases."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cloister.channel.statement import REPORT_DATA_SIZE
from cloister.cli.exits import AFFIRMED, CANNOT_DECIDE, REFUSED, USAGE
from cloister.errors import ConfigurationError
from cloister.evidence.recognise import Kind

if TYPE_CHECKING:
    from cloister.client.attestation import Verifier
    from cloister.endorsements.roots import Roots
    from cloister.strictjson import JsonObject
    from cloister.verifier.expected import Expected
    from cloister.verifier.policy import AppraisalPolicy
    from cloister.verifier.result import AttestationResult


def verify_files(
    paths: Sequence[Path],
    *,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    expected: Expected,
    nonce: bytes | None = None,
    endorsements: Path,
) -> tuple[AttestationResult, tuple[str, ...]]:
    """Verify the evidence in files; also return the names of those that were of no use.

    `nonce` is expected in the field where the platform carries one. What vouches for the evidence
    and is not beside it is looked for among the `endorsements` kept on this machine.

    Raises:
        ConfigurationError: there is no evidence in them, or not all that it takes.
    """
    from cloister.cli.evidence_cache import completed
    from cloister.cli.evidence_files import assemble, read_files
    from cloister.verifier.evidence import run

    given = read_files(paths)
    made = assemble(completed(given, endorsements.expanduser()))
    result = run(
        made.verify,
        made.evidence,
        policy=policy,
        roots=roots,
        at=at,
        expected=_with_nonce(expected, made.nonce_field, nonce),
    )
    return result, tuple(file.name for file in made.left_over if file in given)


def _with_nonce(expected: Expected, name: str, nonce: bytes | None) -> Expected:
    """A report-data slot has 64 bytes; a shorter nonce in it is followed by zeros.

    An empty one would be all zeros, which is what evidence carries that nobody asked for.
    """
    if nonce is None:
        return expected
    if not nonce:
        raise ConfigurationError("--nonce is empty", code="verify.hexadecimal")
    value = nonce.ljust(REPORT_DATA_SIZE, b"\0") if name == "report_data" else nonce
    if expected.values.get(name, value) != value:
        raise ConfigurationError(
            f"--nonce and --expect {name} contradict each other", code="verify.expect"
        )
    return dataclasses.replace(expected, values={**expected.values, name: value})


def report_in(paths: Sequence[Path]) -> bytes | None:
    """The bytes of an attestation report, if that is what the one path leads to."""
    from cloister.cli.evidence_files import read_files

    if len(paths) != 1 or not paths[0].is_file():
        return None
    file = read_files(paths)[0]
    return file.data if file.kind is Kind.ATTESTATION_REPORT else None


def verify_report_file(
    report: bytes, *, trust: Verifier, nonce: bytes | None, at: datetime
) -> AttestationResult:
    """Verify a worker's report that was saved, against the nonce it was asked for with.

    Raises:
        ConfigurationError: no nonce of 32 bytes (code ``verify.nonce``).
    """
    if nonce is None or len(nonce) != 32:
        raise ConfigurationError(
            "a report proves freshness only against the nonce that was sent for it; give its"
            " 32 bytes as --nonce",
            code="verify.nonce",
        )
    return trust.appraise_report(report, nonce=nonce, at=at)


def verify_cases(
    folders: Sequence[Path], *, policy: AppraisalPolicy | None, at: datetime | None
) -> int:
    """Print one JSON line for each case; return the exit code of the worst of them."""
    from cloister.cli.cases.verdict import verdict

    codes = {"pass": AFFIRMED, "fail": REFUSED, "undecided": CANNOT_DECIDE}
    worst = [AFFIRMED]
    for folder in folders:
        try:
            line = verdict(folder, policy=policy, at=at)
            worst.append(codes[str(line["result"])])
        except ConfigurationError as error:
            line = _unreadable(folder, error)
            worst.append(USAGE)
        typer.echo(json.dumps(line))  # in ASCII, which no terminal obeys
    return next(code for code in (USAGE, REFUSED, CANNOT_DECIDE, AFFIRMED) if code in worst)


def parse_time(text: str | None) -> datetime | None:
    """An aware time from ISO 8601; the zone has to be there.

    Raises:
        ConfigurationError: code ``verify.time``.
    """
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is not None:
            return at.astimezone(UTC)
    except (ValueError, OverflowError):  # the latter where UTC's calendar ends before the zone's
        pass
    raise ConfigurationError(
        "--at needs a time with its zone, such as 2026-11-03T12:00:00Z", code="verify.time"
    )


def parse_hex(option: str, text: str) -> bytes:
    """Bytes from hexadecimal, with or without ``0x``.

    Raises:
        ConfigurationError: code ``verify.hexadecimal``.
    """
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raise ConfigurationError(f"{option} needs hexadecimal", code="verify.hexadecimal") from None


def parse_expected(options: Sequence[str] | None) -> Expected:
    """Expectations from ``NAME=HEX``; ``NAME^=HEX`` expects the beginning of a field only.

    Raises:
        ConfigurationError: codes ``verify.expect``, ``verify.hexadecimal``.
    """
    from cloister.verifier.expected import Expected

    values: dict[str, bytes] = {}
    prefixes: dict[str, bytes] = {}
    for option in options or ():
        name, equals, text = option.partition("=")
        target = prefixes if name.endswith("^") else values
        name = name.removesuffix("^").strip().lower()
        if not equals or not name or name in values or name in prefixes:
            raise ConfigurationError(
                "--expect needs NAME=HEX, each name once", code="verify.expect"
            )
        target[name] = parse_hex(f"--expect {name}", text.strip())
    return Expected(values=values, prefixes=prefixes)


def _unreadable(folder: Path, error: ConfigurationError) -> JsonObject:
    from cloister.cli.asking import plain

    typer.echo(plain(f"cloister: {error} [{error.code}]"), err=True)
    return {
        "case": str(folder),
        "result": "undecided",
        "reason": error.code,
        "layers": {},
        "facts": {},
    }
