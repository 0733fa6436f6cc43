"""Appraises an SGX enclave's report: what kind of enclave the processor says it is.

Steps, each with one claim:

1. ``sgx.debug``: no debugger may open the enclave.
2. ``sgx.initialised``: the enclave was complete when it reported.
3. ``sgx.attributes``: no attribute is set that this version does not know.
4. Told, and never refused: ``sgx.provision_key``, ``sgx.launch_key``.

Only compares. Whether the platform is up to date is not asked here
(`cloister.verifier.appraise.intel_tcb`), nor whether the measured software is known: the caller
compares MRENCLAVE, or MRSIGNER with product and version, without which any enclave passes.
"""

from __future__ import annotations

from typing import Final

from cloister.evidence.sgx import EnclaveReport, SgxAttribute
from cloister.verifier.authenticate.dcap import SignedQuote
from cloister.verifier.authenticated import Authenticated
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.result import Source

DEBUG: Final = "sgx.debug"
INITIALISED: Final = "sgx.initialised"
ATTRIBUTES: Final = "sgx.attributes"
PROVISION_KEY: Final = "sgx.provision_key"
LAUNCH_KEY: Final = "sgx.launch_key"

CLAIMS: Final = (DEBUG, INITIALISED, ATTRIBUTES, PROVISION_KEY, LAUNCH_KEY)

KNOWN_ATTRIBUTES: Final = sum(SgxAttribute)

ON: Final = "on"
OFF: Final = "off"


def appraise_enclave(
    authenticated: Authenticated[SignedQuote], *, policy: AppraisalPolicy, ledger: Ledger
) -> None:
    """Add `CLAIMS` to `ledger`.

    Raises:
        TypeError: the quote is not that of an enclave.
    """
    report = authenticated.value.quote.body
    if not isinstance(report, EnclaveReport):
        raise TypeError("only quotes of SGX enclaves are appraised here")
    _appraise(report, policy, ledger)


def appraise_stated_enclave(
    report: EnclaveReport, *, policy: AppraisalPolicy, ledger: Ledger
) -> None:
    """As `appraise_enclave`, for a report that nobody vouches for: nothing of it is affirmed."""
    _appraise(report, policy, ledger.stated())


def _appraise(report: EnclaveReport, policy: AppraisalPolicy, ledger: Ledger) -> None:
    _debug(report, policy, ledger)
    ledger.check(
        INITIALISED,
        holds=bool(report.flags & SgxAttribute.INIT),
        affirmed="The enclave was initialised when it reported.",
        code="enclave_not_initialised",
        refused="The report is of an enclave that was not initialised, which reports nothing.",
        source=Source.HARDWARE_PROVEN,
    )
    _attributes(report, ledger)
    _told(
        PROVISION_KEY,
        "The enclave {} derive keys that identify the platform.",
        report.flags & SgxAttribute.PROVISIONKEY,
        ledger,
    )
    _told(
        LAUNCH_KEY,
        "The enclave {} launch other enclaves.",
        report.flags & SgxAttribute.EINITTOKEN_KEY,
        ledger,
    )


def _debug(report: EnclaveReport, policy: AppraisalPolicy, ledger: Ledger) -> None:
    """Step 1."""
    ledger.check(
        DEBUG,
        holds=policy.accept_debug or not report.debug,
        affirmed=(
            "A debugger can open the enclave, which your policy accepts."
            if report.debug
            else "No debugger can open the enclave."
        ),
        code="debug",
        refused="A debugger can open the enclave: the host may read its memory.",
        source=Source.HARDWARE_PROVEN,
        value=ON if report.debug else OFF,
    )


def _attributes(report: EnclaveReport, ledger: Ledger) -> None:
    """Step 3."""
    unknown = report.flags & ~KNOWN_ATTRIBUTES
    if unknown:
        ledger.undecided(
            ATTRIBUTES,
            "attributes_unknown",
            f"The enclave has attributes that this version does not know (0x{unknown:016x}).",
            value=f"0x{unknown:016x}",
        )
    else:
        ledger.affirm(
            ATTRIBUTES,
            "All attributes of the enclave are known ones.",
            source=Source.HARDWARE_PROVEN,
        )


def _told(name: str, sentence: str, bit: int, ledger: Ledger) -> None:
    """Step 4: neither right opens the enclave to anyone."""
    ledger.affirm(
        name,
        sentence.format("may" if bit else "may not"),
        source=Source.HARDWARE_PROVEN,
        value=ON if bit else OFF,
    )
