"""What a Binary HTTP message is made of (RFC 9292), and which of it is allowed.

Field names are compared and kept in lower case. Everything is bytes, as on the wire.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeAlias

from cloister.errors import MalformedError

Fields: TypeAlias = tuple[tuple[bytes, bytes], ...]

MEDIA_TYPE = "message/bhttp"

KNOWN_REQUEST, KNOWN_RESPONSE, INDETERMINATE_REQUEST, INDETERMINATE_RESPONSE = range(4)

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+\-.]*")
_AUTHORITY = re.compile(rb"[!-?A-~]*")  # visible ASCII without "@": no user information
_PATH = re.compile(rb"/[!-\"$-~\x80-\xff]*")  # no "#": fragments are not sent
# RFC 9113 section 8.2.1: no NUL, LF, CR; neither starts nor ends with a space or tab.
_VALUE = re.compile(rb"(?:[^\x00\r\n\t ](?:[^\x00\r\n]*[^\x00\r\n\t ])?)?")
_CONTROL_NAMES = frozenset((b":method", b":scheme", b":authority", b":path", b":status"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a decoder takes before it refuses, in bytes and counts, over one whole message.

    Each declared length is checked against these before anything is kept for it.
    """

    header_bytes: int = 1 << 16  # control data, header, trailer and informational fields
    header_count: int = 256  # field lines, plus one for every informational response
    body_bytes: int = 1 << 25
    padding_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHead:
    """Control data and header section of a request; as an event, the head is complete."""

    method: bytes
    scheme: bytes
    authority: bytes
    path: bytes
    headers: Fields = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHead:
    """Final status (200..599) and header section; as an event, the head is complete."""

    status: int
    headers: Fields = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InformationalResponse:
    """An informational response (100..199) ahead of the final one."""

    status: int
    headers: Fields = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A run of content bytes; how content is divided into runs means nothing."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndOfContent:
    """The content is complete, and the trailer section after it."""

    trailers: Fields = ()


RequestEvent: TypeAlias = RequestHead | Data | EndOfContent
ResponseEvent: TypeAlias = InformationalResponse | ResponseHead | Data | EndOfContent


def check_fields(fields: Fields, *, trailers: bool) -> Fields:
    """Return `fields` with names in lower case (RFC 9292 section 3.6).

    Raises MalformedError on a name or value that HTTP does not allow, on control data among
    the fields, and on pseudo-fields that follow other fields or stand in trailers. Other
    pseudo-fields are let through, as the section asks.
    """
    checked = []
    pseudo_allowed = not trailers
    for name, value in fields:
        lower = name.lower()
        if lower[:1] == b":":
            if not pseudo_allowed or lower in _CONTROL_NAMES:
                raise MalformedError("a Binary HTTP message has a pseudo-field out of place")
            lower_name = lower[1:]
        else:
            pseudo_allowed = False
            lower_name = lower
        if _TOKEN.fullmatch(lower_name) is None:
            raise MalformedError("a Binary HTTP message has a field name HTTP does not allow")
        if _VALUE.fullmatch(value) is None:
            raise MalformedError("a Binary HTTP message has a field value HTTP does not allow")
        checked.append((lower, value))
    return tuple(checked)


def check_request_control(method: bytes, scheme: bytes, authority: bytes, path: bytes) -> None:
    """Check request control data (RFC 9292 section 3.4, RFC 9113 section 8.3.1).

    Raises MalformedError. CONNECT has neither scheme nor path; all others have both.
    """
    if _TOKEN.fullmatch(method) is None:
        raise MalformedError("a Binary HTTP request has a method HTTP does not allow")
    if _AUTHORITY.fullmatch(authority) is None:
        raise MalformedError("a Binary HTTP request has an authority HTTP does not allow")
    if method == b"CONNECT":
        if scheme or path or not authority:
            raise MalformedError("a Binary HTTP CONNECT request names only an authority")
        return
    if _SCHEME.fullmatch(scheme) is None:
        raise MalformedError("a Binary HTTP request has a scheme HTTP does not allow")
    if _PATH.fullmatch(path) is None and not (path == b"*" and method == b"OPTIONS"):
        raise MalformedError("a Binary HTTP request has a path HTTP does not allow")
