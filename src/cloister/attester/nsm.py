"""The Nitro secure module: attestation documents and registers of an AWS enclave.

Source: AWS ``aws-nitro-enclaves-nsm-api`` (requests and responses, CBOR by serde's rules: a
variant without fields is its name as text, one with fields a map from its name to them) and
``linux/nsm.h``: one ioctl on ``/dev/nsm`` with a structure of two (address, length) pairs, 32
bytes, native byte order; the driver writes the response's length back. A request has at most
4096 bytes, a response 12288.

Registers 0 to 15 are locked when the enclave starts; 16 to 31 are the application's own until
it locks them.
"""

from __future__ import annotations

import ctypes
import errno
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cbor2

from cloister.attester.devices import (
    Ioctl,
    answer_error,
    busy,
    check_digest,
    failed,
    iowr,
    opened,
    system_ioctl,
)
from cloister.errors import AuthenticationError, FetchError, MalformedError
from cloister.evidence.cbor import Cbor, parse_cbor
from cloister.evidence.items import ITEM_NITRO_DOCUMENT, MEDIA_TYPE_NITRO_DOCUMENT
from cloister.evidence.report import EvidenceItem

NSM: Final = Path("/dev/nsm")

_MESSAGE: Final = struct.Struct("=QQQQ")
NSM_IOCTL: Final = iowr(0x0A, 0, _MESSAGE.size)

MAX_REQUEST_BYTES: Final = 0x1000
MAX_RESPONSE_BYTES: Final = 0x3000
MAX_USER_DATA_BYTES: Final = 512
MAX_PUBLIC_KEY_BYTES: Final = 1024
REGISTERS: Final = 32
MAX_ATTEMPTS: Final = 5
MANIFEST_REGISTER: Final = 16
"""The first that is the application's own."""

ATTESTATION: Final = "Attestation"
_WHAT: Final = "the Nitro secure module"


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """One register (PCR) and whether it can still change."""

    value: bytes
    locked: bool


class Nsm:
    """The module's device, opened for each request.

    Every method raises UnsupportedError where it is absent or not for this user, and
    FetchError where it fails or refuses (code ``device.refused``).
    """

    def __init__(
        self,
        *,
        ioctl: Ioctl = system_ioctl,
        device: Path = NSM,
    ) -> None:
        self._ioctl = ioctl
        self._device = device
        self._lock = threading.Lock()

    def attestation(
        self,
        *,
        user_data: bytes | None = None,
        nonce: bytes | None = None,
        public_key: bytes | None = None,
    ) -> bytes:
        """A signed attestation document over the three, each of them optional."""
        fields = attestation_fields(user_data=user_data, nonce=nonce, public_key=public_key)
        return read_document(self._ask(ATTESTATION, fields), what=_WHAT)

    def describe_pcr(self, index: int) -> Register:
        """Read register `index`."""
        answer = self._ask("DescribePCR", {"index": _index(index)})
        locked = answer.get("lock")
        if not isinstance(locked, bool):
            raise answer_error(_WHAT, "does not say whether the register is locked")
        return Register(value=_bytes(answer, "data"), locked=locked)

    def extend_pcr(self, index: int, data: bytes) -> bytes:
        """Extend register `index` by `data` and return its new value."""
        return _bytes(self._ask("ExtendPCR", {"index": _index(index), "data": data}), "data")

    def lock_pcr(self, index: int) -> None:
        """Lock register `index` for good."""
        self._ask("LockPCR", {"index": _index(index)})

    def random(self) -> bytes:
        """Random bytes of the module, up to 256."""
        return _bytes(self._ask("GetRandom", None), "random")

    def describe(self) -> dict[str, Any]:
        """Version, module id, number of registers and which of them are locked."""
        return self._ask("DescribeNSM", None)

    def _ask(self, name: str, fields: dict[str, Any] | None) -> dict[str, Any]:
        request = cbor2.dumps(name if fields is None else {name: fields})
        if len(request) > MAX_REQUEST_BYTES:
            raise ValueError(f"a request has at most {MAX_REQUEST_BYTES} bytes")
        with self._lock, opened(self._device) as descriptor:
            response = self._exchange(descriptor, request)
        return _decode(name, response)

    def _exchange(self, descriptor: int, request: bytes) -> bytes:
        sent = ctypes.create_string_buffer(request, len(request))
        received = ctypes.create_string_buffer(MAX_RESPONSE_BYTES)
        for _ in range(MAX_ATTEMPTS):
            message = bytearray(
                _MESSAGE.pack(
                    ctypes.addressof(sent),
                    len(request),
                    ctypes.addressof(received),
                    MAX_RESPONSE_BYTES,
                )
            )
            try:
                self._ioctl(descriptor, NSM_IOCTL, message)
            except OSError as error:
                if error.errno in {errno.EINTR, errno.EAGAIN, errno.EBUSY}:
                    continue
                raise failed(_WHAT, error) from None
            size = _MESSAGE.unpack(message)[3]
            if size > MAX_RESPONSE_BYTES:
                raise answer_error(_WHAT, f"is longer than {MAX_RESPONSE_BYTES} bytes")
            return received.raw[:size]
        raise busy(_WHAT)


