"""An engine's program that reports what it can read. Arguments: FILE and a package's name."""

from __future__ import annotations

import importlib
import json
import socket
import sys
from pathlib import Path

SOCKET_NAME = "engine.sock"


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    file, package = json.loads(sys.argv[3])
    sys.path.insert(0, "/app")
    report = {"content": Path(file).read_text(), "value": importlib.import_module(package).VALUE}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(f"{sys.argv[2]}/{SOCKET_NAME}")
        server.listen(1)
        control.send(b"ready")
        connection, _ = server.accept()
    with connection:
        connection.sendall(json.dumps(report).encode())
    control.recv(1)


if __name__ == "__main__":
    main()
