"""Read Binary HTTP messages (RFC 9292) as they arrive: bytes in, events out.

A decoder is a generator that runs until it needs more bytes. Memory stays within the limits
and the bytes handed in: a declared length is checked before anything is kept for it, and
content is passed on as it comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from cloister.channel.bhttp_records import (
    INDETERMINATE_REQUEST,
    INDETERMINATE_RESPONSE,
    KNOWN_REQUEST,
    KNOWN_RESPONSE,
    Data,
    EndOfContent,
    InformationalResponse,
    Limits,
    RequestEvent,
    RequestHead,
    ResponseEvent,
    ResponseHead,
    check_fields,
    check_request_control,
)
from cloister.channel.varint import decode_varint, varint_size
from cloister.errors import MalformedError

if TYPE_CHECKING:
    from collections.abc import Generator

    from cloister.channel.bhttp_records import Fields

    Buffer = bytes | bytearray | memoryview

_Event = TypeVar("_Event")
_T = TypeVar("_T")

TOO_LARGE = "malformed.too_large"
_DEFAULT_LIMITS = Limits()


class _Decoder(Generic[_Event]):
    """What requests and responses share: sections, content, padding and truncation.

    `content_end` is the number of message bytes up to and including the end of the content
    (its terminator, where the message is of indeterminate length); None until it is reached.
    """

    __slots__ = (
        "_base",
        "_counts_left",
        "_data",
        "_ended",
        "_error",
        "_events",
        "_header_left",
        "_limits",
        "_pos",
        "_run",
        "_run_left",
        "content_end",
    )

    def __init__(self, limits: Limits = _DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._header_left = limits.header_bytes
        self._counts_left = limits.header_count
        self._data = b""
        self._pos = 0
        self._base = 0  # message bytes before self._data
        self._ended = False
        self._error: MalformedError | None = None
        self._events: list[_Event | Data | EndOfContent] = []
        self._run_left = 0  # content still allowed, where a run may begin; otherwise 0
        self.content_end: int | None = None
        self._run = self._message()
        next(self._run)

    def receive(self, data: Buffer) -> list[_Event | Data | EndOfContent]:
        """Take more of the message; return the events now complete, in order.

        Raises MalformedError (code "malformed.too_large" past a limit), and the same again on
        every later call; RuntimeError after `finish`.
        """
        left = self._run_left
        size = len(data) - 2
        # One whole run of content, its length on two bytes: how a streamed token arrives.
        usual = 0 < size <= left and size < 0x4000
        if usual and data[0] << 8 | data[1] == size | 0x4000 and isinstance(data, bytes):
            self._run_left = left - size
            self._base += len(self._data)
            self._data = data
            self._pos = size + 2
            return [Data(data=data[2:])]
        self._check_open()
        if not data:
            return []
        self._base += len(self._data)
        self._data = data if isinstance(data, bytes) else bytes(data)
        self._pos = 0
        return self._resume()

    def finish(self) -> list[_Event | Data | EndOfContent]:
        """The message has ended: return the events of parts that may be left out.

        Empty content and trailers may be missing at the end (section 3.8), and so may an
        empty header section. Raises MalformedError when the message ends anywhere else.
        """
        self._check_open()
        self._base += len(self._data)
        self._data = b""
        self._pos = 0
        self._ended = True
        return self._resume()

    def _check_open(self) -> None:
        if self._error is not None:
            raise MalformedError(str(self._error), code=self._error.code)
        if self._ended:
            raise RuntimeError("the Binary HTTP message has already ended")

    def _resume(self) -> list[_Event | Data | EndOfContent]:
        events: list[_Event | Data | EndOfContent] = []
        self._events = events
        try:
            next(self._run)
        except StopIteration:
            pass  # only after the end
        except MalformedError as error:
            self._error = error
            raise
        return events

    # The generators below are entered with self._data[self._pos:] unread, and give up control
    # only when all of it has been read.

    def _message(self) -> Generator[None, None, None]:
        yield
        framing = yield from self._varint()
        yield from self._head(framing)
        known = framing in (KNOWN_REQUEST, KNOWN_RESPONSE)
        yield from self._content(known)
        trailers = yield from self._section(known, trailers=True)
        self._events.append(EndOfContent(trailers=trailers))
        yield from self._padding()

    def _head(self, framing: int) -> Generator[None, None, None]:
        raise NotImplementedError

    def _content(self, known: bool) -> Generator[None, None, None]:
        left = self._limits.body_bytes
        if not (yield from self._at_end()):
            while size := (self._short_varint() or (yield from self._varint())):
                if size > left:
                    raise _too_large("content")
                left -= size
                data, pos = self._data, self._pos
                if size <= len(data) - pos:
                    self._pos = pos + size
                    self._events.append(Data(data=data[pos : pos + size]))
                else:
                    yield from self._run_of_content(size)
                if known:
                    break
                while self._pos == len(self._data) and not self._ended:
                    # Until it goes on here, `receive` may take whole runs by itself.
                    self._run_left = left
                    yield
                    left, self._run_left = self._run_left, 0
        self.content_end = self._base + self._pos

    def _short_varint(self) -> int:
        """Read a two-byte integer that is all there, else return 0 and read nothing.

        The size of most content runs, spelled out: this is called once per token.
        """
        data, pos = self._data, self._pos
        if pos + 2 <= len(data) and 64 <= data[pos] < 128:
            value = (data[pos] & 63) << 8 | data[pos + 1]
            if value:
                self._pos = pos + 2
            return value
        return 0

    def _run_of_content(self, size: int) -> Generator[None, None, None]:
        while size:
            data, pos = self._data, self._pos
            if pos == len(data):
                if self._ended:
                    raise _too_short()
                yield
                continue
            piece = data if pos == 0 and len(data) <= size else data[pos : pos + size]
            self._events.append(Data(data=piece))
            self._pos = pos + len(piece)
            size -= len(piece)

    def _padding(self) -> Generator[None, None, None]:
        left = self._limits.padding_bytes
        while not self._ended:
            size = len(self._data) - self._pos
            # What comes first is what is wrong, however the message was cut into pieces.
            if self._data.count(0, self._pos, self._pos + left) != min(size, left):
                raise MalformedError("a Binary HTTP message is padded with other than zeros")
            if size > left:
                raise _too_large("padding")
            left -= size
            self._pos += size
            yield

    def _section(self, known: bool, *, trailers: bool = False) -> Generator[None, None, Fields]:
        if (yield from self._at_end()):
            return ()
        lines = (yield from self._known_lines()) if known else (yield from self._lines())
        return check_fields(lines, trailers=trailers)

    def _known_lines(self) -> Generator[None, None, Fields]:
        """Read a field section with its length in front."""
        section = yield from self._string()
        fields: list[tuple[bytes, bytes]] = []
        at = 0
        while at < len(section):
            name, at = _string_at(section, at)
            value, at = _string_at(section, at)
            self._count_line()
            fields.append((name, value))
        return tuple(fields)

    def _lines(self) -> Generator[None, None, Fields]:
        """Read field lines up to a name length of 0."""
        fields: list[tuple[bytes, bytes]] = []
        while size := (yield from self._varint()):
            self._charge(size)
            name = yield from self._take(size)
            self._count_line()
            fields.append((name, (yield from self._string())))
        return tuple(fields)

    def _count_line(self) -> None:
        self._counts_left -= 1
        if self._counts_left < 0:
            raise _too_large("header")

    def _charge(self, size: int) -> None:
        """Count `size` bytes against the header limit, before they are read."""
        self._header_left -= size
        if self._header_left < 0:
            raise _too_large("header")

    def _string(self) -> Generator[None, None, bytes]:
        size = yield from self._varint()
        self._charge(size)
        return (yield from self._take(size))

    def _varint(self) -> Generator[None, None, int]:
        data, pos = self._data, self._pos
        if pos < len(data) and data[pos] < 64:
            self._pos = pos + 1
            return data[pos]
        first = yield from self._take(1)
        rest = yield from self._take(varint_size(first[0]) - 1)
        return decode_varint(first + rest)

    def _take(self, size: int) -> Generator[None, None, bytes]:
        end = self._pos + size
        if end <= len(self._data):
            piece = self._data[self._pos : end]
            self._pos = end
            return piece
        kept = bytearray(self._data[self._pos :])
        while len(kept) < size:
            if self._ended:
                raise _too_short()
            self._pos = len(self._data)
            yield
            self._pos = min(size - len(kept), len(self._data))
            kept += self._data[: self._pos]
        return bytes(kept)

    def _at_end(self) -> Generator[None, None, bool]:
        """Wait for one more byte; return whether the message ended instead."""
        while self._pos == len(self._data):
            if self._ended:
                return True
            yield
        return False


class RequestDecoder(_Decoder[RequestEvent]):
    """Reads one request: RequestHead, Data*, EndOfContent."""

    __slots__ = ()

    def _head(self, framing: int) -> Generator[None, None, None]:
        if framing not in (KNOWN_REQUEST, INDETERMINATE_REQUEST):
            raise MalformedError("this is not a Binary HTTP request")
        method = yield from self._string()
        scheme = yield from self._string()
        authority = yield from self._string()
        path = yield from self._string()
        check_request_control(method, scheme, authority, path)
        headers = yield from self._section(framing == KNOWN_REQUEST)
        head = RequestHead(
            method=method, scheme=scheme, authority=authority, path=path, headers=headers
        )
        self._events.append(head)


class ResponseDecoder(_Decoder[ResponseEvent]):
    """Reads one response: InformationalResponse*, ResponseHead, Data*, EndOfContent."""

    __slots__ = ()

    def _head(self, framing: int) -> Generator[None, None, None]:
        if framing not in (KNOWN_RESPONSE, INDETERMINATE_RESPONSE):
            raise MalformedError("this is not a Binary HTTP response")
        known = framing == KNOWN_RESPONSE
        while True:
            status = yield from self._varint()
            if not 100 <= status <= 599:
                raise MalformedError("a Binary HTTP response has a status code out of range")
            headers = yield from self._section(known)
            if status >= 200:
                self._events.append(ResponseHead(status=status, headers=headers))
                return
            self._counts_left -= 1
            if self._counts_left < 0:
                raise _too_large("header")
            self._events.append(InformationalResponse(status=status, headers=headers))


def _string_at(section: bytes, at: int) -> tuple[bytes, int]:
    """Read a length and that many bytes inside a section; return them and what follows."""
    if at >= len(section):
        raise _too_short()
    start = at + varint_size(section[at])
    end = start + decode_varint(section[at:start])
    if end > len(section) or start > len(section):
        raise _too_short()
    return section[start:end], end


def _too_short() -> MalformedError:
    return MalformedError("a Binary HTTP message ends where it may not")


def _too_large(part: str) -> MalformedError:
    return MalformedError(f"the {part} of a Binary HTTP message is too large", code=TOO_LARGE)
