"""Appraises the keyset of a report: current, not for too long, and with keys of known kinds."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Final

from cloister.channel.keyset import RECEIPT_ALGORITHM, Keyset
from cloister.channel.ohttp_keys import KeyConfig
from cloister.errors import MalformedError, UnsupportedError
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import AppraisalPolicy, Unchecked

EXPIRY: Final = "keyset.expiry"
REQUEST_KEY: Final = "keyset.request_key"
RECEIPT_KEY: Final = "keyset.receipt_key"

CLAIMS: Final = (EXPIRY, REQUEST_KEY, RECEIPT_KEY)


def claims(*, serves: bool) -> tuple[str, ...]:
    """Names of the claims; what serves nobody needs no key for requests."""
    return CLAIMS if serves else (EXPIRY, RECEIPT_KEY)


def appraise_keyset(
    keyset: Keyset, *, policy: AppraisalPolicy, at: datetime, ledger: Ledger, serves: bool = True
) -> None:
    """Add `claims` to `ledger`."""
    now = at.timestamp()
    limit = policy.max_keyset_lifetime_s
    if keyset.not_after <= now:
        ledger.refuse(EXPIRY, "keyset_expired", "The worker's keys have expired.")
    elif not isinstance(limit, Unchecked) and keyset.not_after > now + limit:
        ledger.refuse(
            EXPIRY,
            "keyset_lifetime",
            f"The worker's keys would live longer than the {limit} seconds that the policy"
            " accepts.",
        )
    elif expiry(keyset) is None:
        ledger.refuse(EXPIRY, "keyset_lifetime", "The worker's keys expire in no known year.")
    else:
        ledger.affirm(EXPIRY, "The worker's keys are not expired, and will be soon enough.")
    if serves:
        ledger.check(
            REQUEST_KEY,
            holds=_has_request_key(keyset),
            affirmed="The keyset lists a key to seal requests to.",
            code="request_key_missing",
            refused="The keyset lists no key that requests can be sealed to, or a malformed one.",
        )
    ledger.check(
        RECEIPT_KEY,
        holds=_has_receipt_key(keyset),
        affirmed="The keyset lists a key to check receipts with.",
        code="receipt_key_missing",
        refused="The keyset lists no key that receipts can be checked with, or a malformed one.",
    )


def _has_request_key(keyset: Keyset) -> bool:
    """Whether a key of a known kind is listed. One of an unknown kind is for newer clients."""
    usable = 0
    try:
        for config in keyset.ohttp_key_configs():
            with contextlib.suppress(UnsupportedError):
                KeyConfig.parse(config)
                usable += 1
    except MalformedError:
        return False
    return usable > 0


def _has_receipt_key(keyset: Keyset) -> bool:
    try:
        return any(
            keyset.receipt_key(entry.key_id) is not None
            for entry in keyset.receipt_signing_keys
            if entry.algo == RECEIPT_ALGORITHM
        )
    except MalformedError:
        return False


def expiry(keyset: Keyset) -> datetime | None:
    """The keyset's ``not_after`` as aware UTC; ``None`` where no calendar reaches."""
    try:
        return datetime.fromtimestamp(keyset.not_after, UTC)
    except (ValueError, OverflowError, OSError):
        return None
