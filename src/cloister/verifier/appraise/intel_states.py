"""Whether a policy accepts the states that Intel gives a platform, and what is open in them.

Claims, each with the prefix of the platform: one for each state (``platform_tcb``, ``qe_tcb``,
``tdx_module_tcb``), ``tcb_status`` for all of them together and ``tcb_advisories``. Only compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cloister.verifier.appraise.intel_levels import OUT_OF_DATE, REVOKED, Level, converged
from cloister.verifier.ledger import FAIL, Ledger
from cloister.verifier.policy import UP_TO_DATE, AppraisalPolicy, Unchecked

PLATFORM_TCB: Final = "platform_tcb"
QE_TCB: Final = "qe_tcb"
TDX_MODULE_TCB: Final = "tdx_module_tcb"
TCB_STATUS: Final = "tcb_status"
ADVISORIES: Final = "tcb_advisories"

MAX_NAMED: Final = 4
"""Advisories that an explanation names before it only counts them."""

NO_LEVEL: Final = "no_matching_level"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """A ledger for claims of one platform, whose names begin with `prefix`."""

    ledger: Ledger
    prefix: str

    def check(
        self,
        name: str,
        *,
        holds: bool,
        affirmed: str,
        code: str,
        refused: str,
        value: str | None = None,
    ) -> None:
        """As `Ledger.check`."""
        self.ledger.check(
            self.prefix + name,
            holds=holds,
            affirmed=affirmed,
            code=code,
            refused=refused,
            value=value,
        )

    def affirm(self, name: str, explanation: str, *, value: str) -> None:
        """As `Ledger.affirm`."""
        self.ledger.affirm(self.prefix + name, explanation, value=value)

    def refuse(self, name: str, code: str, explanation: str, *, value: str = FAIL) -> None:
        """As `Ledger.refuse`."""
        self.ledger.refuse(self.prefix + name, code, explanation, value=value)


@dataclass(frozen=True, slots=True)
class State:
    """One part of the TCB: its claim, its name, its level, and the list that the level is on."""

    claim: str
    what: str
    level: Level | None
    levels: Sequence[Level]

    @property
    def next_date(self) -> datetime | None:
        """When the first newer level appeared."""
        if self.level is None:
            return None
        newer = self.levels[: self.levels.index(self.level)]
        later = [level.tcb_date for level in newer if level.tcb_date > self.level.tcb_date]
        return min(later, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateJudge:
    """What `policy` says at the time `at` to the states of a platform."""

    policy: AppraisalPolicy
    at: datetime
    claims: Claims

    def judge(self, states: Sequence[State]) -> None:
        """The states one by one, then together, then what is open in them."""
        for state in states:
            self._state(state)
        self._together(states)
        self._advisories(states)

    def _state(self, state: State) -> None:
        level = state.level
        if level is None:
            self.claims.refuse(
                state.claim,
                "tcb_no_match",
                f"The {state.what} is below every TCB level that Intel lists.",
                value=NO_LEVEL,
            )
            return
        grace = self._in_grace(state)
        dated = f"{level.status} (TCB level of {level.tcb_date:%Y-%m-%d})"
        self.claims.check(
            state.claim,
            holds=grace or self._accepts(level.status),
            affirmed=f"Intel calls the {state.what} {dated}"
            + (", within the time that the policy allows for updates." if grace else "."),
            code="tcb_status",
            refused=f"Intel calls the {state.what} {dated}, which the policy does not accept"
            f"{_open(level.advisory_ids)}.",
            value=level.status,
        )

    def _together(self, states: Sequence[State]) -> None:
        found = converged([None if s.level is None else s.level.status for s in states])
        worth = converged([self._worth(state) for state in states])
        if found is None or worth is None:
            return
        self.claims.check(
            TCB_STATUS,
            holds=self._accepts(worth),
            affirmed=f"Taken together, Intel calls the platform {found}.",
            code="tcb_status",
            refused=f"Taken together, Intel calls the platform {found}, which the policy does not"
            " accept.",
            value=found,
        )

    def _advisories(self, states: Sequence[State]) -> None:
        levels = [state.level for state in states if state.level is not None]
        every = all_advisories(levels)
        denied, accepted = self.policy.tcb_denied_advisories, self.policy.tcb_accepted_advisories
        found = ",".join(every) or "none"
        bad = () if isinstance(denied, Unchecked) else [name for name in every if name in denied]
        if bad:
            self.claims.refuse(
                ADVISORIES,
                "advisory_denied",
                f"Your policy denies what is open on this platform: {', '.join(bad)}.",
                value=found,
            )
            return
        still = all_advisories(level for level in levels if level.status != UP_TO_DATE)
        unaccepted = (
            [] if isinstance(accepted, Unchecked) else [n for n in still if n not in accepted]
        )
        self.claims.check(
            ADVISORIES,
            holds=not unaccepted,
            affirmed=f"Open advisories: {', '.join(every) or 'none'}; the policy accepts that.",
            code="advisory_open",
            refused=f"Open on this platform, and not accepted: {', '.join(unaccepted)}.",
            value=found,
        )

    def _accepts(self, status: str) -> bool:
        accepted = self.policy.tcb_statuses
        return status != REVOKED and (isinstance(accepted, Unchecked) or status in accepted)

    def _worth(self, state: State) -> str | None:
        """The state, or that of a platform up to date while the time of grace runs."""
        if state.level is None:
            return None
        return UP_TO_DATE if self._in_grace(state) else state.level.status

    def _in_grace(self, state: State) -> bool:
        """Whether the first newer level is not older than the policy's time of grace."""
        level, grace = state.level, self.policy.tcb_grace_s
        if level is None or level.status != OUT_OF_DATE or isinstance(grace, Unchecked):
            return False
        since = state.next_date
        # A difference, for the date may lie so far ahead that nothing can be added to it.
        return since is not None and self.at - since <= timedelta(seconds=grace)


def all_advisories(levels: Iterable[Level]) -> tuple[str, ...]:
    """Every advisory that is open at one of `levels`, sorted."""
    return tuple(sorted({name for level in levels for name in level.advisory_ids}))


def _open(advisories: Sequence[str]) -> str:
    if not advisories:
        return ""
    shown = ", ".join(advisories[:MAX_NAMED])
    more = len(advisories) - MAX_NAMED
    return f"; open: {shown}" + (f" and {more} more" if more > 0 else "")
