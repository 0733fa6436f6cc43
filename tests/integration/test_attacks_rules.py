"""The rules of the channel: replay, who is asking, receipts, replicas, quotes.

As in `test_attacks_channel`, through real client and real worker with a hostile proxy on a real
socket between them; every test first shows that the unaltered twin succeeds.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.client
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from cloister.client import (
    ClientSettings,
    OpenAI,
    ReverifyLimits,
    connect,
)
from cloister.client.settings import Effects
from cloister.errors import AppraisalError, ChannelError
from cloister.testing.fake_engine import FakeEngine
from cloister.verifier import policy as policies
from cloister.worker.api_keys import ApiKeyFile
from cloister.worker.idempotency import IdempotencyMemory
from cloister.worker.replay import Admission
from cloister.worker.settings import (
    KeySettings,
    RateLimit,
    ReceiptSettings,
    ReportSettings,
    WorkerSettings,
)
from support.hostile import HostileProxy, sealed_only
from support.scene import (
    ATTESTATION,
    HeldPost,
    SimulatedSource,
    answered,
    ask,
    error_code,
    launched,
    live_worker,
    scene,
    toward,
    trust_in,
    until,
)
from support.sealed import Peer, chat
from support.serve import served
from support.tap import tapped
from support.wire import WireReply, WireRequest


def bearer(api_key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"}


# -- replay -----------------------------------------------------------------------------------


def test_a_rewound_clock_and_a_flood_do_not_revive_an_old_request() -> None:
    """While a client waits, the host passes half an hour, floods, turns back and replays."""
    with scene() as at:
        client, others = at.client(), at.client(url=at.live.url)
        answered(client)
        clocks = at.live.clocks

        def attack(request: WireRequest, answer: WireReply) -> WireReply:
            for _chunk in answer.chunks:
                pass
            clocks.steady_offset += 1800
            clocks.wall_offset += 1800
            for _ in range(150):
                assert others.http.get("/v1/models").status_code == 200
            clocks.wall_offset -= 1800
            return at.proxy.replay(request)

        at.proxy.on_reply = sealed_only(attack)
        response = ask(client, "old")
        assert (response.status_code, error_code(response)) == (409, "replayed_request")
        assert at.live.prompts == ["hello", "old"]


def test_a_clock_that_stands_still_does_not_keep_a_key_alive() -> None:
    with scene() as at:
        client = at.client()
        answered(client)
        old = at.proxy.sealed[-1]
        at.live.clocks.steady_offset += 3600 + 600 + 1
        at.live.clocks.wall_offset -= 3600 + 600 + 1
        assert at.proxy.replay(old).status == 400
        assert len(at.live.engine.requests) == 1


def test_copies_that_arrive_together_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the memory of encapsulated keys alone, without that of idempotency keys.

    All have several chunks and have passed the look at their heads before the first one ends.
    """
    text = "once " + "x" * 40_000
    monkeypatch.setattr(IdempotencyMemory, "admit", lambda *_: Admission.NEW)
    with scene() as at:
        client = at.client()
        answered(client)

        def several(request: WireRequest) -> WireReply | None:
            if request.method != "POST":
                return None
            copies = [HeldPost(at.live.url, request, hold=1) for _ in range(4)]
            until(lambda: at.live.worker.open_requests == 4)
            with ThreadPoolExecutor(4) as pool:
                answers = list(pool.map(HeldPost.finish, copies))
            return answers[0]

        at.proxy.forge = several
        assert ask(client, text).status_code in {200, 409}
        assert at.live.prompts == ["hello", text]


