"""A sealed file, opened: its header and length are checked before anything else is read."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType

from cloister.errors import AuthenticationError, ConfigurationError, MalformedError
from cloister.weights.cipher import ChunkCipher
from cloister.weights.header import (
    MAGIC,
    PREAMBLE,
    TAG,
    Chunk,
    Header,
    Span,
    parse_header,
    parse_preamble,
)


class SealedFile:
    """An open sealed file. A context manager; leaving closes it. Threads may share it.

    Nothing of it is authenticated until chunks are opened with the key.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError if it cannot be read, MalformedError if it is not whole."""
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ConfigurationError(
                f"the sealed weights {path} cannot be read (errno {error.errno})",
                code="weights.source",
            ) from None
        try:
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise ConfigurationError(f"{path} is no file", code="weights.source")
            self.header = self._checked_header()
        except BaseException:
            self.close()
            raise

    def _checked_header(self) -> Header:
        header = parse_header(self._exactly(parse_preamble(self._exactly(PREAMBLE, 0)), PREAMBLE))
        found = os.fstat(self._descriptor).st_size
        if found != header.sealed_bytes:
            raise MalformedError(
                f"the sealed weights have {found} bytes, and their header says "
                f"{header.sealed_bytes}: they were cut or added to",
                code="weights.length",
            )
        return header

    def _exactly(self, size: int, offset: int) -> bytes:
        data = bytearray(size)
        if self._read(memoryview(data), offset) != size:
            raise MalformedError("this is not a file of sealed weights", code="weights.format")
        return bytes(data)

    def _read(self, into: memoryview, offset: int) -> int:
        try:
            return os.preadv(self._descriptor, [into], offset)
        except OSError as error:  # a broken disk, or one that dm-verity found altered
            raise ConfigurationError(
                f"the sealed weights cannot be read at byte {offset} (errno {error.errno}): the "
                "disk is broken, or it was altered",
                code="weights.source",
            ) from None

    def expect(self, header_sha256: str) -> None:
        """AuthenticationError (``weights.header``) unless the header has this digest."""
        if self.header.sha256 != header_sha256:
            raise AuthenticationError(
                f"the header of the sealed weights has the digest {self.header.sha256}, not "
                f"{header_sha256}: these are other weights",
                code="weights.header",
            )

    def read_chunk(self, chunk: Chunk, into: memoryview) -> memoryview:
        """Read the ciphertext of `chunk` into the beginning of `into` and return that part.

        MalformedError if the file is shorter by now, ConfigurationError if the disk fails.
        """
        part = into[: chunk.size + TAG]
        if self._read(part, chunk.position) != len(part):
            raise MalformedError(
                "the sealed weights became shorter while they were read", code="weights.length"
            )
        return part

    def forget(self, begin: int, end: int) -> None:
        """Tell the kernel that it need not keep these bytes of the file in its cache."""
        os.posix_fadvise(self._descriptor, begin, end - begin, os.POSIX_FADV_DONTNEED)

    def read(self, cipher: ChunkCipher, path: str, offset: int, size: int) -> bytes:
        """Part of a file's plaintext, up to its end; only the chunks that hold it are opened.

        Each is authenticated; the digest of the whole file is not computed. KeyError for a path
        that is not in it, AuthenticationError for a chunk that is not what was sealed.
        """
        span = self._span(path)
        end = min(offset + size, span.entry.size)
        step = self.header.chunk_bytes
        parts = []
        for index in range(offset // step, -(-end // step)):
            chunk = self.header.chunk(span, index)
            plain = self._open_chunk(cipher, chunk)
            parts.append(plain[max(0, offset - chunk.offset) : end - chunk.offset])
        return b"".join(parts)

    def _span(self, path: str) -> Span:
        for span in self.header.spans:
            if span.entry.path == path:
                return span
        raise KeyError(path)

    def _open_chunk(self, cipher: ChunkCipher, chunk: Chunk) -> bytes:
        ciphertext = self.read_chunk(chunk, memoryview(bytearray(chunk.size + TAG)))
        plain = bytearray(chunk.size)
        cipher.open_into(chunk, ciphertext, plain)
        return bytes(plain)

    def close(self) -> None:
        """Close it; once."""
        os.close(self._descriptor)

    def __enter__(self) -> SealedFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def is_sealed(path: Path) -> bool:
    """Whether a file begins like sealed weights; False for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False
