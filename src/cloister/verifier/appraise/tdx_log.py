"""Compares a CCEL event log with the registers that a TDX module signed.

A log is a story told by whoever sends it. It counts only where its digests extend to the quoted
RTMRs, and the data of its events only where those digests cover them.
"""

from __future__ import annotations

from typing import Final

from cloister.verifier.ledger import Ledger

EVENT_LOG: Final = "tdx.eventlog"
PAYLOADS: Final = "tdx.eventlog_payloads"

LOG_CLAIMS: Final = (EVENT_LOG, PAYLOADS)
"""Claims of `judge_ccel`, in order: the log as a whole, then the data of its events.

`EVENT_LOG` alone says whether the log may be believed: it is refused as well where digests
replay to the registers and data do not match their digests."""

RTMR_COUNT: Final = 4


def judge_ccel(
    data: bytes, rtmrs: tuple[bytes, ...], *, authenticated: bool, ledger: Ledger
) -> None:
    """Decide the `LOG_CLAIMS` about the CCEL log in `data` against RTMR0 to RTMR3 of a quote.

    Where the quote was not `authenticated`, what would be affirmed is recorded as not decided.
    The caller has promised the claims to `ledger` (`Ledger.expect`).
    """
    raise NotImplementedError
