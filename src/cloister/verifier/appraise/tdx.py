"""Appraises a TDX guest's report: what kind of guest the TDX module says it is.

Steps, each with one claim:

1. ``tdx.debug``: nothing outside may look into the guest (attribute bits 0 to 7).
2. ``tdx.migration``: no service TD may move the guest away.
3. ``tdx.attributes``: no attribute is set that this version does not know.
4. ``tdx.seam``: the TDX module is one of Intel's for production.
5. Told, and never refused: ``tdx.sept_ve_disable``, ``tdx.service_td``, ``tdx.perfmon``.

Only compares. Whether module and platform are up to date is not asked here
(`cloister.verifier.appraise.intel_tcb`), nor whether the measured software is known: the caller
compares the registers, without which any guest at all passes.
"""

from __future__ import annotations

from typing import Final

from cloister.evidence.tdx import KNOWN_TD_ATTRIBUTES, TdAttribute, TdReport
from cloister.verifier.authenticate.dcap import SignedQuote
from cloister.verifier.authenticated import Authenticated
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.result import Source

DEBUG: Final = "tdx.debug"
MIGRATION: Final = "tdx.migration"
ATTRIBUTES: Final = "tdx.attributes"
SEAM: Final = "tdx.seam"
SEPT_VE_DISABLE: Final = "tdx.sept_ve_disable"
SERVICE_TD: Final = "tdx.service_td"
PERFMON: Final = "tdx.perfmon"

CLAIMS: Final = (DEBUG, MIGRATION, ATTRIBUTES, SEAM, SEPT_VE_DISABLE, SERVICE_TD, PERFMON)

ON: Final = "on"
OFF: Final = "off"


def appraise_td(
    authenticated: Authenticated[SignedQuote], *, policy: AppraisalPolicy, ledger: Ledger
) -> None:
    """Add `CLAIMS` to `ledger`.

    Raises:
        TypeError: the quote is not that of a TDX guest.
    """
    report = authenticated.value.quote.body
    if not isinstance(report, TdReport):
        raise TypeError("only quotes of TDX guests are appraised here")
    _appraise(report, policy, ledger)


def appraise_stated_td(report: TdReport, *, policy: AppraisalPolicy, ledger: Ledger) -> None:
    """As `appraise_td`, for a report that nobody vouches for: nothing of it is affirmed."""
    _appraise(report, policy, ledger.stated())


def _appraise(report: TdReport, policy: AppraisalPolicy, ledger: Ledger) -> None:
    _debug(report, policy, ledger)
    _migration(report, policy, ledger)
    _attributes(report, ledger)
    _seam(report, ledger)
    _told(report, ledger)


def _debug(report: TdReport, policy: AppraisalPolicy, ledger: Ledger) -> None:
    """Step 1."""
    ledger.check(
        DEBUG,
        holds=policy.accept_debug or not report.debug,
        affirmed=(
            "The guest can be debugged from outside, which your policy accepts."
            if report.debug
            else "Nothing outside the guest may debug it."
        ),
        code="debug",
        refused="The guest can be debugged from outside: the host may read its memory.",
        source=Source.HARDWARE_PROVEN,
        value=_switch(report.debug),
    )


def _migration(report: TdReport, policy: AppraisalPolicy, ledger: Ledger) -> None:
    """Step 2. Where to is the migration TD's choice, which nothing here looks at."""
    migratable = _has(report, TdAttribute.MIGRATABLE)
    ledger.check(
        MIGRATION,
        holds=policy.accept_migration or not migratable,
        affirmed=(
            "The guest may be moved to another machine, which your policy accepts."
            if migratable
            else "The guest stays on the machine it was started on."
        ),
        code="migration",
        refused="The guest may be moved to another machine, with its memory.",
        source=Source.HARDWARE_PROVEN,
        value=_switch(migratable),
    )


def _attributes(report: TdReport, ledger: Ledger) -> None:
    """Step 3. The bits of debugging are left to step 1, whether known or not."""
    unknown = report.attributes & ~KNOWN_TD_ATTRIBUTES
    if unknown:
        ledger.undecided(
            ATTRIBUTES,
            "attributes_unknown",
            f"The guest has attributes that this version does not know (0x{unknown:016x}).",
            value=f"0x{unknown:016x}",
        )
    else:
        ledger.affirm(
            ATTRIBUTES,
            "All attributes of the guest are known ones.",
            source=Source.HARDWARE_PROVEN,
        )


def _seam(report: TdReport, ledger: Ledger) -> None:
    """Step 4: MRSIGNERSEAM is zero for Intel's modules, SEAMATTRIBUTES for those in production."""
    ledger.check(
        SEAM,
        holds=not any(report.seam_attributes) and not any(report.mrsigner_seam),
        affirmed="The TDX module is one that Intel signed for production.",
        code="seam_module",
        refused="The TDX module is signed by somebody else than Intel, or made for debugging.",
        source=Source.HARDWARE_PROVEN,
    )


def _told(report: TdReport, ledger: Ledger) -> None:
    """Step 5. None of these opens the guest's memory, and clouds set them differently."""
    stops = _has(report, TdAttribute.SEPT_VE_DISABLE)
    ledger.affirm(
        SEPT_VE_DISABLE,
        "A page taken away by the host stops the guest."
        if stops
        else "A page taken away by the host raises an exception that the guest has to handle well.",
        source=Source.HARDWARE_PROVEN,
        value=_switch(stops),
    )
    bound = report.mr_service_td is not None and any(report.mr_service_td)
    ledger.affirm(
        SERVICE_TD,
        "Service TDs are bound to the guest; their measurement is in mr_service_td."
        if bound
        else "No service TD is bound to the guest.",
        source=Source.HARDWARE_PROVEN,
        value="bound" if bound else "none",
    )
    counts = _has(report, TdAttribute.PERFMON)
    ledger.affirm(
        PERFMON,
        f"Performance counters are {_switch(counts)} inside the guest.",
        source=Source.HARDWARE_PROVEN,
        value=_switch(counts),
    )


def _has(report: TdReport, attribute: TdAttribute) -> bool:
    return bool(report.attributes & attribute)


def _switch(on: bool) -> str:
    return ON if on else OFF
