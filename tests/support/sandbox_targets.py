"""Things of the host that a hostile engine would want, for the probes of both sandboxes."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cloister.engine import sandbox

SOURCE = Path(sandbox.__file__).parents[2]


@contextlib.contextmanager
def host_targets(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Things of the host that a hostile engine would want, all of them really there."""
    for name in ("models", "home", "tmp", "sockets"):
        (tmp_path / name).mkdir()
    model = tmp_path / "models" / "model.gguf"
    model.write_bytes(b"GGUF")
    secret = tmp_path / "home" / "secret"
    secret.write_text("secret")
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        udp.setblocking(False)
        name = f"cloister-test-{os.getpid()}"
        datagrams = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        datagrams.bind(f"\0{name}-datagram")
        resolver = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        resolver.bind(("127.0.0.1", 0))
        answering = threading.Thread(target=echo, args=(resolver,))
        answering.start()
        stack.callback(answering.join)
        stack.callback(end, resolver)
        for address in ("\0" + name, str(tmp_path / "host.sock")):
            unix = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            unix.bind(address)
            unix.listen()
        yield {
            "tcp_port": tcp.getsockname()[1],
            "udp_port": udp.getsockname()[1],
            "udp": udp,
            "dns_port": resolver.getsockname()[1],
            "abstract": name,
            "abstract_datagram": f"{name}-datagram",
            "path_socket": str(tmp_path / "host.sock"),
            "secret": str(secret),
            "host_tmp": str(tmp_path / "tmp"),
            "sockets": str(tmp_path / "sockets"),
            "model": str(model),
            "host_pid": os.getpid(),
            "host_started": Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19],
            "machine": os.uname().machine,
            "readable": ["/usr", "/lib", "/etc", "/proc", sys.prefix, sys.base_prefix, str(SOURCE)],
        }


def echo(resolver: socket.socket) -> None:
    """Answer every datagram with itself, until an empty one comes."""
    while True:
        data, sender = resolver.recvfrom(512)
        if not data:
            return
        resolver.sendto(data, sender)


def end(resolver: socket.socket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.sendto(b"", resolver.getsockname())
