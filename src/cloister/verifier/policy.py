"""What a relying party accepts, as one value.

Every field is required, so that nothing is decided by leaving it out. A field that is to be
ignored says so: `UNCHECKED`, written ``"unchecked"`` in TOML and JSON; the result of a worker's
report then lists it among what is not proven. A policy that checks nothing cannot be made.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final, TypeAlias, TypeVar

from cloister.errors import ConfigurationError, MalformedError
from cloister.evidence.component import IN_WORKER, SEPARATIONS, TERMINATIONS, parse_digest
from cloister.strictjson import Json, JsonObject, canonical, parse_json_object

MAX_POLICY_BYTES: Final = 256 * 1024

HOUR: Final = 3600
DAY: Final = 24 * HOUR

SANDBOXES: Final = ("sandbox",)
"""Modes of isolation that the presets accept, as a worker's measured configuration names them.
A worker without a sandbox names ``none (unsafe)``, and a policy that accepts it has to as well."""

MAX_SECONDS: Final = 10 * 366 * DAY

ENCRYPTED_MEMORY: Final = ("nitro", "sev_snp", "sgx", "tdx")
"""What `strict` accepts as protection of memory."""


class Unchecked(enum.Enum):
    """The explicit wish not to check a field."""

    UNCHECKED = "unchecked"


UNCHECKED: Final = Unchecked.UNCHECKED

T = TypeVar("T")
Checked: TypeAlias = T | Unchecked

UP_TO_DATE: Final = "UpToDate"

TCB_STATUSES: Final = (
    UP_TO_DATE,
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
)
"""Intel's states of a platform that a policy may accept; ``Revoked`` is none of them."""

TCB_COMPONENTS: Final = ("fmc", "bootloader", "tee", "snp", "microcode")
"""Parts of AMD's TCB_VERSION that `AppraisalPolicy.snp_minimum_tcb` may name."""

SNP_PRODUCTS: Final = ("milan", "genoa", "turin")

