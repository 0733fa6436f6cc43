"""The broker on real sockets: a worker's release, bounds, and its own evidence."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import io
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwe
from joserfc.jwk import ECKey
from sqlalchemy import select

from cloister.broker import tables
from cloister.broker.app import MAX_SOURCES, BrokerApp
from cloister.broker.turns import BusyError, Turns
from cloister.broker.vouching import CONFIGURATION
from cloister.channel import rcar
from cloister.channel.key_release import BrokerIdentity, broker_statement
from cloister.channel.keyset import RECEIPT_ALGORITHM, PublicKeyEntry
from cloister.errors import AuthenticationError, FetchError, KeyReleaseDenied, MalformedError
from cloister.evidence.component import ComponentKind
from cloister.evidence.report import TEE_TYPE_TPM
from cloister.strictjson import canonical
from cloister.testing.simulated_tpm import SimulatedAttester, default_components
from cloister.verifier import policy as policies
from cloister.worker.key_release import (
    Answer,
    BrokerTrust,
    Send,
    check_broker,
    for_brokers,
    release_key,
)
from cloister.worker.logs import EventLog
from cloister.worker.settings import RateLimit
from support.broker import (
    CLOCK_START,
    OTHER,
    SECRET,
    WEIGHTS,
    Bench,
    Quotes,
    bench,
    policy_for,
)
from support.broker_server import Served, served


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Served]:
    with bench(tmp_path) as at, served(at) as made:
        yield made


def test_a_worker_gets_its_key_over_http(broker: Served) -> None:
    at = broker.at
    with broker.http() as send:
        check_broker(send, at.store.identity, None, at=CLOCK_START)
        released = release_key(WEIGHTS, prover=at.prover, broker=at.store.identity, send=send)
    assert released.secret == SECRET
    assert at.last()["detail"]["source"] == "127.0.0.1"


def test_a_denial_travels_with_its_code(broker: Served) -> None:
    at = broker.at
    with broker.http() as send:
        release_key(WEIGHTS, prover=at.prover, broker=at.store.identity, send=send)
        with pytest.raises(KeyReleaseDenied) as denied:
            release_key(WEIGHTS, prover=at.prover, broker=at.store.identity, send=send, version=9)
    assert denied.value.code == "key_release.unknown"


REFUSED = [
    ("POST", "/kbs/v0/auth", b"x" * (rcar.MAX_REQUEST_BYTES + 1), 413),
    ("GET", "/kbs/v0/auth", b"", 404),
    ("POST", "/kbs/v0/auth?x=1", b"{}", 404),
    ("POST", "/kbs/v0/%61uth", b"{}", 404),
    ("GET", "/", b"", 404),
    ("GET", "/kbs/v0/resource/a/b/c", b"", 401),
    ("GET", "/kbs/v0/resource/a/%2e%2e/c", b"", 403),
    ("GET", "/cloister/v0/broker", b"", 400),
    ("GET", "/cloister/v0/broker?nonce=AA", b"", 400),
    ("GET", "/cloister/v0/broker?nonce=" + "a" * 62, b"", 400),
    ("GET", "/cloister/v0/broker?nonce=" + "A" * 64, b"", 400),
    ("PUT", "/kbs/v0/resource/a/b/c", b"secret", 404),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), REFUSED)
def test_other_requests_are_refused(
    broker: Served, method: str, path: str, body: bytes, status: int
) -> None:
    with httpx2.Client(trust_env=False) as client:
        answer = client.request(method, broker.url + path, content=body or None)
        good = client.post(
            broker.url + rcar.AUTH_PATH,
            content=rcar.encode_request("tpm", rcar.Ask(resource=WEIGHTS)),
        )
    assert answer.status_code == status
    assert "detail" in answer.json()
    assert good.status_code == 200


def test_a_source_has_a_rate(tmp_path: Path) -> None:
    with bench(tmp_path) as at, served(at, per_source=RateLimit(per_minute=60, burst=4)) as made:
        with made.http() as send:
            release_key(WEIGHTS, prover=at.prover, broker=at.store.identity, send=send)
            with pytest.raises(FetchError) as busy:
                release_key(WEIGHTS, prover=at.prover, broker=at.store.identity, send=send)
        assert busy.value.code == "broker.busy"


def test_a_source_that_is_denied_too_often_waits(tmp_path: Path) -> None:
    """So that nobody fills the audit log with denials."""
    limit = RateLimit(per_minute=1, burst=3)
    with bench(tmp_path) as at, served(at, denied_per_source=limit) as made:
        with made.http() as send:
            release_key(WEIGHTS, prover=at.prover, broker=at.store.identity, send=send)
            codes = []
            for _ in range(8):
                with pytest.raises((KeyReleaseDenied, FetchError)) as refused:
                    release_key(
                        WEIGHTS, prover=at.prover, broker=at.store.identity, send=send, version=9
                    )
                codes.append(refused.value.code)
        denied = [entry for entry in at.log() if entry["event"] == "denied"]
    assert codes[:3] == ["key_release.unknown"] * 3
    assert set(codes[4:]) == {"broker.busy"}
    assert len(denied) == 4


def test_who_shows_nothing_is_sent_to_the_beginning(tmp_path: Path) -> None:
    """Stock clients begin like that. However many do, nobody behind their address has to wait."""
    limit = RateLimit(per_minute=1, burst=2)
    with (
        bench(tmp_path) as at,
        served(at, denied_per_source=limit) as made,
        httpx2.Client(trust_env=False) as client,
    ):
        before = at.log()
        for _ in range(8):
            answer = client.get(made.url + WEIGHTS.path)
            assert answer.status_code == 401
            assert answer.json()["type"].endswith("/Unauthorized")
        assert at.log() == before
        with made.http() as send:
            release_key(WEIGHTS, prover=at.prover, broker=at.store.identity, send=send)
        # Who shows a session or a token that there is not is denied, and that is written down.
        for headers in ({"cookie": f"{rcar.COOKIE}=x"}, {"authorization": "Bearer x"}):
            assert client.get(made.url + WEIGHTS.path, headers=headers).status_code == 401
            assert at.last()["event"] == "denied"


def test_a_stock_client_over_http(tmp_path: Path) -> None:
    """In the order of theirs: the secret, 401, the handshake, the secret again by the cookie."""
    alg = "ECDH-ES+A256KW"
    key = ECKey.import_key(ec.generate_private_key(ec.SECP256R1()))
    jwk = {**key.as_dict(private=False), "alg": alg}
    extra = {"supported-hash-algorithms": ["sha256", "sha384", "sha512"]}
    with (
        bench(tmp_path) as at,
        served(at, stock=policies.development()) as made,
        httpx2.Client(base_url=made.url, trust_env=False) as client,
    ):
        at.store.put(OTHER, b"marked")
        at.store.set_policy(OTHER, policy_for(at.attester, stock_clients=True))
        assert client.get(OTHER.path).status_code == 401
        request = {"version": "0.4.0", "tee": "sample", "extra-params": extra}
        challenge = client.post(rcar.AUTH_PATH, json=request).json()
        runtime = {"nonce": challenge["nonce"], "tee-pubkey": jwk}
        bound = hashlib.sha384(canonical({**runtime, "additional-evidence": ""})).digest()
        primary = {"svn": "1", "report_data": base64.b64encode(bound).decode()}
        attestation = {
            "init-data": None,
            "runtime-data": runtime,
            "tee-evidence": {"primary_evidence": primary, "additional_evidence": ""},
        }
        token = client.post(rcar.ATTEST_PATH, json=attestation).json()["token"]
        assert token.count(".") == 2
        answer = client.get(OTHER.path)
        again = client.get(OTHER.path)
    opened = jwe.decrypt_json(answer.json(), key, algorithms=[alg, "A256GCM"])
    assert opened.plaintext == b"marked"
    assert again.status_code == 401, "a second time takes another handshake"


def in_process(at: Bench, **options: Any) -> BrokerApp:
    return BrokerApp(at.desk, log=EventLog(io.StringIO()), steady=lambda: 1.0, **options)


async def asked(
    app: BrokerApp, *pieces: bytes, path: str = rcar.AUTH_PATH, source: str = "::1"
) -> int:
    """The status of the answer to one POST, whose body comes in `pieces`."""
    arriving = [{"type": "http.request", "body": one, "more_body": True} for one in pieces]
    arriving.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(0)
        return arriving.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "client": (source, 1)}
    await app(scope, receive, send)
    return int(sent[0]["status"])


def through(app: BrokerApp, source: str) -> Send:
    """How a worker at `source` asks `app`, from another thread than its loop's."""
    loop = asyncio.get_running_loop()

    async def ask(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        fields = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": fields}
        await app({**scope, "client": (source, 1)}, receive, send)
        cookie = dict(sent[0]["headers"]).get(b"set-cookie", b"").decode().partition(";")[0]
        return Answer(
            status=sent[0]["status"], body=sent[1]["body"], cookie=cookie.partition("=")[2] or None
        )

    def sending(method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str]) -> Answer:
        asking = ask(method, path, body, headers)
        return asyncio.run_coroutine_threadsafe(asking, loop).result(60)

    return sending


