"""A worker that is not what it should be: refused by the real client, each lie by its own code.

The worker is real and listens on loopback; its TPM is a simulated one whose key the tests hold,
so that they can lie with it. Every test first has the honest twin affirmed and asked by a client
with the same beliefs. Nothing of a prompt leaves a client that refuses: no POST is ever made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from cloister.channel.claims import ClaimsDocument, ModelClaim
from cloister.channel.hpke import Kem
from cloister.channel.keyset import parse_keyset
from cloister.channel.ohttp import ServerKey
from cloister.channel.statement import statement_digest
from cloister.client.connect import TrustOptions
from cloister.errors import AppraisalError, UnsupportedError
from cloister.evidence.component import Component, ComponentKind
from cloister.evidence.eventlog import Event, EventType, measured_event
from cloister.evidence.report import AttestationReport
from cloister.evidence.tpm import Alg, PcrSelection
from cloister.testing.fake_engine import FakeEngine
from cloister.testing.simulated_tpm import (
    SimulatedAttester,
    SimulatedEnrolmentCa,
    default_configuration,
    made_up,
)
from cloister.verifier import policy as policies
from cloister.worker.settings import RateLimit, ReportSettings, WorkerSettings
from support.lies import Edit, affirmed, delivered, endorsed_by, refusal, relogged, with_data
from support.scene import FAKE_MODEL, Scene, launched, quoted, scene

OTHER: Final = "sha256:" + "1" * 64


# -- a worker that runs something else --------------------------------------------------------


def configured(**members: Any) -> dict[str, Any]:
    return {**default_configuration(), **members}


LAUNCHES: dict[str, tuple[dict[str, Any], tuple[Component, ...], str, str]] = {
    "another model file": (
        {},
        (dataclasses.replace(FAKE_MODEL, digest=OTHER),),
        "model_mismatch",
        "serves a model that is not accepted",
    ),
    "other code in a package": (
        {},
        (dataclasses.replace(made_up(ComponentKind.DISTRIBUTION, "cloister"), digest=OTHER),),
        "package_mismatch",
        "installed packages: not as the reference values say",
    ),
    "another native library": (
        {},
        (dataclasses.replace(made_up(ComponentKind.NATIVE, "libllama.so"), digest=OTHER),),
        "component_mismatch",
        "interpreter and native files: not as the reference values say",
    ),
    "one more package": (
        {},
        (made_up(ComponentKind.DISTRIBUTION, "back-door"),),
        "component_unexpected",
        "distribution back-door",
    ),
    "a changed configuration": (
        {"configuration": configured(engine={"context": 4096, "prefix_cache": "shared"})},
        (),
        "configuration_mismatch",
        "effective configuration: not as the reference values say",
    ),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_worker_that_runs_something_else_is_refused(name: str) -> None:
    options, changed, code, sentence = LAUNCHES[name]
    with scene() as honest:
        affirmed(honest)
        beliefs, ca = honest.trust, honest.live.attester.ca
    # Launched for real with what differs, and certified by the same CA.
    attester = launched(*changed, ca=ca, **options)
    sha256 = str(attester.claims_document.models[0].sha256)
    engine = FakeEngine(model=dataclasses.replace(FakeEngine().model, sha256=sha256))
    with scene(attester=attester, engine=engine) as at:
        affirmed(at, **at.trust)  # by a client that expects just this, so nothing else is wrong
        error = refusal(at, beliefs)
        assert (error.code, type(error)) == (code, AppraisalError)
        assert sentence in str(error)


def expecting(at: Scene, **policy: Any) -> TrustOptions:
    """Beliefs that fit what this worker runs, under another policy."""
    return {**at.trust, "policy": dataclasses.replace(policies.development(), **policy)}


@pytest.mark.parametrize(
    ("configuration", "allowed", "code", "sentence"),
    [
        (configured(debug=True), {"accept_debug": True}, "configuration_debug", "debugging on"),
        (
            configured(isolation={"mode": "none (unsafe)", "layers": []}),
            {"isolation": ("none (unsafe)",)},
            "sandbox_unsafe",
            "not held in a sandbox",
        ),
        (
            configured(termination="in-engine"),
            {"termination": ("in-engine",)},
            "termination_refused",
            "inside the engine's own process",
        ),
        (
            configured(separation="kindly"),
            {"separation": policies.UNCHECKED},
            "separation_refused",
            "how people are kept apart",
        ),
    ],
)
def test_a_configuration_that_no_reference_value_excuses(
    configuration: dict[str, Any], allowed: dict[str, Any], code: str, sentence: str
) -> None:
    with scene(attester=launched(configuration=configuration)) as at:
        affirmed(at, **expecting(at, **allowed))
        error = refusal(at)
        assert error.code == code
        assert sentence in str(error)


# -- a worker whose time or platform is not accepted ------------------------------------------


def test_an_expired_keyset_is_refused() -> None:
    with scene() as at:
        affirmed(at)
        at.live.clocks.wall_offset -= 2 * policies.HOUR  # so its keys expire in the past

        async def rotate() -> None:
            at.live.worker.context.keys.rotate()

        at.live.run(rotate())
        error = refusal(at)
        assert error.code == "keyset_expired"
        assert str(error).endswith("The worker's keys have expired.")


@pytest.mark.parametrize("policy", ["strict", "all but development"])
def test_a_development_platform_is_refused_unless_the_policy_names_it(
    policy: str, tmp_path: Path
) -> None:
    strict = policies.strict()
    almost = dataclasses.replace(policies.development(), accept_development=False)
    with scene() as at:
        affirmed(at)
        error = refusal(at, {**at.trust, "policy": strict if policy == "strict" else almost})
        assert isinstance(error, AppraisalError)
        assert error.result is not None
        codes = {failure.code for failure in error.result.failures}
        assert "development_refused" in codes
        assert codes == {"development_refused"} or policy == "strict"
        assert "development (software TPM)" in str(error.result.failures[-1].explanation)


def test_a_kit_alone_does_not_admit_a_development_platform(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    with scene() as at:
        attester = at.live.attester
        (tmp_path / "policy.toml").write_text(policies.development().dump_toml())
        (tmp_path / "reference-values.json").write_text(attester.reference_values.dump_json())
        (tmp_path / "enrolment-ca.pem").write_bytes(
            attester.ca.certificate.public_bytes(Encoding.PEM)
        )
        nothing: TrustOptions = {"policy": None, "reference_values": None, "roots": None}
        affirmed(at, **{**nothing, "kit": tmp_path, "development": True})
        error = refusal(at, {**nothing, "kit": tmp_path})
        assert error.code == "development_refused"


# -- a report that lies ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Whom the liar knows."""

    attester: SimulatedAttester
    """The worker under attack: its keys sign whatever the liar likes."""
    colleague: SimulatedAttester
    """Another genuine worker, launched alike and certified by the same CA."""
    before: AttestationReport
    """A genuine report of the worker, for an earlier client's nonce."""
    unchallenged: AttestationReport
    """The one it serves to whoever sends no nonce."""


