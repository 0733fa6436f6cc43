"""Signed attestation results: who signed, until when, and nothing else gets in."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_public_key,
)

from cloister.errors import AuthenticationError, CloisterError, ConfigurationError, MalformedError
from cloister.strictjson import JsonObject
from cloister.verifier.ear import EAT_PROFILE
from cloister.verifier.ear_jwt import (
    CLOCK_SKEW,
    LIFETIME,
    MAX_TOKEN_BYTES,
    SigningKey,
    load_signing_key,
    open_ear,
    public_pem,
    sign_ear,
)

NOW = datetime(2026, 11, 3, 12, tzinfo=UTC)
EAR: JsonObject = {
    "eat_profile": EAT_PROFILE,
    "iat": int(NOW.timestamp()),
    "submods": {"cpu0": {"ear.status": "contraindicated"}},
}
KEYS: dict[str, SigningKey] = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": Ed25519PrivateKey.generate(),
}
KEY = KEYS["ES256"]
SECOND = timedelta(seconds=1)


def b64(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def refused(token: str, *, at: datetime = NOW) -> CloisterError:
    with pytest.raises(CloisterError) as raised:
        open_ear(token, KEY.public_key(), at=at)
    return raised.value


@pytest.mark.parametrize("algorithm", KEYS)
def test_there_and_back(algorithm: str) -> None:
    key = KEYS[algorithm]
    token = sign_ear(EAR, key, key_id="verifier 1")
    header = json.loads(base64.urlsafe_b64decode(token.partition(".")[0] + "=="))
    assert header == {"alg": algorithm, "typ": "JWT", "kid": "verifier 1"}
    opened = open_ear(token, key.public_key(), at=NOW)
    assert opened == {**EAR, "exp": int((NOW + LIFETIME).timestamp())}


def test_another_key() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    assert open_ear(sign_ear(EAR, KEY), KEY.public_key(), at=NOW)
    assert refused(sign_ear(EAR, other)).code == "jwt.signature"


def test_a_changed_token() -> None:
    head, body, signature = sign_ear(EAR, KEY).split(".")
    changed = b64({**EAR, "exp": 2**40, "submods": {"cpu0": {"ear.status": "affirming"}}})
    assert refused(f"{head}.{changed}.{signature}").code == "jwt.signature"
    assert refused(f"{head}.{body}.{b64(bytes(64))}").code == "jwt.signature"


def test_the_key_names_the_algorithm_and_not_the_token() -> None:
    body = sign_ear(EAR, KEY).split(".")[1]
    for header in ({"alg": "none"}, {"alg": "HS256"}, {"alg": "ES384"}, {}):
        assert isinstance(refused(f"{b64(header)}.{body}."), MalformedError)
    assert isinstance(refused(sign_ear(EAR, KEYS["Ed25519"])), MalformedError)


def test_dates() -> None:
    token = sign_ear(EAR, KEY)
    for at in (NOW - CLOCK_SKEW, NOW + LIFETIME - SECOND):
        assert open_ear(token, KEY.public_key(), at=at)
    for at in (NOW - CLOCK_SKEW - SECOND, NOW + LIFETIME):
        assert refused(token, at=at).code == "jwt.expired"
    with pytest.raises(ValueError, match="time zone"):
        open_ear(token, KEY.public_key(), at=datetime(2026, 11, 3))  # noqa: DTZ001


def test_a_token_that_holds_only_later() -> None:
    def begun(at: datetime) -> str:
        return sign_ear({**EAR, "nbf": int(at.timestamp())}, KEY)

    assert open_ear(begun(NOW + CLOCK_SKEW), KEY.public_key(), at=NOW)
    assert refused(begun(NOW + CLOCK_SKEW + SECOND)).code == "jwt.expired"


@pytest.mark.parametrize("name", ["iat", "exp", "nbf"])
@pytest.mark.parametrize("value", [True, "1", 1.5, None])
def test_dates_that_are_none(name: str, value: object) -> None:
    from joserfc import jws
    from joserfc.jwk import ECKey

    def signed(claims: dict[str, object]) -> str:
        key = ECKey.import_key(KEYS["ES256"])  # type: ignore[arg-type]
        header = {"alg": "ES256", "typ": "JWT"}
        return jws.serialize_compact(header, json.dumps(claims), key, algorithms=["ES256"])

    good: dict[str, object] = {**EAR, "exp": int(NOW.timestamp()) + 1}
    assert open_ear(signed(good), KEY.public_key(), at=NOW)
    assert refused(signed({**good, name: value})).code == "jwt.malformed"


def test_what_is_no_attestation_result() -> None:
    assert refused(sign_ear({**EAR, "eat_profile": "other"}, KEY)).code == "jwt.malformed"
    with pytest.raises(TypeError):
        sign_ear({"eat_profile": EAT_PROFILE}, KEY)


@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "é", "e30.e30.", "." * 5])
def test_garbage(token: str) -> None:
    assert isinstance(refused(token), MalformedError | AuthenticationError)


def test_a_token_too_long() -> None:
    assert refused("a" * (MAX_TOKEN_BYTES + 1)).code == "jwt.malformed"


def pem(key: SigningKey | rsa.RSAPrivateKey, *, secret: bool = False) -> bytes:
    encryption = BestAvailableEncryption(b"secret") if secret else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_keys_from_files(key: SigningKey) -> None:
    loaded = load_signing_key(pem(key))
    public = load_pem_public_key(public_pem(loaded))
    assert isinstance(public, type(key.public_key()))
    assert open_ear(sign_ear(EAR, loaded), key.public_key(), at=NOW)


def test_keys_that_sign_no_token() -> None:
    koblitz = ec.generate_private_key(ec.SECP521R1())
    for data in (b"", pem(KEY, secret=True), pem(rsa.generate_private_key(65537, 2048))):
        with pytest.raises(ConfigurationError) as raised:
            load_signing_key(data)
        assert raised.value.code == "jwt.key"
    with pytest.raises(ConfigurationError):
        sign_ear(EAR, koblitz)
