"""What children that ask devices run in tests."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from cloister.errors import FetchError, UnsupportedError
from cloister.strictjson import JsonObject


def handle(request: JsonObject) -> JsonObject:
    match request["do"]:
        case "echo":
            return {"pid": os.getpid(), "said": request["say"]}
        case "environment":
            return {
                "names": [*sorted(os.environ)],
                "directory": str(Path.cwd()),
                "flags": [sys.flags.isolated, sys.flags.no_site, sys.flags.dont_write_bytecode],
                "descriptors": len([*Path("/proc/self/fd").iterdir()]),
            }
        case "hang":
            time.sleep(600)
        case "stop":
            os._exit(3)
        case "absent":
            raise UnsupportedError("not on this machine: a device", code="device.absent")
        case "fail":
            raise FetchError("the device failed", code="device.io")
    raise RuntimeError("a mistake of our own, with details")