def test_a_full_memory_rotates_the_key_and_forgets_nothing_that_still_opens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(IdempotencyMemory, "admit", lambda *_: Admission.NEW)
    keys = KeySettings(replay_capacity=3, min_rotation_s=0)
    quick = ClientSettings(reverify=ReverifyLimits(delay_s=0.001))
    with scene(WorkerSettings(keys=keys)) as at:
        client = at.client(settings=quick)
        before = at.live.worker.context.keys.current.digest
        for _ in range(3):
            assert answered(client).extensions["cloister"].attempts == 1
        assert at.live.worker.context.keys.current.digest != before
        assert answered(client).extensions["cloister"].attempts == 2
        for request in list(at.proxy.sealed):
            at.proxy.replay(request)
        assert len(at.live.engine.requests) == 4


def test_a_memory_that_fills_faster_than_keys_may_rotate_answers_503() -> None:
    keys = KeySettings(replay_capacity=2, min_rotation_s=60)
    with scene(WorkerSettings(keys=keys)) as at:
        client = at.client()
        for _ in range(2):
            answered(client)
        with pytest.raises(ChannelError) as caught:
            ask(client)
        assert caught.value.code == "channel.overloaded"
        assert len(at.live.engine.requests) == 2
        at.live.clocks.steady_offset += 61
        answered(client)


def test_generation_starts_only_after_the_final_chunk_authenticated() -> None:
    """Of the held request everything is there but the last bytes of its authenticated end."""
    text = "x" * 40_000  # several chunks
    with scene() as at:
        client = at.client()
        answered(client, text)

        def hold(request: WireRequest) -> WireReply | None:
            if request.method != "POST":
                return None
            held = HeldPost(at.live.url, request, hold=1)
            until(lambda: at.live.worker.open_requests == 1)
            time.sleep(0.2)
            assert len(at.live.engine.requests) == 1
            return held.finish()

        at.proxy.forge = hold
        answered(client, text)
        assert len(at.live.engine.requests) == 2


def test_keys_rotate_every_hour_and_overlap_for_ten_minutes() -> None:
    with scene() as at:
        client = at.client()
        first = answered(client).extensions["cloister"]
        at.live.clocks.steady_offset += 3600 + 1
        fresh = answered(at.client()).extensions["cloister"]
        assert fresh.attester.keyset_digest != first.attester.keyset_digest
        overlapping = answered(client).extensions["cloister"]
        assert (overlapping.attempts, overlapping.receipt_verified) == (1, True)
        assert overlapping.attester.keyset_digest == first.attester.keyset_digest
        at.live.clocks.steady_offset += 600
        assert answered(client).extensions["cloister"].attempts == 2


def test_clients_cap_the_life_of_a_keyset_by_policy() -> None:
    with scene() as at:
        answered(at.client())
    long = WorkerSettings(keys=KeySettings(life_s=2 * policies.DAY))
    with scene(long) as at:
        with pytest.raises(AppraisalError) as caught:
            at.client()
        assert caught.value.code == "keyset_lifetime"
        assert not at.proxy.sealed


def test_clients_verify_again_when_the_policys_age_is_over() -> None:
    offset = 0.0
    effects = Effects(wall=time.time, steady=lambda: time.monotonic() + offset)
    with scene() as at:
        young = dataclasses.replace(policies.development(), max_age_s=600)
        with at.sealing(effects, policy=young) as client:
            for elapsed, reports in ((0, 1), (590, 1), (610, 2)):
                offset = elapsed
                answered(client)
                assert at.reports == reports


# -- who is asking ----------------------------------------------------------------------------


@pytest.fixture
def two_keys(tmp_path: Path) -> tuple[Path, str, str]:
    path = tmp_path / "keys.json"
    file = ApiKeyFile(path)
    return path, file.add("one", at=0)[1], file.add("two", at=0)[1]


