"""What evidence of GPUs and switches states, as facts for people and for case folders."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509

from cloister.endorsements.nvidia import firmware_ids
from cloister.endorsements.roots import fingerprint
from cloister.errors import MalformedError
from cloister.evidence.rim import Rim
from cloister.evidence.spdm import VERSION
from cloister.strictjson import Json, JsonObject
from cloister.verifier.appraise.nvgpu import DeviceRims, mismatches
from cloister.verifier.authenticate.nvgpu import (
    CHAIN,
    FIRMWARE,
    NOT_PRESENT,
    PREFIX,
    REPORT,
    SIGNATURE,
    Examined,
    NvDevice,
)
from cloister.verifier.authenticate.rim import ExaminedRim
from cloister.verifier.chain import Chain
from cloister.verifier.ledger import FAIL, PASS, Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One device when all is said about it."""

    name: str
    examined: Examined
    rims: DeviceRims
    ledger: Ledger


def device_facts(judged: list[Judged]) -> JsonObject:
    """Those of the first device, and a line for each."""
    if not judged:
        return {}
    first = judged[0]
    facts = _chain_facts(first.examined.certificates)
    if first.examined.stated is not None:
        facts |= _report_facts(first.examined.stated)
        facts |= _rims_facts(first.examined.stated, first.rims)
    return facts | {"devices": [_line(index, one) for index, one in enumerate(judged)]}


def manifest_facts(examined: ExaminedRim) -> JsonObject:
    """Those of a manifest on its own, with its active measurements."""
    return _rim_facts(examined) | _golden(examined.rim)


def stated_fwids(leaf: x509.Certificate) -> tuple[bytes, ...]:
    """The firmware ids in `leaf`; none where they do not decode."""
    try:
        return firmware_ids(leaf)
    except MalformedError:
        return ()


def _chain_facts(certificates: tuple[x509.Certificate, ...]) -> JsonObject:
    if not certificates:
        return {}
    leaf, *_, last = (*certificates, certificates[-1])
    return {
        "leaf_subject": leaf.subject.rfc4514_string(),
        "leaf_sha256": fingerprint(leaf).removeprefix("sha256:"),
        "leaf_fwid": [fwid.hex() for fwid in stated_fwids(leaf)],
        "chain_length": len(certificates),
        "root_sha256": fingerprint(last).removeprefix("sha256:"),
    }


def _report_facts(device: NvDevice) -> JsonObject:
    spdm = device.report.spdm
    facts: JsonObject = {
        "spdm_version": f"0x{VERSION:02x}",
        "request_nonce": spdm.nonce.hex(),
        "response_nonce": spdm.response_nonce.hex(),
        "measurement_blocks": spdm.block_count,
        "opaque": dict(device.report.opaque),
        "trailing_bytes": 0,
        "mode": None if device.report.mode is None else str(device.report.mode),
    }
    if device.measurements is not None:
        facts["measurements"] = {
            str(index): one.value.hex() for index, one in device.measurements.items()
        }
    return facts


def _rims_facts(device: NvDevice, rims: DeviceRims) -> JsonObject:
    found: JsonObject = {}
    for kind, examined in rims.chosen.items():
        if examined.rim is not None:
            wrong: list[Json] = [*mismatches(examined.rim, device)]
            found[kind.removeprefix(PREFIX)] = _rim_facts(examined) | {"mismatching_indices": wrong}
    return {"rim": found} if found else {}


def _rim_facts(examined: ExaminedRim) -> JsonObject:
    if examined.rim is None:
        return {}
    facts: JsonObject = {
        "tag_id": examined.rim.tag_id,
        "version": [examined.rim.version],
        "active_indices": len(examined.rim.active),
    }
    if examined.chain is not None and examined.chain.anchor is not None:
        facts["signer_window"] = _window(examined.chain)
    return facts


def _window(chain: Chain) -> list[Json]:
    begin = max(one.not_valid_before_utc for one in chain.certificates)
    end = min(one.not_valid_after_utc for one in chain.certificates)
    return [f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in (begin, end)]


def _golden(rim: Rim | None) -> JsonObject:
    if rim is None:
        return {}
    golden: JsonObject = {
        str(one.index): {"active": True, "hashes": [value.hex() for value in one.alternatives]}
        for one in rim.active
    }
    return {"golden": golden}


def _line(index: int, one: Judged) -> JsonObject:
    """A device in short, for evidence of many."""
    device, certificates = one.examined.stated, one.examined.certificates
    line: JsonObject = {"index": index, "layers": _layers(one)}
    if certificates:
        line["leaf_sha256"] = fingerprint(certificates[0]).removeprefix("sha256:")
    if device is not None:
        line["request_nonce"] = device.report.nonce.hex()
        line["vbios"] = device.report.vbios_version
        line["driver"] = device.report.driver_version
    return line


def _layers(one: Judged) -> JsonObject:
    names = {
        "parse": REPORT,
        "report_signature": SIGNATURE,
        "chain": CHAIN,
        "fwid_matches_certificate": FIRMWARE,
    }
    found: JsonObject = {
        layer: PASS if one.ledger.holds(name) else FAIL for layer, name in names.items()
    }
    device = one.examined.stated
    if device is not None and device.report.fwid is None and one.ledger.holds(FIRMWARE):
        found["fwid_matches_certificate"] = NOT_PRESENT
    return found