Lie = Callable[[Stage], Edit]
LIES: dict[str, tuple[Lie, str, str]] = {}


def lie(code: str, sentence: str) -> Callable[[Lie], Lie]:
    def register(made: Lie) -> Lie:
        LIES[made.__name__] = made, code, sentence
        return made

    return register


@lie("quote_nonce", "did not sign your challenge")
def an_older_report(stage: Stage) -> Edit:
    return lambda _report, _nonce: stage.before


@lie("quote_nonce", "did not sign your challenge")
def an_older_quote_in_a_fresh_report(stage: Stage) -> Edit:
    return lambda report, _: dataclasses.replace(report, evidence=stage.before.evidence)


@lie("quote_nonce", "answers no challenge at all")
def a_quote_for_nobody(stage: Stage) -> Edit:
    return lambda report, _: dataclasses.replace(report, evidence=stage.unchallenged.evidence)


@lie("quote_nonce", "somebody else's")
def somebody_elses_evidence(stage: Stage) -> Edit:
    """Quoted for this very challenge, by a genuine worker, over that worker's own keys."""

    def edit(report: AttestationReport, nonce: bytes) -> AttestationReport:
        signed = statement_digest(stage.colleague.keyset.digest, nonce)
        evidence = {**report.evidence, **quoted(stage.colleague, signed)}
        return dataclasses.replace(report, evidence=evidence)

    return edit


@lie("quote_signature", "not signed by the key in the certificate")
def somebody_elses_quote_under_our_certificate(stage: Stage) -> Edit:
    def edit(report: AttestationReport, nonce: bytes) -> AttestationReport:
        theirs = quoted(stage.colleague, statement_digest(report.keyset_digest, nonce))
        return with_data(
            report, tpm_quote=theirs["tpm.quote"].data, tpm_signature=theirs["tpm.signature"].data
        )

    return edit


@lie("quote_signature", "or was changed since")
def a_quote_changed_after_it_was_signed(_: Stage) -> Edit:
    def edit(report: AttestationReport, nonce: bytes) -> AttestationReport:
        quote = bytearray(report.evidence["tpm.quote"].data)
        quote[-1] ^= 1
        return with_data(report, tpm_quote=bytes(quote))

    return edit


