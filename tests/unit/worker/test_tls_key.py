"""The key of attested TLS and its two certificates."""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import os
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from cloister.channel.keyset import parse_keyset
from cloister.errors import ConfigurationError
from cloister.evidence.component import takes_attested_tls
from cloister.testing.fake_engine import FakeEngine
from cloister.worker.configuration import effective_configuration, settings_of
from cloister.worker.keys import KeyRing
from cloister.worker.operation import Operation
from cloister.worker.serve import tls_key_of
from cloister.worker.settings import Clocks, KeySettings, WorkerSettings
from cloister.worker.tls_key import TlsKey, server_context

NAMES = ("worker.example", "192.0.2.7", "2001:db8::7")
NOW = 1_800_000_000


def made(*names: str) -> tuple[TlsKey, x509.Certificate, x509.Certificate]:
    key = TlsKey(names or NAMES, random=os.urandom)
    certificates = key.certificates(now=NOW, not_after=NOW + 4200)
    pin, leaf = map(x509.load_pem_x509_certificate, (certificates.pin, certificates.leaf))
    return key, pin, leaf


def extension(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> x509.Extension:  # type: ignore[type-arg]  # of whichever kind
    return certificate.extensions.get_extension_for_class(kind)


def test_both_are_of_one_key_and_the_pin_vouches_for_both() -> None:
    key, pin, leaf = made()
    assert pin.public_key() == leaf.public_key()
    pin.verify_directly_issued_by(pin)
    leaf.verify_directly_issued_by(pin)
    assert leaf.subject != pin.subject  # or it would be one that signed itself, and another one
    assert pin.serial_number != leaf.serial_number
    assert key.spki_sha256.hex()[:32] in pin.subject.rfc4514_string()


def test_they_end_with_the_keyset() -> None:
    _, pin, leaf = made()
    for certificate in (pin, leaf):
        assert certificate.not_valid_after_utc == datetime.fromtimestamp(NOW + 4200, UTC)
        assert certificate.not_valid_before_utc == datetime.fromtimestamp(NOW - 300, UTC)


def test_the_leaf_names_what_it_is_for_and_can_sign_no_certificate() -> None:
    _, _, leaf = made()
    names = extension(leaf, x509.SubjectAlternativeName).value
    assert isinstance(names, x509.SubjectAlternativeName)
    assert names.get_values_for_type(x509.DNSName) == ["worker.example"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("192.0.2.7"),
        ipaddress.ip_address("2001:db8::7"),
    ]
    constraints = extension(leaf, x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca) == (True, False)
    assert extension(leaf, x509.KeyUsage).value.key_cert_sign is False


def test_the_pin_can_vouch_for_nobody_but_the_names() -> None:
    for names in (NAMES, ("worker.example",), ("192.0.2.7",)):
        _, pin, _ = made(*names)
        constraints = extension(pin, x509.BasicConstraints)
        assert constraints.critical
        assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
        usage = extension(pin, x509.KeyUsage).value
        assert (usage.key_cert_sign, usage.digital_signature) == (True, False)
        purposes = extension(pin, x509.ExtendedKeyUsage).value
        assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]
        permitted = extension(pin, x509.NameConstraints)
        assert permitted.critical
        # A kind of name that is not constrained would be free.
        kinds = {type(name) for name in permitted.value.permitted_subtrees}
        assert kinds == {x509.DNSName, x509.IPAddress}


@pytest.mark.parametrize("names", [("127.0.0.1",), ("localhost",)])
def test_openssl_holds_the_pin_to_its_names(names: tuple[str, ...], tmp_path: Path) -> None:
    """A leaf for others, signed by the same key under the pin's name, is refused."""
    key = TlsKey(names, random=os.urandom)
    now = datetime.now(UTC).timestamp()
    honest = key.certificates(now=now, not_after=int(now) + 100)
    stolen = TlsKey(("localhost", "127.0.0.1"), random=os.urandom)
    stolen._private, stolen._key_id = key._private, key._key_id
    stolen.spki_sha256 = key.spki_sha256
    forged = stolen.certificates(now=now, not_after=int(now) + 100)
    other = "localhost" if names == ("127.0.0.1",) else "127.0.0.1"
    assert _handshake(key, honest.leaf, honest.pin, names[0]) is None
    assert _handshake(stolen, forged.leaf, forged.pin, other) is None
    assert _handshake(stolen, forged.leaf, honest.pin, other) == 47  # permitted names are others


def _handshake(key: TlsKey, leaf: bytes, pin: bytes, host: str) -> int | None:
    """OpenSSL's verdict of a client that trusts `pin`, in memory; None where it is let in."""
    server, client = server_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    key.load(server, leaf)
    client.load_verify_locations(cadata=pin.decode())
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python does from 3.13 on
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=host)
    two = server.wrap_bio(to_server, to_client, server_side=True)
    try:
        for _ in range(4):
            for side in (one, two):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLCertVerificationError as error:
        return error.verify_code
    assert one.version() == "TLSv1.3"
    return None


