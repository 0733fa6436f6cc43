"""What a worker is measured with of its broker, and what it does with that."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cloister.attester.kit import ClientKit
from cloister.channel.key_release import BrokerIdentity
from cloister.cli.broker_options import BrokerOptions
from cloister.errors import AuthenticationError, ConfigurationError
from cloister.testing.fake_engine import FakeEngine
from cloister.verifier import policy as policies
from cloister.worker.configuration import effective_configuration, settings_of
from cloister.worker.key_release import Answer
from cloister.worker.releases import KeyReleases, broker_settings, open_releases, read_trust
from cloister.worker.settings import BrokerSettings, WorkerSettings
from support.broker import SECRET, WEIGHTS, Wire, bench, prover_of, simulated

IDENTITY = "ed25519:" + "ab" * 32
URL = "http://127.0.0.1:1"


def kit(path: Path, policy: policies.AppraisalPolicy | None = None) -> Path:
    attester = simulated()
    ClientKit(
        roots=attester.roots,
        reference_values=attester.reference_values,
        policy=policy or policies.development(),
    ).write(path)
    return path


def test_the_configuration_says_which_broker_and_reads_back(tmp_path: Path) -> None:
    for settings in (
        None,
        broker_settings(IDENTITY, None, development=True),
        broker_settings(IDENTITY, kit(tmp_path), development=False),
    ):
        described = effective_configuration([FakeEngine()], WorkerSettings(broker=settings))
        assert settings_of(described).broker == settings
        assert ("broker" in described) is (settings is not None)


@pytest.mark.parametrize(
    "broker",
    [
        {},
        "x",
        {"identity": IDENTITY, "evidence": None, "development": False},
        {"identity": 1, "evidence": None, "development": True},
        {"identity": IDENTITY, "evidence": 1, "development": True},
        {"identity": IDENTITY, "evidence": None, "development": 1},
        {"identity": IDENTITY, "evidence": None, "development": True, "more": 1},
    ],
)
def test_another_configuration_is_refused(broker: Any) -> None:
    good = effective_configuration(
        [FakeEngine()], WorkerSettings(broker=broker_settings(IDENTITY, None, development=True))
    )
    assert settings_of(good).broker is not None
    with pytest.raises(ConfigurationError):
        settings_of({**good, "broker": broker})


def test_evidence_is_required_unless_development_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        BrokerOptions(identity=IDENTITY).settings()
    with pytest.raises(ConfigurationError):
        BrokerOptions(kit=tmp_path).settings()
    with pytest.raises(ConfigurationError):
        BrokerOptions(identity="ed25519:xx", development=True).settings()
    assert BrokerOptions().settings() is None
    assert BrokerOptions(identity=IDENTITY, development=True).settings() == BrokerSettings(
        identity=IDENTITY, evidence=None, development=True
    )


def test_a_kit_alone_admits_no_development_broker(tmp_path: Path) -> None:
    folder = kit(tmp_path)
    assert not read_trust(folder, development=False).policy.accept_development
    assert read_trust(folder, development=True).policy.accept_development
    measured = {
        broker_settings(IDENTITY, folder, development=named).evidence for named in (False, True)
    }
    assert len(measured) == 2


def test_every_file_of_a_kit_is_measured(tmp_path: Path) -> None:
    folder = kit(tmp_path)
    evidence = {broker_settings(IDENTITY, folder, development=False).evidence}
    kit(tmp_path, dataclasses.replace(policies.development(), max_age_s=7))
    evidence.add(broker_settings(IDENTITY, folder, development=False).evidence)
    (folder / "enrolment-ca.pem").unlink()
    evidence.add(broker_settings(IDENTITY, folder, development=False).evidence)
    assert len(evidence) == 3


def test_another_kit_than_was_measured_is_refused(tmp_path: Path) -> None:
    settings = broker_settings(IDENTITY, kit(tmp_path), development=False)
    options: dict[str, Any] = {"prover": prover_of(simulated()), "random": bytes}
    http, _ = open_releases(settings, URL, tmp_path, **options)
    http.close()
    for address, folder in ((None, tmp_path), (URL, None), ("ftp://x", tmp_path)):
        with pytest.raises(ConfigurationError):
            open_releases(settings, address, folder, **options)
    kit(tmp_path, dataclasses.replace(policies.development(), max_age_s=7))
    with pytest.raises(ConfigurationError) as refused:
        open_releases(settings, URL, tmp_path, **options)
    assert refused.value.code == "configuration.broker"


def test_the_broker_is_checked_once_before_the_first_key(tmp_path: Path) -> None:
    with bench(tmp_path) as at:
        wire, asked = Wire(at.desk), []

        def send(
            method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str]
        ) -> Answer:
            asked.append(path.partition("?")[0])
            if path.startswith("/cloister/v0/broker"):
                shown = f'{{"identity": "{at.store.identity}", "report": null}}'
                return Answer(status=200, body=shown.encode())
            return wire(method, path, body=body, headers=headers)

        def releases(identity: BrokerIdentity) -> KeyReleases:
            return KeyReleases(
                identity, send, prover=at.prover, trust=None, random=lambda size: b"\x01" * size
            )

        opened = releases(at.store.identity)
        assert [opened.release(WEIGHTS).secret, opened.release(WEIGHTS).secret] == [SECRET] * 2
        assert asked[0] == "/cloister/v0/broker"
        assert asked.count("/cloister/v0/broker") == 1
        asked.clear()
        with pytest.raises(AuthenticationError):
            releases(BrokerIdentity(b"\x07" * 32)).release(WEIGHTS)
        assert asked == ["/cloister/v0/broker"], "nothing is shown to another broker"
