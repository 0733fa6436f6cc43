"""A real client and a real worker on loopback, with a hostile proxy on a real socket between them.

The worker is the whole ASGI application behind its own HTTP server, in a thread: real keys, real
sealing, a simulated TPM, and an engine that computes nothing. Clients are those of
`cloister.connect`; they know the proxy's address and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from cloister.channel.claims import ClaimsDocument
from cloister.channel.ohttp import KeyConfig, parse_key_configs
from cloister.client import Connection, Httpx2Transport, connect, make_trust
from cloister.client.connect import Options, TrustOptions, open_connection
from cloister.client.settings import Effects
from cloister.evidence.component import Component, ComponentKind
from cloister.evidence.report import TEE_TYPE_TPM, EvidenceItem
from cloister.streams.address import Address
from cloister.strictjson import JsonObject
from cloister.testing.fake_engine import FakeEngine
from cloister.testing.simulated_tpm import (
    SimulatedAttester,
    SimulatedEnrolmentCa,
    default_components,
)
from cloister.verifier import policy as policies
from cloister.worker.app import Worker, build_worker
from cloister.worker.keys import ReceiptKey
from cloister.worker.logs import EventLog
from cloister.worker.reports import EvidenceSource
from cloister.worker.server import HttpServer, listen_tcp
from cloister.worker.settings import WorkerSettings
from cloister.worker.tls_key import TlsKey
from cloister.worker.tls_server import TlsServer
from cloister.worker.way_in import open_way_in
from support.hostile import HostileProxy
from support.serve import served
from support.wire import Handler, WireReply, WireRequest, over_http
from support.worker import TurnedClocks, fitting

CHAT = "/v1/chat/completions"
ATTESTATION = "/v1/aci/attestation"
FAKE_MODEL = Component(
    kind=ComponentKind.MODEL, name="fake", version="", digest="sha256:" + "0" * 64
)

_T = TypeVar("_T")


class SimulatedSource:
    """Quotes of a simulated TPM, as a worker asks for them."""

    def __init__(self, attester: SimulatedAttester) -> None:
        self.attester = attester
        self.made = 0
        self.gate = threading.Event()
        """Quotes wait until it is set, as it is at first."""
        self.gate.set()

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        self.made += 1
        self.gate.wait(timeout=60)
        return quoted(self.attester, statement_digest)


def quoted(attester: SimulatedAttester, statement_digest: bytes) -> dict[str, EvidenceItem]:
    """Evidence of `attester` over 32 bytes of anybody's choice."""
    quote, signature = attester.tpm.quote(statement_digest)
    items = dict(attester.attestation_report(None).evidence)
    del items["claims"]
    for name, data in (("tpm.quote", quote), ("tpm.signature", signature)):
        old = items[name]
        items[name] = EvidenceItem(
            media_type=old.media_type, data=data, endorsements=old.endorsements
        )
    return items


def launched(
    *changed: Component,
    configuration: JsonObject | None = None,
    ca: SimulatedEnrolmentCa | None = None,
) -> SimulatedAttester:
    """A launch of the fake worker; `changed` replaces components of the same kind and name."""
    components = {
        (each.kind, each.name): each
        for each in (*default_components(), FAKE_MODEL)
        if each.kind is not ComponentKind.MODEL or each is FAKE_MODEL
    }
    components |= {(each.kind, each.name): each for each in changed}
    return SimulatedAttester.make(
        now=datetime.now(UTC), components=components.values(), configuration=configuration, ca=ca
    )