async def test_who_waits_in_line_is_not_denied_more_often_either(tmp_path: Path) -> None:
    """A thousand at once are not a thousand entries in the audit log."""
    with bench(tmp_path) as at:
        app = in_process(at, denied_per_source=RateLimit(per_minute=60, burst=3))
        statuses = await asyncio.gather(*(asked(app, b"{}") for _ in range(60)))
        denied = [entry for entry in at.log() if entry["event"] == "denied"]
        await app.aclose()
    assert set(statuses) == {403, 429}
    assert 3 < len(denied) < 10


async def test_a_challenge_waits_for_nobody_and_its_denial_for_its_turn(tmp_path: Path) -> None:
    """Nothing is written for it: a decision that takes long holds up other decisions only."""
    gate = threading.Event()
    with bench(tmp_path) as at:
        app = in_process(at, turns=Turns(threads=1))
        holding = asyncio.create_task(app.turns.take("other", lambda: gate.wait(30), size=0))
        await asyncio.sleep(0)
        before = at.log()
        assert await asked(app, rcar.encode_request("tpm", rcar.Ask(resource=WEIGHTS))) == 200
        denied = asyncio.create_task(asked(app, b"{}"))
        while not app.turns.waiting:
            await asyncio.sleep(0.01)
        assert at.log() == before
        gate.set()
        assert await denied == 403
        entries = at.log()[len(before) :]
        assert [entry["detail"]["step"] for entry in entries] == ["challenge"]
        assert await holding
        await app.aclose()