def selecting(stage: Stage, *selection: PcrSelection) -> Edit:
    def edit(report: AttestationReport, nonce: bytes) -> AttestationReport:
        quote, signature = stage.attester.tpm.quote(report.report_data, selection=selection)
        return with_data(report, tpm_quote=quote, tpm_signature=signature)

    return edit


@lie("quote_selection", "covers other registers")
def a_quote_that_leaves_the_model_out(stage: Stage) -> Edit:
    return selecting(stage, PcrSelection(hash_algorithm=Alg.SHA256, pcrs=tuple(range(15))))


@lie("quote_selection", "covers other registers")
def a_quote_of_registers_that_anybody_may_reset(stage: Stage) -> Edit:
    return selecting(stage, PcrSelection(hash_algorithm=Alg.SHA256, pcrs=(16, 23)))


@lie("quote_selection", "covers other registers")
def a_quote_of_another_bank_besides(stage: Stage) -> Edit:
    every = tuple(range(16))
    return selecting(
        stage,
        PcrSelection(hash_algorithm=Alg.SHA256, pcrs=every),
        PcrSelection(hash_algorithm=Alg.SHA1, pcrs=every),
    )


def other_model(event: Event) -> Event:
    data = event.data.replace(b"0" * 64, b"1" * 64)
    assert data != event.data
    return dataclasses.replace(event, data=data)


def model_event(events: list[Event]) -> int:
    return next(index for index, event in enumerate(events) if b'"model"' in event.data)


@lie("eventlog_digest", "says something else than what was measured")
def a_log_with_the_words_of_one_event_changed(_: Stage) -> Edit:
    def change(events: list[Event]) -> list[Event]:
        at = model_event(events)
        return [*events[:at], other_model(events[at]), *events[at + 1 :]]

    return lambda report, _: relogged(report, change)


@lie("pcr_digest", "does not replay")
def a_log_with_one_event_changed(_: Stage) -> Edit:
    def change(events: list[Event]) -> list[Event]:
        at = model_event(events)
        data = other_model(events[at]).data
        return [
            *events[:at],
            measured_event(events[at].pcr, events[at].type, data),
            *events[at + 1 :],
        ]

    return lambda report, _: relogged(report, change)


@lie("pcr_digest", "does not replay")
def a_log_with_one_event_added(_: Stage) -> Edit:
    return lambda report, _: relogged(report, lambda events: [events[0], *events])


@lie("pcr_digest", "does not replay")
def a_log_with_one_event_left_out(_: Stage) -> Edit:
    return lambda report, _: relogged(report, lambda events: events[1:])


@lie("eventlog_replay", "after it was closed")
def a_log_that_goes_on_after_the_launch(stage: Stage) -> Edit:
    def edit(report: AttestationReport, nonce: bytes) -> AttestationReport:
        event = measured_event(15, EventType.EV_IPL, b"{}")
        registers = dict(stage.attester.tpm.registers)
        stage.attester.tpm.extend(event)  # and the TPM bears the log out
        quote, signature = stage.attester.tpm.quote(report.report_data)
        stage.attester.tpm.registers = registers
        report = with_data(report, tpm_quote=quote, tpm_signature=signature)
        return relogged(report, lambda events: [*events, event])

    return edit


@lie("ak_uncertified", "no certificate")
def a_key_without_a_certificate(_: Stage) -> Edit:
    return lambda report, _: endorsed_by(report)


@lie("ak_uncertified", "not certified by a CA that you pinned")
def a_key_certified_by_itself(stage: Stage) -> Edit:
    itself = SimulatedEnrolmentCa(now=datetime.now(UTC))
    itself.key = stage.attester.tpm.key
    return lambda report, _: endorsed_by(report, itself.certify(itself.key.public_key()))


@lie("ak_root_unpinned", "by a root that only the report names")
def a_key_certified_by_a_root_that_only_the_report_names(stage: Stage) -> Edit:
    stranger = SimulatedEnrolmentCa(now=datetime.now(UTC))  # of the very same name
    chain = (stranger.certify(stage.attester.tpm.key.public_key()), stranger.certificate)
    return lambda report, _: endorsed_by(report, *chain)


@lie("ak_purpose", "not issued for attestation keys")
def a_key_certified_for_something_else(stage: Stage) -> Edit:
    certificate = stage.attester.ca.certify(stage.attester.tpm.key.public_key(), usages=())
    return lambda report, _: endorsed_by(report, certificate)


@lie("ak_expired", "not valid at this time")
def a_key_whose_certificate_has_expired(stage: Stage) -> Edit:
    now = datetime.now(UTC)
    certificate = stage.attester.ca.certify(
        stage.attester.tpm.key.public_key(),
        not_before=now - timedelta(days=2),
        not_after=now - timedelta(hours=1),
    )
    return lambda report, _: endorsed_by(report, certificate)


