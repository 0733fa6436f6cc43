"""Every way to be refused a key, each beside the worker that gets it under the same policy.

Each case leaves its own reason in the audit log, and nothing of the secret anywhere.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from cloister.broker import audit, session
from cloister.broker.denial import Denied
from cloister.broker.store import Revoked
from cloister.channel import rcar
from cloister.channel.hpke import Kem, PrivateKey
from cloister.channel.key_release import BrokerIdentity, wrapping_jwk
from cloister.channel.statement import statement_digest
from cloister.errors import CloisterError, KeyReleaseDenied
from cloister.evidence.component import Component, ComponentKind
from cloister.evidence.report import (
    AttestationReport,
    EvidenceItem,
    parse_attestation_report,
)
from cloister.strictjson import canonical
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.testing.simulated_tpm import SimulatedAttester
from cloister.verifier import policy as policies
from cloister.verifier.report import verify_report
from cloister.worker.key_release import Prover
from support.broker import (
    CLOCK_START,
    OTHER,
    SECRET,
    SOURCE,
    WEIGHTS,
    Attested,
    Bench,
    attested,
    bench,
    policy_for,
    prover_of,
    simulated,
)

NONCE = bytes(32)


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        made.store.put(OTHER, b"another secret".ljust(32, b"."))
        made.store.set_policy(OTHER, made.policy)
        yield made
        assert made.release().secret == SECRET, "the honest worker is served afterwards too"
        audit.follow_all(made.store.audit_entries())


def refused(at: Bench, attempt: Callable[[], object]) -> tuple[str, str | None]:
    """Affirm the honest twin, see `attempt` refused, and return what the audit log says."""
    assert at.release().secret == SECRET
    released = len([entry for entry in at.log() if entry["event"] == "released"])
    with pytest.raises(KeyReleaseDenied) as denied:
        attempt()
    assert SECRET.decode() not in str(denied.value)
    assert len([entry for entry in at.log() if entry["event"] == "released"]) == released
    code, because = at.denial()
    assert denied.value.code == f"key_release.{code}"
    return code, because


# --- what a worker proves itself with ---------------------------------------------------------


def report_edit(edit: Callable[[AttestationReport], AttestationReport]) -> dict[str, Any]:
    """Change the report on its way."""

    def attest(message: Any) -> None:
        own = message["tee-evidence"]["primary_evidence"]["cloister"]
        report = parse_attestation_report(own["report"].encode())
        own["report"] = edit(report).encode().decode()

    return {"edits": {"attest": attest}}


def with_item(name: str, change: Callable[[bytes], bytes]) -> dict[str, Any]:
    def edit(report: AttestationReport) -> AttestationReport:
        item = report.evidence[name]
        changed = dataclasses.replace(item, data=change(item.data))
        return dataclasses.replace(report, evidence={**report.evidence, name: changed})

    return report_edit(edit)


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


EVIDENCE = {
    "a signature with one bit flipped": with_item("tpm.signature", flipped),
    "a quote with one bit flipped": with_item("tpm.quote", flipped),
    "an event log that was cut": with_item("tpm.event_log", lambda log: log[:-30]),
    "other claims": with_item("claims", lambda claims: claims.replace(b"true", b"false")),
    "no evidence": report_edit(lambda report: dataclasses.replace(report, evidence={})),
    "another platform's name": report_edit(
        lambda report: dataclasses.replace(report, tee_type="sev-snp")
    ),
    "an unknown platform": report_edit(lambda report: dataclasses.replace(report, tee_type="x")),
    "a report that is none": {
        "edits": {
            "attest": lambda message: message["tee-evidence"]["primary_evidence"][
                "cloister"
            ].update(report="e30=")
        }
    },
    "another keyset": report_edit(
        lambda report: dataclasses.replace(
            report,
            keyset={**report.keyset, "not_after": 1_796_000_001},
        )
    ),
}


@pytest.mark.parametrize("case", EVIDENCE)
def test_altered_evidence(at: Bench, case: str) -> None:
    code, because = refused(at, lambda: at.release(**EVIDENCE[case]))
    assert code == "evidence"
    assert because


def other_model() -> SimulatedAttester:
    components = [
        dataclasses.replace(one, digest="sha256:" + "1" * 64)
        if one.kind is ComponentKind.MODEL
        else one
        for one in simulated().components
    ]
    return SimulatedAttester.make(now=CLOCK_START, components=components, ca=simulated().ca)


def _same_ca(at: Bench, worker: SimulatedAttester) -> SimulatedAttester:
    return SimulatedAttester.make(now=CLOCK_START, components=worker.components, ca=at.attester.ca)


def test_a_worker_with_another_model(at: Bench) -> None:
    worker = other_model()
    assert refused(at, lambda: at.release(prover=prover_of(worker))) == (
        "evidence",
        "model_mismatch",
    )


def test_a_worker_that_somebody_else_vouches_for(at: Bench) -> None:
    stranger = SimulatedAttester.make(now=CLOCK_START, components=at.attester.components)
    code, _ = refused(at, lambda: at.release(prover=prover_of(stranger)))
    assert code == "evidence"


def test_a_worker_with_one_component_more(at: Bench) -> None:
    more = Component(kind=ComponentKind.NATIVE, name="x", version="1", digest="sha256:" + "2" * 64)
    worker = SimulatedAttester.make(
        now=CLOCK_START, components=[*at.attester.components, more], ca=at.attester.ca
    )
    code, _ = refused(at, lambda: at.release(prover=prover_of(worker)))
    assert code == "evidence"


def test_an_expired_keyset(at: Bench) -> None:
    keyset = dataclasses.replace(at.attester.keyset, not_after=int(at.clock.now))
    expired = prover_of(at.attester, keyset=keyset)
    assert refused(at, lambda: at.release(prover=expired)) == ("evidence", "keyset_expired")


def test_development_is_refused_unless_it_is_named(at: Bench) -> None:
    strict = dataclasses.replace(at.policy, appraisal=policies.strict())

    def attempt() -> None:
        at.store.set_policy(WEIGHTS, strict)
        try:
            at.release()
        finally:
            at.store.set_policy(WEIGHTS, at.policy)

    assert at.release().secret == SECRET
    with pytest.raises(KeyReleaseDenied) as denied:
        attempt()
    assert denied.value.code == "key_release.evidence"
    causes = [entry["detail"]["because"] for entry in at.log() if entry["event"] == "denied"]
    assert causes == ["memory_unencrypted"]


def test_a_model_that_the_secret_is_not_for(at: Bench) -> None:
    served = str(at.attester.claims_document.models[0].sha256)

    def narrowed(*models: str) -> None:
        at.store.set_policy(OTHER, dataclasses.replace(at.policy, models=models))

    narrowed(served)
    assert at.release(OTHER).version == 1
    narrowed("f" * 64)
    assert refused(at, lambda: at.release(OTHER)) == ("model", None)


# --- what the evidence is for -----------------------------------------------------------------


def test_a_public_report_is_not_spent_here(at: Bench) -> None:
    def attest(message: Any) -> None:
        nonce = base64.b64decode(message["runtime-data"]["nonce"])
        own = message["tee-evidence"]["primary_evidence"]["cloister"]
        own["report"] = at.attester.report(nonce).decode()

    code, because = refused(at, lambda: at.release(edits={"attest": attest}))
    assert (code, because) == ("purpose", "quote_nonce")


def test_a_public_report_that_calls_itself_a_release(at: Bench) -> None:
    """The report's own word about what it binds decides nothing."""

    def attest(message: Any) -> None:
        nonce = base64.b64decode(message["runtime-data"]["nonce"])
        own = message["tee-evidence"]["primary_evidence"]["cloister"]
        meant = parse_attestation_report(own["report"].encode()).report_data
        public = at.attester.attestation_report(nonce)
        assert public.report_data == statement_digest(at.attester.keyset.digest, nonce)
        renamed = dataclasses.replace(public, report_data=meant)
        own["report"] = renamed.encode().decode()

    assert refused(at, lambda: at.release(edits={"attest": attest})) == ("evidence", "quote_nonce")


