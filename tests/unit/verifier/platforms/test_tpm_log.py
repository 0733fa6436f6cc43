"""Event logs of boots beside a quote: what they must replay to, and what is read from them."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import replace

import pytest

from cloister.evidence.efi import GLOBAL_VARIABLE, variable_data
from cloister.evidence.eventlog import Event, EventType, encode_event
from cloister.evidence.tpm import Alg
from cloister.testing.simulated_vtpm import SimulatedVtpm
from cloister.verifier.expected import Expected
from cloister.verifier.platforms.tpm import TpmEvidence
from cloister.verifier.result import Finding
from support.claims import refused
from support.tpm_evidence import (
    BOOTED,
    GENUINE,
    LENIENT,
    NONCE,
    booted,
    evidence_of,
    outcome,
    verify,
)


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