@lie("claims_unbound", "not the one that the keyset names")
def claims_that_the_quote_does_not_bind(stage: Stage) -> Edit:
    better = dataclasses.replace(
        stage.attester.claims_document, models=(ModelClaim(name="better", sha256="2" * 64),)
    )
    return lambda report, _: with_data(report, claims=better.encode())


def with_keys_of_our_own(report: AttestationReport) -> AttestationReport:
    keyset = parse_keyset(report.keyset)
    ours = ServerKey.generate(1, Kem.MLKEM768_X25519).config.encode().hex()
    entry = dataclasses.replace(keyset.e2ee_public_keys[0], public_key=ours)
    changed = dataclasses.replace(keyset, e2ee_public_keys=(entry,))
    return dataclasses.replace(report, keyset=changed.to_json())


@lie("keyset_unbound", "not the ones that the TPM signed for")
def a_keyset_that_the_quote_does_not_bind(_: Stage) -> Edit:
    return lambda report, _: with_keys_of_our_own(report)


@lie("quote_nonce", "the keys were replaced")
def a_keyset_that_the_quote_does_not_bind_with_its_own_digest(_: Stage) -> Edit:
    def edit(report: AttestationReport, _: bytes) -> AttestationReport:
        changed = with_keys_of_our_own(report)
        digest = parse_keyset(changed.keyset).digest
        return dataclasses.replace(changed, keyset_digest=digest)

    return edit


@lie("platform_unsupported", "cannot check")
def a_platform_that_nobody_can_check(_: Stage) -> Edit:
    return lambda report, _: dataclasses.replace(report, tee_type="perfect")


@pytest.fixture(scope="module")
def stage() -> Iterator[tuple[Scene, Stage]]:
    """One worker for all lies; each has it affirmed before."""
    many = WorkerSettings(reports=ReportSettings(per_source=RateLimit(per_minute=0)))
    with scene(many) as at:
        kept: list[AttestationReport] = []

        def keep(report: AttestationReport, _: bytes) -> AttestationReport:
            kept.append(report)
            return report

        at.proxy.on_reply = delivered(keep)
        at.client()
        attester = at.live.attester
        served = attester.attestation_report(None)
        current = at.live.worker.context.keys.current
        unchallenged = dataclasses.replace(
            served,
            evidence={
                **served.evidence,
                **quoted(attester, statement_digest(current.digest, None)),
            },
        )
        yield (
            at,
            Stage(
                attester=attester,
                colleague=launched(ca=attester.ca),
                before=kept[0],
                unchallenged=unchallenged,
            ),
        )


@pytest.mark.parametrize("name", LIES)
def test_a_report_that_lies_is_refused(stage: tuple[Scene, Stage], name: str) -> None:
    made, code, sentence = LIES[name]
    at, about = stage
    at.proxy.on_reply = delivered(lambda report, _: report)  # parsed and encoded, and still true
    affirmed(at)
    at.proxy.on_reply = delivered(made(about))
    error = refusal(at)
    assert error.code == code
    assert isinstance(error, UnsupportedError if code == "platform_unsupported" else AppraisalError)
    assert sentence in str(error)
    assert str(error).rstrip().endswith((".", ")"))
    at.proxy.on_reply = None
    affirmed(at)


def test_claims_that_say_something_else_than_what_was_measured() -> None:
    """Bound by a genuine quote, because the worker itself says so: yet not what was measured."""
    with scene() as at:
        affirmed(at)
    attester = launched()
    attester.claims_document = ClaimsDocument(
        models=(ModelClaim(name="fake", sha256="2" * 64),),
        configuration=attester.claims_document.configuration,
        isolation=attester.claims_document.isolation,
    )
    with scene(attester=attester) as at:
        error = refusal(at)
        assert error.code == "claims_mismatch"
        assert "something else than what was measured" in str(error)


def test_each_of_these_has_a_code_and_a_sentence_of_its_own() -> None:
    told = [(code, sentence) for _, _, code, sentence in LAUNCHES.values()]
    told += [
        LIES[name][1:]
        for name in (
            "an_older_report",
            "somebody_elses_quote_under_our_certificate",
            "a_quote_that_leaves_the_model_out",
            "a_log_with_the_words_of_one_event_changed",
            "a_log_with_one_event_added",
            "a_log_that_goes_on_after_the_launch",
            "a_key_without_a_certificate",
            "a_key_certified_by_a_root_that_only_the_report_names",
            "claims_that_the_quote_does_not_bind",
            "a_keyset_that_the_quote_does_not_bind",
        )
    ]
    assert len({code for code, _ in told}) == len(told)
