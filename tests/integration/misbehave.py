"""A confined program that breaks its protocol in the way its first argument says.

Usage: ``misbehave.py CONTROL_FD SOCKET_DIRECTORY WAY MARKER``. Standard library only.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time


def main() -> None:
    """Misbehave, then wait to be ended."""
    control = socket.socket(fileno=int(sys.argv[1]))
    directory, way, marker = sys.argv[2:5]
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if way != "no-socket":
        server.bind(f"{directory}/engine.sock")
        server.listen()
    if way == "flood":
        text = (marker + " ").encode() * 1000
        for _ in range(20):
            os.write(1, text)
            os.write(2, text)
    if way == "unknown-word":
        control.send(marker.encode()[:20])
    elif way == "reason":
        control.send(b"model-refused")
    elif way == "exit":
        os._exit(7)
    else:
        control.send(b"ready")
    if way == "late-word":
        control.send(marker.encode()[:20])
    elif way == "close-control":
        control.close()
    elif way == "die":
        os.write(2, marker.encode())
        time.sleep(0.2)
        os._exit(0)
    if way == "deaf":
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
