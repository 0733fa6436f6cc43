"""What a caller expects of one piece of evidence, beyond the policy: values of named fields.

Fields have the vendors' names, as in a result's facts: ``report_data``, ``measurement``,
``mr_td``, ``rtmr0``, ``mrenclave``, ``pcr0``, ``extra_data``, ``nonce`` and so on.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from cloister.errors import ConfigurationError
from cloister.verifier.ledger import Ledger
from cloister.verifier.result import Source

CLAIM_PREFIX: Final = "expected."

_CODES: Final = MappingProxyType(
    {
        "report_data": "report_data_mismatch",
        "nonce": "nonce_mismatch",
        "extra_data": "nonce_mismatch",
        "user_data": "user_data_mismatch",
        "public_key": "user_data_mismatch",
    }
)
_OTHERWISE: Final = "measurement_mismatch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Fields and the bytes that each must hold.

    Raises:
        ConfigurationError: a field is expected twice, or to begin with nothing, which anything does
            (code ``expected.contradiction``).
    """

    values: Mapping[str, bytes] = field(default_factory=dict)
    prefixes: Mapping[str, bytes] = field(default_factory=dict)
    """Fields of which only the beginning is expected."""

    def __post_init__(self) -> None:
        """Refuse what would be compared with nothing, or twice."""
        twice = sorted(self.values.keys() & self.prefixes.keys())
        empty = sorted(name for name, wanted in self.prefixes.items() if not wanted)
        if twice or empty:
            raise ConfigurationError(
                f"{', '.join(twice or empty)} cannot be expected "
                + ("both whole and by its beginning" if twice else "to begin with nothing"),
                code="expected.contradiction",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the claims that `compare` makes, in order."""
        return tuple(f"{CLAIM_PREFIX}{name}" for name in (*self.values, *self.prefixes))


NOTHING_EXPECTED: Final = Expected()


def compare(expected: Expected, fields: Mapping[str, bytes | None], ledger: Ledger) -> None:
    """Make one claim for each expectation, against the evidence's own `fields`.

    A field that the evidence could hold but does not (``None``) is a mismatch.

    Raises:
        ConfigurationError: evidence of this kind has no such field (code ``expected.unknown``).
    """
    for name, wanted in expected.values.items():
        found = _field(name, fields)
        _claim(name, holds=found is not None and hmac.compare_digest(found, wanted), ledger=ledger)
    for name, wanted in expected.prefixes.items():
        found = _field(name, fields)
        _claim(
            name,
            holds=found is not None and hmac.compare_digest(found[: len(wanted)], wanted),
            ledger=ledger,
        )


def check_names(expected: Expected, names: Iterable[str]) -> None:
    """Refuse expectations of fields that evidence of this kind does not have.

    Raises:
        ConfigurationError: code ``expected.unknown``.
    """
    known = tuple(names)
    for name in (*expected.values, *expected.prefixes):
        _field(name, dict.fromkeys(known))


def _field(name: str, fields: Mapping[str, bytes | None]) -> bytes | None:
    if name not in fields:
        raise ConfigurationError(
            f"this evidence has no field {name}; it has {', '.join(sorted(fields))}",
            code="expected.unknown",
        )
    return fields[name]


def _claim(name: str, *, holds: bool, ledger: Ledger) -> None:
    ledger.check(
        f"{CLAIM_PREFIX}{name}",
        holds=holds,
        affirmed=f"The evidence holds what you expect for {name}.",
        code=_CODES.get(name, _OTHERWISE),
        refused=f"The evidence holds something else than you expect for {name}.",
        source=Source.HARDWARE_PROVEN,
    )
