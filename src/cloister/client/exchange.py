"""What became of one sealed request: who answered, and what the receipt says."""

from __future__ import annotations

from dataclasses import dataclass, field

from cloister.channel.receipt import MODEL_SERVED, Receipt
from cloister.strictjson import expect_list, expect_object
from cloister.verifier.result import AffirmedAttester


@dataclass(slots=True, kw_only=True)
class SealedExchange:
    """One request and its answer, as ``response.extensions["cloister"]``.

    Filled in while the answer arrives: `receipt` is ``None`` until the authenticated end, and
    stays so where the caller stopped reading before it.
    """

    attester: AffirmedAttester = field(repr=False)
    """The worker that the request was sealed to."""
    receipt: Receipt | None = None
    receipt_verified: bool = False
    """The receipt is signed by the attested keyset, and is for exactly what was sent and read."""
    complete: bool = False
    """The authenticated end of the answer was seen."""
    attempts: int = 1
    """Times the request was sealed and sent (a second one after an unknown key or a wrong date)."""

    @property
    def model(self) -> tuple[str, str | None] | None:
        """Name and SHA-256 of the model that the verified receipt says answered."""
        if self.receipt is None or not self.receipt_verified:
            return None
        return served_model(self.receipt)


def served_model(receipt: Receipt) -> tuple[str, str | None] | None:
    """Name and SHA-256 in the receipt's model event; ``None`` if it has none.

    Raises MalformedError when the receipt's log is not a list of objects, or names two models.
    """
    events = [
        expect_object(entry, "an event")
        for entry in expect_list(receipt.document.get("event_log"), "event_log", limit=64)
    ]
    if all(event.get("type") != MODEL_SERVED for event in events):
        return None
    event = receipt.event(MODEL_SERVED)
    name, sha256 = event.get("name"), event.get("sha256")
    return str(name), None if sha256 is None else str(sha256)