def test_evidence_for_another_broker(at: Bench) -> None:
    other = BrokerIdentity(b"\x07" * 32)
    assert refused(at, lambda: at.release(broker=other)) == ("broker", None)


def test_evidence_for_another_broker_that_hides_it(at: Bench) -> None:
    def attest(message: Any) -> None:
        own = message["tee-evidence"]["primary_evidence"]["cloister"]
        own["stated"]["broker"] = str(at.store.identity)

    other = BrokerIdentity(b"\x07" * 32)
    attempt = lambda: at.release(broker=other, edits={"attest": attest})  # noqa: E731
    assert refused(at, attempt) == ("evidence", "quote_nonce")


def test_evidence_for_another_secret(at: Bench) -> None:
    def auth(message: Any) -> None:
        message["extra-params"]["cloister"]["resource"] = str(OTHER)

    assert refused(at, lambda: at.release(edits={"auth": auth})) == ("other", None)


def test_evidence_for_another_secret_that_hides_it(at: Bench) -> None:
    def auth(message: Any) -> None:
        message["extra-params"]["cloister"]["resource"] = str(OTHER)

    def attest(message: Any) -> None:
        own = message["tee-evidence"]["primary_evidence"]["cloister"]
        own["stated"]["resource"] = str(OTHER)

    edits = {"auth": auth, "attest": attest}
    assert refused(at, lambda: at.release(edits=edits)) == ("evidence", "quote_nonce")


