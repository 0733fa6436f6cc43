"""Crypto-agile event logs."""

from __future__ import annotations

import hashlib

import pytest

from cloister.errors import MalformedError
from cloister.evidence import eventlog
from cloister.evidence.eventlog import (
    Event,
    EventType,
    encode_event,
    encode_event_log,
    measured_event,
    parse_event_log,
    replay,
)
from cloister.evidence.tpm import Alg

ONE = measured_event(8, EventType.EV_IPL, b"one")
TWO = measured_event(8, EventType.EV_IPL, b"two")
LOG = encode_event_log((ONE, TWO))
HEADER = encode_event_log(())


def log_of(*banks: tuple[int, int], events: bytes = b"", vendor: bytes = b"\0") -> bytes:
    """A log with any banks, written out by hand."""
    header = eventlog.SPEC_ID_SIGNATURE + bytes(8) + len(banks).to_bytes(4, "little")
    for algorithm, size in banks:
        header += algorithm.to_bytes(2, "little") + size.to_bytes(2, "little")
    header += vendor
    return b"".join(
        (
            bytes(4),
            b"\x03\0\0\0",
            bytes(20),
            len(header).to_bytes(4, "little"),
            header,
            events,
        )
    )


def test_there_and_back() -> None:
    log = parse_event_log(LOG)
    assert log.raw == LOG
    assert log.events == (ONE, TWO)
    assert log.banks == {Alg.SHA256: 32}
    assert b"".join(map(encode_event, log.events)) == LOG[len(HEADER) :]


def test_replay_extends_in_order() -> None:
    registers = replay(parse_event_log(LOG))
    first = hashlib.sha256(bytes(32) + hashlib.sha256(b"one").digest()).digest()
    expected = hashlib.sha256(first + hashlib.sha256(b"two").digest()).digest()
    assert registers[8] == expected
    assert all(registers[pcr] == bytes(32) for pcr in (*range(8), *range(9, 17), 23))
    assert all(registers[pcr] == b"\xff" * 32 for pcr in range(17, 23))


def test_events_without_action_are_not_extended() -> None:
    told = measured_event(8, EventType.EV_NO_ACTION, b"told")
    assert replay(parse_event_log(encode_event_log((told, ONE)))) == replay(
        parse_event_log(encode_event_log((ONE,)))
    )


def test_the_startup_locality_begins_register_zero() -> None:
    locality = measured_event(0, EventType.EV_NO_ACTION, b"StartupLocality\0\x03")
    registers = replay(parse_event_log(encode_event_log((locality,))))
    assert registers[0] == bytes(31) + b"\x03"
    longer = measured_event(0, EventType.EV_NO_ACTION, b"StartupLocality\0\x03\x03")
    assert replay(parse_event_log(encode_event_log((longer,))))[0] == bytes(32)


def test_several_banks() -> None:
    sha1, sha256 = hashlib.sha1(b"x").digest(), hashlib.sha256(b"x").digest()
    event = Event(pcr=0, type=4, digests={int(Alg.SHA1): sha1, int(Alg.SHA256): sha256}, data=b"x")
    log = parse_event_log(log_of((Alg.SHA1, 20), (Alg.SHA256, 32), events=encode_event(event)))
    assert replay(log, bank=Alg.SHA1)[0] == hashlib.sha1(bytes(20) + sha1).digest()
    assert replay(log, bank=Alg.SHA256)[0] == hashlib.sha256(bytes(32) + sha256).digest()


@pytest.mark.parametrize("bank", [Alg.SHA1, Alg.SM3_256])
def test_a_bank_that_the_log_lacks_cannot_be_replayed(bank: int) -> None:
    with pytest.raises(MalformedError) as raised:
        replay(parse_event_log(LOG), bank=bank)
    assert raised.value.code == "eventlog_bank"


def test_an_unknown_bank_can_be_read_but_not_replayed() -> None:
    log = parse_event_log(log_of((Alg.SM3_256, 32)))
    with pytest.raises(MalformedError):
        replay(log, bank=Alg.SM3_256)


EVENT = encode_event(ONE)

MALFORMED = {
    "empty": b"",
    "header of another register": b"\x01" + LOG[1:],
    "header of another type": LOG[:4] + b"\x04" + LOG[5:],
    "header with a digest": LOG[:8] + b"\x01" + LOG[9:],
    "header of the old format": LOG.replace(b"Spec ID Event03", b"Spec ID Event02"),
    "no bank": log_of(),
    "seventeen banks": log_of(*((number, 32) for number in range(0x100, 0x111))),
    "a bank twice": log_of((Alg.SHA256, 32), (Alg.SHA256, 32)),
    "a bank without size": log_of((0x99, 0)),
    "a bank of a wrong size": log_of((Alg.SHA256, 20)),
    "vendor information cut short": log_of((Alg.SHA256, 32), vendor=b"\x02a"),
    "header with more in it": log_of((Alg.SHA256, 32), vendor=b"\0\0"),
    "register that does not exist": HEADER + b"\x18" + EVENT[1:],
    "event without digest": HEADER + EVENT[:8] + bytes(4) + EVENT[46:],
    "event of another bank": HEADER + EVENT[:12] + b"\x0c" + EVENT[13:],
    "event longer than the log": HEADER + EVENT[:46] + b"\xff\xff\x0f\0" + EVENT[50:],
    "event longer than the bound": HEADER + EVENT[:46] + b"\xff\xff\xff\xff" + EVENT[50:],
    "trailing bytes": LOG + b"\xff" * 4,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_logs(name: str) -> None:
    parse_event_log(LOG)
    with pytest.raises(MalformedError) as raised:
        parse_event_log(MALFORMED[name])
    assert raised.value.code == "eventlog_malformed"


def test_an_event_may_not_give_one_bank_two_digests() -> None:
    good = log_of((Alg.SHA1, 20), (Alg.SHA256, 32))
    event = b"".join(
        (bytes(8), b"\x02\0\0\0", b"\x0b\0", bytes(32), b"\x0b\0", bytes(32), bytes(4))
    )
    parse_event_log(good)
    with pytest.raises(MalformedError):
        parse_event_log(good + event)


def test_every_shorter_log_is_malformed_unless_it_ends_with_an_event() -> None:
    ends = {len(HEADER), len(HEADER) + len(encode_event(ONE))}
    for size in range(len(LOG)):
        if size in ends:
            parse_event_log(LOG[:size])
        else:
            with pytest.raises(MalformedError):
                parse_event_log(LOG[:size])


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventlog, "MAX_EVENTS", 2)
    parse_event_log(LOG)
    with pytest.raises(MalformedError, match="more than 2 events"):
        parse_event_log(encode_event_log((ONE, TWO, ONE)))
    monkeypatch.setattr(eventlog, "MAX_LOG_BYTES", len(LOG))
    parse_event_log(LOG)
    with pytest.raises(MalformedError, match="at most"):
        parse_event_log(LOG + b"\0")
