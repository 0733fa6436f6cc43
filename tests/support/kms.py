"""A simulated AWS with one enclave, one caller, and keys for each use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import httpx2
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from cloister.aws.credentials import Credentials
from cloister.aws.key_policy import Image, Use, key_policy
from cloister.aws.kms import KmsClient
from cloister.aws.recipient import AttestedKms, new_rsa_key
from cloister.testing.simulated_kms import SimulatedKms
from cloister.testing.simulated_nitro import DEFAULT_PCRS, SimulatedNitro

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
ACCOUNT = "arn:aws:iam::111122223333"
ADMIN, ENCLAVE, CALLER = (f"{ACCOUNT}:role/{name}" for name in ("admin", "enclave", "caller"))
CONTEXT = {"purpose": "test"}
RSA_KEY = new_rsa_key()
"""One for all tests that do not look at it: making one takes a tenth of a second."""


def credentials(name: str) -> Credentials:
    return Credentials(
        access_key_id=f"ASIA{name.upper():X<16}"[:20],
        secret_access_key=f"secret/{name}/0123456789",
        session_token=f"token-of-{name}",
        expires=NOW + timedelta(hours=1),
    )


@dataclass
class SimulatedNsm:
    """The security module of one simulated enclave."""

    nitro: SimulatedNitro
    pcrs: Mapping[int, bytes] = field(default_factory=lambda: DEFAULT_PCRS)
    timestamp: datetime = NOW
    public_keys: list[bytes | None] = field(default_factory=list)

    def attestation(
        self,
        *,
        user_data: bytes | None = None,
        nonce: bytes | None = None,
        public_key: bytes | None = None,
    ) -> bytes:
        self.public_keys.append(public_key)
        return self.nitro.document(
            pcrs=self.pcrs,
            user_data=user_data,
            nonce=nonce,
            public_key=public_key,
            timestamp=self.timestamp,
        )


def image(pcrs: Mapping[int, bytes] = DEFAULT_PCRS) -> Image:
    return Image(registers={index: pcrs[index] for index in range(3)})


class Cloud:
    """KMS with a key for each use, under policies for one image."""

    def __init__(self) -> None:
        self.now = NOW
        self.nitro = SimulatedNitro(now=NOW)
        self.kms = SimulatedKms(roots=self.nitro.roots, now=lambda: self.now)
        for name, arn in (("admin", ADMIN), ("enclave", ENCLAVE), ("caller", CALLER)):
            self.kms.add_principal(credentials(name), arn)
        self.secret = self.key(Use.SECRET)
        self.questions = self.key(Use.QUESTIONS)
        self.answers = self.key(Use.ANSWERS)
        self.nsm = SimulatedNsm(self.nitro)

    def key(self, use: Use, *images: Image) -> str:
        return self.kms.create_key(
            key_policy(
                administrators=[ADMIN],
                enclave_role=ENCLAVE,
                images=images or [image()],
                use=use,
                caller_role=None if use is Use.SECRET else CALLER,
            )
        )

    def client(self, name: str = "enclave") -> KmsClient:
        return KmsClient(
            "eu-west-1",
            credentials=lambda: credentials(name),
            http=httpx2.Client(transport=self.kms.transport),
            now=lambda: self.now,
        )

    def attested(
        self, arn: str, *, nsm: SimulatedNsm | None = None, key: RSAPrivateKey = RSA_KEY
    ) -> AttestedKms:
        return AttestedKms(
            self.client(), self.nsm if nsm is None else nsm, key_arn=arn, new_key=lambda: key
        )