MinimumTcb: TypeAlias = Mapping[str, Mapping[str, int]]
"""For each AMD product, the lowest accepted number of each part of its TCB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppraisalPolicy:
    """What evidence must show to be affirmed."""

    accept_development: bool
    """Whether a development platform may affirm at all. It proves nothing to anyone else."""
    accept_debug: bool
    """Whether a worker whose measured configuration switches debugging on, or whose image is one
    for debugging, may affirm."""
    require_safe_clock: bool
    """Whether the TPM must say that its clock cannot have gone backwards."""
    require_model: bool
    """Whether a model must have been measured: without it, which one answers is unproven."""
    require_managed: bool
    """Whether the worker must have started its engines itself. Nothing shows which program somebody
    else's engine is, and which model it serves."""
    memory_confidentiality: Checked[tuple[str, ...]]
    """Accepted protections of memory: ``sev_snp``, ``tdx``, ``sgx``, ``nitro``, ``none``."""
    isolation: Checked[tuple[str, ...]]
    """Accepted modes of isolation, word for word as the measured configuration names them."""
    termination: Checked[tuple[str, ...]]
    """Accepted places for the seal to end in, of `cloister.evidence.component.TERMINATIONS`."""
    separation: Checked[tuple[str, ...]]
    """Accepted ways of keeping people apart, of `cloister.evidence.component.SEPARATIONS`."""
    max_keyset_lifetime_s: Checked[int]
    """Seconds from now within which the keyset's ``not_after`` must lie."""
    max_age_s: Checked[int]
    """Seconds after which the worker must be verified again, even if its keyset lives on."""
    denied: Checked[tuple[str, ...]]
    """Digests (``sha256:…``) of keysets, components or certificates that are refused whatever
    else holds (`aci/1` section 3.4)."""
    require_endorsements: bool
    """Whether what vouches for evidence has to be there: collateral, revocation lists, RIMs,
    certificates of attestation keys. Otherwise evidence is judged on what it contains, and the
    result lists what is missing among what is not proven."""
    accept_migration: bool
    """Whether a guest that may be migrated to another machine may affirm."""
    accept_devtools: bool
    """Whether a GPU in its DevTools mode, which opens its memory to the host, may affirm."""
    require_cc_gpu: bool
    """Whether every GPU must be in confidential mode."""
    required_gpus: Checked[int]
    """How many genuine GPUs must be bound to the worker, at least."""
    max_evidence_age_s: Checked[int]
    """Seconds since evidence that carries its own time was made."""
    max_collateral_age_s: Checked[int]
    """Seconds since collateral was issued; it has to be current by its own dates besides."""
    tcb_statuses: Checked[tuple[str, ...]]
    """Intel's TCB states that are accepted, of `TCB_STATUSES`."""
    tcb_grace_s: Checked[int]
    """Seconds for which ``OutOfDate`` is accepted after Intel's next TCB level appeared. Unchecked:
    none, which is the strictest."""
    tcb_accepted_advisories: Checked[tuple[str, ...]]
    """Advisories (``INTEL-SA-…``) that may be open on a platform whose state is not ``UpToDate``
    but accepted."""
    tcb_denied_advisories: Checked[tuple[str, ...]]
    """Advisories that must not be open, whatever the state."""
    tcb_minimum_evaluation_number: Checked[int]
    """Lowest ``tcbEvaluationDataNumber`` of Intel's collateral: no falling back to older data."""
    snp_minimum_tcb: Checked[MinimumTcb]
    """Lowest accepted TCB of an AMD processor, by product (`SNP_PRODUCTS`) and component."""
    snp_vmpls: Checked[tuple[int, ...]]
    """Privilege levels (0 to 3) from which an SNP report may have been asked for."""
    chip_ids: Checked[tuple[str, ...]]
    """Hexadecimal ids of the only processors accepted (AMD CHIP_ID, Intel PPID)."""

    _policy_id: str = dataclasses.field(default="", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse a policy that is none: wrong types, empty sets, nothing checked. Sort the sets."""
        for name in _names():
            value = getattr(self, name)
            _check_field(name, value)
            if isinstance(value, tuple):
                # Sets in all but type: equal policies are equal values with equal digests.
                object.__setattr__(self, name, tuple(sorted(set(value))))
            elif isinstance(value, Mapping):
                object.__setattr__(self, name, _frozen(value))
        if (
            self.accept_development
            and self.accept_debug
            and not self.require_safe_clock
            and not self.require_model
            and not self.require_managed
            and not self.require_endorsements
            and not self.require_cc_gpu
            and self.accept_migration
            and self.accept_devtools
            # Nothing left out, and nothing denied: an empty list of denials compares nothing.
            and not any(getattr(self, name) not in (UNCHECKED, ()) for name in _CHECKABLE)
        ):
            raise ConfigurationError("the policy checks nothing", code="policy.empty")

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Names of the fields that are not checked."""
        return tuple(name for name in _CHECKABLE if getattr(self, name) is UNCHECKED)

    @property
    def policy_id(self) -> str:
        """``sha256:<hex>`` of the policy's canonical JSON."""
        policy_id = self._policy_id
        if not policy_id:  # computed once: every result names it
            policy_id = "sha256:" + hashlib.sha256(canonical(self.to_json())).hexdigest()
            object.__setattr__(self, "_policy_id", policy_id)
        return policy_id

    def to_json(self) -> JsonObject:
        """The policy as a JSON object."""
        return {name: _to_json(getattr(self, name)) for name in _names()}

    def dump_json(self) -> str:
        """The policy as JSON text."""
        return json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"

    def dump_toml(self) -> str:
        """The policy as TOML; booleans, integers, strings and lists read alike in both."""
        return "".join(f"{name} = {_toml(value)}\n" for name, value in self.to_json().items())


@cache
def _names() -> tuple[str, ...]:
    """Of the fields that people write."""
    return tuple(field.name for field in dataclasses.fields(AppraisalPolicy) if field.init)


def strict() -> AppraisalPolicy:
    """For production: genuine hardware that encrypts memory, no debugging, and a worker that keeps
    its keys from the engine, which it started in a sandbox.

    Both separations of people are accepted; what `SHARED` leaves open stands in the result.
    """
    return AppraisalPolicy(
        accept_development=False,
        accept_debug=False,
        require_safe_clock=True,
        require_model=True,
        require_managed=True,
        memory_confidentiality=ENCRYPTED_MEMORY,
        isolation=SANDBOXES,
        termination=(IN_WORKER,),
        separation=SEPARATIONS,
        max_keyset_lifetime_s=DAY,
        max_age_s=HOUR,
        denied=(),
        require_endorsements=True,
        accept_migration=False,
        accept_devtools=False,
        require_cc_gpu=True,
        required_gpus=UNCHECKED,
        max_evidence_age_s=UNCHECKED,
        max_collateral_age_s=UNCHECKED,
        tcb_statuses=(UP_TO_DATE,),
        tcb_grace_s=UNCHECKED,
        tcb_accepted_advisories=(),
        tcb_denied_advisories=(),
        tcb_minimum_evaluation_number=UNCHECKED,
        snp_minimum_tcb=UNCHECKED,
        snp_vmpls=(0, 1, 2, 3),
        chip_ids=UNCHECKED,
    )


def as_captured(policy: AppraisalPolicy) -> AppraisalPolicy:
    """`policy` for evidence on its own, judged on what it contains.

    Recorded evidence often comes without collateral or manifests, and nobody waits for it.
    """
    return dataclasses.replace(policy, require_endorsements=False)


def development() -> AppraisalPolicy:
    """For trying things out: as `strict`, but a development platform may affirm."""
    return dataclasses.replace(
        strict(), accept_development=True, memory_confidentiality=(*ENCRYPTED_MEMORY, "none")
    )


def load_json(data: bytes) -> AppraisalPolicy:
    """Read a policy from JSON; every field must be there, and no other.

    Raises:
        ConfigurationError: not a policy (codes ``policy.malformed``, ``policy.empty``).
    """
    try:
        return _from_mapping(parse_json_object(data, limit=MAX_POLICY_BYTES, what="the policy"))
    except MalformedError as error:
        raise ConfigurationError(str(error), code="policy.malformed") from None


def load_toml(data: bytes) -> AppraisalPolicy:
    """Read a policy from TOML; otherwise as `load_json`."""
    if len(data) > MAX_POLICY_BYTES:
        raise _malformed(f"has more than {MAX_POLICY_BYTES} bytes")
    try:
        members = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):  # of its own kind, of UTF-8's, or an endless number
        raise _malformed("is not TOML in UTF-8") from None
    return _from_mapping(members)


