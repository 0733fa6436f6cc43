"""Quotes of TPMs and event logs of boots, on their own."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.endorsements.ak import TCG_KP_EK_CERTIFICATE
from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.roots import Roots, Vendor, fingerprint
from cloister.errors import ConfigurationError
from cloister.evidence.efi import GLOBAL_VARIABLE, variable_data
from cloister.evidence.eventlog import Event, EventType, encode_event
from cloister.evidence.tpm import Alg, ObjectAttribute
from cloister.testing.simulated_vtpm import (
    SimulatedAkVendor,
    SimulatedVtpm,
    simulated_rsa_key,
)
from cloister.verifier import policy
from cloister.verifier.authenticate.ak import AkEvidence
from cloister.verifier.authenticate.tpm_quote import QuoteEvidence
from cloister.verifier.evidence import run
from cloister.verifier.expected import NOTHING_EXPECTED, Expected
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.platforms.tpm import TpmEvidence, verify_tpm
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.result import AttestationResult, Finding, Source
from support.certificates import P256_ORDER, respelled

NOW = datetime(2026, 6, 1, tzinfo=UTC)
NONCE = b"a challenge"
VENDOR = SimulatedAkVendor(Vendor.TPM_MANUFACTURER, now=NOW)
STRICT = policy.development()
LENIENT = replace(STRICT, require_endorsements=False)

SHA256 = int(Alg.SHA256)


def booted(*, secure_boot: bool = True) -> SimulatedVtpm:
    vtpm = SimulatedVtpm()
    vtpm.boot(secure_boot=secure_boot)
    return vtpm


BOOTED = booted()


def certified(vtpm: SimulatedVtpm = BOOTED, **options: object) -> AkEvidence:
    certificate = VENDOR.certify(vtpm.key.public_key(), **options)  # type: ignore[arg-type]
    return AkEvidence(certificate=certificate, intermediates=VENDOR.intermediates)


def evidence_of(vtpm: SimulatedVtpm, quote: QuoteEvidence | None = None) -> TpmEvidence:
    return TpmEvidence(
        quote=vtpm.quote(NONCE) if quote is None else quote,
        ak_public=vtpm.public(),
        ak=certified(vtpm),
        event_log=vtpm.event_log(),
    )


GENUINE = evidence_of(BOOTED)
QUOTE = BOOTED.quote(NONCE)


def verify(
    evidence: TpmEvidence,
    expected: Expected = NOTHING_EXPECTED,
    *,
    policy: AppraisalPolicy = STRICT,
    roots: Roots = VENDOR.roots,
    at: datetime = NOW,
) -> AttestationResult:
    return run(verify_tpm, evidence, policy=policy, roots=roots, at=at, expected=expected)


def outcome(evidence: TpmEvidence, *, policy: AppraisalPolicy = STRICT) -> Outcome:
    return verify_tpm(
        evidence,
        policy=policy,
        roots=VENDOR.roots,
        at=NOW,
        expected=NOTHING_EXPECTED,
        ledger=Ledger(),
    )


def refused(result: AttestationResult) -> set[tuple[str, str | None]]:
    return {
        (claim.name, claim.code)
        for claim in result.claims
        if claim.finding is Finding.CONTRAINDICATED
    }


def with_quote(**changes: object) -> TpmEvidence:
    return replace(GENUINE, quote=replace(QUOTE, **changes))  # type: ignore[arg-type]


def changed(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


def test_a_genuine_quote_with_its_log() -> None:
    result = verify(GENUINE, Expected(values={"extra_data": NONCE}))
    assert result.verdict is Finding.AFFIRMING
    assert result.platform == "development (TPM)"
    assert result.memory_confidentiality == "none"
    assert result.facts["extra_data"] == NONCE.hex()
    assert result.facts["secure_boot"] is True
    assert result.facts["kernel_command_lines"] == ["/vmlinuz root=/dev/vda ro"]
    assert result.require_affirmed_evidence().development


def test_what_was_proven() -> None:
    found = outcome(GENUINE)
    assert found.bound == NONCE
    assert found.registers["pcr7"] == BOOTED.registers[SHA256][7]
    assert set(found.registers) == {f"pcr{number}" for number in range(24)}


def test_a_simulated_vendor_needs_a_policy_that_says_so() -> None:
    assert verify(GENUINE).verdict is Finding.AFFIRMING
    strict = verify(GENUINE, policy=policy.strict())
    assert refused(strict) == {("platform.development", "development_refused")}


@pytest.mark.parametrize(
    ("key", "scheme", "hash_algorithm"),
    [
        (None, Alg.RSASSA, Alg.SHA256),
        (None, Alg.RSASSA, Alg.SHA384),
        (None, Alg.RSAPSS, Alg.SHA512),
        (ec.generate_private_key(ec.SECP256R1()), Alg.ECDSA, Alg.SHA256),
        (ec.generate_private_key(ec.SECP384R1()), Alg.ECDSA, Alg.SHA384),
        (ec.generate_private_key(ec.SECP521R1()), Alg.ECDSA, Alg.SHA512),
    ],
)
def test_every_scheme(
    key: ec.EllipticCurvePrivateKey | None, scheme: Alg, hash_algorithm: Alg
) -> None:
    vtpm = SimulatedVtpm(key=key)
    vtpm.boot()
    quote = vtpm.quote(NONCE, scheme=scheme, hash_algorithm=hash_algorithm)
    result = verify(evidence_of(vtpm, quote))
    assert result.verdict is Finding.AFFIRMING
    assert result.facts["signature_scheme"] == scheme.name.lower()
    assert result.facts["signature_hash"] == hash_algorithm.name.lower()


def test_the_digest_is_hashed_as_the_scheme_says_not_as_the_bank() -> None:
    """A digest over the right values by the bank's hash is the wrong one."""
    quote = BOOTED.quote(NONCE, bank=Alg.SHA384)
    assert verify(evidence_of(BOOTED, quote)).verdict is Finding.AFFIRMING
    values = b"".join(BOOTED.registers[int(Alg.SHA384)].values())
    right, wrong = hashlib.sha256(values).digest(), hashlib.sha384(values).digest()
    assert quote.quote.endswith(right)
    forged = quote.quote[:-34] + len(wrong).to_bytes(2, "big") + wrong
    by_bank = replace(quote, quote=forged, signature=BOOTED.sign(forged))
    assert refused(verify(evidence_of(BOOTED, by_bank))) == {
        ("tpm.pcr_digest", "pcr_digest_mismatch")
    }


