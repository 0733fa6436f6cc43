"""Collects claims while evidence is verified.

Verification goes on after a step failed, as far as it can: people want to know everything that
is wrong at once. A step that needed the failed one is listed too, as not decided.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from cloister.verifier.result import Claim, Finding, Source

NOT_CHECKED = "not_checked"
"""Code of a claim that could not be decided because an earlier one failed."""

UNAUTHENTICATED = "unauthenticated"
"""Code of a claim that the evidence would support, had its signature held."""

CPU = "cpu0"
PASS = "pass"  # noqa: S105 - the word for a finding, not a password
FAIL = "fail"

_Key = tuple[str, str]


class Ledger:
    """The claims made so far: each name once for each device.

    `on`, `stated` and `asserted` give views that write into the same ledger.
    """

    def __init__(self) -> None:
        self._claims: dict[_Key, Claim] = {}
        self._expected: dict[_Key, None] = {}
        self._device = CPU
        self._stated = False
        self._source = Source.HARDWARE_PROVEN

    def on(self, device: str) -> Ledger:
        """This ledger, for claims about another device (``gpu0``, ``vtpm0``)."""
        view = self._view()
        view._device = device
        return view

    def stated(self) -> Ledger:
        """This ledger, for what unauthenticated evidence says of itself.

        What would be affirmed is recorded as not decided (code ``unauthenticated``), with its
        value; what would be refused is refused.
        """
        view = self._view()
        view._stated = True
        return view

    def asserted(self) -> Ledger:
        """This ledger, for what a provider's TPM says beside hardware that does not name its key.

        What would count as proven by hardware is recorded as the provider's word.
        """
        view = self._view()
        view._source = Source.PROVIDER_ASSERTED
        return view

    def expect(self, *names: str) -> None:
        """Promise that each of `names` will be decided, in this order; `close` keeps the word."""
        self._expected |= dict.fromkeys((self._device, name) for name in names)

    def affirm(
        self,
        name: str,
        explanation: str,
        *,
        source: Source = Source.VERIFIER_DERIVED,
        value: str = PASS,
    ) -> None:
        """Record that `name` holds."""
        if self._stated:
            self.undecided(
                name,
                UNAUTHENTICATED,
                f"Only the unauthenticated evidence says so: {explanation}",
                value=value,
            )
        else:
            self._claim(name, Finding.AFFIRMING, explanation, source=source, value=value)

    def warn(self, name: str, code: str, explanation: str, *, value: str) -> None:
        """Record that `name` does not quite hold: nothing is refused, and nothing affirmed."""
        self._claim(name, Finding.WARNING, explanation, code=code, value=value)

    def refuse(
        self,
        name: str,
        code: str,
        explanation: str,
        *,
        source: Source = Source.VERIFIER_DERIVED,
        value: str = FAIL,
    ) -> None:
        """Record that `name` does not hold, with the stable `code` of the reason."""
        self._claim(
            name, Finding.CONTRAINDICATED, explanation, source=source, code=code, value=value
        )

    def undecided(
        self, name: str, code: str, explanation: str, *, value: str | None = None
    ) -> None:
        """Record that this verifier cannot decide about `name`."""
        self._claim(name, Finding.NONE, explanation, code=code, value=value)

    def check(
        self,
        name: str,
        *,
        holds: bool,
        affirmed: str,
        code: str,
        refused: str,
        source: Source = Source.VERIFIER_DERIVED,
        value: str | None = None,
    ) -> bool:
        """Record `name` as affirmed or refused, and return `holds`.

        `value` is what was found, where that says more than ``pass`` and ``fail``.
        """
        if holds:
            self.affirm(name, affirmed, source=source, value=PASS if value is None else value)
        else:
            self.refuse(name, code, refused, source=source, value=FAIL if value is None else value)
        return holds

    def holds(self, *names: str) -> bool:
        """Whether all of `names` were decided for this device, and affirmed."""
        claims = (self._claims.get((self._device, name)) for name in names)
        return all(claim is not None and claim.finding is Finding.AFFIRMING for claim in claims)

    def others_hold(self) -> bool:
        """Whether every claim promised or made about other devices than this was affirmed."""
        others = (key for key in {**self._expected, **self._claims} if key[0] != self._device)
        return all(
            key in self._claims and self._claims[key].finding is Finding.AFFIRMING for key in others
        )

    def made(self, name: str) -> bool:
        """Whether `name` was recorded for this device, whatever was found."""
        return (self._device, name) in self._claims

    def made_claims(self) -> tuple[Claim, ...]:
        """The claims made so far, in the order in which they were."""
        return tuple(self._claims.values())

    def close(
        self, names: Iterable[str] = (), *, development: bool, proven: bool = True
    ) -> tuple[Claim, ...]:
        """Return the claims in the order expected; those not decided say why not.

        `names` are claims about ``cpu0`` that are expected besides those promised already.

        On a development platform no hardware proves anything: what its TPM signs is the word of
        whoever runs the machine, and each claim that rests on it says so. Nor does it where the
        evidence as a whole is not `proven` genuine: a forger signs well, with a key of their own.
        """
        ordered = tuple(dict.fromkeys((*((CPU, name) for name in names), *self._expected)))
        unknown = self._claims.keys() - set(ordered)
        if unknown:
            raise RuntimeError(f"claims outside the list: {sorted(unknown)}")
        failed = next(
            (
                self._claims[key]
                for key in ordered
                if key in self._claims and self._claims[key].finding is not Finding.AFFIRMING
            ),
            None,
        )
        reason = "an earlier step did not finish" if failed is None else failed.name
        for device, name in ordered:
            if (device, name) not in self._claims:
                self.on(device).undecided(
                    name, NOT_CHECKED, f"Not checked, because {reason} did not hold."
                )
        claims = tuple(self._claims[key] for key in ordered)
        if development:
            return tuple(_on_the_word_of(Source.OPERATOR_ASSERTED, claim) for claim in claims)
        if not proven:
            return tuple(_on_the_word_of(Source.VERIFIER_DERIVED, claim) for claim in claims)
        return claims

    def _view(self) -> Ledger:
        view = Ledger()
        view._claims, view._expected = self._claims, self._expected
        view._device, view._stated, view._source = self._device, self._stated, self._source
        return view

    def _claim(
        self,
        name: str,
        finding: Finding,
        explanation: str,
        *,
        source: Source = Source.VERIFIER_DERIVED,
        code: str | None = None,
        value: str | None = None,
    ) -> None:
        key = (self._device, name)
        if key in self._claims:
            raise RuntimeError(f"the claim {name} about {self._device} was made twice")
        self._claims[key] = Claim(
            name=name,
            finding=finding,
            source=self._source if source is Source.HARDWARE_PROVEN else source,
            explanation=explanation,
            code=code,
            device=self._device,
            value=value,
        )


def _on_the_word_of(source: Source, claim: Claim) -> Claim:
    if claim.source not in {Source.HARDWARE_PROVEN, Source.PROVIDER_ASSERTED}:
        return claim
    return dataclasses.replace(claim, source=source)
