"""One worker, reached over unix sockets, a virtio-serial port and forwarders, by one syntax."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from cloister.client import aconnect, connect, open_connection
from cloister.errors import ConfigurationError, FetchError
from cloister.streams.address import Address, UnixAddress, VirtioAddress, parse_address
from cloister.streams.ends import dialler_to, listener_on
from cloister.streams.forward import Forwarder
from cloister.streams.stream import Dialler, Stream
from cloister.streams.tasks import end
from cloister.testing.fake_engine import Answer, FakeEngine
from support.fake_worker import FakeVerifier
from support.links import virtio_port
from support.scene import CHAT, LiveWorker, answered, live_worker, question, trust_in

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@pytest.fixture(params=LOOPS, scope="module")
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LiveWorker, str, str]]:
    """The worker, its unix socket's address, and that of the host's end of its port."""
    folder = tmp_path_factory.mktemp("ways")
    sock = UnixAddress(path=str(folder / "worker.sock"))
    words = Answer(tokens=tuple(f" word{index}" for index in range(200)))
    with (
        virtio_port(folder) as (guest, host),
        live_worker(
            engine=FakeEngine(script=lambda _, __: words),
            also_at=(sock, VirtioAddress(path=str(guest))),
            loop_factory=LOOPS[request.param],
        ) as live,
    ):
        yield live, str(sock), f"virtio:{host}"


def options(live: LiveWorker) -> dict[str, Any]:
    return {**trust_in(live.attester), "trust_env": False}


@pytest.mark.parametrize("way", [1, 2], ids=["unix", "virtio"])
def test_a_client_verifies_and_talks_over_any_carrier(
    served: tuple[LiveWorker, str, str], way: int
) -> None:
    live = served[0]
    with connect(str(served[way]), **options(live)) as connection:
        expected = "".join(f" word{index}" for index in range(200))
        for _ in range(3):
            answer = answered(connection, "hello")
            assert answer.json()["choices"][0]["message"]["content"] == expected
        with connection.http.stream("POST", CHAT, json=question(stream=True)) as streamed:
            assert b"".join(streamed.iter_bytes()).endswith(b"data: [DONE]\n\n")
        assert connection.last_exchange is not None
        assert connection.last_exchange.receipt_verified


async def test_many_ask_at_once_over_one_port(served: tuple[LiveWorker, str, str]) -> None:
    live, _, port = served
    async with await aconnect(port, **options(live)) as connection:
        answers = await asyncio.gather(
            *(connection.http.post(CHAT, json=question(f"{index}")) for index in range(12))
        )
    assert {answer.status_code for answer in answers} == {200}


def test_a_forwarder_sees_only_ciphertext(
    served: tuple[LiveWorker, str, str], tmp_path: Path
) -> None:
    """What passes it is recorded, and holds neither the question nor a word of the answer."""
    live, sock, _ = served
    seen = bytearray()
    with (
        recorded(parse_address(sock), tmp_path / "front", seen) as front,
        connect(str(front), **options(live)) as connection,
    ):
        answered(connection, "a secret question")
    assert len(seen) > 1000
    assert b"/ohttp" in seen
    for word in (b"secret", b"question", b"word1", b"messages", b"choices"):
        assert word not in seen


@contextlib.contextmanager
def recorded(target: Address, path: Path, seen: bytearray) -> Iterator[UnixAddress]:
    """A forwarder at `path` that keeps a copy of everything."""
    address = UnixAddress(path=str(path))
    ready = threading.Event()
    stopping: list[Callable[[], object]] = []

    class Watched:
        def __init__(self, stream: Stream) -> None:
            self._stream = stream
            self.send_end = stream.send_end
            self.close = stream.close

        async def receive(self) -> bytes:
            data = await self._stream.receive()
            seen.extend(data)
            return data

        async def send(self, data: bytes) -> None:
            seen.extend(data)
            await self._stream.send(data)

    class Watching:
        def __init__(self, dialler: Dialler) -> None:
            self._dialler = dialler
            self.aclose = dialler.aclose

        async def dial(self) -> Stream:
            return Watched(await self._dialler.dial())

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        stopping.append(lambda: loop.call_soon_threadsafe(stop.set))
        listener = await listener_on(address)
        running = asyncio.create_task(Forwarder(listener, Watching(dialler_to(target))).run())
        ready.set()
        await stop.wait()
        await end([running])
        await listener.aclose()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    ready.wait(30)
    try:
        yield address
    finally:
        stopping[0]()
        thread.join()


def test_nobody_at_the_address_is_unreachable(tmp_path: Path) -> None:
    absent = f"virtio:{tmp_path}/absent"
    with (
        open_connection(absent, verifier=FakeVerifier()) as connection,
        pytest.raises(FetchError),
    ):
        connection.verify()


def test_a_forward_proxy_does_not_reach_a_socket() -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_connection(
            "unix:/run/worker.sock", verifier=FakeVerifier(), proxy="http://127.0.0.1:1"
        )
    assert caught.value.code == "client.url"
