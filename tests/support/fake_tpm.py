"""A TPM of Python objects, for attesters that read NV indices and quote with a stored key."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from cloister.attester.tpm import LoadedKey, Tpm, sha256_selection
from cloister.attester.tpm_errors import TpmError
from cloister.evidence.tpm import Alg, ClockInfo, encode_quote, pcr_digest, sized

RC_HANDLE = 0x18B


class NoTransport:
    def exchange(self, command: bytes) -> bytes:
        raise AssertionError("no command reaches the transport")

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass


class FakeTpm(Tpm):
    """Keeps NV indices and registers in dictionaries and quotes with an RSA key."""

    def __init__(self) -> None:
        super().__init__(NoTransport())
        self.nv: dict[int, bytes] = {}
        self.registers = {pcr: hashlib.sha256(bytes([pcr])).digest() for pcr in range(24)}
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.handles: list[int] = []
        self.unsettled = 0
        """Quotes before which a register is extended behind the reader's back."""
        self.scheme = int(Alg.RSASSA)
        self.hash_algorithm = int(Alg.SHA256)
        self.created: list[bytes] = []

    @property
    def public(self) -> bytes:
        """``TPMT_PUBLIC`` of the key."""
        modulus = self.key.public_key().public_numbers().n.to_bytes(256, "big")
        return rsa_public(modulus)

    def nv_read(self, index: int) -> bytes:
        if index not in self.nv:
            raise TpmError.from_response("TPM2_NV_READ_PUBLIC", RC_HANDLE)
        return self.nv[index]

    def nv_define(self, index: int, size: int) -> None:
        assert index not in self.nv
        self.nv[index] = bytes(size)

    def nv_write(self, index: int, data: bytes) -> None:
        self.nv[index] = data + self.nv_read(index)[len(data) :]

    def read_public(self, handle: int) -> LoadedKey:
        return LoadedKey(handle=handle, public=self.public)

    def create_primary(self, template: bytes, *, hierarchy: int = 0) -> LoadedKey:
        self.created.append(template)
        return LoadedKey(handle=0x80000000, public=self.public)

    def read_pcrs(self, pcrs: Sequence[int], *, bank: int = Alg.SHA256) -> dict[int, bytes]:
        assert bank == Alg.SHA256
        return {pcr: self.registers[pcr] for pcr in pcrs}

    def quote(self, key: int, qualifying_data: bytes, pcrs: Sequence[int]) -> tuple[bytes, bytes]:
        self.handles.append(key)
        if self.unsettled:
            self.unsettled -= 1
            self.registers[10] = hashlib.sha256(self.registers[10]).digest()
        selection = sha256_selection(tuple(sorted(pcrs)))
        attest = encode_quote(
            qualified_signer=b"\x00\x0b" + bytes(32),
            extra_data=qualifying_data,
            clock_info=ClockInfo(clock=1, reset_count=1, restart_count=0, safe=True),
            firmware_version=1,
            selections=(selection,),
            pcr_digest=pcr_digest(
                (selection,),
                {(Alg.SHA256, pcr): self.registers[pcr] for pcr in pcrs},
                hash_algorithm=self.hash_algorithm,
            ),
        )
        signature = self.key.sign(attest, padding.PKCS1v15(), hashes.SHA256())
        head = self.scheme.to_bytes(2, "big") + self.hash_algorithm.to_bytes(2, "big")
        return attest, head + sized(signature)


def rsa_public(modulus: bytes) -> bytes:
    """``TPMT_PUBLIC`` of a restricted RSASSA key; an empty modulus makes it a template."""
    return b"".join(
        (
            bytes.fromhex("0001000b"),
            (0x00050072).to_bytes(4, "big"),
            sized(b""),
            # no symmetric algorithm, RSASSA with SHA-256, 2048 bits, the usual exponent
            bytes.fromhex("00100014000b080000000000"),
            sized(modulus),
        )
    )
