"""Reference integrity manifests: the measurements that NVIDIA vouches for, as signed XML.

TCG Reference Integrity Manifest information model 1.01, as a software identification tag
(ISO/IEC 19770-2:2015) with an enveloped XML signature (W3C XML Signature 1.1).

XML is read by the standard library's expat, and only as much of the language as manifests use:
no document type, so no entities of one's own and nothing to expand or fetch; no processing
instructions, comments or CDATA sections, which readers of signed XML skip in different ways.
Elements are those listed here, each in its place. Nothing is authenticated here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NoReturn
from xml.parsers import expat

from cloister.errors import MalformedError
from cloister.strictjson import decode_base64

MAX_RIM_BYTES: Final = 512 * 1024
"""NVIDIA's have some 25 kB."""
MAX_DEPTH: Final = 8
MAX_ELEMENTS: Final = 2048
MAX_ATTRIBUTES: Final = 64
MAX_NAMESPACES: Final = 32
"""Declarations in the whole document. Canonical XML compares each one with all the others."""
MAX_INDEX: Final = 254
MAX_ALTERNATIVES: Final = 32
MAX_CERTIFICATES: Final = 8
MAX_CERTIFICATE_BYTES: Final = 8 * 1024
DIGEST_BYTES: Final = 48
MAX_SIGNATURE_BYTES: Final = 132
"""ECDSA on P-521: r ‖ s."""

SWID: Final = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
SHA384: Final = "http://www.w3.org/2001/04/xmlenc#sha384"
DSIG: Final = "http://www.w3.org/2000/09/xmldsig#"

CANONICAL_XML: Final = "http://www.w3.org/2006/12/xml-c14n11"
ENVELOPED: Final = f"{DSIG}enveloped-signature"
ECDSA_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
DIGEST_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#sha384"

_CODE: Final = "malformed"
_INTEGER: Final = re.compile(r"0|[1-9][0-9]{0,3}")
_DIGEST: Final = re.compile(rf"[0-9a-fA-F]{{{2 * DIGEST_BYTES}}}")
_NAME: Final = re.compile(r"[0-9A-Za-z._-]{1,128}")
_HASH: Final = f"{SHA384} Hash"


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenMeasurement:
    """One ``Resource`` of a manifest."""

    index: int
    """Counted from zero: SPDM's index, which counts from one, is one more."""
    active: bool
    """Whether a device has to match it."""
    alternatives: tuple[bytes, ...]
    """SHA-384 digests, of which the device must show one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rim:
    """What a manifest says, without its signature.

    It names neither the project nor the SKU of the boards that its VBIOS runs on.
    """

    tag_id: str
    version: str
    """Of the driver or VBIOS (``colloquialVersion``)."""
    product: str
    """``GH100``, ``LS10``."""
    edition: str
    """``GPU`` or ``SWITCH``."""
    measurements: Mapping[int, GoldenMeasurement]

    @property
    def active(self) -> tuple[GoldenMeasurement, ...]:
        """The measurements that count, in ascending order of their indices."""
        return tuple(golden for golden in self.measurements.values() if golden.active)


@dataclass(frozen=True, slots=True, kw_only=True)
class RimDocument:
    """A manifest as it arrived; `rim` is what it says, whoever may have signed it."""

    rim: Rim
    certificates: tuple[bytes, ...]
    """What the signature names as its signer's, in DER, the signer's own first."""
    raw: bytes = field(repr=False)


@dataclass(slots=True, kw_only=True)
class _Element:
    """An element. Names are ``namespace name``, or the name alone where it has no namespace."""

    name: str
    attributes: dict[str, str]
    children: list[_Element] = field(default_factory=list)
    text: str = ""


def parse_rim(data: bytes) -> RimDocument:
    """Decode a signed manifest.

    It has exactly one signature, the last element below the outermost one, that names no other
    algorithms and transforms than NVIDIA's manifests do, covers the whole document, and brings
    certificates and nothing else to find a key by.

    Raises MalformedError, and nothing else.
    """
    root = _read(data)
    signatures = [child for child in root.children if child.name == f"{DSIG} Signature"]
    if len(signatures) != 1 or root.children[-1] is not signatures[0]:
        raise _malformed("has not exactly one signature, at its end")
    root.children.pop()
    return RimDocument(rim=_content(root), certificates=_signature(signatures[0]), raw=data)


def parse_signed_content(data: bytes) -> Rim:
    """Decode what a signature covers: the manifest in canonical form, without the signature.

    Raises MalformedError, and nothing else.
    """
    return _content(_read(data))


class _Builder:
    """Builds elements from expat's events, and stops at anything that manifests have no use for."""

    def __init__(self) -> None:
        self.root: _Element | None = None
        self._open: list[_Element] = []
        self._count = 0
        self._namespaces = 0

    def attach(self, parser: expat.XMLParserType) -> None:
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.StartNamespaceDeclHandler = self._namespace
        parser.CharacterDataHandler = self._characters
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = self._refuse_doctype
        parser.EntityDeclHandler = self._refuse_doctype
        parser.ExternalEntityRefHandler = self._refuse_doctype
        parser.ProcessingInstructionHandler = self._refuse_aside
        parser.CommentHandler = self._refuse_aside
        parser.StartCdataSectionHandler = self._refuse_aside

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if self._count > MAX_ELEMENTS or len(self._open) >= MAX_DEPTH:
            raise _malformed("has too many elements, or nests them too deeply")
        if len(attributes) > MAX_ATTRIBUTES:
            raise _malformed("has an element with too many attributes")
        element = _Element(name=name, attributes=attributes)
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def _namespace(self, _: str, __: str) -> None:
        self._namespaces += 1
        if self._namespaces > MAX_NAMESPACES:
            raise _malformed("declares too many namespaces")

    def _end(self, _: str) -> None:
        self._open.pop()

    def _characters(self, text: str) -> None:
        self._open[-1].text += text

    def _declaration(self, _: str, encoding: str | None, __: int) -> None:
        if encoding is not None and encoding.lower() != "utf-8":
            raise _malformed("is not in UTF-8")

    def _refuse_doctype(self, *_: object) -> NoReturn:
        raise _malformed("has a document type, or entities")

    def _refuse_aside(self, *_: object) -> NoReturn:
        raise _malformed("has comments, CDATA sections or processing instructions")


