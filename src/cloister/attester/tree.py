"""Digests of files and of whole directories.

A tree's digest is the SHA-256 over one line for each file, ``<sha256 hex>  <relative path>``
and a line feed, sorted by the bytes of the path (UTF-8, ``/`` between parts). A symbolic link
is the line ``symlink:<target>  <relative path>``; one that leads to a file outside the tree
adds the line of that file's content under the link's own path. Links to directories outside
are refused, because what lies behind them could change unseen; so are sockets, pipes and
devices. Modes, owners and times do not count.

Compiled bytecode in ``__pycache__`` does not count either: it differs between machines for the
same sources. Whoever runs a measured tree must therefore not read it (see
`cloister.attester.bytecode`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from cloister.errors import BuildError

FIRST_READ: Final = 64 * 1024
"""Most files are smaller, and a small buffer costs less than the file."""

LATER_READS: Final = 1024 * 1024

MAX_FILES: Final = 250_000
"""Files in one tree; beyond it somebody pointed at the wrong directory."""

_BYTECODE: Final = re.compile(r".+\.pyc(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or link of a tree."""

    relative: str
    path: str
    link: str | None = None
    """Target of a symbolic link; None for a file."""
    external: bool = False
    """Whether the link leads to a file outside the tree, whose content is measured too."""


def list_tree(root: str, *, skip: Callable[[str], bool] = lambda _: False) -> list[Entry]:
    """List what counts in the directory `root`; `skip` leaves out directories by relative path.

    Raises:
        BuildError: something in it cannot be measured (code ``measure.tree``).
    """
    entries: list[Entry] = []
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as found:  # noqa: PTH118 - hot path
                for item in found:
                    relative = folder + item.name
                    if item.is_symlink():
                        entries.append(_link(root, relative, item.path))
                    elif item.is_dir(follow_symlinks=False):
                        if not skip(relative):
                            pending.append(relative + "/")
                    elif not item.is_file(follow_symlinks=False):
                        raise _refused(item.path, "is neither a file nor a directory")
                    elif not _is_bytecode(relative):
                        entries.append(Entry(relative, item.path))
        except OSError as error:
            raise _refused(f"{root}/{folder}", f"cannot be read: {error.strerror}") from None
        if len(entries) > MAX_FILES:
            raise _refused(root, f"holds more than {MAX_FILES} files")
    return entries


def hash_files(paths: Iterable[str], *, threads: int) -> dict[str, str]:
    """SHA-256 in hex of each file. Hashing leaves the interpreter's lock, so threads help.

    Raises:
        BuildError: a file cannot be read (code ``measure.tree``).
    """
    unique = list(dict.fromkeys(paths))
    # Interleaved, so that each thread gets its share of a package's large files.
    shares = [unique[start::threads] for start in range(threads)]
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="measure") as pool:
        digests: dict[str, str] = {}
        for share in pool.map(_hash_share, shares):
            digests.update(share)
    return digests


def hash_file(path: str) -> str:
    """SHA-256 in hex of one file.

    Raises:
        BuildError: it cannot be read (code ``measure.tree``).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror}") from None
    try:
        piece = os.read(descriptor, FIRST_READ)
        digest = hashlib.sha256(piece)
        while piece:
            # One more read for every file: a short read is no promise that the file has ended.
            piece = os.read(descriptor, LATER_READS if len(piece) >= FIRST_READ else FIRST_READ)
            digest.update(piece)
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def content_paths(entries: Iterable[Entry]) -> list[str]:
    """The files that must be hashed for `entries`."""
    return [entry.path for entry in entries if entry.link is None or entry.external]


def tree_digest(entries: Iterable[Entry], digests: Mapping[str, str]) -> str:
    """``sha256:<hex>`` over `entries`, with the files' digests from `hash_files`.

    Raises:
        BuildError: a path would make two different trees look alike (code ``measure.tree``).
    """
    lines: list[tuple[bytes, str]] = []
    for entry in entries:
        path = _path_bytes(entry.relative)
        if entry.link is not None:
            _path_bytes(entry.link)
            lines.append((path, f"symlink:{entry.link}"))
        if entry.link is None or entry.external:
            lines.append((path, digests[entry.path]))
    digest = hashlib.sha256()
    for path, content in sorted(lines):
        digest.update(content.encode() + b"  " + path + b"\n")
    return "sha256:" + digest.hexdigest()


def _hash_share(paths: Sequence[str]) -> dict[str, str]:
    return {path: hash_file(path) for path in paths}


def _link(root: str, relative: str, path: str) -> Entry:
    target = os.readlink(path)  # noqa: PTH115 - the text itself, unnormalised
    resolved = os.path.realpath(path)
    inside = resolved.startswith(os.path.realpath(root) + os.sep)
    if inside or not os.path.exists(resolved):  # noqa: PTH110 - hot path
        return Entry(relative, path, target)
    if not os.path.isfile(resolved):  # noqa: PTH113 - hot path
        raise _refused(path, "is a link to something outside that is not a file")
    return Entry(relative, path, target, external=True)


def _is_bytecode(relative: str) -> bool:
    folder, _, name = relative.rpartition("/")
    in_cache = folder == "__pycache__" or folder.endswith("/__pycache__")
    return in_cache and _BYTECODE.fullmatch(name) is not None


def _path_bytes(path: str) -> bytes:
    # Two spaces part a link's target from its path, a line feed one line from the next.
    if "\n" in path or "  " in path:
        raise _refused(repr(path), "has a name that cannot be written down unambiguously")
    try:
        return path.encode("utf-8")
    except UnicodeEncodeError:
        raise _refused(repr(path), "has a name that is not UTF-8") from None


def _refused(path: str, why: str) -> BuildError:
    return BuildError(f"{path} {why}, so it cannot be measured", code="measure.tree")
