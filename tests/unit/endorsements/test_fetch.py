"""Fetching from services that work, are slow, busy, broken, hostile or gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from email.utils import format_datetime

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements.artefact import (
    MAX_BYTES,
    ArtefactKind,
    ArtefactRequest,
    ak_intermediate,
    amd_chain,
    amd_crl,
    amd_vcek,
    nvidia_rim,
)
from cloister.endorsements.fetch.fetcher import Fetcher, FetcherByKind
from cloister.endorsements.fetch.httpx2_transport import Httpx2Transport
from cloister.endorsements.fetch.retrieve import (
    FetchLimits,
    HostRules,
    Retriever,
    Waiting,
    check_base,
    retry_after,
)
from cloister.endorsements.fetch.transport import HttpAnswer, HttpRequest
from cloister.endorsements.fetch.vendors import Services, vendor_fetcher
from cloister.endorsements.fetch.vtpm import AIA_HOSTS, AkIntermediates
from cloister.endorsements.genuine import check_genuine
from cloister.endorsements.roots import Roots
from cloister.errors import ConfigurationError, FetchError
from cloister.evidence.snp import Product
from support.published import (
    AMD,
    AMD_CHAIN,
    AMD_CRL,
    CHIP,
    INTEL,
    NOW,
    PCK_CRL,
    PCK_CRL_PATH,
    QE_IDENTITY,
    QE_PATH,
    ROOT_CRL,
    ROOTS,
    TCB_INFO,
    TCB_PATH,
    TDX_NEEDS,
    VCEK,
    Issue,
    amd_chain_pem,
    manifest,
    publish_amd,
    rim_answer,
)
from support.vendor_server import Reply, VendorServer, vendor_server

RIM = nvidia_rim("NV_GPU_DRIVER_GH100_550.1")
RIM_PATH = f"/v1/rim/{RIM.key}"


@pytest.fixture
def server() -> Iterator[VendorServer]:
    with vendor_server() as running:
        yield running


class Pauses(list[float]):
    """Records what would have been slept."""

    def waiting(self) -> Waiting:
        return Waiting(sleep=self.append, chance=lambda: 0.5)


def fetcher(
    server: VendorServer,
    *,
    pauses: Pauses | None = None,
    total_s: float = 10.0,
    read_s: float = 10.0,
) -> Fetcher:
    url = server.url
    return vendor_fetcher(
        Httpx2Transport(read_s=read_s),
        services=Services(amd_kds=url, intel_pcs=url, nvidia_rim=url, nvidia_ocsp=url),
        roots=ROOTS,
        limits=FetchLimits(total_s=total_s),
        waiting=(Pauses() if pauses is None else pauses).waiting(),
    )


def refused(server: VendorServer, request: ArtefactRequest = TCB_INFO, **more: float) -> FetchError:
    with pytest.raises(FetchError) as raised:
        fetcher(server, **more).fetch(request, at=NOW)  # type: ignore[arg-type]
    return raised.value


def test_intel(server: VendorServer) -> None:
    issue = Issue()
    issue.publish(server)
    for request in TDX_NEEDS:
        found = fetcher(server).fetch(request, at=NOW)
        check_genuine(found, ROOTS)
        assert found.request == request
        assert found.issued_at == issue.issued
        assert found.valid_until == issue.issued + issue.lasts
        assert found.source.startswith(server.url)
        assert replace(found, source="simulated") == issue.artefact(request)
    assert fetcher(server).fetch(TCB_INFO, at=NOW).number == 19


def test_the_older_name_of_the_header_with_the_chain(server: VendorServer) -> None:
    reply = Issue().tcb_info
    chain = reply.headers["TCB-Info-Issuer-Chain"]
    server.answers[TCB_PATH] = Reply(body=reply.body, headers={"SGX-TCB-Info-Issuer-Chain": chain})
    check_genuine(fetcher(server).fetch(TCB_INFO, at=NOW), ROOTS)


def test_intels_root_list_has_an_address_of_its_own() -> None:
    class Asked:
        url = ""

        def exchange(self, request: HttpRequest, *, limit: int, total_s: float) -> HttpAnswer:
            self.url = request.url
            return HttpAnswer(status=200, headers={}, body=Issue().collateral.root_ca_crl)

    asked = Asked()
    vendor_fetcher(asked, services=Services(), roots=ROOTS).fetch(ROOT_CRL, at=NOW)
    assert asked.url == "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"


def test_amd(server: VendorServer) -> None:
    publish_amd(server)
    for request in (VCEK, AMD_CHAIN, AMD_CRL):
        check_genuine(fetcher(server).fetch(request, at=NOW), ROOTS)
    assert server.asked[0] == (f"/vcek/v1/Milan/{CHIP.hwid.hex()}?" + VCEK.key.partition("?")[2])


def test_amd_for_loaded_keys(server: VendorServer) -> None:
    pem = b"".join(one.public_bytes(Encoding.PEM) for one in (AMD.asvk, AMD.ark))
    server.answers["/vlek/v1/Milan/cert_chain"] = Reply(body=pem)
    server.answers["/vlek/v1/Milan/crl"] = Reply(body=AMD.crl())
    for request in (amd_chain(Product.MILAN, vlek=True), amd_crl(Product.MILAN, vlek=True)):
        check_genuine(fetcher(server).fetch(request, at=NOW), ROOTS)
    server.answers["/vlek/v1/Milan/cert_chain"] = Reply(body=amd_chain_pem())
    assert "is a chain of" in str(refused(server, amd_chain(Product.MILAN, vlek=True)))


def test_turins_address_has_8_bytes_and_the_fmc() -> None:
    request = amd_vcek(Product.TURIN, bytes(range(64)), bytes([1, 2, 3, 4, 0, 0, 0, 255]))
    assert request.key == (
        "Turin/0001020304050607?fmcSPL=01&blSPL=02&teeSPL=03&snpSPL=04&ucodeSPL=255"
    )


def test_nvidias_manifest(server: VendorServer) -> None:
    server.answers[RIM_PATH] = rim_answer(RIM.key, manifest())
    assert fetcher(server).fetch(RIM, at=NOW).data == manifest()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"sha256": "00" * 32}, "SHA-256"),
        ({"id": "NV_GPU_DRIVER_GH100_550.2"}, "another manifest"),
        ({"rim": "AA"}, "base64"),
        ({"rim": None}, "base64"),
    ],
)
def test_a_manifest_that_is_not_the_one(
    server: VendorServer, changed: dict[str, object], says: str
) -> None:
    server.answers[RIM_PATH] = rim_answer(RIM.key, manifest())
    fetcher(server).fetch(RIM, at=NOW)
    server.answers[RIM_PATH] = rim_answer(RIM.key, manifest(), **changed)
    error = refused(server, RIM)
    assert error.code == "fetch.content"
    assert says in str(error)


def garbage() -> Reply:
    return Reply(body=b"garbage", headers=Issue().tcb_info.headers)


def other_chip() -> Reply:
    return Reply(body=AMD.key(hwid=b"\x77" * 64).certificate)


@pytest.mark.parametrize(
    ("request_", "path", "reply", "says"),
    [
        (TCB_INFO, TCB_PATH, garbage, "no signed tcbInfo"),
        (TCB_INFO, TCB_PATH, lambda: Reply(body=Issue().tcb_info.body), "issuer-chain"),
        (TCB_INFO, TCB_PATH, lambda: Issue().qe_identity, "issuer-chain"),
        (QE_IDENTITY, QE_PATH, lambda: Issue().tcb_info, "issuer-chain"),
        (PCK_CRL, PCK_CRL_PATH, lambda: Reply(body=b"\x30\x00"), "issuer-chain"),
        (AMD_CRL, "/vcek/v1/Milan/crl", lambda: Reply(body=b"<html>"), "does not decode"),
        (AMD_CHAIN, "/vcek/v1/Milan/cert_chain", lambda: Reply(body=b""), "PEM"),
        (VCEK, f"/vcek/v1/{VCEK.key}", other_chip, "another chip"),
        (VCEK, f"/vcek/v1/{VCEK.key}", lambda: Reply(body=b"\x30\x82\x00\x00"), "does not decode"),
        (
            AMD_CHAIN,
            "/vcek/v1/Milan/cert_chain",
            lambda: Reply(body=amd_chain_pem() * 2),
            "is a chain of",
        ),
    ],
)
def test_what_is_not_what_was_asked_for(
    server: VendorServer,
    request_: ArtefactRequest,
    path: str,
    reply: Callable[[], Reply],
    says: str,
) -> None:
    server.answers[path] = reply()
    error = refused(server, request_)
    assert error.code == "fetch.content"
    assert says in str(error)


def test_the_tcb_of_another_family(server: VendorServer) -> None:
    made = INTEL.collateral(tcb_info=INTEL.tcb_info(fmspc=bytes(6)))
    body = b'{"tcbInfo":%s,"signature":"%s"}' % (
        made.tcb_info,
        made.tcb_info_signature.hex().encode(),
    )
    server.answers[TCB_PATH] = Reply(body=body, headers=Issue().tcb_info.headers)
    error = refused(server)
    assert (error.code, "about TDX of FMSPC 000000000000" in str(error)) == ("fetch.content", True)


def test_another_ca_s_revocation_list(server: VendorServer) -> None:
    reply = Issue().pck_crl
    server.answers[PCK_CRL_PATH] = reply
    fetcher(server).fetch(PCK_CRL, at=NOW)
    body = Issue().collateral.root_ca_crl
    server.answers[PCK_CRL_PATH] = Reply(body=body, headers=reply.headers)
    assert "Intel SGX Root CA" in str(refused(server, PCK_CRL))


def test_a_service_that_never_answers(server: VendorServer) -> None:
    server.answers[TCB_PATH] = Reply(hangs="silent")
    assert refused(server, read_s=0.2).code == "fetch.timeout"


@pytest.mark.parametrize("manner", ["silent", "drip"])
def test_the_whole_exchange_has_an_end(server: VendorServer, manner: str) -> None:
    server.answers[TCB_PATH] = Reply(hangs=manner)
    error = refused(server, total_s=0.3)
    assert (error.code, str(error)) == ("fetch.timeout", "127.0.0.1 did not answer in time")


def test_a_body_without_end(server: VendorServer) -> None:
    server.answers[TCB_PATH] = Reply(endless=True)
    error = refused(server)
    assert error.code == "fetch.too_large"
    assert str(2 * MAX_BYTES[ArtefactKind.INTEL_TCB_INFO]) in str(error)


def test_a_service_that_is_not_there() -> None:
    with vendor_server() as server:
        pass
    assert refused(server).code == "fetch.unreachable"


def test_an_artefact_that_is_not_there(server: VendorServer) -> None:
    error = refused(server)
    assert error.code == "fetch.status"
    assert "HTTP 404" in str(error)


def test_an_answer_in_disguise(server: VendorServer) -> None:
    reply = Issue().tcb_info
    server.answers[TCB_PATH] = Reply(
        body=reply.body, headers={**reply.headers, "content-encoding": "gzip"}
    )
    assert refused(server).code == "fetch.content"


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_service_is_asked_again_later(server: VendorServer, status: int) -> None:
    server.answers[TCB_PATH] = [Reply(status), Reply(status), Issue().tcb_info]
    pauses = Pauses()
    fetcher(server, pauses=pauses).fetch(TCB_INFO, at=NOW)
    assert pauses == [0.75, 1.5]


def test_a_service_that_stays_busy(server: VendorServer) -> None:
    server.answers[TCB_PATH] = Reply(429)
    pauses = Pauses()
    with pytest.raises(FetchError) as raised:
        fetcher(server, pauses=pauses).fetch(TCB_INFO, at=NOW)
    assert raised.value.code == "fetch.throttled"
    assert (len(server.asked), pauses) == (4, [0.75, 1.5, 3.0])


def test_it_waits_as_long_as_the_service_asks(server: VendorServer) -> None:
    date = format_datetime(NOW + timedelta(seconds=9), usegmt=True)
    server.answers[TCB_PATH] = [
        Reply(429, headers={"retry-after": "7"}),
        Reply(429, headers={"retry-after": date}),
        Issue().tcb_info,
    ]
    pauses = Pauses()
    fetcher(server, pauses=pauses).fetch(TCB_INFO, at=NOW)
    assert pauses == [7.25, 9.5]


def test_it_does_not_wait_for_ever(server: VendorServer) -> None:
    server.answers[TCB_PATH] = Reply(429, headers={"retry-after": "86400"})
    pauses = Pauses()
    with pytest.raises(FetchError) as raised:
        fetcher(server, pauses=pauses).fetch(TCB_INFO, at=NOW)
    assert (raised.value.code, pauses, len(server.asked)) == ("fetch.throttled", [], 1)
    assert "86400 seconds" in str(raised.value)


BEYOND_TIME = ("Mon, 01 Jan 2024 00:00:00 +99999999999999", f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT")


@pytest.mark.parametrize("value", ["soon", "", "-1", "1" * 100, "Wed, 99 Foo", *BEYOND_TIME])
def test_a_wait_that_is_none_is_ignored(value: str) -> None:
    assert retry_after(value, NOW) is None
    assert retry_after("5", NOW) == 5.0


def test_a_redirect_on_the_same_host(server: VendorServer) -> None:
    server.answers[TCB_PATH] = Reply(302, headers={"location": "/elsewhere"})
    server.answers["/elsewhere"] = Issue().tcb_info
    assert fetcher(server).fetch(TCB_INFO, at=NOW).request == TCB_INFO


@pytest.mark.parametrize(
    "location",
    ["https://example.com/x", "//example.com/x", "http://127.0.0.1:1/x", "http://u@{here}/x"],
)
def test_a_redirect_to_another_host(server: VendorServer, location: str) -> None:
    location = location.format(here=server.url.removeprefix("http://"))
    server.answers[TCB_PATH] = Reply(302, headers={"location": location})
    server.answers["/x"] = Issue().tcb_info
    assert refused(server).code == "fetch.redirect"
    assert len(server.asked) == 1


def test_a_question_is_not_sent_on(server: VendorServer) -> None:
    server.answers["/ocsp"] = Reply(307, headers={"location": "/elsewhere"})
    server.answers["/elsewhere"] = Reply(body=b"answer")
    retriever = Retriever(Httpx2Transport(), hosts=HostRules(loopback=True))
    assert retriever.fetch(f"{server.url}/ocsp", limit=100, at=NOW).body == b"answer"
    with pytest.raises(FetchError) as raised:
        retriever.fetch(f"{server.url}/ocsp", limit=100, at=NOW, body=b"question")
    assert raised.value.code == "fetch.redirect"


def test_redirects_without_end(server: VendorServer) -> None:
    server.answers[TCB_PATH] = Reply(307, headers={"location": TCB_PATH})
    assert refused(server).code == "fetch.redirect"
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    "url",
    [
        "http://kdsintf.amd.com/x",
        "https://example.com/x",
        "https://kdsintf.amd.com.example.com/x",
        "https://user@kdsintf.amd.com/x",
        "ftp://kdsintf.amd.com/x",
        "https:///x",
        "https://kdsintf.amd.com:port/x",
        "https://kdsintf.amd.com/\n",
        "https://kdsintf.amd.com/" + "x" * 3000,
    ],
)
def test_addresses_that_are_not_asked(url: str) -> None:
    class Never:
        def exchange(self, request: HttpRequest, *, limit: int, total_s: float) -> HttpAnswer:
            return HttpAnswer(status=200, headers={}, body=b"")

    rules = HostRules(allowed=frozenset({"kdsintf.amd.com"}))
    retriever = Retriever(Never(), hosts=rules)
    assert retriever.fetch("https://kdsintf.amd.com/x", limit=1, at=NOW).status == 200
    with pytest.raises(ConfigurationError) as raised:
        retriever.fetch(url, limit=1, at=NOW)
    assert raised.value.code == "fetch.address"


@pytest.mark.parametrize("url", ["https://x/?q=1", "https://x/#f", "https://u@x", "nothing"])
def test_addresses_of_no_service(url: str) -> None:
    assert check_base("https://x/mirror/") == "https://x/mirror"
    with pytest.raises(ConfigurationError):
        check_base(url)


def test_a_proxy_of_the_environment_is_not_used(
    server: VendorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    Issue().publish(server)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert fetcher(server).fetch(TCB_INFO, at=NOW).request == TCB_INFO


def test_a_proxy_that_was_given_is_used() -> None:
    with vendor_server() as proxy:
        proxy.answers["http://127.0.0.1:1/x"] = Reply(body=b"by proxy")
        transport = Httpx2Transport(proxy=proxy.url)
        answer = transport.exchange(HttpRequest(url="http://127.0.0.1:1/x"), limit=100, total_s=10)
    assert answer.body == b"by proxy"


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://example.com/ca.crt",
        "http://evil-crl.microsoft.com/ca.crt",
        "https://127.0.0.1/ca.crt",
    ],
)
def test_evidence_cannot_choose_any_host(url: str) -> None:
    class Never:
        def exchange(self, request: HttpRequest, *, limit: int, total_s: float) -> HttpAnswer:
            raise AssertionError(request.url)

    aks = AkIntermediates(Retriever(Never(), hosts=AIA_HOSTS), roots=Roots())
    with pytest.raises(ConfigurationError) as raised:
        aks.fetch(ak_intermediate(url, azure=True), at=NOW)
    assert raised.value.code == "fetch.address"


def test_a_kind_without_a_service() -> None:
    with pytest.raises(ConfigurationError):
        FetcherByKind().fetch(TCB_INFO, at=NOW)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (ArtefactKind.AMD_VCEK, "Milan/../../secret"),
        (ArtefactKind.AMD_VCEK, VCEK.key + "&x=1"),
        (ArtefactKind.AMD_CRL, "Milan/vcek/x"),
        (ArtefactKind.INTEL_TCB_INFO, "tdx/90C06F000000/standard"),
        (ArtefactKind.NVIDIA_RIM, "../x"),
        (ArtefactKind.NVIDIA_RIM, "a/b"),
        (ArtefactKind.GCP_AK_INTERMEDIATE, "file:///etc/passwd"),
        (ArtefactKind.GCP_AK_INTERMEDIATE, "https://pki.goog/" + "x" * 600),
    ],
)
def test_keys_have_a_form(kind: ArtefactKind, key: str) -> None:
    assert amd_crl(Product.MILAN).key == "Milan/vcek"
    with pytest.raises(ConfigurationError) as raised:
        ArtefactRequest(kind=kind, key=key)
    assert raised.value.code == "endorsement.key"
