"""Strict JSON in, canonical JSON out (RFC 8259, RFC 7493, RFC 8785); strict hex and base64.

Everything Cloister hashes or signs as JSON goes through here. Two readers disagreeing about
one document is how a signature ends up covering something else, so what is ambiguous is
refused: duplicate keys, numbers that are not integers within ±(2**53 - 1), lone surrogates,
``NaN`` and ``Infinity``, bytes that are not UTF-8, and anything after the document.

Every function that decodes raises MalformedError, and nothing else. Messages name the document
by the caller's word for it and quote nothing of it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Final, NoReturn, TypeAlias

from cloister.errors import MalformedError

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | bool | None"
JsonObject: TypeAlias = dict[str, Json]

MAX_INTEGER = 2**53 - 1  # RFC 7493 section 2.2: larger ones do not survive every reader
_MAX_DIGITS: Final = len(str(-MAX_INTEGER))
# The standard library's encoder, in C, is some twenty times faster than `rfc8785`, and receipts
# are encoded on every answer. It escapes strings and writes integers as section 3.2.2 says; what
# it does otherwise are fractions and the order of keys outside the Basic Multilingual Plane
# (section 3.2.3 sorts UTF-16 code units), and neither reaches it.
_PLAIN_ENCODER = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
)

_MALFORMED: Final = MalformedError.default_code

MAX_DEPTH = 64
"""Nesting allowed; the reports and receipts of `aci/1` stay below ten."""


class _Refused(ValueError):  # noqa: N818 - never leaves this module
    """Raised inside the decoder's hooks; the text is ours and quotes no input."""


