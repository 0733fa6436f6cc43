"""Collects claims while a report is verified.

Verification goes on after a step failed, as far as it can: people want to know everything that
is wrong at once. A step that needed the failed one is listed too, as not decided.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from cloister.verifier.result import Claim, Finding, Source

NOT_CHECKED = "not_checked"
"""Code of a claim that could not be decided because an earlier one failed."""


class Ledger:
    """The claims made so far, each name once."""

    def __init__(self) -> None:
        self._claims: dict[str, Claim] = {}

    def affirm(
        self, name: str, explanation: str, *, source: Source = Source.VERIFIER_DERIVED
    ) -> None:
        """Record that `name` holds."""
        self._add(name, Finding.AFFIRMING, source, explanation, None)

    def refuse(
        self, name: str, code: str, explanation: str, *, source: Source = Source.VERIFIER_DERIVED
    ) -> None:
        """Record that `name` does not hold, with the stable `code` of the reason."""
        self._add(name, Finding.CONTRAINDICATED, source, explanation, code)

    def undecided(self, name: str, code: str, explanation: str) -> None:
        """Record that this verifier cannot decide about `name`."""
        self._add(name, Finding.NONE, Source.VERIFIER_DERIVED, explanation, code)

    def check(
        self,
        name: str,
        *,
        holds: bool,
        affirmed: str,
        code: str,
        refused: str,
        source: Source = Source.VERIFIER_DERIVED,
    ) -> bool:
        """Record `name` as affirmed or refused, and return `holds`."""
        if holds:
            self.affirm(name, affirmed, source=source)
        else:
            self.refuse(name, code, refused, source=source)
        return holds

    def holds(self, *names: str) -> bool:
        """Whether all of `names` were decided, and affirmed."""
        return all(
            name in self._claims and self._claims[name].finding is Finding.AFFIRMING
            for name in names
        )

    def close(self, names: Iterable[str], *, development: bool) -> tuple[Claim, ...]:
        """Return the claims in the order of `names`; those not decided say why not.

        On a development platform no hardware proves anything: what its TPM signs is the word of
        whoever runs the machine, and each claim that rests on it says so.
        """
        ordered = tuple(names)
        unknown = self._claims.keys() - set(ordered)
        if unknown:
            raise RuntimeError(f"claims outside the list: {sorted(unknown)}")
        failed = next(
            (
                self._claims[name]
                for name in ordered
                if name in self._claims and self._claims[name].finding is not Finding.AFFIRMING
            ),
            None,
        )
        reason = "an earlier step did not finish" if failed is None else failed.name
        for name in ordered:
            if name not in self._claims:
                self.undecided(name, NOT_CHECKED, f"Not checked, because {reason} did not hold.")
        claims = tuple(self._claims[name] for name in ordered)
        return tuple(map(_on_the_operators_word, claims)) if development else claims

    def _add(
        self, name: str, finding: Finding, source: Source, explanation: str, code: str | None
    ) -> None:
        if name in self._claims:
            raise RuntimeError(f"the claim {name} was made twice")
        self._claims[name] = Claim(
            name=name, finding=finding, source=source, explanation=explanation, code=code
        )


def _on_the_operators_word(claim: Claim) -> Claim:
    if claim.source is not Source.HARDWARE_PROVEN:
        return claim
    return dataclasses.replace(claim, source=Source.OPERATOR_ASSERTED)