def test_evidence_for_another_version(at: Bench) -> None:
    def auth(message: Any) -> None:
        message["extra-params"]["cloister"]["version"] = 1

    assert refused(at, lambda: at.release(edits={"auth": auth})) == ("evidence", "quote_nonce")


MINE = PrivateKey(Kem.MLKEM768_X25519, b"m" * 32)


def test_another_wrapping_key(at: Bench) -> None:
    def attest(message: Any) -> None:
        message["runtime-data"]["tee-pubkey"] = wrapping_jwk(MINE.public_bytes)

    assert refused(at, lambda: at.release(edits={"attest": attest})) == ("wrapping", None)


def test_another_wrapping_key_that_hides_it(at: Bench) -> None:
    def attest(message: Any) -> None:
        message["runtime-data"]["tee-pubkey"] = wrapping_jwk(MINE.public_bytes)
        own = message["tee-evidence"]["primary_evidence"]["cloister"]
        own["stated"]["wrapping_key"] = "sha256:" + hashlib.sha256(MINE.public_bytes).hexdigest()

    assert refused(at, lambda: at.release(edits={"attest": attest})) == ("evidence", "quote_nonce")


@pytest.mark.parametrize("jwk", [{}, {"kty": "EC"}, {**wrapping_jwk(b"x" * 1216), "alg": "x25519"}])
def test_a_wrapping_key_of_another_kind(at: Bench, jwk: dict[str, str]) -> None:
    def attest(message: Any) -> None:
        message["runtime-data"]["tee-pubkey"] = jwk

    code, _ = refused(at, lambda: at.release(edits={"attest": attest}))
    assert code == "malformed"


# --- challenges and sessions ------------------------------------------------------------------


def test_another_version_of_the_protocol(at: Bench) -> None:
    def auth(message: Any) -> None:
        message["version"] = "0.4.1"

    assert refused(at, lambda: at.release(edits={"auth": auth})) == ("version", None)


def attest_again(at: Bench, made: Attested, cookie: str | None) -> bytes:
    return at.desk.attest(cookie, made.body, source=SOURCE)


