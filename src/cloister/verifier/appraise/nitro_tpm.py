"""Compares an attestation document of an AWS NitroTPM with the policy.

Steps:

1. ``nitrotpm.instance``: the document of the NitroTPM of an instance, and not that of an enclave.
2. ``nitrotpm.registers``: every register that reference values speak of is in it (0 to 15), and
   the firmware measured into each of its own (0 to 7): it closes them all with a separator before
   it starts anything (TCG "PC Client Platform Firmware Profile Specification", version 1.06,
   section 3.3.4), so that one of zeros or ones tells of an instance that measured no boot.
3. ``nitro.age`` and ``nitro.denied``, as of an enclave's document.

There is no debug mode: nothing in the document tells whether AWS let somebody look in.

What the caller still owes: to compare the registers with reference values, and user data, nonce
and public key with what it sent (`cloister.verifier.expected`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from cloister.evidence.nitro import PCR_BYTES, TPM_PCRS, DocumentKind, NitroDocument
from cloister.verifier.appraise import nitro
from cloister.verifier.authenticated import Authenticated
from cloister.verifier.chain import Chain
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.result import Source

INSTANCE: Final = "nitrotpm.instance"
REGISTERS: Final = "nitrotpm.registers"

NEEDED: Final = range(16)
FIRMWARE: Final = range(8)
_UNTOUCHED: Final = (bytes(PCR_BYTES), b"\xff" * PCR_BYTES)

FIELD_NAMES: Final = (
    "nonce",
    "user_data",
    "public_key",
    *(f"pcr{index}" for index in range(TPM_PCRS)),
)
"""What a caller may expect of a document; registers are those of the SHA-384 bank."""


def claims(policy: AppraisalPolicy) -> tuple[str, ...]:
    """Names of the claims made under `policy`, in order."""
    return (INSTANCE, REGISTERS, *nitro.any_claims(policy))


def appraise_nitro_tpm(
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


def registers(document: NitroDocument) -> dict[str, bytes]:
    """Every register by name, those of zeros too: that nothing was added to an image is a zero."""
    return {f"pcr{index}": value for index, value in document.pcrs.items()}


def _appraise(
    document: NitroDocument,
    chain: Chain | None,
    policy: AppraisalPolicy,
    at: datetime,
    ledger: Ledger,
) -> None:
    if document.kind is not DocumentKind.NITRO_TPM:
        ledger.undecided(
            INSTANCE,
            "platform_unsupported",
            "The document is of an enclave, not of the NitroTPM of an instance: its registers mean"
            " something else (nitro).",
        )
        return
    ledger.affirm(
        INSTANCE,
        "The document is that of the NitroTPM of an instance.",
        source=Source.HARDWARE_PROVEN,
    )
    _registers(document, ledger)
    nitro.appraise_any(document, chain, policy, at, ledger)


def _registers(document: NitroDocument, ledger: Ledger) -> None:
    missing = [str(index) for index in NEEDED if index not in document.pcrs]
    untouched = [str(index) for index in FIRMWARE if document.pcrs.get(index) in _UNTOUCHED]
    if missing:
        ledger.refuse(
            REGISTERS,
            "registers_missing",
            f"The document leaves out register {', '.join(missing)}: what was measured there is"
            " unknown.",
        )
        return
    ledger.check(
        REGISTERS,
        holds=not untouched,
        affirmed="Every register is there, and the firmware measured into all of its own.",
        code="boot_unmeasured",
        refused=(
            f"The firmware measured nothing into register {', '.join(untouched)}: this instance"
            " did not measure its boot."
        ),
        source=Source.HARDWARE_PROVEN,
    )
