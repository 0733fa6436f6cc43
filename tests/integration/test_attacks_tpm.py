"""The worst of `test_attacks_worker` once more, with a real TPM 2.0 implementation behind it.

The worker quotes through `cloister.attester.quote`; what lies has the same TPM, and everything
that its commands allow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attester.enrolment import EnrolmentCa
from cloister.attester.quote import TpmAttester, enrol
from cloister.attester.swtpm import SoftwareTpm
from cloister.attester.tpm import AK_ATTRIBUTES, signing_template
from cloister.client.connect import TrustOptions
from cloister.endorsements.roots import Roots
from cloister.evidence.component import QUOTED_REGISTERS
from cloister.evidence.eventlog import Event, EventType, encode_event_log, measured_event
from cloister.evidence.report import AttestationReport
from cloister.evidence.tpm import Alg, ObjectAttribute
from cloister.testing.fake_engine import FakeEngine
from cloister.testing.simulated_tpm import SimulatedAttester, SimulatedEnrolmentCa
from cloister.verifier import policy as policies
from support.lies import Edit, affirmed, delivered, endorsed_by, refusal, relogged, with_data
from support.scene import FAKE_MODEL, Scene, launched, scene
from support.software_tpm import HAVE_SWTPM, software_tpm

pytestmark = [
    pytest.mark.tpm,
    pytest.mark.skipif(not HAVE_SWTPM, reason="swtpm is not installed"),
]


@dataclass(frozen=True, kw_only=True)
class RealTpm:
    """A worker behind a proxy, its TPM, and what its clients believe."""

    at: Scene
    tpm: SoftwareTpm
    ak: int
    ca: EnrolmentCa
    trust: TrustOptions


@contextmanager
def launched_in_tpm(
    attester: SimulatedAttester, ca: EnrolmentCa | None = None
) -> Iterator[RealTpm]:
    """What `attester` says is launched, measured into a real TPM instead of a simulated one."""
    with software_tpm() as (tpm, made):
        now = datetime.now(UTC)  # the TPM may have been made just now
        for event in attester.events:
            tpm.tpm.extend(event.pcr, event.digests[Alg.SHA256])
        ca = ca or EnrolmentCa.in_memory(manufacturers=[made.root], at=now)
        ak, certificate = enrol(tpm.tpm, ca, intermediates=[made.issuer], at=now)
        source = TpmAttester(
            tpm.tpm,
            ak_handle=ak.handle,
            ak_chain=(certificate, ca.certificate),
            event_log=encode_event_log(attester.events),
        )
        sha256 = str(attester.claims_document.models[0].sha256)
        engine = FakeEngine(model=dataclasses.replace(FakeEngine().model, sha256=sha256))
        trust: TrustOptions = {
            "policy": policies.development(),
            "reference_values": attester.reference_values,
            "roots": Roots(enrolment_cas=(ca.certificate,)),
        }
        with scene(attester=attester, source=source, engine=engine) as at:
            yield RealTpm(at=at, tpm=tpm, ak=ak.handle, ca=ca, trust=trust)


@pytest.fixture
def real() -> Iterator[RealTpm]:
    with launched_in_tpm(launched()) as made:
        affirmed(made.at, **made.trust)
        yield made


def refused(real: RealTpm, edit: Edit) -> str:
    """Deliver what `edit` makes of genuine reports, see it refused, and the truth affirmed."""
    real.at.proxy.on_reply = delivered(edit)
    code = refusal(real.at, real.trust).code
    real.at.proxy.on_reply = None
    affirmed(real.at, **real.trust)
    return code


def test_another_model_in_a_genuine_tpm_is_refused() -> None:
    with launched_in_tpm(launched()) as honest:
        affirmed(honest.at, **honest.trust)
        changed = launched(dataclasses.replace(FAKE_MODEL, digest="sha256:" + "1" * 64))
        with launched_in_tpm(changed, honest.ca) as other:
            affirmed(other.at, **other.trust)
            assert refusal(other.at, honest.trust).code == "model_mismatch"


def test_an_older_quote_is_refused(real: RealTpm) -> None:
    kept: list[AttestationReport] = []

    def keep(report: AttestationReport, _: bytes) -> AttestationReport:
        kept.append(report)
        return report

    real.at.proxy.on_reply = delivered(keep)
    affirmed(real.at, **real.trust)
    assert refused(real, lambda _report, _nonce: kept[0]) == "quote_nonce"


@pytest.mark.parametrize("registers", [QUOTED_REGISTERS[:15], (16, 23), (8, 14, 15)])
def test_a_quote_over_other_registers_is_refused(real: RealTpm, registers: tuple[int, ...]) -> None:
    def edit(report: AttestationReport, _: bytes) -> AttestationReport:
        quote, signature = real.tpm.tpm.quote(real.ak, report.report_data, registers)
        return with_data(report, tpm_quote=quote, tpm_signature=signature)

    assert refused(real, edit) == "quote_selection"


def test_a_quote_by_a_key_of_the_same_tpm_that_nobody_certified_is_refused(real: RealTpm) -> None:
    # A primary key comes from its template: with one attribute changed it is another key.
    template = signing_template(AK_ATTRIBUTES | ObjectAttribute.NO_DA)
    other = real.tpm.tpm.create_primary(template)

    def edit(report: AttestationReport, _: bytes) -> AttestationReport:
        quote, signature = real.tpm.tpm.quote(other.handle, report.report_data, QUOTED_REGISTERS)
        return with_data(report, tpm_quote=quote, tpm_signature=signature)

    assert refused(real, edit) == "quote_signature"


def test_a_certificate_by_a_root_that_only_the_report_names_is_refused(real: RealTpm) -> None:
    stranger = SimulatedEnrolmentCa(now=datetime.now(UTC))

    def edit(report: AttestationReport, _: bytes) -> AttestationReport:
        leaf = report.evidence["tpm.quote"].endorsements[0].data
        key = x509.load_der_x509_certificate(leaf).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return endorsed_by(report, stranger.certify(key), stranger.certificate)

    assert refused(real, edit) == "ak_root_unpinned"


def other_model(events: list[Event]) -> list[Event]:
    at = next(index for index, event in enumerate(events) if b'"model"' in event.data)
    data = events[at].data.replace(b"0" * 64, b"1" * 64)
    return [*events[:at], measured_event(events[at].pcr, events[at].type, data), *events[at + 1 :]]


@pytest.mark.parametrize(
    "change", [other_model, lambda events: [events[0], *events], lambda events: events[1:]]
)
def test_a_log_with_one_event_changed_added_or_left_out_is_refused(
    real: RealTpm, change: Callable[[list[Event]], list[Event]]
) -> None:
    assert refused(real, lambda report, _: relogged(report, change)) == "pcr_digest"


def test_something_measured_after_the_launch_is_refused_with_and_without_a_log(
    real: RealTpm,
) -> None:
    event = measured_event(15, EventType.EV_IPL, b"{}")
    real.tpm.tpm.extend(event.pcr, event.digests[Alg.SHA256])
    assert refusal(real.at, real.trust).code == "pcr_digest"
    real.at.proxy.on_reply = delivered(
        lambda report, _: relogged(report, lambda events: [*events, event])
    )
    assert refusal(real.at, real.trust).code == "eventlog_replay"