def test_api_keys_travel_only_inside_the_seal(two_keys: tuple[Path, str, str]) -> None:
    path, key, _ = two_keys
    with scene(api_keys=path) as at, tapped(at.url) as tap:
        client = at.client(url=tap.url)
        answered(client, headers=bearer(key))
        assert ask(client).status_code == 401
        with OpenAI(base_url=tap.url, api_key=key, trust_env=False, **at.trust) as sdk:
            assert sdk.models.list().data
        assert tap.up.count(b"POST /ohttp") == 3
        for spelled in (key.encode(), base64.b64encode(key.encode()), key.encode().hex().encode()):
            assert spelled not in tap
        assert b"authorization" not in bytes(tap.up).lower()
        httpx2.get(tap.url + "/", headers=bearer(key), trust_env=False)
        assert key.encode() in tap  # the search would have found it


def test_api_keys_are_stored_as_keyed_hashes(two_keys: tuple[Path, str, str]) -> None:
    path, key, _ = two_keys
    with scene(api_keys=path) as at:
        client = at.client()
        answered(client, headers=bearer(key))
        stored = path.read_text()
        assert key not in stored
        assert hashlib.sha256(key.encode()).hexdigest() not in stored
        macs = [entry["mac"] for entry in json.loads(stored)["keys"]]
        for presented in (macs[0], key[:-1], key + "x", key.upper()):
            assert ask(client, headers=bearer(presented)).status_code == 401
        assert len(at.live.engine.requests) == 1


