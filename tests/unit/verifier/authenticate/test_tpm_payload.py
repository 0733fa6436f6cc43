"""Which bytes of an event its digest covers."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from cloister.evidence.efi import VARIABLE_HEAD
from cloister.evidence.eventlog import Event, EventType
from cloister.evidence.tpm import Alg
from cloister.verifier.authenticate.tpm_payload import (
    COVERED,
    NOT_COVERED,
    measured_bytes,
    must_be_covered,
    payload_fault,
)

SHA256 = int(Alg.SHA256)
NAME = "Boot0000".encode("utf-16-le")
VARIABLE = VARIABLE_HEAD.pack(bytes(16), 8, 5) + NAME + b"value"


def event(kind: int, data: bytes, measured: bytes | None = None) -> Event:
    """An event whose digest is that of `measured`, or of all its data."""
    covered = data if measured is None else measured
    digests = {SHA256: hashlib.sha256(covered).digest()}
    return Event(pcr=1, type=kind, digests=digests, data=data)


def test_every_type_is_decided() -> None:
    assert set(EventType) == COVERED | NOT_COVERED
    assert not COVERED & NOT_COVERED


@pytest.mark.parametrize("kind", sorted(COVERED))
def test_changed_data_is_a_fault(kind: EventType) -> None:
    genuine = event(kind, b"\0\0\0\0")
    assert payload_fault(genuine, SHA256) is None
    assert measured_bytes(genuine, SHA256) == b"\0\0\0\0"
    changed = replace(genuine, data=b"\0\0\0\1")
    fault = payload_fault(changed, SHA256)
    assert fault is not None
    assert kind.name in fault
    assert "sha256" in fault
    assert measured_bytes(changed, SHA256) is None


@pytest.mark.parametrize("kind", [*sorted(NOT_COVERED), 0x800000FF])
def test_descriptions_of_what_was_measured_are_not_read(kind: int) -> None:
    described = event(kind, b"a description", b"an image")
    assert payload_fault(described, SHA256) is None
    assert measured_bytes(described, SHA256) is None


@pytest.mark.parametrize(
    ("data", "measured"),
    [
        (b"grub_cmd: set a=1\0", b"set a=1"),
        (b"kernel_cmdline: /vmlinuz ro\0", b"/vmlinuz ro"),
        (b"module_cmdline: /module\0", b"/module"),
        (b"grub_cmd set a=1\0", b"set a=1\0"),
        (b"grub_kernel_cmdline /vmlinuz ro\0", b"/vmlinuz ro"),
    ],
)
def test_what_grub_ran_is_measured_without_its_prefix(data: bytes, measured: bytes) -> None:
    genuine = event(EventType.EV_IPL, data, measured)
    assert must_be_covered(genuine)
    assert payload_fault(genuine, SHA256) is None
    assert measured_bytes(genuine, SHA256) == measured
    assert payload_fault(event(EventType.EV_IPL, data, b"something else"), SHA256) is not None


def test_load_options_with_a_byte_too_many() -> None:
    text = "root=/dev/sda\0".encode("utf-16-le")
    assert measured_bytes(event(EventType.EV_IPL, text + b"\0", text), SHA256) == text
    assert measured_bytes(event(EventType.EV_IPL, text + b"x", text), SHA256) is None


@pytest.mark.parametrize("measured", [VARIABLE, b"value"])
def test_boot_variables_are_measured_with_or_without_their_name(measured: bytes) -> None:
    genuine = event(EventType.EV_EFI_VARIABLE_BOOT, VARIABLE, measured)
    assert payload_fault(genuine, SHA256) is None
    assert measured_bytes(genuine, SHA256) == measured
    changed = replace(genuine, data=VARIABLE[:-1] + b"E")
    assert payload_fault(changed, SHA256) is not None


def test_a_boot_variable_that_lies_about_its_lengths_is_a_fault() -> None:
    for data in (VARIABLE + b"more", VARIABLE[:20], VARIABLE_HEAD.pack(bytes(16), 9, 5) + NAME):
        stretched = event(EventType.EV_EFI_VARIABLE_BOOT, data, b"value")
        assert payload_fault(stretched, SHA256) is not None
    longer = event(EventType.EV_EFI_VARIABLE_BOOT, VARIABLE + b"more", b"valuemore")
    assert payload_fault(longer, SHA256) is not None


def test_only_boot_variables_may_leave_the_name_out() -> None:
    """The name says which variable it was: Secure Boot's must be measured with it."""
    for kind in (EventType.EV_EFI_VARIABLE_DRIVER_CONFIG, EventType.EV_EFI_VARIABLE_BOOT2):
        assert payload_fault(event(kind, VARIABLE), SHA256) is None
        assert payload_fault(event(kind, VARIABLE, b"value"), SHA256) is not None


def test_an_authority_with_a_byte_too_many() -> None:
    genuine = event(EventType.EV_EFI_VARIABLE_AUTHORITY, VARIABLE + b"\x99", VARIABLE)
    assert payload_fault(genuine, SHA256) is None
    assert measured_bytes(genuine, SHA256) == VARIABLE
    assert payload_fault(replace(genuine, data=VARIABLE + b"\x99\x99"), SHA256) is not None


def test_googles_note_about_the_host_is_covered() -> None:
    genuine = event(EventType.EV_NONHOST_INFO, b"GCE NonHostInfo\0\4")
    assert payload_fault(genuine, SHA256) is None
    assert payload_fault(replace(genuine, data=b"GCE NonHostInfo\0\0"), SHA256) is not None


def test_what_is_never_extended_measures_nothing() -> None:
    assert measured_bytes(event(EventType.EV_NO_ACTION, b"anything"), SHA256) is None


def test_an_unknown_bank_is_the_callers_mistake() -> None:
    with pytest.raises(KeyError):
        payload_fault(event(EventType.EV_SEPARATOR, bytes(4)), Alg.SHA384)
