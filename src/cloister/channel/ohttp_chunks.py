"""Chunk framing of chunked Oblivious HTTP (draft-ietf-ohai-chunked-ohttp-08, sections 3-6).

A stream is a sequence of non-final chunks, each a length (variable-length integer, of the
sealed bytes) and the sealed bytes, then one final chunk: a length of 0 and sealed bytes up to
the end of the stream. The sealed bytes of the final chunk carry the AAD "final", so a stream
cut at a chunk boundary is noticed. Requests and responses differ only in their key and header.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloister.channel.hpke import TAG_SIZE, AeadSequence, open_failed
from cloister.channel.varint import decode_varint, encode_varint, varint_size
from cloister.errors import ChannelError, TruncatedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Buffer = bytes | bytearray | memoryview

# Section 3: every receiver takes 2**14 bytes of plaintext in a chunk, and senders stay within
# that unless they know the receiver takes more. Ours takes no more, so that a declared length
# never reserves more than this.
MAX_CHUNK = 1 << 14
_MAX_SEALED = MAX_CHUNK + TAG_SIZE
_MIN_SEALED = 1 + TAG_SIZE  # a non-final chunk without data counts as a failed open (section 6)
_FINAL_AAD = b"final"
# Sealed chunks are handed on in pieces of about this many plaintext bytes: few enough calls
# for a transport, small enough to stay in a processor's cache (measured).
_PIECE = 1 << 16


class ChunkSealer:
    """Seals plaintext as chunks; `prefix` is the header that goes before the first one."""

    __slots__ = ("_chunk_size", "_full_length", "_messages", "_open", "_prefix")

    def __init__(self, messages: AeadSequence, prefix: bytes, chunk_size: int) -> None:
        if chunk_size < 1:
            raise RuntimeError("a chunk holds at least one byte")
        self._messages = messages
        self._prefix = prefix
        self._chunk_size = chunk_size
        self._full_length = encode_varint(chunk_size + TAG_SIZE)
        self._open = True

    def start(self) -> bytes:
        """Return the header, unless an earlier call already returned it (then b"")."""
        prefix, self._prefix = self._prefix, b""
        return prefix

    def chunk(self, data: Buffer, final: bool = False) -> bytes:
        """Seal `data`, in several chunks where it is longer than the chunk size.

        The header is put in front if `start` was not called. Raises RuntimeError after the
        final chunk and for a non-final chunk without data, which the format forbids;
        ChannelError at the message limit.
        """
        if not self._open:
            raise RuntimeError("the final chunk is already sealed")
        if len(data) > self._chunk_size:
            return b"".join(self.pieces((data,), final=final))
        prefix, self._prefix = self._prefix, b""
        if final:
            self._open = False
            return prefix + b"\x00" + self._messages.seal(_FINAL_AAD, data)
        if not data:
            raise RuntimeError("only the final chunk may be empty")
        sealed = self._messages.seal(None, data)
        return prefix + encode_varint(len(sealed)) + sealed

    def pieces(self, parts: Iterable[Buffer], final: bool = False) -> Iterator[bytes]:
        """Seal the concatenation of `parts` as full chunks, without concatenating it first.

        Yields about 64 KiB at a time. Only the last chunk may be shorter than the
        chunk size, so where one part ends does not show. With `final` that last chunk is the
        final one. Errors as for `chunk`.
        """
        if not self._open:
            raise RuntimeError("the final chunk is already sealed")
        size, seal, length = self._chunk_size, self._messages.seal, self._full_length
        output: list[bytes] = [self.start()]
        held: Buffer = b""
        for data in _regroup(parts, size):
            if held:
                # Every chunk but the last is full, so its length is always the same bytes.
                output += (length, seal(None, held))
                if len(output) * size >= 2 * _PIECE:
                    yield b"".join(output)
                    output.clear()
            held = data
        if final or held:
            output.append(self.chunk(held, final))
        if output := [piece for piece in output if piece]:
            yield b"".join(output)


def _regroup(parts: Iterable[Buffer], size: int) -> Iterator[Buffer]:
    """Cut the concatenation of `parts` into runs of `size` bytes, the last one shorter."""
    rest = bytearray()
    for part in parts:
        view = memoryview(part)
        at = 0
        if rest:
            at = min(size - len(rest), len(view))
            rest += view[:at]
            if len(rest) < size:
                continue
            yield rest
        full = len(view) - (len(view) - at) % size
        for start in range(at, full, size):
            yield view[start : start + size]
        rest = bytearray(view[full:])
    if rest:
        yield rest


class ChunkOpener:
    """Opens a stream of chunks, given in any division into byte strings.

    After any error every further call raises the same kind of error: nothing that follows
    a failure is ever released.
    """

    __slots__ = ("_final", "_messages", "_needed", "_pending", "_state")

    def __init__(self, messages: AeadSequence) -> None:
        self._messages = messages
        self._pending = bytearray()
        self._needed = 0  # bytes of the pending frame, 0 while its length is not known
        self._final = False
        self._state = _READING

    @property
    def finished(self) -> bool:
        """Whether the final chunk has been opened: the message is complete."""
        return self._state == _FINISHED

    def receive(self, data: Buffer) -> list[bytes]:
        """Take more of the stream; return the plaintext of every chunk now complete.

        Memory stays within one chunk, whatever lengths are declared. Raises the ChannelError
        of every failed open; RuntimeError after `finish`.
        """
        if self._state != _READING:
            raise _not_reading(self._state)
        view = memoryview(data)
        partial = self._pending or self._needed or self._final
        try:
            # One whole chunk, its length on two bytes: how a streamed token arrives.
            size = len(view) - 2
            usual = _MIN_SEALED <= size < 0x4000 and not partial
            if usual and view[0] << 8 | view[1] == size | 0x4000:
                return [self._messages.open(None, view[2:])]
            opened: list[bytes] = []
            at = 0
            if partial:
                at = self._complete_pending(view, opened)
            if not self._final:
                self._open_whole(view, at, opened)
        except ChannelError:
            self._fail()
            raise
        return opened

    def finish(self) -> bytes:
        """The stream has ended: open the final chunk and return its plaintext (may be empty).

        Raises TruncatedError when no final chunk had begun, or it is too short to be one; the
        ChannelError of every failed open when it does not authenticate.
        """
        if self._state != _READING:
            raise _not_reading(self._state)
        if not self._final or len(self._pending) < TAG_SIZE:
            self._fail()
            raise TruncatedError("the sealed message ended before its final chunk")
        try:
            plaintext = self._messages.open(_FINAL_AAD, self._pending)
        except ChannelError:
            self._fail()
            raise
        self._state = _FINISHED
        self._pending = bytearray()
        return plaintext

    def _fail(self) -> None:
        self._state = _FAILED
        self._pending = bytearray()

    def _complete_pending(self, view: memoryview, opened: list[bytes]) -> int:
        """Finish the frame begun by earlier data; return how much of `view` that took."""
        if self._final:
            self._keep_final(view)
            return len(view)
        pending = self._pending
        at = 0
        if not self._needed:
            size = varint_size(pending[0])
            at = min(size - len(pending), len(view))
            pending += view[:at]
            if len(pending) < size:
                return at
            length = decode_varint(pending)
            pending.clear()
            if length == 0:
                self._final = True
                self._keep_final(view[at:])
                return len(view)
            if not _MIN_SEALED <= length <= _MAX_SEALED:
                raise open_failed()
            self._needed = length
        taken = view[at : at + self._needed - len(pending)]
        pending += taken
        at += len(taken)
        if len(pending) == self._needed:
            opened.append(self._messages.open(None, pending))
            self._pending = bytearray()
            self._needed = 0
        return at

    def _open_whole(self, view: memoryview, at: int, opened: list[bytes]) -> None:
        """Open the frames that lie whole in `view`, without copying; keep what is left over."""
        end = len(view)
        open_chunk = self._messages.open
        while at < end and not self._needed:
            first = view[at]
            if 64 <= first < 128 and at + 2 <= end:
                # The size of most lengths, spelled out: this loop runs once per token.
                start = at + 2
                length = (first & 63) << 8 | view[at + 1]
            else:
                start = at + varint_size(first)
                if start > end:
                    break
                length = decode_varint(view[at:start])
            if length == 0:
                self._final = True
                self._keep_final(view[start:])
                return
            if not _MIN_SEALED <= length <= _MAX_SEALED:
                raise open_failed()
            at = start + length
            if at > end:
                self._needed = length
                at = start
                break
            opened.append(open_chunk(None, view[start:at]))
        if at < end:
            self._pending += view[at:]

    def _keep_final(self, data: memoryview) -> None:
        if len(self._pending) + len(data) > _MAX_SEALED:
            raise open_failed()
        self._pending += data


_READING, _FINISHED, _FAILED = range(3)


def _not_reading(state: int) -> Exception:
    if state == _FAILED:
        return open_failed()
    return RuntimeError("the sealed message has already ended")
