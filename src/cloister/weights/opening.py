"""Opening sealed weights: one pass over the ciphertext, in which everything is checked.

A chunk is read, decrypted, and only once its tag has been found right written out and hashed. When
a file's last chunk is hashed its digest must be the header's; when the last file is, the weights
are what the header says. Whoever gets the files before `open_sealed` returned has unproven bytes.

Files are opened several at a time, each in a lane of its own. Where there are more threads than
files, a lane has helpers that read, decrypt and write ahead, some chunks at a time, while the lane
does nothing but hash them in order: SHA-256 cannot be split, and takes as long as all the rest.
Each lane has its buffers from the start, so memory is bounded.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
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

_TOGETHER: Final = 4
"""Chunks that a helper opens at once. Handing over each by itself cost both sides more."""

_FORGET: Final = 8 << 20
"""Ciphertext that the kernel keeps in its cache behind us; for ever would be a second model."""

Piece = tuple[Chunk, ...]
"""Chunks of one file that follow each other; at least one."""

Progress = Callable[[int], None]
"""Called from any thread with the bytes just done; what it raises ends the opening."""


class Output(Protocol):
    """Takes the plaintext of one file."""

    def write(self, data: memoryview, offset: int) -> None:
        """Take the bytes from `offset` on; they are overwritten afterwards.

        Called from several threads, for each byte once, in any order but for the first bytes.
        """

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

    def write(self, _data: memoryview, _offset: int) -> None:
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
            authenticated parts of files at most, and must be thrown away; nothing is written to it
            any more.
        MalformedError: the file became shorter meanwhile.
        ConfigurationError: the disk failed, or the sink cannot take it.
    """
    header = sealed.header
    opening = _Opening(sealed, ChunkCipher(key, header), sink, progress)
    threads = max(1, min(threads, BUFFERS // (4 * header.chunk_bytes)))
    count = min(threads, len(header.files))
    # Two buffers for each thread at most, with one chunk of ciphertext each.
    together = min(_TOGETHER, BUFFERS // (2 * threads * header.chunk_bytes) - 1)
    lanes = [_Lane(opening, helpers=threads // count - 1, together=together) for _ in range(count)]
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

    def __init__(self, opening: _Opening, *, helpers: int, together: int) -> None:
        self._opening = opening
        self._helpers = helpers
        self._together = together if helpers else 1
        size = opening.sealed.header.chunk_bytes
        # Ciphertext of a chunk and plaintext of a piece. Two for each helper, and one that the
        # lane hashes.
        self._buffers = [
            (memoryview(bytearray(size + TAG)), memoryview(bytearray(size * self._together)))
            for _ in range(2 * helpers + 1)
        ]

    def run(self) -> None:
        """Open files until none is left, or another lane failed."""
        try:
            with contextlib.ExitStack() as stack:
                pool = None
                if self._helpers:
                    pool = ThreadPoolExecutor(self._helpers, thread_name_prefix="weights")
                    # Waits for them: whoever throws the sink away does it behind the last write.
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
        pieces = self._pieces(span)
        first = next(pieces)
        plaintext = self._decrypt(first, 0)
        # Only now the header is known to be authentic, names included.
        output = opening.sink.create(span.entry)
        output.write(plaintext, 0)
        kept = span.position
        for piece, written in itertools.chain(
            [(first, plaintext)], self._written(pieces, output, pool)
        ):
            digest.update(written)
            read = piece[-1].position + piece[-1].size + TAG
            if read - kept >= _FORGET:
                opening.sealed.forget(kept, read)
                kept = read
            opening.progress(len(written))
        if digest.hexdigest() != span.entry.sha256:
            raise AuthenticationError(
                f"the file {span.entry.path} in the sealed weights has another digest than the "
                "header says",
                code="weights.digest",
            )
        output.finish()

    def _pieces(self, span: Span) -> Iterator[Piece]:
        """Chunks that follow each other, as many as are opened together."""
        chunks = self._opening.sealed.header.chunks(span)
        while piece := tuple(itertools.islice(chunks, self._together)):
            yield piece

    def _written(
        self, pieces: Iterator[Piece], output: Output, pool: ThreadPoolExecutor | None
    ) -> Iterator[tuple[Piece, memoryview]]:
        """Each piece with its authenticated plaintext, in order; good until the next."""
        if pool is None:
            for piece in pieces:
                yield piece, self._write(piece, 0, output)
            return
        pending: deque[tuple[Piece, Future[memoryview]]] = deque()
        # The first buffer holds what the lane hashes before it asks for anything.
        for number, piece in enumerate(pieces, start=1):
            if len(pending) == len(self._buffers) - 1:  # the other one is being hashed
                oldest, done = pending.popleft()
                yield oldest, done.result()
            buffer = number % len(self._buffers)
            pending.append((piece, pool.submit(self._write, piece, buffer, output)))
        for piece, done in pending:
            yield piece, done.result()

    def _write(self, piece: Piece, buffer: int, output: Output) -> memoryview:
        """Open `piece`, and write it out once every tag in it was found right."""
        plaintext = self._decrypt(piece, buffer)
        output.write(plaintext, piece[0].offset)
        return plaintext

    def _decrypt(self, piece: Piece, buffer: int) -> memoryview:
        ciphertext, plaintext = self._buffers[buffer]
        filled = 0
        for chunk in piece:
            read = self._opening.sealed.read_chunk(chunk, ciphertext)
            self._opening.cipher.open_into(chunk, read, plaintext[filled : filled + chunk.size])
            filled += chunk.size
        return plaintext[:filled]
