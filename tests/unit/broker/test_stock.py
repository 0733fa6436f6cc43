"""Stock RCAR clients: what they prove, what they get, and what they never get.

The client here is written after the protocol's text and the reference server's code; theirs was
not run.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from joserfc import jwe, jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

from cloister.broker import stock
from cloister.broker.denial import Denied
from cloister.broker.desk import Desk
from cloister.broker.policy import ManifestTerms
from cloister.manifest import SignerPin
from cloister.strictjson import canonical
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.verifier import policy as policies
from support.broker import CLOCK_START, OTHER, SECRET, SOURCE, WEIGHTS, Bench, bench, policy_for
from support.manifests import ALICE

EC = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
KEYS: dict[str, Any] = {
    "ECDH-ES+A256KW": ECKey.import_key(EC),
    "RSA-OAEP-256": RSAKey.import_key(RSA),
}


def tee_pubkey(alg: str) -> dict[str, Any]:
    return {**KEYS[alg].as_dict(private=False), "alg": alg}


class Client:
    """A stock client: auth, attest, then resources by cookie or bearer."""

    def __init__(self, desk: Desk, *, alg: str = "ECDH-ES+A256KW", tee: str = "sample") -> None:
        self.desk = desk
        self.alg = alg
        self.tee = tee
        self.jwk = tee_pubkey(alg) if alg in KEYS else {"kty": "RSA", "alg": alg}

    def attest(self, **changes: Any) -> tuple[str, str]:
        """Go through the handshake; the cookie and the token."""
        request = {"version": "0.4.0", "tee": self.tee, "extra-params": ""}
        body, cookie = self.desk.challenge(json.dumps(request).encode(), source=SOURCE)
        nonce = json.loads(body)["nonce"]
        additional = "{}"
        runtime = {"nonce": nonce, "tee-pubkey": self.jwk, "additional-evidence": additional}
        bound = hashlib.sha384(canonical(runtime)).digest()
        evidence = changes.get("evidence", self.evidence)(changes.get("bound", bound))
        message = {
            "runtime-data": {"nonce": nonce, "tee-pubkey": self.jwk},
            "tee-evidence": {"primary_evidence": evidence, "additional_evidence": additional},
        }
        answer = self.desk.attest(cookie, json.dumps(message).encode(), source=SOURCE)
        token: str = json.loads(answer)["token"]
        return cookie, token

    def evidence(self, bound: bytes) -> dict[str, Any]:
        return {"svn": "1", "report_data": base64.b64encode(bound).decode()}

    def get(self, cookie: str | None, token: str | None, path: str = OTHER.path) -> bytes:
        sealed, stock = self.desk.release(cookie, token, path, source=SOURCE)
        assert stock
        opened = jwe.decrypt_json(
            json.loads(sealed), KEYS[self.alg], algorithms=[self.alg, "A256GCM"]
        )
        assert opened.plaintext is not None
        return opened.plaintext


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path, stock=policies.development()) as made:
        made.store.put(OTHER, b"for everybody marked")
        made.store.set_policy(OTHER, policy_for(made.attester, stock_clients=True))
        yield made


@pytest.mark.parametrize("alg", KEYS)
def test_a_stock_client_gets_what_is_marked_for_it(at: Bench, alg: str) -> None:
    client = Client(at.desk, alg=alg)
    cookie, _ = client.attest()
    assert client.get(cookie, None) == b"for everybody marked"
    assert at.last()["detail"]["stock"] is True
    _, other_token = client.attest()
    assert client.get(None, other_token) == b"for everybody marked"


def test_its_token_is_a_jwt_with_an_end(at: Bench) -> None:
    _, token = Client(at.desk).attest()
    key = OKPKey.import_key(at.store.identity_key)
    claims = jwt.decode(token, key, algorithms=["Ed25519"]).claims
    assert claims["exp"] == at.clock.now + 120
    assert claims["tee-pubkey"] == tee_pubkey("ECDH-ES+A256KW")


def refused(at: Bench, attempt: Any) -> str:
    client = Client(at.desk)
    cookie, token = client.attest()
    assert client.get(cookie, token)
    with pytest.raises(Denied) as denied:
        attempt()
    assert at.denial()[0] == denied.value.reason
    return denied.value.reason


def test_it_never_gets_what_is_not_marked(at: Bench) -> None:
    client = Client(at.desk)
    cookie, token = client.attest()
    assert refused(at, lambda: client.get(cookie, token, WEIGHTS.path)) == "stock"
    assert client.get(cookie, token)
    assert at.release().secret == SECRET


def test_each_secret_comes_once_for_each_attestation(at: Bench) -> None:
    client = Client(at.desk)
    cookie, token = client.attest()
    assert client.get(cookie, token)
    assert refused(at, lambda: client.get(cookie, token)) == "spent"


def test_one_attestation_is_given_several_secrets_each_once(at: Bench) -> None:
    third = dataclasses.replace(OTHER, tag="third")
    at.store.put(third, b"a third")
    at.store.set_policy(third, policy_for(at.attester, stock_clients=True))
    client = Client(at.desk)
    cookie, token = client.attest()
    assert client.get(cookie, token) == b"for everybody marked"
    assert client.get(cookie, token, third.path) == b"a third"
    for path in (OTHER.path, third.path):
        assert refused(at, partial(client.get, cookie, token, path)) == "spent"


def test_a_mark_that_is_taken_away_counts_at_once(at: Bench) -> None:
    client = Client(at.desk)
    cookie, token = client.attest()
    at.store.set_policy(OTHER, policy_for(at.attester))
    with pytest.raises(Denied) as denied:
        client.get(cookie, token)
    assert denied.value.reason == "rules"
    with pytest.raises(Denied) as denied:
        client.get(*client.attest())
    assert denied.value.reason == "stock"


def test_sample_evidence_is_for_development_by_name(at: Bench) -> None:
    strict = dataclasses.replace(policies.development(), accept_development=False)
    marked = policy_for(at.attester, stock_clients=True, appraisal=strict)
    client = Client(at.desk)
    cookie, token = client.attest()
    assert client.get(cookie, token)
    at.store.set_policy(OTHER, marked)
    with pytest.raises(Denied) as denied:
        client.get(*client.attest())
    assert (denied.value.reason, denied.value.because) == ("evidence", "development_refused")


def test_evidence_that_binds_something_else_is_refused(at: Bench) -> None:
    client = Client(at.desk)
    assert refused(at, lambda: client.attest(bound=bytes(48))) == "evidence"
    assert refused(at, lambda: client.attest(evidence=lambda _: {})) == "malformed"


@pytest.mark.parametrize("alg", ["RSA1_5", "dir", ""])
def test_weak_and_unknown_wraps_are_refused(at: Bench, alg: str) -> None:
    assert refused(at, lambda: Client(at.desk, alg=alg).attest()) == "wrapping"


def test_a_key_that_is_none_is_refused(at: Bench) -> None:
    client = Client(at.desk)
    client.jwk = {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "alg": "ECDH-ES+A256KW"}
    cookie, token = client.attest()
    assert refused(at, lambda: client.get(cookie, token)) == "wrapping"


def test_a_key_that_is_too_large_is_refused(at: Bench) -> None:
    """At once, and not where nobody would write down why."""
    client = Client(at.desk)
    client.jwk = {**tee_pubkey(client.alg), "kid": "k" * 20_000}
    assert refused(at, client.attest) == "malformed"


def test_evidence_that_is_too_large_is_refused(at: Bench) -> None:
    client = Client(at.desk)

    def padded(size: int) -> Any:
        return lambda bound: client.evidence(bound) | {"pad": "p" * size}

    room = stock.MAX_EVIDENCE_BYTES - 1024
    assert client.get(*client.attest(evidence=padded(room)))
    attempt = partial(client.attest, evidence=padded(stock.MAX_EVIDENCE_BYTES))
    assert refused(at, attempt) == "malformed"


def test_nothing_is_wrapped_weakly_whatever_stands_in_a_session() -> None:
    jwk = tee_pubkey("RSA-OAEP-256")
    assert stock.seal_for_stock(SECRET, canonical(jwk))
    with pytest.raises(Denied) as denied:
        stock.seal_for_stock(SECRET, canonical(jwk | {"alg": "RSA1_5"}))
    assert denied.value.reason == "wrapping"


@pytest.mark.parametrize("tee", ["cca", "snp", "tpm", "x"])
def test_other_platforms_are_not_read(at: Bench, tee: str) -> None:
    assert refused(at, lambda: Client(at.desk, tee=tee).attest()) == "stock"


def test_a_mark_counts_only_beside_reference_values(at: Bench) -> None:
    """They bring no manifest, so under one nothing would say which software is good."""
    client = Client(at.desk)
    assert client.get(*client.attest())
    marked = policy_for(
        at.attester,
        stock_clients=True,
        reference_values=None,
        manifest=ManifestTerms(pin=SignerPin(signers=(ALICE.owner,))),
    )
    at.store.set_policy(OTHER, marked)
    with pytest.raises(Denied) as denied:
        client.get(*client.attest())
    assert denied.value.reason == "stock"


def test_a_broker_that_hears_none_takes_no_answer_to_another_s_challenge(at: Bench) -> None:
    """Brokers of one store share the key of cookies, but not the operator's word."""
    deaf = Desk(at.store, roots=at.attester.roots)

    class Switched:
        challenge = at.desk.challenge
        attest = deaf.attest

    assert Client(at.desk).attest()
    with pytest.raises(Denied) as denied:
        Client(Switched()).attest()  # type: ignore[arg-type]  # two desks
    assert denied.value.reason == "stock"
    assert at.last()["detail"]["step"] == "attest"


