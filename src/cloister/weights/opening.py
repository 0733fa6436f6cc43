"""Opening sealed weights: one pass over the ciphertext, in which everything is checked.

A chunk is read, decrypted, and only once its tag has been found right hashed and written out. When
a file's last chunk is written its digest must be the header's; when the last file is, the weights
are what the header says. Whoever gets the files before `open_sealed` returned has unproven bytes.

Files are opened several at a time, each in a lane of its own. Where there are more threads than
files, a lane has helpers that decrypt chunks ahead while the lane hashes and writes them in order:
SHA-256 cannot be split. Each lane has its buffers from the start, so memory is bounded.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Protocol

from cloister.errors import AuthenticationError
from cloister.weights.cipher import ChunkCipher
from cloister.weights.header import TAG, Chunk, FileEntry, Header, Span
from cloister.weights.reader import SealedFile

BUFFERS: Final = 32 << 20
"""Bytes of all buffers together, at most: half of what opening may take besides the model."""

_FORGET: Final = 8 << 20
"""Ciphertext that the kernel keeps in its cache behind us; for ever would be a second model."""

Progress = Callable[[int], None]
"""Called from any thread with the bytes just done; what it raises ends the opening."""


class Output(Protocol):
    """Takes the plaintext of one file, in order."""

    def write(self, data: memoryview) -> None:
        """Take the next bytes; they are overwritten afterwards."""

    def finish(self) -> None:
        """All bytes were written, and have the right digest."""


class Sink(Protocol):
    """Takes the plaintext of files, several at a time."""

    def create(self, entry: FileEntry) -> Output:
        """Begin a file."""


class Nowhere:
    """A sink that keeps nothing: for whoever only checks."""

    def create(self, _entry: FileEntry) -> Output:
        """Begin a file that goes nowhere."""
        return self

    def write(self, data: memoryview) -> None:
        """Drop it."""

    def finish(self) -> None:
        """Nothing to finish."""


def _quiet(_bytes: int) -> None:
    """No progress is wanted."""


def open_sealed(
    sealed: SealedFile, key: bytes, sink: Sink, *, threads: int = 1, progress: Progress = _quiet
) -> Header:
    """Write the plaintext of all files to `sink`; return the header, which is authentic now.

    Takes at most `BUFFERS` bytes besides what the sink takes, and fewer threads if need be.

    Raises:
        AuthenticationError: ``weights.key`` for another key, ``weights.chunk`` for a chunk and
            ``weights.digest`` for a file that is not what was sealed. The sink then holds
            authenticated beginnings of files at most, and must be thrown away.
        MalformedError: the file became shorter meanwhile.
    """
    header = sealed.header
    opening = _Opening(sealed, ChunkCipher(key, header), sink, progress)
    threads = max(1, min(threads, BUFFERS // (4 * header.chunk_bytes)))
    count = min(threads, len(header.files))
    lanes = [_Lane(opening, helpers=threads // count - 1) for _ in range(count)]
    if count == 1:
        lanes[0].run()
        return header
    with ThreadPoolExecutor(count, thread_name_prefix="weights") as pool:
        running = [pool.submit(lane.run) for lane in lanes]
        errors = [error for one in running if (error := one.exception()) is not None]
    if errors:
        raise errors[0]
    return header


class _Opening:
    """What the lanes share: the files that wait, and whether one of them failed."""

    def __init__(
        self, sealed: SealedFile, cipher: ChunkCipher, sink: Sink, progress: Progress
    ) -> None:
        self.sealed = sealed
        self.cipher = cipher
        self.sink = sink
        self.progress = progress
        self.failed = threading.Event()
        # The largest first, so that no lane is left alone with it at the end.
        self.waiting = deque(sorted(sealed.header.spans, key=lambda span: -span.entry.size))


class _Lane:
    """Opens one file after another."""

    def __init__(self, opening: _Opening, *, helpers: int) -> None:
        self._opening = opening
        self._helpers = helpers
        size = opening.sealed.header.chunk_bytes
        # Ciphertext and plaintext of a chunk. Two for each helper, and one that the lane hashes.
        self._buffers = [
            (memoryview(bytearray(size + TAG)), memoryview(bytearray(size)))
            for _ in range(2 * helpers + 1)
        ]

    def run(self) -> None:
        """Open files until none is left, or another lane failed."""
        try:
            with contextlib.ExitStack() as stack:
                pool = None
                if self._helpers:
                    pool = ThreadPoolExecutor(self._helpers, thread_name_prefix="weights")
                    stack.callback(pool.shutdown, cancel_futures=True)
                while not self._opening.failed.is_set() and (span := self._next()) is not None:
                    self._open_file(span, pool)
        except BaseException:
            self._opening.failed.set()
            raise

    def _next(self) -> Span | None:
        try:
            return self._opening.waiting.popleft()
        except IndexError:
            return None

    def _open_file(self, span: Span, pool: ThreadPoolExecutor | None) -> None:
        """Open one file; its digest is the header's when this returns."""
        opening = self._opening
        digest = hashlib.sha256()
        output: Output | None = None
        kept = span.position
        for chunk, plaintext in self._ahead(span, pool) if pool else self._each(span):
            if output is None:  # only now the header is known to be authentic, names included
                output = opening.sink.create(span.entry)
            digest.update(plaintext)
            output.write(plaintext)
            read = chunk.position + chunk.size + TAG
            if read - kept >= _FORGET:
                opening.sealed.forget(kept, read)
                kept = read
            opening.progress(len(plaintext))
        if output is None or digest.hexdigest() != span.entry.sha256:
            raise AuthenticationError(
                f"the file {span.entry.path} in the sealed weights has another digest than the "
                "header says",
                code="weights.digest",
            )
        output.finish()

    def _each(self, span: Span) -> Iterator[tuple[Chunk, memoryview]]:
        """Each chunk with its authenticated plaintext, in order; good until the next."""
        for chunk in self._opening.sealed.header.chunks(span):
            yield chunk, self._decrypt(chunk, 0)

    def _ahead(self, span: Span, pool: ThreadPoolExecutor) -> Iterator[tuple[Chunk, memoryview]]:
        """The same, decrypted ahead by helpers."""
        chunks = enumerate(self._opening.sealed.header.chunks(span))
        pending: deque[tuple[Chunk, Future[memoryview]]] = deque()
        for number, chunk in chunks:
            if len(pending) == len(self._buffers) - 1:  # the other one is being hashed
                first, done = pending.popleft()
                yield first, done.result()
            work = pool.submit(self._decrypt, chunk, number % len(self._buffers))
            pending.append((chunk, work))
        for chunk, done in pending:
            yield chunk, done.result()

    def _decrypt(self, chunk: Chunk, buffer: int) -> memoryview:
        ciphertext, plaintext = self._buffers[buffer]
        read = self._opening.sealed.read_chunk(chunk, ciphertext)
        self._opening.cipher.open_into(chunk, read, plaintext[: chunk.size])
        return plaintext[: chunk.size]
