"""OCSP: which answers are to be believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from cloister.endorsements.artefact import ArtefactRequest, nvidia_ocsp
from cloister.endorsements.cache import EndorsementCache
from cloister.endorsements.contents import make_artefact
from cloister.endorsements.fetch.nvidia import NvidiaOcsp
from cloister.endorsements.fetch.retrieve import HostRules, Retriever
from cloister.endorsements.fetch.transport import HttpAnswer, HttpRequest
from cloister.endorsements.genuine import check_genuine
from cloister.endorsements.ocsp import (
    MAX_RESPONDERS,
    CertificateStatus,
    build_question,
    check_answer,
    parse_ocsp,
)
from cloister.errors import (
    AuthenticationError,
    CloisterError,
    ConfigurationError,
    FetchError,
    MalformedError,
)
from support.certificates import Party, issue
from support.ocsp import (
    DAY,
    DEVICE,
    HOUR,
    ISSUER,
    OTHER,
    OTHER_USE,
    RESPONDER,
    SIGNING,
    STRANGER,
    answer,
    tampered,
)
from support.published import NOW, NVIDIA, ROOTS


def check(
    data: bytes, *, at: datetime = NOW, nonce: bytes | None = None, authority: Party | None = None
) -> CertificateStatus:
    return check_answer(
        data,
        DEVICE.certificate,
        ISSUER.certificate,
        at=at,
        nonce=nonce,
        authorities=() if authority is None else (authority.certificate,),
    ).status


@pytest.mark.parametrize("named_by", list(ocsp.OCSPResponderEncoding))
@pytest.mark.parametrize("signer", [ISSUER, RESPONDER])
def test_good(signer: Party, named_by: ocsp.OCSPResponderEncoding) -> None:
    assert check(answer(signer, named_by=named_by)) is CertificateStatus.GOOD


def test_a_responder_of_the_root_where_that_is_an_authority() -> None:
    responder = issue("responder", NVIDIA, ca=False, extensions=[SIGNING])
    assert check(answer(responder), authority=NVIDIA) is CertificateStatus.GOOD
    with pytest.raises(AuthenticationError):
        check(answer(responder))


def test_revoked_and_unknown_are_not_good() -> None:
    data = answer(status=ocsp.OCSPCertStatus.REVOKED)
    found = check_answer(data, DEVICE.certificate, ISSUER.certificate, at=NOW)
    assert (found.status, found.revoked_at) == (CertificateStatus.REVOKED, NOW - DAY)
    unknown = answer(status=ocsp.OCSPCertStatus.UNKNOWN)
    assert check(unknown) is CertificateStatus.UNKNOWN


def responder(**changed: object) -> Party:
    arguments: dict[str, object] = {"ca": False, "extensions": [SIGNING], **changed}
    return issue("responder", ISSUER, **arguments)  # type: ignore[arg-type]


BAD: dict[str, Callable[[], bytes]] = {
    "another certificate": lambda: answer(about=OTHER),
    "another issuer": lambda: answer(issuer=NVIDIA),
    "a stranger": lambda: answer(STRANGER),
    "another signature of the issuer's": lambda: tampered(answer()),
    "another signature of the responder's": lambda: tampered(answer(RESPONDER)),
    "no use for answers": lambda: answer(responder(extensions=[])),
    "another use": lambda: answer(responder(extensions=[OTHER_USE])),
    "a responder that expired": lambda: answer(responder(not_after=NOW - HOUR)),
    "a responder to come": lambda: answer(responder(not_before=NOW + HOUR)),
    "a forged responder": lambda: answer(responder(signer=STRANGER.key)),
    "another device of the issuer": lambda: answer(OTHER),
    "a weak hash": lambda: answer(algorithm=hashes.SHA224()),
    "too old": lambda: answer(next_update=NOW - timedelta(seconds=1)),
    "too early": lambda: answer(this_update=NOW + timedelta(minutes=6)),
    "no end": lambda: answer(this_update=NOW - 25 * HOUR, next_update=None),
    "another nonce": lambda: answer(nonce=b"\1" * 32),
}


@pytest.mark.parametrize("what", BAD)
def test_answers_that_are_not_believed(what: str) -> None:
    check(answer(nonce=b"\0" * 32), nonce=b"\0" * 32)
    check(answer(responder()))
    with pytest.raises(AuthenticationError) as raised:
        check(BAD[what](), nonce=b"\0" * 32)
    assert raised.value.code == "endorsement.ocsp"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"20510101000000Z", b"00000101000000Z"),
        (bytes.fromhex("06042a030406"), bytes.fromhex("06042a030405")),
    ],
    ids=["the year 0", "an extension twice"],
)
def test_a_responder_that_does_not_decode(before: bytes, after: bytes) -> None:
    """Whatever an unsigned certificate in the answer says, no other kind of error gets out."""
    check(answer(responder()))
    unknown = (
        x509.UnrecognizedExtension(x509.ObjectIdentifier(f"1.2.3.4.{number}"), b"\5\0")
        for number in (5, 6)
    )
    party = responder(
        extensions=[SIGNING, *((extension, False) for extension in unknown)],
        not_before=datetime(2051, 1, 1, tzinfo=UTC),
        not_after=datetime(2052, 1, 1, tzinfo=UTC),
    )
    data = answer(party)
    assert data.count(before) == 1
    for told in (data, data.replace(before, after)):
        with pytest.raises(AuthenticationError, match="not signed by a responder"):
            check(told)


def test_an_answer_without_a_nonce_or_an_end() -> None:
    assert check(answer(), nonce=b"\0" * 32) is CertificateStatus.GOOD
    assert check(answer(next_update=None)) is CertificateStatus.GOOD


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER).public_bytes(
            Encoding.DER
        ),
    ],
)
def test_what_is_no_answer(data: bytes) -> None:
    with pytest.raises(MalformedError):
        check(data)


def test_a_year_that_no_calendar_has() -> None:
    data = answer(this_update=datetime(2026, 1, 1, tzinfo=UTC))
    moment = b"20260101000000Z"
    assert data.count(moment) == 1
    parse_ocsp(data)
    with pytest.raises(MalformedError):
        parse_ocsp(data.replace(moment, b"00000101000000Z"))


def test_a_heap_of_responders() -> None:
    def brought(before: int) -> bytes:
        return (
            ocsp.OCSPResponseBuilder()
            .add_response(
                DEVICE.certificate,
                ISSUER.certificate,
                hashes.SHA384(),
                ocsp.OCSPCertStatus.GOOD,
                NOW - HOUR,
                NOW + DAY,
                None,
                None,
            )
            .responder_id(ocsp.OCSPResponderEncoding.HASH, RESPONDER.certificate)
            .certificates([STRANGER.certificate] * before + [RESPONDER.certificate])
            .sign(RESPONDER.key, hashes.SHA256())
            .public_bytes(Encoding.DER)
        )

    assert check(brought(MAX_RESPONDERS - 1)) is CertificateStatus.GOOD
    with pytest.raises(AuthenticationError):
        check(brought(MAX_RESPONDERS))


class Responds:
    """The responder's end of the wire."""

    def __init__(self, make: Callable[[ocsp.OCSPRequest], bytes]) -> None:
        self.make = make

    def exchange(self, request: HttpRequest, *, limit: int, total_s: float) -> HttpAnswer:
        assert request.method == "POST"
        assert request.headers["content-type"] == "application/ocsp-request"
        assert request.body is not None
        question = ocsp.load_der_ocsp_request(request.body)
        assert question.serial_number == DEVICE.certificate.serial_number
        return HttpAnswer(status=200, headers={}, body=self.make(question))


