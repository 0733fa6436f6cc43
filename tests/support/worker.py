"""A worker in memory: fake engine, fake evidence, clocks that the test turns."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.channel.claims import ClaimsDocument, ModelClaim
from cloister.evidence.report import EvidenceItem
from cloister.testing.fake_engine import FakeEngine
from cloister.worker.app import Worker, build_worker
from cloister.worker.logs import EventLog
from cloister.worker.settings import Clocks, Separation, WorkerSettings
from cloister.worker.tls_key import TlsKey
from support.sealed import Peer


class TurnedClocks:
    """Clocks that go on, and that a test can set."""

    def __init__(self) -> None:
        self.wall_offset = 0.0
        self.steady_offset = 0.0

    @property
    def clocks(self) -> Clocks:
        return Clocks(wall=self.wall, steady=self.steady)

    def wall(self) -> float:
        return time.time() + self.wall_offset

    def steady(self) -> float:
        return time.monotonic() + self.steady_offset


class FakeEvidence:
    """Evidence that is nothing but the bytes it should bind."""

    def __init__(self) -> None:
        self.made = 0

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        self.made += 1
        return {"test.digest": EvidenceItem(media_type="text/plain", data=statement_digest)}


@dataclass(slots=True, kw_only=True)
class Bench:
    """One running worker and everything around it."""

    worker: Worker
    engine: FakeEngine
    evidence: FakeEvidence
    clocks: TurnedClocks
    stream: io.StringIO
    peer: Peer

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.log if event["event"] == name]


def claims() -> ClaimsDocument:
    return ClaimsDocument(
        models=(ModelClaim(name="fake", sha256="0" * 64),),
        configuration={"engine": "fake"},
        isolation="none (fake engine)",
    )


def fitting(engine: FakeEngine, settings: WorkerSettings | None) -> WorkerSettings:
    """`settings`, without exchanging what cannot be exchanged."""
    settings = settings or WorkerSettings()
    if engine.sibling() is not None:
        return settings
    return dataclasses.replace(settings, separation=Separation.of_one_process())


@contextlib.asynccontextmanager
async def running(
    settings: WorkerSettings | None = None,
    *,
    engine: FakeEngine | None = None,
    others: Sequence[FakeEngine] = (),
    evidence: FakeEvidence | None = None,
    api_keys: Path | None = None,
    open_when_empty: bool = True,
    tls_key: TlsKey | None = None,
) -> AsyncIterator[Bench]:
    """A started worker, stopped at the end; `others` are engines of further models."""
    engine = engine or FakeEngine()
    evidence = evidence or FakeEvidence()
    clocks = TurnedClocks()
    stream = io.StringIO()
    worker = build_worker(
        engines=[engine, *others],
        source=evidence,
        claims=claims(),
        log=EventLog(stream),
        settings=fitting(engine, settings),
        clocks=clocks.clocks,
        api_keys=api_keys,
        open_when_empty=open_when_empty,
        tls_key=tls_key,
    )
    await worker.start()
    peer = Peer(worker, lambda: worker.context.keys.current.keyset, clocks.wall)
    try:
        yield Bench(
            worker=worker,
            engine=engine,
            evidence=evidence,
            clocks=clocks,
            stream=stream,
            peer=peer,
        )
    finally:
        await worker.stop()
