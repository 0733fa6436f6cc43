"""Parsers of quotes' companions, and their verifiers, take any bytes and know one error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.endorsements.ak import google_instance, parse_ak_certificate, parse_ak_public
from cloister.endorsements.roots import Vendor
from cloister.errors import MalformedError
from cloister.evidence.eventlog import parse_event_log, parse_legacy_event_log
from cloister.evidence.hcl import parse_hcl_report
from cloister.evidence.pcrs import parse_pcrs_file, parse_pcrs_json
from cloister.evidence.subject_key import parse_subject_key
from cloister.testing.simulated_azure import SimulatedAzure
from cloister.testing.simulated_vtpm import SimulatedAkVendor, SimulatedVtpm
from cloister.verifier import policy
from cloister.verifier.authenticate.ak import AkEvidence
from cloister.verifier.evidence import run
from cloister.verifier.platforms.azure import AzureEvidence, verify_azure
from cloister.verifier.platforms.tpm import TpmEvidence, verify_tpm
from cloister.verifier.result import Finding

NOW = datetime(2026, 6, 1, tzinfo=UTC)
VTPM = SimulatedVtpm()
VTPM.boot()
VENDOR = SimulatedAkVendor(Vendor.TPM_MANUFACTURER, now=NOW)
AZURE = SimulatedAzure.make(now=NOW)
LEGACY = bytes(4) + b"\4\0\0\0" + bytes(20) + b"\4\0\0\0" + bytes(4)
PCRS = b"\1\0\0\0" + b"\x0b\0\3\1\0\0\0\0" + bytes(120) + b"\1\0\0\0"
PCRS += b"\1\0\0\0\x20\0" + bytes(64 + 7 * 66)

EVIDENCE = TpmEvidence(
    quote=VTPM.quote(b"a challenge"),
    ak_public=VTPM.public(),
    ak=AkEvidence(
        certificate=VENDOR.certify(VTPM.key.public_key()), intermediates=VENDOR.intermediates
    ),
    event_log=VTPM.event_log(),
)
ON_AZURE = AZURE.evidence(b"a challenge")
LENIENT = replace(policy.development(), require_endorsements=False)


def parse_instance(data: bytes) -> object:
    return google_instance(parse_ak_certificate(data))


GOOD: dict[Callable[[bytes], object], bytes] = {
    parse_ak_certificate: VENDOR.certify(VTPM.key.public_key(), padding_bytes=4),
    parse_ak_public: VTPM.public(),
    parse_instance: VENDOR.certify(VTPM.key.public_key()),
    parse_event_log: VTPM.event_log(),
    parse_hcl_report: AZURE.hcl_report(),
    parse_legacy_event_log: LEGACY,
    parse_pcrs_file: PCRS,
    parse_subject_key: VENDOR.certify(VTPM.key.public_key()),
    parse_pcrs_json: b'{"sha1": {"0": "%s"}}' % (b"00" * 20),
}


def scrambled(good: bytes, data: st.DataObject) -> bytes:
    """`good` with a few bytes changed, and maybe cut."""
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(changed)))
    return bytes(changed[:end]) if data.draw(st.booleans()) else bytes(changed)


@pytest.mark.parametrize("parse", GOOD, ids=lambda parse: parse.__name__)
def test_the_examples_are_good(parse: Callable[[bytes], object]) -> None:
    parse(GOOD[parse])


@pytest.mark.parametrize("parse", GOOD, ids=lambda parse: parse.__name__)
@given(data=st.binary(max_size=512))
def test_any_bytes(parse: Callable[[bytes], object], data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        parse(data)


@pytest.mark.parametrize("parse", GOOD, ids=lambda parse: parse.__name__)
@given(data=st.data())
def test_good_bytes_with_a_few_changed(
    parse: Callable[[bytes], object], data: st.DataObject
) -> None:
    with contextlib.suppress(MalformedError):
        parse(scrambled(GOOD[parse], data))


def of_the_tpm(field: str, data: st.DataObject) -> TpmEvidence:
    assert EVIDENCE.quote is not None
    assert EVIDENCE.ak is not None
    match field:
        case "quote":
            quote = scrambled(EVIDENCE.quote.quote, data)
            return replace(EVIDENCE, quote=replace(EVIDENCE.quote, quote=quote))
        case "signature":
            signature = scrambled(EVIDENCE.quote.signature, data)
            return replace(EVIDENCE, quote=replace(EVIDENCE.quote, signature=signature))
        case "ak_public":
            return replace(EVIDENCE, ak_public=scrambled(VTPM.public(), data))
        case "certificate":
            certificate = scrambled(EVIDENCE.ak.certificate, data)
            return replace(EVIDENCE, ak=replace(EVIDENCE.ak, certificate=certificate))
        case _:
            return replace(EVIDENCE, event_log=scrambled(VTPM.event_log(), data))


def test_the_unchanged_evidence_is_affirmed() -> None:
    result = run(verify_tpm, EVIDENCE, policy=LENIENT, roots=VENDOR.roots, at=NOW)
    assert result.verdict is Finding.AFFIRMING
    result = run(verify_azure, ON_AZURE, policy=LENIENT, roots=AZURE.roots, at=NOW)
    assert result.verdict is Finding.AFFIRMING


@pytest.mark.parametrize("field", ["quote", "signature", "ak_public", "certificate", "event_log"])
@settings(max_examples=60)
@given(data=st.data())
def test_changed_evidence_is_a_finding_and_never_an_exception(
    field: str, data: st.DataObject
) -> None:
    evidence = of_the_tpm(field, data)
    result = run(verify_tpm, evidence, policy=LENIENT, roots=VENDOR.roots, at=NOW)
    if field in {"quote", "signature", "certificate"} and evidence != EVIDENCE:
        assert result.verdict is not Finding.AFFIRMING


@settings(max_examples=60)
@given(data=st.data())
def test_a_changed_report_of_the_paravisor_is_never_affirmed(data: st.DataObject) -> None:
    report = scrambled(ON_AZURE.hcl_report, data)
    evidence: AzureEvidence = replace(ON_AZURE, hcl_report=report)
    result = run(verify_azure, evidence, policy=LENIENT, roots=AZURE.roots, at=NOW)
    known = ON_AZURE.hcl_report
    # Nobody signs the header's version, of which two are known.
    if (report[:4] + known[4:5] + report[5:]).rstrip(b"\0") != known.rstrip(b"\0"):
        assert result.verdict is not Finding.AFFIRMING
