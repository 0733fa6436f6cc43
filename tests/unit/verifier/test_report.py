"""Every check of a report, by the one thing that breaks it.

Each case builds a world that is right, affirms its report unaltered, changes one thing and
expects one code. Cases that need another launch say what must be accepted for it to be right.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.channel.claims import ClaimsDocument, ModelClaim
from cloister.channel.keyset import Keyset, PublicKeyEntry
from cloister.channel.ohttp_keys import ServerKey
from cloister.channel.statement import statement_digest
from cloister.endorsements.roots import Roots, fingerprint
from cloister.errors import AppraisalError, UnsupportedError
from cloister.evidence.component import (
    Component,
    ComponentKind,
    configuration_component,
    launch_events,
)
from cloister.evidence.eventlog import (
    SEPARATOR_DATA,
    Event,
    EventType,
    encode_event_log,
    measured_event,
    parse_event_log,
)
from cloister.evidence.report import (
    ITEM_CLAIMS,
    ITEM_EVENT_LOG,
    ITEM_QUOTE,
    ITEM_SIGNATURE,
    AttestationReport,
    Endorsement,
    EvidenceItem,
)
from cloister.evidence.tpm import (
    Alg,
    ClockInfo,
    PcrSelection,
    encode_quote,
    parse_quote,
    sized,
)
from cloister.strictjson import Json, JsonObject
from cloister.testing.simulated_tpm import (
    SIMULATED_FIRMWARE,
    SimulatedAttester,
    SimulatedEnrolmentCa,
    SimulatedTpm,
    default_components,
    default_configuration,
    endorse,
    made_up,
)
from cloister.verifier import policy as policies
from cloister.verifier.appraise import serving
from cloister.verifier.policy import UNCHECKED, AppraisalPolicy
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.report import claim_names, verify_report
from cloister.verifier.report_findings import DEVELOPMENT_PLATFORM
from cloister.verifier.result import AttestationResult, Finding, Source
from support.certificates import P256_ORDER, respelled

NOW = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)
NONCE = bytes(range(32))
OLD_NONCE = bytes(reversed(range(32)))


@dataclass(kw_only=True)
class World:
    """An attester, and everything its relying party holds."""

    attester: SimulatedAttester
    report: AttestationReport
    roots: Roots
    reference_values: ReferenceValues
    policy: AppraisalPolicy = field(default_factory=policies.development)
    nonce: bytes = NONCE
    at: datetime = NOW
    raw: bytes | None = None

    def verify(self) -> AttestationResult:
        return verify_report(
            self.report.encode() if self.raw is None else self.raw,
            nonce=self.nonce,
            policy=self.policy,
            reference_values=self.reference_values,
            roots=self.roots,
            at=self.at,
        )

    def replace_item(self, name: str, item: EvidenceItem | None) -> None:
        evidence = dict(self.report.evidence)
        if item is None:
            del evidence[name]
        else:
            evidence[name] = item
        self.report = dataclasses.replace(self.report, evidence=evidence)

    def replace_data(self, name: str, data: bytes) -> None:
        self.replace_item(name, dataclasses.replace(self.report.evidence[name], data=data))

    def endorsed_by(self, *chain: x509.Certificate) -> None:
        quote = self.report.evidence[ITEM_QUOTE]
        self.replace_item(ITEM_QUOTE, dataclasses.replace(quote, endorsements=endorse(chain)))

    def requote(self, data: bytes) -> None:
        """Sign `data` with the attester's own key, as a broken TPM would."""
        self.replace_data(ITEM_QUOTE, data)
        self.replace_data(ITEM_SIGNATURE, self.attester.tpm.sign(data))

    def relog(self, change: Callable[[list[Event]], list[Event]]) -> None:
        """Change the log, not the registers."""
        log = parse_event_log(self.report.evidence[ITEM_EVENT_LOG].data)
        self.replace_data(ITEM_EVENT_LOG, encode_event_log(change(list(log.events))))


def world(**make: Any) -> World:
    attester = SimulatedAttester.make(now=NOW, **make)
    return World(
        attester=attester,
        report=attester.attestation_report(NONCE),
        roots=attester.roots,
        reference_values=attester.reference_values,
    )


def affirm(good: World) -> None:
    good.verify().require_affirming()


def refuse(bad: World, code: str, claim: str) -> AttestationResult:
    result = bad.verify()
    by_name = {each.name: each for each in result.claims}
    assert by_name[claim].code == code
    assert by_name[claim].finding is Finding.CONTRAINDICATED
    assert result.attester is None
    with pytest.raises(AppraisalError) as raised:
        result.require_affirming()
    assert raised.value.code == code, [each.code for each in result.failures]
    assert raised.value.result is result
    assert str(raised.value).endswith((".", ")"))
    return result


# --- a good report ------------------------------------------------------------------------


def test_a_good_report_is_affirmed_claim_by_claim() -> None:
    good = world()
    result = good.verify()
    assert {claim.finding for claim in result.claims} == {Finding.AFFIRMING}
    assert tuple(claim.name for claim in result.claims) == claim_names(good.policy)
    assert all(claim.code is None and claim.explanation for claim in result.claims)
    assert result.platform == DEVELOPMENT_PLATFORM == "development (software TPM)"
    assert result.development
    assert result.memory_confidentiality == "none"
    assert result.policy_id == good.policy.policy_id
    assert len(result.not_proven) >= 4
    affirmed = result.require_affirming()
    assert affirmed.development
    assert affirmed.platform == DEVELOPMENT_PLATFORM
    assert affirmed.keyset == good.attester.keyset
    assert affirmed.keyset_digest == good.attester.keyset.digest
    assert affirmed.claims_document["isolation"] == "sandbox"


def test_the_time_may_be_in_any_zone() -> None:
    good = world()
    good.at = NOW.astimezone(timezone(timedelta(hours=9)))
    assert good.verify().appraised_at == NOW
    affirm(good)


def test_the_keyset_expires_when_the_policy_says_or_earlier() -> None:
    good = world(keyset_lifetime=timedelta(minutes=10))
    assert good.verify().require_affirming().expires_at == NOW + timedelta(minutes=10)
    long = world(keyset_lifetime=timedelta(hours=20))
    assert long.verify().require_affirming().expires_at == NOW + timedelta(hours=1)
    long.policy = dataclasses.replace(long.policy, max_age_s=UNCHECKED)
    assert long.verify().require_affirming().expires_at == NOW + timedelta(hours=20)


def test_an_intermediate_in_the_report_may_join_key_and_root() -> None:
    good = world()
    intermediate = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Between")])
    between = good.attester.ca.certify_ca(intermediate.public_key(), name)
    below = SimulatedEnrolmentCa(now=NOW, name="Between")
    below.key = intermediate
    good.endorsed_by(below.certify(good.attester.tpm.key.public_key()), between)
    affirm(good)