def test_a_bare_signature_has_to_be_announced() -> None:
    bare = BOOTED.quote(NONCE, bare=True)
    assert verify(evidence_of(BOOTED, bare)).verdict is Finding.AFFIRMING
    for other in (
        replace(bare, bare_signature=False),
        replace(QUOTE, bare_signature=True),
        replace(bare, signature=bare.signature[1:]),
    ):
        assert refused(verify(evidence_of(BOOTED, other))) == {("tpm.format", "malformed")}


def test_sha1_is_known_and_refused() -> None:
    quote = BOOTED.quote(NONCE, hash_algorithm=Alg.SHA1)
    assert ("tpm.signature", "quote_algorithm") in refused(verify(evidence_of(BOOTED, quote)))


def test_a_short_key_is_refused() -> None:
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    vtpm = SimulatedVtpm(key=short)
    evidence = TpmEvidence(quote=vtpm.quote(NONCE), ak_public=vtpm.public())
    assert refused(verify(evidence, policy=LENIENT)) == {("tpm.signature", "quote_algorithm")}


@pytest.mark.parametrize(
    ("evidence", "name", "code"),
    [
        (with_quote(quote=changed(QUOTE.quote, 0)), "tpm.magic", "attest_magic"),
        (with_quote(quote=changed(QUOTE.quote, 5)), "tpm.type", "attest_type"),
        (with_quote(quote=QUOTE.quote + b"\0"), "tpm.format", "malformed"),
        (with_quote(quote=b""), "tpm.format", "malformed"),
        (with_quote(signature=b""), "tpm.format", "malformed"),
        (with_quote(pcrs=b""), "tpm.format", "malformed"),
        (with_quote(pcrs={0: {}}), "tpm.format", "malformed"),
        (with_quote(quote=changed(QUOTE.quote, 50)), "tpm.signature", "bad_signature"),
        (with_quote(signature=changed(QUOTE.signature, 100)), "tpm.signature", "bad_signature"),
        (
            with_quote(signature=changed(QUOTE.signature, 1)),
            "tpm.format",
            "malformed",
        ),
        (
            with_quote(pcrs={SHA256: {**QUOTE.pcrs[SHA256], 8: bytes(32)}}),  # type: ignore[dict-item]
            "tpm.pcr_digest",
            "pcr_digest_mismatch",
        ),
    ],
)
def test_one_thing_changed(evidence: TpmEvidence, name: str, code: str) -> None:
    assert verify(GENUINE).verdict is Finding.AFFIRMING
    result = verify(evidence)
    assert (name, code) in refused(result)
    assert outcome(evidence).bound is None
    assert outcome(evidence).registers == {}


