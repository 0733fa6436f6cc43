"""What pins attested TLS is taken from nobody but the verified worker."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloister.channel.keyset import Keyset, TlsKeyEntry
from cloister.client.certificate import (
    MAX_PIN_BYTES,
    Pin,
    TlsAddress,
    fetch_pin,
    write_pin,
)
from cloister.errors import AuthenticationError, CloisterError, ConfigurationError, FetchError
from cloister.verifier.result import AffirmedAttester
from cloister.worker.tls_key import TlsKey, server_context

NAMES = ("localhost", "127.0.0.1")
LIFE_S = 3600


class TlsWorker:
    """The listener of a worker's attested TLS, as far as a certificate is fetched from it."""

    def __init__(self) -> None:
        self.key = TlsKey(NAMES, random=os.urandom)
        self.not_after = int(datetime.now(UTC).timestamp()) + LIFE_S
        now = datetime.now(UTC).timestamp()
        self.certificates = self.key.certificates(now=now, not_after=self.not_after)
        self.served = self.certificates.pin
        self.status = b"200 OK"
        self.asked = 0
        self.drips = False
        """Whether answers come byte by byte, and for ever."""
        self.context = server_context()
        self.key.load(self.context, self.certificates.leaf)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def address(self) -> TlsAddress:
        return TlsAddress(host="127.0.0.1", port=self._listener.getsockname()[1])

    @property
    def attester(self) -> AffirmedAttester:
        keyset = Keyset(
            subject=None,
            not_after=self.not_after,
            receipt_signing_keys=(),
            e2ee_public_keys=(),
            tls_public_keys=(TlsKeyEntry(spki_sha256=self.key.spki_sha256),),
        )
        return AffirmedAttester(
            platform="made up",
            development=True,
            keyset_digest=keyset.digest,
            keyset=keyset,
            claims_document={"configuration": {"worker": {"attested_tls": True}}},
            expires_at=datetime.now(UTC) + timedelta(minutes=5),
        )

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            with plain, contextlib.suppress(OSError):
                plain.settimeout(20)
                with self.context.wrap_socket(plain, server_side=True) as inside:
                    if inside.recv(4096).startswith(b"GET /tls-certificate "):
                        self.asked += 1
                        while self.drips:
                            inside.sendall(b"x")
                            time.sleep(0.02)
                        head = b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n"
                        inside.sendall(head % (self.status, len(self.served)) + self.served)


@pytest.fixture
def worker() -> Iterator[TlsWorker]:
    made = TlsWorker()
    yield made
    made.close()


def fetched(worker: TlsWorker, attester: AffirmedAttester | None = None) -> Pin:
    return fetch_pin(attester or worker.attester, worker.address, at=datetime.now(UTC))


def refused(worker: TlsWorker, attester: AffirmedAttester | None = None) -> str:
    with pytest.raises(AuthenticationError) as caught:
        fetched(worker, attester)
    return caught.value.code


def test_the_certificate_of_the_verified_key_is_taken(worker: TlsWorker) -> None:
    pin = fetched(worker)
    assert pin.pem == worker.certificates.pin
    assert pin.not_after.timestamp() == worker.not_after
    assert pin.verify_again < pin.not_after  # the policy's maximum age


def listing(attester: AffirmedAttester, *entries: TlsKeyEntry) -> AffirmedAttester:
    assert isinstance(attester.keyset, Keyset)
    return dataclasses.replace(
        attester, keyset=dataclasses.replace(attester.keyset, tls_public_keys=entries)
    )


def test_a_key_for_another_host_is_none_for_this(worker: TlsWorker) -> None:
    key = worker.key.spki_sha256
    here = TlsKeyEntry(spki_sha256=key, domain="127.0.0.1")
    assert fetched(worker, listing(worker.attester, here)).pem
    elsewhere = TlsKeyEntry(spki_sha256=key, domain="other.example")
    assert refused(worker, listing(worker.attester, elsewhere)) == "tls.not_listed"
    # One key of ours for elsewhere, another's for here: neither is the one that is shown.
    other = TlsKeyEntry(spki_sha256=bytes(32), domain="127.0.0.1")
    assert refused(worker, listing(worker.attester, elsewhere, other)) == "tls.other_key"


def test_nothing_is_asked_of_whoever_has_another_key(worker: TlsWorker) -> None:
    assert fetched(worker).pem
    asked = worker.asked
    other = TlsKeyEntry(spki_sha256=bytes(32))
    assert refused(worker, listing(worker.attester, other)) == "tls.other_key"
    assert worker.asked == asked


@pytest.mark.parametrize("said", [{}, {"worker": {}}, {"worker": {"attested_tls": 1}}, None])
def test_the_configuration_has_to_say_so(worker: TlsWorker, said: object) -> None:
    assert fetched(worker).pem
    silent = dataclasses.replace(worker.attester, claims_document={"configuration": said})
    assert refused(worker, silent) == "tls.not_listed"