@pytest.mark.parametrize("nonce", [b"", b"\0" * 31, b"\0" * 33])
def test_a_nonce_of_another_size_is_a_mistake_of_the_caller(nonce: bytes) -> None:
    good = world()
    good.nonce = nonce
    with pytest.raises(ValueError, match="nonce"):
        good.verify()


def test_a_time_without_zone_is_a_mistake_of_the_caller() -> None:
    good = world()
    good.at = NOW.replace(tzinfo=None)
    with pytest.raises(ValueError, match="time zone"):
        good.verify()


# --- one change each ----------------------------------------------------------------------

Change = Callable[[World], None]
CASES: dict[str, tuple[Change, str, str]] = {}


def case(code: str, claim: str) -> Callable[[Change], Change]:
    def register(change: Change) -> Change:
        CASES[change.__name__] = (change, code, claim)
        return change

    return register


def raw_with(change: Callable[[dict[str, Any]], None]) -> Change:
    def apply(bad: World) -> None:
        document = json.loads(bad.report.encode())
        change(document)
        bad.raw = json.dumps(document).encode()

    return apply


@case("report_malformed", "report.format")
def report_that_is_not_json(bad: World) -> None:
    bad.raw = b"{"


@case("report_malformed", "report.format")
def report_that_names_a_member_twice(bad: World) -> None:
    bad.raw = bad.report.encode()[:-1] + b',"api_version":"aci/1"}'


@case("report_malformed", "report.format")
def report_without_attestation(bad: World) -> None:
    raw_with(lambda document: document.pop("attestation"))(bad)


@case("report_malformed", "report.format")
def report_beyond_the_bound(bad: World) -> None:
    bad.raw = bad.report.encode() + b" " * (8 * 1024 * 1024)


@case("report_version", "report.format")
def report_of_another_version(bad: World) -> None:
    bad.report = dataclasses.replace(bad.report, api_version="aci/2")


@case("keyset_malformed", "keyset.format")
def keyset_with_an_unknown_member(bad: World) -> None:
    bad.report = dataclasses.replace(bad.report, keyset={**bad.report.keyset, "more": 1})


# the attestation key


@case("ak_uncertified", "tpm.certificate")
def key_without_certificate(bad: World) -> None:
    bad.endorsed_by()


@case("ak_uncertified", "tpm.certificate")
def key_certified_by_another_ca(bad: World) -> None:
    other = SimulatedEnrolmentCa(now=NOW, name="Another CA")
    bad.endorsed_by(other.certify(bad.attester.tpm.key.public_key()))


@case("ak_uncertified", "tpm.certificate")
def key_certified_by_a_ca_of_the_same_name(bad: World) -> None:
    bad.endorsed_by(SimulatedEnrolmentCa(now=NOW).certify(bad.attester.tpm.key.public_key()))


@case("ak_uncertified", "tpm.certificate")
def certificate_that_does_not_decode(bad: World) -> None:
    quote = bad.report.evidence[ITEM_QUOTE]
    broken = dataclasses.replace(quote.endorsements[0], data=quote.endorsements[0].data[:-1])
    bad.replace_item(ITEM_QUOTE, dataclasses.replace(quote, endorsements=(broken,)))


