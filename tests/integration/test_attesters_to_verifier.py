"""From a device to an affirmed worker: attesters over simulated hardware, and the verifier.

Devices and kernels are simulated, their answers come from simulated vendors, and everything in
between is what runs on a real machine.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import cbor2
import pytest

from cloister.attester.configfs_tsm import TsmAttester
from cloister.attester.gramine import GramineAttester
from cloister.attester.machine import MachineAttester, encode_item
from cloister.attester.nitro_tpm import NitroTpmAttester
from cloister.attester.nsm import NitroAttester, Nsm
from cloister.attester.sev_guest import EXTENDED_REQUEST, REQUEST, SevGuest, SevGuestAttester
from cloister.attester.tpm import Tpm
from cloister.errors import AppraisalError
from cloister.evidence import items
from cloister.evidence.report import ITEM_EVENT_LOG, EvidenceItem
from cloister.strictjson import JsonObject
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.testing.simulated_nitro_tpm import SimulatedNitroTpm
from cloister.verifier import policy
from cloister.verifier.report import verify_report
from cloister.verifier.result import AttestationResult
from support.tsm import Entries, table

NOW = datetime(2026, 6, 1, tzinfo=UTC)
NONCE = bytes(range(32))

Quote = Callable[[bytes], Mapping[str, EvidenceItem]]


def verify(worker: SimulatedHardware, nonce: bytes = NONCE) -> AttestationResult:
    return verify_report(
        worker.report(NONCE),
        nonce=nonce,
        policy=policy.development(),
        reference_values=worker.reference_values,
        roots=worker.roots,
        at=NOW,
    )


def hardware(platform: str) -> tuple[SimulatedHardware, Quote]:
    """A simulated worker, and its vendor's own way of issuing evidence."""
    worker = SimulatedHardware.make(platform, now=NOW)
    return worker, worker.issue


def snp_by_configfs(_: Path, issue: Quote) -> Quote:
    name = items.ITEM_SNP_REPORT
    entries = Entries(
        "sev_guest", lambda digest: issue(digest)[name].data, table(issue(NONCE)[name])
    )
    return TsmAttester(entries).quote


def snp_by_device(directory: Path, issue: Quote) -> Quote:
    def driver(descriptor: int, request: int, argument: bytearray, /) -> int:
        _, asked, answer, _, _ = REQUEST.unpack(argument)
        user_data, _, where, _ = EXTENDED_REQUEST.unpack(
            ctypes.string_at(asked, EXTENDED_REQUEST.size)
        )
        item = issue(user_data[:32])[items.ITEM_SNP_REPORT]
        ctypes.memmove(where, table(item), 0x4000)
        head = bytes(4) + len(item.data).to_bytes(4, "little") + bytes(24)
        ctypes.memmove(answer, head + item.data, len(head + item.data))
        return 0

    (directory / "sev-guest").touch()
    return SevGuestAttester(SevGuest(ioctl=driver, device=directory / "sev-guest")).quote


def stapled(quote: Quote, issue: Quote, name: str) -> Quote:
    """With the collateral that a worker staples to a quote."""

    def issue_stapled(digest: bytes) -> Mapping[str, EvidenceItem]:
        endorsements = issue(digest)[name].endorsements
        made = quote(digest)
        return {**made, name: replace(made[name], endorsements=endorsements)}

    return issue_stapled


def tdx_by_configfs(_: Path, issue: Quote) -> Quote:
    name = items.ITEM_TDX_QUOTE
    entries = Entries("tdx_guest", lambda digest: issue(digest)[name].data + bytes(3000), b"")
    return stapled(TsmAttester(entries).quote, issue, name)


def sgx_by_gramine(directory: Path, issue: Quote) -> Quote:
    name = items.ITEM_SGX_QUOTE
    (directory / "attestation_type").write_bytes(b"dcap")
    (directory / "user_report_data").touch()

    def quote(digest: bytes) -> Mapping[str, EvidenceItem]:
        (directory / "quote").write_bytes(issue(digest)[name].data)
        return GramineAttester(directory).quote(digest)

    return stapled(quote, issue, name)


def nitro_by_device(directory: Path, issue: Quote) -> Quote:
    def module(descriptor: int, request: int, argument: bytearray, /) -> int:
        asked, size, where = (int.from_bytes(argument[at : at + 8], "little") for at in (0, 8, 16))
        fields = cbor2.loads(ctypes.string_at(asked, size))["Attestation"]
        document = issue(fields["user_data"])[items.ITEM_NITRO_DOCUMENT].data
        answer = cbor2.dumps({"Attestation": {"document": document}})
        ctypes.memmove(where, answer, len(answer))
        argument[24:32] = len(answer).to_bytes(8, "little")
        return 0

    (directory / "nsm").touch()
    return NitroAttester(Nsm(ioctl=module, device=directory / "nsm")).quote


def nitro_tpm_by_device(_: Path, issue: Quote) -> Quote:
    made = issue(bytes(32))  # whose log is that of every other one

    def attest(*, user_data: bytes, **_: object) -> bytes:
        return issue(user_data)[items.ITEM_NITRO_TPM_DOCUMENT].data

    return NitroTpmAttester(
        Tpm(SimulatedNitroTpm(attest)), event_log=made[ITEM_EVENT_LOG].data
    ).quote


WAYS = [
    ("snp", snp_by_configfs),
    ("snp", snp_by_device),
    ("tdx", tdx_by_configfs),
    ("sgx", sgx_by_gramine),
    ("nitro", nitro_by_device),
    ("nitro-tpm", nitro_tpm_by_device),
]


@pytest.mark.parametrize(("platform", "way"), WAYS, ids=[way.__name__ for _, way in WAYS])
def test_evidence_from_a_device_is_affirmed(
    tmp_path: Path, platform: str, way: Callable[[Path, Quote], Quote]
) -> None:
    worker, issue = hardware(platform)
    worker.issue = way(tmp_path, issue)
    verify(worker).require_affirming()
    with pytest.raises(AppraisalError):
        verify(worker, nonce=bytes(32)).require_affirming()


def test_evidence_is_the_same_after_the_way_through_a_child() -> None:
    worker, issue = hardware("snp")

    class Child:
        def ask(self, request: JsonObject) -> JsonObject:
            made = issue(bytes.fromhex(str(request["digest"])))
            return {"items": {name: encode_item(item) for name, item in made.items()}}

    worker.issue = MachineAttester("sev-snp", device=Child()).quote
    verify(worker).require_affirming()
