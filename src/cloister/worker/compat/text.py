"""Text in pieces, as engines give it and as events of a stream hold it."""

from __future__ import annotations

import codecs
import json
import re
from typing import Final

_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_LONE: Final = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Surrogates apart from those that stand for undecodable bytes (PEP 383)."""
_LINE_ENDS: Final = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""What JSON leaves alone and readers of lines, Python's `str.splitlines` among them, split at."""


class TextJoiner:
    """Makes whole characters of pieces that may end in the middle of one.

    Engines that write token by token split a character in two ways: by its UTF-8 bytes (decode
    them with ``surrogateescape`` first) or by its two halves in UTF-16, each as a JSON escape.
    Either way it is held back until its rest has come. What never becomes a character is U+FFFD.
    """

    __slots__ = ("_decoder", "_half")

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._half = ""

    def feed(self, text: str) -> str:
        """Take one piece and return the characters that are whole now, maybe none."""
        text, self._half = self._half + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return self._decoder.decode(_to_bytes(text))

    def rest(self) -> str:
        """At the end: U+FFFD for what is still incomplete, if anything is."""
        half, self._half = self._half, ""
        return self._decoder.decode(_to_bytes(half), True)


def _to_bytes(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # only where something is split, or was never text
        joined = _PAIR.sub(lambda pair: _join(pair[0]), text)
        return _LONE.sub("\ufffd", joined).encode("utf-8", "surrogateescape")


def _join(pair: str) -> str:
    return pair.encode("utf-16-le", "surrogatepass").decode("utf-16-le")


def json_text(text: str) -> bytes:
    """Encode whole characters as a JSON string without a line end of any kind in it.

    Not in ASCII: clients that take the string for one of Python's (Cosmian's did) misread the
    escapes of characters past U+FFFF.
    """
    return json.dumps(text, ensure_ascii=False).translate(_LINE_ENDS).encode()