def _read(data: bytes) -> _Element:
    if len(data) > MAX_RIM_BYTES:
        raise _malformed(f"has more than {MAX_RIM_BYTES} bytes")
    parser = expat.ParserCreate(encoding="utf-8", namespace_separator=" ")
    # The default would hand over text in pieces, of which there may be millions.
    parser.buffer_text = True
    builder = _Builder()
    builder.attach(parser)
    try:
        parser.Parse(data, True)
    except expat.ExpatError:
        raise _malformed("is not well-formed XML") from None
    if builder.root is None:
        raise _malformed("is empty")
    return builder.root


def _content(root: _Element) -> Rim:
    _expect(root, f"{SWID} SoftwareIdentity")
    _wordless(root)
    meta: list[_Element] = []
    payload: list[_Element] = []
    for child in root.children:
        if child.name == f"{SWID} Meta":
            meta.append(child)
        elif child.name == f"{SWID} Payload":
            payload.append(child)
        elif child.name not in {f"{SWID} Entity", f"{SWID} Link"}:
            raise _malformed("holds an element that is not known")
        if child.name != f"{SWID} Payload":
            _childless(child)
        _wordless(child)
    if len(meta) != 1 or len(payload) != 1:
        raise _malformed("has not exactly one description and one payload")
    return Rim(
        tag_id=_attribute(root, "tagId"),
        version=_attribute(meta[0], "colloquialVersion"),
        product=_attribute(meta[0], "product"),
        edition=_attribute(meta[0], "edition"),
        measurements=_payload(payload[0]),
    )


def _payload(payload: _Element) -> dict[int, GoldenMeasurement]:
    found: dict[int, GoldenMeasurement] = {}
    for child in payload.children:
        _expect(child, f"{SWID} Resource")
        _childless(child)
        _wordless(child)
        golden = _resource(child.attributes)
        if golden.index in found:
            raise _malformed(f"has two measurements with index {golden.index}")
        found[golden.index] = golden
    if not any(golden.active for golden in found.values()):
        raise _malformed("has no active measurement")
    return dict(sorted(found.items()))


