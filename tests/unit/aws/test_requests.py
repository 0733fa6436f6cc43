"""Credentials, signatures (against botocore's), and the client's answers from KMS."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from cloister.aws.credentials import Credentials, parse_credentials
from cloister.aws.kms import MAX_ANSWER_BYTES, KmsClient, Recipient
from cloister.aws.sigv4 import signed_headers
from cloister.errors import (
    AuthenticationError,
    CloisterError,
    ConfigurationError,
    FetchError,
    KeyReleaseDenied,
    MalformedError,
)
from support.kms import CONTEXT, NOW, credentials

DOCUMENT = {
    "AccessKeyId": "ASIAIOSFODNN7EXAMPLE",
    "SecretAccessKey": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "SessionToken": "FwoGZXIvYXdzEXAMPLE==",
    "Expiration": "2026-11-29T13:00:00Z",
}
ARN = "arn:aws:kms:eu-west-1:111122223333:key/1"


def test_credentials_are_read_and_not_shown() -> None:
    found = parse_credentials(json.dumps(DOCUMENT).encode())
    assert found.access_key_id == DOCUMENT["AccessKeyId"]
    assert found.expires == datetime(2026, 11, 29, 13, tzinfo=UTC)
    assert DOCUMENT["SecretAccessKey"] not in repr(found)
    assert DOCUMENT["SessionToken"] not in repr(found)


@pytest.mark.parametrize(
    "changed",
    [
        {"AccessKeyId": None},
        {"AccessKeyId": "short"},
        {"SecretAccessKey": "with a space in it, and long"},
        {"SessionToken": "line\r\nfeed"},
        {"SessionToken": ""},
        {"Expiration": "2026-11-29T13:00:00"},
        {"Expiration": "soon"},
        {"Version": 2},
        {"Unknown": 1},
    ],
)
def test_other_credentials_are_malformed_and_not_repeated(changed: dict[str, Any]) -> None:
    with pytest.raises(MalformedError) as caught:
        parse_credentials(json.dumps({**DOCUMENT, **changed}).encode())
    for value in changed.values():
        assert not value or str(value) not in str(caught.value)


@pytest.mark.parametrize("token", [None, "token=="])
def test_signatures_are_botocores(token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    auth = pytest.importorskip("botocore.auth", reason="botocore is with the test packages")
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials as Theirs

    at = datetime(2026, 11, 29, 12, 34, 56, tzinfo=UTC)
    monkeypatch.setattr(auth, "get_current_datetime", lambda: at)
    made = Credentials(
        access_key_id=DOCUMENT["AccessKeyId"],
        secret_access_key=DOCUMENT["SecretAccessKey"],
        session_token=token,
    )
    headers = {"content-type": "application/x-amz-json-1.1", "x-amz-target": "TrentService.Decrypt"}
    body = b'{"KeyId":"alias/x"}'
    request = AWSRequest("POST", "https://kms.eu-west-1.amazonaws.com/", headers=headers, data=body)
    theirs = Theirs(made.access_key_id, made.secret_access_key, token)
    auth.SigV4Auth(theirs, "kms", "eu-west-1").add_auth(request)
    ours = signed_headers(
        host="kms.eu-west-1.amazonaws.com",
        region="eu-west-1",
        service="kms",
        headers=headers,
        body=body,
        credentials=made,
        at=at,
    )
    assert ours["authorization"] == request.headers["Authorization"]


def client(answer: Callable[[httpx2.Request], httpx2.Response]) -> KmsClient:
    return KmsClient(
        "eu-west-1",
        credentials=lambda: credentials("enclave"),
        http=httpx2.Client(transport=httpx2.MockTransport(answer)),
        now=lambda: NOW,
    )


def decrypt(answer: httpx2.Response, *, attested: bool = True) -> Any:
    recipient = Recipient(attestation_document=b"document") if attested else None
    return client(lambda _: answer).decrypt(
        b"wrapped", key_id=ARN, context=CONTEXT, recipient=recipient
    )


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_request_names_key_context_and_recipient() -> None:
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, json={"KeyId": ARN, "CiphertextForRecipient": b64(b"e")})

    client(answer).decrypt(
        b"wrapped", key_id=ARN, context=CONTEXT, recipient=Recipient(attestation_document=b"d")
    )
    assert str(seen[0].url) == "https://kms.eu-west-1.amazonaws.com/"
    assert json.loads(seen[0].content) == {
        "CiphertextBlob": b64(b"wrapped"),
        "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        "KeyId": ARN,
        "EncryptionContext": CONTEXT,
        "Recipient": {
            "AttestationDocument": b64(b"d"),
            "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256",
        },
    }


@pytest.mark.parametrize("empty", [{}, {"Plaintext": None}, {"Plaintext": ""}])
def test_an_attested_answer_has_an_envelope_and_no_plaintext(empty: dict[str, Any]) -> None:
    good = {"KeyId": ARN, "CiphertextForRecipient": b64(b"envelope"), **empty}
    assert decrypt(httpx2.Response(200, json=good)).for_recipient == b"envelope"
    for wrong in ({**good, "Plaintext": b64(b"x")}, {"KeyId": ARN}):
        with pytest.raises(AuthenticationError) as caught:
            decrypt(httpx2.Response(200, json=wrong))
        assert caught.value.code == "kms.not_attested"


DENIED = (KeyReleaseDenied, "kms.denied")
FAILED = (FetchError, "kms.failed")
OTHER = (MalformedError, "kms.answer")


def error(status: int, kind: str) -> httpx2.Response:
    return httpx2.Response(status, json={"__type": kind})


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (error(400, "AccessDeniedException"), DENIED),
        (error(400, "com.amazonaws.kms#InvalidCiphertextException"), DENIED),
        (error(400, "ThrottlingException"), FAILED),
        (error(500, "AccessDeniedException"), FAILED),
        (httpx2.Response(502, content=b"<html>"), FAILED),
        (httpx2.Response(302, headers={"location": "https://elsewhere/"}), FAILED),
        (httpx2.Response(200, content=b"{"), OTHER),
        (httpx2.Response(200, json={}), OTHER),
        (httpx2.Response(200, json={"KeyId": ARN, "Plaintext": "%"}), OTHER),
        (httpx2.Response(200, content=b" " * (MAX_ANSWER_BYTES + 1)), OTHER),
    ],
)
def test_every_other_answer_is_one_of_our_errors(
    answer: httpx2.Response, expected: tuple[type[CloisterError], str]
) -> None:
    with pytest.raises(expected[0]) as caught:
        decrypt(answer, attested=False)
    assert caught.value.code == expected[1]


def test_what_kms_says_beside_the_name_of_its_reason_is_not_repeated() -> None:
    body = {"__type": "AccessDeniedException", "message": "User: arn:secret is not authorized"}
    with pytest.raises(KeyReleaseDenied, match="AccessDeniedException") as caught:
        decrypt(httpx2.Response(400, json=body))
    assert "arn:secret" not in str(caught.value)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, identity"])
def test_a_compressed_answer_is_refused_before_it_is_unpacked(coding: str) -> None:
    body = json.dumps({"KeyId": ARN, "Plaintext": b64(b"x")}).encode()
    seen: list[httpx2.Request] = []

    def answering(**headers: str) -> Any:
        class Pieces(httpx2.SyncByteStream):
            read = False

            def __iter__(self) -> Iterator[bytes]:
                Pieces.read = True
                yield body

        def answer(request: httpx2.Request) -> httpx2.Response:
            seen.append(request)
            return httpx2.Response(200, headers=headers, stream=Pieces())

        return Pieces, client(answer)

    def ask(made: KmsClient) -> bytes | None:
        return made.decrypt(b"wrapped", key_id=ARN, context=CONTEXT, recipient=None).plaintext

    for headers in ({}, {"content-encoding": "identity"}):
        assert ask(answering(**headers)[1]) == b"x"
    pieces, made = answering(**{"content-encoding": coding})
    with pytest.raises(MalformedError) as caught:
        ask(made)
    assert caught.value.code == "kms.answer"
    assert not pieces.read
    assert {request.headers["accept-encoding"] for request in seen} == {"identity"}


def test_nobody_there_is_unreachable() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("no")

    with pytest.raises(FetchError) as caught:
        client(answer).encrypt(b"x", key_id=ARN, context=CONTEXT)
    assert caught.value.code == "kms.unreachable"


def test_a_request_without_key_or_context_is_our_own_fault() -> None:
    made = client(lambda _: httpx2.Response(500))
    for key_id, context in (("", CONTEXT), (ARN, {})):
        with pytest.raises(ValueError, match="names its key"):
            made.encrypt(b"x", key_id=key_id, context=context)
    with pytest.raises(MalformedError):
        made.encrypt(bytes(4097), key_id=ARN, context=CONTEXT)


def test_a_region_is_no_host() -> None:
    with pytest.raises(ConfigurationError):
        KmsClient("evil.example/", credentials=lambda: credentials("x"), http=httpx2.Client())


def test_expired_credentials_are_not_sent() -> None:
    late = KmsClient(
        "eu-west-1",
        credentials=lambda: credentials("enclave"),
        http=httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(500))),
        now=lambda: NOW.replace(hour=14),
    )
    with pytest.raises(ConfigurationError) as caught:
        late.encrypt(b"x", key_id=ARN, context=CONTEXT)
    assert caught.value.code == "kms.credentials"