async def test_requests_that_arrive_are_bounded_together(tmp_path: Path) -> None:
    with bench(tmp_path) as at:
        app = in_process(at, max_arriving=100_000)
        pieces = [b" " * 1000] * 10
        assert await asked(app, *pieces, path=rcar.ATTEST_PATH) == 401
        at_once = await asyncio.gather(
            *(asked(app, *pieces, path=rcar.ATTEST_PATH) for _ in range(20))
        )
        assert {401, 503} == set(at_once)
        assert await asked(app, *pieces, path=rcar.ATTEST_PATH) == 401, "it is given back"
        await app.aclose()


async def test_whoever_holds_most_of_what_arrives_makes_room(tmp_path: Path) -> None:
    """Two networks fill the room with requests that never end; somebody else's arrives."""
    with bench(tmp_path) as at:
        app = in_process(at, max_arriving=100_000)
        held: list[int] = []

        async def endless(source: str) -> int:
            sent: list[Any] = []

            async def receive() -> Any:
                await asyncio.sleep(0)  # so that each has some
                held.append(10_000)
                if len(held) > 10:
                    await asyncio.Event().wait()
                return {"type": "http.request", "body": b" " * 10_000, "more_body": True}

            async def send(message: Any) -> None:
                sent.append(message)

            scope = {"type": "http", "method": "POST", "path": rcar.ATTEST_PATH, "headers": []}
            await app({**scope, "client": (source, 1)}, receive, send)
            return int(sent[0]["status"])

        flood = [asyncio.create_task(endless(f"192.0.2.{n % 2}")) for n in range(4)]
        while len(held) < 14:  # ten pieces were taken, and all four wait for another
            await asyncio.sleep(0)
        pieces = [b" " * 1000] * 10
        assert await asked(app, *pieces, path=rcar.ATTEST_PATH, source="198.51.100.7") == 401
        ended = [task for task in flood if task.done()]
        assert [await task for task in ended] == [503]
        # Nobody makes room for who holds as much already.
        assert await asked(app, b" " * 90_000, path=rcar.ATTEST_PATH, source="192.0.2.1") == 503
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
        assert await asked(app, b" " * 90_000, path=rcar.ATTEST_PATH, source="192.0.2.1") == 401
        await app.aclose()


