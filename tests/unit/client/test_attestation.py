"""How long a verdict counts, on clocks that the test moves."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from datetime import datetime, timedelta

import httpx2
import pytest

from cloister.client.address import WorkerAddress
from cloister.client.attestation import Attestation
from cloister.client.commands import Command, Fetch, Pause
from cloister.client.connection import Connection
from cloister.client.httpx2_transport import Httpx2Transport
from cloister.client.settings import ClientSettings, Effects, ReverifyLimits
from cloister.errors import AppraisalError, ChannelError, FetchError, MalformedError
from cloister.verifier.result import AffirmedAttester, AttestationResult
from support.fake_worker import FakeVerifier, FakeWorker
from support.wire import Httpx2Wire, WireReply, WireRequest


@dataclass
class Clocks:
    wall: float = 1_800_000_000.0
    steady: float = 50.0

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


class Bench:
    """An `Attestation`, its worker and its clocks."""

    def __init__(self, **limits: float) -> None:
        self.clocks = Clocks()
        self.verifier = FakeVerifier()
        self.worker = FakeWorker(clock=lambda: self.clocks.wall, life=timedelta(hours=1))
        self.settings = ClientSettings(reverify=ReverifyLimits(**limits))  # type: ignore[arg-type]
        self.state = Attestation(
            address=WorkerAddress.parse("http://worker.test"),
            verifier=self.verifier,
            settings=self.settings,
            effects=Effects(wall=lambda: self.clocks.wall, steady=lambda: self.clocks.steady),
        )
        self.pauses: list[float] = []

    def verify(self, stale: AffirmedAttester | None = None) -> AffirmedAttester:
        return self._drive(self.state.handshake(stale))

    def _drive(self, steps: Generator[Command, bytes | None, AffirmedAttester]) -> AffirmedAttester:
        try:
            command = next(steps)
            while True:
                if isinstance(command, Pause):
                    self.pauses.append(command.seconds)
                    command = steps.send(None)
                else:
                    assert isinstance(command, Fetch)
                    answer = self.worker(
                        WireRequest(method="GET", url=command.url, headers=[], body=b"")
                    )
                    command = steps.send(b"".join(answer.chunks))
        except StopIteration as stop:
            attester: AffirmedAttester = stop.value
            return attester


def test_a_verdict_counts_until_the_keyset_expires() -> None:
    bench = Bench()
    assert bench.state.current() is None
    attester = bench.verify()
    assert bench.state.current() is attester
    bench.clocks.advance(3599)
    assert bench.state.current() is attester
    bench.clocks.advance(1)
    assert bench.state.current() is None


def test_setting_the_wall_clock_back_does_not_lengthen_a_verdict() -> None:
    bench = Bench()
    attester = bench.verify()
    bench.clocks.wall -= 100_000
    bench.clocks.steady += 3599
    assert bench.state.current() is attester
    bench.clocks.steady += 1
    assert bench.state.current() is None


def test_setting_the_wall_clock_forward_ends_a_verdict() -> None:
    bench = Bench()
    attester = bench.verify()
    bench.clocks.wall += 3599
    assert bench.state.current() is attester
    bench.clocks.wall += 1
    assert bench.state.current() is None


def test_a_stale_worker_does_not_count() -> None:
    bench = Bench()
    attester = bench.verify()
    assert bench.state.current(stale=attester) is None
    other = bench.verify(stale=attester)
    assert bench.state.current(stale=attester) is other


def test_every_report_has_its_own_nonce() -> None:
    bench = Bench()
    nonces = []
    for _ in range(3):
        steps = bench.state.handshake()
        command = next(steps)
        assert isinstance(command, Fetch)
        nonces.append(command.url.partition("?nonce=")[2])
        steps.close()
    assert len(set(nonces)) == 3
    assert all(len(nonce) == 64 for nonce in nonces)


def test_the_bucket_of_reverifications_refills_with_time() -> None:
    bench = Bench(burst=2, refill_s=10, delay_s=0.5)
    attester = bench.verify()
    for _ in range(2):
        attester = bench.verify(stale=attester)
    assert bench.pauses == [0.5, 2.0]
    for seconds in (0, 9):
        bench.clocks.advance(seconds)
        with pytest.raises(ChannelError) as caught:
            bench.verify(stale=attester)
        assert caught.value.code == "channel.reverify_limited"
    bench.clocks.advance(1)
    bench.verify(stale=attester)
    bench.clocks.advance(10_000)
    bench.pauses.clear()
    attester = bench.verify()  # expired: no token needed
    for _ in range(2):
        attester = bench.verify(stale=attester)
    assert bench.pauses == [0.5, 2.0]


def test_a_refusal_ends_what_was_affirmed_before_and_is_remembered_a_while() -> None:
    bench = Bench(refused_s=5)
    attester = bench.verify()
    bench.worker.refuse = "no"
    with pytest.raises(AppraisalError) as caught:
        bench.verify(stale=attester)
    assert bench.state.current() is None
    assert bench.state.recent_refusal() is caught.value
    assert bench.state.result is caught.value.result
    bench.clocks.advance(5)
    assert bench.state.recent_refusal() is None


def test_a_report_that_does_not_arrive_leaves_what_was_affirmed() -> None:
    bench = Bench()
    attester = bench.verify()
    steps = bench.state.handshake(attester)
    next(steps)
    steps.send(None)
    with pytest.raises(FetchError):
        steps.throw(FetchError("not there"))
    assert bench.state.current() is attester
    assert bench.state.recent_refusal() is None


def test_there_is_a_result_while_another_thread_verifies_again() -> None:
    bench, seen = Bench(), []

    def appraise(report: bytes, *, nonce: bytes, at: datetime) -> AttestationResult:
        seen.append(bench.state.result)
        return FakeVerifier().appraise_report(report, nonce=nonce, at=at)

    bench.verifier.appraise_report = appraise  # type: ignore[method-assign]
    attester = bench.verify()
    first = bench.state.result
    bench.verify(stale=attester)
    assert seen == [None, first]
    assert bench.state.result is not first


def test_a_report_that_is_none_leaves_no_result() -> None:
    bench = Bench()
    attester = bench.verify()

    def appraise(*_: object, **__: object) -> AttestationResult:
        raise MalformedError("not a report")

    bench.verifier.appraise_report = appraise  # type: ignore[method-assign]
    with pytest.raises(MalformedError):
        bench.verify(stale=attester)
    assert bench.state.result is None


def test_an_old_result_does_not_stand_in_for_a_verification_that_failed() -> None:
    clocks = Clocks()
    worker = FakeWorker(clock=lambda: clocks.wall, life=timedelta(hours=1))
    broken = False

    def wire(request: WireRequest) -> WireReply:
        if broken:
            raise RuntimeError("a fault of somebody's")
        return worker(request)

    transport = Httpx2Transport(
        "http://worker.test",
        FakeVerifier(),
        inner=Httpx2Wire(wire),
        effects=Effects(wall=lambda: clocks.wall, steady=lambda: clocks.steady),
    )
    with Connection(transport, httpx2.Client(transport=transport)) as connection:
        connection.verify().require_affirming()
        clocks.advance(3600)
        broken = True
        with pytest.raises(RuntimeError):
            connection.verify()
