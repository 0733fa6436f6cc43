"""A small TPM 2.0 client: the commands that attestation needs, and no library.

Source: TCG "Trusted Platform Module Library", family 2.0, revision 01.59: Part 1 section 18
(command and session framing), Part 3 (commands). All integers are big-endian.
Authorisations are empty passwords: nothing here is kept from whoever holds the connection.
"""

from __future__ import annotations

import enum
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from cloister.attester.tpm_errors import RESUBMIT, TpmError
from cloister.attester.transport import Transport
from cloister.errors import MalformedError
from cloister.evidence.reader import ByteReader
from cloister.evidence.tpm import (
    HASH_NAMES,
    Alg,
    Curve,
    ObjectAttribute,
    PcrSelection,
    encode_selections,
    parse_tpm2b_public,
    sized,
)

RH_OWNER: Final = 0x40000001
RH_NULL: Final = 0x40000007
RS_PW: Final = 0x40000009
RH_ENDORSEMENT: Final = 0x4000000B

ST_NO_SESSIONS: Final = 0x8001
ST_SESSIONS: Final = 0x8002

NV_CHUNK: Final = 512
"""Bytes read at once from NV; every TPM's ``MAX_NV_BUFFER_SIZE`` is at least this."""

MAX_RESUBMISSIONS: Final = 200
"""With `RESUBMIT_PAUSE_S` between them: a TPM that is busy for a second is given up."""

RESUBMIT_PAUSE_S: Final = 0.005

PCRS_PER_READ: Final = 8
"""Digests in one ``TPML_DIGEST``."""

AK_ATTRIBUTES: Final = (
    ObjectAttribute.FIXED_TPM
    | ObjectAttribute.FIXED_PARENT
    | ObjectAttribute.SENSITIVE_DATA_ORIGIN
    | ObjectAttribute.USER_WITH_AUTH
    | ObjectAttribute.RESTRICTED
    | ObjectAttribute.SIGN
)


_BUFFER_ATTRIBUTES: Final = 1 << 2 | 1 << 18
"""TPMA_NV: AUTHWRITE, AUTHREAD."""
_NV_WRITTEN: Final = 1 << 29