def parse_json(data: bytes, *, limit: int, what: str, code: str = _MALFORMED) -> Json:
    """Decode one JSON document of at most `limit` bytes; `what` names it in errors.

    Raises MalformedError (with `code`) for anything but one unambiguous document.
    """
    if len(data) > limit:
        raise MalformedError(
            f"{what} has {len(data)} bytes; at most {limit} are accepted", code=code
        )
    try:
        text = data.decode("utf-8")
        _check_depth(text)
        value: Json = _DECODER.decode(text)
        # Only an escape can bring in half a surrogate pair: UTF-8 has none. Encoding finds it.
        if "\\" in text and _may_escape_surrogates(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except _Refused as refused:
        raise MalformedError(f"{what} {refused}", code=code) from None
    except (ValueError, RecursionError):
        # The decoder's own message may quote the document, so it goes no further.
        raise MalformedError(f"{what} is not a JSON document in UTF-8", code=code) from None
    return value


def parse_json_object(data: bytes, *, limit: int, what: str, code: str = _MALFORMED) -> JsonObject:
    """Decode a document whose outermost value is an object; otherwise as `parse_json`."""
    value = parse_json(data, limit=limit, what=what, code=code)
    if not isinstance(value, dict):
        raise MalformedError(f"{what} is not a JSON object", code=code)
    return value


def decode_base64(text: object, *, limit: int, what: str, code: str = _MALFORMED) -> bytes:
    """Decode standard base64 with padding (RFC 4648 section 4), one encoding per value."""
    if not isinstance(text, str) or len(text) > (limit + 2) // 3 * 4:
        raise MalformedError(f"{what} is not base64 of at most {limit} bytes", code=code)
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raise MalformedError(f"{what} is not base64", code=code) from None
    if len(data) > limit:
        raise MalformedError(f"{what} has more than {limit} bytes", code=code)
    # What strict decoding leaves open: padding too much, and bits behind the data in a last group
    # that is not full. Everything before has one spelling.
    rest = len(data) % 3
    whole = len(text) == (len(data) + 2) // 3 * 4
    if not whole or (rest and base64.b64encode(data[-rest:]).decode("ascii") != text[-4:]):
        raise MalformedError(f"{what} is not canonical base64", code=code)
    return data


def canonical(value: object) -> bytes:
    """Encode `value` in the canonical form of RFC 8785 section 3.2.

    Raises:
        MalformedError: `value` holds something JCS cannot encode, or a float (`aci/1` hashes
            and signs integers only).
    """
    try:
        if _is_plain(value):
            return _PLAIN_ENCODER.encode(value).encode()
        _check_no_floats(value)
        return _canonical_in_general(value)
    except (RecursionError, UnicodeEncodeError):
        raise MalformedError("the value has no canonical JSON form") from None


def canonical_string(text: str) -> str:
    """Write `text` as RFC 8785 section 3.2.2.2 does, quotes included."""
    return _PLAIN_ENCODER.encode(text)


def expect_object(value: object, what: str) -> JsonObject:
    """Return `value` as an object, or raise `MalformedError` naming `what`."""
    if not isinstance(value, dict):
        raise MalformedError(f"{what} is not an object")
    return value


def expect_list(value: object, what: str, *, limit: int) -> list[Json]:
    """Return `value` as a list of at most `limit` entries, or raise `MalformedError`."""
    if not isinstance(value, list):
        raise MalformedError(f"{what} is not a list")
    if len(value) > limit:
        raise MalformedError(f"{what} has {len(value)} entries; at most {limit} are accepted")
    return value


def expect_str(value: object, what: str, *, limit: int = 4096) -> str:
    """Return `value` as a string of at most `limit` characters, or raise `MalformedError`."""
    if not isinstance(value, str):
        raise MalformedError(f"{what} is not a string")
    if len(value) > limit:
        raise MalformedError(f"{what} has {len(value)} characters; at most {limit} are accepted")
    return value


def expect_int(value: object, what: str, *, low: int = 0, high: int = MAX_INTEGER) -> int:
    """Return `value` as an integer in ``low..high`` (never a boolean), or raise."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise MalformedError(f"{what} is not an integer between {low} and {high}")
    return value


def expect_hex(value: object, what: str, *, size: int | None = None, limit: int = 65536) -> bytes:
    """Return the bytes of lower-case hex `value`, exactly `size` of them where given."""
    text = expect_str(value, what, limit=2 * limit)
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = None
    # `fromhex` also takes capitals and white space.
    if data is None or data.hex() != text:
        raise MalformedError(f"{what} is not lower-case hex")
    if size is not None and len(data) != size:
        raise MalformedError(f"{what} has {len(data)} bytes, not {size}")
    return data


def expect_keys(
    value: Mapping[str, object],
    what: str,
    *,
    required: AbstractSet[str],
    optional: AbstractSet[str] = frozenset(),
) -> None:
    """Raise `MalformedError` unless `value` has exactly the named members."""
    if value.keys() == required:
        return
    missing = sorted(required - value.keys())
    if missing:
        raise MalformedError(f"{what} lacks {', '.join(missing)}")
    if value.keys() - required - optional:
        raise MalformedError(f"{what} has members this version does not know")


def _members(pairs: list[tuple[str, Json]]) -> JsonObject:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Refused("names a member twice")
    return members


def _integer(digits: str) -> int:
    # The length is checked first: converting a megabyte of digits takes minutes.
    if len(digits) > _MAX_DIGITS or abs(int(digits)) > MAX_INTEGER:
        raise _Refused("holds an integer beyond 2**53 - 1")
    return int(digits)


def _not_integer(_: str) -> NoReturn:
    raise _Refused("holds a number that is not an integer")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_members,
    parse_int=_integer,
    parse_float=_not_integer,
    parse_constant=_not_integer,
)
# Possessive, and content with no closing quote: otherwise a string without end would be read
# again from every escaped quote in it, which takes hours for a megabyte.
_STRING: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_BRACKET: Final = re.compile(r"[\[\]{}]")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_LONG: Final = 1 << 16
_SHORT: Final = 1 << 13
"""Characters; up to so many, counting all is as quick as looking for a few."""
_FEW: Final = 256


def _check_depth(text: str) -> None:
    escaped = "\\" in text
    # Most documents hold fewer brackets than may nest. Long ones are mostly long strings, which
    # without escapes are left out sooner than they are searched.
    if (escaped or len(text) <= _LONG) and not _opens_more(text, MAX_DEPTH):
        return
    # Without an escape every quote begins or ends a string: some fifty times faster.
    outside = _STRING.sub("", text) if escaped else "".join(text.split('"')[::2])
    if not _opens_more(outside, MAX_DEPTH) or _is_shallow(outside):
        return
    depth = 0
    for bracket in _BRACKET.findall(outside):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise _Refused(f"nests deeper than {MAX_DEPTH} levels")


def _opens_more(text: str, most: int) -> bool:
    """Whether more than `most` brackets open in `text`, within strings or not."""
    if len(text) <= _SHORT:
        return text.count("[") + text.count("{") > most
    return len(_places(text, "[", most + 1)) + len(_places(text, "{", most + 1)) > most


def _may_escape_surrogates(text: str) -> bool:
    """Whether ``\\ud`` or ``\\uD`` may stand in `text`; true where it does."""
    escapes = _places(text, "\\", _FEW)
    if len(escapes) < _FEW:
        return any(text.startswith(("ud", "uD"), at + 1) for at in escapes)
    return "\\ud" in text or "\\uD" in text


def _places(text: str, character: str, most: int) -> list[int]:
    """Where `character` stands, the first `most` times.

    Jumping from one to the next takes a sixth of the time of counting them, if they are rare.
    """
    found: list[int] = []
    at = text.find(character)
    while at >= 0 and len(found) < most:
        found.append(at)
        at = text.find(character, at + 1)
    return found


def _is_shallow(outside: str) -> bool:
    """Whether eight rounds take away all brackets, two levels each at most. Finds depth in C."""
    brackets = outside.encode().translate(None, _NO_BRACKETS)
    for _ in range(8):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return not brackets


def _canonical_in_general(value: object) -> bytes:
    import rfc8785

    try:
        return rfc8785.dumps(value)  # type: ignore[arg-type]  # object: checked by the library
    except rfc8785.CanonicalizationError:
        raise MalformedError("the value has no canonical JSON form") from None


def _is_plain(value: object) -> bool:
    """Whether `_PLAIN_ENCODER` writes `value` exactly as RFC 8785 asks."""
    pending = [value]
    while pending:
        item = pending.pop()
        kind = type(item)
        if kind is dict:
            for key in item:  # type: ignore[attr-defined]  # a dict
                if type(key) is not str or not key.isascii():
                    return False
            pending.extend(item.values())  # type: ignore[attr-defined]
        elif kind is list:
            pending.extend(item)  # type: ignore[arg-type]
        elif kind is int:
            if not -MAX_INTEGER <= item <= MAX_INTEGER:  # type: ignore[operator]
                return False
        elif not (kind is str or kind is bool or item is None):
            return False
    return True


def _check_no_floats(value: object) -> None:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, float):
            raise MalformedError("only integers are hashed or signed, not fractions")
        if isinstance(item, Mapping):
            pending.extend(item.values())
        elif isinstance(item, list | tuple):
            pending.extend(item)
