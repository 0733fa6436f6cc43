"""Intel's TCB information and enclave identities: signed JSON to records.

Source: Intel "Provisioning Certification Service" API version 4, "TCB Info" (structures of
version 3, and 2 for SGX from API version 3) and "Enclave Identity" (version 2). The text that was
signed is read strictly: no member twice, numbers in range, dates to the second in UTC, at most
so many entries. Members that are not known are passed over, for Intel adds some within a version
and signs them. Nothing here is authenticated.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

from cloister.endorsements.intel_pck import SVN_COMPONENTS
from cloister.errors import MalformedError
from cloister.strictjson import (
    Json,
    JsonObject,
    expect_int,
    expect_list,
    expect_object,
    expect_str,
    parse_json_object,
)

MAX_TEXT_BYTES: Final = 256 * 1024
"""Longest document accepted; the longest of 2026 have about 7 KiB."""

MAX_LEVELS: Final = 64
"""TCB levels of one platform or enclave; the longest lists of 2026 have 20."""

MAX_MODULES: Final = 32
MAX_ADVISORIES: Final = 256

SGX: Final = "SGX"
TDX: Final = "TDX"
QE: Final = "QE"
TD_QE: Final = "TD_QE"

_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_HEX: Final = re.compile(r"(?:[0-9A-Fa-f]{2})*")
_STATUS: Final = re.compile(r"[A-Za-z]{1,64}")
_ADVISORY: Final = re.compile(r"[A-Z][A-Z0-9-]{3,63}")

_Level = TypeVar("_Level")


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbComponent:
    """One security version number that a TCB level requires."""

    svn: int
    category: str | None = None
    """Who updates it, as Intel names it: ``BIOS``, ``OS/VMM``."""
    type: str | None = None
    """What it is, where Intel says so: ``Early Microcode Update``, ``TDX Module``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbLevel:
    """What a platform must have to be in a state, and the state."""

    sgx_components: tuple[TcbComponent, ...]
    """16 components."""
    tdx_components: tuple[TcbComponent, ...] | None
    """16 components in TCB information for TDX, otherwise ``None``."""
    pcesvn: int
    tcb_date: datetime
    """Aware UTC: advisories published until then are dealt with at this level."""
    status: str
    """Intel's word: ``UpToDate``, ``OutOfDate``, …, ``Revoked``."""
    advisory_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IsvLevel:
    """What security version an enclave or a TDX module must have to be in a state."""

    isvsvn: int
    tcb_date: datetime
    status: str
    advisory_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxModule:
    """Who may have signed the TDX module. `attributes` is what is left under the mask."""

    mrsigner: bytes
    """48 bytes; zero for Intel."""
    attributes: bytes
    """8 bytes."""
    attributes_mask: bytes
    """8 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxModuleIdentity:
    """One version of the TDX module (``TDX_01``, …), its signer and its levels."""

    id: str
    signer: TdxModule
    levels: tuple[IsvLevel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbInfo:
    """TCB information of one family of platforms."""

    id: str
    """``SGX`` or ``TDX``."""
    version: int
    issue_date: datetime
    next_update: datetime
    fmspc: bytes
    """6 bytes."""
    pceid: bytes
    """2 bytes."""
    tcb_evaluation_data_number: int
    """Rises with every TCB recovery of Intel's."""
    tdx_module: TdxModule | None
    """For TDX modules of version 0."""
    tdx_module_identities: tuple[TdxModuleIdentity, ...]
    levels: tuple[TcbLevel, ...]
    """Newest first, as Intel lists them: the first that a platform reaches is its level."""

    def tdx_module_identity(self, version: int) -> TdxModuleIdentity | None:
        """The identity of TDX modules of `version` (``TEE_TCB_SVN[1]``), above zero."""
        name = f"TDX_{version:02X}"
        return next((found for found in self.tdx_module_identities if found.id == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class QeIdentity:
    """Which enclave may be the quoting enclave. Values are what is left under the masks."""

    id: str
    """``QE`` for SGX, ``TD_QE`` for TDX."""
    version: int
    issue_date: datetime
    next_update: datetime
    tcb_evaluation_data_number: int
    miscselect: bytes
    """4 bytes, in the order of the report."""
    miscselect_mask: bytes
    attributes: bytes
    """16 bytes."""
    attributes_mask: bytes
    mrsigner: bytes
    """32 bytes."""
    isvprodid: int
    levels: tuple[IsvLevel, ...]
    """Newest first."""


def parse_tcb_info(text: bytes) -> TcbInfo:
    """Decode TCB information from the exact text that was signed.

    Version 3 for SGX or TDX; version 2, which has no ``id``, is for SGX. The composition of
    levels (``tcbType``) must be the only one defined, 0.

    Raises MalformedError, and nothing else.
    """
    members = parse_json_object(text, limit=MAX_TEXT_BYTES, what="the TCB info")
    version = expect_int(members.get("version"), "the TCB info's version", low=2, high=3)
    kind = SGX if version == 2 else _one_of(members.get("id"), SGX, TDX)
    expect_int(members.get("tcbType"), "the TCB info's tcbType", low=0, high=0)
    return TcbInfo(
        id=kind,
        version=version,
        issue_date=_date(members.get("issueDate")),
        next_update=_date(members.get("nextUpdate")),
        fmspc=_hex(members.get("fmspc"), 6),
        pceid=_hex(members.get("pceId"), 2),
        tcb_evaluation_data_number=_evaluation_number(members),
        tdx_module=_tdx_module(members.get("tdxModule")) if kind == TDX else None,
        tdx_module_identities=_module_identities(members) if kind == TDX else (),
        levels=_levels(members, lambda level: _tcb_level(level, version=version, kind=kind)),
    )


def parse_qe_identity(text: bytes) -> QeIdentity:
    """Decode the identity of a quoting enclave from the exact text that was signed.

    Raises MalformedError, and nothing else.
    """
    members = parse_json_object(text, limit=MAX_TEXT_BYTES, what="the QE identity")
    return QeIdentity(
        id=_one_of(members.get("id"), QE, TD_QE),
        version=expect_int(members.get("version"), "the QE identity's version", low=2, high=2),
        issue_date=_date(members.get("issueDate")),
        next_update=_date(members.get("nextUpdate")),
        tcb_evaluation_data_number=_evaluation_number(members),
        miscselect=_hex(members.get("miscselect"), 4),
        miscselect_mask=_hex(members.get("miscselectMask"), 4),
        attributes=_hex(members.get("attributes"), 16),
        attributes_mask=_hex(members.get("attributesMask"), 16),
        mrsigner=_hex(members.get("mrsigner"), 32),
        isvprodid=expect_int(members.get("isvprodid"), "isvprodid", high=0xFFFF),
        levels=_levels(members, _isv_level),
    )


def _levels(members: JsonObject, decode: Callable[[JsonObject], _Level]) -> tuple[_Level, ...]:
    entries = expect_list(members.get("tcbLevels"), "tcbLevels", limit=MAX_LEVELS)
    return tuple(decode(expect_object(entry, "a TCB level")) for entry in entries)


def _tcb_level(members: JsonObject, *, version: int, kind: str) -> TcbLevel:
    tcb = expect_object(members.get("tcb"), "a TCB level's tcb")
    if version == 2:
        names = (f"sgxtcbcomp{number:02d}svn" for number in range(1, SVN_COMPONENTS + 1))
        sgx = tuple(TcbComponent(svn=_svn(tcb.get(name))) for name in names)
    else:
        sgx = _components(tcb.get("sgxtcbcomponents"))
    return TcbLevel(
        sgx_components=sgx,
        tdx_components=_components(tcb.get("tdxtcbcomponents")) if kind == TDX else None,
        pcesvn=expect_int(tcb.get("pcesvn"), "pcesvn", high=0xFFFF),
        tcb_date=_date(members.get("tcbDate")),
        status=_status(members.get("tcbStatus")),
        advisory_ids=_advisories(members),
    )


def _isv_level(members: JsonObject) -> IsvLevel:
    tcb = expect_object(members.get("tcb"), "a TCB level's tcb")
    return IsvLevel(
        isvsvn=expect_int(tcb.get("isvsvn"), "isvsvn", high=0xFFFF),
        tcb_date=_date(members.get("tcbDate")),
        status=_status(members.get("tcbStatus")),
        advisory_ids=_advisories(members),
    )


def _components(value: Json) -> tuple[TcbComponent, ...]:
    entries = expect_list(value, "the TCB components", limit=SVN_COMPONENTS)
    if len(entries) != SVN_COMPONENTS:
        raise MalformedError(f"a TCB level has {len(entries)} components, not {SVN_COMPONENTS}")
    return tuple(map(_component, entries))


def _component(value: Json) -> TcbComponent:
    members = expect_object(value, "a TCB component")
    return TcbComponent(
        svn=_svn(members.get("svn")),
        category=_name(members.get("category")),
        type=_name(members.get("type")),
    )


def _module_identities(members: JsonObject) -> tuple[TdxModuleIdentity, ...]:
    """Absent before TDX 1.5. Two of one name would leave it open which one counts."""
    entries = expect_list(
        members.get("tdxModuleIdentities", []), "tdxModuleIdentities", limit=MAX_MODULES
    )
    found = tuple(_module_identity(expect_object(entry, "an identity")) for entry in entries)
    if len({identity.id for identity in found}) != len(found):
        raise MalformedError("the TCB info names a TDX module twice")
    return found


def _module_identity(members: JsonObject) -> TdxModuleIdentity:
    return TdxModuleIdentity(
        id=expect_str(members.get("id"), "the id of a TDX module", limit=32).upper(),
        signer=_tdx_module(members),
        levels=_levels(members, _isv_level),
    )


def _tdx_module(value: Json) -> TdxModule:
    members = expect_object(value, "tdxModule")
    return TdxModule(
        mrsigner=_hex(members.get("mrsigner"), 48),
        attributes=_hex(members.get("attributes"), 8),
        attributes_mask=_hex(members.get("attributesMask"), 8),
    )


def _evaluation_number(members: JsonObject) -> int:
    name = "tcbEvaluationDataNumber"
    return expect_int(members.get(name), name, high=0xFFFF_FFFF)


def _advisories(members: JsonObject) -> tuple[str, ...]:
    entries = expect_list(members.get("advisoryIDs", []), "advisoryIDs", limit=MAX_ADVISORIES)
    return tuple(_matching(entry, _ADVISORY, "an advisory") for entry in entries)


def _status(value: Json) -> str:
    # A word that is not known is kept: no policy can accept it.
    return _matching(value, _STATUS, "a TCB status")


def _svn(value: Json) -> int:
    return expect_int(value, "a security version", high=0xFF)


def _name(value: Json) -> str | None:
    return None if value is None else expect_str(value, "the name of a TCB component", limit=128)


def _one_of(value: Json, *accepted: str) -> str:
    if not isinstance(value, str) or value not in accepted:
        raise MalformedError(f"the collateral's id is not one of {', '.join(accepted)}")
    return value


def _matching(value: Json, pattern: re.Pattern[str], what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise MalformedError(f"{what} in the collateral is none that Intel could mean")
    return value


def _hex(value: Json, size: int) -> bytes:
    """Either case: Intel writes some values in capitals and some not."""
    text = _matching(value, _HEX, "a hexadecimal value")
    if len(text) != 2 * size:
        raise MalformedError(f"a hexadecimal value in the collateral has not {size} bytes")
    return bytes.fromhex(text)


def _date(value: Json) -> datetime:
    text = _matching(value, _DATE, "a date")
    try:
        return datetime.fromisoformat(text[:-1]).replace(tzinfo=UTC)
    except ValueError:
        raise MalformedError("a date in the collateral is none") from None
