"""``cloister forward``, until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from cloister.cli.forward import serve
from cloister.cli.main import main
from cloister.streams.address import TcpAddress, UnixAddress
from cloister.streams.ends import dialler_to
from cloister.streams.forward import ForwardLimits


async def test_it_forwards_until_a_signal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    front = UnixAddress(path=str(tmp_path / "front"))

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    target = TcpAddress(host="127.0.0.1", port=port)
    forwarding = asyncio.create_task(serve(front, target, ForwardLimits(), connect_s=60))
    while not Path(front.path).exists() and not forwarding.done():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    stream = await dialler_to(front, connect_s=60).dial()
    await stream.send(b"hello")
    assert await stream.receive() == b"hello"
    stream.close()
    os.kill(os.getpid(), signal.SIGTERM)
    await forwarding
    assert not Path(front.path).exists()
    server.close()
    await server.wait_closed()
    told = capsys.readouterr().err
    assert f"Forwarding unix:{front.path} to tcp://127.0.0.1:{port}\n" in told
    assert "is reached" not in told  # there was no failure before


def test_wrong_addresses_are_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["forward", "unix:/run/a", "127.0.0.1:1"])
    assert left.value.code == 2
    assert "configuration.address" in capsys.readouterr().err
