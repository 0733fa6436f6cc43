"""Strict CBOR in (RFC 8949): one item, bounded, without anything that two readers see differently.

cbor2 does the decoding; it bounds nesting before it descends, allocates for a declared length
only as bytes arrive, and refuses repeated keys where asked to (checked for cbor2 6.2). What it
would allow and nothing here needs is refused: tags (which stand for dates, regular expressions,
shared references), floating point, ``undefined`` and unassigned simple values, keys other than
texts and integers, and bytes after the item. Numbers in more bytes than they need are accepted,
as AWS and others need not be canonical: whatever is signed is signed as bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn, TypeAlias

import cbor2

from cloister.errors import MalformedError

Cbor: TypeAlias = "dict[str | int, Cbor] | list[Cbor] | bytes | str | int | bool | None"


class _TagError(ValueError):
    """Raised inside the decoder for any tag; it never leaves this module."""


def _refuse_tag(*_: object) -> NoReturn:
    raise _TagError


class _EveryTag(Mapping[int, Callable[..., Any]]):
    """What to do about a tag, whatever its number: there are 2**64, so no table can list them."""

    def __getitem__(self, number: int) -> Callable[..., Any]:
        return _refuse_tag

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 0


_NO_TAGS: Final = _EveryTag()


def parse_cbor(
    data: bytes,
    *,
    limit: int,
    depth: int,
    what: str,
    code: str = MalformedError.default_code,
    indefinite: bool = False,
) -> Cbor:
    """Decode one item of at most `limit` bytes, nested at most `depth` deep.

    `what` names it in errors. With `indefinite`, maps, lists and strings may be of a length that
    is declared only by their end (RFC 8949 section 3.2).

    Raises MalformedError (with `code`), and nothing else.
    """
    item, size = parse_cbor_first(
        data, limit=limit, depth=depth, what=what, code=code, indefinite=indefinite
    )
    if size != len(data):
        raise MalformedError(f"{what} has {len(data) - size} bytes too many", code=code)
    return item


def parse_cbor_first(
    data: bytes,
    *,
    limit: int,
    depth: int,
    what: str,
    code: str = MalformedError.default_code,
    indefinite: bool = False,
) -> tuple[Cbor, int]:
    """Decode the item that `data` begins with, and how many bytes it has; see `parse_cbor`.

    For memory of a fixed size, of which an item fills the beginning. Raises MalformedError.
    """
    if len(data) > limit:
        raise MalformedError(
            f"{what} has {len(data)} bytes; at most {limit} are accepted", code=code
        )
    source = io.BytesIO(data)
    try:
        item: object = cbor2.CBORDecoder(
            source,
            semantic_decoders=_NO_TAGS,
            max_depth=depth,
            allow_indefinite=indefinite,
            allow_duplicate_keys=False,
        ).decode()
    except (cbor2.CBORError, ValueError, TypeError, OverflowError):
        # The decoder's own message may quote the document, so it goes no further.
        raise MalformedError(f"{what} is not strict CBOR", code=code) from None
    return _plain(item, what, code), source.tell()


def _plain(item: object, what: str, code: str) -> Cbor:
    """`item`, if it is made of nothing but what `Cbor` allows; its depth is bounded already."""
    if item is None or isinstance(item, bytes | str | bool | int):
        return item
    if isinstance(item, list):
        return [_plain(inner, what, code) for inner in item]
    if not isinstance(item, dict):
        raise MalformedError(f"{what} holds a kind of value that it must not", code=code)
    if any(isinstance(key, bool) or not isinstance(key, str | int) for key in item):
        raise MalformedError(f"{what} has a key that is neither text nor integer", code=code)
    return {key: _plain(inner, what, code) for key, inner in item.items()}