def test_another_structure_that_the_key_signed_is_no_quote() -> None:
    """A key that is not restricted can be made to sign anything; its attributes tell."""
    for offset, name in ((0, "tpm.magic"), (5, "tpm.type")):
        other = changed(QUOTE.quote, offset)
        evidence = with_quote(quote=other, signature=BOOTED.sign(other))
        assert name in {claim for claim, _code in refused(verify(evidence))}


def test_the_signed_selection_is_compared_with_the_values() -> None:
    """Values that hash to the signed digest are refused where they stand for other registers."""
    chosen = BOOTED.quote(NONCE, pcrs=(0, 1, 2))
    good = TpmEvidence(quote=chosen, ak_public=BOOTED.public(), ak=certified())
    assert verify(good).verdict is Finding.AFFIRMING
    values = list(chosen.pcrs[SHA256].values())  # type: ignore[union-attr]
    for pcrs in (
        {SHA256: dict(zip((0, 1, 3), values, strict=True))},
        {SHA256: dict(zip((0, 1), values, strict=False))},
        {SHA256: {0: values[0], 1: values[1], 2: values[2], 3: bytes(32)}},
        {SHA256: {0: values[0], 1: values[1], 2: values[2]}, int(Alg.SHA1): {0: bytes(20)}},
        {},
    ):
        evidence = replace(good, quote=replace(chosen, pcrs=pcrs))
        assert ("tpm.selection", "pcr_selection_mismatch") in refused(verify(evidence))


def test_a_quote_of_no_registers_is_refused() -> None:
    empty = BOOTED.quote(NONCE, pcrs=())
    evidence = TpmEvidence(quote=empty, ak_public=BOOTED.public(), ak=certified())
    assert refused(verify(evidence)) == {("tpm.selection", "pcr_selection_mismatch")}


def test_a_bank_selected_twice_is_refused() -> None:
    one = BOOTED.quote(NONCE, pcrs=(0,))
    start = one.quote.index(b"\0\0\0\1\0\x0b\3\1\0\0")
    twice = (
        one.quote[:start]
        + b"\0\0\0\2"
        + one.quote[start + 4 : start + 10] * 2
        + b"\0\x20"
        + hashlib.sha256(BOOTED.registers[SHA256][0] * 2).digest()
    )
    quote = replace(one, quote=twice, signature=BOOTED.sign(twice))
    evidence = TpmEvidence(quote=quote, ak_public=BOOTED.public(), ak=certified())
    assert refused(verify(evidence)) == {("tpm.selection", "pcr_selection_mismatch")}


def test_expectations() -> None:
    value = BOOTED.registers[SHA256][4]
    expected = Expected(
        values={"extra_data": NONCE, "pcr4": value}, prefixes={"pcr_digest": QUOTE.quote[-32:-30]}
    )
    assert verify(GENUINE, expected).verdict is Finding.AFFIRMING
    for name, code in (
        ("extra_data", "nonce_mismatch"),
        ("pcr4", "measurement_mismatch"),
        ("pcr4_sha384", "measurement_mismatch"),
    ):
        result = verify(GENUINE, Expected(values={name: b"something else"}))
        assert refused(result) == {(f"expected.{name}", code)}
    with pytest.raises(ConfigurationError):
        verify(GENUINE, Expected(values={"measurement": b""}))


def test_nothing_is_affirmed_of_what_the_key_did_not_sign() -> None:
    evidence = with_quote(signature=changed(QUOTE.signature, 100))
    result = verify(evidence, Expected(values={"extra_data": NONCE}))
    claims = {claim.name: claim for claim in result.claims}
    for name in ("tpm.pcr_digest", "eventlog.replay", "expected.extra_data"):
        assert claims[name].finding is Finding.NONE
        assert claims[name].code == "unauthenticated"
        assert claims[name].value == "pass"


def test_nothing_is_affirmed_of_a_key_that_nobody_vouches_for() -> None:
    """The quote holds, but by a key whose certificate does not."""
    evidence = replace(GENUINE, ak=certified(not_after=NOW - timedelta(hours=1)))
    result = verify(evidence, Expected(values={"extra_data": NONCE}))
    assert refused(result) == {("ak.time", "expired")}
    undecided = {claim.name for claim in result.claims if claim.finding is Finding.NONE}
    assert {"eventlog.replay", "expected.extra_data"} <= undecided


# The key.


