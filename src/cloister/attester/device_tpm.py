"""Quotes of the machine's own TPM, hardware or provided by a cloud.

The attestation key is, in this order: one that the provider put in place together with its
certificate (Google: NV indices 0x01C10000 to 0x01C10003, certificate and template of an RSA and
of an ECC key), one that the caller names by its persistent handle, or one made anew, which
proves nothing until somebody certifies it (`cloister.attester.enrolment`).

What a TPM says about memory is nothing: it measures software and encrypts no memory, and a
provider's virtual TPM leaves the provider trusted.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cloister.attester.devices import absent, answer_error, check_digest, open_error, read_file
from cloister.attester.tpm import LoadedKey, Tpm, sha256_selection, signing_template
from cloister.attester.tpm_errors import ResponseCode, TpmError
from cloister.attester.transport import RESOURCE_MANAGER, DeviceTransport
from cloister.errors import FetchError, MalformedError, UnsupportedError
from cloister.evidence.component import QUOTED_REGISTERS
from cloister.evidence.items import ITEM_TPM_PCRS, MEDIA_TYPE_PCRS
from cloister.evidence.report import (
    ITEM_EVENT_LOG,
    ITEM_QUOTE,
    ITEM_SIGNATURE,
    MAX_ITEM_BYTES,
    MEDIA_TYPE_CERTIFICATE,
    MEDIA_TYPE_EVENT_LOG,
    MEDIA_TYPE_QUOTE,
    MEDIA_TYPE_SIGNATURE,
    Endorsement,
    EvidenceItem,
)
from cloister.evidence.subject_key import encode_subject_key, parse_subject_key
from cloister.evidence.tpm import (
    HASH_NAMES,
    Alg,
    parse_public,
    parse_quote,
    parse_signature,
    pcr_digest,
)

BOOT_LOG: Final = Path("/sys/kernel/security/tpm0/binary_bios_measurements")

GOOGLE_KEYS: Final = (
    (0x01C10002, 0x01C10003),  # ECC P-256
    (0x01C10000, 0x01C10001),  # RSA-2048
)
"""Certificate and template of the keys that Google Compute Engine provides, preferred first."""

MAX_QUOTE_ATTEMPTS: Final = 5
"""Registers are read beside the quote; one that is extended in between makes both disagree."""

_KEY_TYPES: Final = frozenset({Alg.RSA, Alg.ECC})
_NOT_THERE: Final = frozenset({ResponseCode.HANDLE, ResponseCode.VALUE})


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationKey:
    """A key that quotes, and the certificates (DER, its own first) that vouch for it, if any."""

    handle: int
    public: bytes
    """``TPMT_PUBLIC``."""
    chain: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotedRegisters:
    """A quote, its signature, and the SHA-256 register values that it covers."""

    attest: bytes
    signature: bytes
    """``TPMT_SIGNATURE``."""
    values: Mapping[int, bytes]

    def pcrs_json(self) -> bytes:
        """The values as ``{"sha256": {"0": "<hex>", …}}``."""
        bank = {str(pcr): value.hex() for pcr, value in sorted(self.values.items())}
        return json.dumps({"sha256": bank}, separators=(",", ":")).encode()


def open_tpm(device: Path = RESOURCE_MANAGER) -> Tpm:
    """Connect to the machine's TPM through the kernel's resource manager.

    Raises:
        UnsupportedError: there is none, or this user may not use it.
        FetchError: it does not open.
    """
    try:
        return Tpm(DeviceTransport(os.open(device, os.O_RDWR | os.O_CLOEXEC)))
    except OSError as error:
        raise open_error(device, error) from None


def read_boot_log(path: Path = BOOT_LOG) -> bytes:
    """The firmware's event log; empty where the kernel has none or does not show it."""
    try:
        return read_file(path, limit=MAX_ITEM_BYTES)
    except UnsupportedError:
        return b""


def find_attestation_key(
    tpm: Tpm,
    *,
    handle: int | None = None,
    certificate_index: int | None = None,
    provided: Sequence[tuple[int, int]] = GOOGLE_KEYS,
) -> AttestationKey:
    """Find or make the key to quote with, as the module says.

    `handle` names a persistent key, `certificate_index` the NV index of its certificate.

    Raises:
        TpmError: the TPM refuses.
        FetchError: a certificate is for another key (code ``device.answer``).
    """
    if handle is not None:
        key = tpm.read_public(handle)
        certificate = b"" if certificate_index is None else read_certificate(tpm, certificate_index)
        return _certified(key, certificate)
    for index, template_index in provided:
        certificate = read_certificate(tpm, index)
        if certificate:
            template = _template(tpm.nv_read(template_index))
            return _certified(tpm.create_primary(template), certificate)
    return _certified(tpm.create_primary(signing_template()), b"")


def read_certificate(tpm: Tpm, index: int) -> bytes:
    """The DER certificate at NV `index` without its padding; empty where there is none."""
    try:
        return der_prefix(tpm.nv_read(index))
    except TpmError as error:
        if error.response_code in _NOT_THERE:
            return b""
        raise


