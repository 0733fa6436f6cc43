"""What a relying party accepts, as one value.

Every field is required, so that nothing is decided by leaving it out. A field that is to be
ignored says so: `UNCHECKED`, written ``"unchecked"`` in TOML and JSON; the result then lists
it among what is not proven. A policy that checks nothing cannot be made.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from cloister.errors import ConfigurationError, MalformedError
from cloister.evidence.component import parse_digest
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


@dataclass(frozen=True, slots=True, kw_only=True)
class AppraisalPolicy:
    """What evidence must show to be affirmed."""

    accept_development: bool
    """Whether a development platform may affirm at all. It proves nothing to anyone else."""
    accept_debug: bool
    """Whether a worker whose measured configuration switches debugging on may affirm."""
    require_safe_clock: bool
    """Whether the TPM must say that its clock cannot have gone backwards."""
    require_model: bool
    """Whether a model must have been measured: without it, which one answers is unproven."""
    memory_confidentiality: Checked[tuple[str, ...]]
    """Accepted protections of memory: ``sev_snp``, ``tdx``, ``sgx``, ``nitro``, ``none``."""
    isolation: Checked[tuple[str, ...]]
    """Accepted modes of isolation, word for word as the measured configuration names them."""
    max_keyset_lifetime_s: Checked[int]
    """Seconds from now within which the keyset's ``not_after`` must lie."""
    max_age_s: Checked[int]
    """Seconds after which the worker must be verified again, even if its keyset lives on."""
    denied: Checked[tuple[str, ...]]
    """Digests (``sha256:…``) of keysets, components or certificates that are refused whatever
    else holds (`aci/1` section 3.4)."""

    def __post_init__(self) -> None:
        """Refuse a policy that is none: wrong types, empty sets, nothing checked. Sort the sets."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            _check_field(field.name, value)
            if isinstance(value, tuple):
                # Sets in all but type: equal policies are equal values with equal digests.
                object.__setattr__(self, field.name, tuple(sorted(set(value))))
        if (
            self.accept_development
            and self.accept_debug
            and not self.require_safe_clock
            and not self.require_model
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
        return "sha256:" + hashlib.sha256(canonical(self.to_json())).hexdigest()

    def to_json(self) -> JsonObject:
        """The policy as a JSON object."""
        return {
            field.name: _to_json(getattr(self, field.name)) for field in dataclasses.fields(self)
        }

    def dump_json(self) -> str:
        """The policy as JSON text."""
        return json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"

    def dump_toml(self) -> str:
        """The policy as TOML; booleans, integers, strings and lists read alike in both."""
        return "".join(
            f"{name} = {json.dumps(value, ensure_ascii=False)}\n"
            for name, value in self.to_json().items()
        )


def strict() -> AppraisalPolicy:
    """For production: genuine hardware that encrypts memory, a sandboxed engine, no debugging."""
    return AppraisalPolicy(
        accept_development=False,
        accept_debug=False,
        require_safe_clock=True,
        require_model=True,
        memory_confidentiality=ENCRYPTED_MEMORY,
        isolation=SANDBOXES,
        max_keyset_lifetime_s=DAY,
        max_age_s=HOUR,
        denied=(),
    )


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


_BOOLEANS: Final = ("accept_development", "accept_debug", "require_safe_clock", "require_model")
_TEXTS: Final = ("memory_confidentiality", "isolation", "denied")
_SECONDS: Final = ("max_keyset_lifetime_s", "max_age_s")
_CHECKABLE: Final = (*_TEXTS, *_SECONDS)


def _from_mapping(members: Mapping[str, object]) -> AppraisalPolicy:
    names = [field.name for field in dataclasses.fields(AppraisalPolicy)]
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
    if name in _TEXTS and isinstance(value, list):
        return tuple(value)
    return value


def _to_json(value: object) -> Json:
    if value is UNCHECKED:
        return UNCHECKED.value
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, bool | int):
        return value
    raise TypeError("a policy holds booleans, seconds and texts")


def _check_field(name: str, value: object) -> None:
    if name in _BOOLEANS:
        if not isinstance(value, bool):
            raise _malformed(f"needs true or false for {name}")
    elif value is UNCHECKED:
        return
    elif name in _SECONDS:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SECONDS:
            raise _malformed(f"needs a number of seconds for {name}")
    elif not isinstance(value, tuple) or not all(isinstance(text, str) for text in value):
        raise _malformed(f"needs a list of texts for {name}")
    elif name == "denied":
        _check_denied(value)
    elif not value:
        raise _malformed(f"accepts nothing for {name}")


def _check_denied(digests: tuple[str, ...]) -> None:
    """A digest in another spelling would never be found, and so deny nothing."""
    try:
        for digest in digests:
            parse_digest(digest, code="policy.malformed")
    except MalformedError:
        raise _malformed("denies something that is not sha256: and 64 hex characters") from None


def _malformed(why: str) -> ConfigurationError:
    return ConfigurationError(f"the policy {why}", code="policy.malformed")
