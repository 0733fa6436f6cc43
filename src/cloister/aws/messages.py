"""Messages between a caller and an enclave under keys that AWS KMS makes: one key a message.

Questions are encrypted under data keys of one KMS key, which the caller may generate and only the
attested enclave may decrypt; answers under data keys of another, which only the attested enclave
may generate and the caller may decrypt (`cloister.aws.key_policy` writes both policies). KMS
never sees a message, so that its limit of 4096 bytes is none for messages, and nothing changes
in them: they are bytes.

A message is sealed by AES-256-GCM under its own key, with its encryption context as additional
data; the same context is bound to the wrapped key by KMS. The context names the format, the
direction, a random id, the second it was made in and, of an answer, the digest of the question:
no answer can be taken for that to another question, nor a question for an answer. An enclave
refuses a question that is too old, or that it has seen (`ReplayMemory`).

This is for callers who have AWS credentials and trust AWS' policy engine to hold the keys. It
tells them less than `cloister verify` does: not which model answered, nor that it was this image,
but only that AWS gave the key to something that the policy accepts.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.aws.kms import DATA_KEY_BYTES, MAX_CIPHERTEXT_BYTES, Context, KmsClient
from cloister.aws.recipient import DataKey
from cloister.errors import AuthenticationError, MalformedError
from cloister.strictjson import (
    JsonObject,
    canonical,
    decode_base64,
    expect_int,
    expect_keys,
    expect_object,
    expect_str,
    parse_json_object,
)

FORMAT: Final = "cloister.kms-message/1"
MAX_MESSAGE_BYTES: Final = 32 * 1024 * 1024
MAX_AGE_S: Final = 300
"""Of a question; the same ahead of the enclave's clock."""
MAX_SEEN: Final = 100_000
_NONCE_BYTES: Final = 12
_ID_BYTES: Final = 16

Random = Callable[[int], bytes]


class DataKeys(Protocol):
    """Makes keys for messages in one direction."""

    def generate_data_key(self, context: Context) -> DataKey:
        """A fresh key, wrapped for `context`."""


class WrappedKeys(Protocol):
    """Opens keys of messages in one direction."""

    def decrypt_data_key(self, wrapped: bytes, context: Context) -> bytes:
        """The key that was wrapped for `context`."""


