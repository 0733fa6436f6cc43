"""Starting a confined program leaves nothing open when it does not come to be."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

import pytest

from cloister.engine import spawning
from cloister.errors import SandboxError


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """Both ends of every control socket that is made."""
    made: list[socket.socket] = []
    pair = socket.socketpair

    def remembered(*kind: int) -> tuple[socket.socket, socket.socket]:
        ends = pair(*kind)
        if socket.SOCK_SEQPACKET in kind:  # the event loop makes pairs of its own
            made.extend(ends)
        return ends

    monkeypatch.setattr(socket, "socketpair", remembered)
    return made


async def test_a_program_that_starts_keeps_its_control_socket(
    sockets: list[socket.socket],
) -> None:
    with contextlib.ExitStack() as cleanup:
        ended: list[str] = []
        cleanup.callback(ended.append, "cleanup")
        confined = await spawning.start([sys.executable, "-c", ""], [], cleanup=cleanup.pop_all())
    ours, theirs = sockets
    assert ours.fileno() >= 0
    assert theirs.fileno() == -1
    assert ended == []
    await confined.aclose()
    assert ours.fileno() == -1
    assert ended == ["cleanup"]


@pytest.mark.parametrize("end", [asyncio.CancelledError(), OSError(24, "too many")])
async def test_a_start_that_ends_early_closes_everything(
    end: BaseException, sockets: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise end

    monkeypatch.setattr(asyncio, "create_subprocess_exec", fail)
    ended: list[str] = []
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(ended.append, "cleanup")
        with pytest.raises(SandboxError if isinstance(end, OSError) else type(end)):
            await spawning.start([sys.executable], [], cleanup=cleanup.pop_all())
    assert ended == ["cleanup"]
    assert [one.fileno() for one in sockets] == [-1, -1]