def test_a_key_without_a_certificate_is_named_as_such() -> None:
    evidence = replace(GENUINE, ak=None)
    result = verify(evidence, policy=LENIENT)
    assert result.verdict is Finding.AFFIRMING
    assert result.platform == "TPM (key not certified)"
    assert Source.HARDWARE_PROVEN not in {claim.source for claim in result.claims}
    assert any("vouches" in sentence for sentence in result.not_proven)
    found = outcome(evidence, policy=LENIENT)
    assert found.bound is None
    assert not found.registers
    assert refused(verify(evidence)) == {("ak.certificate", "endorsements_missing")}


def test_without_any_key_there_is_nothing_to_check_with() -> None:
    evidence = TpmEvidence(quote=QUOTE)
    result = verify(evidence, policy=LENIENT)
    assert refused(result) == {("ak.certificate", "endorsements_missing")}
    assert outcome(evidence, policy=LENIENT).bound is None


def test_a_key_may_be_certified_alone() -> None:
    assert verify(replace(GENUINE, ak_public=None)).verdict is Finding.AFFIRMING


def test_a_plain_key_has_no_attributes_to_check() -> None:
    spki = BOOTED.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    result = verify(replace(GENUINE, ak_public=spki))
    assert result.verdict is Finding.AFFIRMING
    assert "ak.attributes" not in {claim.name for claim in result.claims}


def test_a_key_that_signs_anything_is_refused() -> None:
    attributes = ObjectAttribute.FIXED_TPM | ObjectAttribute.SIGN
    evidence = replace(GENUINE, ak_public=BOOTED.public(attributes=attributes))
    assert refused(verify(evidence)) == {("ak.attributes", "ak_purpose")}
    assert outcome(evidence).bound is None


def test_a_key_that_does_not_decode() -> None:
    result = verify(replace(GENUINE, ak_public=b"\0\1"))
    assert refused(result) == {("ak.public", "malformed")}
    undecided = {claim.name for claim in result.claims if claim.finding is Finding.NONE}
    assert {"ak.attributes", "ak.matches", "tpm.signature"} <= undecided


OTHER = SimulatedVtpm(key=simulated_rsa_key("another"))
STRANGER = SimulatedAkVendor(Vendor.TPM_MANUFACTURER, now=NOW)


@pytest.mark.parametrize(
    ("ak", "refusals"),
    [
        (certified(OTHER), {("ak.matches", "bad_ak_binding")}),
        (certified(not_after=NOW - timedelta(hours=1)), {("ak.time", "expired")}),
        (certified(not_before=NOW + timedelta(hours=1)), {("ak.time", "expired")}),
        (certified(usages=()), {("ak.purpose", "ak_purpose")}),
        (certified(usages=(TCG_KP_EK_CERTIFICATE,)), {("ak.purpose", "ak_purpose")}),
        (certified(may_sign=False), {("ak.purpose", "ak_purpose")}),
        (certified(ca=True), {("ak.purpose", "ak_purpose")}),
        (replace(certified(), intermediates=()), {("ak.chain", "bad_chain")}),
        (
            AkEvidence(
                certificate=STRANGER.certify(BOOTED.key.public_key()),
                intermediates=STRANGER.intermediates,
            ),
            {("ak.chain", "bad_chain")},
        ),
        (AkEvidence(certificate=b"\0"), {("ak.format", "malformed")}),
        (replace(certified(), intermediates=(b"\0",)), {("ak.format", "malformed")}),
        (
            replace(certified(), intermediates=VENDOR.intermediates * 9),
            {("ak.format", "malformed")},
        ),
    ],
)
def test_certificates(ak: AkEvidence, refusals: set[tuple[str, str]]) -> None:
    assert verify(GENUINE).verdict is Finding.AFFIRMING
    evidence = replace(GENUINE, ak=ak)
    assert refused(verify(evidence)) == refusals
    assert outcome(evidence).bound is None


def test_a_certificate_of_another_vendors_root() -> None:
    google = SimulatedAkVendor(Vendor.GOOGLE_VTPM, now=NOW)
    ak = AkEvidence(
        certificate=google.certify(BOOTED.key.public_key()), intermediates=google.intermediates
    )
    result = verify(replace(GENUINE, ak=ak), roots=google.roots)
    assert refused(result) == {("ak.chain", "bad_chain")}


