"""The certificate of a worker's attested TLS, for tools that can do no more than pin one.

`fetch_pin` takes it from the worker's TLS listener and hands it out only when it leads to a key of
the *verified* keyset. The address that it is fetched from is believed in nothing.
"""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ExtensionNotFound

from cloister.channel.keyset import Keyset
from cloister.errors import AuthenticationError, ConfigurationError, FetchError
from cloister.evidence.component import takes_attested_tls
from cloister.verifier.result import AffirmedAttester

DEFAULT_TLS_PORT: Final = 8443
PIN_PATH: Final = "/tls-certificate"
MAX_PIN_BYTES: Final = 16 * 1024
TIMEOUT_S: Final = 10.0
"""For connecting, and for each read."""
TOTAL_S: Final = 30.0
"""For everything on one connection: whoever answers may be anybody, and dawdle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsAddress:
    """Where attested TLS listens."""

    host: str
    """A DNS name or an IP address, without brackets."""
    port: int

    @classmethod
    def parse(cls, text: str) -> TlsAddress:
        """Read ``HOST[:PORT]``, IPv6 addresses in brackets; ConfigurationError if it is none."""
        host, colon, port = text.rpartition(":")
        if not colon or text.endswith("]"):
            host, port = text, str(DEFAULT_TLS_PORT)
        bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if bracketed else host
        good = port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536
        good = good and host != "" and not any(one in host for one in "/@[] ")
        if not good or (":" in host) is not bracketed:
            raise ConfigurationError(
                "an address of attested TLS is HOST or HOST:PORT", code="tls.address"
            )
        return cls(host=host, port=int(port))

    @classmethod
    def of_host(cls, authority: str) -> TlsAddress:
        """The host of a worker's address (``host[:port]``), at the usual port."""
        host = authority if authority.endswith("]") else authority.rpartition(":")[0] or authority
        return cls.parse(f"{host}:{DEFAULT_TLS_PORT}")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A certificate to pin, of a worker that was verified."""

    pem: bytes
    not_after: datetime
    """When tools stop accepting it by themselves: not after the keyset's own end."""
    verify_again: datetime
    """When the verdict ends that it was handed out on, by the policy's maximum age."""


Connect = Callable[[TlsAddress], socket.socket]


def connect_tcp(address: TlsAddress) -> socket.socket:
    """Connect; OSError when that is not possible."""
    return socket.create_connection((address.host, address.port), timeout=TIMEOUT_S)


def fetch_pin(
    attester: AffirmedAttester,
    address: TlsAddress,
    *,
    at: datetime,
    connect: Connect = connect_tcp,
) -> Pin:
    """Fetch what pins the TLS key of a verified worker, in these steps:

    1. The worker's configuration says that it takes requests over TLS, and its keyset lists a key
       for this host (`aci/1` section 3.1, ``domain``).
    2. A handshake at `address` shows that key: TLS 1.3 proves that whoever answers holds it.
    3. The certificate handed out over that connection is of that key, signed by it, current, and
       ends no later than the keyset.
    4. A client that trusts this certificate alone, as ``curl --cacert`` does, is let in.

    Raises:
        AuthenticationError: one of these does not hold (codes ``tls.…``).
        FetchError: nobody there speaks TLS 1.3.
    """
    keyset = attester.keyset
    if not isinstance(keyset, Keyset):
        raise TypeError("an affirmed attester carries its keyset")
    configuration = attester.claims_document.get("configuration")
    listed = frozenset(
        entry.spki_sha256
        for entry in keyset.tls_public_keys
        if entry.domain is None or entry.domain.lower() == address.host.lower()
    )
    if not isinstance(configuration, dict) or not takes_attested_tls(configuration) or not listed:
        raise AuthenticationError(
            f"the verified worker takes no requests over TLS for {address.host}: its configuration"
            " or its keyset does not say so (`cloister serve --tls-port` switches it on)",
            code="tls.not_listed",
        )
    served = _ask(address, listed, connect)
    pin = _check(served, listed, not_after=keyset.not_after, at=at)
    _try(address, pin, connect)
    return Pin(
        pem=pin.public_bytes(Encoding.PEM),
        not_after=pin.not_valid_after_utc,
        verify_again=min(attester.expires_at, pin.not_valid_after_utc),
    )


