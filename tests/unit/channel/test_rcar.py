"""RCAR messages: what we write is read back, and stock clients' are read too."""

from __future__ import annotations

import json

import pytest

from cloister.channel import rcar
from cloister.channel.resource_uri import ResourceUri
from cloister.errors import MalformedError
from cloister.strictjson import Json

RESOURCE = ResourceUri(repository="acme", type="weights", tag="v1")
EVIDENCE = rcar.WorkerEvidence(
    stated=rcar.Stated(broker="ed25519:ab", resource=str(RESOURCE), wrapping_key="sha256:cd"),
    report=b"{}",
    manifest=b"bundle",
)


def test_messages_read_back() -> None:
    ask = rcar.Ask(resource=RESOURCE, version=2)
    request = rcar.parse_request(rcar.encode_request("tpm", ask))
    assert request == rcar.Request(version="0.4.0", tee="tpm", ask=ask)
    assert rcar.parse_challenge(rcar.encode_challenge(b"n" * 32)) == b"n" * 32
    data = rcar.encode_attestation(nonce=b"n" * 32, tee_pubkey={"kty": "x"}, evidence=EVIDENCE)
    attestation = rcar.parse_attestation(data)
    assert attestation.tee_pubkey == {"kty": "x"}
    assert rcar.parse_worker_evidence(attestation.evidence) == EVIDENCE
    assert rcar.parse_token(rcar.encode_token("t")) == "t"
    assert rcar.parse_error(rcar.encode_error("Denied", "no\n[code]")) == "no?[code]"


@pytest.mark.parametrize("extra", ["", {}, {"supported-hash-algorithms": ["sha384"]}, None])
def test_a_stock_client_asks_for_nothing_yet(extra: object) -> None:
    data = json.dumps({"version": "0.4.0", "tee": "tdx", "extra-params": extra}).encode()
    assert rcar.parse_request(data) == rcar.Request(version="0.4.0", tee="tdx", ask=None)


GOOD_ASK = {"resource": str(RESOURCE), "version": None}


@pytest.mark.parametrize(
    "ask",
    [
        1,
        {},
        {**GOOD_ASK, "more": 1},
        {**GOOD_ASK, "version": 0},
        {**GOOD_ASK, "version": True},
        {**GOOD_ASK, "resource": "kbs:///a/../c"},
    ],
)
def test_other_asks_are_refused(ask: object) -> None:
    def request(own: object) -> bytes:
        extra = {"cloister": own}
        return json.dumps({"version": "0.4.0", "tee": "tpm", "extra-params": extra}).encode()

    assert rcar.parse_request(request(GOOD_ASK)).ask == rcar.Ask(resource=RESOURCE)
    with pytest.raises(MalformedError):
        rcar.parse_request(request(ask))


@pytest.mark.parametrize("nonce", ["", "AAAA", 3, None])
def test_a_nonce_has_32_bytes(nonce: object) -> None:
    with pytest.raises(MalformedError):
        rcar.parse_challenge(json.dumps({"nonce": nonce, "extra-params": ""}).encode())


def test_messages_are_bounded() -> None:
    with pytest.raises(MalformedError):
        rcar.parse_request(b" " * (rcar.MAX_REQUEST_BYTES + 1))
    with pytest.raises(MalformedError):
        rcar.parse_attestation(b" " * (rcar.MAX_ATTESTATION_BYTES + 1))


def test_a_report_stands_as_its_text_and_is_bounded() -> None:
    def evidence(report: Json) -> bytes:
        data = rcar.encode_attestation(nonce=bytes(32), tee_pubkey={}, evidence=EVIDENCE)
        own = rcar.parse_attestation(data).evidence
        own["cloister"]["report"] = report  # type: ignore[index,call-overload]  # an object in it
        return rcar.parse_worker_evidence(own).report

    text = '{"say":"\\"\u00e9\n"}'
    assert evidence(text) == text.encode()
    assert len(evidence("x" * rcar.MAX_REPORT_BYTES)) == rcar.MAX_REPORT_BYTES
    for wrong in ("x" * (rcar.MAX_REPORT_BYTES + 1), "\u00e9" * rcar.MAX_REPORT_BYTES, 1, None):
        with pytest.raises(MalformedError):
            evidence(wrong)
