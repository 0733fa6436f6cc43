"""What stock clients open: by another implementation, and with the additional data of theirs.

Their client decodes the protected header into a record (``alg``, ``enc``, a sorted map of the rest)
and encodes that again for the additional data. `theirs` does what it does.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from joserfc import jwe
from joserfc.jwk import ECKey, RSAKey

from cloister.broker.stock_jwe import ECDH, RSA_OAEP, seal_jwe
from cloister.errors import MalformedError

SECRET = b"a secret of some length"
CURVES: dict[str, Any] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}
KEYS: dict[str, Any] = {
    name: ECKey.import_key(ec.generate_private_key(c)) for name, c in CURVES.items()
}
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
KEYS["RSA"] = RSAKey.import_key(RSA_KEY)


def public(name: str, **changes: Any) -> dict[str, Any]:
    alg = RSA_OAEP if name == "RSA" else ECDH
    return {**KEYS[name].as_dict(private=False), "alg": alg, **changes}


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def sealed(name: str) -> dict[str, str]:
    parts: dict[str, str] = json.loads(seal_jwe(SECRET, public(name)))
    assert list(parts) == ["protected", "encrypted_key", "iv", "ciphertext", "tag"]
    return parts


@pytest.mark.parametrize("name", KEYS)
def test_another_implementation_opens_it(name: str) -> None:
    parts = sealed(name)
    algorithms = [RSA_OAEP, ECDH, "A256GCM"]
    assert jwe.decrypt_json(parts, KEYS[name], algorithms=algorithms).plaintext == SECRET  # type: ignore[arg-type]
    assert sealed(name)["ciphertext"] != parts["ciphertext"]
    with pytest.raises(Exception, match=r"."):
        jwe.decrypt_json({**parts, "tag": parts["iv"]}, KEYS[name], algorithms=algorithms)  # type: ignore[arg-type]


def written_again(protected: str) -> str:
    """As a client encodes the header that it decoded."""
    header = json.loads(decoded(protected))
    ordered = {"alg": header.pop("alg"), "enc": header.pop("enc")}
    ordered |= json.loads(json.dumps(header, sort_keys=True))
    made = json.dumps(ordered, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(made).rstrip(b"=").decode()


@pytest.mark.parametrize("name", KEYS)
def test_the_header_is_the_one_that_clients_write(name: str) -> None:
    protected = sealed(name)["protected"]
    assert written_again(protected) == protected
    if name != "RSA":
        assert list(json.loads(decoded(protected))["epk"]) == ["crv", "kty", "x", "y"]
        assert json.loads(decoded(protected))["epk"]["crv"] == name


def test_a_client_opens_it_with_the_header_written_again() -> None:
    parts = sealed("RSA")
    oaep = padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)
    content_key = RSA_KEY.decrypt(decoded(parts["encrypted_key"]), oaep)
    iv, box = decoded(parts["iv"]), decoded(parts["ciphertext"]) + decoded(parts["tag"])
    aad = written_again(parts["protected"]).encode()
    assert AESGCM(content_key).decrypt(iv, box, aad) == SECRET
    with pytest.raises(InvalidTag):
        AESGCM(content_key).decrypt(iv, box, b"")


def padded(coordinate: str) -> str:
    """The same number in one octet more, which theirs reads as none."""
    return base64.urlsafe_b64encode(b"\0" + decoded(coordinate)).rstrip(b"=").decode()


def even(modulus: str) -> str:
    """A number that is no product of odd primes."""
    number = bytearray(decoded(modulus))
    number[-1] &= 0xFE
    return base64.urlsafe_b64encode(number).rstrip(b"=").decode()


P256 = public("P-256")
NO_KEYS = {
    "an algorithm of PKCS #1": public("RSA", alg="RSA1_5"),
    "no algorithm": public("RSA", alg=None),
    "a curve that is none": public("P-256", crv="P-257"),
    "another curve": public("P-256", crv="P-521"),
    "another point": public("P-256", y=P256["x"]),
    "a short coordinate": public("P-256", x="AA"),
    "a long coordinate": public("P-256", x=padded(P256["x"])),
    "no coordinate": {n: v for n, v in P256.items() if n != "y"},
    "a number": public("P-256", x=1),
    "no base64": public("P-256", x="*" * 43),
    "another kind": public("P-256", kty="OKP"),
    "another kind of RSA": public("RSA", kty="EC"),
    "a small modulus": public("RSA", n="AQAB"),
    "a large modulus": public("RSA", n="_" * 1400),
    "an even modulus": public("RSA", n=even(public("RSA")["n"])),
    "an even exponent": public("RSA", e="Ag"),
}


@pytest.mark.parametrize("name", NO_KEYS)
def test_what_is_no_key_is_refused(name: str) -> None:
    assert seal_jwe(SECRET, P256)
    assert seal_jwe(SECRET, public("RSA"))
    with pytest.raises(MalformedError):
        seal_jwe(SECRET, NO_KEYS[name])