def write_pin(pin: Pin, path: Path) -> None:
    """Put the certificate where `path` says, at once or not at all; ConfigurationError if not."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(pin.pem)
                os.fchmod(file.fileno(), 0o644)
            Path(name).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written: {error.strerror or 'unknown reason'}", code="tls.file"
        ) from None


def _ask(address: TlsAddress, listed: frozenset[bytes], connect: Connect) -> bytes:
    """Step 2, and the body of the certificate's address: nothing is asked before the key is."""
    # Trusts no authority, because none vouches for this key: the verified keyset does.
    context = _context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with _connected(address, context, connect) as connection:
        if _shown(connection) not in listed:
            raise AuthenticationError(
                f"whoever answers at {address} has another TLS key than the verified worker:"
                " somebody stands in between, or that is another worker",
                code="tls.other_key",
            )
        return _get(address, connection)


def _shown(connection: ssl.SSLSocket) -> bytes | None:
    """The key that the peer has just proved to hold; None where it is of no kind known here."""
    try:
        return _key_of(x509.load_der_x509_certificate(connection.getpeercert(True) or b""))
    except (ValueError, UnsupportedAlgorithm):
        return None


def _get(address: TlsAddress, connection: ssl.SSLSocket) -> bytes:
    http = HTTPSConnection(address.host, address.port)
    http.sock = connection
    try:
        http.request("GET", PIN_PATH)
        with http.getresponse() as response:
            body = response.read(MAX_PIN_BYTES + 1)
    except (HTTPException, OSError):
        raise _no_certificate(address) from None
    if response.status != 200 or len(body) > MAX_PIN_BYTES:
        raise _no_certificate(address)
    return body


def _no_certificate(address: TlsAddress) -> AuthenticationError:
    return AuthenticationError(
        f"the worker at {address} hands out no certificate to pin", code="tls.certificate"
    )


def _check(
    served: bytes, listed: frozenset[bytes], *, not_after: int, at: datetime
) -> x509.Certificate:
    """Step 3."""
    try:
        (pin,) = x509.load_pem_x509_certificates(served)
        key = _key_of(pin)
        constraints = pin.extensions.get_extension_for_class(x509.BasicConstraints).value
        pin.verify_directly_issued_by(pin)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, ExtensionNotFound):
        raise AuthenticationError(
            "the certificate to pin does not decode, or is not signed by its own key",
            code="tls.certificate",
        ) from None
    if key not in listed or not constraints.ca:
        raise AuthenticationError(
            "the certificate to pin is not one of the verified worker's TLS key",
            code="tls.other_key",
        )
    current = pin.not_valid_before_utc <= at < pin.not_valid_after_utc
    if not current or pin.not_valid_after_utc > datetime.fromtimestamp(not_after, UTC):
        raise AuthenticationError(
            "the certificate to pin is not current, or outlives the verified keyset",
            code="tls.dates",
        )
    return pin


def _try(address: TlsAddress, pin: x509.Certificate, connect: Connect) -> None:
    """Step 4."""
    context = _context()
    context.load_verify_locations(cadata=pin.public_bytes(Encoding.PEM).decode("ascii"))
    try:
        with _connected(address, context, connect):
            return
    except ssl.SSLCertVerificationError as error:
        named = error.verify_code in _NOT_NAMED
        raise AuthenticationError(
            f"the worker's certificate does not name {address.host}: its operator adds that with"
            " `cloister serve --tls-name`, or you use a name that it has"
            if named
            else f"the worker's certificate does not satisfy its own pin (OpenSSL's code"
            f" {error.verify_code})",
            code="tls.name" if named else "tls.certificate",
        ) from None


_NOT_NAMED: Final = (47, 62, 64)
"""Of OpenSSL (``x509_vfy.h``): not in the permitted names, another host, another address."""


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    return context


@contextmanager
def _connected(
    address: TlsAddress, context: ssl.SSLContext, connect: Connect
) -> Iterator[ssl.SSLSocket]:
    try:
        plain = connect(address)
    except (OSError, UnicodeError) as error:  # the latter of names that DNS has no room for
        raise FetchError(
            f"{address} cannot be reached ({type(error).__name__})", code="tls.unreachable"
        ) from None
    with (
        plain,
        context.wrap_socket(
            plain, server_hostname=address.host, do_handshake_on_connect=False
        ) as inside,
        _no_longer_than(TOTAL_S, inside),
    ):
        try:
            inside.do_handshake()
        except ssl.SSLCertVerificationError:
            raise
        except OSError as error:
            raise FetchError(
                f"{address} does not speak TLS 1.3 ({type(error).__name__})", code="tls.handshake"
            ) from None
        yield inside


@contextmanager
def _no_longer_than(seconds: float, connection: ssl.SSLSocket) -> Iterator[None]:
    """Cut `connection` off after `seconds`, in the middle of whatever waits for it."""

    def cut() -> None:
        with suppress(OSError):
            # Not its own method, which would take TLS off under whoever is reading.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _key_of(certificate: x509.Certificate) -> bytes:
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).digest()
