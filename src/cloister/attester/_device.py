"""The first code of a child that asks a device: run as a file, by `cloister.attester.background`.

Usage: ``python -I -S -B -X pycache_prefix=DIR .../_device.py FD HANDLER IMPORT_PATH…``, where FD
is one end of a socket pair.
"""

from __future__ import annotations

import resource
import socket
import sys


def main() -> int:
    """Set the import path to the parent's, then answer its requests."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    descriptor, handler, *paths = sys.argv[1:]
    sys.path[:] = paths
    from cloister.attester.background import serve

    connection = socket.socket(fileno=int(descriptor))
    connection.set_inheritable(False)
    return serve(connection, handler)


if __name__ == "__main__":
    sys.exit(main())
