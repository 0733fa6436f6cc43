"""When two answers count as the same: what differs from one answer to the next by its nature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

VOLATILE: Final[Mapping[str, str]] = {
    "id": "drawn at random for each answer (a tool call's is the script's: see `KEPT`)",
    "item_id": "refers to such an `id`",
    "created": "the time of answering, in seconds",
    "created_at": "as `created`",
    "completed_at": "as `created`",
    "timings": "llama.cpp's measurements of itself",
}
"""Members that are left out before answers are compared, and why."""

KEPT: Final = "call_"
"""What the ids of scripted tool calls begin with: clients send them back, so they must arrive."""


def normalised(value: Any) -> Any:
    """`value` (or what a model of an SDK dumps) without what is `VOLATILE`."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(warnings=False)  # the SDK types what it parsed as none
    if isinstance(value, Mapping):
        return {
            name: normalised(member)
            for name, member in value.items()
            if name not in VOLATILE or (isinstance(member, str) and member.startswith(KEPT))
        }
    if isinstance(value, list | tuple):
        return [normalised(member) for member in value]
    return value
