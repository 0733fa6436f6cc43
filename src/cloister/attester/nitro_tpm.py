"""An AWS instance's NitroTPM: attestation documents that AWS' hypervisor signs.

Sources: AWS, "EC2 User Guide", "Get the NitroTPM Attestation Document"; for what is sent,
github.com/aws/NitroTPM-Tools at c598a10 (``nitro-tpm-attest``, Apache-2.0): the request that an
enclave makes of its security module, in the same CBOR, is written to the start of an NV index of
8192 bytes with the attributes AUTHREAD and AUTHWRITE; the vendor command 0x20000001, authorised by
that index, puts the answer in its place; what is behind the answer in the index means nothing.

AWS' program goes through ``/dev/tpm0`` and not through the kernel's resource manager, and so does
this: whether a NitroTPM lists the command, without which the resource manager refuses it, is not
documented. It gives its index a password and encrypts the session, against other processes of the
machine; here the password is empty: whoever else may use this machine's TPM could have asked for a
document over other data as well, and one that is not over ours is refused.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import cbor2

from cloister.attester.devices import absent, answer_error, check_digest
from cloister.attester.nsm import ATTESTATION, attestation_fields, read_answer, read_document
from cloister.attester.tpm import Tpm
from cloister.attester.tpm_errors import ResponseCode, TpmError
from cloister.errors import FetchError, MalformedError
from cloister.evidence.cbor import parse_cbor_first
from cloister.evidence.items import ITEM_NITRO_TPM_DOCUMENT, MEDIA_TYPE_NITRO_DOCUMENT
from cloister.evidence.nitro import DocumentKind, parse_document
from cloister.evidence.report import (
    ITEM_EVENT_LOG,
    MEDIA_TYPE_EVENT_LOG,
    EvidenceItem,
)

DEVICE: Final = Path("/dev/tpm0")
"""Which one process may have open at a time."""

BUFFER_BYTES: Final = 8192
"""As AWS' program has it: a document has 5 KiB, and what was asked for comes on top."""

BUFFERS: Final = range(0x01800000, 0x01800010)
"""NV indices to try: of those that are the owner's (TCG "Registry of Reserved TPM 2.0 Handles and
Localities", section 2.2.2), the first that is free."""

_WHAT: Final = "the NitroTPM"


def request_document(
    tpm: Tpm,
    *,
    user_data: bytes | None = None,
    nonce: bytes | None = None,
    public_key: bytes | None = None,
) -> bytes:
    """A signed attestation document over the three, each of them optional.

    Raises:
        UnsupportedError: the TPM is no NitroTPM, or an older one (code ``device.absent``).
        FetchError: it answers with an error or with no document (codes ``device.refused``,
            ``device.answer``).
        TpmError: it refuses a command, or is gone.
    """
    fields = attestation_fields(user_data=user_data, nonce=nonce, public_key=public_key)
    index = _define(tpm)
    try:
        tpm.buffer_write(index, cbor2.dumps({ATTESTATION: fields}))
        _run(tpm, index)
        answer = tpm.buffer_read(index, BUFFER_BYTES)
    except BaseException:
        with contextlib.suppress(TpmError):  # what came first says more
            tpm.nv_undefine(index)
        raise
    tpm.nv_undefine(index)
    try:
        decoded, _ = parse_cbor_first(answer, limit=BUFFER_BYTES, depth=4, what="it")
    except MalformedError:
        raise answer_error(_WHAT, "is not CBOR") from None
    return read_document(read_answer(ATTESTATION, decoded, what=_WHAT), what=_WHAT)


def _define(tpm: Tpm) -> int:
    for index in BUFFERS:
        try:
            tpm.buffer_define(index, BUFFER_BYTES)
        except TpmError as error:
            if error.response_code == ResponseCode.SIZE:
                raise absent(f"a NitroTPM, with room for {BUFFER_BYTES} bytes") from None
            if error.response_code == ResponseCode.NV_SPACE:
                raise _full(f"has no room left for {BUFFER_BYTES} bytes") from None
            if error.response_code != ResponseCode.NV_DEFINED:
                raise
            if not tpm.is_buffer(index, BUFFER_BYTES):
                continue
            # Of a process that was killed: nobody else has the device open while we do.
            tpm.nv_undefine(index)
            tpm.buffer_define(index, BUFFER_BYTES)
        return index
    raise _full(f"has no free NV index from 0x{BUFFERS.start:08x} to 0x{BUFFERS.stop - 1:08x}")


def _full(why: str) -> FetchError:
    return FetchError(
        f"the TPM {why}: remove the indices that nobody uses (tpm2_nvundefine)", code="device.busy"
    )


def _run(tpm: Tpm, index: int) -> None:
    try:
        tpm.nsm_request(index)
    except TpmError as error:
        if error.response_code != ResponseCode.COMMAND_CODE:
            raise
        raise absent("a NitroTPM that gives attestation documents") from None


class NitroTpmAttester:
    """Turns statement digests into documents of the machine's NitroTPM. One at a time."""

    def __init__(
        self, tpm: Tpm, *, event_log: bytes = b"", public_key: bytes | None = None
    ) -> None:
        """`public_key` (DER) is one to which AWS KMS shall encrypt."""
        self._tpm = tpm
        self._event_log = event_log
        self._public_key = public_key
        self._lock = threading.Lock()

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        """A document with `statement_digest` (32 bytes) as user data, and the boot's log.

        Raises:
            UnsupportedError, FetchError, TpmError: as `request_document`; FetchError also where
                the document is over something else (code ``device.answer``).
        """
        check_digest(statement_digest)
        with self._lock:
            document = request_document(
                self._tpm, user_data=statement_digest, public_key=self._public_key
            )
        _require_ours(document, statement_digest)
        found = EvidenceItem(media_type=MEDIA_TYPE_NITRO_DOCUMENT, data=document)
        items = {ITEM_NITRO_TPM_DOCUMENT: found}
        if self._event_log:
            items[ITEM_EVENT_LOG] = EvidenceItem(
                media_type=MEDIA_TYPE_EVENT_LOG, data=self._event_log
            )
        return items

    def close(self) -> None:
        """Let go of the TPM."""
        self._tpm.close()


def _require_ours(document: bytes, digest: bytes) -> None:
    """Another process may have written another request into the index."""
    try:
        found = parse_document(document)
    except MalformedError as error:
        raise answer_error(_WHAT, f"is no attestation document ({error})") from None
    if found.kind is not DocumentKind.NITRO_TPM or found.user_data != digest:
        raise answer_error(_WHAT, "is a document over something else than it was asked for")
