"""A release: what evidence binds, and an answer that only one worker opens."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.channel.hpke import Kem, PrivateKey, setup_receiver, setup_sender
from cloister.channel.key_release import (
    MAX_ANSWER_BYTES,
    SUITE,
    BrokerIdentity,
    ReleaseRequest,
    broker_statement,
    open_release,
    parse_wrapping_jwk,
    seal_release,
    wrapping_jwk,
)
from cloister.channel.resource_uri import ResourceUri
from cloister.channel.statement import statement, statement_digest
from cloister.errors import AuthenticationError, ChannelError, CloisterError, MalformedError

KEYSET = "sha256:" + "a" * 64
NONCE = bytes(range(32))
SECRET = b"weights key".ljust(32, b"!")
BROKER = Ed25519PrivateKey.from_private_bytes(b"b" * 32)
IDENTITY = BrokerIdentity(BROKER.public_key().public_bytes_raw())
WRAPPING = PrivateKey(Kem.MLKEM768_X25519, b"w" * 32)
REQUEST = ReleaseRequest(
    broker=IDENTITY,
    resource=ResourceUri(repository="acme", type="weights", tag="v1"),
    version=None,
    wrapping_key=WRAPPING.public_bytes,
)
DIGEST = REQUEST.digest(KEYSET, NONCE)


def sealed(request: ReleaseRequest = REQUEST, digest: bytes = DIGEST) -> bytes:
    return seal_release(
        SECRET, version=3, request=request, statement_digest=digest, identity_key=BROKER
    )


def opened(answer: bytes, **changes: Any) -> bytes:
    options = {
        "private_key": WRAPPING,
        "request": REQUEST,
        "statement_digest": DIGEST,
    } | changes
    return open_release(answer, **options).secret  # type: ignore[arg-type]  # a test's table


def test_the_statement_names_everything() -> None:
    assert json.loads(REQUEST.statement(KEYSET, NONCE)) == {
        "broker": "ed25519:" + IDENTITY.public_key.hex(),
        "keyset_digest": KEYSET,
        "nonce": NONCE.hex(),
        "purpose": "cloister.key_release.v1",
        "resource": "kbs:///acme/weights/v1",
        "version": None,
        "wrapping_key": "sha256:" + hashlib.sha256(WRAPPING.public_bytes).hexdigest(),
    }
    assert hashlib.sha256(REQUEST.statement(KEYSET, NONCE)).digest() == DIGEST


def test_every_part_changes_what_the_hardware_signs() -> None:
    other = BrokerIdentity(bytes(32))
    digests = {
        DIGEST,
        REQUEST.digest("sha256:" + "b" * 64, NONCE),
        REQUEST.digest(KEYSET, bytes(32)),
        REQUEST.digest(KEYSET, None),
        dataclasses.replace(REQUEST, broker=other).digest(KEYSET, NONCE),
        dataclasses.replace(REQUEST, version=1).digest(KEYSET, NONCE),
        dataclasses.replace(REQUEST, wrapping_key=bytes(1216)).digest(KEYSET, NONCE),
        dataclasses.replace(
            REQUEST, resource=ResourceUri(repository="acme", type="weights", tag="v2")
        ).digest(KEYSET, NONCE),
        statement_digest(KEYSET, NONCE),
        hashlib.sha256(broker_statement(IDENTITY, KEYSET, NONCE)).digest(),
    }
    assert len(digests) == 10


def test_a_broker_s_statement_names_everything() -> None:
    assert json.loads(broker_statement(IDENTITY, KEYSET, NONCE)) == {
        "broker": "ed25519:" + IDENTITY.public_key.hex(),
        "keyset_digest": KEYSET,
        "nonce": NONCE.hex(),
        "purpose": "cloister.broker.v1",
    }


def test_no_statement_of_one_purpose_is_one_of_another() -> None:
    """Whatever a requester may choose goes into quoted JSON strings, the purpose never."""
    purposes = {
        json.loads(one)["purpose"]
        for one in (
            statement(KEYSET, NONCE),
            REQUEST.statement(KEYSET, NONCE),
            broker_statement(IDENTITY, KEYSET, NONCE),
        )
    }
    assert purposes == {"aci.report_data.v1", "cloister.key_release.v1", "cloister.broker.v1"}


def test_an_answer_opens_for_the_worker_that_asked() -> None:
    answer = sealed()
    released = open_release(answer, private_key=WRAPPING, request=REQUEST, statement_digest=DIGEST)
    assert (released.secret, released.version) == (SECRET, 3)
    assert SECRET not in answer
    assert "weights key" not in repr(released)


def changed(answer: bytes, **members: object) -> bytes:
    return json.dumps(json.loads(answer) | members).encode()


OTHER_KEY = PrivateKey(Kem.MLKEM768_X25519, b"o" * 32)

REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], type[CloisterError]]] = {
    "another resource": ({"resource": "kbs:///acme/weights/v2"}, {}, MalformedError),
    "another purpose": ({"purpose": "cloister.key_release.v2"}, {}, MalformedError),
    "a version nobody asked for": (
        {},
        {"request": dataclasses.replace(REQUEST, version=2)},
        MalformedError,
    ),
    "another version than was signed": ({"version": 4}, {}, AuthenticationError),
    "no signature": ({"signature": ""}, {}, AuthenticationError),
    "another broker": (
        {},
        {"request": dataclasses.replace(REQUEST, broker=BrokerIdentity(b"\x01" * 32))},
        AuthenticationError,
    ),
    "another statement": ({}, {"statement_digest": bytes(32)}, AuthenticationError),
    "another ciphertext": ({"ciphertext": "AAAA"}, {}, AuthenticationError),
    "another encapsulation": ({"enc": "AAAA"}, {}, AuthenticationError),
    "another worker's key": ({}, {"private_key": OTHER_KEY}, ChannelError),
    "one member more": ({"more": 1}, {}, MalformedError),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_answer_is_refused(case: str) -> None:
    answer = sealed()
    assert opened(answer) == SECRET
    members, options, error = REFUSED[case]
    with pytest.raises(error):
        opened(changed(answer, **members), **options)


def test_an_answer_signed_and_sealed_by_somebody_else_is_refused() -> None:
    """Base-mode HPKE authenticates nobody: the signature is what keeps a foreign key out."""
    assert opened(sealed()) == SECRET
    forged = seal_release(
        bytes(32),
        version=3,
        request=REQUEST,
        statement_digest=DIGEST,
        identity_key=Ed25519PrivateKey.from_private_bytes(b"f" * 32),
    )
    with pytest.raises(AuthenticationError) as refused:
        opened(forged)
    assert refused.value.code == "key_release.identity"


HEADER = b'{"purpose":"cloister.key_release.v1","resource":"kbs:///acme/weights/v1","version":3}'
INFO = b"cloister.key_release.v1\0" + DIGEST


def signed(enc: bytes, ciphertext: bytes) -> bytes:
    """What the broker signs, written out once more."""
    parts = (DIGEST, HEADER, enc, ciphertext)
    digests = b"".join(hashlib.sha256(part).digest() for part in parts)
    return b"cloister.key_release.answer.v1\0" + digests


def test_an_answer_is_signed_for_its_purpose_and_sealed_for_its_statement() -> None:
    """In these very bytes: no signature that the broker makes for something else is an answer."""
    answer = json.loads(sealed())
    enc, ciphertext, signature = (
        base64.b64decode(answer[name]) for name in ("enc", "ciphertext", "signature")
    )
    BROKER.public_key().verify(signature, signed(enc, ciphertext))
    assert setup_receiver(SUITE, enc, WRAPPING, INFO).open(HEADER, ciphertext) == SECRET


@pytest.mark.parametrize("info", [INFO, INFO[:-1], b"cloister.key_release.v1\0" + bytes(32)])
def test_what_was_sealed_for_another_statement_does_not_open(info: bytes) -> None:
    """Also where its broker signs it for this one."""
    enc, context = setup_sender(SUITE, WRAPPING.public_bytes, info)
    ciphertext = context.seal(HEADER, SECRET)
    parts = {
        "enc": enc,
        "ciphertext": ciphertext,
        "signature": BROKER.sign(signed(enc, ciphertext)),
    }
    encoded = {name: base64.b64encode(part).decode() for name, part in parts.items()}
    answer = json.dumps(json.loads(HEADER) | encoded).encode()
    if info == INFO:
        assert opened(answer) == SECRET
    else:
        with pytest.raises(ChannelError):
            opened(answer)


def test_an_answer_is_bounded() -> None:
    answer = sealed()
    assert opened(answer.ljust(MAX_ANSWER_BYTES)) == SECRET
    with pytest.raises(MalformedError):
        opened(answer.ljust(MAX_ANSWER_BYTES + 1))


def test_a_wrapping_key_reads_back_and_others_are_refused() -> None:
    jwk = wrapping_jwk(WRAPPING.public_bytes)
    assert parse_wrapping_jwk(jwk) == WRAPPING.public_bytes
    short = wrapping_jwk(WRAPPING.public_bytes[:-1])
    for other in ({}, {**jwk, "kty": "EC"}, {**jwk, "d": "x"}, short):
        with pytest.raises(MalformedError):
            parse_wrapping_jwk(other)


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:" + "A" * 64, "rsa:" + "a" * 64])
def test_an_identity_has_one_spelling(text: str) -> None:
    assert BrokerIdentity.parse(str(IDENTITY)) == IDENTITY
    with pytest.raises(MalformedError):
        BrokerIdentity.parse(text)
