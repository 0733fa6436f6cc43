"""``cloister endorsements status --early``: is a platform ready for what Intel requires next?

Intel publishes a new set of TCB levels early, and makes it the standard one months later; from
that day on, verifiers refuse platforms that were not updated. This tells before that day what is
short, and who has to update what.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cloister.cli.endorsements import MAX_EVIDENCE_BYTES, now, read_file
from cloister.cli.exits import AFFIRMED, REFUSED
from cloister.endorsements.artefact import Artefact, intel_tcb_info
from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.contents import parse_signed_json
from cloister.endorsements.intel_pck import PckExtensions, parse_pck_extensions
from cloister.endorsements.intel_tcb_info import TcbInfo, parse_tcb_info
from cloister.errors import ConfigurationError, UnsupportedError
from cloister.evidence.dcap import Quote, parse_quote
from cloister.evidence.recognise import Kind, recognise
from cloister.evidence.tdx import TdReport
from cloister.verifier.appraise.intel_levels import Shortfall, platform_level, shortfalls
from cloister.verifier.policy import UP_TO_DATE

if TYPE_CHECKING:
    from cloister.endorsements.cache import EndorsementCache
    from cloister.endorsements.fetch.fetcher import Fetcher
    from cloister.strictjson import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyFinding:
    """One platform, held against the early set."""

    platform: str
    """FMSPC in hex, and the TEE."""
    standard: int
    """TCB evaluation data number of the standard set."""
    early: int
    status_now: str | None
    status_early: str | None
    """What the platform's level is in either set; ``None`` where it reaches none. The states of
    the TDX module and of the quoting enclave are not in it."""
    short: tuple[Shortfall, ...]

    @property
    def ready(self) -> bool:
        """Whether nothing is short, and the early set finds the platform up to date."""
        return not self.short and self.status_early == UP_TO_DATE


def show_early(
    files: Sequence[str], cache: EndorsementCache, fetcher: Fetcher, *, as_json: bool
) -> int:
    """Print the findings for the platforms of these quotes; 1 if one of them is not ready.

    Raises:
        ConfigurationError: no quote is given, or one cannot be read.
        FetchError: a set can neither be fetched nor is there a usable copy.
    """
    if not files:
        raise ConfigurationError(
            "--early needs a quote of the platform in question", code="endorsement.file"
        )
    found = [compare(_quote(Path(name)), cache, fetcher) for name in files]
    if as_json:
        typer.echo(json.dumps([encode(one) for one in found], indent=2))
    else:
        for one in found:
            for line in explain(one):
                typer.echo(line)
    return AFFIRMED if all(one.ready for one in found) else REFUSED


def compare(quote: Quote, cache: EndorsementCache, fetcher: Fetcher) -> EarlyFinding:
    """Hold the platform that a quote names against both sets; the quote is not verified."""
    if not quote.certification.certificates:
        raise UnsupportedError(
            "the quote does not bring its platform's certificate", code="endorsement.evidence"
        )
    pck = parse_pck_extensions(parse_certificate(quote.certification.certificates[0]))
    sets = [
        cache.get(intel_tcb_info(quote.tee, pck.fmspc, early=early), fetcher, at=now())
        for early in (False, True)
    ]
    standard, early = (_tcb_info(one.artefact) for one in sets)
    return find(quote, pck, standard=standard, early=early)


def find(quote: Quote, pck: PckExtensions, *, standard: TcbInfo, early: TcbInfo) -> EarlyFinding:
    """As `compare`, with the sets at hand."""
    svn = quote.body.tee_tcb_svn if isinstance(quote.body, TdReport) else None
    now_level, early_level = (platform_level(one, pck, svn) for one in (standard, early))
    return EarlyFinding(
        platform=f"{pck.fmspc.hex()} ({quote.tee.upper()})",
        standard=standard.tcb_evaluation_data_number,
        early=early.tcb_evaluation_data_number,
        status_now=None if now_level is None else now_level.status,
        status_early=None if early_level is None else early_level.status,
        short=shortfalls(pck, svn, early),
    )


def explain(finding: EarlyFinding) -> list[str]:
    """The finding in sentences."""
    lines = [
        f"Platform {finding.platform}: {finding.status_now or 'no level'} by the standard set"
        f" {finding.standard}, {finding.status_early or 'no level'} by the early set"
        f" {finding.early}."
    ]
    if finding.ready:
        return [*lines, "    Nothing needs doing."]
    for short in finding.short:
        lines += [f"    {_needs(short)}", f"        {action(short)}"]
    if finding.short:
        lines.append(
            "    Then have the host fetch a new PCK certificate: until then its quotes show the"
            " old versions."
        )
    else:
        lines.append(
            "    No version is short: it is the configuration, or software inside the guest, that"
            " Intel's advisories for this state name."
        )
    return lines


def action(short: Shortfall) -> str:
    """What to update, by what Intel says about the component."""
    told = f"{short.category or ''} {short.type or ''}".lower()
    if "tdx" in told or short.component.startswith("TDX_"):
        return "Update the TDX module (host operating system or BIOS), and restart the host."
    if short.component == "pcesvn":
        return "Update Intel's SGX platform software (PCE) on the host."
    if "bios" in told:
        return "Update the BIOS, which brings the microcode that is loaded early, and restart."
    if "microcode" in told or "os/vmm" in told:
        return "Update the microcode package of the host's operating system, and restart it."
    return "Update BIOS and microcode to the vendor's newest release, and restart."


def encode(finding: EarlyFinding) -> JsonObject:
    """The finding for programs."""
    return {
        "platform": finding.platform,
        "standard_tcb_evaluation_data_number": finding.standard,
        "early_tcb_evaluation_data_number": finding.early,
        "status_standard": finding.status_now,
        "status_early": finding.status_early,
        "ready": finding.ready,
        "shortfalls": [
            {
                "component": short.component,
                "category": short.category,
                "type": short.type,
                "has": short.has,
                "needs": short.needs,
                "tcb_date": short.tcb_date.isoformat(),
                "advisory_ids": list(short.advisory_ids),
                "action": action(short),
            }
            for short in finding.short
        ],
    }


def _needs(short: Shortfall) -> str:
    told = ", ".join(part for part in (short.type, short.category) if part)
    advisories = ", ".join(short.advisory_ids)
    return (
        f"{short.component}{f' ({told})' if told else ''} is at {short.has}; the level of"
        f" {short.tcb_date:%Y-%m-%d} needs {short.needs}."
        + (f" Open until then: {advisories}." if advisories else "")
    )


def _tcb_info(artefact: Artefact) -> TcbInfo:
    return parse_tcb_info(parse_signed_json(artefact.data, "tcbInfo").body)


def _quote(path: Path) -> Quote:
    found = recognise(read_file(path, MAX_EVIDENCE_BYTES))
    if found.kind is not Kind.DCAP_QUOTE:
        raise UnsupportedError(f"{path} is not an Intel quote", code="endorsement.evidence")
    return parse_quote(found.data)