def test_denied_certificates() -> None:
    evidence = replace(GENUINE, ak=certified())
    assert verify(evidence).verdict is Finding.AFFIRMING
    assert evidence.ak is not None
    leaf = parse_certificate(evidence.ak.certificate)
    spelt_otherwise = [
        respelled(one, P256_ORDER) for one in (leaf, VENDOR.intermediate, VENDOR.root)
    ]
    for certificate in (leaf, VENDOR.intermediate, VENDOR.root, *spelt_otherwise):
        denying = replace(STRICT, denied=(fingerprint(certificate),))
        assert refused(verify(evidence, policy=denying)) == {("ak.denied", "denied")}
    unchecked = replace(STRICT, denied=policy.UNCHECKED)
    assert "ak.denied" not in {claim.name for claim in verify(evidence, policy=unchecked).claims}


def test_an_unknown_critical_extension_is_refused() -> None:
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0")
    alternative = x509.SubjectAlternativeName([x509.DNSName("tpm.example")])
    for known in (
        certified(extensions=(extension,)),
        certified(extensions=(alternative,), critical=True),
    ):
        assert verify(replace(GENUINE, ak=known)).verdict is Finding.AFFIRMING
    unknown = certified(extensions=(extension,), critical=True)
    assert refused(verify(replace(GENUINE, ak=unknown))) == {("ak.chain", "bad_chain")}


# The log.


def logged(*events: Event, before: int | None = None, vtpm: SimulatedVtpm = BOOTED) -> bytes:
    """The log of `vtpm` with `events` put in, at the end or before the event of that number."""
    twin = SimulatedVtpm()
    at = len(vtpm.events) if before is None else before
    twin.events = [*vtpm.events[:at], *events, *vtpm.events[at:]]
    return twin.event_log()


def without(*numbers: int) -> bytes:
    twin = SimulatedVtpm()
    twin.events = [event for at, event in enumerate(BOOTED.events) if at not in numbers]
    return twin.event_log()


def replaced(number: int, **changes: object) -> bytes:
    twin = SimulatedVtpm()
    twin.events = list(BOOTED.events)
    twin.events[number] = dataclasses.replace(BOOTED.events[number], **changes)  # type: ignore[arg-type]
    return twin.event_log()


def event(pcr: int, kind: int, data: bytes, covered: bytes | None = None) -> Event:
    return SimulatedVtpm().measure(pcr, kind, data, covered)


def number_of(kind: EventType) -> int:
    return next(at for at, found in enumerate(BOOTED.events) if found.type == kind)


SECURE_BOOT = number_of(EventType.EV_EFI_VARIABLE_DRIVER_CONFIG)
KERNEL = number_of(EventType.EV_IPL)
OFF = variable_data(GLOBAL_VARIABLE, "SecureBoot", b"\0")


@pytest.mark.parametrize(
    "log",
    [
        without(0),
        without(SECURE_BOOT),
        without(KERNEL),
        logged(BOOTED.events[0]),
        logged(event(4, EventType.EV_EFI_ACTION, b"more")),
        logged(event(23, EventType.EV_EFI_ACTION, b"more")),
        without(*range(len(BOOTED.events))),
    ],
)
def test_a_log_that_replays_to_other_registers(log: bytes) -> None:
    assert verify(GENUINE).verdict is Finding.AFFIRMING
    result = verify(replace(GENUINE, event_log=log))
    assert refused(result) == {("eventlog.replay", "eventlog_mismatch")}


def test_what_the_operating_system_measures_later_needs_no_event() -> None:
    vtpm = booted()
    log = vtpm.event_log()
    vtpm.extend(event(10, EventType.EV_IPL, b"a file, by IMA"))
    assert verify(replace(evidence_of(vtpm), event_log=log)).verdict is Finding.AFFIRMING
    vtpm.extend(event(9, EventType.EV_IPL, b"a file, by a boot loader"))
    result = verify(replace(evidence_of(vtpm), event_log=log))
    assert refused(result) == {("eventlog.replay", "eventlog_mismatch")}


def test_digests_in_one_bank_do_not_speak_for_another() -> None:
    """The SHA-256 bank alone was signed: what another bank's digest covers shows nothing."""
    text = b"kernel_cmdline: /evil\0"
    digests = dict(BOOTED.events[KERNEL].digests)
    digests[int(Alg.SHA384)] = hashlib.sha384(b"/evil").digest()
    result = verify(replace(GENUINE, event_log=replaced(KERNEL, data=text, digests=digests)))
    assert refused(result) == {("eventlog.payloads", "eventlog_payload_mismatch")}
    assert result.facts["kernel_command_lines"] == []


def test_every_signed_bank_has_to_replay() -> None:
    quote = BOOTED.quote(NONCE, bank=Alg.SHA384)
    digests = dict(BOOTED.events[0].digests)
    digests[int(Alg.SHA384)] = bytes(48)
    log = replaced(number_of(EventType.EV_EFI_BOOT_SERVICES_APPLICATION), digests=digests)
    evidence = evidence_of(BOOTED, quote)
    assert verify(evidence).verdict is Finding.AFFIRMING
    found = refused(verify(replace(evidence, event_log=log)))
    assert found == {("eventlog.replay", "eventlog_mismatch")}