def fix_manifest(nsm: Nsm, digest: bytes | None) -> None:
    """Extend `MANIFEST_REGISTER` with a manifest's digest (None: with nothing), and lock it.

    The digest itself, not its hash, as `cloister.verifier.appraise.worker` computes it. Once it is
    locked the register is in every document, and nobody can change it.

    Raises:
        AuthenticationError: somebody wrote to it before (code ``attester.manifest``).
        UnsupportedError, FetchError: as `Nsm`.
    """
    before = nsm.describe_pcr(MANIFEST_REGISTER)
    if before.locked or any(before.value):
        raise AuthenticationError(
            "the register for the manifest is not as an enclave begins with it",
            code="attester.manifest",
        )
    if digest is not None:
        nsm.extend_pcr(MANIFEST_REGISTER, digest)
    nsm.lock_pcr(MANIFEST_REGISTER)


class NitroAttester:
    """Turns statement digests into attestation documents."""

    def __init__(self, nsm: Nsm | None = None, *, public_key: bytes | None = None) -> None:
        """`public_key` (DER) is one to which AWS KMS shall encrypt."""
        self._nsm = Nsm() if nsm is None else nsm
        self._public_key = public_key

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        """A document with `statement_digest` (32 bytes) as user data; raises as `Nsm`."""
        check_digest(statement_digest)
        document = self._nsm.attestation(user_data=statement_digest, public_key=self._public_key)
        return {
            ITEM_NITRO_DOCUMENT: EvidenceItem(media_type=MEDIA_TYPE_NITRO_DOCUMENT, data=document)
        }


def attestation_fields(
    *, user_data: bytes | None, nonce: bytes | None, public_key: bytes | None
) -> dict[str, bytes | None]:
    """The members of a request for a document; a NitroTPM takes the same."""
    for name, value, limit in (
        ("user_data", user_data, MAX_USER_DATA_BYTES),
        ("nonce", nonce, MAX_USER_DATA_BYTES),
        ("public_key", public_key, MAX_PUBLIC_KEY_BYTES),
    ):
        if value is not None and len(value) > limit:
            raise ValueError(f"{name} has at most {limit} bytes")
    return {"user_data": user_data, "nonce": nonce, "public_key": public_key}


def read_document(fields: Mapping[str, Any], *, what: str) -> bytes:
    """The document in the members of an answer; FetchError (``device.answer``) if it has none."""
    return _bytes(fields, "document", what)


def read_answer(name: str, decoded: Cbor, *, what: str) -> dict[str, Any]:
    """The members of the answer to the request `name`, by serde's rules.

    Raises:
        FetchError: an error (code ``device.refused``), or no answer to it (``device.answer``).
    """
    if decoded == name:  # a variant without fields
        return {}
    if not isinstance(decoded, dict) or len(decoded) != 1:
        raise answer_error(what, "is none of its responses")
    if "Error" in decoded:
        raise FetchError(f"{what} refused: {_error_name(decoded['Error'])}", code="device.refused")
    fields = decoded.get(name)
    if not isinstance(fields, dict):
        raise answer_error(what, f"does not answer {name}")
    return {str(key): value for key, value in fields.items()}


def _decode(name: str, response: bytes) -> dict[str, Any]:
    try:
        decoded = parse_cbor(response, limit=MAX_RESPONSE_BYTES, depth=4, what="it")
    except MalformedError:
        raise answer_error(_WHAT, "is not CBOR") from None
    return read_answer(name, decoded, what=_WHAT)


def _error_name(value: object) -> str:
    return value if isinstance(value, str) and value.isalnum() and len(value) < 64 else "unknown"


def _bytes(fields: Mapping[str, Any], name: str, what: str = _WHAT) -> bytes:
    value = fields.get(name)
    # Older modules wrote byte strings as arrays of integers, serde's plain form of a vector.
    if isinstance(value, list) and all(isinstance(x, int) and 0 <= x < 256 for x in value):
        value = bytes(value)
    if not isinstance(value, bytes) or not value:
        raise answer_error(what, f"lacks its {name}")
    return value


def _index(index: int) -> int:
    if not 0 <= index < REGISTERS:
        raise ValueError(f"registers are numbered from 0 to {REGISTERS - 1}")
    return index
