"""Azure's paravisor TPM and metadata service, simulated."""

from __future__ import annotations

import base64
import http.server
import json
import struct
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.attester import azure, metadata
from cloister.attester.azure import AzureAttester, read_hcl_report, refresh_hcl_report
from cloister.attester.metadata import LinkLocalService, fetch_td_quote, fetch_vcek_chain
from cloister.attester.tpm_errors import TpmError
from cloister.errors import FetchError, UnsupportedError
from cloister.evidence.items import (
    ITEM_AZURE_HCL_REPORT,
    ITEM_AZURE_PCRS,
    ITEM_AZURE_QUOTE,
    ITEM_AZURE_SIGNATURE,
    ITEM_AZURE_TD_QUOTE,
)
from cloister.evidence.pcrs import parse_pcrs_json
from cloister.evidence.report import ITEM_EVENT_LOG
from cloister.evidence.tpm import Alg, parse_quote
from support.fake_tpm import FakeTpm

DIGEST = bytes(range(32))
TD_REPORT = b"\x81 a TD report".ljust(1024, b"r")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def hcl_report(kind: int, user_data: bytes = bytes(64), hardware: bytes = b"\x81") -> bytes:
    key = {"kid": "HCLAkPub", "kty": "RSA", "n": "AQAB", "e": "AQAB"}
    runtime = json.dumps(
        {"keys": [key], "vm-configuration": {}, "user-data": user_data.hex().upper()}
    ).encode()
    used = 32 + 1184 + 20 + len(runtime)
    head = b"HCLA" + struct.pack("<4I12x", 1, used, 2, 0)
    info = struct.pack("<5I", 20 + len(runtime), 1, kind, 1, len(runtime))
    return (head + hardware.ljust(1184, b"\0") + info + runtime).ljust(2600, b"\0")


def certificate(name: str) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )


CHAIN = tuple(certificate(name) for name in ("VCEK", "ASK", "ARK"))
PEM = [entry.public_bytes(Encoding.PEM).decode() for entry in CHAIN]
DER = [entry.public_bytes(Encoding.DER) for entry in CHAIN]


