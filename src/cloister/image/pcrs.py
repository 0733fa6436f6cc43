"""Predicts the registers of a measured boot from the parts of an image, byte for byte.

``PCR = SHA-256(PCR || digest)`` for every event (TCG "PC Client Platform Firmware Profile
Specification", version 1.06, section 3.3.1), from 32 zero bytes; or the same with SHA-384.

PCR 2 to 9 and 11 to 15 follow from the image alone. PCR 0 and 1 are the firmware's and the
machine's: their values are recorded from a boot that one trusts (`cloister.image.golden`). PCR 10
belongs to Linux' own measurement of files (IMA), and nothing is compared with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from cloister.evidence.tpm import HASH_NAMES, Alg
from cloister.image.boot_events import BootParts, PredictedEvent, predicted_events

PREDICTED: Final = (2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15)
"""Registers whose value follows from the image."""

GOLDEN: Final = (0, 1)
"""Registers whose value is recorded from a boot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a boot of `parts` will measure, and where that leads."""

    events: tuple[PredictedEvent, ...]
    registers: Mapping[int, bytes]
    """The registers in `PREDICTED`, of one bank."""
    bank: int = Alg.SHA256

    def of(self, pcr: int) -> tuple[PredictedEvent, ...]:
        """The events of one register, in order."""
        return tuple(event for event in self.events if event.pcr == pcr)


def predict(parts: BootParts, *, bank: int = Alg.SHA256) -> Prediction:
    """Compute events and registers of one bank, of `cloister.image.boot_events.BANKS`."""
    events = predicted_events(parts)
    return Prediction(
        events=events,
        registers={
            pcr: extend((event.digests[bank] for event in events if event.pcr == pcr), bank=bank)
            for pcr in PREDICTED
        },
        bank=bank,
    )


def extend(digests: Iterable[bytes], *, bank: int = Alg.SHA256) -> bytes:
    """The value of a register that was zero and then extended with `digests`, in order."""
    name = HASH_NAMES[bank]
    value = bytes(hashlib.new(name).digest_size)
    for digest in digests:
        value = hashlib.new(name, value + digest).digest()
    return value
