"""Register values that come beside a quote: files of tpm2-tools, JSON, to one mapping.

Nothing here is authenticated: values count only where the digest that a TPM signed is theirs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final, TypeAlias

from cloister.errors import MalformedError
from cloister.evidence.eventlog import PCR_COUNT
from cloister.evidence.reader import ByteReader
from cloister.evidence.tpm import HASH_NAMES
from cloister.strictjson import expect_hex, expect_object, parse_json_object

PcrValues: TypeAlias = Mapping[int, Mapping[int, bytes]]
"""For each bank (``TPM_ALG_ID``), register values by number."""

MAX_PCRS_BYTES: Final = 64 * 1024
"""Four banks of 24 registers take less than 7 KiB in either form."""

SELECTION_SLOTS: Final = 16
"""``TPML_PCR_SELECTION`` of tpm2-tss holds as many selections, used or not."""

DIGEST_SLOTS: Final = 8
"""``TPML_DIGEST`` of tpm2-tss holds as many digests, used or not."""

MAX_DIGEST_LISTS: Final = 16 * PCR_COUNT // DIGEST_SLOTS

BANKS: Final[Mapping[str, int]] = {name: algorithm for algorithm, name in HASH_NAMES.items()}
"""Banks whose values can be read, by name."""

_CODE: Final = "pcrs_malformed"


def parse_pcrs_file(data: bytes) -> PcrValues:
    """Decode what ``tpm2_quote --pcr`` writes by default (tpm2-tools 4 and 5, ``lib/pcr.c``).

    A dump of C structures in host order, here little-endian: a ``TPML_PCR_SELECTION`` of 132 bytes
    (4 count, 16 times: 2 hash, 1 size, 4 bitmap, 1 padding), 4 bytes count of lists, then
    ``TPML_DIGEST`` of 532 bytes each (4 count, 8 times: 2 size, 64 digest). Values follow each
    other in the order of selection, registers ascending; slots that are not used are zero.

    Raises MalformedError (code ``pcrs_malformed``), and nothing else.
    """
    if len(data) > MAX_PCRS_BYTES:
        raise _malformed(f"have {len(data)} bytes; at most {MAX_PCRS_BYTES} are accepted")
    reader = ByteReader(data, what="the register values", code=_CODE, byteorder="little")
    selected = _selections(reader)
    digests = _digests(reader)
    reader.finish()
    if len(digests) != len(selected):
        raise _malformed(f"are {len(digests)} of {len(selected)} selected registers")
    values: dict[int, dict[int, bytes]] = {}
    for (bank, pcr), digest in zip(selected, digests, strict=True):
        values.setdefault(bank, {})[pcr] = digest
    return checked_values(values)


def parse_pcrs_json(data: bytes) -> PcrValues:
    """Decode ``{"sha256": {"0": "<lower-case hex>", …}, …}``; in JSON the order means nothing.

    Raises MalformedError (code ``pcrs_malformed``), and nothing else.
    """
    try:
        members = parse_json_object(data, limit=MAX_PCRS_BYTES, what="the register values")
        values = {
            BANKS[name]: {
                _number(pcr): expect_hex(value, "a register", limit=128)
                for pcr, value in expect_object(bank, "a bank").items()
            }
            for name, bank in members.items()
        }
    except KeyError:
        raise _malformed("name a bank that is not known") from None
    except MalformedError as error:
        raise MalformedError(str(error), code=_CODE) from None
    return checked_values(values)


def checked_values(values: PcrValues) -> PcrValues:
    """Return `values` if they are of known banks, of registers that exist, and of the right size.

    Raises MalformedError (code ``pcrs_malformed``), and nothing else.
    """
    for bank, registers in values.items():
        name = HASH_NAMES.get(bank)
        if name is None:
            raise _malformed(f"are of bank 0x{bank:04x}, which is not known")
        size = hashlib.new(name).digest_size
        for pcr, value in registers.items():
            if not 0 <= pcr < PCR_COUNT or len(value) != size:
                raise _malformed(f"have a register {pcr} of {len(value)} bytes in bank {name}")
    return values


def _selections(reader: ByteReader) -> list[tuple[int, int]]:
    """Bank and number of every register that is selected, in order."""
    count = reader.integer(4)
    if count > SELECTION_SLOTS:
        raise reader.fail(f"select {count} banks")
    selected: list[tuple[int, int]] = []
    for slot in range(SELECTION_SLOTS):
        bank, size, bitmap = reader.integer(2), reader.integer(1), reader.integer(4)
        padding = reader.integer(1)
        if slot >= count and (bank or size or bitmap or padding):
            raise reader.fail("hold something in a slot that is not used")
        if slot < count and not size:
            raise reader.fail("select a bank without saying how many registers it has")
        if slot < count and (size > 4 or bitmap >> 8 * size or padding):
            raise reader.fail("select registers beyond their bitmap")
        selected += [(bank, pcr) for pcr in range(32) if bitmap >> pcr & 1]
    if len(set(selected)) != len(selected):
        raise reader.fail("select a register twice")
    return selected


def _digests(reader: ByteReader) -> list[bytes]:
    lists = reader.integer(4)
    if lists > MAX_DIGEST_LISTS:
        raise reader.fail(f"come in {lists} lists")
    digests: list[bytes] = []
    for _ in range(lists):
        count = reader.integer(4)
        if count > DIGEST_SLOTS:
            raise reader.fail(f"come {count} in one list")
        for slot in range(DIGEST_SLOTS):
            size, digest = reader.integer(2), reader.take(64)
            if any(digest[size:]) or (slot >= count and size):
                raise reader.fail("hold something in a slot that is not used")
            if slot < count:
                digests.append(digest[:size])
    return digests


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 2 and str(int(text)) == text):
        raise _malformed("have a register without a number")
    return int(text)


def _malformed(why: str) -> MalformedError:
    return MalformedError(f"the register values {why}", code=_CODE)
