"""Sealing: from a model's files to one file that only its key opens.

Every call draws a new key and a new salt; there is no way to seal under a key that exists. The
files are read twice: once for their digests, which the header names, and once to be encrypted,
when they are hashed again, so that what is sealed is what the header says.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from cloister.errors import BuildError, ConfigurationError
from cloister.weights.cipher import KEY, ChunkCipher, key_id
from cloister.weights.header import (
    DEFAULT_CHUNK,
    MAGIC,
    SALT,
    TAG,
    About,
    FileEntry,
    Header,
    Kind,
    Span,
    check_header,
)

Progress = Callable[[str, int], None]
"""Called with what is being done (``hashing``, ``sealing``) and the bytes of all files done."""

_BLOCK: Final = 1 << 20


def _quiet(_step: str, _done: int) -> None:
    """No progress is wanted."""


def seal(
    sources: Mapping[str, Path],
    target: Path,
    *,
    kind: Kind,
    about: About,
    keep_key: Callable[[bytes], None],
    check: Callable[[Header], None] = lambda _header: None,
    random: Callable[[int], bytes] = os.urandom,
    chunk_bytes: int = DEFAULT_CHUNK,
    progress: Progress = _quiet,
) -> Header:
    """Seal `sources` (path inside → file) into the new file `target`, whole or not at all.

    `check` sees the header before anything is encrypted, and may refuse it by raising. `keep_key`
    gets the key before `target` has its name: sealed weights whose key nobody has
    never come to be. `random` must be a source of cryptographic randomness.

    Raises:
        ConfigurationError: a file cannot be read or `target` not be made.
        MalformedError: a path has tricks in it, or the files are too many or too much.
        BuildError: a file changed meanwhile.
    """
    if target.exists():
        raise ConfigurationError(
            f"{target} exists already: choose another --out", code="weights.out_taken"
        )
    key = random(KEY)
    with contextlib.ExitStack() as stack:
        opened = {name: _open(path, stack) for name, path in sources.items()}
        header = Header(
            kind=kind,
            files=_entries(opened, progress),
            about=about,
            key_id=key_id(key),
            salt=random(SALT),
            chunk_bytes=chunk_bytes,
        )
        check_header(header)
        check(header)
        partial = _new_file(target, stack)
        with partial.open("wb") as out:
            for piece in _pieces(header, ChunkCipher(key, header), opened, progress):
                out.write(piece)
            out.flush()
            os.fsync(out.fileno())
        partial.chmod(0o644)
        keep_key(key)
        partial.rename(target)
    return header


def _open(path: Path, stack: contextlib.ExitStack) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        stack.callback(os.close, descriptor)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read (errno {error.errno}); links are not followed",
            code="weights.source",
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise ConfigurationError(f"{path} is no file", code="weights.source")
    return descriptor


def _new_file(target: Path, stack: contextlib.ExitStack) -> Path:
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".sealing-")
    except OSError as error:
        raise ConfigurationError(
            f"{target.parent} cannot be written to (errno {error.errno})", code="weights.out"
        ) from None
    os.close(descriptor)
    partial = Path(name)
    stack.callback(partial.unlink, missing_ok=True)
    return partial


def _entries(opened: Mapping[str, int], progress: Progress) -> tuple[FileEntry, ...]:
    done = 0
    entries = []
    for path, descriptor in sorted(opened.items(), key=lambda one: one[0].encode()):
        digest, size = hashlib.sha256(), 0
        while block := os.pread(descriptor, _BLOCK, size):
            digest.update(block)
            size += len(block)
            progress("hashing", done + size)
        done += size
        entries.append(FileEntry(path=path, size=size, sha256=digest.hexdigest()))
    return tuple(entries)


def _pieces(
    header: Header, cipher: ChunkCipher, opened: Mapping[str, int], progress: Progress
) -> Iterator[bytes | memoryview]:
    """All bytes of the sealed file, in order; each piece is good until the next."""
    yield MAGIC + len(header.encoded).to_bytes(4, "big") + header.encoded
    done = 0
    for span in header.spans:
        digest = hashlib.sha256()
        for piece, plaintext in _sealed(header, cipher, span, opened[span.entry.path]):
            digest.update(plaintext)
            done += len(plaintext)
            yield piece
            progress("sealing", done)
        if digest.hexdigest() != span.entry.sha256:
            raise _changed(span)


def _sealed(
    header: Header, cipher: ChunkCipher, span: Span, descriptor: int
) -> Iterator[tuple[memoryview, memoryview]]:
    """Each chunk of one file, and its plaintext."""
    plain = memoryview(bytearray(header.chunk_bytes))
    out = memoryview(bytearray(header.chunk_bytes + TAG))
    for chunk in header.chunks(span):
        if os.preadv(descriptor, [plain[: chunk.size]], chunk.offset) != chunk.size:
            raise _changed(span)
        cipher.seal_into(chunk, plain[: chunk.size], out[: chunk.size + TAG])
        yield out[: chunk.size + TAG], plain[: chunk.size]


def _changed(span: Span) -> BuildError:
    return BuildError(f"{span.entry.path} changed while it was sealed", code="weights.changed")
