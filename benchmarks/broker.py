"""What releasing one key costs, from the challenge to the unwrapped key.

The broker runs on one core with SQLite on disk, flushed at every commit; workers ask from another
core over loopback HTTP, one connection each. A worker has a simulated TPM, whose quote and log are
checked as a real one's; each release has a wrapping key, a challenge and evidence of its own.
Beside it stands what cannot be avoided: two signatures to check and two to make, one hybrid key
made, used and opened, and two flushes to the same disk.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.cookies import SimpleCookie
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.broker_process import SECRET, make_store
from benchmarks.children import child
from benchmarks.context import Context
from benchmarks.harness import (
    MILLISECONDS,
    PLAIN,
    Arm,
    Report,
    Rounds,
    Sample,
    at_least,
    at_most,
    beside,
    measure,
)
from benchmarks.machine import cpu_of
from benchmarks.primitives import Signature, cpu_of_signatures
from benchmarks.reports import attester
from benchmarks.statistics import median
from cloister.broker.appraisal import appraise_worker
from cloister.broker.desk import Desk
from cloister.broker.policy import load_json
from cloister.channel import rcar
from cloister.channel.hpke import PrivateKey
from cloister.channel.key_release import (
    SUITE,
    BrokerIdentity,
    ReleaseRequest,
    open_release,
    parse_wrapping_jwk,
    seal_release,
)
from cloister.evidence.report import TEE_TYPE_TPM, EvidenceItem
from cloister.testing.simulated_tpm import SimulatedAttester
from cloister.worker.key_release import Answer, Prover, Send, release_key

SERVER_CORE, CLIENT_CORE = 0, 1
AT_ONCE = 1000


class _Quotes:
    """Evidence of a simulated TPM over any digest."""

    def __init__(self, worker: SimulatedAttester) -> None:
        self._worker = worker
        self._fixed = dict(worker.attestation_report(None).evidence)
        del self._fixed["claims"]

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        quote, signature = self._worker.tpm.quote(statement_digest)
        made = dict(self._fixed)
        for name, data in (("tpm.quote", quote), ("tpm.signature", signature)):
            old = made[name]
            made[name] = EvidenceItem(
                media_type=old.media_type, data=data, endorsements=old.endorsements
            )
        return made


def _prover(worker: SimulatedAttester) -> Prover:
    return Prover(
        source=_Quotes(worker),
        tee_type=TEE_TYPE_TPM,
        keyset=worker.keyset,
        claims=worker.claims_document,
    )


class _Plain:
    """Requests over one kept connection of the standard library, which costs the client little."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=200)

    def __call__(
        self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str]
    ) -> Answer:
        self._connection.request(method, path, body or None, dict(headers))
        response = self._connection.getresponse()
        jar: SimpleCookie = SimpleCookie(response.getheader("set-cookie") or "")
        cookie = jar[rcar.COOKIE].value if rcar.COOKIE in jar else None
        return Answer(status=response.status, body=response.read(), cookie=cookie)

    def close(self) -> None:
        self._connection.close()


def _primitives(directory: Path, count: int) -> Callable[[], Sample]:
    key, message = Ed25519PrivateKey.generate(), os.urandom(600)

    def run() -> Sample:
        began, cpu = time.perf_counter(), time.process_time()
        with (directory / "flushed").open("ab") as file:
            for _ in range(count):
                cpu_of_signatures((Signature.P256, Signature.P256), 1)
                key.sign(message)
                key.sign(message)
                private = PrivateKey.generate(SUITE.kem)
                request = _request(private, BrokerIdentity(key.public_key().public_bytes_raw()))
                sealed = seal_release(
                    bytes(32),
                    version=1,
                    request=request,
                    statement_digest=bytes(32),
                    identity_key=key,
                )
                open_release(
                    sealed, private_key=private, request=request, statement_digest=bytes(32)
                )
                for _ in range(2):
                    file.write(bytes(4096))
                    file.flush()
                    os.fsync(file.fileno())
        return {
            "wall": (time.perf_counter() - began) / count,
            "cpu": (time.process_time() - cpu) / count,
        }

    return run


def _request(private: PrivateKey, identity: BrokerIdentity) -> ReleaseRequest:
    return ReleaseRequest(
        broker=identity, resource=SECRET, version=None, wrapping_key=private.public_bytes
    )


