"""Strict JSON for evidence: one reading per document, or none (RFC 8259, RFC 7493).

Standard library only, and quick on reports that are mostly base64. Refused are duplicate
members, numbers that are not integers within ±(2**53 - 1), lone surrogates, ``NaN`` and
``Infinity``, bytes that are not UTF-8, and anything after the document.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Final, NoReturn, TypeAlias

from cloister.errors import MalformedError

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | bool | None"
JsonObject: TypeAlias = dict[str, Json]

MAX_INTEGER: Final = 2**53 - 1


class _Refused(ValueError):  # noqa: N818 - never leaves this module
    """Raised inside the decoder's hooks; the text is ours and quotes no input."""


def parse_object(data: bytes, *, limit: int, what: str, code: str) -> JsonObject:
    """Decode one JSON object of at most `limit` bytes; `what` names it in errors.

    Raises MalformedError (with `code`), and nothing else.
    """
    if len(data) > limit:
        raise MalformedError(
            f"{what} has {len(data)} bytes; at most {limit} are accepted", code=code
        )
    try:
        value = _DECODER.decode(data.decode("utf-8"))
        # Only an escape can bring in half a surrogate pair: UTF-8 has none. Encoding finds it.
        if b"\\ud" in data or b"\\uD" in data:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except _Refused as refused:
        raise MalformedError(f"{what} {refused}", code=code) from None
    except (ValueError, RecursionError):
        # The decoder's own message may quote the document, so it goes no further.
        raise MalformedError(f"{what} is not a JSON document in UTF-8", code=code) from None
    if not isinstance(value, dict):
        raise MalformedError(f"{what} is not a JSON object", code=code)
    return value


def encode_canonical_string(text: str) -> str:
    """Write `text` as RFC 8785 section 3.2.2.2 does.

    The standard library's encoder for text that need not be ASCII writes the same escapes, and
    is thirty times faster than a general canonicaliser.
    """
    return _encode_string(text)


def decode_base64(text: object, *, limit: int, what: str, code: str) -> bytes:
    """Decode standard base64 with padding (RFC 4648 section 4), one encoding per value.

    Raises MalformedError (with `code`), and nothing else.
    """
    if not isinstance(text, str) or len(text) > (limit + 2) // 3 * 4:
        raise MalformedError(f"{what} is not base64 of at most {limit} bytes", code=code)
    try:
        data = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (ValueError, UnicodeEncodeError):
        raise MalformedError(f"{what} is not base64", code=code) from None
    if len(data) > limit:
        raise MalformedError(f"{what} has more than {limit} bytes", code=code)
    if base64.b64encode(data).decode("ascii") != text:
        raise MalformedError(f"{what} is not canonical base64", code=code)
    return data


def _members(pairs: list[tuple[str, Json]]) -> JsonObject:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Refused("names a member twice")
    return members


def _integer(digits: str) -> int:
    if len(digits) > len(str(MAX_INTEGER)) + 1 or abs(int(digits)) > MAX_INTEGER:
        raise _Refused("holds an integer beyond 2**53 - 1")
    return int(digits)


def _not_integer(_: str) -> NoReturn:
    raise _Refused("holds a number that is not an integer")


_encode_string: Final = json.JSONEncoder(ensure_ascii=False).encode
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_members,
    parse_int=_integer,
    parse_float=_not_integer,
    parse_constant=_not_integer,
)
