"""Reference values as CoRIM, for verifiers other than ours.

Source: draft-ietf-rats-corim, sections "CoRIM" (``corim-map``) and "CoMID" (``concise-mid-tag``,
reference-value triples, ``integrity-registers``). One CoMID for each accepted state; its
environment is the platform, its measurement the registers of that state. CBOR in the deterministic
encoding of RFC 8949 section 4.2, so that equal reference values give equal bytes; unsigned.

Registers become digests, and only those of SHA-256 and SHA-384 can: states that list anything else
(an SGX signer's product id) are refused. Components of a development platform have no register of
their own and are refused as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import cbor2

from cloister.errors import MalformedError, UnsupportedError
from cloister.verifier.platform_references import PlatformReference, ReferenceImage
from cloister.verifier.reference_values import ReferenceValues

CODE: Final = "image.corim"
MAX_BYTES: Final = 8 << 20

_CORIM: Final = 501
_COMID: Final = 506
_ID, _TAGS = 0, 1
_IDENTITY, _TRIPLES = 1, 4
_TAG_ID: Final = 0
_REFERENCE_TRIPLES: Final = 0
_CLASS: Final = 0
_VENDOR, _MODEL = 1, 2
_VALUES: Final = 1
_VERSION, _FLAGS, _NAME, _REGISTERS = 0, 3, 11, 14
_VERSION_TEXT: Final = 0
_IS_DEBUG: Final = 3

_ALGORITHMS: Final = {32: 1, 48: 7}
"""Named Information Hash Algorithm registry (RFC 6920): sha-256 and sha-384, by size in bytes."""

VENDOR: Final = "Cloister"


def encode_corim(values: ReferenceValues) -> bytes:
    """`values` as an unsigned CoRIM.

    Raises:
        UnsupportedError: something in them has no place in it (code ``image.corim``).
    """
    if values.components or not values.platforms:
        raise UnsupportedError(
            "only accepted states of platforms can be written as CoRIM; these reference values"
            f" {'list components' if values.components else 'have none'}",
            code=CODE,
        )
    identifier = f"cloister/reference-values/{values.digest}"
    tags = [
        cbor2.CBORTag(_COMID, _encode(_comid(entry, f"{identifier}/{number}")))
        for number, entry in enumerate(values.platforms)
    ]
    return _encode(cbor2.CBORTag(_CORIM, {_ID: identifier, _TAGS: tags}))


def parse_corim(data: bytes) -> ReferenceValues:
    """Read back what `encode_corim` writes, and nothing else.

    Raises MalformedError (code ``image.corim``), and nothing else.
    """
    if len(data) > MAX_BYTES:
        raise _malformed(f"has {len(data)} bytes; at most {MAX_BYTES} are accepted")
    document = _decode(data, _CORIM)
    try:
        tags = document[_TAGS]
        references = [_reference(_decode_tag(tag)) for tag in tags]
        values = ReferenceValues.from_platforms(*references)
        same = encode_corim(values) == data
    except Exception as error:
        if isinstance(error, MalformedError):
            raise
        raise _malformed("is not laid out as ours are") from None
    if not same:
        raise _malformed("is not in the form that these values have")
    return values


def _comid(entry: PlatformReference, identifier: str) -> dict[int, Any]:
    registers = {
        name: [[_algorithm(value), bytes.fromhex(value)] for value in accepted]
        for name, accepted in entry.registers.items()
    }
    measured: dict[int, Any] = {_NAME: entry.name, _REGISTERS: registers}
    if entry.image is not None:
        # The name of an image has no place of its own: it goes before the version.
        measured[_VERSION] = {_VERSION_TEXT: f"{entry.image.name} {entry.image.version}"}
        measured[_FLAGS] = {_IS_DEBUG: entry.image.debug}
    environment = {_CLASS: {_VENDOR: VENDOR, _MODEL: entry.platform}}
    return {
        _IDENTITY: {_TAG_ID: identifier},
        _TRIPLES: {_REFERENCE_TRIPLES: [[environment, [{_VALUES: measured}]]]},
    }


def _reference(comid: Mapping[int, Any]) -> PlatformReference:
    ((environment, (measurement,)),) = comid[_TRIPLES][_REFERENCE_TRIPLES]
    measured = measurement[_VALUES]
    image = None
    if _VERSION in measured:
        name, _, version = measured[_VERSION][_VERSION_TEXT].partition(" ")
        image = ReferenceImage(name=name, version=version, debug=measured[_FLAGS][_IS_DEBUG])
    return PlatformReference(
        platform=environment[_CLASS][_MODEL],
        name=measured[_NAME],
        registers={
            name: tuple(sorted(value.hex() for _, value in accepted))
            for name, accepted in sorted(measured[_REGISTERS].items())
        },
        image=image,
    )


def _algorithm(value: str) -> int:
    algorithm = _ALGORITHMS.get(len(value) // 2)
    if algorithm is None:
        raise UnsupportedError(
            "a register that is no digest of SHA-256 or SHA-384 cannot be written as CoRIM",
            code=CODE,
        )
    return algorithm


def _encode(item: object) -> bytes:
    return cbor2.dumps(item, canonical=True)


def _decode_tag(tag: object) -> Mapping[int, Any]:
    if not isinstance(tag, cbor2.CBORTag) or tag.tag != _COMID or not isinstance(tag.value, bytes):
        raise _malformed("holds something else than CoMIDs")
    return _mapping(lambda: cbor2.loads(tag.value))


def _decode(data: bytes, number: int) -> Mapping[int, Any]:
    def load() -> object:
        tag = cbor2.loads(data)
        return tag.value if isinstance(tag, cbor2.CBORTag) and tag.tag == number else None

    return _mapping(load)


def _mapping(load: Callable[[], object]) -> Mapping[int, Any]:
    try:
        item = load()
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError):
        raise _malformed("is no CBOR") from None
    if not isinstance(item, Mapping):  # inside a tag the library makes maps that do not change
        raise _malformed("is no CoRIM")
    return item


def _malformed(why: str) -> MalformedError:
    return MalformedError(f"the CoRIM {why}", code=CODE)