def _resource(attributes: Mapping[str, str]) -> GoldenMeasurement:
    active = attributes.get("active")
    hashes = {name: value for name, value in attributes.items() if name.startswith(_HASH)}
    count = _integer(attributes.get("alternatives"), MAX_ALTERNATIVES)
    names = [f"{_HASH}{number}" for number in range(count)]
    if (
        attributes.get("type") != "Measurement"
        or active not in {"True", "False"}
        or _integer(attributes.get("size"), DIGEST_BYTES) != DIGEST_BYTES
        or not count
        or set(hashes) != set(names)
        or not all(_DIGEST.fullmatch(value) for value in hashes.values())
    ):
        raise _malformed("has a measurement that is not readable")
    return GoldenMeasurement(
        index=_integer(attributes.get("index"), MAX_INDEX),
        active=active == "True",
        alternatives=tuple(bytes.fromhex(hashes[name]) for name in names),
    )


def _signature(signature: _Element) -> tuple[bytes, ...]:
    """Check an enveloped signature's form (XML Signature 1.1 section 4) and take out its signer."""
    info, value, key = _children(signature, "SignedInfo", "SignatureValue", "KeyInfo")
    method, algorithm, reference = _children(
        info, "CanonicalizationMethod", "SignatureMethod", "Reference"
    )
    transforms, digest, digest_value = _children(
        reference, "Transforms", "DigestMethod", "DigestValue"
    )
    enveloped, canonical = _children(transforms, "Transform", "Transform")
    if reference.attributes != {"URI": ""}:
        raise _malformed("has a signature that does not cover the whole document")
    for element, wanted in (
        (method, CANONICAL_XML),
        (algorithm, ECDSA_SHA384),
        (enveloped, ENVELOPED),
        (canonical, CANONICAL_XML),
        (digest, DIGEST_SHA384),
    ):
        _childless(element)
        _wordless(element)
        if element.attributes != {"Algorithm": wanted}:
            raise _malformed("is signed with algorithms or transforms that are not accepted")
    for element, limit in ((value, MAX_SIGNATURE_BYTES), (digest_value, DIGEST_BYTES)):
        _childless(element)
        _base64(element, limit)  # the library for signatures reads past what is no base64
    for element in (signature, info, reference, transforms, key):
        _wordless(element)
    return tuple(_certificates(key))


def _certificates(key: _Element) -> Iterator[bytes]:
    (data,) = _children(key, "X509Data")
    _wordless(data)
    if not 0 < len(data.children) <= MAX_CERTIFICATES:
        raise _malformed("brings no certificate of its signer, or too many")
    for child in data.children:
        _expect(child, f"{DSIG} X509Certificate")
        _childless(child)
        yield _base64(child, MAX_CERTIFICATE_BYTES)


def _base64(element: _Element, limit: int) -> bytes:
    """Strict base64, but for the white space that XML may have in it."""
    return decode_base64(
        "".join(element.text.split()),
        limit=limit,
        what="a certificate, signature or digest of the manifest",
        code=_CODE,
    )


def _children(element: _Element, *names: str) -> list[_Element]:
    if [child.name for child in element.children] != [f"{DSIG} {name}" for name in names]:
        raise _malformed("has a signature of another form than is accepted")
    return element.children


def _expect(element: _Element, name: str) -> None:
    if element.name != name:
        raise _malformed("holds an element that is not known")


def _childless(element: _Element) -> None:
    if element.children:
        raise _malformed("nests elements that stand alone elsewhere")


def _wordless(element: _Element) -> None:
    if element.text.strip():
        raise _malformed("holds text where none belongs")


def _attribute(element: _Element, name: str) -> str:
    value = element.attributes.get(name, "")
    if not _NAME.fullmatch(value):
        raise _malformed(f"has no readable {name}")
    return value


def _integer(text: str | None, most: int) -> int:
    if text is None or not _INTEGER.fullmatch(text) or int(text) > most:
        raise _malformed("has a number that is not readable")
    return int(text)


def _malformed(why: str) -> MalformedError:
    return MalformedError(f"the manifest {why}", code=_CODE)
