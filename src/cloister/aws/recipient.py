"""KMS from inside an enclave: every answer is encrypted to a key that the enclave attests.

For each request a fresh RSA key of 2048 bits is made (KMS takes no other kind for a recipient of
an envelope), its public half is put into an attestation document, and the answer has to open with
its private half, which is forgotten then. The parent, and whoever holds the same credentials,
gets nothing from a copy of the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.aws.cms import open_enveloped_data, parse_enveloped_data
from cloister.aws.kms import DATA_KEY_BYTES, Context, KmsAnswer, KmsClient, Recipient
from cloister.errors import AuthenticationError, MalformedError


class Attester(Protocol):
    """Whoever makes attestation documents over a public key: `cloister.attester.nsm.Nsm`."""

    def attestation(
        self,
        *,
        user_data: bytes | None = None,
        nonce: bytes | None = None,
        public_key: bytes | None = None,
    ) -> bytes:
        """A document over the three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataKey:
    """A key for one message, and the same encrypted by KMS."""

    key: bytes = field(repr=False)
    """32 bytes."""
    wrapped: bytes


def new_rsa_key() -> rsa.RSAPrivateKey:
    """A fresh recipient's key."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class AttestedKms:
    """The operations of KMS that take a recipient, for one KMS key."""

    def __init__(
        self,
        client: KmsClient,
        attester: Attester,
        *,
        key_arn: str,
        new_key: Callable[[], rsa.RSAPrivateKey] = new_rsa_key,
    ) -> None:
        """`key_arn` is the key's ARN: an alias could be pointed at another key."""
        if not key_arn.startswith("arn:") or ":key/" not in key_arn:
            raise ValueError("a KMS key is named by its ARN here")
        self._client = client
        self._attester = attester
        self._key_arn = key_arn
        self._new_key = new_key

    def decrypt(self, wrapped: bytes, context: Context) -> bytes:
        """The plaintext of `wrapped`; raises as `KmsClient.decrypt` and `open_enveloped_data`."""

        def ask(recipient: Recipient) -> KmsAnswer:
            return self._client.decrypt(
                wrapped, key_id=self._key_arn, context=context, recipient=recipient
            )

        return self._ask(ask)[1]

    def decrypt_data_key(self, wrapped: bytes, context: Context) -> bytes:
        """As `decrypt`, for what has to be a data key of 32 bytes."""
        return _data_key(self.decrypt(wrapped, context))

    def generate_data_key(self, context: Context) -> DataKey:
        """A fresh data key; raises as `decrypt`."""

        def ask(recipient: Recipient) -> KmsAnswer:
            return self._client.generate_data_key(
                key_id=self._key_arn, context=context, recipient=recipient
            )

        answer, key = self._ask(ask)
        if answer.ciphertext is None:
            raise MalformedError("KMS made a data key without its ciphertext", code="kms.answer")
        return DataKey(key=_data_key(key), wrapped=answer.ciphertext)

    def _ask(self, ask: Callable[[Recipient], KmsAnswer]) -> tuple[KmsAnswer, bytes]:
        key = self._new_key()
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        document = self._attester.attestation(public_key=spki)
        answer = ask(Recipient(attestation_document=document))
        if answer.key_id != self._key_arn:
            raise AuthenticationError("KMS used another key than it was told to", code="kms.key")
        if answer.for_recipient is None:
            raise RuntimeError("an attested answer has an envelope")
        return answer, open_enveloped_data(parse_enveloped_data(answer.for_recipient), key)


def _data_key(key: bytes) -> bytes:
    if len(key) != DATA_KEY_BYTES:
        raise AuthenticationError(
            f"what KMS decrypted is no data key of {DATA_KEY_BYTES} bytes", code="kms.data_key"
        )
    return key
