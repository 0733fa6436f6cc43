"""The enclave's side of KMS, against a KMS that verifies documents and policies."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from cloister.aws.key_policy import Measured, Use, key_policy
from cloister.aws.kms import KmsClient
from cloister.aws.recipient import AttestedKms
from cloister.errors import AuthenticationError, CloisterError, KeyReleaseDenied
from cloister.testing.simulated_kms_envelope import STYLES, EnvelopeStyle
from cloister.testing.simulated_nitro import DEBUG_PCRS, DEFAULT_PCRS, SimulatedNitro
from support.kms import (
    ADMIN,
    CALLER,
    CONTEXT,
    ENCLAVE,
    NOW,
    RSA_KEY,
    Cloud,
    SimulatedNsm,
    credentials,
    image,
)

OTHER_PCRS = {**DEFAULT_PCRS, 2: bytes([7]) * 48}


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_an_attested_enclave_makes_and_opens_data_keys(cloud: Cloud, style: EnvelopeStyle) -> None:
    cloud.kms.style = style
    kms = cloud.attested(cloud.secret)
    made = kms.generate_data_key(CONTEXT)
    assert len(made.key) == 32
    assert made.key.hex() not in repr(made)
    assert kms.decrypt_data_key(made.wrapped, CONTEXT) == made.key
    assert cloud.kms.log == [
        ("GenerateDataKey", ENCLAVE, "allowed"),
        ("Decrypt", ENCLAVE, "allowed"),
    ]


def test_every_request_has_a_key_of_its_own(cloud: Cloud) -> None:
    kms = AttestedKms(cloud.client(), cloud.nsm, key_arn=cloud.secret)
    made = kms.generate_data_key(CONTEXT)
    assert kms.decrypt(made.wrapped, CONTEXT) == made.key
    first, second = cloud.nsm.public_keys
    assert first is not None
    assert second is not None
    assert first != second
    key = load_der_public_key(first)
    assert isinstance(key, rsa.RSAPublicKey)
    assert key.key_size == 2048


def denied(cloud: Cloud, kms: AttestedKms) -> str:
    made = cloud.attested(cloud.secret).generate_data_key(CONTEXT)
    with pytest.raises(KeyReleaseDenied):
        kms.decrypt(made.wrapped, CONTEXT)
    return cloud.kms.log[-1][2]


def test_another_image_or_a_debugged_one_gets_nothing(cloud: Cloud) -> None:
    for pcrs in (OTHER_PCRS, DEBUG_PCRS):
        nsm = SimulatedNsm(cloud.nitro, pcrs=pcrs)
        assert denied(cloud, cloud.attested(cloud.secret, nsm=nsm)) == "AccessDeniedException"


def test_documents_of_somebody_else_or_of_before_get_nothing(cloud: Cloud) -> None:
    for nsm in (
        SimulatedNsm(SimulatedNitro(now=NOW)),
        SimulatedNsm(cloud.nitro, timestamp=NOW - timedelta(minutes=6)),
    ):
        assert denied(cloud, cloud.attested(cloud.secret, nsm=nsm)) == "ValidationException"


def test_the_role_alone_gets_nothing(cloud: Cloud) -> None:
    """Whoever stole the enclave's credentials, the parent first of all."""
    made = cloud.attested(cloud.secret).generate_data_key(CONTEXT)
    for name in ("enclave", "admin", "caller"):
        with pytest.raises(KeyReleaseDenied):
            cloud.client(name).decrypt(
                made.wrapped, key_id=cloud.secret, context=CONTEXT, recipient=None
            )
        with pytest.raises(KeyReleaseDenied):
            cloud.client(name).encrypt(b"x", key_id=cloud.secret, context=CONTEXT)


def test_a_denial_stands_whatever_else_allows(cloud: Cloud) -> None:
    """An IAM policy of the account, or a grant, is one more statement that allows."""
    policy = dict(
        key_policy(administrators=[ADMIN], enclave_role=ENCLAVE, images=[image()], use=Use.SECRET)
    )
    anything = {
        "Effect": "Allow",
        "Principal": {"AWS": ENCLAVE},
        "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
        "Resource": "*",
    }
    statements = policy["Statement"]
    assert isinstance(statements, list)
    kept = [statement for statement in statements if statement.get("Sid") != "OnlyAttested"]  # type: ignore[union-attr]  # statements are objects
    for listed, refused in ((statements, True), (kept, False)):
        arn = cloud.kms.create_key({**policy, "Statement": [*listed, anything]})

        def ask(arn: str = arn) -> object:
            return cloud.client().generate_data_key(key_id=arn, context=CONTEXT, recipient=None)

        if refused:
            with pytest.raises(KeyReleaseDenied):
                ask()
        else:
            ask()  # so it is that statement that stops it