@case("ak_uncertified", "tpm.certificate")
def certificate_of_a_version_that_does_not_exist(bad: World) -> None:
    patch_certificate(bad, b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05")


@case("ak_uncertified", "tpm.certificate")
def certificate_with_an_issuer_that_does_not_decode(bad: World) -> None:
    patch_certificate(bad, b"\x0c\x16Simulated enrolment CA", b"\x03\x16Simulated enrolment CA")


@case("ak_uncertified", "tpm.certificate")
def certificate_with_a_name_of_a_kind_nobody_reads(bad: World) -> None:
    directory_of_parties = x509.UnrecognizedExtension(
        x509.SubjectAlternativeName.oid, b"\x30\x04\xa5\x02\x05\x00"
    )
    bad.endorsed_by(with_extension(bad, directory_of_parties))


@case("ak_uncertified", "tpm.certificate")
def certificate_of_a_key_of_an_unknown_type(bad: World) -> None:
    ecdsa = b"\x06\x07\x2a\x86\x48\xce\x3d\x02"
    patch_certificate(bad, ecdsa + b"\x01", ecdsa + b"\x09")


@case("ak_uncertified", "tpm.certificate")
def key_certified_by_a_ca_whose_key_has_other_uses(bad: World) -> None:
    middle = SimulatedEnrolmentCa(now=NOW, name="Middle")
    bad.endorsed_by(
        middle.certify(bad.attester.tpm.key.public_key()),
        bad.attester.ca.certify_ca(
            middle.key.public_key(), middle.certificate.subject, may_certify=False
        ),
    )


@case("ak_uncertified", "tpm.certificate")
def certificate_under_another_media_type(bad: World) -> None:
    quote = bad.report.evidence[ITEM_QUOTE]
    endorsement = Endorsement(media_type="text/plain", data=quote.endorsements[0].data)
    bad.replace_item(ITEM_QUOTE, dataclasses.replace(quote, endorsements=(endorsement,)))


@case("ak_uncertified", "tpm.certificate")
def key_certified_by_somebody_who_is_no_ca(bad: World) -> None:
    middle = ec.generate_private_key(ec.SECP256R1())
    impostor = SimulatedEnrolmentCa(now=NOW, name="Simulated attestation key")
    impostor.key = middle
    bad.endorsed_by(
        impostor.certify(bad.attester.tpm.key.public_key()),
        bad.attester.ca.certify(middle.public_key()),
    )


@case("ak_root_unpinned", "tpm.certificate")
def key_certified_by_a_root_that_only_the_report_names(bad: World) -> None:
    other = SimulatedEnrolmentCa(now=NOW, name="Another CA")
    bad.endorsed_by(other.certify(bad.attester.tpm.key.public_key()), other.certificate)


@case("ak_root_unpinned", "tpm.certificate")
def nothing_pinned(bad: World) -> None:
    bad.endorsed_by(*bad.attester.chain, bad.attester.ca.certificate)
    bad.roots = Roots(enrolment_cas=())


@case("ak_expired", "tpm.certificate")
def certificate_of_the_key_expired(bad: World) -> None:
    bad.endorsed_by(
        bad.attester.ca.certify(
            bad.attester.tpm.key.public_key(),
            not_before=NOW - timedelta(hours=2),
            not_after=NOW - timedelta(hours=1),
        )
    )


@case("ak_expired", "tpm.certificate")
def certificate_of_the_key_not_yet_valid(bad: World) -> None:
    bad.endorsed_by(
        bad.attester.ca.certify(
            bad.attester.tpm.key.public_key(), not_before=NOW + timedelta(hours=1)
        )
    )


@case("ak_purpose", "tpm.certificate")
def certificate_without_purpose(bad: World) -> None:
    bad.endorsed_by(bad.attester.ca.certify(bad.attester.tpm.key.public_key(), usages=()))


@case("ak_purpose", "tpm.certificate")
def certificate_for_another_purpose(bad: World) -> None:
    bad.endorsed_by(
        bad.attester.ca.certify(
            bad.attester.tpm.key.public_key(),
            usages=(ExtendedKeyUsageOID.CLIENT_AUTH,),
        )
    )


@case("ak_purpose", "tpm.certificate")
def certificate_of_a_ca(bad: World) -> None:
    bad.endorsed_by(bad.attester.ca.certify(bad.attester.tpm.key.public_key(), ca=True))


@case("ak_key_type", "tpm.certificate")
def key_on_another_curve(bad: World) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    bad.endorsed_by(bad.attester.ca.certify(key.public_key()))


def patch_certificate(bad: World, old: bytes, new: bytes) -> None:
    """Change the encoding of the attestation key's certificate."""
    quote = bad.report.evidence[ITEM_QUOTE]
    (whole,) = quote.endorsements
    assert old in whole.data
    changed = dataclasses.replace(whole, data=whole.data.replace(old, new))
    bad.replace_item(ITEM_QUOTE, dataclasses.replace(quote, endorsements=(changed,)))


# the quote


@case("quote_missing", "tpm.signature")
def signature_missing(bad: World) -> None:
    bad.replace_item(ITEM_SIGNATURE, None)


@case("quote_malformed", "tpm.quote")
def quote_cut_short(bad: World) -> None:
    bad.requote(bad.report.evidence[ITEM_QUOTE].data[:-1])


@case("quote_malformed", "tpm.quote")
def quote_with_more_after_it(bad: World) -> None:
    bad.requote(bad.report.evidence[ITEM_QUOTE].data + b"\0")


@case("quote_type", "tpm.quote")
def quote_that_no_tpm_made(bad: World) -> None:
    bad.requote(b"\xff\xff\xff\xff" + bad.report.evidence[ITEM_QUOTE].data[4:])


@case("quote_type", "tpm.quote")
def attestation_of_another_kind(bad: World) -> None:
    data = bad.report.evidence[ITEM_QUOTE].data
    bad.requote(data[:4] + b"\x80\x17" + data[6:])


@case("quote_signature", "tpm.signature")
def quote_changed_after_signing(bad: World) -> None:
    data = bytearray(bad.report.evidence[ITEM_QUOTE].data)
    data[-1] ^= 1
    bad.replace_data(ITEM_QUOTE, bytes(data))


@case("quote_signature", "tpm.signature")
def signature_changed(bad: World) -> None:
    data = bytearray(bad.report.evidence[ITEM_SIGNATURE].data)
    data[-1] ^= 1
    bad.replace_data(ITEM_SIGNATURE, bytes(data))


@case("quote_signature", "tpm.signature")
def signature_of_zeros(bad: World) -> None:
    zeros = sized(bytes(32))
    bad.replace_data(ITEM_SIGNATURE, b"\x00\x18\x00\x0b" + zeros + zeros)


@case("quote_signature", "tpm.signature")
def quote_signed_by_an_uncertified_key(bad: World) -> None:
    quote = bad.report.evidence[ITEM_QUOTE].data
    bad.replace_data(ITEM_SIGNATURE, SimulatedTpm().sign(quote))


@case("quote_malformed", "tpm.signature")
def signature_cut_short(bad: World) -> None:
    bad.replace_data(ITEM_SIGNATURE, bad.report.evidence[ITEM_SIGNATURE].data[:-1])


@case("quote_algorithm", "tpm.signature")
def signature_that_names_another_hash(bad: World) -> None:
    data = bad.report.evidence[ITEM_SIGNATURE].data
    bad.replace_data(ITEM_SIGNATURE, data[:2] + b"\x00\x04" + data[4:])


@case("quote_algorithm", "tpm.signature")
def signature_of_an_rsa_key(bad: World) -> None:
    bad.replace_data(ITEM_SIGNATURE, b"\x00\x14\x00\x0b" + sized(bytes(256)))


def selecting(*selection: PcrSelection) -> Change:
    def apply(bad: World) -> None:
        extra = parse_quote(bad.report.evidence[ITEM_QUOTE].data).extra_data
        quote, signature = bad.attester.tpm.quote(extra, selection=selection)
        bad.replace_data(ITEM_QUOTE, quote)
        bad.replace_data(ITEM_SIGNATURE, signature)

    return apply


SHA256_BANK = PcrSelection(hash_algorithm=Alg.SHA256, pcrs=tuple(range(16)))


@case("quote_selection", "tpm.selection")
def selection_without_the_model(bad: World) -> None:
    selecting(PcrSelection(hash_algorithm=Alg.SHA256, pcrs=tuple(range(15))))(bad)


@case("quote_selection", "tpm.selection")
def selection_of_launch_registers_alone(bad: World) -> None:
    selecting(PcrSelection(hash_algorithm=Alg.SHA256, pcrs=(8, 14, 15)))(bad)


@case("quote_selection", "tpm.selection")
def selection_of_one_register_more(bad: World) -> None:
    selecting(PcrSelection(hash_algorithm=Alg.SHA256, pcrs=tuple(range(17))))(bad)


@case("quote_selection", "tpm.selection")
def selection_of_another_bank(bad: World) -> None:
    selecting(PcrSelection(hash_algorithm=Alg.SHA384, pcrs=tuple(range(16))))(bad)


@case("quote_selection", "tpm.selection")
def selection_of_a_second_bank(bad: World) -> None:
    selecting(SHA256_BANK, PcrSelection(hash_algorithm=Alg.SHA1, pcrs=(0,)))(bad)


@case("quote_selection", "tpm.selection")
def selection_of_nothing(bad: World) -> None:
    selecting()(bad)


@case("quote_selection", "tpm.selection")
def selection_that_differs_where_the_digest_does_not(bad: World) -> None:
    """Registers 7 and 9 are both zero: only the signed selection tells the two apart."""
    good = parse_quote(bad.report.evidence[ITEM_QUOTE].data)
    pcrs = tuple(pcr for pcr in range(17) if pcr != 9)
    bad.requote(
        encode_quote(
            qualified_signer=good.qualified_signer,
            extra_data=good.extra_data,
            clock_info=good.clock_info,
            firmware_version=good.firmware_version,
            selections=(PcrSelection(hash_algorithm=Alg.SHA256, pcrs=pcrs),),
            pcr_digest=good.pcr_digest,
        )
    )


# freshness and binding


@case("quote_nonce", "quote.fresh")
def whole_report_from_earlier(bad: World) -> None:
    bad.report = bad.attester.attestation_report(OLD_NONCE)


@case("quote_nonce", "quote.fresh")
def older_quote_in_a_fresh_report(bad: World) -> None:
    older = bad.attester.attestation_report(OLD_NONCE)
    bad.replace_item(ITEM_QUOTE, older.evidence[ITEM_QUOTE])
    bad.replace_item(ITEM_SIGNATURE, older.evidence[ITEM_SIGNATURE])


@case("quote_nonce", "quote.fresh")
def report_without_challenge(bad: World) -> None:
    bad.report = bad.attester.attestation_report(None)


@case("quote_nonce", "quote.fresh")
def quote_of_somebody_else(bad: World) -> None:
    """Another worker of the same kind, certified by the same CA, asked for the same nonce."""
    other = SimulatedAttester.make(now=NOW, ca=bad.attester.ca).attestation_report(NONCE)
    for name in (ITEM_QUOTE, ITEM_SIGNATURE, ITEM_EVENT_LOG):
        bad.replace_item(name, other.evidence[name])


@case("quote_nonce", "quote.fresh")
def keys_replaced_and_everything_else_rewritten(bad: World) -> None:
    forged = dataclasses.replace(
        bad.attester.keyset, e2ee_public_keys=(_request_entry(_another_key()),)
    )
    bad.report = dataclasses.replace(
        bad.report,
        keyset=forged.to_json(),
        keyset_digest=forged.digest,
        report_data=statement_digest(forged.digest, NONCE),
    )


@case("keyset_unbound", "keyset.bound")
def keys_replaced_beside_the_old_digest(bad: World) -> None:
    forged = dataclasses.replace(
        bad.attester.keyset, e2ee_public_keys=(_request_entry(_another_key()),)
    )
    bad.report = dataclasses.replace(bad.report, keyset=forged.to_json())


@case("keyset_unbound", "keyset.bound")
def expiry_put_off(bad: World) -> None:
    later = dataclasses.replace(bad.attester.keyset, not_after=bad.attester.keyset.not_after + 60)
    bad.report = dataclasses.replace(bad.report, keyset=later.to_json())


@case("keyset_unbound", "keyset.bound")
def digest_beside_the_keyset_changed(bad: World) -> None:
    bad.report = dataclasses.replace(bad.report, keyset_digest="sha256:" + "0" * 64)


@case("report_data_mismatch", "report.data")
def report_data_of_another_report(bad: World) -> None:
    bad.report = dataclasses.replace(bad.report, report_data=bytes(32))


# the event log


def _tell(event: Event, name: str, *, rehash: bool) -> Event:
    data = json.dumps(
        {**json.loads(event.data), "name": name}, sort_keys=True, separators=(",", ":")
    ).encode()
    told = measured_event(event.pcr, event.type, data)
    return told if rehash else dataclasses.replace(told, digests=event.digests)


@case("eventlog_missing", "eventlog.format")
def log_missing(bad: World) -> None:
    bad.replace_item(ITEM_EVENT_LOG, None)


@case("eventlog_malformed", "eventlog.format")
def log_cut_short(bad: World) -> None:
    bad.replace_data(ITEM_EVENT_LOG, bad.report.evidence[ITEM_EVENT_LOG].data[:-1])


@case("eventlog_bank", "eventlog.format")
def log_of_another_bank(bad: World) -> None:
    data = bad.report.evidence[ITEM_EVENT_LOG].data
    header = data[:28] + data[28:].replace(b"\x0b\x00\x20\x00", b"\x12\x00\x20\x00", 1)
    bad.replace_data(ITEM_EVENT_LOG, header.replace(b"\x0b\x00", b"\x12\x00"))


@case("eventlog_digest", "eventlog.digests")
def log_with_one_event_that_says_something_else(bad: World) -> None:
    bad.relog(lambda events: [_tell(events[0], "pypy", rehash=False), *events[1:]])


@case("eventlog_digest", "eventlog.digests")
def log_with_a_separator_that_says_something_else(bad: World) -> None:
    bad.relog(lambda events: [*events[:-1], dataclasses.replace(events[-1], data=b"\0\0\0\1")])


@case("pcr_digest", "tpm.registers")
def log_with_one_event_changed(bad: World) -> None:
    bad.relog(lambda events: [_tell(events[0], "pypy", rehash=True), *events[1:]])


@case("pcr_digest", "tpm.registers")
def log_with_one_event_added(bad: World) -> None:
    bad.relog(lambda events: [made_up(ComponentKind.DISTRIBUTION, "extra").event(), *events])


@case("pcr_digest", "tpm.registers")
def log_with_one_event_left_out(bad: World) -> None:
    bad.relog(lambda events: events[1:])


@case("pcr_digest", "tpm.registers")
def log_in_another_order(bad: World) -> None:
    bad.relog(lambda events: [events[1], events[0], *events[2:]])


@case("pcr_digest", "tpm.registers")
def something_extended_that_the_log_does_not_tell(bad: World) -> None:
    bad.attester.tpm.extend(measured_event(4, EventType.EV_IPL, b"bootkit"))
    bad.report = bad.attester.attestation_report(NONCE)


@case("eventlog_replay", "eventlog.launch")
def log_with_an_event_that_is_not_measured(bad: World) -> None:
    """An event of this type is told but not extended: whatever it says is unmeasured."""
    bad.relog(lambda events: [measured_event(8, EventType.EV_NO_ACTION, b"hello"), *events])


@pytest.mark.parametrize("name", sorted(CASES))
def test_one_change_is_refused(name: str) -> None:
    change, code, claim = CASES[name]
    bad = world()
    affirm(bad)
    change(bad)
    refuse(bad, code, claim)


def _another_key() -> ServerKey:
    from cloister.channel.hpke import Kem

    return ServerKey.generate(1, Kem.MLKEM768_X25519)


def _request_entry(key: ServerKey) -> PublicKeyEntry:
    return PublicKeyEntry(key_id="request-1", algo="ohttp", public_key=key.config.encode().hex())


# --- refusals whose codes are not contraindications ----------------------------------------


def test_an_unknown_platform_is_undecided_and_never_passes() -> None:
    bad = world()
    affirm(bad)
    bad.report = dataclasses.replace(bad.report, tee_type="sparc")
    result = bad.verify()
    assert result.platform == "unknown"
    assert not result.development
    assert result.verdict is Finding.NONE
    with pytest.raises(UnsupportedError) as raised:
        result.require_affirming()
    assert raised.value.code == "platform_unsupported"


def test_steps_that_could_not_be_taken_are_listed_as_such() -> None:
    bad = world()
    bad.raw = b""
    result = bad.verify()
    assert tuple(claim.name for claim in result.claims) == claim_names(bad.policy)
    assert result.claims[0].code == "report_malformed"
    for claim in result.claims[1:]:
        assert claim.finding is Finding.NONE
        assert claim.code == "not_checked"
        assert "report.format" in claim.explanation


def test_later_steps_go_on_where_they_can() -> None:
    bad = world()
    key_without_certificate(bad)
    by_name = {claim.name: claim for claim in bad.verify().claims}
    assert by_name["eventlog.digests"].finding is Finding.AFFIRMING
    assert by_name["keyset.expiry"].finding is Finding.AFFIRMING
    assert by_name["claims.bound"].finding is Finding.AFFIRMING
    for name in ("tpm.signature", "quote.fresh", "tpm.registers", "software.model"):
        assert by_name[name].code == "not_checked"


def test_an_unpinned_key_still_gets_its_quote_checked_but_nothing_is_appraised() -> None:
    bad = world()
    key_certified_by_a_root_that_only_the_report_names(bad)
    by_name = {claim.name: claim for claim in bad.verify().claims}
    assert by_name["tpm.signature"].finding is Finding.AFFIRMING
    assert by_name["software.model"].finding is Finding.NONE


def test_keys_that_were_replaced_are_named_beside_the_missing_freshness() -> None:
    bad = world()
    keys_replaced_and_everything_else_rewritten(bad)
    assert {"quote_nonce", "keyset_unbound"} <= {claim.code for claim in bad.verify().failures}


def test_a_pinned_root_must_be_valid_itself() -> None:
    bad = world()
    affirm(bad)
    bad.roots = SimulatedEnrolmentCa(now=NOW - timedelta(days=800)).roots
    refuse(bad, "ak_expired", "tpm.certificate")


def with_extension(bad: World, value: x509.ExtensionType) -> x509.Certificate:
    """The attestation key's certificate with one critical extension more."""
    ca, key = bad.attester.ca, bad.attester.tpm.key.public_key()
    plain = ca.certify(key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(plain.subject)
        .issuer_name(plain.issuer)
        .serial_number(7)
        .public_key(key)
        .not_valid_before(plain.not_valid_before_utc)
        .not_valid_after(plain.not_valid_after_utc)
        .add_extension(value, critical=True)
    )
    for extension in plain.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(ca.key, hashes.SHA256())


def test_an_unknown_critical_extension_is_refused() -> None:
    bad = world()
    affirm(bad)
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    bad.endorsed_by(with_extension(bad, unknown))
    refuse(bad, "ak_uncertified", "tpm.certificate")


@pytest.mark.parametrize("signs", [True, False])
def test_a_certificate_that_names_uses_must_name_signing(signs: bool) -> None:
    bad = world()
    affirm(bad)
    usage = x509.KeyUsage(
        digital_signature=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=True,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    bad.endorsed_by(with_extension(bad, usage))
    if signs:
        affirm(bad)
    else:
        refuse(bad, "ak_purpose", "tpm.certificate")


# --- launches that break the conventions, each signed by the TPM as it happened -------------

LAUNCH = launch_events(
    (*default_components(), configuration_component("worker", "1", default_configuration()))
)

LAUNCHES: dict[str, tuple[tuple[Event, ...], str, str]] = {
    "into another register": (
        (measured_event(4, EventType.EV_IPL, b"{}"), *LAUNCH),
        "eventlog_replay",
        "eventlog.launch",
    ),
    "with another type of event": (
        (measured_event(8, 5, b"action"), *LAUNCH),
        "eventlog_replay",
        "eventlog.launch",
    ),
    "into a register of another kind": (
        (
            measured_event(8, EventType.EV_IPL, made_up(ComponentKind.MODEL, "second").encode()),
            *LAUNCH,
        ),
        "eventlog_replay",
        "eventlog.launch",
    ),
    "left open": (LAUNCH[:-1], "eventlog_replay", "eventlog.launch"),
    "gone on after it was closed": (
        (*LAUNCH, made_up(ComponentKind.MODEL, "late").event()),
        "eventlog_replay",
        "eventlog.launch",
    ),
    "closed twice": (
        (*LAUNCH, measured_event(15, EventType.EV_SEPARATOR, SEPARATOR_DATA)),
        "eventlog_replay",
        "eventlog.launch",
    ),
    "closed with an error": (
        (*LAUNCH[:-1], measured_event(15, EventType.EV_SEPARATOR, b"\1\0\0\0")),
        "eventlog_replay",
        "eventlog.launch",
    ),
    "with a record that is none": (
        (measured_event(8, EventType.EV_IPL, b"not a record"), *LAUNCH),
        "eventlog_record",
        "eventlog.format",
    ),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_launch_that_breaks_the_conventions_is_refused(name: str) -> None:
    affirm(world(events=LAUNCH))
    events, code, claim = LAUNCHES[name]
    refuse(world(events=events), code, claim)


# --- other software than expected ----------------------------------------------------------


def differing(
    kind: ComponentKind, *, name: str | None = None, version: str | None = None
) -> tuple[Component, ...]:
    """The default components, the last of `kind` with other content, name or version."""
    components = list(default_components())
    index = max(i for i, component in enumerate(components) if component.kind is kind)
    old = components[index]
    content = made_up(kind, old.name, "other content").digest
    components[index] = dataclasses.replace(
        old,
        digest=content if name is None and version is None else old.digest,
        name=name or old.name,
        version=version or old.version,
    )
    return tuple(components)


SOFTWARE: dict[str, tuple[tuple[Component, ...], str, str]] = {
    "another model file": (differing(ComponentKind.MODEL), "model_mismatch", "software.model"),
    "a model of another name": (
        differing(ComponentKind.MODEL, name="other"),
        "model_mismatch",
        "software.model",
    ),
    "a model of another version": (
        differing(ComponentKind.MODEL, version="2.0"),
        "model_mismatch",
        "software.model",
    ),
    "a second model": (
        (*default_components(), made_up(ComponentKind.MODEL, "second")),
        "model_mismatch",
        "software.model",
    ),
    "other package code": (
        differing(ComponentKind.DISTRIBUTION),
        "package_mismatch",
        "software.packages",
    ),
    "another package version": (
        differing(ComponentKind.DISTRIBUTION, version="50.0.1"),
        "package_mismatch",
        "software.packages",
    ),
    "another interpreter": (
        differing(ComponentKind.INTERPRETER),
        "component_mismatch",
        "software.runtime",
    ),
    "another standard library": (
        differing(ComponentKind.STDLIB),
        "component_mismatch",
        "software.runtime",
    ),
    "another engine library": (
        differing(ComponentKind.NATIVE),
        "component_mismatch",
        "software.runtime",
    ),
    "another unowned file": (
        differing(ComponentKind.UNOWNED),
        "component_mismatch",
        "software.runtime",
    ),
    "a package more": (
        (*default_components(), made_up(ComponentKind.DISTRIBUTION, "extra")),
        "component_unexpected",
        "software.nothing_else",
    ),
    "a file more": (
        (*default_components(), made_up(ComponentKind.UNOWNED, "sitecustomize.py")),
        "component_unexpected",
        "software.nothing_else",
    ),
    "a package twice": (
        (*default_components(), default_components()[2]),
        "component_unexpected",
        "software.nothing_else",
    ),
    "a package less": (
        default_components()[:2] + default_components()[3:],
        "component_missing",
        "software.complete",
    ),
    "an empty launch": ((), "model_unmeasured", "software.model"),
}


@pytest.mark.parametrize("name", SOFTWARE)
def test_other_software_is_refused(name: str) -> None:
    good = world()
    affirm(good)
    components, code, claim = SOFTWARE[name]
    bad = world(components=components)
    bad.reference_values = good.reference_values
    refuse(bad, code, claim)


def test_a_changed_configuration_is_refused() -> None:
    good = world()
    affirm(good)
    bad = world(configuration={**default_configuration(), "engine": {"context": 8192}})
    bad.reference_values = good.reference_values
    refuse(bad, "configuration_mismatch", "software.configuration")


def test_alternatives_of_one_component_are_accepted_one_at_a_time() -> None:
    components = differing(ComponentKind.DISTRIBUTION, version="50.0.1")
    good, other = world(), world(components=components)
    both = good.reference_values.merged(other.reference_values)
    for each in (good, other):
        each.reference_values = both
        affirm(each)
    bad = world(components=(*default_components(), components[3]))
    bad.reference_values = both
    refuse(bad, "component_unexpected", "software.nothing_else")


def test_digest_and_version_must_belong_together() -> None:
    """A digest accepted for one version does not pass under another."""
    old = default_components()[3]
    mixed = dataclasses.replace(old, version="50.0.1")
    accepted = made_up(ComponentKind.DISTRIBUTION, old.name, "50.0.1")
    good = world()
    both = good.reference_values.merged(ReferenceValues.from_components((accepted,)))
    good.reference_values = both
    affirm(good)
    bad = world(components=(*default_components()[:3], mixed, *default_components()[4:]))
    bad.reference_values = both
    refuse(bad, "package_mismatch", "software.packages")


def test_a_worker_without_model_needs_a_policy_that_says_so() -> None:
    bad = world(components=default_components()[:-1])
    refuse(bad, "model_unmeasured", "software.model")
    bad.policy = dataclasses.replace(bad.policy, require_model=False)
    affirm(bad)


# --- what the measured configuration says --------------------------------------------------

CONFIGURATIONS: dict[str, tuple[JsonObject, str, str]] = {
    "debugging": ({"debug": True}, "configuration_debug", "configuration.debug"),
    "debugging as a number": ({"debug": 0}, "configuration_debug", "configuration.debug"),
    "no sandbox": (
        {"isolation": {"mode": "none (unsafe)", "layers": []}},
        "sandbox_unsafe",
        "configuration.isolation",
    ),
    "no sandbox, in one word": (
        {"isolation": "none (unsafe)"},
        "sandbox_unsafe",
        "configuration.isolation",
    ),
    "a seal that ends in the engine": (
        {"termination": "in-engine"},
        "termination_refused",
        "configuration.termination",
    ),
    "a seal that ends elsewhere": (
        {"termination": "gateway"},
        "termination_refused",
        "configuration.termination",
    ),
    "a list of places": (
        {"termination": ["worker"]},
        "termination_refused",
        "configuration.termination",
    ),
    "people kept apart by a word": (
        {"separation": "by good will"},
        "separation_refused",
        "configuration.separation",
    ),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_that_the_policy_refuses(name: str) -> None:
    """The reference values accept each of these: the policy alone refuses."""
    affirm(world())
    change, code, claim = CONFIGURATIONS[name]
    refuse(world(configuration={**default_configuration(), **change}), code, claim)


@pytest.mark.parametrize(
    ("member", "code", "claim"),
    [
        ("debug", "configuration_debug", "configuration.debug"),
        ("isolation", "sandbox_unsafe", "configuration.isolation"),
        ("termination", "termination_refused", "configuration.termination"),
        ("separation", "separation_refused", "configuration.separation"),
    ],
)
def test_a_configuration_that_does_not_say(member: str, code: str, claim: str) -> None:
    configuration = default_configuration()
    del configuration[member]
    refuse(world(configuration=configuration), code, claim)


@pytest.mark.parametrize("managed", [False, None, 1, "true"])
def test_somebody_elses_engine_is_refused_and_proves_no_model(managed: Json) -> None:
    """Its model file may have been measured: nothing shows that the engine loads that one."""
    affirm(world())
    configuration = {**default_configuration(), "managed": managed}
    if managed is None:
        del configuration["managed"]
    bad = world(configuration=configuration)
    refused = bad.verify()
    codes = {claim.name: claim.code for claim in refused.failures}
    assert codes == {
        "software.model": "model_unmeasured",
        "configuration.managed": "engine_unmanaged",
    }
    with pytest.raises(AppraisalError, match="somebody else's"):
        refused.require_affirming()
    bad.policy = dataclasses.replace(bad.policy, require_managed=False)
    refuse(bad, "model_unmeasured", "software.model")
    bad.policy = dataclasses.replace(bad.policy, require_managed=True, require_model=False)
    refuse(bad, "engine_unmanaged", "configuration.managed")
    bad.policy = dataclasses.replace(bad.policy, require_managed=False)
    affirm(bad)
    result = bad.verify()
    assert serving.NOT_PROVEN_UNMANAGED in result.not_proven
    (model,) = [claim for claim in result.claims if claim.name == "software.model"]
    assert model.explanation == "Nothing shows which model answers, which the policy accepts."


def test_a_policy_may_accept_a_seal_that_ends_in_the_engine() -> None:
    in_engine = world(
        configuration={**default_configuration(), "termination": "in-engine", "managed": False}
    )
    codes = {claim.code for claim in in_engine.verify().failures}
    assert codes == {"termination_refused", "engine_unmanaged"}
    in_engine.policy = dataclasses.replace(
        in_engine.policy, termination=("in-engine",), require_managed=False
    )
    affirm(in_engine)
    not_proven = in_engine.verify().not_proven
    assert serving.NOT_PROVEN_IN_ENGINE in not_proven
    assert serving.NOT_PROVEN_UNMANAGED not in not_proven
    other = world()
    affirm(other)
    other.policy = dataclasses.replace(other.policy, termination=("in-engine",))
    refuse(other, "termination_refused", "configuration.termination")


@pytest.mark.parametrize("said", ["process-per-client", {"mode": "process-per-client", "idle": 1}])
def test_both_separations_are_accepted_and_one_says_what_it_leaves_open(said: Json) -> None:
    shared, apart = world(), world(configuration={**default_configuration(), "separation": said})
    affirm(shared)
    affirm(apart)
    assert serving.NOT_PROVEN_SHARED in shared.verify().not_proven
    assert serving.NOT_PROVEN_SHARED not in apart.verify().not_proven
    shared.policy = dataclasses.replace(shared.policy, separation=("process-per-client",))
    refuse(shared, "separation_refused", "configuration.separation")
    apart.policy = dataclasses.replace(apart.policy, separation=("shared",))
    refuse(apart, "separation_refused", "configuration.separation")


def test_nobody_keeps_people_apart_in_somebody_elses_engine() -> None:
    bad = world(configuration={**default_configuration(), "separation": "process-per-client"})
    bad.policy = dataclasses.replace(bad.policy, require_managed=False, require_model=False)
    affirm(bad)
    configuration = {
        **default_configuration(),
        "separation": "process-per-client",
        "managed": False,
    }
    policy = bad.policy
    bad = world(configuration=configuration)
    bad.policy = policy
    refuse(bad, "separation_refused", "configuration.separation")
    assert serving.NOT_PROVEN_SHARED in bad.verify().not_proven


def test_what_a_policy_leaves_unchecked_is_not_claimed_but_still_told() -> None:
    lax = world(configuration={"debug": False, "isolation": "sandbox"})
    lax.policy = dataclasses.replace(
        lax.policy,
        require_model=False,
        require_managed=False,
        termination=UNCHECKED,
        separation=UNCHECKED,
    )
    affirm(lax)
    result = lax.verify()
    assert {claim.name for claim in result.claims}.isdisjoint(
        {serving.TERMINATION, serving.MANAGED, serving.SEPARATION}
    )
    assert {serving.NOT_PROVEN_SHARED, serving.NOT_PROVEN_UNMANAGED} < set(result.not_proven)
    for name in ("termination", "separation"):
        assert any(f" {name} unchecked" in sentence for sentence in result.not_proven)


def test_two_configurations_are_as_good_as_none() -> None:
    second = configuration_component("second", "1", default_configuration())
    bad = world(components=(*default_components(), second))
    bad.policy = dataclasses.replace(bad.policy, require_model=False)
    refuse(bad, "configuration_debug", "configuration.debug")


def test_a_policy_may_name_debugging_and_an_unsafe_sandbox() -> None:
    unsafe = world(
        configuration={**default_configuration(), "debug": True, "isolation": "none (unsafe)"}
    )
    unsafe.policy = dataclasses.replace(
        unsafe.policy, accept_debug=True, isolation=("none (unsafe)",)
    )
    affirm(unsafe)
    unsafe.policy = dataclasses.replace(unsafe.policy, isolation=UNCHECKED)
    result = unsafe.verify()
    result.require_affirming()
    assert "configuration.isolation" not in {claim.name for claim in result.claims}
    assert any("isolation" in sentence for sentence in result.not_proven)


def test_a_clock_that_may_have_gone_back_is_refused() -> None:
    affirm(world())
    clock = ClockInfo(clock=1, reset_count=3, restart_count=2, safe=False)
    bad = world(tpm=SimulatedTpm(clock_info=clock))
    refuse(bad, "quote_clock", "tpm.clock")
    bad.policy = dataclasses.replace(bad.policy, require_safe_clock=False)
    affirm(bad)


def test_reset_and_restart_counts_are_reported() -> None:
    clock = ClockInfo(clock=1, reset_count=3, restart_count=2, safe=True)
    result = world(tpm=SimulatedTpm(clock_info=clock)).verify()
    (claim,) = [claim for claim in result.claims if claim.name == "tpm.clock"]
    assert "3 times" in claim.explanation
    assert "2 times" in claim.explanation


@pytest.mark.parametrize(
    "digest",
    [
        lambda good: good.attester.keyset.digest,
        lambda good: good.attester.components[-1].digest,
        lambda good: fingerprint(good.attester.chain[0]),
        lambda good: fingerprint(good.attester.ca.certificate),
        lambda good: fingerprint(respelled(good.attester.chain[0], P256_ORDER)),
        lambda good: fingerprint(respelled(good.attester.ca.certificate, P256_ORDER)),
    ],
    ids=["keyset", "component", "certificate", "root", "certificate again", "root again"],
)
def test_what_the_policy_denies_is_refused(digest: Callable[[World], str]) -> None:
    bad = world()
    affirm(bad)
    bad.policy = dataclasses.replace(bad.policy, denied=(digest(bad),))
    refuse(bad, "denied", "denied")


# --- keyset and claims document, each genuinely quoted -------------------------------------


def requoted(change: Callable[[SimulatedAttester], Keyset]) -> World:
    """A world whose keyset was changed before the TPM signed for it."""
    bad = world()
    affirm(bad)
    bad.attester.keyset = change(bad.attester)
    bad.report = bad.attester.attestation_report(NONCE)
    return bad


def claiming(**changes: Any) -> World:
    """A world whose worker lies in its claims document, and binds it."""

    def change(attester: SimulatedAttester) -> Keyset:
        attester.claims_document = dataclasses.replace(attester.claims_document, **changes)
        return dataclasses.replace(attester.keyset, subject=attester.claims_document.subject)

    return requoted(change)


def without(bad: World, name: str) -> World:
    bad.replace_item(name, None)
    return bad


def other_claims(bad: World) -> World:
    document = dataclasses.replace(bad.attester.claims_document, isolation="vault")
    bad.replace_data(ITEM_CLAIMS, document.encode())
    return bad


def loose_claims() -> World:
    """A claims document that is not canonical, though the keyset names exactly its bytes."""
    import hashlib

    def change(attester: SimulatedAttester) -> Keyset:
        data = attester.claims_document.encode() + b"\n"
        subject = "cloister:sha256:" + hashlib.sha256(data).hexdigest()
        return dataclasses.replace(attester.keyset, subject=subject)

    bad = requoted(change)
    bad.replace_data(ITEM_CLAIMS, bad.attester.claims_document.encode() + b"\n")
    return bad


def made_up_digest(kind: ComponentKind, name: str) -> str:
    return made_up(kind, name).digest.removeprefix("sha256:")


CLAIMS: dict[str, tuple[Callable[[], World], str, str]] = {
    "missing": (lambda: without(world(), ITEM_CLAIMS), "claims_unbound", "claims.bound"),
    "another one": (lambda: other_claims(world()), "claims_unbound", "claims.bound"),
    "not canonical": (loose_claims, "claims_unbound", "claims.bound"),
    "not named by the keyset": (
        lambda: requoted(lambda attester: dataclasses.replace(attester.keyset, subject=None)),
        "claims_unbound",
        "claims.bound",
    ),
    "named in another way": (
        lambda: requoted(
            lambda attester: dataclasses.replace(attester.keyset, subject="spiffe://somewhere")
        ),
        "claims_unbound",
        "claims.bound",
    ),
    "another model": (
        lambda: claiming(models=(ModelClaim(name="demo", sha256="0" * 64),)),
        "claims_mismatch",
        "claims.consistent",
    ),
    "another name": (
        lambda: claiming(
            models=(ModelClaim(name="better", sha256=made_up_digest(ComponentKind.MODEL, "demo")),)
        ),
        "claims_mismatch",
        "claims.consistent",
    ),
    "one model more, without a digest": (
        lambda: claiming(
            models=(
                ModelClaim(name="demo", sha256=made_up_digest(ComponentKind.MODEL, "demo")),
                ModelClaim(name="better", sha256=None),
            )
        ),
        "claims_mismatch",
        "claims.consistent",
    ),
    "no model": (lambda: claiming(models=()), "claims_mismatch", "claims.consistent"),
    "another configuration": (
        lambda: claiming(configuration={**default_configuration(), "extra": 1}),
        "claims_mismatch",
        "claims.consistent",
    ),
    "zero for false": (
        lambda: claiming(configuration={**default_configuration(), "debug": 0}),
        "claims_mismatch",
        "claims.consistent",
    ),
    "another isolation": (
        lambda: claiming(isolation="vault"),
        "claims_mismatch",
        "claims.consistent",
    ),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claims_document_that_does_not_fit_is_refused(name: str) -> None:
    affirm(world())
    make, code, claim = CLAIMS[name]
    refuse(make(), code, claim)


def keyset_with(**changes: Any) -> Callable[[], World]:
    return lambda: requoted(lambda attester: dataclasses.replace(attester.keyset, **changes))


def entry(algo: str, public_key: str) -> PublicKeyEntry:
    return PublicKeyEntry(key_id="other", algo=algo, public_key=public_key)


KEYSETS: dict[str, tuple[Callable[[], World], str, str]] = {
    "expired": (
        keyset_with(not_after=int(NOW.timestamp()) - 1),
        "keyset_expired",
        "keyset.expiry",
    ),
    "expiring now": (
        keyset_with(not_after=int(NOW.timestamp())),
        "keyset_expired",
        "keyset.expiry",
    ),
    "living too long": (
        keyset_with(not_after=int(NOW.timestamp()) + 24 * 3600 + 1),
        "keyset_lifetime",
        "keyset.expiry",
    ),
    "without request key": (
        keyset_with(e2ee_public_keys=()),
        "request_key_missing",
        "keyset.request_key",
    ),
    "with a request key of another kind": (
        keyset_with(e2ee_public_keys=(entry("x25519", "00" * 32),)),
        "request_key_missing",
        "keyset.request_key",
    ),
    "with a malformed request key": (
        keyset_with(e2ee_public_keys=(entry("ohttp", "0100"),)),
        "request_key_missing",
        "keyset.request_key",
    ),
    "with a request key that is not hex": (
        keyset_with(e2ee_public_keys=(entry("ohttp", "zz"),)),
        "request_key_missing",
        "keyset.request_key",
    ),
    "with a request key of an unknown KEM": (
        keyset_with(e2ee_public_keys=(entry("ohttp", "01fffe" + "00" * 40),)),
        "request_key_missing",
        "keyset.request_key",
    ),
    "without receipt key": (
        keyset_with(receipt_signing_keys=()),
        "receipt_key_missing",
        "keyset.receipt_key",
    ),
    "with a malformed receipt key": (
        keyset_with(receipt_signing_keys=(entry("ed25519", "00"),)),
        "receipt_key_missing",
        "keyset.receipt_key",
    ),
}


@pytest.mark.parametrize("name", KEYSETS)
def test_a_keyset_that_cannot_be_used_is_refused(name: str) -> None:
    make, code, claim = KEYSETS[name]
    refuse(make(), code, claim)


def test_a_keyset_of_no_known_year_is_refused_even_unchecked() -> None:
    bad = keyset_with(not_after=2**53 - 1)()
    bad.policy = dataclasses.replace(bad.policy, max_keyset_lifetime_s=UNCHECKED)
    refuse(bad, "keyset_lifetime", "keyset.expiry")


def test_a_keyset_may_list_a_newer_kind_of_key_beside_a_known_one() -> None:
    newer = PublicKeyEntry(key_id="newer", algo="ohttp", public_key="01fffe" + "00" * 40)
    bad = requoted(
        lambda attester: dataclasses.replace(
            attester.keyset, e2ee_public_keys=(newer, *attester.keyset.e2ee_public_keys)
        )
    )
    affirm(bad)


# --- development ---------------------------------------------------------------------------


def test_development_affirms_only_under_a_policy_that_names_it() -> None:
    bad = world()
    affirm(bad)
    bad.policy = dataclasses.replace(bad.policy, accept_development=False)
    result = refuse(bad, "development_refused", "platform.development")
    assert result.platform == DEVELOPMENT_PLATFORM


def test_strict_refuses_memory_that_is_not_encrypted() -> None:
    bad = world()
    affirm(bad)
    bad.policy = policies.strict()
    codes = [claim.code for claim in bad.verify().failures]
    assert codes == ["memory_unencrypted", "development_refused"]


def test_the_simulated_firmware_is_recognisable() -> None:
    good = world()
    quote = parse_quote(good.report.evidence[ITEM_QUOTE].data)
    assert quote.firmware_version == SIMULATED_FIRMWARE


def test_a_claims_document_is_a_document() -> None:
    assert isinstance(world().attester.claims_document, ClaimsDocument)


def test_a_software_tpm_proves_nothing_by_hardware() -> None:
    result = world().verify()
    assert result.verdict is Finding.AFFIRMING
    assert Source.HARDWARE_PROVEN not in {claim.source for claim in result.claims}
    assert Source.OPERATOR_ASSERTED in {claim.source for claim in result.claims}
