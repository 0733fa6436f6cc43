"""Compares an AWS Nitro attestation document with the policy.

Steps:

1. ``nitro.enclave``: an enclave's document, and not that of the NitroTPM of an instance.
2. ``nitro.debug``: PCR0, PCR1 and PCR2 are measured. An enclave started in debug mode has zeros
   there (AWS Nitro Enclaves user guide, "Cryptographic attestation"), and its console can be read.
3. ``nitro.age``: made not long ago, as the policy says, and not in the future.
4. ``nitro.denied``: no certificate that the policy denies by digest.

What the caller still owes: to compare the registers with reference values, and user data, nonce
and public key with what it sent (`cloister.verifier.expected`).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from cloister.endorsements.roots import fingerprints
from cloister.evidence.nitro import MAX_PCRS, DocumentKind, NitroDocument
from cloister.verifier.authenticated import Authenticated
from cloister.verifier.chain import Chain
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import AppraisalPolicy, Unchecked
from cloister.verifier.result import Source

ENCLAVE: Final = "nitro.enclave"
DEBUG: Final = "nitro.debug"
AGE: Final = "nitro.age"
DENIED: Final = "nitro.denied"

MAX_CLOCK_SKEW: Final = timedelta(minutes=5)
"""How far ahead the hypervisor's clock may be of the verifier's."""

MEASURED: Final = (0, 1, 2)
"""Registers of the image, of kernel and bootstrap, and of the application: never zero for an
image of any content."""

FIELD_NAMES: Final = (
    "nonce",
    "user_data",
    "public_key",
    *(f"pcr{index}" for index in range(MAX_PCRS)),
)
"""What a caller may expect of a document."""


def claims(policy: AppraisalPolicy) -> tuple[str, ...]:
    """Names of the claims made under `policy`, in order."""
    return (ENCLAVE, DEBUG, *any_claims(policy))


def any_claims(policy: AppraisalPolicy) -> tuple[str, ...]:
    """Names of the claims that `appraise_any` makes, in order."""
    return (AGE,) if isinstance(policy.denied, Unchecked) else (AGE, DENIED)


def appraise_nitro(
    document: Authenticated[NitroDocument],
    chain: Chain,
    *,
    policy: AppraisalPolicy,
    at: datetime,
    ledger: Ledger,
) -> None:
    """Compare an authenticated `document`, made by the leaf of `chain`, with `policy` at `at`."""
    _appraise(document.value, chain, policy, at, ledger)


def appraise_stated(
    document: NitroDocument,
    chain: Chain | None,
    *,
    policy: AppraisalPolicy,
    at: datetime,
    ledger: Ledger,
) -> None:
    """Compare what an unauthenticated `document` says of itself; nothing of it is affirmed."""
    _appraise(document, chain, policy, at, ledger.stated())


def fields(document: NitroDocument) -> dict[str, bytes | None]:
    """The values of `FIELD_NAMES`; ``None`` for what the document does not have."""
    return {
        "nonce": document.nonce,
        "user_data": document.user_data,
        "public_key": document.public_key,
        **{f"pcr{index}": document.pcrs.get(index) for index in range(MAX_PCRS)},
    }


def registers(document: NitroDocument) -> dict[str, bytes]:
    """Registers into which anything was measured, by name."""
    return {f"pcr{index}": value for index, value in document.pcrs.items() if any(value)}


def _appraise(
    document: NitroDocument,
    chain: Chain | None,
    policy: AppraisalPolicy,
    at: datetime,
    ledger: Ledger,
) -> None:
    if document.kind is not DocumentKind.ENCLAVE:
        ledger.undecided(
            ENCLAVE,
            "platform_unsupported",
            "The document is of the NitroTPM of an instance, not of an enclave: it says nothing"
            " about isolated memory, and its registers mean something else (nitro-tpm).",
        )
        return
    ledger.affirm(ENCLAVE, "The document is that of an enclave.", source=Source.HARDWARE_PROVEN)
    _debug(document, policy, ledger)
    appraise_any(document, chain, policy, at, ledger)


def appraise_any(
    document: NitroDocument,
    chain: Chain | None,
    policy: AppraisalPolicy,
    at: datetime,
    ledger: Ledger,
) -> None:
    """Steps 3 and 4, which documents of both kinds take; `ledger` says what they are worth."""
    _age(document, policy, at, ledger)
    if not isinstance(policy.denied, Unchecked):
        _denied(chain, policy.denied, ledger)


def _debug(document: NitroDocument, policy: AppraisalPolicy, ledger: Ledger) -> None:
    measured = all(any(document.pcrs.get(index, b"")) for index in MEASURED)
    if measured:
        explanation = "The enclave's image was measured, so it is not in debug mode."
    else:
        explanation = (
            "PCR0, PCR1 or PCR2 is zero: the enclave is in debug mode, in which whoever runs the"
            " machine reads its console, and its software is unknown."
        )
    ledger.check(
        DEBUG,
        holds=measured or policy.accept_debug,
        affirmed=explanation if measured else f"{explanation} The policy accepts that.",
        code="debug",
        refused=explanation,
        source=Source.HARDWARE_PROVEN,
        value="off" if measured else "on",
    )


def _age(document: NitroDocument, policy: AppraisalPolicy, at: datetime, ledger: Ledger) -> None:
    limit = policy.max_evidence_age_s
    made = f"{document.timestamp:%Y-%m-%d %H:%M:%S} UTC"
    if document.timestamp - at > MAX_CLOCK_SKEW:
        ledger.refuse(
            AGE, "evidence_in_future", f"The document is of {made}, which is in the future."
        )
    elif not isinstance(limit, Unchecked) and at - document.timestamp > timedelta(seconds=limit):
        ledger.refuse(
            AGE,
            "evidence_too_old",
            f"The document is of {made}, longer ago than the {limit} seconds that the policy"
            " accepts.",
        )
    else:
        ledger.affirm(AGE, f"The document is of {made}.", source=Source.HARDWARE_PROVEN)


def _denied(chain: Chain | None, denied: tuple[str, ...], ledger: Ledger) -> None:
    if chain is None:
        return
    found = {
        digest
        for certificate in (chain.certificates if denied else ())
        for digest in fingerprints(certificate).intersection(denied)
    }
    ledger.check(
        DENIED,
        holds=not found,
        affirmed="No certificate in the chain is on your list of denied digests.",
        code="denied",
        refused=f"Your list of denied digests has {', '.join(sorted(found))}.",
    )