def test_a_stale_challenge(at: Bench) -> None:
    def later(message: Any) -> None:
        at.clock.now += session.CHALLENGE_S

    assert refused(at, lambda: at.release(edits={"attest": later})) == ("stale", None)


def test_a_clock_that_is_set_back_makes_nothing_fresh(at: Bench) -> None:
    """Within a process time goes forward only; see `test_clock`."""
    challenge, cookie = at.desk.challenge(
        rcar.encode_request("tpm", rcar.Ask(resource=WEIGHTS)), source=SOURCE
    )
    assert rcar.parse_challenge(challenge)
    parsed = session.parse_cookie(cookie, at.store.master)
    session.check_current(parsed, at.clock.now)
    with pytest.raises(Denied):
        session.check_current(parsed, at.clock.now + session.CHALLENGE_S)


def test_an_answer_to_another_challenge(at: Bench) -> None:
    def attest(message: Any) -> None:
        message["runtime-data"]["nonce"] = base64.b64encode(NONCE).decode()

    assert refused(at, lambda: at.release(edits={"attest": attest})) == ("nonce", None)


def test_an_answer_in_another_session(at: Bench) -> None:
    made = attested(at)
    _, other = at.desk.challenge(
        rcar.encode_request("tpm", rcar.Ask(resource=WEIGHTS)), source=SOURCE
    )
    assert refused(at, lambda: attest_again(at, made, other)) == ("nonce", None)


def test_a_replayed_answer(at: Bench) -> None:
    made = attested(at)
    assert refused(at, lambda: attest_again(at, made, made.cookie)) == ("replayed", None)


def test_a_replayed_answer_after_the_release(at: Bench) -> None:
    made = attested(at)
    at.desk.release(made.cookie, made.token, WEIGHTS.path, source=SOURCE)
    assert refused(at, lambda: attest_again(at, made, made.cookie)) == ("replayed", None)


def prolonged(cookie: str) -> str:
    """The cookie with an end a year later, under the MAC of before."""
    data = base64.urlsafe_b64decode(cookie + "=" * (-len(cookie) % 4))
    payload = json.loads(data[32:])
    payload["expires"] += 366 * 86400
    return base64.urlsafe_b64encode(data[:32] + canonical(payload)).rstrip(b"=").decode()


FORGERIES: list[Callable[[str], str | None]] = [
    lambda cookie: None,
    lambda cookie: "",
    lambda cookie: cookie[:-4] + "AAAA",
    lambda cookie: "A" * 60,
    lambda cookie: "é" + cookie,
    lambda cookie: cookie * 20,
    prolonged,
]


@pytest.mark.parametrize("forge", FORGERIES)
def test_a_session_that_is_none(at: Bench, forge: Callable[[str], str | None]) -> None:
    made = attested(at)
    assert refused(at, lambda: attest_again(at, made, forge(made.cookie))) == ("session", None)


def test_another_broker_s_session(at: Bench, tmp_path_factory: pytest.TempPathFactory) -> None:
    with bench(tmp_path_factory.mktemp("other"), attester=at.attester) as other:
        foreign = attested(other)
    assert refused(at, lambda: attest_again(at, foreign, foreign.cookie)) == ("session", None)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b'{"version":', b"\xff"])
def test_messages_that_do_not_decode(at: Bench, body: bytes) -> None:
    assert refused(at, lambda: at.desk.challenge(body, source=SOURCE))[0] == "malformed"
    made = attested(at)
    _, cookie = at.desk.challenge(
        rcar.encode_request("tpm", rcar.Ask(resource=WEIGHTS)), source=SOURCE
    )
    del made
    assert refused(at, lambda: at.desk.attest(cookie, body, source=SOURCE))[0] == "malformed"


# --- tokens -----------------------------------------------------------------------------------


def shown(at: Bench, cookie: str | None, token: str | None, path: str = WEIGHTS.path) -> object:
    return at.desk.release(cookie, token, path, source=SOURCE)