def parse_fields(members: Mapping[str, object]) -> Mapping[str, object]:
    """Read some fields of a policy, each with a value: leaving one out is not checking it.

    Raises:
        ConfigurationError: not fields of a policy (code ``policy.malformed``).
    """
    known = set(_names())
    if not members.keys() <= known:
        raise _malformed("has fields that this version does not know")
    fields = {name: _from_value(name, members[name]) for name in sorted(members)}
    for name, value in fields.items():
        if value is UNCHECKED:
            raise _malformed(f"says that {name} is unchecked; leave it out")
        _check_field(name, value)
    return fields


def dump_fields(fields: Mapping[str, object]) -> JsonObject:
    """Write what `parse_fields` read."""
    return {name: _to_json(value) for name, value in fields.items()}


_BOOLEANS: Final = (
    "accept_development",
    "accept_debug",
    "require_safe_clock",
    "require_model",
    "require_managed",
    "require_endorsements",
    "accept_migration",
    "accept_devtools",
    "require_cc_gpu",
)
_TEXTS: Final = (
    "memory_confidentiality",
    "isolation",
    "termination",
    "separation",
    "denied",
    "tcb_statuses",
    "tcb_accepted_advisories",
    "tcb_denied_advisories",
    "chip_ids",
)
_SECONDS: Final = (
    "max_keyset_lifetime_s",
    "max_age_s",
    "max_evidence_age_s",
    "max_collateral_age_s",
    "tcb_grace_s",
)
_NUMBERS: Final = ("required_gpus", "tcb_minimum_evaluation_number")
_LEVELS: Final = ("snp_vmpls",)
_MINIMUMS: Final = ("snp_minimum_tcb",)
_CHECKABLE: Final = (*_TEXTS, *_SECONDS, *_NUMBERS, *_LEVELS, *_MINIMUMS)
_WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "tcb_statuses": TCB_STATUSES,
    "termination": TERMINATIONS,
    "separation": SEPARATIONS,
}
"""Fields whose texts are of a known few: another one is a mistake, and would accept nothing."""
_MAY_BE_EMPTY: Final = ("denied", "tcb_accepted_advisories", "tcb_denied_advisories")

_HEX: Final = re.compile(r"(?:[0-9a-f]{2}){1,64}")
_ADVISORY: Final = re.compile(r"[A-Z][A-Z0-9-]{3,63}")


