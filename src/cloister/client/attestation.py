"""Verifying the worker, remembering the verdict, and when to verify again. No I/O."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from cloister.client.address import WorkerAddress
from cloister.client.commands import Command, Fetch, Pause
from cloister.client.settings import ClientSettings, Effects
from cloister.errors import ChannelError, CloisterError, FetchError
from cloister.verifier.result import AffirmedAttester, AttestationResult

NONCE_SIZE = 32


class Verifier(Protocol):
    """Appraises one report; `cloister.client.trust.Trust` is the one to use."""

    def appraise_report(self, report: bytes, *, nonce: bytes, at: datetime) -> AttestationResult:
        """Check `report` against everything this verifier was configured with."""
        ...


class Attestation:
    """The verdict on one worker, shared by all requests to it.

    Methods do not block and touch plain attributes only; the drivers hold a lock around
    `handshake`, so that many requests at once cause one verification.
    """

    def __init__(
        self,
        *,
        address: WorkerAddress,
        verifier: Verifier,
        settings: ClientSettings,
        effects: Effects,
    ) -> None:
        self._address = address
        self._verifier = verifier
        self._settings = settings
        self._effects = effects
        self._affirmed: _Affirmed | None = None
        self._tokens = float(settings.reverify.burst)
        self._refilled = effects.steady()
        self._refusal: CloisterError | None = None
        self._refused_at = 0.0
        self.ended = 0
        """Handshakes that have ended; lets a waiter see that one did while it waited."""
        self.failure: Exception | None = None
        """What the last handshake ended with, unless it affirmed."""
        self.result: AttestationResult | None = None
        """The last result, affirming or not."""
        self.nonce: bytes | None = None
        """The nonce that the last report was asked for with."""

    def current(self, stale: AffirmedAttester | None = None) -> AffirmedAttester | None:
        """The affirmed worker, unless its time is over or it is the one called `stale`.

        Both clocks count: the wall clock may be set back, the steady one may have slept.
        """
        affirmed = self._affirmed
        if affirmed is None or affirmed.attester is stale:
            return None
        if (
            self._effects.wall() >= affirmed.attester.expires_at.timestamp()
            or self._effects.steady() >= affirmed.until
        ):
            return None
        return affirmed.attester

    def recent_refusal(self) -> CloisterError | None:
        """The last refusal, while it is too early to ask for another quote."""
        waited = self._effects.steady() - self._refused_at
        return self._refusal if waited < self._settings.reverify.refused_s else None

    def handshake(
        self, stale: AffirmedAttester | None = None
    ) -> Generator[Command, bytes | None, AffirmedAttester]:
        """Fetch a report over a fresh nonce and verify it; the generator returns the worker.

        With `stale`, an unauthenticated message asked for this, so it is rate-limited.

        Raises:
            AppraisalError, AuthenticationError, MalformedError, UnsupportedError: the evidence
                is not affirmed. Nothing was sent to the worker but a nonce.
            FetchError: no report could be had.
            ChannelError: asked for too often (code ``channel.reverify_limited``).
        """
        if stale is not None:
            yield Pause(seconds=self._spend_token())
        try:
            attester = yield from self._verify()
        except Exception as error:
            self.ended += 1
            self.failure = error
            # A report that does not arrive says nothing about what was affirmed before.
            if isinstance(error, CloisterError) and not isinstance(error, FetchError):
                self._refusal = error
                self._refused_at = self._effects.steady()
                self._affirmed = None
            raise
        self.ended += 1
        self.failure = self._refusal = None
        return attester

    def _verify(self) -> Generator[Command, bytes | None, AffirmedAttester]:
        effects = self._effects
        nonce = effects.random(NONCE_SIZE)
        report = yield Fetch(
            url=self._address.report_url(nonce),
            limit=self._settings.max_report,
            seconds=self._settings.report_s,
        )
        if report is None:
            raise RuntimeError("the driver answered a fetch with nothing")
        now = effects.wall()
        self.nonce = nonce
        try:
            result = self._verifier.appraise_report(
                report, nonce=nonce, at=datetime.fromtimestamp(now, UTC)
            )
        except Exception:
            self.result = None
            raise
        self.result = result  # in one step: other threads may be reading the one before
        attester = result.require_affirming()
        life = attester.expires_at.timestamp() - now
        self._affirmed = _Affirmed(attester=attester, until=effects.steady() + life)
        return attester

    def _spend_token(self) -> float:
        """Take one token of the bucket and return how long to wait first."""
        limits = self._settings.reverify
        now = self._effects.steady()
        gained = (now - self._refilled) / limits.refill_s
        self._tokens = min(float(limits.burst), self._tokens + gained)
        self._refilled = now
        if self._tokens < 1:
            raise ChannelError(
                "something between here and the worker keeps saying that the worker's key has"
                " changed; it is not verified again so soon",
                code="channel.reverify_limited",
            )
        spent = limits.burst - self._tokens
        self._tokens -= 1
        return float(limits.delay_s * 4**spent)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Affirmed:
    attester: AffirmedAttester
    until: float
    """On the steady clock."""
