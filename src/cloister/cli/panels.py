"""Headings under which ``--help`` shows the options of a worker.

Commands that describe a worker share its options, and so these.
"""

from typing import Final

MODELS: Final = "Models (measured)"
ENGINE: Final = "Engine (measured)"
OTHERS_ENGINE: Final = "Somebody else's engine, or an application (measured)"
APART: Final = "Keeping people apart (measured)"
KEYS: Final = "Keys from a broker (measured)"
WAYS_IN: Final = "Ways in (measured)"
UNDER: Final = "Under a manifest (its digest is measured)"
ADDRESSES: Final = "Addresses and people (not measured)"
OPERATION: Final = "Running it (not measured)"