def _one_by_one(send: Send, prover: Prover, identity: BrokerIdentity, count: int) -> Sample:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        release_key(SECRET, prover=prover, broker=identity, send=send)
        times.append(time.perf_counter() - began)
    return {"wall": median(times)}


def _all_at_once(
    port: int, pid: int, prover: Prover, identity: BrokerIdentity, *, workers: int, each: int
) -> tuple[Sample, list[float]]:
    """`workers` begin together; the rate, the broker's CPU for each release, when each was done."""
    gate, ends = threading.Barrier(workers + 1), []

    def work() -> None:
        with contextlib.closing(_Plain(port)) as send:
            gate.wait(120)
            for _ in range(each):
                release_key(SECRET, prover=prover, broker=identity, send=send)
            ends.append(time.perf_counter())

    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(work) for _ in range(workers)]
        gate.wait(120)
        began, used = time.perf_counter(), cpu_of([pid])
        for one in running:
            one.result()
    wall, cpu = time.perf_counter() - began, cpu_of([pid]) - used
    total = workers * each
    return {"rate": total / wall, "cpu": cpu / total}, [end - began for end in ends]


def _shares(directory: Path, worker: SimulatedAttester, count: int) -> dict[str, float]:
    """Milliseconds of each step, taken without HTTP in this process."""
    store = make_store(directory, worker.reference_values.dump_json())
    desk, prover = Desk(store, roots=worker.roots), _prover(worker)
    times: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[[], object]) -> object:
        began = time.perf_counter()
        result = run()
        times.setdefault(name, []).append(time.perf_counter() - began)
        return result

    def send(method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str]) -> Answer:
        cookie = headers.get("cookie", "").removeprefix(f"{rcar.COOKIE}=") or None
        token = headers.get("authorization", "").removeprefix("Bearer ") or None
        if path == rcar.AUTH_PATH:
            began = time.perf_counter()
            challenge, session = desk.challenge(body, source="bench")
            times.setdefault("challenge", []).append(time.perf_counter() - began)
            return Answer(status=200, body=challenge, cookie=session)
        if path == rcar.ATTEST_PATH:
            _verify_alone(body, desk, worker, timed)
            answer = timed("attest", lambda: desk.attest(cookie, body, source="bench"))
            return Answer(status=200, body=answer if isinstance(answer, bytes) else b"")
        began = time.perf_counter()
        sealed, _ = desk.release(cookie, token, path, source="bench")
        times.setdefault("release", []).append(time.perf_counter() - began)
        return Answer(status=200, body=sealed)

    for _ in range(count):
        timed(
            "whole",
            lambda: release_key(SECRET, prover=prover, broker=store.identity, send=send),
        )
        private = PrivateKey.generate(SUITE.kem)
        timed(
            "seal",
            lambda private=private: seal_release(  # type: ignore[misc]  # a loop's value
                bytes(32),
                version=1,
                request=_request(private, store.identity),
                statement_digest=bytes(32),
                identity_key=store.identity_key,
            ),
        )
    store.database.close()
    return {name: 1000 * median(values) for name, values in times.items()}


def _verify_alone(
    body: bytes, desk: Desk, worker: SimulatedAttester, timed: Callable[..., object]
) -> None:
    """The appraisal once more, by itself."""
    attestation = rcar.parse_attestation(body)
    evidence = rcar.parse_worker_evidence(attestation.evidence)
    nonce = rcar.parse_challenge(rcar.encode_challenge(_decoded(attestation.nonce)))
    resource = desk.store.resources()[0]
    policy = resource.policy or load_json(b"")
    request = ReleaseRequest(
        broker=desk.store.identity,
        resource=SECRET,
        version=None,
        wrapping_key=parse_wrapping_jwk(attestation.tee_pubkey),
    )
    timed(
        "verify",
        lambda: appraise_worker(
            evidence,
            request=request,
            nonce=nonce,
            policy=policy,
            revocations={},
            remembered=None,
            identities=None,
            roots=worker.roots,
            at=datetime.now(UTC),
        ),
    )


def _decoded(text: str) -> bytes:
    import base64

    return base64.b64decode(text)


