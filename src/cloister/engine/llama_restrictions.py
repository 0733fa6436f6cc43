"""How large a restriction of the answer may be: a grammar, a JSON schema.

llama.cpp makes a grammar of either, by functions that call themselves for every parenthesis and
every reference, and then looks at every alternative for every token. Larger ones end its process,
or keep it from answering anybody (tried with xllamacpp 2026.10.11549: 30,000 parentheses, 20,000
references, 20,000 values of an ``enum``, 3,000 properties). OpenAI's bounds on schemas are of the
same order.

No bound on sizes keeps a small, ambiguous one from having very many readings.
"""

from __future__ import annotations

import json
from typing import Final

MAX_SCHEMA: Final = 1 << 16
"""Characters of a grammar, and of a schema as compact JSON."""
MAX_VALUES: Final = 1_000
"""In each list of a schema; parentheses, and bars, of a grammar."""
MAX_MEMBERS: Final = 500
"""Of each object in a schema: what it makes of properties grows with their square."""


def is_grammar(value: object) -> bool:
    """Whether it is a text within the bounds."""
    return (
        isinstance(value, str)
        and len(value) <= MAX_SCHEMA
        and max(value.count("("), value.count("|")) <= MAX_VALUES
    )


def is_schema(value: object) -> bool:
    """Whether it is an object within the bounds."""
    if not isinstance(value, dict) or len(json.dumps(value, separators=(",", ":"))) > MAX_SCHEMA:
        return False
    waiting: list[object] = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            if len(one) > MAX_VALUES:
                return False
            waiting += one
        elif isinstance(one, dict):
            if len(one) > MAX_MEMBERS:
                return False
            waiting += one.values()
    return True