def rows(at: Bench) -> dict[str, list[str]]:
    """Everything in the database."""
    with at.store.database.reading() as connection:
        return {
            table.name: [repr(tuple(row)) for row in connection.each(select(table))]
            for table in tables.metadata.sorted_tables
        }


async def test_a_flood_of_challenges_leaves_nothing_and_takes_nobodys(tmp_path: Path) -> None:
    """From more networks than are remembered, between a challenge and its answer."""
    body = rcar.encode_request("tpm", rcar.Ask(resource=WEIGHTS))
    with bench(tmp_path) as at:
        app = in_process(at)
        worker = through(app, "198.51.100.7")
        begun, flooded = threading.Event(), threading.Event()

        def send(method: str, path: str, *, body: bytes = b"", headers: Any) -> Answer:
            if path == rcar.ATTEST_PATH:
                begun.set()
                assert flooded.wait(120)
            return worker(method, path, body=body, headers=headers)

        before = rows(at)
        asking = asyncio.create_task(
            asyncio.to_thread(
                release_key, WEIGHTS, prover=at.prover, broker=at.store.identity, send=send
            )
        )
        await asyncio.to_thread(begun.wait, 120)
        for number in range(MAX_SOURCES + 500):
            source = f"2001:db8:0:{number:x}::1"
            assert await asked(app, body, source=source) == 200
        assert rows(at) == before
        flooded.set()
        released = await asking
        assert released.secret == SECRET
        await app.aclose()


async def test_a_worker_gets_its_key_while_a_flood_fills_every_line(tmp_path: Path) -> None:
    """Twenty networks keep all places taken, before and after each step of the worker's."""
    with bench(tmp_path) as at:
        app = in_process(at, turns=Turns(threads=1, max_waiting=40))
        stop = asyncio.Event()
        refused = 0

        async def keep_asking(source: str) -> None:
            nonlocal refused
            while not stop.is_set():
                with contextlib.suppress(BusyError):
                    await app.turns.take(source, lambda: None, size=1)
                    continue
                refused += 1
                await asyncio.sleep(0)

        flood = [asyncio.create_task(keep_asking(f"192.0.2.{n % 20}")) for n in range(3 * 40)]
        worker = through(app, "198.51.100.7")
        for _ in range(3):
            released = await asyncio.to_thread(
                release_key, WEIGHTS, prover=at.prover, broker=at.store.identity, send=worker
            )
            assert released.secret == SECRET
        assert refused
        stop.set()
        await asyncio.gather(*flood)
        await app.aclose()


def test_another_broker_is_not_asked(broker: Served, tmp_path_factory: Any) -> None:
    with (
        bench(tmp_path_factory.mktemp("other")) as other,
        broker.http() as send,
        pytest.raises(AuthenticationError) as refused,
    ):
        check_broker(send, other.store.identity, None, at=CLOCK_START)
    assert refused.value.code == "broker.identity"


