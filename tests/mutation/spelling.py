"""What a piece of evidence says, however it is spelt.

Text has many spellings: white space, letter case of hexadecimal, base64, labels of PEM. Two files
that decode to exactly the same tree (`decoded`) are the same evidence. Where the trees differ,
`differences` says where, so that a part which nobody signs can be told from one that is signed.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final, TypeAlias

from lxml import etree  # type: ignore[import-untyped]

from cloister.cli.cases.folder import decode_file
from cloister.endorsements.certificates import parse_certificate
from cloister.errors import MalformedError

HEX_TEXT: Final = "hex-text"
BASE64_TEXT: Final = "base64-text"

_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})+")
_BASE64: Final = re.compile(r"(?:[0-9A-Za-z+/]{4})*(?:[0-9A-Za-z+/]{2}==|[0-9A-Za-z+/]{3}=)?")
_SIGNED_TEXTS: Final = frozenset({"tcb_info", "qe_identity"})
"""Members of collateral that are signed as they are spelt."""
_MIN_BASE64: Final = 40
"""Shorter texts are words."""
_MIN_HEADER: Final = 1000
"""What a quote has before its certificates; less than that is text."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """The DER of one certificate."""

    der: bytes


Tree: TypeAlias = object
"""Dictionaries, lists, certificates, bytes, texts, numbers."""
Difference: TypeAlias = tuple[tuple[str | int, ...], Tree, Tree]
"""Where two trees differ, and what stands there."""

MISSING: Final = "(missing)"


def same_value(original: bytes, changed: bytes, *, encoding: str) -> bool:
    """Whether both decode to exactly the same; the verifier took both."""
    return decoded(original, encoding) == decoded(changed, encoding)


def decoded(data: bytes, encoding: str = "binary") -> Tree:
    """What `data` says; bytes as they are where they have no other spelling."""
    if encoding in {HEX_TEXT, BASE64_TEXT}:
        return decode_file(data, encoding)
    start = data.lstrip()[:1]
    with contextlib.suppress(ValueError, MalformedError, etree.LxmlError):
        if start in {b"{", b"["}:
            return _json(json.loads(data))
        if start == b"<":
            return _xml(data)
        if _PEM.search(data):
            return _around_certificates(data)
        if data[:2] == b"\x30\x82":
            return _der(data)
    return data


def differences(one: Tree, other: Tree, path: tuple[str | int, ...] = ()) -> Iterator[Difference]:
    """Every leaf that is not the same in both."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in one.keys() | other.keys():
            inner = one.get(name, MISSING), other.get(name, MISSING)
            yield from differences(*inner, (*path, name))
    elif isinstance(one, list) and isinstance(other, list):
        for number, (left, right) in enumerate(zip_longest(one, other, fillvalue=MISSING)):
            yield from differences(left, right, (*path, number))
    elif one != other:
        yield path, one, other


def leaves(tree: Tree) -> Iterator[Tree]:
    """Every leaf of a tree."""
    if isinstance(tree, dict):
        for inner in tree.values():
            yield from leaves(inner)
    elif isinstance(tree, list):
        for inner in tree:
            yield from leaves(inner)
    else:
        yield tree


def _der(data: bytes) -> Tree:
    """A certificate, or bytes with one at their start: NV memory is padded."""
    size = 4 + int.from_bytes(data[2:4], "big")
    parse_certificate(data[:size])
    if size == len(data):
        return Certificate(data)
    return {"certificate": Certificate(data[:size]), "behind": data[size:]}


def _json(value: object, name: str = "") -> Tree:
    if isinstance(value, dict):
        return {name: _json(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_json(inner, name) for inner in value]
    if not isinstance(value, str) or name in _SIGNED_TEXTS:
        return value
    if _PEM.search(value.encode()):
        return _around_certificates(value.encode())
    if _HEX.fullmatch(value):
        return value.lower()
    if len(value) >= _MIN_BASE64 and _BASE64.fullmatch(value):
        return decoded(base64.b64decode(value, validate=True))
    return value


def _xml(data: bytes) -> Tree:
    """Names, attributes and texts, of signed elements as canonical XML has them.

    Certificates and the signature's value are base64, in which white space says nothing.
    """
    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    root = etree.fromstring(data, parser)
    tree: list[Tree] = []
    for element in root.iter("{*}X509Certificate", "{*}SignatureValue"):
        text = "".join((element.text or "").split())
        content = binascii.a2b_base64(text.encode(), strict_mode=True)
        tree.append(Certificate(content) if element.tag.endswith("Certificate") else content)
        element.text = ""
    return [*tree, etree.tostring(root, method="c14n")]


def _around_certificates(data: bytes) -> Tree:
    """PEM certificates as their bytes, with what stands before, between and behind them."""
    pieces = _PEM.split(data)
    ders = [binascii.a2b_base64(b"".join(body.split()), strict_mode=True) for body in pieces[1::2]]
    for der in ders:
        parse_certificate(der)
    certificates: list[Tree] = [Certificate(der) for der in ders]
    if len(pieces[0]) < _MIN_HEADER:
        return certificates  # RFC 7468: text around the blocks explains them, and says nothing
    return {
        "certificates": certificates,
        # Line ends between certificates say nothing, nor does a NUL or padding behind the last.
        "around": [pieces[0], *(piece.strip(b"\0\r\n") for piece in pieces[2::2])],
    }
