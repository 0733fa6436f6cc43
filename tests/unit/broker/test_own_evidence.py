"""What a broker shows of itself, and what workers make of it."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.broker.vouching import CONFIGURATION
from cloister.channel.key_release import BrokerIdentity, broker_statement
from cloister.channel.keyset import RECEIPT_ALGORITHM, PublicKeyEntry
from cloister.errors import AuthenticationError, MalformedError
from cloister.evidence.component import ComponentKind
from cloister.evidence.report import TEE_TYPE_TPM
from cloister.testing.simulated_tpm import SimulatedAttester, default_components
from cloister.verifier import policy as policies
from cloister.worker.key_release import (
    Answer,
    BrokerTrust,
    check_broker,
    for_brokers,
)
from support.broker import (
    CLOCK_START,
    Quotes,
    bench,
)
from support.broker_server import Served, served


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Served]:
    with bench(tmp_path) as at, served(at) as made:
        yield made


def test_another_broker_is_not_asked(broker: Served, tmp_path_factory: Any) -> None:
    with (
        bench(tmp_path_factory.mktemp("other")) as other,
        broker.http() as send,
        pytest.raises(AuthenticationError) as refused,
    ):
        check_broker(send, other.store.identity, None, at=CLOCK_START)
    assert refused.value.code == "broker.identity"


@pytest.mark.parametrize("members", [("identity",), ("identity", "report", "more"), ()])
def test_what_a_broker_says_of_itself_has_these_members(members: tuple[str, ...]) -> None:
    identity = BrokerIdentity(b"\x03" * 32)

    def saying(*names: str) -> Any:
        document = {name: str(identity) if name == "identity" else None for name in names}
        return lambda *_, **__: Answer(status=200, body=json.dumps(document).encode())

    check_broker(saying("identity", "report"), identity, None, at=CLOCK_START)
    with pytest.raises(MalformedError):
        check_broker(saying(*members), identity, None, at=CLOCK_START)


def platform(**changes: Any) -> SimulatedAttester:
    """A machine that a broker was measured on."""
    components = [one for one in default_components() if one.kind is not ComponentKind.MODEL]
    return SimulatedAttester.make(
        **{
            "now": CLOCK_START,
            "components": components,
            "configuration": CONFIGURATION,
            **changes,
        }
    )


def trust_in(machine: SimulatedAttester, **policy: Any) -> BrokerTrust:
    return BrokerTrust(
        policy=dataclasses.replace(for_brokers(policies.development()), **policy),
        reference_values=machine.reference_values,
        roots=machine.roots,
    )


@contextlib.contextmanager
def sealed(tmp_path: Path, machine: SimulatedAttester) -> Iterator[Served]:
    options = {"evidence": Quotes(machine), "tee_type": TEE_TYPE_TPM}
    with bench(tmp_path) as at, served(at, **options) as made:
        yield made


def checked(broker: Served, trust: BrokerTrust, **options: Any) -> None:
    with broker.http() as send:
        check_broker(
            options.pop("send", send),
            options.pop("identity", broker.at.store.identity),
            trust,
            at=CLOCK_START,
            **options,
        )


def test_a_sealed_broker_is_accepted_and_another_software_is_not(tmp_path: Path) -> None:
    machine = platform()
    (measured,) = [one for one in machine.components if one.kind is ComponentKind.CONFIGURATION]
    with sealed(tmp_path, machine) as broker:
        checked(broker, trust_in(machine))
        other = platform(configuration={**CONFIGURATION, "version": 2}, ca=machine.ca)
        for trust in (
            trust_in(other),
            trust_in(machine, accept_development=False),
            trust_in(machine, denied=(measured.digest,)),
        ):
            with pytest.raises(AuthenticationError) as refused:
                checked(broker, trust)
            assert refused.value.code == "broker.unattested"
        checked(broker, trust_in(machine))


def test_evidence_of_another_broker_or_another_time_is_refused(tmp_path: Path) -> None:
    machine = platform()
    with sealed(tmp_path, machine) as broker:
        kept: list[Answer] = []

        def keep(method: str, path: str, *, body: bytes = b"", headers: Any) -> Answer:
            with broker.http() as send:
                kept.append(send(method, path, body=body, headers=headers))
            return kept[-1]

        checked(broker, trust_in(machine), send=keep)
        with pytest.raises(AuthenticationError):
            checked(broker, trust_in(machine), send=lambda *_, **__: kept[0])
        stranger = BrokerIdentity(b"\x05" * 32)

        def renamed(method: str, path: str, *, body: bytes = b"", headers: Any) -> Answer:
            answer = keep(method, path, body=body, headers=headers)
            document = json.loads(answer.body) | {"identity": str(stranger)}
            return dataclasses.replace(answer, body=json.dumps(document).encode())

        with pytest.raises(AuthenticationError) as refused:
            checked(broker, trust_in(machine), send=renamed, identity=stranger)
        assert refused.value.code == "broker.unattested"


def test_a_worker_cannot_pass_for_a_broker(tmp_path: Path) -> None:
    """Its public report is over another statement, whatever is trusted."""
    machine = platform()
    with sealed(tmp_path, machine) as broker:
        checked(broker, trust_in(machine))

        def public(_method: str, path: str, *, body: bytes = b"", headers: Any) -> Answer:
            nonce = bytes.fromhex(path.rpartition("=")[2])
            report = base64.b64encode(machine.report(nonce)).decode()
            document = {"identity": str(broker.at.store.identity), "report": report}
            return Answer(status=200, body=json.dumps(document).encode())

        with pytest.raises(AuthenticationError) as refused:
            checked(broker, trust_in(machine), send=public)
        assert refused.value.code == "broker.unattested"


@pytest.mark.parametrize("keys", ["one's own", "another's", "one's own and another's"])
def test_the_evidence_speaks_of_the_broker_s_key_and_no_other(tmp_path: Path, keys: str) -> None:
    """The statement names the broker all the same: whoever is trusted might name many."""
    machine = platform()
    with sealed(tmp_path, machine) as broker:
        identity = broker.at.store.identity

        def entry(name: str, public: bytes) -> PublicKeyEntry:
            return PublicKeyEntry(key_id=name, algo=RECEIPT_ALGORITHM, public_key=public.hex())

        own, other = entry("own", identity.public_key), entry("other", b"\x03" * 32)
        listed = {"one's own": (own,), "another's": (other,)}.get(keys, (own, other))
        keyset = dataclasses.replace(
            machine.keyset, receipt_signing_keys=listed, e2ee_public_keys=()
        )
        liar = dataclasses.replace(machine, keyset=keyset)

        def statement(keyset_digest: str, nonce: bytes | None) -> bytes:
            return hashlib.sha256(broker_statement(identity, keyset_digest, nonce)).digest()

        def shown(_method: str, path: str, *, body: bytes = b"", headers: Any) -> Answer:
            nonce = bytes.fromhex(path.rpartition("=")[2])
            report = liar.attestation_report(nonce, statement=statement).encode()
            encoded = base64.b64encode(report).decode()
            document = {"identity": str(identity), "report": encoded}
            return Answer(status=200, body=json.dumps(document).encode())

        if keys == "one's own":
            checked(broker, trust_in(machine), send=shown)
            return
        with pytest.raises(AuthenticationError, match="speaks of another key") as refused:
            checked(broker, trust_in(machine), send=shown)
        assert refused.value.code == "broker.unattested"


def test_a_broker_without_evidence_is_refused_unless_development_is_named(broker: Served) -> None:
    trust = trust_in(broker.at.attester)
    with broker.http() as send:
        check_broker(send, broker.at.store.identity, None, at=CLOCK_START)
        with pytest.raises(AuthenticationError) as refused:
            check_broker(send, broker.at.store.identity, trust, at=CLOCK_START)
    assert refused.value.code == "broker.unattested"
