"""Write Binary HTTP messages (RFC 9292): known length whole, indeterminate length in parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloister.channel.bhttp_records import (
    INDETERMINATE_REQUEST,
    INDETERMINATE_RESPONSE,
    KNOWN_REQUEST,
    KNOWN_RESPONSE,
    check_fields,
    check_request_control,
)
from cloister.channel.varint import encode_varint
from cloister.errors import MalformedError

if TYPE_CHECKING:
    from cloister.channel.bhttp_records import (
        Fields,
        InformationalResponse,
        RequestHead,
        ResponseHead,
    )


def encode_request_parts(
    head: RequestHead, body: bytes, trailers: Fields = (), padding_to: int | None = None
) -> tuple[bytes, bytes, bytes]:
    """Encode a known-length request as (all before the content, content, all after).

    The content is `body` itself, so a large one need not be copied. With `padding_to` the
    whole is padded with zeros to a multiple of that many bytes. Raises MalformedError on a
    head or trailers that HTTP does not allow.
    """
    prefix = (
        encode_varint(KNOWN_REQUEST)
        + _request_control(head)
        + _known_fields(head.headers)
        + encode_varint(len(body))
    )
    return prefix, body, _known_suffix(len(prefix) + len(body), trailers, padding_to)


def encode_request(
    head: RequestHead, body: bytes, trailers: Fields = (), padding_to: int | None = None
) -> bytes:
    """Encode a known-length request; as `encode_request_parts`, in one piece."""
    return b"".join(encode_request_parts(head, body, trailers, padding_to))


def encode_response(
    head: ResponseHead,
    body: bytes,
    trailers: Fields = (),
    padding_to: int | None = None,
    *,
    informational: tuple[InformationalResponse, ...] = (),
) -> bytes:
    """Encode a known-length response; padding and errors as for `encode_request_parts`."""
    parts = [encode_varint(KNOWN_RESPONSE)]
    for response in informational:
        parts += (_status(response.status, 100, 199), _known_fields(response.headers))
    parts += (_status(head.status, 200, 599), _known_fields(head.headers))
    prefix = b"".join(parts) + encode_varint(len(body))
    return prefix + body + _known_suffix(len(prefix) + len(body), trailers, padding_to)


class _Encoder:
    """Writes one indeterminate-length message; each call returns the next bytes of it.

    `size` counts the bytes returned so far. Calls out of order raise RuntimeError, heads and
    fields that HTTP does not allow MalformedError.
    """

    __slots__ = ("_state", "size")

    _START, _CONTENT, _TRAILERS, _DONE = range(4)

    def __init__(self) -> None:
        self._state = self._START
        self.size = 0

    def data(self, data: bytes) -> bytes:
        """Encode content; nothing for no bytes, since a length of 0 ends the content."""
        self._expect(self._CONTENT)
        return self._count(encode_varint(len(data)) + data if data else b"")

    def end_content(self) -> bytes:
        """Encode the content terminator; what follows is not content any more."""
        self._expect(self._CONTENT)
        self._state = self._TRAILERS
        return self._count(b"\x00")

    def end(self, trailers: Fields = (), pad: int = 0, pad_to: int = 1) -> bytes:
        """Encode the trailers, `pad` zero bytes, and zeros up to a multiple of `pad_to`.

        Puts the content terminator in front unless `end_content` was called.
        """
        terminator = self.end_content() if self._state == self._CONTENT else b""
        self._expect(self._TRAILERS)
        self._state = self._DONE
        section = self._count(_field_lines(trailers, trailers=True) + bytes(1 + pad))
        return terminator + section + self._count(bytes(-self.size % pad_to))

    def _expect(self, state: int) -> None:
        if self._state != state:
            raise RuntimeError("the parts of a Binary HTTP message are out of order")

    def _count(self, encoded: bytes) -> bytes:
        self.size += len(encoded)
        return encoded


class RequestEncoder(_Encoder):
    """Writes one indeterminate-length request."""

    __slots__ = ()

    def head(self, head: RequestHead) -> bytes:
        """Encode control data and header section."""
        self._expect(self._START)
        encoded = (
            encode_varint(INDETERMINATE_REQUEST)
            + _request_control(head)
            + _field_lines(head.headers)
            + b"\x00"
        )
        self._state = self._CONTENT
        return self._count(encoded)


class ResponseEncoder(_Encoder):
    """Writes one indeterminate-length response."""

    __slots__ = ()

    def informational(self, response: InformationalResponse) -> bytes:
        """Encode an informational response (100..199), any number of times before the head."""
        self._expect(self._START)
        encoded = _status(response.status, 100, 199) + _field_lines(response.headers) + b"\x00"
        return self._count(self._framing() + encoded)

    def head(self, head: ResponseHead) -> bytes:
        """Encode the final status (200..599) and header section."""
        self._expect(self._START)
        encoded = _status(head.status, 200, 599) + _field_lines(head.headers) + b"\x00"
        self._state = self._CONTENT
        return self._count(self._framing() + encoded)

    def _framing(self) -> bytes:
        return b"" if self.size else encode_varint(INDETERMINATE_RESPONSE)


def _request_control(head: RequestHead) -> bytes:
    control = (head.method, head.scheme, head.authority, head.path)
    check_request_control(*control)
    return b"".join(encode_varint(len(part)) + part for part in control)


def _status(status: int, first: int, last: int) -> bytes:
    if not first <= status <= last:
        raise MalformedError(f"a status code here lies between {first} and {last}")
    return encode_varint(status)


def _field_lines(fields: Fields, *, trailers: bool = False) -> bytes:
    if not fields:
        return b""
    parts: list[bytes] = []
    for name, value in check_fields(fields, trailers=trailers):
        parts += (encode_varint(len(name)), name, encode_varint(len(value)), value)
    return b"".join(parts)


def _known_fields(fields: Fields, *, trailers: bool = False) -> bytes:
    lines = _field_lines(fields, trailers=trailers)
    return encode_varint(len(lines)) + lines


def _known_suffix(size: int, trailers: Fields, padding_to: int | None) -> bytes:
    suffix = _known_fields(trailers, trailers=True)
    return suffix + bytes(-(size + len(suffix)) % padding_to) if padding_to else suffix