def test_a_certificate_of_another_key_is_not_taken(worker: TlsWorker) -> None:
    assert fetched(worker).pem
    other = TlsKey(NAMES, random=os.urandom)
    now = datetime.now(UTC).timestamp()
    worker.served = other.certificates(now=now, not_after=worker.not_after).pin
    assert refused(worker) == "tls.other_key"


def test_the_leaf_is_no_pin(worker: TlsWorker) -> None:
    worker.served = worker.certificates.leaf
    assert refused(worker) == "tls.certificate"


def test_one_certificate_and_nothing_else(worker: TlsWorker) -> None:
    good = worker.certificates.pin
    other = TlsKey(NAMES, random=os.urandom)
    now = datetime.now(UTC).timestamp()
    stranger = other.certificates(now=now, not_after=worker.not_after).pin
    for served in (b"", b"no certificate", good + stranger, stranger + good, good * 2):
        worker.served = served
        assert refused(worker) == "tls.certificate"
    worker.served = good + b"\n# and a word behind it\n"
    assert fetched(worker).pem == good
    worker.served = good + b" " * MAX_PIN_BYTES
    assert refused(worker) == "tls.certificate"
    worker.served, worker.status = good, b"404 Not Found"
    assert refused(worker) == "tls.certificate"


@pytest.mark.parametrize(
    ("since", "until"), [(0, 1), (-7200, -1), (600, 0)], ids=["outlives", "expired", "not yet"]
)
def test_dates_that_are_not_those_of_the_keyset(worker: TlsWorker, since: int, until: int) -> None:
    assert fetched(worker).pem
    now = datetime.now(UTC).timestamp()
    end = worker.not_after + until if until >= 0 else int(now) - 60
    worker.served = worker.key.certificates(now=now + since, not_after=end).pin
    assert refused(worker) == "tls.dates"


def test_a_pin_that_would_not_let_anybody_in_is_not_taken(worker: TlsWorker) -> None:
    assert fetched(worker).pem
    # The same key, but under the name of another: what the listener shows leads elsewhere.
    twin = TlsKey(NAMES, random=os.urandom)
    twin._private, twin._key_id = worker.key._private, worker.key._key_id
    now = datetime.now(UTC).timestamp()
    worker.served = twin.certificates(now=now, not_after=worker.not_after).pin
    assert refused(worker) == "tls.certificate"


def test_whoever_dawdles_is_given_up(worker: TlsWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetched(worker).pem
    monkeypatch.setattr("cloister.client.certificate.TOTAL_S", 2.0)  # enough for a handshake
    worker.drips = True
    assert refused(worker) == "tls.certificate"


def test_older_versions_are_not_spoken(worker: TlsWorker) -> None:
    assert fetched(worker).pem
    older = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    worker.key.load(older, worker.certificates.leaf)
    worker.context = older
    with pytest.raises(CloisterError) as caught:
        fetched(worker)
    assert caught.value.code == "tls.handshake"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("worker.example", "worker.example", 8443),
        ("worker.example:1", "worker.example", 1),
        ("192.0.2.7:65535", "192.0.2.7", 65535),
        ("[2001:db8::7]", "2001:db8::7", 8443),
        ("[2001:db8::7]:99", "2001:db8::7", 99),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    address = TlsAddress.parse(text)
    assert (address.host, address.port) == (host, port)
    assert TlsAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["", ":1", "host:", "host:0", "host:65536", "host:x", "::1", "2001:db8::7:443", "a/b:1"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        TlsAddress.parse(text)
    assert caught.value.code == "tls.address"


@pytest.mark.parametrize(
    ("authority", "expected"),
    [
        ("worker.example", "worker.example:8443"),
        ("worker.example:8440", "worker.example:8443"),
        ("[::1]:8440", "[::1]:8443"),
        ("[::1]", "[::1]:8443"),
    ],
)
def test_the_usual_address_is_on_the_workers_own_host(authority: str, expected: str) -> None:
    assert str(TlsAddress.of_host(authority)) == expected


def test_a_file_is_written_whole_or_not_at_all(worker: TlsWorker, tmp_path: Path) -> None:
    pin = fetched(worker)
    write_pin(pin, tmp_path / "pin.pem")
    assert (tmp_path / "pin.pem").read_bytes() == pin.pem
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_text("x")
    with pytest.raises(ConfigurationError):
        write_pin(pin, tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pin.pem"]


def test_whoever_asks_may_read_the_file_and_no_link_is_followed(
    worker: TlsWorker, tmp_path: Path
) -> None:
    path, elsewhere = tmp_path / "pin.pem", tmp_path / "elsewhere"
    elsewhere.write_text("somebody else's")
    path.symlink_to(elsewhere)
    mask = os.umask(0o077)
    try:
        write_pin(fetched(worker), path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o644
    assert elsewhere.read_text() == "somebody else's"


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example"])
def test_a_name_that_dns_has_no_room_for_cannot_be_reached(worker: TlsWorker, host: str) -> None:
    address = TlsAddress(host=host, port=worker.address.port)
    with pytest.raises(FetchError) as caught:
        fetch_pin(worker.attester, address, at=datetime.now(UTC))
    assert caught.value.code == "tls.unreachable"