def test_the_private_key_shows_nowhere_and_leaves_no_file() -> None:
    key, _, leaf = made()
    before = _open_files()
    with contextlib.closing(os.fdopen(os.memfd_create("probe"), "wb")):
        assert len(_open_files()) == len(before) + 1
    key.load(server_context(), leaf.public_bytes(Encoding.PEM))
    gc.collect()
    assert _open_files() <= before
    private = key._private
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    secret = f"{private.private_numbers().private_value:x}"
    assert secret not in repr(key)


def _open_files() -> set[Path]:
    """Those of this process that are files in memory."""
    found = set()
    for link in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # the one that listed them is gone by now
            if "memfd" in str(link.readlink()):
                found.add(link)
    return found


def test_a_leaf_of_another_key_is_not_loaded() -> None:
    key, _, _ = made()
    _, _, other = made()
    with pytest.raises(OSError, match="KEY_VALUES_MISMATCH"):
        key.load(server_context(), other.public_bytes(Encoding.PEM))


def test_every_keyset_lists_the_key_and_has_certificates_of_its_own() -> None:
    class Turned:
        wall, steady = float(NOW), 50.0

    key = TlsKey(NAMES, random=os.urandom)
    ring = KeyRing(
        subject="cloister:sha256:" + "0" * 64,
        settings=KeySettings(),
        clocks=Clocks(wall=lambda: Turned.wall, steady=lambda: Turned.steady),
        random=os.urandom,
        tls_key=key,
    )
    seen = set()
    for _ in range(3):
        generation = ring.current
        (entry,) = parse_keyset(generation.keyset.to_json()).tls_public_keys
        assert (entry.spki_sha256, entry.domain) == (key.spki_sha256, None)
        assert generation.certificates is not None
        pin = x509.load_pem_x509_certificate(generation.certificates.pin)
        assert pin.not_valid_after_utc.timestamp() == generation.keyset.not_after
        seen.add(pin.serial_number)
        Turned.wall += 3600
        Turned.steady += 3600
    assert len(seen) == 3


# What the operator says


@pytest.mark.parametrize("measured", [True, False])
def test_what_was_measured_and_what_the_operator_says_have_to_agree(*, measured: bool) -> None:
    settings = WorkerSettings(attested_tls=measured)
    agreed = tls_key_of(settings, Operation(tls_port=0 if measured else None))
    assert (agreed is not None) is measured
    with pytest.raises(ConfigurationError) as caught:
        tls_key_of(settings, Operation(tls_port=None if measured else 0))
    assert caught.value.code == "configuration.tls"


def test_it_is_measured_and_read_back() -> None:
    for on in (True, False):
        described = effective_configuration([FakeEngine()], WorkerSettings(attested_tls=on))
        assert takes_attested_tls(described) is on
        assert settings_of(described).attested_tls is on
    worker = described["worker"]
    assert isinstance(worker, dict)
    for value in (None, 1, "true"):
        with pytest.raises(ConfigurationError):
            settings_of({**described, "worker": {**worker, "attested_tls": value}})


def test_names_are_those_of_the_address_and_the_operators() -> None:
    def names(host: str, *others: str) -> tuple[str, ...]:
        return Operation(host=host, tls_names=others).certificate_names

    assert names("127.0.0.1") == ("localhost", "127.0.0.1")
    assert names("192.0.2.7") == ("192.0.2.7",)
    assert names("192.0.2.7", "llm.example", "192.0.2.7") == ("192.0.2.7", "llm.example")
    assert names("0.0.0.0", "llm.example") == ("llm.example",)
    for anywhere in ("0.0.0.0", "::", "fe80::1%eth0"):
        with pytest.raises(ConfigurationError) as caught:
            names(anywhere)
        assert caught.value.code == "configuration.tls_names"


@pytest.mark.parametrize(
    "name", ["*.example", "a b", "", "-a.example", "a..b", "a/b", "fe80::1%eth0", "ä.example"]
)
def test_what_is_no_name_is_refused(name: str) -> None:
    assert Operation(tls_names=("good.example",)).tls_names
    with pytest.raises(ConfigurationError) as caught:
        Operation(tls_names=(name,))
    assert caught.value.code == "configuration.tls_names"


def test_the_operators_settings_are_passed_on() -> None:
    operation = Operation(tls_port=8443, tls_names=("a.example", "192.0.2.7"))
    assert Operation.from_json(operation.to_json()) == operation
    assert Operation.from_json(Operation().to_json()).tls_port is None
    with pytest.raises(ConfigurationError):
        Operation.from_json({**operation.to_json(), "tls_names": [1]})
