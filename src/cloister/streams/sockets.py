"""Streams over sockets: TCP, unix and vsock."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from typing import Final

from cloister.errors import ConfigurationError, UnsupportedError
from cloister.streams.address import TcpAddress, UnixAddress, VsockAddress
from cloister.streams.device import writable
from cloister.streams.stream import CHUNK_BYTES

SocketAddress = TcpAddress | UnixAddress | VsockAddress
BACKLOG: Final = 256
_BREATH_S: Final = 0.1
"""Before the next attempt to accept, where the machine has no file descriptor left."""


class SocketStream:
    """A connected socket, non-blocking, which this object owns."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._sending = asyncio.Lock()

    async def receive(self) -> bytes:
        """As `Stream.receive`."""
        return await asyncio.get_running_loop().sock_recv(self._socket, CHUNK_BYTES)

    async def send(self, data: bytes) -> None:
        """As `Stream.send`."""
        async with self._sending:
            await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def send_end(self) -> None:
        """As `Stream.send_end`."""
        with contextlib.suppress(OSError):  # the peer may be gone already
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """As `Stream.close`."""
        with contextlib.suppress(OSError):
            # A task that still waits for this socket is woken by this, and by nothing else.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class SocketDialler:
    """Dials one address anew for every stream."""

    def __init__(self, address: SocketAddress, *, connect_s: float) -> None:
        self._address = address
        self._connect_s = connect_s

    async def dial(self) -> SocketStream:
        """As `Dialler.dial`."""
        async with asyncio.timeout(self._connect_s):
            try:
                return SocketStream(await _connected(self._address))
            except UnsupportedError as error:
                raise OSError(errno.EAFNOSUPPORT, str(error)) from None

    async def aclose(self) -> None:
        """Nothing is kept between streams."""


class SocketListener:
    """Accepts connections on a listening socket, which this object owns."""

    def __init__(self, listener: socket.socket, *, unlink: str | None = None) -> None:
        listener.setblocking(False)
        self._socket = listener
        self._unlink = unlink

    @property
    def address(self) -> SocketAddress:
        """Where it listens; of TCP with the port that was taken where 0 was asked for."""
        name = self._socket.getsockname()
        if self._socket.family == socket.AF_UNIX:
            return UnixAddress(path=str(name))
        if self._socket.family in {socket.AF_INET, socket.AF_INET6}:
            return TcpAddress(host=str(name[0]), port=int(name[1]))
        return VsockAddress(cid=int(name[0]), port=int(name[1]))

    async def accept(self) -> SocketStream:
        """As `Listener.accept`; waits where there is no free file descriptor."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._socket)
            except OSError:
                if self._socket.fileno() < 0:
                    raise
                await asyncio.sleep(_BREATH_S)
            else:
                return SocketStream(connection)

    async def aclose(self) -> None:
        """As `Listener.aclose`; removes the file of a unix socket."""
        self._socket.close()
        if self._unlink is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._unlink)  # noqa: PTH108 - a path of the address, as it is


def listen(address: SocketAddress) -> socket.socket:
    """A listening socket.

    A unix socket is for this user only (mode 0600). A socket file that nobody listens on is
    replaced; anything else at its path is left alone.

    Raises:
        OSError: the address cannot be had.
        ConfigurationError: something that is no dead socket lies at the path.
        UnsupportedError: no vsock here.
    """
    if isinstance(address, UnixAddress):
        return _listen_unix(address.path)
    opened = _new(address)
    try:
        if isinstance(address, TcpAddress):
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind((address.host, address.port))
        else:
            opened.bind((address.cid, address.port))
        opened.listen(BACKLOG)
    except BaseException:
        opened.close()
        raise
    return opened


def _listen_unix(path: str) -> socket.socket:
    _remove_dead(path)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Of the socket file too: between bind and a chmod anybody could connect. The mask is the
        # process's, and is put back at once; nothing else of this process makes files meanwhile,
        # since there is no await in between.
        before = os.umask(0o177)
        try:
            opened.bind(path)
        finally:
            os.umask(before)
        opened.listen(BACKLOG)
    except BaseException:
        opened.close()
        raise
    return opened


def _remove_dead(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigurationError(
            "what lies at the path of the unix socket is no socket; remove it, or name another",
            code="configuration.listen",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)  # noqa: PTH108 - as above
        else:
            raise ConfigurationError(
                "somebody listens on that unix socket already", code="configuration.listen"
            )


async def _connected(address: SocketAddress) -> socket.socket:
    if isinstance(address, TcpAddress):
        return await _connected_tcp(address)
    opened = _new(address)
    try:
        opened.setblocking(False)
        name = address.path if isinstance(address, UnixAddress) else (address.cid, address.port)
        await _connect(opened, name)
    except BaseException:
        opened.close()
        raise
    return opened


async def _connect(opened: socket.socket, name: str | tuple[int, int]) -> None:
    """Connect a unix or vsock socket. uvloop's own way would resolve the name of a vsock socket."""
    while True:
        try:
            opened.connect(name)
        except BlockingIOError as error:
            if error.errno == errno.EAGAIN:  # a unix socket whose backlog is full (connect(2))
                await asyncio.sleep(_BREATH_S)
                continue
            await writable(opened.fileno())
            failed = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failed:
                raise OSError(failed, os.strerror(failed)) from None
        return


async def _connected_tcp(address: TcpAddress) -> socket.socket:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    failure: OSError = ConnectionError("the name has no address")
    for family, kind, protocol, _, name in found[:8]:
        opened = socket.socket(family, kind, protocol)
        try:
            opened.setblocking(False)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(opened, name)
        except OSError as error:
            opened.close()
            failure = error
        except BaseException:
            opened.close()
            raise
        else:
            return opened
    raise failure


def _new(address: SocketAddress) -> socket.socket:
    match address:
        case TcpAddress(host=host):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            opened = socket.socket(family, socket.SOCK_STREAM)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return opened
        case UnixAddress():
            return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        case VsockAddress():
            with contextlib.suppress(OSError):
                if hasattr(socket, "AF_VSOCK"):
                    return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            raise UnsupportedError(
                "this machine has no vsock (the kernel's module vhost_vsock, "
                "vmw_vsock_virtio_transport or vsock_loopback)",
                code="streams.no_vsock",
            )