def der_prefix(data: bytes) -> bytes:
    """The ASN.1 SEQUENCE that `data` begins with; NV memory pads it with zeros or ones.

    Empty where `data` begins with none, as memory that nobody wrote yet does.
    """
    if len(data) < 2 or data[0] != 0x30:
        return b""
    count = data[1] & 0x7F if data[1] & 0x80 else 0
    length = int.from_bytes(data[2 : 2 + count], "big") if count else data[1]
    end = 2 + count + length
    return data[:end] if length > 0 and end <= len(data) and count <= 3 else b""


def quote_registers(
    tpm: Tpm, handle: int, statement_digest: bytes, registers: Sequence[int]
) -> QuotedRegisters:
    """Quote `registers` of the SHA-256 bank and read their values, which the quote must cover.

    Raises:
        TpmError: the TPM refuses.
        FetchError: registers change faster than they are read (code ``device.raced``), or the
            quote does not decode.
    """
    check_digest(statement_digest)
    for _ in range(MAX_QUOTE_ATTEMPTS):
        values = tpm.read_pcrs(registers)
        attest, signature = tpm.quote(handle, statement_digest, registers)
        if _covers(attest, signature, values):
            return QuotedRegisters(attest=attest, signature=signature, values=values)
    raise FetchError("registers of the TPM change while they are quoted", code="device.raced")


def _covers(attest: bytes, signature: bytes, values: Mapping[int, bytes]) -> bool:
    try:
        digest = pcr_digest(
            (sha256_selection(tuple(sorted(values))),),
            {(Alg.SHA256, pcr): value for pcr, value in values.items()},
            hash_algorithm=parse_signature(signature).hash_algorithm,
        )
        return parse_quote(attest).pcr_digest == digest
    except MalformedError as error:
        raise answer_error("the TPM", f"is no quote ({error})") from None


class DeviceTpmAttester:
    """Turns statement digests into quotes of the machine's TPM. One quote at a time."""

    def __init__(
        self,
        tpm: Tpm,
        key: AttestationKey,
        *,
        event_log: bytes = b"",
        registers: Sequence[int] = QUOTED_REGISTERS,
    ) -> None:
        self._tpm = tpm
        self._key = key
        self._event_log = event_log
        self._registers = tuple(registers)
        self._lock = threading.Lock()
        self._chained = threading.Event()
        if key.chain:
            self._chained.set()

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        """A quote with `statement_digest` (32 bytes) as qualifying data.

        Raises:
            TpmError, FetchError: see `quote_registers`.
        """
        with self._lock:
            quoted = quote_registers(self._tpm, self._key.handle, statement_digest, self._registers)
            chain = self._key.chain
        items = {
            ITEM_QUOTE: EvidenceItem(
                media_type=MEDIA_TYPE_QUOTE,
                data=quoted.attest,
                endorsements=certificates(chain),
            ),
            ITEM_SIGNATURE: EvidenceItem(media_type=MEDIA_TYPE_SIGNATURE, data=quoted.signature),
            ITEM_TPM_PCRS: EvidenceItem(media_type=MEDIA_TYPE_PCRS, data=quoted.pcrs_json()),
        }
        if self._event_log:
            items[ITEM_EVENT_LOG] = EvidenceItem(
                media_type=MEDIA_TYPE_EVENT_LOG, data=self._event_log
            )
        return items

    def replace_chain(self, chain: Sequence[bytes]) -> None:
        """Use these certificates (DER) of the same key from now on; the caller checked them."""
        with self._lock:
            self._key = replace(self._key, chain=tuple(chain))
        self._chained.set()

    @property
    def certified(self) -> bool:
        """Whether certificates vouch for the key."""
        return self._chained.is_set()

    def wait_for_chain(self, within_s: float) -> None:
        """Wait until certificates vouch for the key, as those whom it proves itself to ask.

        Raises:
            FetchError: none come in time (code ``device.timeout``).
        """
        if not self._chained.wait(within_s):
            raise FetchError(
                f"nobody certified this machine's attestation key within {within_s:g} seconds",
                code="device.timeout",
            )

    def close(self) -> None:
        """Let go of the TPM."""
        self._tpm.close()


def certificates(chain: Sequence[bytes]) -> tuple[Endorsement, ...]:
    """DER certificates as endorsements."""
    return tuple(Endorsement(media_type=MEDIA_TYPE_CERTIFICATE, data=der) for der in chain)


def _template(data: bytes) -> bytes:
    """A ``TPMT_PUBLIC``; Google's comes bare, others write it as ``TPM2B_PUBLIC``."""
    size, first, second = (int.from_bytes(data[at : at + 2], "big") for at in (0, 2, 4))
    if size in _KEY_TYPES and first in HASH_NAMES:  # no size: a type, then its name algorithm
        return data
    if first in _KEY_TYPES and second in HASH_NAMES and 2 + size <= len(data):
        return data[2 : 2 + size]
    raise absent("the provider's attestation key has no template that is known here")


def _certified(key: LoadedKey, certificate: bytes) -> AttestationKey:
    if not certificate:
        return AttestationKey(handle=key.handle, public=key.public)
    try:
        same = parse_subject_key(certificate) == encode_subject_key(parse_public(key.public).key)
    except MalformedError:
        same = False
    if not same:
        raise answer_error("the TPM", "is a certificate for another key than it has")
    return AttestationKey(handle=key.handle, public=key.public, chain=(certificate,))