def test_rates_are_limited_for_each_key_by_itself(two_keys: tuple[Path, str, str]) -> None:
    path, one, two = two_keys
    limited = WorkerSettings(rate=RateLimit(per_minute=6, burst=2))
    with scene(limited, api_keys=path) as at:
        client = at.client()
        answers = [ask(client, headers=bearer(one)) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert 0 < int(answers[2].headers["retry-after"]) <= 10
        assert error_code(answers[2]) == "rate_limit_exceeded"
        assert ask(client, headers=bearer(two)).status_code == 200
        at.live.clocks.steady_offset += 10
        assert ask(client, headers=bearer(one)).status_code == 200


def test_caches_are_separated_by_client_secret_and_by_credential(
    two_keys: tuple[Path, str, str],
) -> None:
    path, one, two = two_keys
    with scene(api_keys=path) as at:
        first, second = at.client(), at.client()
        for client, key in ((first, one), (first, one), (second, one), (first, two)):
            answered(client, headers=bearer(key))
        same, again, other_secret, other_key = (
            request.cache_domain for request in at.live.engine.requests
        )
        assert same == again
        assert len({same, other_secret, other_key}) == 3


def test_without_a_client_secret_nothing_is_reused() -> None:
    with live_worker() as live:
        peer = Peer(live.worker, lambda: live.worker.context.keys.current.keyset, time.time)
        for secret in (b"s" * 32, b"s" * 32, None, None):
            assert live.run(peer.ask(document=chat(), cache_secret=secret)).status == 200
        domains = [request.cache_domain for request in live.engine.requests]
        assert domains[0] == domains[1]
        assert len(set(domains)) == 3


def test_cache_domains_of_two_workers_differ_for_the_same_client() -> None:
    """A restarted or second worker derives from a secret of its own."""
    secret = {"x-cloister-cache-secret": base64.urlsafe_b64encode(b"s" * 32).rstrip(b"=").decode()}
    domains = set()
    for _ in range(2):
        with scene() as at:
            client = at.client()
            for _ in range(2):
                answered(client, headers=secret)
            domains |= {request.cache_domain for request in at.live.engine.requests}
    assert len(domains) == 2


# -- receipts ---------------------------------------------------------------------------------


def test_receipts_arrive_inside_the_seal() -> None:
    with scene() as at, tapped(at.url) as tap:
        client = at.client(url=tap.url)
        receipt = answered(client, stream=True).extensions["cloister"].receipt
        document = receipt.encode()
        for secret in (receipt.receipt_id, document, base64.urlsafe_b64encode(document)[:60]):
            assert (secret if isinstance(secret, bytes) else secret.encode()) not in tap
        httpx2.get(f"{tap.url}/{receipt.receipt_id}", trust_env=False)
        assert receipt.receipt_id.encode() in tap  # the search would have found it


def test_a_receipt_is_found_only_inside_the_channel_with_the_same_credential(
    two_keys: tuple[Path, str, str],
) -> None:
    path, one, two = two_keys
    with scene(api_keys=path) as at:
        client = at.client()
        receipt = answered(client, headers=bearer(one)).extensions["cloister"].receipt
        lookup = f"/v1/aci/receipts/{receipt.receipt_id}"
        found = at.client().http.get(lookup, headers=bearer(one))
        assert (found.status_code, found.content) == (200, receipt.encode())
        assert client.http.get(lookup, headers=bearer(two)).status_code == 404
        unknown = client.http.get(lookup[:-1] + "x", headers=bearer(one))
        refused = client.http.get(lookup, headers=bearer(two))
        assert (unknown.status_code, unknown.content) == (404, refused.content)
        outside = httpx2.get(at.url + lookup, headers=bearer(one), trust_env=False)
        assert (outside.status_code, error_code(outside)) == (403, "plaintext_refused")


def test_a_receipt_is_found_for_ten_minutes() -> None:
    with scene() as at:
        client = at.client()
        receipt = answered(client).extensions["cloister"].receipt
        lookup = f"/v1/aci/receipts/{receipt.receipt_id}"
        at.live.clocks.steady_offset += 540
        assert client.http.get(lookup).status_code == 200
        at.live.clocks.steady_offset += 61
        at.live.clocks.wall_offset -= 200  # which the host may turn, and nothing follows it
        assert client.http.get(lookup).status_code == 404


def test_receipts_kept_are_bounded_in_number() -> None:
    with scene(WorkerSettings(receipts=ReceiptSettings(capacity=3))) as at:
        client = at.client()
        ids = [answered(client).extensions["cloister"].receipt.receipt_id for _ in range(4)]
        found = [client.http.get(f"/v1/aci/receipts/{each}").status_code for each in ids]
        assert found == [404, 200, 200, 200]


def test_a_receipts_hashes_do_not_confirm_a_guessed_prompt() -> None:
    """Two requests alike in all that a guesser could know: only the random bytes differ."""
    now = time.time()
    alike = {
        "idempotency-key": "k",
        "x-cloister-cache-secret": base64.urlsafe_b64encode(b"s" * 32).rstrip(b"=").decode(),
    }
    with scene() as at, at.sealing(Effects(wall=lambda: now)) as client:
        answers = [ask(client, headers=alike) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 409]
        received, returned = (
            [answer.extensions["cloister"].receipt.event(kind)["body_hash"] for answer in answers]
            for kind in ("request.received", "response.returned")
        )
        assert received[0] != received[1]
        guess = hashlib.sha256(at.live.engine.requests[0].body).hexdigest()
        assert all(guess not in digest for digest in (*received, *returned))
        # The worker adds as much to its answer, in a field that the hash covers.
        nonces = {answer.headers["x-cloister-nonce"] for answer in answers}
        assert [len(base64.urlsafe_b64decode(nonce + "=")) for nonce in nonces] == [32, 32]


def test_the_model_that_answered_is_in_the_receipt() -> None:
    with scene() as at:
        exchange = answered(at.client()).extensions["cloister"]
        assert exchange.model == ("fake", "0" * 64)
    # A worker whose engine is another than its attested claims name is noticed by every answer.
    model = dataclasses.replace(FakeEngine().model, sha256="1" * 64)
    with scene(engine=FakeEngine(model=model)) as at:
        with pytest.raises(Exception, match="claims document does not list") as caught:
            ask(at.client())
        assert getattr(caught.value, "code", None) == "receipt.model"


# -- replicas ---------------------------------------------------------------------------------


def test_replicas_share_no_key_and_their_key_ids_may_collide() -> None:
    """A balancer sends the report request to one replica and the sealed one to the other."""
    quick = ClientSettings(reverify=ReverifyLimits(delay_s=0.001))
    attester = launched()
    with (
        live_worker(attester=attester, random=same_id) as one,
        live_worker(attester=attester, random=same_id) as two,
        httpx2.HTTPTransport() as transport,
    ):
        keysets = [each.worker.context.keys.current.keyset for each in (one, two)]
        assert one.config.key_id == two.config.key_id
        entries = [
            {entry.public_key for entry in (*each.e2ee_public_keys, *each.receipt_signing_keys)}
            for each in keysets
        ]
        assert not entries[0] & entries[1]
        replicas = {"one": toward(one.url, transport), "two": toward(two.url, transport)}
        proxy = HostileProxy(replicas["one"])
        with (
            served(proxy) as url,
            connect(url, settings=quick, trust_env=False, **trust_in(attester)) as client,
        ):
            answered(client)
            proxy.upstream = replicas["two"]
            assert answered(client).extensions["cloister"].attempts == 2
            proxy.upstream = lambda request: replicas[
                "two" if request.path == ATTESTATION else "one"
            ](request)
            with pytest.raises(ChannelError) as caught:
                ask(client)
            assert caught.value.code == "channel.unknown_key"
            assert (len(one.engine.requests), len(two.engine.requests)) == (1, 1)


def same_id(size: int) -> bytes:
    """Random bytes, but the one that the first key id is taken from."""
    return b"\x07" if size == 1 else os.urandom(size)


# -- quotes cost time -------------------------------------------------------------------------


def test_a_flood_of_report_requests_is_bounded_and_apart_from_inference() -> None:
    attester = launched()
    source = SimulatedSource(attester)
    reports = ReportSettings(max_waiting=2, per_source=RateLimit(per_minute=0))
    with scene(WorkerSettings(reports=reports), attester=attester, source=source) as at:
        client = at.client()
        answered(client)
        before = source.made
        source.gate.clear()
        with ThreadPoolExecutor(8) as pool:
            flood = [pool.submit(fetch_report, at.live.url) for _ in range(8)]
            until(lambda: source.made > before)
            answered(client)  # while a quote is being made
            assert not all(each.done() for each in flood)
            until(lambda: sum(each.done() for each in flood) == 6)  # so all have come
            source.gate.set()
            statuses = sorted(each.result()[0] for each in flood)
        assert statuses == [200, 200, 503, 503, 503, 503, 503, 503]
        assert source.made - before == 2


def fetch_report(url: str, *, source: str = "127.0.0.1", nonce: str = "ab" * 32) -> tuple[int, str]:
    """Ask for a report from one of loopback's addresses; status and ``Retry-After``."""
    target = urlsplit(url)
    connection = http.client.HTTPConnection(
        str(target.hostname), target.port, source_address=(source, 0)
    )
    try:
        connection.request("GET", ATTESTATION + (f"?nonce={nonce}" if nonce else ""))
        response = connection.getresponse()
        response.read()
        return response.status, response.headers.get("retry-after", "")
    finally:
        connection.close()


def test_report_requests_are_limited_for_each_source() -> None:
    reports = ReportSettings(per_source=RateLimit(per_minute=6, burst=3))
    with scene(WorkerSettings(reports=reports)) as at:
        client = at.client()
        answers = [fetch_report(at.live.url) for _ in range(3)]
        assert [status for status, _ in answers] == [200, 200, 429]
        assert 0 < int(answers[-1][1]) <= 10
        assert fetch_report(at.live.url, source="127.0.0.2")[0] == 200
        answered(client)  # inference goes on
        at.live.clocks.steady_offset += 10
        assert fetch_report(at.live.url)[0] == 200


def test_reports_without_a_challenge_are_cached() -> None:
    attester = launched()
    source = SimulatedSource(attester)
    with scene(attester=attester, source=source) as at:
        answered(at.client())
        before = source.made
        for _ in range(5):
            assert fetch_report(at.live.url, nonce="")[0] == 200
        assert source.made - before == 1