def _on_disk() -> tempfile.TemporaryDirectory[str]:
    """A folder beside the results: the system's own may be memory, which flushes for nothing."""
    out = Path(__file__).resolve().parent / "out"
    out.mkdir(exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="broker-", dir=out)


@contextlib.contextmanager
def _broker(worker: SimulatedAttester, directory: Path) -> Iterator[tuple[int, int, str]]:
    spec = {
        "directory": str(directory),
        "reference_values": worker.reference_values.dump_json(),
        "roots": worker.roots.to_pem().decode(),
        "core": SERVER_CORE,
    }
    with child("benchmarks.broker_process", spec) as helper:
        yield helper.ready["port"], helper.ready["pid"], helper.ready["identity"]


def run(context: Context) -> Report:
    """Measure one release after another, many at once, and each step."""
    worker = attester()
    prover, many = _prover(worker), context.count(AT_ONCE, 20)
    if os.cpu_count() != 1:
        os.sched_setaffinity(0, {CLIENT_CORE})
    with _on_disk() as folder:
        directory = Path(folder)
        (directory / "shares").mkdir()
        primitives = _primitives(directory, context.count(20, 2))
        with _broker(worker, directory) as (port, pid, name):
            identity = BrokerIdentity.parse(name)
            with contextlib.closing(_Plain(port)) as send:
                alone = measure(
                    [
                        Arm(
                            name="release",
                            run=lambda: _one_by_one(send, prover, identity, context.count(40, 2)),
                        ),
                        Arm(name="primitives", run=primitives),
                    ],
                    context.plan(10),
                )
            busy = measure(
                [
                    Arm(
                        name="release",
                        run=lambda: _all_at_once(
                            port, pid, prover, identity, workers=8, each=context.count(30, 2)
                        )[0],
                    ),
                    Arm(name="primitives", run=lambda: _rate(primitives())),
                ],
                context.plan(10),
            )
            crowd, ends = _all_at_once(port, pid, prover, identity, workers=many, each=1)
        shares = _shares(directory / "shares", worker, context.count(40, 2))
    return _report(alone, busy, crowd, sorted(ends), shares)


def _rate(sample: Sample) -> Sample:
    return {"rate": 1 / sample["wall"], "cpu": sample["cpu"]}


def _report(
    alone: Rounds,
    busy: Rounds,
    crowd: Sample,
    ends: list[float],
    shares: dict[str, float],
) -> Report:
    whole = 1000 * median(alone.values("release", "wall"))
    own = shares["whole"] - shares["challenge"] - shares["attest"] - shares["release"]
    own -= shares["verify"]  # taken once more, between the messages
    steps = {
        "the worker (wrapping key, quote, opening)": own,
        "challenge": shares["challenge"],
        "verifying the evidence": shares["verify"],
        "the rest of the attestation, with its commit": shares["attest"] - shares["verify"],
        "sealing": shares["seal"],
        "the rest of the release, with its commit": shares["release"] - shares["seal"],
    }
    http_ms = whole - sum(steps.values())
    told = ", ".join(
        f"{name} {value:.2f} ms ({100 * value / whole:.0f} %)" for name, value in steps.items()
    )
    return Report(
        title="Releasing a key",
        method=" ".join(__doc__.partition("\n\n")[2].split()),
        figures=(
            beside(
                "One worker after another, challenge to unwrapped key: time",
                alone,
                "release",
                "primitives",
                "wall",
                scale=MILLISECONDS,
                target=at_most(15.0),
            ),
            beside(
                "Eight workers all the time: releases a second",
                busy,
                "release",
                "primitives",
                "rate",
                scale=PLAIN,
                target=at_least(150.0),
            ),
            beside(
                "Eight workers all the time: CPU of the broker for one release",
                busy,
                "release",
                "primitives",
                "cpu",
                scale=MILLISECONDS,
            ),
        ),
        remarks=(
            f"Steps of one release, taken without HTTP: {told}; three HTTP exchanges and what is"
            f" left {http_ms:.2f} ms ({100 * http_ms / whole:.0f} %).",
            f"{len(ends)} workers at once, a connection and a thread each: all served,"
            f" {crowd['rate']:.0f} releases a second; the first done after {ends[0]:.2f} s, half"
            f" after {ends[len(ends) // 2]:.2f} s, the last after {ends[-1]:.2f} s.",
        ),
        raw={"alone": alone, "busy": busy},
    )