@pytest.mark.parametrize("members", [("identity",), ("identity", "report", "more"), ()])
def test_what_a_broker_says_of_itself_has_these_members(members: tuple[str, ...]) -> None:
    identity = BrokerIdentity(b"\x03" * 32)

    def saying(*names: str) -> Any:
        document = {name: str(identity) if name == "identity" else None for name in names}
        return lambda *_, **__: Answer(status=200, body=json.dumps(document).encode())

    check_broker(saying("identity", "report"), identity, None, at=CLOCK_START)
    with pytest.raises(MalformedError):
        check_broker(saying(*members), identity, None, at=CLOCK_START)


# --- the broker's own evidence ----------------------------------------------------------------


def platform(**changes: Any) -> SimulatedAttester:
    """A machine that a broker was measured on."""
    components = [one for one in default_components() if one.kind is not ComponentKind.MODEL]
    return SimulatedAttester.make(
        **{
            "now": CLOCK_START,
            "components": components,
            "configuration": CONFIGURATION,
            **changes,
        }
    )


def trust_in(machine: SimulatedAttester, **policy: Any) -> BrokerTrust:
    return BrokerTrust(
        policy=dataclasses.replace(for_brokers(policies.development()), **policy),
        reference_values=machine.reference_values,
        roots=machine.roots,
    )


@contextlib.contextmanager
def sealed(tmp_path: Path, machine: SimulatedAttester) -> Iterator[Served]:
    options = {"evidence": Quotes(machine), "tee_type": TEE_TYPE_TPM}
    with bench(tmp_path) as at, served(at, **options) as made:
        yield made


def checked(broker: Served, trust: BrokerTrust, **options: Any) -> None:
    with broker.http() as send:
        check_broker(
            options.pop("send", send),
            options.pop("identity", broker.at.store.identity),
            trust,
            at=CLOCK_START,
            **options,
        )


def test_a_sealed_broker_is_accepted_and_another_software_is_not(tmp_path: Path) -> None:
    machine = platform()
    (measured,) = [one for one in machine.components if one.kind is ComponentKind.CONFIGURATION]
    with sealed(tmp_path, machine) as broker:
        checked(broker, trust_in(machine))
        other = platform(configuration={**CONFIGURATION, "version": 2}, ca=machine.ca)
        for trust in (
            trust_in(other),
            trust_in(machine, accept_development=False),
            trust_in(machine, denied=(measured.digest,)),
        ):
            with pytest.raises(AuthenticationError) as refused:
                checked(broker, trust)
            assert refused.value.code == "broker.unattested"
        checked(broker, trust_in(machine))


def test_evidence_of_another_broker_or_another_time_is_refused(tmp_path: Path) -> None:
    machine = platform()
    with sealed(tmp_path, machine) as broker:
        kept: list[Answer] = []

        def keep(method: str, path: str, *, body: bytes = b"", headers: Any) -> Answer:
            with broker.http() as send:
                kept.append(send(method, path, body=body, headers=headers))
            return kept[-1]

        checked(broker, trust_in(machine), send=keep)
        with pytest.raises(AuthenticationError):
            checked(broker, trust_in(machine), send=lambda *_, **__: kept[0])
        stranger = BrokerIdentity(b"\x05" * 32)

        def renamed(method: str, path: str, *, body: bytes = b"", headers: Any) -> Answer:
            answer = keep(method, path, body=body, headers=headers)
            document = json.loads(answer.body) | {"identity": str(stranger)}
            return dataclasses.replace(answer, body=json.dumps(document).encode())

        with pytest.raises(AuthenticationError) as refused:
            checked(broker, trust_in(machine), send=renamed, identity=stranger)
        assert refused.value.code == "broker.unattested"