def test_a_token_for_another_secret(at: Bench) -> None:
    made = attested(at)
    assert refused(at, lambda: shown(at, made.cookie, made.token, OTHER.path)) == ("scope", None)
    assert shown(at, made.cookie, made.token)


def test_a_token_that_is_too_old(at: Bench) -> None:
    made = attested(at)
    at.clock.now += session.TOKEN_S
    assert refused(at, lambda: shown(at, made.cookie, made.token)) == ("expired", None)


def test_a_token_ends_with_what_was_believed_of_the_worker(at: Bench) -> None:
    """Here with the worker's keys, as with its manifest."""
    keyset = dataclasses.replace(at.attester.keyset, not_after=int(at.clock.now) + 60)
    made = [attested(at, prover=prover_of(at.attester, keyset=keyset)) for _ in range(2)]
    at.clock.now += 59
    assert shown(at, made[0].cookie, made[0].token)
    at.clock.now += 1
    assert refused(at, lambda: shown(at, made[1].cookie, made[1].token)) == ("expired", None)


def test_a_token_of_another_session(at: Bench) -> None:
    made, other = attested(at), attested(at)
    assert refused(at, lambda: shown(at, other.cookie, made.token)) == ("token", None)
    assert shown(at, made.cookie, made.token)


def test_a_token_that_was_used(at: Bench) -> None:
    made = attested(at)
    assert shown(at, made.cookie, made.token)
    assert refused(at, lambda: shown(at, made.cookie, made.token)) == ("spent", None)


@pytest.mark.parametrize("token", [None, "", "A" * 43, "é"])
def test_no_token_of_this_broker(at: Bench, token: str | None) -> None:
    made = attested(at)
    assert refused(at, lambda: shown(at, made.cookie, token)) == ("token", None)
    assert shown(at, made.cookie, made.token)


def test_a_token_without_its_session(at: Bench) -> None:
    made = attested(at)
    assert refused(at, lambda: shown(at, None, made.token)) == ("token", None)


def test_a_session_that_was_never_attested(at: Bench) -> None:
    _, cookie = at.desk.challenge(
        rcar.encode_request("tpm", rcar.Ask(resource=WEIGHTS)), source=SOURCE
    )
    assert refused(at, lambda: shown(at, cookie, None)) == ("session", None)


@pytest.mark.parametrize(
    "path",
    [
        "/kbs/v0/resource/acme/weights/../weights/llama",
        "/kbs/v0/resource/acme/weights/%6clama",
        "/kbs/v0/resource/acme/weights/llama?version=1",
        "/kbs/v0/resource/acme/weights/llama/",
        "/kbs/v0/resource//acme/weights/llama",
        "/kbs/v0/resource/acme%2fweights/llama/x",
        "/kbs/v0/resource/acme/weights/llama\0",
        "/kbs/v0/resource/acme/weights/LLAMA/..",
    ],
)
def test_a_path_with_tricks_in_it(at: Bench, path: str) -> None:
    made = attested(at)
    assert refused(at, lambda: shown(at, made.cookie, made.token, path))[0] == "resource"
    assert shown(at, made.cookie, made.token)


@pytest.mark.parametrize("name", ["kbs:///acme/../llama", "kbs://host/a/b", "acme/weights/llama"])
def test_a_name_with_tricks_in_it(at: Bench, name: str) -> None:
    def auth(message: Any) -> None:
        message["extra-params"]["cloister"]["resource"] = name

    assert refused(at, lambda: at.release(edits={"auth": auth}))[0] == "resource"


# --- secrets and versions ---------------------------------------------------------------------


def test_a_secret_that_is_not_there(at: Bench) -> None:
    missing = dataclasses.replace(WEIGHTS, tag="missing")
    assert refused(at, lambda: at.release(missing)) == ("unknown", None)


def test_a_version_that_is_not_there(at: Bench) -> None:
    assert at.release(version=1).secret == SECRET
    assert refused(at, lambda: at.release(version=2)) == ("unknown", None)