@pytest.mark.parametrize("number", [0, SECURE_BOOT, 2, KERNEL, len(BOOTED.events) - 1])
def test_data_that_the_digest_does_not_cover(number: int) -> None:
    data = BOOTED.events[number].data
    evidence = replace(GENUINE, event_log=replaced(number, data=data[:-2] + b"\7" + data[-1:]))
    result = verify(evidence)
    assert ("eventlog.payloads", "eventlog_payload_mismatch") in refused(result)


def test_secure_boot_is_never_read_from_data_that_nothing_covers() -> None:
    """The attack that others fell for: the digest of "off" beside the data of "on"."""
    vtpm = booted(secure_boot=False)
    assert verify(evidence_of(vtpm)).facts["secure_boot"] is False
    on = BOOTED.events[SECURE_BOOT].data
    twin = SimulatedVtpm()
    twin.events = [
        replace(found, data=on) if at == SECURE_BOOT else found
        for at, found in enumerate(vtpm.events)
    ]
    result = verify(replace(evidence_of(vtpm), event_log=twin.event_log()))
    assert refused(result) == {("eventlog.payloads", "eventlog_payload_mismatch")}
    assert result.facts["secure_boot"] is None


def test_secure_boot_counts_only_until_its_register_is_closed() -> None:
    vtpm = SimulatedVtpm()
    vtpm.boot(secure_boot=False)
    late = variable_data(GLOBAL_VARIABLE, "SecureBoot", b"\1")
    vtpm.measure(7, EventType.EV_EFI_VARIABLE_DRIVER_CONFIG, late)
    result = verify(evidence_of(vtpm))
    assert result.verdict is Finding.AFFIRMING
    assert result.facts["secure_boot"] is False


@pytest.mark.parametrize("closing", [bytes(4), b"\xff" * 4, b"\1\0\0\0"])
def test_a_separator_under_another_name_still_closes_the_register(closing: bytes) -> None:
    """No digest covers an event's type: an operating system hands out the log with the firmware's
    own events called something else, and measures "on" and another separator after them."""
    vtpm = SimulatedVtpm()
    vtpm.measure(7, EventType.EV_EFI_VARIABLE_DRIVER_CONFIG, OFF)
    vtpm.measure(7, EventType.EV_SEPARATOR, closing)
    own = len(vtpm.events)
    vtpm.boot(secure_boot=True)
    assert verify(evidence_of(vtpm)).facts["secure_boot"] is False
    twin = SimulatedVtpm()
    twin.events = [
        replace(found, type=EventType.EV_POST_CODE, data=b"") if at < own else found
        for at, found in enumerate(vtpm.events)
    ]
    result = verify(replace(evidence_of(vtpm), event_log=twin.event_log()))
    assert result.verdict is Finding.AFFIRMING
    assert result.facts["secure_boot"] is None


def test_secure_boot_said_too_late_was_not_said() -> None:
    vtpm = SimulatedVtpm()
    for pcr in range(8):
        vtpm.measure(pcr, EventType.EV_SEPARATOR, bytes(4))
    vtpm.measure(8, EventType.EV_IPL, b"text")
    late = variable_data(GLOBAL_VARIABLE, "SecureBoot", b"\1")
    vtpm.measure(7, EventType.EV_EFI_VARIABLE_DRIVER_CONFIG, late)
    result = verify(evidence_of(vtpm))
    assert result.verdict is Finding.AFFIRMING
    assert result.facts["secure_boot"] is None


def test_nothing_is_read_from_registers_that_do_not_replay() -> None:
    vtpm = booted(secure_boot=False)
    twin = SimulatedVtpm()
    twin.events = list(vtpm.events)
    twin.events[SECURE_BOOT] = BOOTED.events[SECURE_BOOT]  # data and digests of "on"
    result = verify(replace(evidence_of(vtpm), event_log=twin.event_log()))
    assert refused(result) == {("eventlog.replay", "eventlog_mismatch")}
    assert result.facts["secure_boot"] is None


def test_of_two_states_the_worse_one_counts() -> None:
    vtpm = SimulatedVtpm()
    on = variable_data(GLOBAL_VARIABLE, "SecureBoot", b"\1")
    for data in (on, OFF, on):
        vtpm.measure(7, EventType.EV_EFI_VARIABLE_DRIVER_CONFIG, data)
    vtpm.boot()
    assert verify(evidence_of(vtpm)).facts["secure_boot"] is False