def test_stock_clients_are_not_heard_unless_that_was_switched_on(tmp_path: Path) -> None:
    with bench(tmp_path) as at:
        with pytest.raises(Denied) as denied:
            Client(at.desk).attest()
        assert denied.value.reason == "stock"
        assert at.last()["detail"]["step"] == "challenge", "and they learn it at once"
        assert at.release().secret == SECRET


def test_a_quote_of_a_trust_domain_counts_under_the_secret_s_reference_values(
    tmp_path: Path,
) -> None:
    hardware = SimulatedHardware.make("tdx", now=CLOCK_START)
    quotes = hardware.issue
    with bench(
        tmp_path, attester=hardware.worker, roots=hardware.roots, stock=policies.development()
    ) as at:
        at.store.put(OTHER, b"for a trust domain")
        marked = policy_for(
            at.attester, stock_clients=True, reference_values=hardware.reference_values
        )
        at.store.set_policy(OTHER, marked)
        collateral = quotes(bytes(32))["tdx.quote"].endorsements
        desk = Desk(
            at.store,
            roots=hardware.roots,
            stock=policies.development(),
            staple=lambda item: dataclasses.replace(item, endorsements=collateral),
        )
        client = Client(desk, tee="tdx")

        def evidence(bound: bytes) -> dict[str, Any]:
            item = quotes(bound)["tdx.quote"]
            return {"quote": base64.b64encode(item.data).decode(), "cc_eventlog": None}

        assert client.get(*client.attest(evidence=evidence)) == b"for a trust domain"
        with pytest.raises(Denied) as denied:
            client.attest(evidence=lambda bound: evidence(bound[:-1] + b"\0"))
        assert (denied.value.reason, denied.value.because) == (
            "evidence",
            "report_data_mismatch",
        )
        values = SimulatedHardware.make("snp", now=CLOCK_START).reference_values
        at.store.set_policy(OTHER, dataclasses.replace(marked, reference_values=values))
        with pytest.raises(Denied) as denied:
            client.get(*client.attest(evidence=evidence))
        assert (denied.value.reason, denied.value.because) == ("evidence", "measurement_mismatch")
