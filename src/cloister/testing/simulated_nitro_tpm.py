"""A simulated NitroTPM: the vendor command in front of any TPM, or of none.

Commands about the buffer of a request are answered here, others by the TPM below: a software TPM's
NV indices have at most 2048 bytes, and a buffer has 8192. Who makes documents is the caller's::

    nitro = SimulatedNitro(now=now)

    def attest(**asked):
        return nitro.document(kind=DocumentKind.NITRO_TPM, pcrs=registers, **asked)

    document = request_document(Tpm(SimulatedNitroTpm(attest)), user_data=digest)

Source of what a NitroTPM is sent: `cloister.attester.nitro_tpm`. What it does with a request that
it does not like is not documented, beyond the error names of an enclave's security module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import cbor2

from cloister.attester.nitro_tpm import BUFFERS
from cloister.attester.tpm import RH_OWNER, RS_PW, ST_SESSIONS, Command
from cloister.attester.tpm_errors import ResponseCode
from cloister.attester.transport import Transport
from cloister.errors import MalformedError
from cloister.evidence.cbor import parse_cbor_first
from cloister.evidence.reader import ByteReader
from cloister.evidence.tpm import sized

AUTHWRITE: Final = 1 << 2
AUTHREAD: Final = 1 << 18
NV_RANGE: Final = 0x146
_NO_HMAC: Final = RS_PW.to_bytes(4, "big") + sized(b"") + b"\0" + sized(b"")
_ACKNOWLEDGED: Final = sized(b"") + b"\0" + sized(b"")
_HANDLES: Final = {
    Command.NV_DEFINE_SPACE: 1,
    Command.NV_UNDEFINE_SPACE: 2,
    Command.NV_WRITE: 2,
    Command.NV_READ: 2,
    Command.AWS_NSM_REQUEST: 2,
}


@dataclass(slots=True)
class _Buffer:
    attributes: int
    data: bytearray = field(repr=False)


class _Refused(Exception):  # noqa: N818 - it carries a TPM's answer, and is none of ours
    def __init__(self, code: int) -> None:
        self.code = code


class SimulatedNitroTpm:
    """A transport (`cloister.attester.transport.Transport`) that answers AWS' vendor command."""

    def __init__(
        self,
        attest: Callable[..., bytes],
        *,
        below: Transport | None = None,
    ) -> None:
        """`attest` makes a document over ``user_data``, ``nonce`` and ``public_key``."""
        self._attest_over = attest
        self._below = below
        self.buffers: dict[int, _Buffer] = {}
        self.requests: list[Any] = []
        """What was asked for, decoded."""
        self.answer: bytes | None = None
        """Put into the buffer instead of the right answer."""

    def exchange(self, command: bytes) -> bytes:
        """See `Transport.exchange`."""
        reader = ByteReader(command, what="a command", code="tpm.response", byteorder="big")
        tag, size, code = reader.integer(2), reader.integer(4), reader.integer(4)
        if size != len(command):
            return _response(0x142)  # TPM_RC_COMMAND_SIZE
        if code == Command.NV_READ_PUBLIC and (index := reader.integer(4)) in BUFFERS:
            return self._public(index)
        known = code in _HANDLES and tag == ST_SESSIONS
        handles = [reader.integer(4) for _ in range(_HANDLES[Command(code)])] if known else []
        if not known or not self._is_ours(code, handles, command):
            return self._pass_on(command)
        try:
            if reader.sized(prefix=4) != _NO_HMAC:
                raise _Refused(0x9A2)  # TPM_RC_BAD_AUTH, session 1
            return _response(0, self._run(Command(code), handles, reader))
        except _Refused as refused:
            return _response(refused.code)

    def fileno(self) -> int:
        """See `Transport.fileno`."""
        return -1 if self._below is None else self._below.fileno()

    def close(self) -> None:
        """See `Transport.close`."""
        if self._below is not None:
            self._below.close()

    def _is_ours(self, code: int, handles: list[int], command: bytes) -> bool:
        if code == Command.NV_DEFINE_SPACE:
            index = command[-14:-10]  # of TPMS_NV_PUBLIC without a policy, which ends a definition
            return int.from_bytes(index, "big") in BUFFERS
        return handles[-1] in BUFFERS

    def _pass_on(self, command: bytes) -> bytes:
        return _response(0x143) if self._below is None else self._below.exchange(command)

    def _run(self, code: Command, handles: list[int], reader: ByteReader) -> bytes:
        match code:
            case Command.NV_DEFINE_SPACE:
                return self._define(handles[0], reader)
            case Command.NV_UNDEFINE_SPACE:
                self._buffer(handles[1])
                if handles[0] != RH_OWNER:
                    raise _Refused(0x189)  # TPM_RC_HIERARCHY, handle 1
                del self.buffers[handles[1]]
            case Command.NV_WRITE:
                data, offset = reader.sized(), reader.integer(2)
                buffer = self._authorised(handles, AUTHWRITE)
                if offset + len(data) > len(buffer.data):
                    raise _Refused(NV_RANGE)
                buffer.data[offset : offset + len(data)] = data
            case Command.NV_READ:
                length, offset = reader.integer(2), reader.integer(2)
                buffer = self._authorised(handles, AUTHREAD)
                if offset + length > len(buffer.data):
                    raise _Refused(NV_RANGE)
                return sized(bytes(buffer.data[offset : offset + length]))
            case _:
                self._attest(self._authorised(handles, AUTHREAD | AUTHWRITE))
        return b""

    def _define(self, hierarchy: int, reader: ByteReader) -> bytes:
        reader.sized()  # the index's password
        public = ByteReader(
            reader.sized(), what="an NV index", code="tpm.response", byteorder="big"
        )
        index, _, attributes = public.integer(4), public.integer(2), public.integer(4)
        public.sized()
        size = public.integer(2)
        if hierarchy != RH_OWNER:
            raise _Refused(0x189)
        if index in self.buffers:
            raise _Refused(ResponseCode.NV_DEFINED)
        self.buffers[index] = _Buffer(attributes, bytearray(b"\xff" * size))
        return b""

    def _public(self, index: int) -> bytes:
        if index not in self.buffers:
            return _response(0x18B)  # TPM_RC_HANDLE, handle 1
        buffer = self.buffers[index]
        public = index.to_bytes(4, "big") + bytes(2) + buffer.attributes.to_bytes(4, "big")
        public += sized(b"") + len(buffer.data).to_bytes(2, "big")
        body = sized(public) + sized(b"")  # the index's name is not looked at
        head = 0x8001.to_bytes(2, "big") + (10 + len(body)).to_bytes(4, "big") + bytes(4)
        return head + body

    def _buffer(self, index: int) -> _Buffer:
        if index not in self.buffers:
            raise _Refused(0x28B)  # TPM_RC_HANDLE, handle 2
        return self.buffers[index]

    def _authorised(self, handles: list[int], needed: int) -> _Buffer:
        buffer = self._buffer(handles[1])
        if handles[0] != handles[1] or buffer.attributes & needed != needed:
            raise _Refused(0x149)  # TPM_RC_NV_AUTHORIZATION
        return buffer

    def _attest(self, buffer: _Buffer) -> None:
        answer = cbor2.dumps(self._answer(bytes(buffer.data)))
        if self.answer is not None:
            answer = self.answer
        if len(answer) > len(buffer.data):
            answer = cbor2.dumps({"Error": "BufferTooSmall"})
        buffer.data[: len(answer)] = answer

    def _answer(self, request: bytes) -> dict[str, Any]:
        try:
            asked, _ = parse_cbor_first(request, limit=len(request), depth=4, what="a request")
        except MalformedError:
            return {"Error": "InvalidArgument"}
        self.requests.append(asked)
        fields = asked.get("Attestation") if isinstance(asked, dict) else None
        if not isinstance(fields, dict) or fields.keys() != {"user_data", "nonce", "public_key"}:
            return {"Error": "InvalidArgument"}
        asked_for = {str(name): value for name, value in fields.items()}
        return {"Attestation": {"document": self._attest_over(**asked_for)}}


def _response(code: int, parameters: bytes = b"") -> bytes:
    body = b"" if code else len(parameters).to_bytes(4, "big") + parameters + _ACKNOWLEDGED
    tag = 0x8001 if code else ST_SESSIONS
    head = tag.to_bytes(2, "big") + (10 + len(body)).to_bytes(4, "big")
    return head + code.to_bytes(4, "big") + body
