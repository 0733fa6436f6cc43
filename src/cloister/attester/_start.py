"""The worker's first code: run as a file, by the launcher, with nothing imported yet.

Usage: ``python -I -S -B -X pycache_prefix=DIR .../_start.py FD``, where FD is one end of a
socket pair on which the launcher sends the handover.
"""

from __future__ import annotations

import importlib
import importlib.util
import resource
import shutil
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def main() -> int:
    """Receive the handover, set the import path to what was measured, call the entry."""
    # No prompt ends up in a core file: see `cloister.worker.hardening.forbid_core_files`.
    limit = 1 if resource.getrlimit(resource.RLIMIT_CORE)[1] else 0
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    message = _link().receive(connection)
    if message is None:
        return 1
    sys.path[:] = message["import_path"]
    if message.get("memory") and not _make_memory(message["memory"]):
        return 1
    handover = importlib.import_module("cloister.attester.takeover").accept(connection, message)
    module, _, function = str(message["entry"]).partition(":")
    try:
        status = getattr(importlib.import_module(module), function)(handover)
    finally:
        # The launcher removes it too, unless it died first.
        shutil.rmtree(handover.directory, ignore_errors=True)
    return status if isinstance(status, int) else 0


def _make_memory(wanted: dict[str, Any]) -> bool:
    """Move to a namespace with memory for the weights; this has to precede any thread."""
    module = importlib.import_module("cloister.attester.memory")
    errors = importlib.import_module("cloister.errors")
    folder = Path(wanted["folder"])
    try:
        module.make_memory(folder, size=int(wanted["size"]), files=int(wanted["files"]))
    except errors.ConfigurationError as error:
        sys.stderr.write(f"cloister: {error} [{error.code}]\n")
        return False
    return True


def _link() -> ModuleType:
    """The link module by its file: imports do not reach it yet."""
    spec = importlib.util.spec_from_file_location("_link", Path(__file__).with_name("link.py"))
    if spec is None or spec.loader is None:
        raise ImportError("the package lacks its link module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