class Command(enum.IntEnum):
    """``TPM_CC`` values (Part 2 section 6.5.2)."""

    NV_UNDEFINE_SPACE = 0x122
    NV_DEFINE_SPACE = 0x12A
    CREATE_PRIMARY = 0x131
    NV_WRITE = 0x137
    STARTUP = 0x144
    ACTIVATE_CREDENTIAL = 0x147
    NV_READ = 0x14E
    POLICY_SECRET = 0x151
    CREATE = 0x153
    LOAD = 0x157
    QUOTE = 0x158
    UNSEAL = 0x15E
    FLUSH_CONTEXT = 0x165
    NV_READ_PUBLIC = 0x169
    READ_PUBLIC = 0x173
    START_AUTH_SESSION = 0x176
    PCR_READ = 0x17E
    POLICY_PCR = 0x17F
    PCR_EXTEND = 0x182
    AWS_NSM_REQUEST = 0x20000001
    """A vendor's (``TPM_CC`` bit 29): AWS', of a NitroTPM (`cloister.attester.nitro_tpm`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedKey:
    """A key inside the TPM: its handle and its public area (``TPMT_PUBLIC``)."""

    handle: int
    public: bytes


def signing_template(attributes: int = AK_ATTRIBUTES) -> bytes:
    """``TPMT_PUBLIC`` template of an ECDSA P-256 key with SHA-256, by default an AK's.

    As a primary key of the endorsement hierarchy it comes out the same after every start of
    the same TPM, so there is nothing to store.
    """
    halves = (Alg.ECC, Alg.SHA256)
    return b"".join(
        (
            *(value.to_bytes(2, "big") for value in halves),
            attributes.to_bytes(4, "big"),
            sized(b""),
            # symmetric, scheme with its hash, curve, key derivation
            *(
                value.to_bytes(2, "big")
                for value in (Alg.NULL, Alg.ECDSA, Alg.SHA256, Curve.NIST_P256, Alg.NULL)
            ),
            sized(b""),
            sized(b""),
        )
    )


class Tpm:
    """One connection to one TPM. Not for use by several threads at once."""

    def __init__(
        self, transport: Transport, *, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._transport = transport
        self._pause = pause

    @property
    def transport(self) -> Transport:
        """The connection."""
        return self._transport

    def close(self) -> None:
        """End the connection."""
        self._transport.close()

    def startup(self) -> None:
        """``TPM2_Startup(CLEAR)``; a TPM that is started already is left as it is."""
        try:
            self._run(Command.STARTUP, parameters=bytes(2))
        except TpmError as error:
            if error.response_code != 0x100:  # TPM_RC_INITIALIZE: not needed
                raise

    def create_primary(self, template: bytes, *, hierarchy: int = RH_ENDORSEMENT) -> LoadedKey:
        """Make a primary key from `template` (``TPMT_PUBLIC``) and load it."""
        parameters = b"".join(
            (sized(sized(b"") + sized(b"")), sized(template), sized(b""), bytes(4))
        )
        handle, answer = self._run_for_handle(
            Command.CREATE_PRIMARY, (hierarchy,), parameters, sessions=_passwords(1)
        )
        return LoadedKey(handle=handle, public=answer.sized())

    def read_public(self, handle: int) -> LoadedKey:
        """The key behind a transient or persistent `handle`."""
        return LoadedKey(handle=handle, public=self._run(Command.READ_PUBLIC, (handle,)).sized())

    def flush(self, handle: int) -> None:
        """Remove a transient key or a session."""
        self._run(Command.FLUSH_CONTEXT, parameters=handle.to_bytes(4, "big"))

    def nv_read(self, index: int) -> bytes:
        """The whole content of an NV index that its owner may read, such as an EK certificate."""
        public = self._run(Command.NV_READ_PUBLIC, (index,)).sized()
        size = int.from_bytes(public[-2:], "big")  # dataSize ends TPMS_NV_PUBLIC
        return self._read(RH_OWNER, index, size)

    def _read(self, authorising: int, index: int, size: int) -> bytes:
        content = bytearray()
        while len(content) < size:
            length = min(NV_CHUNK, size - len(content))
            parameters = length.to_bytes(2, "big") + len(content).to_bytes(2, "big")
            piece = self._run(
                Command.NV_READ, (authorising, index), parameters, sessions=_passwords(1)
            ).sized()
            if not piece:
                raise TpmError("the TPM returned an empty piece of an NV index", code="tpm.io")
            content += piece
        return bytes(content)

    def nv_define(self, index: int, size: int) -> None:
        """Make an NV index of `size` bytes that its owner may read and write."""
        self._define(index, size, 1 << 1 | 1 << 17)  # TPMA_NV: OWNERWRITE, OWNERREAD

    def _define(self, index: int, size: int, attributes: int) -> None:
        public = b"".join(
            (
                index.to_bytes(4, "big"),
                Alg.SHA256.to_bytes(2, "big"),
                attributes.to_bytes(4, "big"),
                sized(b""),
                size.to_bytes(2, "big"),
            )
        )
        parameters = sized(b"") + sized(public)
        self._run(Command.NV_DEFINE_SPACE, (RH_OWNER,), parameters, sessions=_passwords(1))

    def nv_write(self, index: int, data: bytes) -> None:
        """Write `data`, at most `NV_CHUNK` bytes, to the start of an NV index of the owner's."""
        if len(data) > NV_CHUNK:
            raise ValueError(f"at most {NV_CHUNK} bytes are written at once")
        parameters = sized(data) + bytes(2)
        self._run(Command.NV_WRITE, (RH_OWNER, index), parameters, sessions=_passwords(1))

    def buffer_define(self, index: int, size: int) -> None:
        """Make an NV index of `size` bytes that whoever knows its (empty) password may use."""
        self._define(index, size, _BUFFER_ATTRIBUTES)

    def is_buffer(self, index: int, size: int) -> bool:
        """Whether the NV index is as `buffer_define` makes them, of `size` bytes."""
        public = self._run(Command.NV_READ_PUBLIC, (index,)).sized()
        attributes = int.from_bytes(public[6:10], "big")  # behind index and hash algorithm
        made = attributes & ~_NV_WRITTEN == _BUFFER_ATTRIBUTES
        return made and int.from_bytes(public[-2:], "big") == size

    def buffer_write(self, index: int, data: bytes) -> None:
        """Write `data` to the start of an index of `buffer_define`."""
        for offset in range(0, len(data), NV_CHUNK):
            parameters = sized(data[offset : offset + NV_CHUNK]) + offset.to_bytes(2, "big")
            self._run(Command.NV_WRITE, (index, index), parameters, sessions=_passwords(1))

    def buffer_read(self, index: int, size: int) -> bytes:
        """The whole content of an index of `buffer_define`, of `size` bytes."""
        return self._read(index, index, size)

    def nv_undefine(self, index: int) -> None:
        """Remove an NV index of the owner's."""
        self._run(Command.NV_UNDEFINE_SPACE, (RH_OWNER, index), sessions=_passwords(1))

    def nsm_request(self, index: int) -> None:
        """Have a NitroTPM answer the request in the buffer `index`, in its place.

        Handles: the index that authorises, and the index (both the same); no parameters. Source:
        github.com/aws/NitroTPM-Tools at c598a10, ``nitro-tpm-attest/src/raw/tpm/mod.rs``
        (``TPM2_VENDOR_AWS_NSM_REQUEST``).
        """
        self._run(Command.AWS_NSM_REQUEST, (index, index), sessions=_passwords(1))

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend the 32-byte `digest` into register `pcr` of the SHA-256 bank."""
        self.extend_banks(pcr, {Alg.SHA256: digest})

    def extend_banks(self, pcr: int, digests: Mapping[int, bytes]) -> None:
        """Extend register `pcr` in the banks of `digests` (by ``TPM_ALG_ID``) alone.

        A bank that the TPM knows and does not keep is passed over (Part 3 section 22.2).
        """
        listed = b""
        for bank, digest in digests.items():
            size = hashlib.new(HASH_NAMES[bank]).digest_size
            if len(digest) != size:
                raise ValueError(f"a {HASH_NAMES[bank]} register is extended by {size} bytes")
            listed += bank.to_bytes(2, "big") + digest
        parameters = len(digests).to_bytes(4, "big") + listed
        self._run(Command.PCR_EXTEND, (pcr,), parameters, sessions=_passwords(1))

    def read_pcrs(self, pcrs: Sequence[int], *, bank: int = Alg.SHA256) -> dict[int, bytes]:
        """The values of registers of one bank."""
        values: dict[int, bytes] = {}
        ascending = sorted(set(pcrs))
        for start in range(0, len(ascending), PCRS_PER_READ):
            wanted = tuple(ascending[start : start + PCRS_PER_READ])
            chosen = PcrSelection(hash_algorithm=bank, pcrs=wanted)
            selection = encode_selections((chosen,))
            answer = self._run(Command.PCR_READ, parameters=selection)
            answer.integer(4)  # how often any register changed
            if answer.take(len(selection)) != selection:
                raise TpmError(f"the TPM has no such register in its {HASH_NAMES[bank]} bank")
            count = answer.integer(4)
            values.update(zip(wanted, (answer.sized() for _ in range(count)), strict=True))
        return values

    def quote(self, key: int, qualifying_data: bytes, pcrs: Sequence[int]) -> tuple[bytes, bytes]:
        """Sign the registers `pcrs` and `qualifying_data`, at most 64 bytes.

        Returns ``TPMS_ATTEST`` and ``TPMT_SIGNATURE``.
        """
        parameters = b"".join(
            (
                sized(qualifying_data),
                Alg.NULL.to_bytes(2, "big"),  # the key's own scheme
                encode_selections((sha256_selection(tuple(sorted(set(pcrs)))),)),
            )
        )
        answer = self._run(Command.QUOTE, (key,), parameters, sessions=_passwords(1))
        attest = answer.sized()
        return attest, answer.take(answer.remaining)

    def create(self, parent: int, template: bytes, data: bytes) -> tuple[bytes, bytes]:
        """Make an object of `template` (``TPMT_PUBLIC``) below `parent`, holding `data`.

        Returns ``TPM2B_PRIVATE`` and ``TPM2B_PUBLIC`` without their lengths; only this TPM, with
        this parent, can load them.
        """
        parameters = b"".join(
            (sized(sized(b"") + sized(data)), sized(template), sized(b""), bytes(4))
        )
        answer = self._run(Command.CREATE, (parent,), parameters, sessions=_passwords(1))
        return answer.sized(), answer.sized()

    def load(self, parent: int, private: bytes, public: bytes) -> int:
        """Load what `create` made; the transient handle.

        Raises:
            TpmError: ``response_code`` INTEGRITY where another TPM or parent made it.
        """
        handle, _ = self._run_for_handle(
            Command.LOAD, (parent,), sized(private) + sized(public), sessions=_passwords(1)
        )
        return handle

    def unseal(self, handle: int, pcrs: Sequence[int]) -> bytes:
        """The data of a loaded object whose policy is the present value of these registers.

        Raises:
            TpmError: ``response_code`` POLICY_FAIL where they hold something else.
        """
        session = self._start_policy_session(Alg.SHA256)
        try:
            selection = encode_selections((sha256_selection(tuple(sorted(set(pcrs)))),))
            self._run(Command.POLICY_PCR, (session,), sized(b"") + selection)
            return self._run(Command.UNSEAL, (handle,), sessions=_authorisation(session)).sized()
        finally:
            self.flush(session)

    def activate_credential(
        self, key: int, endorsement_key: LoadedKey, credential: bytes, secret: bytes
    ) -> bytes:
        """Recover what was sealed to `key`'s name and to the TPM of `endorsement_key`.

        `credential` is a ``TPM2B_ID_OBJECT``, `secret` a ``TPM2B_ENCRYPTED_SECRET``.

        Raises:
            TpmError: ``response_code`` INTEGRITY where it was made for another key's name.
        """
        with self._endorsement_session(endorsement_key) as session:
            return self._run(
                Command.ACTIVATE_CREDENTIAL,
                (key, endorsement_key.handle),
                credential + secret,
                sessions=_passwords(1) + session,
            ).sized()

    @contextmanager
    def _endorsement_session(self, key: LoadedKey) -> Iterator[bytes]:
        # EKs of the "high range" (P-384) take a password; those of the low range have no user
        # authorisation and want a policy session in which the hierarchy's secret was shown
        # (TCG EK Credential Profile 2.5, sections B.3 and B.4).
        area = parse_tpm2b_public(sized(key.public))
        if ObjectAttribute.USER_WITH_AUTH in area.attributes:
            yield _passwords(1)
            return
        session = self._start_policy_session(area.name_algorithm)
        try:
            self._run(
                Command.POLICY_SECRET,
                (RH_ENDORSEMENT, session),
                sized(b"") * 3 + bytes(4),
                sessions=_passwords(1),
            )
            yield _authorisation(session)
        finally:
            self.flush(session)

    def _start_policy_session(self, hash_algorithm: int) -> int:
        parameters = b"".join(
            (
                sized(bytes(16)),  # no secret depends on this nonce: the session has no HMAC
                sized(b""),
                b"\x01",  # TPM_SE_POLICY
                Alg.NULL.to_bytes(2, "big"),
                hash_algorithm.to_bytes(2, "big"),
            )
        )
        handle, _ = self._run_for_handle(
            Command.START_AUTH_SESSION, (RH_NULL, RH_NULL), parameters, sessions=b""
        )
        return handle

    def _run(
        self,
        command: Command,
        handles: Sequence[int] = (),
        parameters: bytes = b"",
        *,
        sessions: bytes = b"",
    ) -> ByteReader:
        return self._parameters(self._exchange(command, handles, parameters, sessions), sessions)

    def _run_for_handle(
        self, command: Command, handles: Sequence[int], parameters: bytes, *, sessions: bytes
    ) -> tuple[int, ByteReader]:
        answer = self._exchange(command, handles, parameters, sessions)
        handle = answer.integer(4)
        return handle, self._parameters(answer, sessions)

    @staticmethod
    def _parameters(answer: ByteReader, sessions: bytes) -> ByteReader:
        # With sessions the parameters have a length, and the session's answers follow them.
        body = answer.sized(prefix=4) if sessions else answer.take(answer.remaining)
        return _reader(body)

    def _exchange(
        self, command: Command, handles: Sequence[int], parameters: bytes, sessions: bytes
    ) -> ByteReader:
        area = len(sessions).to_bytes(4, "big") + sessions if sessions else b""
        body = b"".join(handle.to_bytes(4, "big") for handle in handles) + area + parameters
        tag = ST_SESSIONS if sessions else ST_NO_SESSIONS
        packet = b"".join(
            (
                tag.to_bytes(2, "big"),
                (10 + len(body)).to_bytes(4, "big"),
                command.to_bytes(4, "big"),
                body,
            )
        )
        return self._answer(command, packet)

    def _answer(self, command: Command, packet: bytes) -> ByteReader:
        for _ in range(MAX_RESUBMISSIONS):
            response = self._transport.exchange(packet)
            answer = _reader(response)
            answer.integer(2)
            if answer.integer(4) != len(response):
                raise MalformedError("a TPM response has not the length it announces")
            response_code = answer.integer(4)
            if response_code == 0:
                return answer
            if response_code not in RESUBMIT:
                break
            self._pause(RESUBMIT_PAUSE_S)
        raise TpmError.from_response(f"TPM2_{command.name}", response_code)


def sha256_selection(pcrs: tuple[int, ...]) -> PcrSelection:
    """Select registers of the SHA-256 bank."""
    return PcrSelection(hash_algorithm=Alg.SHA256, pcrs=pcrs)


def _authorisation(session: int) -> bytes:
    # Handle, no nonce, continueSession for a policy session (it is flushed by name), no HMAC.
    attributes = b"\x00" if session == RS_PW else b"\x01"
    return session.to_bytes(4, "big") + sized(b"") + attributes + sized(b"")


def _passwords(count: int) -> bytes:
    return _authorisation(RS_PW) * count


def _reader(data: bytes) -> ByteReader:
    return ByteReader(data, what="a TPM response", code="tpm.response", byteorder="big")
