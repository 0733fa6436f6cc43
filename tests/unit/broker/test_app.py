"""The broker on real sockets: releases, refusals, rates, and what its pages and log say."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwe
from joserfc.jwk import ECKey

from cloister.channel import rcar
from cloister.errors import FetchError, KeyReleaseDenied
from cloister.strictjson import canonical
from cloister.verifier import policy as policies
from cloister.worker.key_release import (
    check_broker,
    release_key,
)
from cloister.worker.settings import RateLimit
from support.broker import (
    CLOCK_START,
    OTHER,
    SECRET,
    WEIGHTS,
    bench,
    policy_for,
)
from support.broker_server import Served, served


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Served]:
    with bench(tmp_path) as at, served(at) as made:
        yield made


def test_a_worker_gets_its_key_over_http(broker: Served) -> None:
    at = broker.at
    with broker.http() as send:
        check_broker(send, at.store.identity, None, at=CLOCK_START)
        released = release_key(WEIGHTS, prover=at.prover, broker=at.store.identity, send=send)
    assert released.secret == SECRET
    assert at.last()["detail"]["source"] == "127.0.0.1"


def test_a_denial_travels_with_its_code(broker: Served) -> None:
    at = broker.at
    with broker.http() as send:
        release_key(WEIGHTS, prover=at.prover, broker=at.store.identity, send=send)
        with pytest.raises(KeyReleaseDenied) as denied:
            release_key(WEIGHTS, prover=at.prover, broker=at.store.identity, send=send, version=9)
    assert denied.value.code == "key_release.unknown"


REFUSED = [
    ("POST", "/kbs/v0/auth", b"x" * (rcar.MAX_REQUEST_BYTES + 1), 413),
    ("GET", "/kbs/v0/auth", b"", 404),
    ("POST", "/kbs/v0/auth?x=1", b"{}", 404),
    ("POST", "/kbs/v0/%61uth", b"{}", 404),
    ("GET", "/", b"", 404),
    ("GET", "/kbs/v0/resource/a/b/c", b"", 401),
    ("GET", "/kbs/v0/resource/a/%2e%2e/c", b"", 403),
    ("GET", "/cloister/v0/broker", b"", 400),
    ("GET", "/cloister/v0/broker?nonce=AA", b"", 400),
    ("GET", "/cloister/v0/broker?nonce=" + "a" * 62, b"", 400),
    ("GET", "/cloister/v0/broker?nonce=" + "A" * 64, b"", 400),
    ("PUT", "/kbs/v0/resource/a/b/c", b"secret", 404),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), REFUSED)
def test_other_requests_are_refused(
    broker: Served, method: str, path: str, body: bytes, status: int
) -> None:
    with httpx2.Client(trust_env=False) as client:
        answer = client.request(method, broker.url + path, content=body or None)
        good = client.post(
            broker.url + rcar.AUTH_PATH,
            content=rcar.encode_request("tpm", rcar.Ask(resource=WEIGHTS)),
        )
    assert answer.status_code == status
    assert "detail" in answer.json()
    assert good.status_code == 200


def test_a_source_has_a_rate(tmp_path: Path) -> None:
    with bench(tmp_path) as at, served(at, per_source=RateLimit(per_minute=1, burst=4)) as made:
        with made.http() as send:
            release_key(WEIGHTS, prover=at.prover, broker=at.store.identity, send=send)
            with pytest.raises(FetchError) as busy:
                release_key(WEIGHTS, prover=at.prover, broker=at.store.identity, send=send)
        assert busy.value.code == "broker.busy"


def test_a_source_that_is_denied_too_often_waits(tmp_path: Path) -> None:
    """So that nobody fills the audit log with denials."""
    limit = RateLimit(per_minute=1, burst=3)
    with bench(tmp_path) as at, served(at, denied_per_source=limit) as made:
        with made.http() as send:
            release_key(WEIGHTS, prover=at.prover, broker=at.store.identity, send=send)
            codes = []
            for _ in range(8):
                with pytest.raises((KeyReleaseDenied, FetchError)) as refused:
                    release_key(
                        WEIGHTS, prover=at.prover, broker=at.store.identity, send=send, version=9
                    )
                codes.append(refused.value.code)
        denied = [entry for entry in at.log() if entry["event"] == "denied"]
    assert codes[:3] == ["key_release.unknown"] * 3
    assert set(codes[4:]) == {"broker.busy"}
    assert len(denied) == 4


def test_who_shows_nothing_is_sent_to_the_beginning(tmp_path: Path) -> None:
    """Stock clients begin like that. However many do, nobody behind their address has to wait."""
    limit = RateLimit(per_minute=1, burst=2)
    with (
        bench(tmp_path) as at,
        served(at, denied_per_source=limit) as made,
        httpx2.Client(trust_env=False) as client,
    ):
        before = at.log()
        for _ in range(8):
            answer = client.get(made.url + WEIGHTS.path)
            assert answer.status_code == 401
            assert answer.json()["type"].endswith("/Unauthorized")
        assert at.log() == before
        with made.http() as send:
            release_key(WEIGHTS, prover=at.prover, broker=at.store.identity, send=send)
        # Who shows a session or a token that there is not is denied, and that is written down.
        for headers in ({"cookie": f"{rcar.COOKIE}=x"}, {"authorization": "Bearer x"}):
            assert client.get(made.url + WEIGHTS.path, headers=headers).status_code == 401
            assert at.last()["event"] == "denied"


def test_a_stock_client_over_http(tmp_path: Path) -> None:
    """In the order of theirs: the secret, 401, the handshake, the secret again by the cookie."""
    alg = "ECDH-ES+A256KW"
    key = ECKey.import_key(ec.generate_private_key(ec.SECP256R1()))
    jwk = {**key.as_dict(private=False), "alg": alg}
    extra = {"supported-hash-algorithms": ["sha256", "sha384", "sha512"]}
    with (
        bench(tmp_path) as at,
        served(at, stock=policies.development()) as made,
        httpx2.Client(base_url=made.url, trust_env=False) as client,
    ):
        at.store.put(OTHER, b"marked")
        at.store.set_policy(OTHER, policy_for(at.attester, stock_clients=True))
        assert client.get(OTHER.path).status_code == 401
        request = {"version": "0.4.0", "tee": "sample", "extra-params": extra}
        challenge = client.post(rcar.AUTH_PATH, json=request).json()
        runtime = {"nonce": challenge["nonce"], "tee-pubkey": jwk}
        bound = hashlib.sha384(canonical({**runtime, "additional-evidence": ""})).digest()
        primary = {"svn": "1", "report_data": base64.b64encode(bound).decode()}
        attestation = {
            "init-data": None,
            "runtime-data": runtime,
            "tee-evidence": {"primary_evidence": primary, "additional_evidence": ""},
        }
        token = client.post(rcar.ATTEST_PATH, json=attestation).json()["token"]
        assert token.count(".") == 2
        answer = client.get(OTHER.path)
        again = client.get(OTHER.path)
    opened = jwe.decrypt_json(answer.json(), key, algorithms=[alg, "A256GCM"])
    assert opened.plaintext == b"marked"
    assert again.status_code == 401, "a second time takes another handshake"


def test_the_status_page_shows_names_and_no_secrets(broker: Served) -> None:
    at = broker.at
    with broker.http() as send:
        release_key(WEIGHTS, prover=at.prover, broker=at.store.identity, send=send)
    page = httpx2.get(broker.status, trust_env=False)
    assert page.status_code == 200
    assert str(WEIGHTS) in page.text
    assert "released" in page.text
    assert SECRET.decode() not in page.text
    rebound = httpx2.get(broker.status, trust_env=False, headers={"host": "evil.example:80"})
    assert rebound.status_code == 404
    assert httpx2.post(broker.status, trust_env=False).status_code == 404
    assert httpx2.get(broker.status + "x", trust_env=False).status_code == 404


def test_the_log_of_the_process_holds_nothing_from_requests(broker: Served) -> None:
    with httpx2.Client(trust_env=False) as client:
        client.post(broker.url + rcar.AUTH_PATH, content=b'{"version": "a prompt"}')
    assert "a prompt" not in broker.log.getvalue()
    for line in broker.log.getvalue().splitlines():
        json.loads(line)
