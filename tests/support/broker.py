"""A broker in memory, and workers that ask it: simulated TPMs, clocks that the test turns."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from cloister.broker.database import Database
from cloister.broker.denial import UNAUTHENTICATED, Denied
from cloister.broker.desk import Desk
from cloister.broker.policy import ResourcePolicy
from cloister.broker.root_keys.development import MemoryRootKey
from cloister.broker.store import Store
from cloister.channel import rcar
from cloister.channel.key_release import Released
from cloister.channel.resource_uri import ResourceUri
from cloister.endorsements.roots import Roots
from cloister.evidence.report import TEE_TYPE_TPM, EvidenceItem
from cloister.testing.simulated_tpm import SimulatedAttester
from cloister.verifier import policy as policies
from cloister.verifier.policy import UNCHECKED
from cloister.worker.key_release import Answer, Prover, release_key

ROOT = MemoryRootKey(b"r" * 32)
WEIGHTS = ResourceUri(repository="acme", type="weights", tag="llama")
OTHER = ResourceUri(repository="acme", type="weights", tag="other")
SECRET = b"the weights key".ljust(32, b".")
SOURCE = "192.0.2.7"

Json = dict[str, Any]
Edit = Callable[[Json], Json | None]


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1_796_000_000.0

    def __call__(self) -> float:
        return self.now


CLOCK_START = datetime.fromtimestamp(1_796_000_000, UTC)


@dataclass(kw_only=True)
class Bench:
    """A store with one secret that a simulated worker may have, and its desk."""

    store: Store
    desk: Desk
    clock: Clock
    attester: SimulatedAttester

    @property
    def prover(self) -> Prover:
        return prover_of(self.attester)

    @property
    def policy(self) -> ResourcePolicy:
        return policy_for(self.attester)

    def release(
        self, uri: ResourceUri = WEIGHTS, *, edits: Mapping[str, Edit] | None = None, **options: Any
    ) -> Released:
        """What an honest worker does; `edits` change its messages on the way, by step."""
        options = {"prover": self.prover, "broker": self.store.identity, **options}
        return release_key(uri, send=Wire(self.desk, edits or {}), **options)

    def log(self) -> list[Json]:
        return [json.loads(entry) for entry in self.store.audit_entries()]

    def last(self) -> Json:
        entry: Json = self.log()[-1]
        return entry

    def denial(self) -> tuple[str, str | None]:
        """Code and cause of the last entry, which is a denial."""
        entry = self.last()
        assert entry["event"] == "denied", entry
        return entry["detail"]["code"].removeprefix("key_release."), entry["detail"]["because"]


@dataclass(kw_only=True)
class Wire:
    """Requests to a desk without a network, answered as `cloister.broker.app` would."""

    desk: Desk
    edits: Mapping[str, Edit] = field(default_factory=dict)

    def __init__(self, desk: Desk, edits: Mapping[str, Edit] | None = None) -> None:
        self.desk = desk
        self.edits = edits or {}

    def __call__(
        self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str]
    ) -> Answer:
        cookie = headers.get("cookie", "").removeprefix(f"{rcar.COOKIE}=") or None
        token = headers.get("authorization", "").removeprefix("Bearer ") or None
        try:
            if path == rcar.AUTH_PATH:
                made, session = self.desk.challenge(self._edited("auth", body), source=SOURCE)
                return Answer(status=200, body=made, cookie=session)
            if path == rcar.ATTEST_PATH:
                body = self._edited("attest", body)
                return Answer(status=200, body=self.desk.attest(cookie, body, source=SOURCE))
            sealed, _ = self.desk.release(cookie, token, path, source=SOURCE)
            return Answer(status=200, body=sealed)
        except Denied as denied:
            status = 401 if denied.reason in UNAUTHENTICATED else 403
            return Answer(
                status=status, body=rcar.encode_error("Denied", f"{denied} [{denied.code}]")
            )

    def _edited(self, step: str, body: bytes) -> bytes:
        if step not in self.edits:
            return body
        message = json.loads(body)
        changed = self.edits[step](message)
        return json.dumps(message if changed is None else changed).encode()


class Quotes:
    """Evidence of a simulated TPM over any digest."""

    def __init__(self, attester: SimulatedAttester) -> None:
        self.attester = attester

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        made = self.attester.attestation_report(None, statement=lambda *_: statement_digest)
        return {name: item for name, item in made.evidence.items() if name != "claims"}


def prover_of(attester: SimulatedAttester, **changes: Any) -> Prover:
    made = Prover(
        source=Quotes(attester),
        tee_type=TEE_TYPE_TPM,
        keyset=attester.keyset,
        claims=attester.claims_document,
    )
    return dataclasses.replace(made, **changes)


def policy_for(attester: SimulatedAttester, **changes: Any) -> ResourcePolicy:
    made = ResourcePolicy(
        appraisal=policies.development(),
        manifest=UNCHECKED,
        reference_values=attester.reference_values,
    )
    return dataclasses.replace(made, **changes)


@cache
def simulated() -> SimulatedAttester:
    """One worker for the whole run; nobody changes it."""
    return SimulatedAttester.make(now=CLOCK_START)


@contextlib.contextmanager
def bench(
    path: Path | str, *, attester: SimulatedAttester | None = None, **options: Any
) -> Iterator[Bench]:
    """A new store at `path` (a directory for SQLite, or a database's address) and its desk."""
    address = path if isinstance(path, str) else f"sqlite:///{path / 'broker.db'}"
    clock, attester = Clock(), attester or simulated()
    database = Database.open(address)
    try:
        store = Store.create(database, ROOT, now=clock)
        store.put(WEIGHTS, SECRET)
        store.set_policy(WEIGHTS, policy_for(attester))
        roots: Roots = options.pop("roots", attester.roots)
        desk = Desk(store, roots=roots, random=os.urandom, **options)
        yield Bench(store=store, desk=desk, clock=clock, attester=attester)
    finally:
        database.close()


@dataclass(kw_only=True)
class Attested:
    """A worker between token and release."""

    cookie: str
    token: str
    body: bytes
    """Its attestation, as sent."""


def attested(at: Bench, uri: ResourceUri = WEIGHTS, **options: Any) -> Attested:
    """Go as far as the token, and no further."""
    seen: dict[str, Any] = {}

    class Stop(Exception):  # noqa: N818 - a way out, and no error
        pass

    wire = Wire(at.desk)

    def send(method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str]) -> Answer:
        if method == "GET":
            seen["cookie"] = headers["cookie"].removeprefix(f"{rcar.COOKIE}=")
            seen["token"] = headers["authorization"].removeprefix("Bearer ")
            raise Stop
        if path == rcar.ATTEST_PATH:
            seen["body"] = body
        return wire(method, path, body=body, headers=headers)

    with contextlib.suppress(Stop):
        release_key(uri, **{"prover": at.prover, "broker": at.store.identity, **options}, send=send)
    return Attested(**seen)