def test_a_version_out_of_its_overlap(at: Bench) -> None:
    at.store.rotate(OTHER, b"n" * 32, overlap_s=60)
    assert at.release(OTHER, version=1).version == 1
    at.clock.now += 60
    assert refused(at, lambda: at.release(OTHER, version=1)) == ("retired", None)
    assert at.release(OTHER).secret == b"n" * 32


# --- revocation -------------------------------------------------------------------------------


def revoked(prover: Prover, at: Bench, kind: Revoked, value: str) -> Any:
    assert at.release(prover=prover).secret == SECRET
    at.store.revoke(kind, value, "for a test")
    with pytest.raises(KeyReleaseDenied):
        at.release(prover=prover)
    return at.denial()


def test_a_revoked_worker(tmp_path: Path) -> None:
    with bench(tmp_path) as at:
        digest = at.attester.keyset.digest
        found = revoked(at.prover, at, Revoked.WORKER, digest)
        assert found == ("revoked", "worker.revoked")


def test_a_revoked_component_revokes_every_worker_that_has_it(tmp_path: Path) -> None:
    with bench(tmp_path) as at:
        model = next(one for one in at.attester.components if one.kind is ComponentKind.MODEL)
        found = revoked(at.prover, at, Revoked.WORKER, model.digest)
        assert found == ("revoked", "worker.revoked")


def test_a_revoked_certificate_of_a_platform(tmp_path: Path) -> None:
    with bench(tmp_path) as at:
        der = at.attester.attestation_report(None).evidence["tpm.quote"].endorsements[0].data
        value = "sha256:" + hashlib.sha256(der).hexdigest()
        found = revoked(at.prover, at, Revoked.PLATFORM, value)
        assert found == ("revoked", "platform.revoked")


@pytest.mark.parametrize("platform", ["snp", "tdx"])
def test_a_revoked_processor(tmp_path: Path, platform: str) -> None:
    hardware = SimulatedHardware.make(platform, now=CLOCK_START)

    class Source:
        def quote(self, digest: bytes) -> dict[str, EvidenceItem]:
            return {**hardware.issue(digest)}

    prover = prover_of(hardware.worker, tee_type=hardware.tee_type, source=Source())
    facts = verify_report(
        hardware.report(NONCE),
        nonce=NONCE,
        policy=policies.development(),
        reference_values=hardware.reference_values,
        roots=hardware.roots,
        at=CLOCK_START,
    ).facts
    pck = cast("dict[str, str]", facts.get("pck", {}))
    chip = pck["ppid"] if platform == "tdx" else str(facts["chip_id"])
    with bench(tmp_path, attester=hardware.worker, roots=hardware.roots) as at:
        terms = policy_for(at.attester, reference_values=hardware.reference_values)
        at.store.set_policy(WEIGHTS, terms)
        found = revoked(prover, at, Revoked.PLATFORM, chip)
        assert found == ("revoked", "platform.revoked")


def test_what_changes_between_token_and_release_ends_the_session(at: Bench) -> None:
    made = attested(at)
    at.store.revoke(Revoked.WORKER, "sha256:" + "9" * 64, "somebody else")
    assert refused(at, lambda: shown(at, made.cookie, made.token)) == ("rules", None)


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        (Revoked.WORKER, "9" * 64, "no prefix"),
        (Revoked.MANIFEST, "sha256:99", "short"),
        (Revoked.PLATFORM, "XYZ", "no hex"),
        (Revoked.PLATFORM, "9" * 64, ""),
        (Revoked.PLATFORM, "9" * 64, "two\nlines"),
    ],
)
def test_a_revocation_that_would_revoke_nothing(
    at: Bench, kind: Revoked, value: str, reason: str
) -> None:
    with pytest.raises(CloisterError):
        at.store.revoke(kind, value, reason)
    at.store.revoke(Revoked.PLATFORM, "9" * 64, "a reason")