class CallersKms:
    """Both, for a caller outside, without attestation: its role's rights are all it has."""

    def __init__(self, client: KmsClient, *, key_arn: str) -> None:
        self._client = client
        self._key_arn = key_arn

    def generate_data_key(self, context: Context) -> DataKey:
        """As `DataKeys`."""
        answer = self._client.generate_data_key(
            key_id=self._key_arn, context=context, recipient=None
        )
        if answer.ciphertext is None:
            raise MalformedError("KMS made a data key without its ciphertext", code="kms.answer")
        return DataKey(key=_key(answer.plaintext), wrapped=answer.ciphertext)

    def decrypt_data_key(self, wrapped: bytes, context: Context) -> bytes:
        """As `WrappedKeys`."""
        answer = self._client.decrypt(
            wrapped, key_id=self._key_arn, context=context, recipient=None
        )
        return _key(answer.plaintext)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A sealed message, as it travels."""

    context: Mapping[str, str]
    wrapped_key: bytes
    nonce: bytes
    ciphertext: bytes = field(repr=False)

    def encode(self) -> bytes:
        """JSON, binary members in base64."""
        return json.dumps(
            {
                "context": dict(self.context),
                "wrapped_key": _b64(self.wrapped_key),
                "nonce": _b64(self.nonce),
                "ciphertext": _b64(self.ciphertext),
            }
        ).encode()

    @classmethod
    def parse(cls, data: bytes) -> Message:
        """Decode. Raises MalformedError."""
        what = "the message"
        members = parse_json_object(data, limit=2 * MAX_MESSAGE_BYTES, what=what)
        expect_keys(members, what, required={"context", "wrapped_key", "nonce", "ciphertext"})
        context = {
            expect_str(name, what, limit=64): expect_str(value, what, limit=128)
            for name, value in expect_object(members["context"], what).items()
        }
        nonce = decode_base64(members["nonce"], limit=_NONCE_BYTES, what=what)
        if len(nonce) != _NONCE_BYTES:
            raise MalformedError("the message's nonce has another length")
        return cls(
            context=context,
            wrapped_key=decode_base64(
                members["wrapped_key"], limit=MAX_CIPHERTEXT_BYTES, what=what
            ),
            nonce=nonce,
            ciphertext=decode_base64(
                members["ciphertext"], limit=MAX_MESSAGE_BYTES + 16, what=what
            ),
        )

    @property
    def digest(self) -> str:
        """SHA-256 of everything in it, in hex."""
        parts: JsonObject = {
            "context": dict(self.context),
            "wrapped_key": self.wrapped_key.hex(),
            "nonce": self.nonce.hex(),
            "ciphertext": hashlib.sha256(self.ciphertext).hexdigest(),
        }
        return hashlib.sha256(canonical(parts)).hexdigest()


class ReplayMemory:
    """Which questions were taken; refuses new ones rather than forget one that is still young."""

    def __init__(self, *, max_age_s: int = MAX_AGE_S, max_seen: int = MAX_SEEN) -> None:
        self._max_age_s = max_age_s
        self._max_seen = max_seen
        self._seen: dict[str, int] = {}

    def check(self, identifier: str, made_at: int, now: int) -> None:
        """AuthenticationError (``kms.replay``) for a question that would not be taken."""
        if abs(now - made_at) > self._max_age_s:
            raise _replay("the question is too old, or its clock is ahead")
        if identifier in self._seen:
            raise _replay("the question was asked before")
        if len(self._seen) >= self._max_seen:
            oldest = now - self._max_age_s
            self._seen = {name: at for name, at in self._seen.items() if at >= oldest}
            if len(self._seen) >= self._max_seen:
                raise _replay("too many questions at once; ask again in some minutes")

    def take(self, identifier: str, made_at: int, now: int) -> None:
        """Take a question once; raises as `check`."""
        self.check(identifier, made_at, now)
        self._seen[identifier] = made_at


def seal_question(text: bytes, keys: DataKeys, *, random: Random, now: int) -> Message:
    """Encrypt a question at Unix time `now`; raises as `keys`."""
    return _seal(text, keys, {**_basics("question", random, now)}, random)


def open_question(message: Message, keys: WrappedKeys, *, memory: ReplayMemory, now: int) -> bytes:
    """The question's text, once.

    Raises:
        AuthenticationError: it is none, is not whole, is old, or was taken before. The memory is
            asked first, so that what is repeated costs no request to KMS, and filled last, so that
            only genuine questions fill it.
    """
    made_at = _check(message, "question")
    identifier = message.context["id"]
    memory.check(identifier, made_at, now)
    text = _open(message, keys)
    memory.take(identifier, made_at, now)
    return text


def seal_answer(
    text: bytes, question: Message, keys: DataKeys, *, random: Random, now: int
) -> Message:
    """Encrypt the answer to `question`."""
    context = {**_basics("answer", random, now), "question": question.digest}
    return _seal(text, keys, context, random)


def open_answer(message: Message, question: Message, keys: WrappedKeys) -> bytes:
    """The answer to `question`; AuthenticationError if it is none to this one."""
    _check(message, "answer")
    if message.context.get("question") != question.digest:
        raise _refused("the answer is to another question")
    return _open(message, keys)


def _basics(direction: str, random: Random, now: int) -> dict[str, str]:
    return {
        "format": FORMAT,
        "direction": direction,
        "id": random(_ID_BYTES).hex(),
        "made_at": str(now),
    }


def _check(message: Message, direction: str) -> int:
    context = message.context
    names = {"format", "direction", "id", "made_at"}
    if direction == "answer":
        names |= {"question"}
    if (
        context.keys() != names
        or context["format"] != FORMAT
        or context["direction"] != direction
        or not (context["made_at"].isascii() and context["made_at"].isdigit())
        or len(context["made_at"]) > 12
    ):
        raise _refused(f"the message is no {direction}")
    return expect_int(int(context["made_at"]), "the message's time")


def _seal(text: bytes, keys: DataKeys, context: Context, random: Random) -> Message:
    if len(text) > MAX_MESSAGE_BYTES:
        raise MalformedError(f"a message has at most {MAX_MESSAGE_BYTES} bytes")
    made = keys.generate_data_key(context)
    nonce = random(_NONCE_BYTES)
    sealed = AESGCM(made.key).encrypt(nonce, text, _additional(context))
    return Message(context=context, wrapped_key=made.wrapped, nonce=nonce, ciphertext=sealed)


def _open(message: Message, keys: WrappedKeys) -> bytes:
    key = keys.decrypt_data_key(message.wrapped_key, message.context)
    try:
        return AESGCM(key).decrypt(message.nonce, message.ciphertext, _additional(message.context))
    except (InvalidTag, ValueError):
        raise _refused("the message does not open") from None


def _additional(context: Context) -> bytes:
    return canonical(dict(context))


def _key(plaintext: bytes | None) -> bytes:
    if plaintext is None or len(plaintext) != DATA_KEY_BYTES:
        raise MalformedError("KMS did not answer with a data key", code="kms.answer")
    return plaintext


def _refused(why: str) -> AuthenticationError:
    return AuthenticationError(why, code="kms.message")


def _replay(why: str) -> AuthenticationError:
    return AuthenticationError(why, code="kms.replay")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
