"""Binds a virtual TPM's key to the hardware report of an Azure confidential VM.

Steps, each with one claim:

1. ``azure.runtime_data``: the hash of the runtime data is what the hardware report carries, and
   nothing else is in that field.
2. SNP: ``azure.paravisor``: the report was asked for from VMPL 0, where the paravisor runs. A guest
   above it could have any key put into a report of its own.
   TDX: ``azure.td_quote``: the quote that Intel's chain vouches for is of this very report.

What is shown by that: whatever runs at VMPL 0 (TDX: in the first level of the guest) says that
``HCLAkPub`` is the key of the virtual TPM that it provides. That it is Azure's paravisor is shown
by its measurement, or by Azure's certificate of the key.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from cloister.evidence.hcl import HclReport, RuntimeHash
from cloister.verifier.authenticated import Authenticated, _grant
from cloister.verifier.ledger import Ledger
from cloister.verifier.result import Source

RUNTIME_DATA: Final = "azure.runtime_data"
PARAVISOR: Final = "azure.paravisor"
TD_QUOTE: Final = "azure.td_quote"

SNP_CLAIMS: Final = (RUNTIME_DATA, PARAVISOR)
TDX_CLAIMS: Final = (RUNTIME_DATA, TD_QUOTE)

PARAVISOR_VMPL: Final = 0

_HASHES: Final = {
    RuntimeHash.SHA256: hashlib.sha256,
    RuntimeHash.SHA384: hashlib.sha384,
    RuntimeHash.SHA512: hashlib.sha512,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpBinding:
    """Fields of the SNP report inside the HCL report."""

    report_data: bytes
    vmpl: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxBinding:
    """Fields of the TDREPORT inside the HCL report, and of the quote beside it."""

    report_data: bytes
    reported: bytes
    """What a quote of the TDREPORT has to hold."""
    quoted: bytes | None
    """What the quote holds; ``None`` where it does not decode."""


def authenticate_hcl(
    report: HclReport,
    hardware: SnpBinding | TdxBinding,
    *,
    authenticated: bool,
    ledger: Ledger,
) -> Authenticated[HclReport] | None:
    """Run every step; ``None`` unless all hold and the hardware report was `authenticated`."""
    book = ledger if authenticated else ledger.stated()
    _runtime_data(report, hardware.report_data, book)
    if isinstance(hardware, SnpBinding):
        _paravisor(hardware, book)
    else:
        _td_quote(hardware, book)
    names = SNP_CLAIMS if isinstance(hardware, SnpBinding) else TDX_CLAIMS
    return _grant(report) if ledger.holds(*names) else None


def _runtime_data(report: HclReport, report_data: bytes, ledger: Ledger) -> None:
    digest = _HASHES[report.hash](report.runtime_bytes).digest()
    ledger.check(
        RUNTIME_DATA,
        holds=hmac.compare_digest(digest.ljust(len(report_data), b"\0"), report_data),
        affirmed="The hardware report carries the hash of the paravisor's runtime data.",
        code="runtime_data_mismatch",
        refused="The hardware report does not carry the hash of these runtime data.",
        source=Source.HARDWARE_PROVEN,
    )


def _paravisor(hardware: SnpBinding, ledger: Ledger) -> None:
    ledger.check(
        PARAVISOR,
        holds=hardware.vmpl == PARAVISOR_VMPL,
        affirmed="The report was asked for from VMPL 0, where the paravisor runs.",
        code="vmpl",
        refused=f"The report was asked for from VMPL {hardware.vmpl}, above the paravisor.",
        source=Source.HARDWARE_PROVEN,
    )


def _td_quote(hardware: TdxBinding, ledger: Ledger) -> None:
    ledger.check(
        TD_QUOTE,
        holds=hardware.quoted is not None and hardware.quoted == hardware.reported,
        affirmed="The TD quote is of the report inside the paravisor's.",
        code="td_quote_mismatch",
        refused="The TD quote is of another report than the paravisor's.",
        source=Source.HARDWARE_PROVEN,
    )