def nonce_of(question: ocsp.OCSPRequest) -> bytes:
    return question.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce


def fetcher(make: Callable[[ocsp.OCSPRequest], bytes]) -> NvidiaOcsp:
    retriever = Retriever(Responds(make), hosts=HostRules())
    return NvidiaOcsp(retriever, base_url="https://ocsp.example")


REQUEST = nvidia_ocsp(DEVICE.certificate, ISSUER.certificate)


def test_fetching_binds_the_answer_to_the_question() -> None:
    found = fetcher(lambda question: answer(nonce=nonce_of(question))).fetch(REQUEST, at=NOW)
    assert (found.valid_until, found.request.material) == (NOW + DAY, REQUEST.material)
    check_genuine(found, ROOTS)
    for make in (
        lambda _: answer(nonce=b"\7" * 32),
        lambda _: answer(STRANGER),
        lambda _: answer(status=ocsp.OCSPCertStatus.UNKNOWN),
        lambda _: b"garbage",
    ):
        with pytest.raises(FetchError) as raised:
            fetcher(make).fetch(REQUEST, at=NOW)
        assert raised.value.code == "fetch.content"


def test_a_question_takes_the_certificates() -> None:
    bare = ArtefactRequest(kind=REQUEST.kind, key=REQUEST.key)
    assert bare == REQUEST
    with pytest.raises(ConfigurationError) as raised:
        fetcher(lambda _: answer()).fetch(bare, at=NOW)
    assert raised.value.code == "endorsement.evidence"


def test_questions_differ() -> None:
    seen = [
        ocsp.load_der_ocsp_request(
            build_question(DEVICE.certificate, ISSUER.certificate, bytes([number]) * 32)
        )
        for number in range(2)
    ]
    assert [nonce_of(question) for question in seen] == [b"\0" * 32, b"\1" * 32]


def test_the_cache_takes_only_what_a_responder_signed(tmp_path: Path) -> None:
    cache = EndorsementCache(tmp_path / "c", ROOTS)
    pems = {one: one.certificate.public_bytes(Encoding.PEM) for one in (DEVICE, ISSUER, OTHER)}
    good = make_artefact(
        REQUEST,
        answer(),
        source="x",
        fetched_at=NOW,
        issuer_chain=pems[DEVICE] + pems[ISSUER],
    )
    cache.put(good)
    revoked = replace(good, data=answer(status=ocsp.OCSPCertStatus.REVOKED, this_update=NOW))
    cache.put(replace(revoked, issued_at=NOW))
    for bad in (
        replace(good, data=answer(STRANGER)),
        replace(good, issuer_chain=pems[OTHER] + pems[ISSUER]),
        replace(good, issuer_chain=pems[DEVICE] + pems[OTHER]),
        replace(good, issuer_chain=pems[DEVICE]),
        good,  # the certificate was revoked since
    ):
        with pytest.raises(CloisterError):
            cache.put(bad)
    kept = cache.peek(REQUEST)
    assert kept is not None
    assert kept.data == revoked.data
