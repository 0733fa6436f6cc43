"""Golden values: PCR 0 and 1 as boots of one firmware on one shape of machine left them.

PCR 0 holds the firmware's code, PCR 1 its configuration: ACPI tables where the firmware measures
them, boot order, what else it was told. Neither follows from an image. Record them from a boot on
a machine that you trust, once for each firmware and shape; every entry is one accepted pair.

In a cloud the firmware is the provider's, and so is what the processor measured when it launched
it: that is recorded beside the two, from a report of the guest itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from cloister.errors import AuthenticationError, ConfigurationError, MalformedError
from cloister.evidence import items
from cloister.evidence.eventlog import EventType, is_crypto_agile, parse_event_log, replay
from cloister.evidence.pcrs import parse_pcrs_json
from cloister.evidence.report import (
    ITEM_EVENT_LOG,
    AttestationReport,
    EvidenceItem,
    parse_attestation_report,
)
from cloister.evidence.tpm import Alg
from cloister.image.firmware_volumes import FirmwareVolume, unpacked_volumes
from cloister.strictjson import (
    JsonObject,
    expect_hex,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
    parse_json_object,
)

FORMAT: Final = "cloister/golden/1"
MAX_BYTES: Final = 1 << 20
MAX_ENTRIES: Final = 64
_CODE: Final = "image.golden"
_PCR_BYTES: Final = 32
_HARDWARE: Final = ("measurement", "mr_td", "rtmr0")
"""SEV-SNP's launch digest, and TDX' registers that hold the firmware and what it was told."""
_HARDWARE_BYTES: Final = 48
_FIRMWARE: Final = frozenset(
    {EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB, EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB2}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """One firmware on one shape of machine."""

    firmware: str
    """Name and version, for people: ``OVMF 2025.02-8 (Debian)``."""
    machine: str
    """What else decides the values, for people: ``q35, 768 MiB, 1 vCPU``."""
    secure_boot: bool
    """Whether Secure Boot was on: firmware built for it measures itself differently."""
    pcr0: bytes
    pcr1: bytes
    hardware: tuple[tuple[str, bytes], ...] = ()
    """What the processor measured of the firmware, of `_HARDWARE`, sorted by name."""
    platform: str = ""
    """The ``tee_type`` of the report that it was read from; empty where a log was."""

    @property
    def name(self) -> str:
        """For reference values."""
        secured = ", Secure Boot" if self.secure_boot else ""
        return f"{self.firmware}, {self.machine}{secured}"

    def to_json(self) -> JsonObject:
        """The entry as the document writes it."""
        return {
            "firmware": self.firmware,
            "machine": self.machine,
            "secure_boot": self.secure_boot,
            "pcr0": self.pcr0.hex(),
            "pcr1": self.pcr1.hex(),
            **(
                {"hardware": {name: value.hex() for name, value in self.hardware}}
                if self.hardware
                else {}
            ),
            **({"platform": self.platform} if self.platform else {}),
        }

    def is_of(self, platform: str) -> bool:
        """Whether it may be of such machines: a log does not say of which it is."""
        return self.platform in {"", platform}


def golden_from_log(data: bytes, *, firmware: str, machine: str) -> Golden:
    """Read PCR 0 and 1 from the event log of a boot, and whether Secure Boot was on.

    Nothing is authenticated: the log has to come from a boot that you made yourself.

    Raises:
        MalformedError: no crypto-agile log with a SHA-256 bank, or one that measures no firmware.
    """
    if not is_crypto_agile(data):
        raise MalformedError("the event log is not in the crypto-agile format", code=_CODE)
    log = parse_event_log(data)
    registers = replay(log, bank=Alg.SHA256)
    if not any(event.pcr == 0 and event.type != EventType.EV_NO_ACTION for event in log.events):
        raise MalformedError("the event log measures no firmware", code=_CODE)
    states = [
        event.data[-1:] == b"\x01"
        for event in log.events
        if event.pcr == 7
        and event.type == EventType.EV_EFI_VARIABLE_DRIVER_CONFIG
        and "SecureBoot".encode("utf-16-le") in event.data
    ]
    return Golden(
        firmware=firmware,
        machine=machine,
        secure_boot=bool(states) and all(states),
        pcr0=registers[0],
        pcr1=registers[1],
    )


def golden_from_report(data: bytes, *, firmware: str, machine: str) -> Golden:
    """The same from an attestation report, which has a boot's log, and what its processor measured.

    Nothing is authenticated: the report has to be of a machine that you started yourself.

    Raises:
        MalformedError: no report, one without the log of a measured boot, or one whose log leads to
            other registers than it lists.
    """
    report = parse_attestation_report(data)
    log = report.evidence.get(ITEM_EVENT_LOG)
    if log is None:
        raise MalformedError("the report brings no event log of a measured boot", code=_CODE)
    found = golden_from_log(log.data, firmware=firmware, machine=machine)
    listed = _listed(report)
    if (found.pcr0, found.pcr1) != (listed.get(0), listed.get(1)):
        raise MalformedError("the report lists other registers than its log leads to", code=_CODE)
    return replace(
        found,
        hardware=tuple(sorted(_hardware(report.evidence).items())),
        platform=report.tee_type,
    )


def _listed(report: AttestationReport) -> Mapping[int, bytes]:
    """The registers of the SHA-256 bank that a report lists."""
    for name in (items.ITEM_TPM_PCRS, items.ITEM_AZURE_PCRS):
        if name in report.evidence:
            return parse_pcrs_json(report.evidence[name].data).get(Alg.SHA256, {})
    return {}


def _hardware(evidence: Mapping[str, EvidenceItem]) -> Mapping[str, bytes]:
    from cloister.evidence.hcl import HardwareType, parse_hcl_report

    if items.ITEM_SNP_REPORT in evidence:
        return _snp(evidence[items.ITEM_SNP_REPORT].data)
    if items.ITEM_TDX_QUOTE in evidence:
        return _tdx(evidence[items.ITEM_TDX_QUOTE].data)
    if items.ITEM_AZURE_TD_QUOTE in evidence:
        return _tdx(evidence[items.ITEM_AZURE_TD_QUOTE].data)
    if items.ITEM_AZURE_HCL_REPORT in evidence:
        report = parse_hcl_report(evidence[items.ITEM_AZURE_HCL_REPORT].data)
        if report.hardware_type is HardwareType.SNP:
            return _snp(report.hardware_report)
    return {}


def _snp(data: bytes) -> Mapping[str, bytes]:
    from cloister.evidence.snp import parse_report

    return {"measurement": parse_report(data, any_version=True).measurement}


def _tdx(data: bytes) -> Mapping[str, bytes]:
    from cloister.evidence.dcap import parse_quote
    from cloister.evidence.tdx import TdReport

    body = parse_quote(data).body
    if not isinstance(body, TdReport):
        raise MalformedError("the quote is not one of a trust domain", code=_CODE)
    return {"mr_td": body.mr_td, "rtmr0": body.rtmrs[0]}


def check_firmware(data: bytes, code: bytes) -> tuple[FirmwareVolume, ...]:
    """That the boot whose event log `data` is ran the firmware `code`, as far as that follows.

    Every volume that is measured as it is in the file has to be among what PCR 0 was told, which is
    told of as many as the file has. Returns the others: the volumes that change themselves, of
    which the log's word is all there is.

    Raises:
        MalformedError: the log, or the firmware, does not decode.
        AuthenticationError: it ran another firmware (code ``image.other_firmware``).
    """
    told = [
        event.digests.get(Alg.SHA256)
        for event in parse_event_log(data).events
        if event.pcr == 0 and event.type in _FIRMWARE
    ]
    volumes = unpacked_volumes(code)
    kept = [one.sha256 for one in volumes if not one.changes_itself]
    if len(told) != len(volumes) or any(digest not in told for digest in kept):
        raise AuthenticationError(
            "the boot ran another firmware than this file: what it measured of it is something"
            " else",
            code="image.other_firmware",
        )
    return tuple(one for one in volumes if one.changes_itself)


def dump_golden(entries: Iterable[Golden]) -> str:
    """The document as text, sorted, an entry a line."""
    lines = sorted(json.dumps(entry.to_json(), ensure_ascii=False) for entry in set(entries))
    listed = ",\n".join(f"  {line}" for line in lines)
    return f'{{"format": {json.dumps(FORMAT)}, "golden": [\n{listed}\n]}}\n'


def load_golden(data: bytes) -> tuple[Golden, ...]:
    """Read a document of at most `MAX_BYTES`.

    Raises:
        ConfigurationError: not such a document (code ``image.golden``).
    """
    what = "the golden values"
    try:
        members = parse_json_object(data, limit=MAX_BYTES, what=what)
        expect_keys(members, what, required={"format", "golden"})
        if members["format"] != FORMAT:
            raise MalformedError(f"{what} are not in the format {FORMAT}")
        listed = expect_list(members["golden"], "golden", limit=MAX_ENTRIES)
        return tuple(_entry(entry) for entry in listed)
    except MalformedError as error:
        raise ConfigurationError(str(error), code=_CODE) from None


def _entry(value: object) -> Golden:
    what = "a golden value"
    members = expect_object(value, what)
    expect_keys(
        members,
        what,
        required={"firmware", "machine", "secure_boot", "pcr0", "pcr1"},
        optional={"hardware", "platform"},
    )
    hardware = expect_object(members.get("hardware", {}), "what a processor measured")
    expect_keys(hardware, "what a processor measured", required=set(), optional=set(_HARDWARE))
    secure_boot = members["secure_boot"]
    if not isinstance(secure_boot, bool):
        raise MalformedError(f"{what} does not say whether Secure Boot was on")
    return Golden(
        firmware=expect_str(members["firmware"], "a firmware's name", limit=96),
        machine=expect_str(members["machine"], "a machine's shape", limit=96),
        secure_boot=secure_boot,
        pcr0=expect_hex(members["pcr0"], "a register", size=_PCR_BYTES),
        pcr1=expect_hex(members["pcr1"], "a register", size=_PCR_BYTES),
        hardware=tuple(
            (name, expect_hex(value, "a register", size=_HARDWARE_BYTES))
            for name, value in sorted(hardware.items())
        ),
        platform=expect_str(members.get("platform", ""), "a platform", limit=32),
    )