def test_images_are_never_mixed(cloud: Cloud) -> None:
    second = {index: bytes([0x50 + index]) * 48 for index in range(3)}
    arn = cloud.key(Use.SECRET, image(), image(second))
    for pcrs in (DEFAULT_PCRS, second):
        nsm = SimulatedNsm(cloud.nitro, pcrs=pcrs)
        assert cloud.attested(arn, nsm=nsm).generate_data_key(CONTEXT).key
    mixed = SimulatedNsm(cloud.nitro, pcrs={**DEFAULT_PCRS, 2: second[2]})
    with pytest.raises(KeyReleaseDenied):
        cloud.attested(arn, nsm=mixed).generate_data_key(CONTEXT)


def test_a_context_is_part_of_what_is_wrapped(cloud: Cloud) -> None:
    kms = cloud.attested(cloud.secret)
    made = kms.generate_data_key(CONTEXT)
    with pytest.raises(KeyReleaseDenied):
        kms.decrypt(made.wrapped, {"purpose": "another"})


def test_an_envelope_for_another_key_does_not_open(cloud: Cloud) -> None:
    """An answer that was recorded, or made for somebody else."""
    recorded: list[httpx2.Response] = []

    def replay(request: httpx2.Request) -> httpx2.Response:
        if not recorded:
            recorded.append(cloud.kms.handle(request))
        return recorded[0]

    client = KmsClient(
        "eu-west-1",
        credentials=lambda: credentials("enclave"),
        http=httpx2.Client(transport=httpx2.MockTransport(replay)),
        now=lambda: NOW,
    )
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    keys = iter([RSA_KEY, other])
    kms = AttestedKms(client, cloud.nsm, key_arn=cloud.secret, new_key=lambda: next(keys))
    assert kms.generate_data_key(CONTEXT).key
    with pytest.raises(AuthenticationError) as caught:
        kms.generate_data_key(CONTEXT)
    assert caught.value.code == "kms.envelope"


def test_an_answer_of_another_key_is_refused(cloud: Cloud) -> None:
    def elsewhere(request: httpx2.Request) -> httpx2.Response:
        answer = cloud.kms.handle(request).json()
        return httpx2.Response(200, json={**answer, "KeyId": cloud.answers})

    client = KmsClient(
        "eu-west-1",
        credentials=lambda: credentials("enclave"),
        http=httpx2.Client(transport=httpx2.MockTransport(elsewhere)),
        now=lambda: NOW,
    )
    kms = AttestedKms(client, cloud.nsm, key_arn=cloud.secret, new_key=lambda: RSA_KEY)
    with pytest.raises(AuthenticationError) as caught:
        kms.generate_data_key(CONTEXT)
    assert caught.value.code == "kms.key"


def test_keys_are_named_by_their_arn(cloud: Cloud) -> None:
    with pytest.raises(ValueError, match="ARN"):
        AttestedKms(cloud.client(), cloud.nsm, key_arn="alias/changed-tomorrow")


def test_forged_credentials_sign_nothing(cloud: Cloud) -> None:
    forged = dataclasses.replace(credentials("enclave"), secret_access_key="guessed/0123456789")
    client = KmsClient(
        "eu-west-1",
        credentials=lambda: forged,
        http=httpx2.Client(transport=cloud.kms.transport),
        now=lambda: NOW,
    )
    with pytest.raises(CloisterError, match="InvalidSignatureException"):
        client.encrypt(b"x", key_id=cloud.secret, context=CONTEXT)


def test_a_nitro_tpms_registers_are_not_an_enclaves(cloud: Cloud) -> None:
    registers = {4: bytes([4]) * 48, 7: bytes([7]) * 48}
    policy = key_policy(
        administrators=[ADMIN],
        enclave_role=ENCLAVE,
        images=[dataclasses.replace(image(), registers=registers)],
        measured=Measured.NITRO_TPM,
    )
    arn = cloud.kms.create_key(policy)

    class TpmDocuments:
        def __init__(self, member: str) -> None:
            self.member = member

        def attestation(
            self,
            *,
            user_data: bytes | None = None,
            nonce: bytes | None = None,
            public_key: bytes | None = None,
        ) -> bytes:
            payload = cloud.nitro.payload(pcrs=registers, public_key=public_key)
            payload[self.member] = payload.pop("pcrs")
            return cloud.nitro.sign(payload)

    for member, allowed in (("nitrotpm_pcrs", True), ("pcrs", False)):
        kms = AttestedKms(
            cloud.client(), TpmDocuments(member), key_arn=arn, new_key=lambda: RSA_KEY
        )
        if allowed:
            assert kms.generate_data_key(CONTEXT).key
        else:
            with pytest.raises(KeyReleaseDenied):
                kms.generate_data_key(CONTEXT)


def test_callers_only_do_what_their_side_needs(cloud: Cloud) -> None:
    caller = cloud.client("caller")
    made = caller.generate_data_key(key_id=cloud.questions, context=CONTEXT, recipient=None)
    assert made.plaintext is not None
    assert made.ciphertext is not None
    with pytest.raises(KeyReleaseDenied):
        caller.decrypt(made.ciphertext, key_id=cloud.questions, context=CONTEXT, recipient=None)
    with pytest.raises(KeyReleaseDenied):
        caller.generate_data_key(key_id=cloud.answers, context=CONTEXT, recipient=None)
    assert cloud.kms.log[-1] == ("GenerateDataKey", CALLER, "AccessDeniedException")