class Service:
    """The metadata service; `answers` overrides what it says."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.answers: dict[str, bytes] = {}

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        self.requests.append((method, path))
        if path in self.answers:
            return self.answers[path]
        if path == metadata.CERTIFICATION:
            return json.dumps(
                {"vcekCert": PEM[0], "tcbm": "00", "certificateChain": PEM[1] + PEM[2]}
            ).encode()
        assert body is not None
        report = json.loads(body)["report"]
        assert "=" not in report
        raw = base64.urlsafe_b64decode(report + "==")
        quote = base64.urlsafe_b64encode(b"quote over " + raw).rstrip(b"=").decode()
        return json.dumps({"quote": quote}).encode()


def machine(kind: int = 2) -> tuple[FakeTpm, Service, AzureAttester]:
    tpm, service = FakeTpm(), Service()
    tpm.nv[azure.HCL_REPORT_INDEX] = hcl_report(kind)
    return tpm, service, AzureAttester(tpm, service=service, event_log=b"log")


def test_an_snp_machine_quotes_and_brings_the_chips_certificates() -> None:
    tpm, _, attester = machine()
    tpm.nv[azure.AK_CERTIFICATE_INDEX] = DER[0] + bytes(100)
    items = attester.quote(DIGEST)
    quote = items[ITEM_AZURE_QUOTE]
    assert parse_quote(quote.data).extra_data == DIGEST
    assert [entry.data for entry in quote.endorsements] == [DER[0]]
    tpm.key.public_key().verify(
        items[ITEM_AZURE_SIGNATURE].data, quote.data, padding.PKCS1v15(), hashes.SHA256()
    )
    assert parse_pcrs_json(items[ITEM_AZURE_PCRS].data) == {Alg.SHA256: tpm.registers}
    assert items[ITEM_AZURE_HCL_REPORT].data == tpm.nv[azure.HCL_REPORT_INDEX]
    assert [entry.data for entry in items[ITEM_AZURE_HCL_REPORT].endorsements] == DER
    assert items[ITEM_EVENT_LOG].data == b"log"
    assert ITEM_AZURE_TD_QUOTE not in items
    assert tpm.handles == [azure.AK_HANDLE]


def test_a_tdx_machine_has_its_report_signed() -> None:
    tpm, _, attester = machine(4)
    tpm.nv[azure.HCL_REPORT_INDEX] = hcl_report(4, hardware=TD_REPORT)
    items = attester.quote(DIGEST)
    assert items[ITEM_AZURE_TD_QUOTE].data == b"quote over " + TD_REPORT
    assert items[ITEM_AZURE_HCL_REPORT].endorsements == ()


def test_the_service_is_asked_once_per_hardware_report() -> None:
    tpm, service, attester = machine()
    attester.quote(DIGEST)
    attester.quote(bytes(32))
    assert service.requests == [("GET", metadata.CERTIFICATION)]
    tpm.nv[azure.HCL_REPORT_INDEX] = hcl_report(2, hardware=b"another firmware")
    attester.quote(DIGEST)
    assert len(service.requests) == 2


def test_a_tpm_without_hcl_report_is_no_confidential_machine() -> None:
    tpm, _, attester = machine()
    del tpm.nv[azure.HCL_REPORT_INDEX]
    with pytest.raises(UnsupportedError, match="not on this machine"):
        attester.quote(DIGEST)


def test_a_tpm_that_refuses_otherwise_is_told_apart() -> None:
    class Refusing(FakeTpm):
        def nv_read(self, index: int) -> bytes:
            raise TpmError.from_response("TPM2_NV_READ", 0x12F)

    with pytest.raises(TpmError):
        read_hcl_report(Refusing())


def test_a_signature_of_another_scheme_is_refused() -> None:
    tpm, _, attester = machine()
    assert attester.quote(DIGEST)
    tpm.scheme = int(Alg.RSAPSS)
    with pytest.raises(FetchError, match="RSASSA"):
        attester.quote(DIGEST)
    tpm.scheme, tpm.hash_algorithm = int(Alg.RSASSA), int(Alg.SHA384)
    with pytest.raises(FetchError, match="SHA-256"):
        attester.quote(DIGEST)


@pytest.mark.parametrize("report", [b"", b"HCLB" + hcl_report(2)[4:], hcl_report(3)])
def test_what_is_no_hcl_report_is_refused(report: bytes) -> None:
    tpm, _, attester = machine()
    assert attester.quote(DIGEST)
    tpm.nv[azure.HCL_REPORT_INDEX] = report
    with pytest.raises(FetchError, match="no report") as caught:
        attester.quote(DIGEST)
    assert caught.value.code == "device.answer"


def test_the_platform_is_named_by_its_hardware() -> None:
    tpm, _, _ = machine(4)
    _, report = read_hcl_report(tpm)
    assert azure.TEE_TYPES[report.hardware_type] == "azure-tdx"


class Paravisor(FakeTpm):
    """Makes a new report a few reads after new user data were written."""

    def __init__(self, reads: int) -> None:
        super().__init__()
        self.reads = reads
        self.nv[azure.HCL_REPORT_INDEX] = hcl_report(2)

    def nv_read(self, index: int) -> bytes:
        if index == azure.HCL_REPORT_INDEX and azure.USER_DATA_INDEX in self.nv:
            self.reads -= 1
            if self.reads <= 0:
                self.nv[index] = hcl_report(2, self.nv[azure.USER_DATA_INDEX])
        return super().nv_read(index)


def test_a_new_report_is_waited_for() -> None:
    tpm = Paravisor(3)
    pauses: list[float] = []
    for user_data in (DIGEST, b"more"):  # the index is made by the first
        tpm.reads = 3
        _, report = refresh_hcl_report(tpm, user_data, pause=pauses.append)
        assert report.runtime.user_data == user_data.ljust(64, b"\0").hex().upper()
    assert len(pauses) == 6


def test_a_report_that_does_not_come_is_given_up() -> None:
    with pytest.raises(FetchError) as caught:
        refresh_hcl_report(Paravisor(1000), DIGEST, pause=lambda _: None)
    assert caught.value.code == "device.timeout"


def test_user_data_has_at_most_64_bytes() -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        refresh_hcl_report(Paravisor(1), bytes(65), pause=lambda _: None)


def test_other_refusals_to_write_stay() -> None:
    class Locked(Paravisor):
        def nv_write(self, index: int, data: bytes) -> None:
            raise TpmError.from_response("TPM2_NV_WRITE", 0x148)

    tpm = Locked(1)
    with pytest.raises(TpmError):
        refresh_hcl_report(tpm, DIGEST, pause=lambda _: None)
    assert azure.USER_DATA_INDEX not in tpm.nv


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"{}",
        b'{"vcekCert": 1, "certificateChain": ""}',
        json.dumps({"vcekCert": PEM[0], "certificateChain": "none"}).encode(),
        json.dumps({"vcekCert": PEM[0], "certificateChain": PEM[1] * 5}).encode(),
    ],
)
def test_certificates_that_are_none_are_refused(answer: bytes) -> None:
    service = Service()
    assert fetch_vcek_chain(service) == tuple(DER)
    service.answers[metadata.CERTIFICATION] = json.dumps(
        {"vcekCert": PEM[0], "certificateChain": PEM[1] * 4}
    ).encode()
    assert len(fetch_vcek_chain(service)) == metadata.MAX_CHAIN
    service.answers[metadata.CERTIFICATION] = answer
    with pytest.raises(FetchError) as caught:
        fetch_vcek_chain(service)
    assert caught.value.code == "device.answer"


@pytest.mark.parametrize(
    "answer", [b"", b"{}", b'{"quote": 1}', b'{"quote": ""}', b'{"quote": "*"}', b'{"quote":"a"}']
)
def test_a_td_quote_that_is_none_is_refused(answer: bytes) -> None:
    service = Service()
    assert fetch_td_quote(service, bytes(1024)) == b"quote over " + bytes(1024)
    service.answers[metadata.TD_QUOTE] = answer
    with pytest.raises(FetchError) as caught:
        fetch_td_quote(service, bytes(1024))
    assert caught.value.code == "device.answer"


def test_a_td_report_has_1024_bytes() -> None:
    with pytest.raises(ValueError, match="1024 bytes"):
        fetch_td_quote(Service(), bytes(1023))


class Answers(http.server.BaseHTTPRequestHandler):
    status: ClassVar[int] = 200
    body: ClassVar[bytes] = b"{}"
    seen: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Metadata")))
        self.send_response(self.status)
        if self.status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[LinkLocalService]:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")
    monkeypatch.setattr(Answers, "seen", [])
    server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield LinkLocalService(address="127.0.0.1", port=server.server_port, timeout_s=5)
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_service_is_asked_directly_with_its_header(service: LinkLocalService) -> None:
    assert service.request("GET", "/path") == b"{}"
    assert Answers.seen == [("/path", "true")]


@pytest.mark.parametrize("status", [302, 404, 429, 500])
def test_only_status_200_is_an_answer(
    service: LinkLocalService, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answers, "status", status)
    with pytest.raises(FetchError, match=str(status)) as caught:
        service.request("GET", "/path")
    assert caught.value.code == "device.io"
    assert len(Answers.seen) == 1


def test_answers_are_bounded(service: LinkLocalService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "MAX_RESPONSE_BYTES", 10)
    monkeypatch.setattr(Answers, "body", b"x" * 10)
    assert service.request("GET", "/path") == b"x" * 10
    monkeypatch.setattr(Answers, "body", b"x" * 11)
    with pytest.raises(FetchError) as caught:
        service.request("GET", "/path")
    assert caught.value.code == "device.answer"


def test_a_service_that_does_not_answer_is_given_up() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        service = LinkLocalService(
            address="127.0.0.1", port=silent.getsockname()[1], timeout_s=0.05
        )
        with pytest.raises(FetchError) as caught:
            service.request("GET", "/path")
        assert caught.value.code == "device.timeout"


def test_no_service_is_told_apart() -> None:
    import socket

    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # and does not listen
        service = LinkLocalService(address="127.0.0.1", port=reserved.getsockname()[1])
        with pytest.raises(FetchError) as caught:
            service.request("GET", "/path")
    assert caught.value.code == "device.io"


def test_the_address_is_the_link_local_one() -> None:
    assert (LinkLocalService().address, LinkLocalService().port) == ("169.254.169.254", 80)