@dataclass(kw_only=True)
class LiveWorker:
    """A worker that listens on loopback, and everything of it that a test may turn."""

    url: str
    worker: Worker
    engine: FakeEngine
    attester: SimulatedAttester
    source: EvidenceSource
    clocks: TurnedClocks
    stream: io.StringIO
    _loop: asyncio.AbstractEventLoop
    tls_port: int = 0
    """Of the listener of attested TLS; 0 where there is none."""

    def run(self, step: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine where the worker runs."""
        return asyncio.run_coroutine_threadsafe(step, self._loop).result(60)

    @property
    def config(self) -> KeyConfig:
        """The preferred key of the keyset in force."""
        return parse_key_configs(self.worker.context.keys.current.key_configs)[0]

    @property
    def prompts(self) -> list[str]:
        """What the engine was asked, in order."""
        return [
            json.loads(request.body)["messages"][-1]["content"]
            for request in list(self.engine.requests)
        ]


@contextlib.contextmanager
def live_worker(
    settings: WorkerSettings | None = None,
    *,
    engine: FakeEngine | None = None,
    attester: SimulatedAttester | None = None,
    source: EvidenceSource | None = None,
    api_keys: Path | None = None,
    random: Callable[[int], bytes] | None = None,
    tee_type: str = TEE_TYPE_TPM,
    claims: ClaimsDocument | None = None,
    receipt_key: ReceiptKey | None = None,
    boot_evidence: Mapping[str, EvidenceItem] | None = None,
    tls_names: tuple[str, ...] = (),
    also_at: tuple[Address, ...] = (),
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> Iterator[LiveWorker]:
    """Start a worker and its server in a thread; stop both at the end.

    With `tls_names` it has a listener of attested TLS as well, and others `also_at` addresses.

    With `tee_type` it is a worker on a hardware platform, whose evidence `source` makes.
    """
    attester = attester or launched()
    engine, source = engine or FakeEngine(), source or SimulatedSource(attester)
    clocks, stream = TurnedClocks(), io.StringIO()
    started: list[LiveWorker] = []
    ready, stop = threading.Event(), asyncio.Event()
    tls_key = TlsKey(tls_names, random=os.urandom) if tls_names else None

    async def serve() -> None:
        worker = build_worker(
            engines=[engine],
            source=source,
            claims=attester.claims_document if claims is None else claims,
            tee_type=tee_type,
            receipt_key=receipt_key,
            boot_evidence=boot_evidence,
            log=EventLog(stream),
            settings=fitting(engine, settings),
            clocks=clocks.clocks,
            api_keys=api_keys,
            open_when_empty=api_keys is None,
            random=random or os.urandom,
            tls_key=tls_key,
        )
        await worker.start()
        listener = listen_tcp("127.0.0.1", 0)
        servers = [HttpServer(worker, listener)]
        inside_tls = listen_tcp("127.0.0.1", 0)
        if tls_key is not None:
            context = worker.context
            servers.append(
                TlsServer(
                    worker.inside_tls,
                    inside_tls,
                    key=tls_key,
                    keys=context.keys,
                    log=context.log,
                    metrics=context.metrics,
                )
            )
        ways_in = [await open_way_in(address) for address in also_at]
        servers += [way_in.server(worker) for way_in in ways_in]
        for server in servers:
            await server.open()
        started.append(
            LiveWorker(
                url=f"http://127.0.0.1:{listener.getsockname()[1]}",
                worker=worker,
                engine=engine,
                attester=attester,
                source=source,
                clocks=clocks,
                stream=stream,
                _loop=asyncio.get_running_loop(),
                tls_port=inside_tls.getsockname()[1] if tls_key is not None else 0,
            )
        )
        ready.set()
        await stop.wait()
        await worker.stop()
        for server in servers:
            await server.close()
        for way_in in ways_in:
            await way_in.aclose()
        listener.close()
        inside_tls.close()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                runner.run(serve())
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="worker")
    thread.start()
    ready.wait(60)
    if not started:
        thread.join()
        raise RuntimeError("the worker did not start")
    try:
        yield started[0]
    finally:
        started[0]._loop.call_soon_threadsafe(stop.set)
        thread.join()


def toward(base: str, transport: httpx2.BaseTransport) -> Handler:
    """A handler that passes everything on to the server at `base`."""
    send, host = over_http(transport), urlsplit(base).netloc

    def forward(request: WireRequest) -> WireReply:
        parts = urlsplit(request.url)
        headers = [
            field for field in request.headers if field[0].lower() not in {"host", "connection"}
        ]
        answer = send(
            WireRequest(
                method=request.method,
                url=base + parts.path + (f"?{parts.query}" if parts.query else ""),
                headers=[("host", host), *headers],
                body=request.body,
            )
        )
        chunks, close = answer.chunks, answer.close

        def passed_on() -> Iterator[bytes]:
            try:
                yield from chunks
            finally:
                close()

        return WireReply(
            status=answer.status, headers=answer.headers, chunks=passed_on(), close=close
        )

    return forward


@dataclass(kw_only=True)
class Scene:
    """One worker, the proxy in front of it, and the clients behind the proxy."""

    live: LiveWorker
    proxy: HostileProxy
    url: str
    """The proxy's."""
    _clients: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def trust(self) -> TrustOptions:
        """What an informed client of the honest worker believes."""
        return trust_in(self.live.attester)

    def client(self, **options: Any) -> Connection:
        """A new verified client, closed at the end."""
        url = options.pop("url", self.url)
        settings: Options = {**self.trust, "trust_env": False, **options}  # type: ignore[typeddict-item]  # tests pass what `Options` names
        return self._clients.enter_context(connect(url, **settings))

    def unverified(self, **options: Any) -> Connection:
        """As `client`, but the worker is verified at the first request only."""
        settings: Options = {**self.trust, "trust_env": False, **options}  # type: ignore[typeddict-item]  # tests pass what `Options` names
        return self._clients.enter_context(open_connection(self.url, **settings))

    @contextlib.contextmanager
    def sealing(self, effects: Effects, **trust: Any) -> Iterator[Connection]:
        """A client whose clocks and random bytes are the test's."""
        beliefs: TrustOptions = {**self.trust, **trust}  # type: ignore[typeddict-item]  # as above
        transport = Httpx2Transport(
            self.url, make_trust(**beliefs), effects=effects, trust_env=False
        )
        http = httpx2.Client(transport=transport, base_url=self.url, trust_env=False)
        with Connection(transport, http) as connection:
            yield connection

    @property
    def reports(self) -> int:
        """Requests for reports that left clients so far."""
        return sum(request.path == ATTESTATION for request in self.proxy.seen)


@contextlib.contextmanager
def scene(settings: WorkerSettings | None = None, **options: Any) -> Iterator[Scene]:
    """A worker with a proxy in front; options as for `live_worker`."""
    with (
        live_worker(settings, **options) as live,
        httpx2.HTTPTransport(limits=httpx2.Limits(max_keepalive_connections=0)) as onward,
    ):
        proxy = HostileProxy(toward(live.url, onward))
        with served(proxy) as url:
            made = Scene(live=live, proxy=proxy, url=url)
            with made._clients:
                yield made


def trust_in(attester: SimulatedAttester) -> TrustOptions:
    """Policy, reference values and roots under which `attester` is affirmed."""
    return {
        "policy": policies.development(),
        "reference_values": attester.reference_values,
        "roots": attester.roots,
    }


def question(text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **fields}


def ask(client: Connection, text: str = "hello", **fields: Any) -> httpx2.Response:
    """Ask one question and read the whole answer."""
    headers = fields.pop("headers", None)
    return client.http.post(CHAT, json=question(text, **fields), headers=headers)


def answered(client: Connection, text: str = "hello", **fields: Any) -> httpx2.Response:
    """As `ask`, for an answer that must be whole: 200, receipt checked."""
    response = ask(client, text, **fields)
    assert response.status_code == 200, response.text
    exchange = response.extensions["cloister"]
    assert exchange.complete
    assert exchange.receipt_verified
    return response


def error_code(response: httpx2.Response) -> str:
    """The code of a sealed error."""
    code = response.json()["error"]["code"]
    assert isinstance(code, str)
    return code


class HeldPost:
    """A request that stops just before its last `hold` bytes, until it is told to go on."""

    def __init__(self, base: str, request: WireRequest, *, hold: int) -> None:
        target = urlsplit(base)
        self._rest = request.body[-hold:]
        self._connection = http.client.HTTPConnection(str(target.hostname), target.port)
        self._connection.putrequest("POST", "/ohttp", skip_accept_encoding=True)
        self._connection.putheader("content-type", request.header("content-type") or "")
        self._connection.putheader("content-length", str(len(request.body)))
        self._connection.endheaders(request.body[:-hold])

    def finish(self) -> WireReply:
        """Send the rest and read the whole reply."""
        with contextlib.closing(self._connection):
            self._connection.send(self._rest)
            response = self._connection.getresponse()
            body = response.read()
            return WireReply(
                status=response.status, headers=response.getheaders(), chunks=iter([body])
            )


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for did not happen")
        time.sleep(0.005)
