"""Certificates of NVIDIA's devices: chains, the firmware that a key belongs to, lists.

A device has a key of its own, whose certificate NVIDIA issued (``... BROM`` or a successor), and
that key certifies one for each firmware that starts (DICE): the certificate of the reporting
key names the firmware by its SHA-384. Certificates do not expire before the year 9999.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from cloister.endorsements.authorities import parse_authority
from cloister.endorsements.certificates import parse_certificate
from cloister.errors import MalformedError
from cloister.evidence.nvgpu import DIGEST_BYTES, MAX_CERTIFICATES

COMPOSITE_DEVICE_ID: Final = x509.ObjectIdentifier("2.23.133.5.4.1")
"""Hopper and its switches: a sequence of version, device key and firmware id."""
TCB_INFO: Final = x509.ObjectIdentifier("2.23.133.5.4.1.1")
"""Blackwell: DiceTcbInfo (TCG DICE Attestation Architecture 1.1 section 6.1.1)."""
UNDERSTOOD: Final = (COMPOSITE_DEVICE_ID, TCB_INFO)
"""Extensions of a leaf that `firmware_ids` reads, whether or not they are critical."""

SWITCHES: Final = ("LS10",)
"""Models that are NVSwitches; every other one is a GPU."""

_SHA384_OID: Final = bytes.fromhex("0609608648016503040202")
_SEQUENCE: Final = 0x30
_OCTETS: Final = 0x04
_FWIDS: Final = 0xA6
"""Context tag 6, constructed: the ``fwids`` of a DiceTcbInfo."""


def parse_chain(certificates: Iterable[bytes]) -> tuple[x509.Certificate, ...]:
    """Decode a chain, leaf first. That one certificate issued another is not looked at.

    Raises MalformedError, and nothing else.
    """
    chain = tuple(certificates)
    if not 0 < len(chain) <= MAX_CERTIFICATES:
        raise MalformedError("the device's evidence brings no chain, or a very long one")
    return (*map(parse_certificate, chain[:1]), *map(parse_authority, chain[1:]))


def device_model(leaf: x509.Certificate) -> str:
    """The first word of the leaf's common name, ``GH100``, without underscores; or ``""``."""
    names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    name = names[0].value if len(names) == 1 else ""
    words = name.split() if isinstance(name, str) else []
    return words[0].replace("_", "") if words else ""


def firmware_ids(leaf: x509.Certificate) -> tuple[bytes, ...]:
    """SHA-384 digests of the firmware that `leaf` was issued to, as either extension has them.

    Raises MalformedError, and nothing else: an extension does not decode, or both are there.
    """
    found = [
        (extension.oid, extension.value.value)
        for extension in leaf.extensions
        if isinstance(extension.value, x509.UnrecognizedExtension) and extension.oid in UNDERSTOOD
    ]
    if len(found) > 1:
        raise _malformed()
    for oid, value in found:
        return _composite(value) if oid == COMPOSITE_DEVICE_ID else _tcb_info(value)
    return ()


def names_revocation(certificate: x509.Certificate) -> bool:
    """Whether the certificate says where to ask about its revocation: a list, or a responder."""
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.CRLDistributionPoints):
            return True
        if isinstance(extension.value, x509.AuthorityInformationAccess):
            return any(
                one.access_method == AuthorityInformationAccessOID.OCSP for one in extension.value
            )
    return False


def _composite(value: bytes) -> tuple[bytes, ...]:
    members = list(_members(_only(value, _SEQUENCE)))
    if len(members) != 3 or members[2][0] != _SEQUENCE:
        raise _malformed()
    return (_firmware_id(members[2][1]),)


def _tcb_info(value: bytes) -> tuple[bytes, ...]:
    lists = [body for tag, body in _members(_only(value, _SEQUENCE)) if tag == _FWIDS]
    if len(lists) != 1:
        raise _malformed()
    digests = []
    for tag, body in _members(lists[0]):
        if tag != _SEQUENCE:
            raise _malformed()
        digests.append(_firmware_id(body))
    if not digests:
        raise _malformed()
    return tuple(digests)


def _firmware_id(body: bytes) -> bytes:
    """A FWID: the algorithm, which is SHA-384, and the digest."""
    if not body.startswith(_SHA384_OID):
        raise _malformed()
    digest = _only(body[len(_SHA384_OID) :], _OCTETS)
    if len(digest) != DIGEST_BYTES:
        raise _malformed()
    return digest


def _only(data: bytes, tag: int) -> bytes:
    """The content of the one DER value that `data` is."""
    members = list(_members(data))
    if len(members) != 1 or members[0][0] != tag:
        raise _malformed()
    return members[0][1]


def _members(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The DER values one after the other in `data`: tag (one byte) and content."""
    offset = 0
    while offset < len(data):
        header = data[offset : offset + 4]
        if len(header) < 2:
            raise _malformed()
        size, start = header[1], offset + 2
        if size & 0x80:
            more = size & 0x7F
            size, start = int.from_bytes(header[2 : 2 + more], "big"), start + more
            # Two bytes of length at most, and no more of them than DER allows.
            if not 0 < more <= 2 or size < (0x80 if more == 1 else 0x100):
                raise _malformed()
        offset = start + size
        if offset > len(data):
            raise _malformed()
        yield header[0], data[start:offset]


def _malformed() -> MalformedError:
    return MalformedError("the device's certificate names its firmware in no readable way")
