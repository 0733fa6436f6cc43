"""Looking for a marker everywhere that something may have been left behind."""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import os
import secrets
import stat
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

_LARGEST = 64 << 20


def new_marker() -> str:
    """Random letters and digits that no other text contains, and that no encoding splits."""
    return "zx" + secrets.token_hex(12) + "q"


def spellings(secret: str) -> set[bytes]:
    """How a secret may turn up: plain, in other cases, in hex, percent-encoded, in base64."""
    plain = secret.encode()
    found = {plain, plain.upper(), plain.lower(), plain.hex().encode(), quote(secret).encode()}
    for shift in range(3):  # base64 depends on where among three bytes it begins
        encoded = base64.b64encode(b"\0" * shift + plain)
        inner = encoded[4 if shift else 0 : -4]
        found |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return found


@dataclass
class Search:
    """Places by name, and what lies there."""

    secrets: tuple[str, ...]
    places: dict[str, bytes] = field(default_factory=dict)

    def add(self, name: str, content: bytes | str) -> None:
        """Put something among what is searched."""
        data = content.encode() if isinstance(content, str) else content
        self.places[name] = self.places.get(name, b"") + data

    def add_error(self, name: str, error: BaseException) -> None:
        """An exception, its causes, and the traceback as programs print it."""
        self.add(name, "".join(traceback.format_exception(error)))
        self.add(name, repr(error) + repr(error.args) + repr(vars(error)))

    def add_tree(self, name: str, root: Path) -> None:
        """Every file below `root`: its name, where it points, what it holds."""
        for path in (root, *_below(root)):
            with contextlib.suppress(FileNotFoundError):
                self.add(name, f"{path}\n")
                mode = path.lstat().st_mode
                if stat.S_ISLNK(mode):
                    self.add(name, f"{path.readlink()}\n")
                elif stat.S_ISREG(mode) and path.stat().st_size <= _LARGEST:
                    self.add(name, path.read_bytes())

    def add_processes(self, name: str, pids: Iterable[int]) -> None:
        """Arguments, environment and open files of processes, deleted and unnamed ones too."""
        for pid in pids:
            process = Path("/proc") / str(pid)
            for part in ("cmdline", "environ", "comm"):
                with contextlib.suppress(OSError):
                    self.add(name, (process / part).read_bytes())
            for descriptor in _entries(process / "fd"):
                with contextlib.suppress(OSError):
                    mode = descriptor.stat().st_mode
                    self.add(name, str(descriptor.readlink()))
                    if stat.S_ISREG(mode) and descriptor.stat().st_size <= _LARGEST:
                        self.add(name, descriptor.read_bytes())

    def hits(self) -> list[str]:
        """Names of the places where a secret is."""
        wanted = [spelled for secret in self.secrets for spelled in spellings(secret)]
        return [
            name for name, data in self.places.items() if any(spelled in data for spelled in wanted)
        ]


def _is_not_the_callers_own(record: logging.LogRecord) -> bool:
    # An HTTP client tells its own program the address that this program gave it. The address of
    # what goes over the wire, one layer below, is another one.
    return not (record.name == "httpx2" and str(record.msg).startswith("HTTP Request: "))


def _below(root: Path) -> Iterator[Path]:
    """Everything below a folder, parts of which other tests may be taking away: ``rglob`` of
    Python 3.11 raises for a folder that is gone when its turn comes."""
    for folder, folders, files in os.walk(root):
        yield from (Path(folder, name) for name in (*folders, *files))


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


@contextlib.contextmanager
def everything_logged() -> Iterator[io.StringIO]:
    """All that this process logs through `logging`, at level DEBUG, tracebacks included."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s %(args)s"))
    handler.addFilter(_is_not_the_callers_own)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