@pytest.mark.parametrize(
    "data",
    [
        variable_data(GLOBAL_VARIABLE, "SetupMode", b"\1"),
        variable_data(GLOBAL_VARIABLE, "SecureBoot", b"\1") + b"\1",
        variable_data(type(GLOBAL_VARIABLE)(int=0), "SecureBoot", b"\1"),
        b"short",
    ],
)
def test_other_variables_say_nothing_of_secure_boot(data: bytes) -> None:
    vtpm = SimulatedVtpm()
    vtpm.measure(7, EventType.EV_EFI_VARIABLE_DRIVER_CONFIG, data)
    vtpm.measure(4, EventType.EV_EFI_BOOT_SERVICES_APPLICATION, b"", b"image")
    vtpm.measure(8, EventType.EV_IPL, b"text")
    for pcr in range(8):
        vtpm.measure(pcr, EventType.EV_SEPARATOR, bytes(4))
    result = verify(evidence_of(vtpm))
    assert result.verdict is Finding.AFFIRMING
    assert result.facts["secure_boot"] is None


def test_secure_boot_in_another_register_is_not_believed() -> None:
    vtpm = booted(secure_boot=False)
    on = variable_data(GLOBAL_VARIABLE, "SecureBoot", b"\1")
    vtpm.measure(23, EventType.EV_EFI_VARIABLE_DRIVER_CONFIG, on)
    assert verify(evidence_of(vtpm)).facts["secure_boot"] is False


def test_nothing_is_read_from_registers_that_were_not_signed() -> None:
    quote = BOOTED.quote(NONCE, pcrs=tuple(range(7)))
    result = verify(evidence_of(BOOTED, quote))
    assert result.verdict is Finding.AFFIRMING
    assert result.facts["secure_boot"] is None
    assert result.facts["kernel_command_lines"] == []
    assert any("7, 8" in sentence for sentence in result.not_proven)


def test_a_log_of_registers_that_nobody_signed_is_refused() -> None:
    quote = BOOTED.quote(NONCE, pcrs=(23,))
    assert refused(verify(evidence_of(BOOTED, quote))) == {("eventlog.replay", "eventlog_mismatch")}


def test_firmware_cannot_be_left_out_of_a_log() -> None:
    """A log that tells nothing of a register that firmware used is refused."""
    quote = BOOTED.quote(NONCE, pcrs=(0, 7, 23))
    twin = SimulatedVtpm()
    twin.events = [found for found in BOOTED.events if found.pcr != 0]
    result = verify(replace(evidence_of(BOOTED, quote), event_log=twin.event_log()))
    assert refused(result) == {("eventlog.replay", "eventlog_mismatch")}


@pytest.mark.parametrize("late", [False, True])
def test_where_register_0_starts_is_said_first_and_once(late: bool) -> None:
    """A second start would hide from the replay what the log told before."""
    start = Event(
        pcr=0,
        type=EventType.EV_NO_ACTION,
        digests={int(bank): bytes(len(value[0])) for bank, value in BOOTED.registers.items()},
        data=b"StartupLocality\0\3",
    )
    vtpm = SimulatedVtpm()
    for registers in vtpm.registers.values():
        registers[0] = registers[0][:-1] + b"\3"
    vtpm.boot()
    twin = SimulatedVtpm()
    lie = event(0, EventType.EV_S_CRTM_VERSION, b"a lie")
    twin.events = [*([lie] if late else []), start, *vtpm.events]
    result = verify(replace(evidence_of(vtpm), event_log=twin.event_log()))
    assert refused(result) == ({("eventlog.replay", "eventlog_mismatch")} if late else set())


def test_a_register_that_was_never_closed() -> None:
    log = without(number_of(EventType.EV_SEPARATOR))
    result = verify(TpmEvidence(quote=None, event_log=log), policy=LENIENT)
    assert refused(result) == {("eventlog.replay", "missing_event")}
    claim = next(claim for claim in result.claims if claim.name == "eventlog.replay")
    assert claim.value == "not_trustworthy"


def test_a_log_that_ends_at_the_boot_loader() -> None:
    images = [
        at
        for at, found in enumerate(BOOTED.events)
        if found.type == EventType.EV_EFI_BOOT_SERVICES_APPLICATION
    ]
    end = len(BOOTED.events)
    exits = (end - 2, end - 1)
    for left_out, whole in (
        ((), True),
        (exits, True),
        ((*exits, KERNEL), True),
        ((*exits, images[1]), True),
        ((*exits, KERNEL, images[1]), False),
        ((KERNEL, images[1]), True),
    ):
        evidence = TpmEvidence(quote=None, event_log=without(*left_out))
        found = refused(verify(evidence, policy=LENIENT))
        assert found == (set() if whole else {("eventlog.replay", "missing_event")})


