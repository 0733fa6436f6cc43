"""``cloister`` with short hours, so that minutes show what usually takes a day.

Keys rotate, receipts go and readers that stall are given up after seconds. These settings are
part of the measured configuration, so nothing but a program of its own may change them, and
clients see the difference.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from cloister.cli import main as cli
from cloister.cli import measure, upstream_options
from cloister.worker.settings import (
    KeySettings,
    Limits,
    ReceiptSettings,
    WorkerSettings,
)

KEYS = KeySettings(life_s=30, overlap_s=15, min_rotation_s=5)
LIMITS = Limits(send_s=3, first_byte_s=5, receive_s=20, probe_s=1)
RECEIPTS = ReceiptSettings(keep_s=15)

_usual = measure.settings_for


def settings_for(*given: Any, **named: Any) -> WorkerSettings:
    """The program's own settings, but for their times."""
    usual = _usual(*given, **named)
    return dataclasses.replace(usual, keys=KEYS, limits=LIMITS, receipts=RECEIPTS)


if __name__ == "__main__":
    measure.settings_for = settings_for
    upstream_options.settings_for = settings_for  # type: ignore[attr-defined]  # it imported the name
    cli.main()
