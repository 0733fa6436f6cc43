"""The KMS client against moto, a double by other people.

moto knows keys, data keys and encryption contexts. It knows no attestation documents and checks
no signatures; those are `tests/unit/aws`, against a double of our own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
import pytest

from cloister.aws.kms import KmsClient
from cloister.errors import KeyReleaseDenied
from support.kms import CONTEXT, NOW, credentials

moto = pytest.importorskip("moto", reason="moto is with the test packages")


@pytest.fixture
def client() -> Iterator[KmsClient]:
    from botocore.awsrequest import AWSPreparedRequest
    from botocore.compat import HTTPHeaders
    from moto.core.botocore_stubber import BotocoreStubber

    stubber = BotocoreStubber()

    def answer(request: httpx2.Request) -> httpx2.Response:
        headers = HTTPHeaders()
        for name, value in request.headers.items():
            headers[name] = value
        prepared = AWSPreparedRequest(
            method=request.method,
            url=str(request.url),
            headers=headers,
            body=request.content,
            stream_output=False,
        )
        found = stubber.process_request(prepared)
        assert found is not None
        status, _, body = found
        return httpx2.Response(status, content=body)

    with moto.mock_aws():
        yield KmsClient(
            "eu-west-1",
            credentials=lambda: credentials("owner"),
            http=httpx2.Client(transport=httpx2.MockTransport(answer)),
            now=lambda: NOW,
        )


def test_what_is_wrapped_is_unwrapped_for_the_same_context_only(client: KmsClient) -> None:
    arn = new_key()
    wrapped = client.encrypt(b"a secret", key_id=arn, context=CONTEXT)
    assert wrapped.key_id == arn
    assert wrapped.ciphertext is not None
    assert b"a secret" not in wrapped.ciphertext
    opened = client.decrypt(wrapped.ciphertext, key_id=arn, context=CONTEXT, recipient=None)
    assert opened.plaintext == b"a secret"
    with pytest.raises(KeyReleaseDenied):
        client.decrypt(
            wrapped.ciphertext, key_id=arn, context={"purpose": "another"}, recipient=None
        )
    made = client.generate_data_key(key_id=arn, context=CONTEXT, recipient=None)
    assert made.ciphertext is not None
    again = client.decrypt(made.ciphertext, key_id=arn, context=CONTEXT, recipient=None)
    assert again.plaintext == made.plaintext


def test_an_unknown_key_is_denied(client: KmsClient) -> None:
    absent = "arn:aws:kms:eu-west-1:123456789012:key/00000000-0000-4000-8000-000000000000"
    with pytest.raises(KeyReleaseDenied, match="NotFoundException"):
        client.encrypt(b"x", key_id=absent, context=CONTEXT)


def new_key() -> str:
    import boto3

    policy = json.dumps({"Version": "2012-10-17", "Statement": []})
    made = boto3.client(
        "kms",
        region_name="eu-west-1",
        aws_access_key_id="simulated",
        aws_secret_access_key="simulated",
    ).create_key(Policy=policy)
    arn = made["KeyMetadata"]["Arn"]
    assert isinstance(arn, str)
    return arn