def test_a_worker_cannot_pass_for_a_broker(tmp_path: Path) -> None:
    """Its public report is over another statement, whatever is trusted."""
    machine = platform()
    with sealed(tmp_path, machine) as broker:
        checked(broker, trust_in(machine))

        def public(_method: str, path: str, *, body: bytes = b"", headers: Any) -> Answer:
            nonce = bytes.fromhex(path.rpartition("=")[2])
            report = base64.b64encode(machine.report(nonce)).decode()
            document = {"identity": str(broker.at.store.identity), "report": report}
            return Answer(status=200, body=json.dumps(document).encode())

        with pytest.raises(AuthenticationError) as refused:
            checked(broker, trust_in(machine), send=public)
        assert refused.value.code == "broker.unattested"


@pytest.mark.parametrize("keys", ["one's own", "another's", "one's own and another's"])
def test_the_evidence_speaks_of_the_broker_s_key_and_no_other(tmp_path: Path, keys: str) -> None:
    """The statement names the broker all the same: whoever is trusted might name many."""
    machine = platform()
    with sealed(tmp_path, machine) as broker:
        identity = broker.at.store.identity

        def entry(name: str, public: bytes) -> PublicKeyEntry:
            return PublicKeyEntry(key_id=name, algo=RECEIPT_ALGORITHM, public_key=public.hex())

        own, other = entry("own", identity.public_key), entry("other", b"\x03" * 32)
        listed = {"one's own": (own,), "another's": (other,)}.get(keys, (own, other))
        keyset = dataclasses.replace(
            machine.keyset, receipt_signing_keys=listed, e2ee_public_keys=()
        )
        liar = dataclasses.replace(machine, keyset=keyset)

        def statement(keyset_digest: str, nonce: bytes | None) -> bytes:
            return hashlib.sha256(broker_statement(identity, keyset_digest, nonce)).digest()

        def shown(_method: str, path: str, *, body: bytes = b"", headers: Any) -> Answer:
            nonce = bytes.fromhex(path.rpartition("=")[2])
            report = liar.attestation_report(nonce, statement=statement).encode()
            encoded = base64.b64encode(report).decode()
            document = {"identity": str(identity), "report": encoded}
            return Answer(status=200, body=json.dumps(document).encode())

        if keys == "one's own":
            checked(broker, trust_in(machine), send=shown)
            return
        with pytest.raises(AuthenticationError, match="speaks of another key") as refused:
            checked(broker, trust_in(machine), send=shown)
        assert refused.value.code == "broker.unattested"


def test_a_broker_without_evidence_is_refused_unless_development_is_named(broker: Served) -> None:
    trust = trust_in(broker.at.attester)
    with broker.http() as send:
        check_broker(send, broker.at.store.identity, None, at=CLOCK_START)
        with pytest.raises(AuthenticationError) as refused:
            check_broker(send, broker.at.store.identity, trust, at=CLOCK_START)
    assert refused.value.code == "broker.unattested"


def test_the_status_page_shows_names_and_no_secrets(broker: Served) -> None:
    at = broker.at
    with broker.http() as send:
        release_key(WEIGHTS, prover=at.prover, broker=at.store.identity, send=send)
    page = httpx2.get(broker.status, trust_env=False)
    assert page.status_code == 200
    assert str(WEIGHTS) in page.text
    assert "released" in page.text
    assert SECRET.decode() not in page.text
    rebound = httpx2.get(broker.status, trust_env=False, headers={"host": "evil.example:80"})
    assert rebound.status_code == 404
    assert httpx2.post(broker.status, trust_env=False).status_code == 404
    assert httpx2.get(broker.status + "x", trust_env=False).status_code == 404


def test_the_log_of_the_process_holds_nothing_from_requests(broker: Served) -> None:
    with httpx2.Client(trust_env=False) as client:
        client.post(broker.url + rcar.AUTH_PATH, content=b'{"version": "a prompt"}')
    assert "a prompt" not in broker.log.getvalue()
    for line in broker.log.getvalue().splitlines():
        json.loads(line)