def test_a_log_alone_is_a_story() -> None:
    evidence = TpmEvidence(quote=None, event_log=BOOTED.event_log())
    result = verify(evidence, policy=LENIENT)
    assert result.verdict is Finding.AFFIRMING
    assert result.platform == "TPM event log (not signed)"
    assert any("No quote covers" in sentence for sentence in result.not_proven)
    assert outcome(evidence, policy=LENIENT).registers == {}
    missing = {("tpm.quote", "endorsements_missing")}
    assert refused(verify(evidence)) == missing
    nonce = Expected(values={"extra_data": NONCE})
    assert refused(verify(evidence, nonce, policy=LENIENT)) == missing


def test_no_evidence_at_all() -> None:
    result = verify(TpmEvidence(quote=None), policy=LENIENT)
    assert refused(result) == {("tpm.quote", "endorsements_missing")}


@pytest.mark.parametrize(
    "log", [b"", b"\0", BOOTED.event_log() + b"\0", BOOTED.event_log()[:-1], bytes(40)]
)
def test_logs_that_do_not_decode(log: bytes) -> None:
    assert refused(verify(replace(GENUINE, event_log=log))) == {("eventlog.format", "malformed")}


def test_a_log_without_a_bank_that_can_be_replayed() -> None:
    log = BOOTED.event_log()
    end = 32 + int.from_bytes(log[28:32], "little")
    header = bytearray(log[:end])
    banks = header.index(b"\x03\0\0\0\x04\0", 32)
    sm3 = header[:banks] + b"\1\0\0\0" + b"\x12\0\x20\0" + b"\0"
    sm3[28:32] = (len(sm3) - 32).to_bytes(4, "little")
    event_of_sm3 = encode_event(
        Event(pcr=0, type=4, digests={int(Alg.SM3_256): bytes(32)}, data=bytes(4))
    )
    result = verify(replace(GENUINE, event_log=bytes(sm3) + event_of_sm3))
    assert refused(result) == {("eventlog.format", "malformed")}


def test_without_a_log() -> None:
    result = verify(replace(GENUINE, event_log=None))
    assert result.verdict is Finding.AFFIRMING
    assert any("event log" in sentence for sentence in result.not_proven)


def test_registers_of_sha1_alone_prove_little() -> None:
    quote = BOOTED.quote(NONCE, bank=Alg.SHA1)
    result = verify(evidence_of(BOOTED, quote))
    assert any("SHA-1" in sentence for sentence in result.not_proven)
    assert not any("SHA-1" in sentence for sentence in verify(GENUINE).not_proven)


def test_a_bank_without_registers_lends_no_strength() -> None:
    quote = BOOTED.quote(NONCE, bank=Alg.SHA1)
    assert isinstance(quote.pcrs, dict)
    empty = replace(quote, pcrs={int(Alg.SHA256): {}, **quote.pcrs})
    result = verify(evidence_of(BOOTED, empty))
    assert result.verdict is Finding.AFFIRMING
    assert any("SHA-1" in sentence for sentence in result.not_proven)


def test_logs_of_sha1_alone_prove_little() -> None:
    old = SimulatedVtpm(banks=(Alg.SHA1,))
    old.boot()
    for evidence in (
        TpmEvidence(quote=None, event_log=old.event_log()),
        evidence_of(old, old.quote(NONCE, bank=Alg.SHA1)),
    ):
        result = verify(evidence, policy=LENIENT)
        assert result.verdict is Finding.AFFIRMING
        assert any("SHA-1" in sentence for sentence in result.not_proven)


def test_command_lines_of_systemd() -> None:
    vtpm = booted()
    text = "root=/dev/vda quiet\0".encode("utf-16-le")
    vtpm.measure(12, EventType.EV_IPL, text)
    vtpm.measure(12, EventType.EV_IPL, b"not what was measured", b"a file")
    vtpm.measure(8, EventType.EV_IPL, b"grub_cmd: set a=b\0", b"set a=b")
    vtpm.measure(9, EventType.EV_IPL, text)
    assert verify(evidence_of(vtpm)).facts["kernel_command_lines"] == [
        "/vmlinuz root=/dev/vda ro",
        "root=/dev/vda quiet",
    ]