def _from_mapping(members: Mapping[str, object]) -> AppraisalPolicy:
    names = _names()
    missing = [name for name in names if name not in members]
    if not members:
        raise ConfigurationError("the policy is empty", code="policy.empty")
    if missing:
        raise _malformed(f'lacks {", ".join(missing)} (write "unchecked" to leave one out)')
    if members.keys() - set(names):
        raise _malformed("has fields that this version does not know")
    fields = {name: _from_value(name, members[name]) for name in names}
    return AppraisalPolicy(**fields)  # type: ignore[arg-type]  # __post_init__ checks each one


def _from_value(name: str, value: object) -> object:
    if name in _BOOLEANS:
        return value
    if value == UNCHECKED.value:
        return UNCHECKED
    if name in (*_TEXTS, *_LEVELS) and isinstance(value, list):
        return tuple(value)
    return value


def _to_json(value: object) -> Json:
    if value is UNCHECKED:
        return UNCHECKED.value
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, bool | int):
        return value
    if isinstance(value, Mapping):
        return {product: dict(minimum) for product, minimum in value.items()}
    raise TypeError("a policy holds booleans, seconds and texts")


def _toml(value: Json) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def _check_field(name: str, value: object) -> None:
    if name in _BOOLEANS:
        if not isinstance(value, bool):
            raise _malformed(f"needs true or false for {name}")
    elif value is UNCHECKED:
        return
    elif name in _SECONDS:
        if not _is_integer(value, 1, MAX_SECONDS):
            raise _malformed(f"needs a number of seconds for {name}")
    elif name in _NUMBERS:
        if not _is_integer(value, 1, 1 << 32):
            raise _malformed(f"needs a number above zero for {name}")
    elif name in _LEVELS:
        _check_levels(name, value)
    elif name in _MINIMUMS:
        _check_minimum(name, value)
    else:
        _check_texts(name, value)


def _check_texts(name: str, value: object) -> None:
    if not isinstance(value, tuple) or not all(isinstance(text, str) for text in value):
        raise _malformed(f"needs a list of texts for {name}")
    if not value and name not in _MAY_BE_EMPTY:
        raise _malformed(f"accepts nothing for {name}")
    if name == "denied":
        _check_denied(value)
    elif name in _WORDS and not set(value) <= set(_WORDS[name]):
        raise _malformed(f"may only name these for {name}: {', '.join(_WORDS[name])}")
    elif name == "chip_ids" and not all(_HEX.fullmatch(text) for text in value):
        raise _malformed(f"needs lower-case hexadecimal for {name}")
    elif name.endswith("_advisories") and not all(_ADVISORY.fullmatch(text) for text in value):
        raise _malformed(f"needs names such as INTEL-SA-00837 for {name}")


def _check_levels(name: str, value: object) -> None:
    if not isinstance(value, tuple) or not all(_is_integer(level, 0, 3) for level in value):
        raise _malformed(f"needs a list of levels from 0 to 3 for {name}")
    if not value:
        raise _malformed(f"accepts nothing for {name}")


def _check_minimum(name: str, value: object) -> None:
    """Every product has its own table, so that no processor passes for want of one."""
    if not isinstance(value, Mapping) or not value or not set(value) <= set(SNP_PRODUCTS):
        raise _malformed(f"needs a table of {', '.join(SNP_PRODUCTS)} for {name}")
    for minimum in value.values():
        if (
            not isinstance(minimum, Mapping)
            or not minimum
            or not set(minimum) <= set(TCB_COMPONENTS)
            or not all(_is_integer(level, 0, 255) for level in minimum.values())
        ):
            raise _malformed(
                f"needs numbers from 0 to 255 for each of {', '.join(TCB_COMPONENTS)} in {name}"
            )


def _is_integer(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _frozen(value: MinimumTcb) -> MinimumTcb:
    """A copy that nobody else holds and nobody can change."""
    return MappingProxyType(
        {product: MappingProxyType(dict(minimum)) for product, minimum in sorted(value.items())}
    )


def _check_denied(digests: tuple[str, ...]) -> None:
    """A digest in another spelling would never be found, and so deny nothing."""
    try:
        for digest in digests:
            parse_digest(digest, code="policy.malformed")
    except MalformedError:
        raise _malformed("denies something that is not sha256: and 64 hex characters") from None


def _malformed(why: str) -> ConfigurationError:
    return ConfigurationError(f"the policy {why}", code="policy.malformed")
