"""Certificates of the keys that sign SEV-SNP reports: VCEK and VLEK, and whom they belong to.

Source: AMD 57230 "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface
Specification", sections "VCEK Certificate" and "VLEK Certificate"; extensions lie under
1.3.6.1.4.1.3704.1. Nothing here is authenticated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from cloister.errors import MalformedError
from cloister.evidence.snp import Product, SigningKey

_ARC: Final = "1.3.6.1.4.1.3704.1."
_STRUCT_VERSION: Final = _ARC + "1"
_PRODUCT_NAME: Final = _ARC + "2"
_HWID: Final = _ARC + "4"
_CSP_ID: Final = _ARC + "5"

_TCB: Final = ("3.1", "3.2", "3.4", "3.5", "3.6", "3.7", "3.3", "3.8")
"""Extensions in the order of the bytes of TCB_VERSION: blSPL, teeSPL, spl4 to spl7, snpSPL,
ucodeSPL."""
_TURIN_TCB: Final = ("3.9", "3.1", "3.2", "3.3", "3.5", "3.6", "3.7", "3.8")
"""The same for Turin: fmcSPL, blSPL, teeSPL, snpSPL, spl5 to spl7, ucodeSPL."""

_STRUCT_VERSIONS: Final = {Product.MILAN: 0, Product.GENOA: 0, Product.TURIN: 1}
_HWID_BYTES: Final = {Product.MILAN: 64, Product.GENOA: 64, Product.TURIN: 8}
_CHIP_ID_BYTES: Final = 64
_MAX_TEXT: Final = 127
_INTEGER: Final = 0x02
_OCTET_STRING: Final = 0x04
_IA5_STRING: Final = 0x16
_NAMES: Final = {"SEV-VCEK": SigningKey.VCEK, "SEV-VLEK": SigningKey.VLEK}


@dataclass(frozen=True, slots=True, kw_only=True)
class EndorsementKey:
    """What the certificate of a VCEK or VLEK says about its key."""

    certificate: x509.Certificate
    kind: SigningKey
    product: Product
    product_name: str
    """As it stands there; behind a hyphen the stepping: ``Milan-B0``."""
    tcb: bytes
    """TCB_VERSION by which the key was derived, the 8 bytes as a report has them."""
    hwid: bytes | None
    """The chip's id, of a VCEK: 64 bytes, or 8 on Turin."""
    csp_id: str | None
    """The provider that AMD gave a VLEK to."""

    @property
    def chip_id(self) -> bytes | None:
        """`hwid` as CHIP_ID holds it, filled up to 64 bytes with zeros."""
        return None if self.hwid is None else self.hwid.ljust(_CHIP_ID_BYTES, b"\0")

    @property
    def issuer_name(self) -> str:
        """Common name of the key (ASK or ASVK) that certifies keys of this kind and product."""
        return f"SEV-{'VLEK-' if self.kind is SigningKey.VLEK else ''}{self.product.label}"

    @property
    def root_name(self) -> str:
        """Common name of the product's root key."""
        return f"ARK-{self.product.label}"


def kind_of(certificate: x509.Certificate) -> SigningKey | None:
    """What kind of endorsement key the subject names; ``None`` for other certificates."""
    return _NAMES.get(common_name(certificate.subject) or "")


def common_name(name: x509.Name) -> str | None:
    """The one common name in `name`; ``None`` if there is none, or more than one."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    value = found[0].value if len(found) == 1 else None
    return value if isinstance(value, str) else None


def parse_endorsement_key(certificate: x509.Certificate) -> EndorsementKey:
    """Read AMD's extensions of a VCEK's or VLEK's certificate.

    Each that the specification names must be there, in strict DER. Extensions it does not name
    are left alone: a chain refuses critical ones that nobody knows.

    Raises MalformedError (code ``malformed``), and nothing else.
    """
    kind = kind_of(certificate)
    if kind is None:
        raise _fail("is not one of a VCEK or VLEK")
    values = {
        extension.oid.dotted_string: extension.value.value
        for extension in certificate.extensions
        if isinstance(extension.value, x509.UnrecognizedExtension)
    }
    name = _text(values, _PRODUCT_NAME)
    product = _product(name)
    if _integer(values, _STRUCT_VERSION) != _STRUCT_VERSIONS[product]:
        raise _fail("is in a version of its format that is not known")
    if (_HWID in values, _CSP_ID in values) != (kind is SigningKey.VCEK, kind is SigningKey.VLEK):
        raise _fail("does not name its chip, or its provider, as its kind requires")
    return EndorsementKey(
        certificate=certificate,
        kind=kind,
        product=product,
        product_name=name,
        tcb=_tcb(values, product),
        hwid=_hwid(values[_HWID], product) if kind is SigningKey.VCEK else None,
        csp_id=_text(values, _CSP_ID) if kind is SigningKey.VLEK else None,
    )


def _product(name: str) -> Product:
    for product in Product:
        if name.partition("-")[0] == product.label:
            return product
    raise _fail("is for a product that is not known")


def _tcb(values: Mapping[str, bytes], product: Product) -> bytes:
    names = _TURIN_TCB if product is Product.TURIN else _TCB
    listed = {oid for oid in values if oid.startswith(f"{_ARC}3.")}
    if listed != {_ARC + name for name in names}:
        raise _fail(f"does not have the parts of {product.label}'s TCB")
    return bytes(_integer(values, _ARC + name) for name in names)


def _hwid(value: bytes, product: Product) -> bytes:
    """The chip's id: early certificates hold it bare, others inside an OCTET STRING."""
    size = _HWID_BYTES[product]
    if len(value) == size + 2 and value[:2] == bytes([_OCTET_STRING, size]):
        value = value[2:]
    if len(value) != size:
        raise _fail(f"names a chip by an id that does not have {size} bytes")
    return value


def _integer(values: Mapping[str, bytes], oid: str) -> int:
    """An INTEGER from 0 to 255 in strict DER: no superfluous zero in front."""
    value = values.get(oid, b"")
    content = value[2:]
    if value[:2] != bytes([_INTEGER, len(content)]) or len(content) not in (1, 2):
        raise _fail(f"has no number under {oid}")
    number = int.from_bytes(content, "big", signed=True)
    if not 0 <= number <= 0xFF or (len(content) == 2 and number < 0x80):
        raise _fail(f"has a number under {oid} that is none of DER's, or not one byte's")
    return number


def _text(values: Mapping[str, bytes], oid: str) -> str:
    """A short IA5String of printable characters, in DER."""
    value = values.get(oid, b"")
    content = value[2:]
    if not 0 < len(content) <= _MAX_TEXT or value[:2] != bytes([_IA5_STRING, len(content)]):
        raise _fail(f"has no text under {oid}")
    if not content.isascii() or not (text := content.decode("ascii")).isprintable():
        raise _fail(f"has a text under {oid} that cannot be printed")
    return text


def _fail(why: str) -> MalformedError:
    return MalformedError(f"an AMD certificate {why}", code="malformed")
