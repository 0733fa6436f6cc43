"""A root key in AWS KMS: it makes a data key for each wrapping, and only it can open that again.

``aws-kms:ARN?credentials-file=FILE``; with ``attested=nitro`` every request has an attestation
document of this enclave with it, and the key may be under a policy of `cloister.aws.key_policy`
(use ``secret``). Without it, the role alone is enough, for KMS and for whoever has its
credentials.

What is wrapped is sealed here, by AES-256-GCM under the data key; KMS binds the SHA-256 of the
context to the data key.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Final, Protocol

import httpx2
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.aws.credentials import parse_credentials
from cloister.aws.kms import Context, KmsClient
from cloister.aws.messages import CallersKms
from cloister.aws.recipient import AttestedKms, Attester, DataKey
from cloister.broker.root_keys.local import Random, not_ours
from cloister.broker.root_keys.names import read_private, required, split_place
from cloister.errors import (
    AuthenticationError,
    ConfigurationError,
    FetchError,
    KeyReleaseDenied,
    MalformedError,
)

KIND: Final = "aws-kms"
_OPTIONS: Final = frozenset({"credentials-file", "attested"})
_ARN: Final = re.compile(r"arn:aws(?:-[a-z]+)*:kms:([a-z0-9-]{1,32}):[0-9]{12}:key/[0-9a-f-]{1,64}")
_NONCE_SIZE: Final = 12
_LENGTH_SIZE: Final = 2
_MAX_CREDENTIALS: Final = 16 * 1024


class DataKeys(Protocol):
    """One key of KMS, attested or not."""

    def generate_data_key(self, context: Context) -> DataKey:
        """A fresh data key."""

    def decrypt_data_key(self, wrapped: bytes, context: Context) -> bytes:
        """The same again."""


class KmsRootKey:
    """Wraps as ``u16 length ‖ wrapped data key ‖ nonce ‖ ciphertext ‖ tag``."""

    def __init__(self, keys: DataKeys, *, arn: str, random: Random = os.urandom) -> None:
        self._keys = keys
        self._arn = arn
        self._random = random

    def __repr__(self) -> str:
        return f"<root key: {self.name}>"

    @property
    def name(self) -> str:
        """The key's ARN."""
        return f"{KIND} {self._arn}"

    def wrap(self, plaintext: bytes, context: bytes) -> bytes:
        """As `RootKey.wrap`."""
        try:
            made = self._keys.generate_data_key(_context(context))
        except (KeyReleaseDenied, AuthenticationError, MalformedError) as error:
            raise _converted(error) from None
        nonce = self._random(_NONCE_SIZE)
        sealed = AESGCM(made.key).encrypt(nonce, plaintext, context)
        return len(made.wrapped).to_bytes(_LENGTH_SIZE, "big") + made.wrapped + nonce + sealed

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """As `RootKey.unwrap`."""
        end = _LENGTH_SIZE + int.from_bytes(wrapped[:_LENGTH_SIZE], "big")
        data_key, rest = wrapped[_LENGTH_SIZE:end], wrapped[end:]
        if end > len(wrapped) or not data_key:
            raise not_ours()
        try:
            key = self._keys.decrypt_data_key(data_key, _context(context))
            return AESGCM(key).decrypt(rest[:_NONCE_SIZE], rest[_NONCE_SIZE:], context)
        except (InvalidTag, ValueError):
            raise not_ours() from None
        except (KeyReleaseDenied, AuthenticationError, MalformedError) as error:
            if "InvalidCiphertextException" in str(error):
                raise not_ours() from None
            raise _converted(error) from None


def open_key(
    rest: str,
    *,
    random: Random = os.urandom,
    transport: httpx2.BaseTransport | None = None,
    attester: Attester | None = None,
) -> KmsRootKey:
    """The key of this ARN; KMS is not asked yet. ConfigurationError for another form of name."""
    arn, options = split_place(rest, options=_OPTIONS)
    matched = _ARN.fullmatch(arn)
    if matched is None:
        raise ConfigurationError(
            "a key of AWS KMS is named by its ARN: aws-kms:arn:aws:kms:REGION:ACCOUNT:key/ID",
            code="root_key.kind",
        )
    credentials_file = Path(required(options, "credentials-file"))
    client = KmsClient(
        matched[1],
        credentials=lambda: parse_credentials(
            read_private(credentials_file, limit=_MAX_CREDENTIALS)
        ),
        http=httpx2.Client(transport=transport, trust_env=False),
    )
    if "attested" not in options:
        return KmsRootKey(CallersKms(client, key_arn=arn), arn=arn, random=random)
    if options["attested"] != "nitro":
        raise ConfigurationError("attested=nitro is the only one", code="root_key.kind")
    if attester is None:
        from cloister.attester.nsm import Nsm

        attester = Nsm()
    return KmsRootKey(AttestedKms(client, attester, key_arn=arn), arn=arn, random=random)


def _context(context: bytes) -> Context:
    return {"cloister.root_key.v1": hashlib.sha256(context).hexdigest()}


def _converted(
    error: KeyReleaseDenied | AuthenticationError | MalformedError,
) -> ConfigurationError | FetchError:
    """The words of the root key's protocol; the sentence stays."""
    if isinstance(error, KeyReleaseDenied):
        return ConfigurationError(str(error), code="root_key.denied")
    return FetchError(str(error), code="root_key.unreachable")
