"""Strict JSON in, canonical JSON out (RFC 8259, RFC 7493, RFC 8785).

Everything Cloister hashes or signs as JSON goes through here. Two readers disagreeing about
one document is how a signature ends up covering something else, so what is ambiguous is
refused: duplicate keys, numbers that are not integers within ±(2**53 - 1), lone surrogates,
``NaN`` and ``Infinity``, bytes that are not UTF-8, and anything after the document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import NoReturn, TypeAlias

import rfc8785

from cloister.errors import MalformedError

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | bool | None"
JsonObject: TypeAlias = dict[str, Json]

MAX_INTEGER = 2**53 - 1  # RFC 7493 section 2.2: larger ones do not survive every reader
# The standard library's encoder, in C, is some twenty times faster than `rfc8785`, and receipts
# are encoded on every answer. It escapes strings and writes integers as section 3.2.2 says; what
# it does otherwise are fractions and the order of keys outside the Basic Multilingual Plane
# (section 3.2.3 sorts UTF-16 code units), and neither reaches it.
_PLAIN_ENCODER = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
)

MAX_DEPTH = 64
"""Nesting allowed; the reports and receipts of `aci/1` stay below ten."""


def parse_json(data: bytes, *, limit: int, what: str) -> Json:
    """Decode one JSON document of at most `limit` bytes; `what` names it in errors.

    Raises:
        MalformedError: not one unambiguous JSON document (see the module's text).
    """
    if len(data) > limit:
        raise MalformedError(f"{what} has {len(data)} bytes; at most {limit} are accepted")
    try:
        text = data.decode("utf-8")
        _check_depth(text, what)
        value: Json = json.loads(
            text,
            object_pairs_hook=lambda pairs: _object(pairs, what),
            parse_float=lambda _: _refuse(what, "holds a number that is not an integer"),
            parse_constant=lambda _: _refuse(what, "holds NaN or Infinity"),
            parse_int=lambda digits: _integer(digits, what),
        )
    except MalformedError:
        raise
    except (ValueError, RecursionError):
        # The decoder's own message may quote the document, so it goes no further.
        raise MalformedError(f"{what} is not a JSON document in UTF-8") from None
    # UTF-8 cannot hold a lone surrogate; only an escape can write one.
    if "\\u" in text:
        _check_strings(value, what)
    return value


def parse_json_object(data: bytes, *, limit: int, what: str) -> JsonObject:
    """Decode a document whose outermost value is an object; otherwise as `parse_json`."""
    value = parse_json(data, limit=limit, what=what)
    if not isinstance(value, dict):
        raise MalformedError(f"{what} is not a JSON object")
    return value


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
        return rfc8785.dumps(value)  # type: ignore[arg-type]  # object: checked by the library
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeEncodeError):
        raise MalformedError("the value has no canonical JSON form") from None


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
    missing = sorted(required - value.keys())
    if missing:
        raise MalformedError(f"{what} lacks {', '.join(missing)}")
    if value.keys() - required - optional:
        raise MalformedError(f"{what} has members this version does not know")


def _object(pairs: list[tuple[str, Json]], what: str) -> JsonObject:
    result = dict(pairs)
    if len(result) != len(pairs):
        _refuse(what, "names a member twice")
    return result


def _integer(digits: str, what: str) -> int:
    # The length is checked first: converting a megabyte of digits takes minutes.
    if len(digits) > len(str(MAX_INTEGER)) + 1 or abs(int(digits)) > MAX_INTEGER:
        _refuse(what, "holds an integer beyond 2**53 - 1")
    return int(digits)


def _refuse(what: str, why: str) -> NoReturn:
    raise MalformedError(f"{what} {why}")


def _check_depth(text: str, what: str) -> None:
    # Cheap upper bound: brackets inside strings only make it stricter for odd documents.
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    in_string = escaped = False
    for char in text:
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                _refuse(what, f"nests deeper than {MAX_DEPTH} levels")
        elif char in "]}":
            depth -= 1


def _check_strings(value: Json, what: str) -> None:
    pending: list[Json] = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            _check_surrogates(item, what)
        elif isinstance(item, dict):
            for key, member in item.items():
                _check_surrogates(key, what)
                pending.append(member)
        elif isinstance(item, list):
            pending.extend(item)


def _check_surrogates(text: str, what: str) -> None:
    if any("\ud800" <= char <= "\udfff" for char in text):
        _refuse(what, "holds half of a surrogate pair")


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
