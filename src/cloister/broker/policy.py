"""What a resource policy is: under which terms one secret is released. No policy, no release.

As the store keeps it, canonical JSON::

    {
      "format": "cloister/resource-policy/1",
      "appraisal": "strict",
      "manifest": {"signers": […], "threshold": 1, "name": "unchecked", "minimum_version": 3,
                   "digests": "unchecked"},
      "reference_values": null,
      "models": "unchecked",
      "stock_clients": false
    }

Every member is required; what is not to be checked says ``"unchecked"``. Either a manifest says
which software is good, signed by the owners named here, or ``reference_values`` do.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cloister.errors import ConfigurationError, MalformedError
from cloister.manifest.owners import MAX_OWNERS, Owner, parse_owner
from cloister.manifest.pin import SignerPin
from cloister.strictjson import (
    Json,
    JsonObject,
    canonical,
    expect_hex,
    expect_int,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
    parse_json_object,
)
from cloister.verifier import policy as policies
from cloister.verifier import reference_values as references
from cloister.verifier.policy import UNCHECKED, AppraisalPolicy, Checked, Unchecked
from cloister.verifier.reference_values import ReferenceValues

FORMAT: Final = "cloister/resource-policy/1"
MAX_POLICY_BYTES: Final = 8 * 1024 * 1024
_MAX_DIGESTS: Final = 256
_WHAT: Final = "the resource policy"
_CODE: Final = "broker.policy"
_PRESETS: Final = {"strict": policies.strict, "development": policies.development}


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestTerms:
    """Whose manifests count."""

    pin: SignerPin
    digests: Checked[tuple[str, ...]] = UNCHECKED
    """Lower-case hex of the only manifests accepted."""

    def to_json(self) -> JsonObject:
        """As the policy writes it."""
        name, signers = self.pin.name, self.pin.signers
        return {
            "signers": [{"name": owner.name, **owner.identity} for owner in signers],
            "threshold": self.pin.threshold,
            "name": name.value if isinstance(name, Unchecked) else name,
            "minimum_version": self.pin.minimum_version,
            "digests": _listed(self.digests),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourcePolicy:
    """The terms of one secret."""

    appraisal: AppraisalPolicy
    manifest: Checked[ManifestTerms]
    reference_values: ReferenceValues | None
    """Set exactly where no manifest is asked for."""
    models: Checked[tuple[str, ...]] = UNCHECKED
    """Digests (lower-case hex) of models, one of which the worker must serve."""
    stock_clients: bool = False
    """Whether stock RCAR clients, whose evidence binds neither purpose nor broker, may have it."""

    def __post_init__(self) -> None:
        if isinstance(self.manifest, Unchecked) == (self.reference_values is None):
            raise ConfigurationError(
                "a resource policy takes reference values from a manifest, or has its own and"
                ' says manifest = "unchecked"',
                code=_CODE,
            )

    def to_json(self) -> JsonObject:
        """The policy as a JSON object; a preset that was named is written out."""
        values, terms = self.reference_values, self.manifest
        return {
            "format": FORMAT,
            "appraisal": self.appraisal.to_json(),
            "manifest": terms.value if isinstance(terms, Unchecked) else terms.to_json(),
            "reference_values": None if values is None else values.to_json(),
            "models": _listed(self.models),
            "stock_clients": self.stock_clients,
        }

    def encode(self) -> bytes:
        """Canonical bytes."""
        return canonical(self.to_json())

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of `encode`, for the audit log."""
        return "sha256:" + hashlib.sha256(self.encode()).hexdigest()


def load_json(data: bytes) -> ResourcePolicy:
    """Read a policy from JSON; ConfigurationError (``broker.policy``) if it is none."""
    try:
        return _policy(parse_json_object(data, limit=MAX_POLICY_BYTES, what=_WHAT))
    except MalformedError as error:
        raise ConfigurationError(str(error), code=_CODE) from None


def load_toml(data: bytes, *, reference_values: ReferenceValues | None = None) -> ResourcePolicy:
    """Read a policy as people write it: TOML without ``format``, whose reference values may stand
    in a file of their own. Raises as `load_json`.
    """
    try:
        members: dict[str, object] = tomllib.loads(data.decode("utf-8"))
        members.setdefault("format", FORMAT)
        if reference_values is not None:
            if "reference_values" in members:
                raise MalformedError(f"{_WHAT} has reference values, and a file of them was given")
            members["reference_values"] = reference_values.to_json()
        members.setdefault("reference_values", None)
        return _policy(members)
    except MalformedError as error:
        raise ConfigurationError(str(error), code=_CODE) from None
    except (ValueError, RecursionError):
        raise ConfigurationError(f"{_WHAT} is not TOML in UTF-8", code=_CODE) from None


def _policy(members: Mapping[str, object]) -> ResourcePolicy:
    names = {"format", "appraisal", "manifest", "reference_values", "models", "stock_clients"}
    expect_keys(members, _WHAT, required=names)
    if members["format"] != FORMAT:
        raise MalformedError(f"{_WHAT} is not of the format {FORMAT}")
    stock, values = members["stock_clients"], members["reference_values"]
    if not isinstance(stock, bool):
        raise MalformedError(f"{_WHAT} needs true or false for stock_clients")
    terms = members["manifest"]
    return ResourcePolicy(
        appraisal=_appraisal(members["appraisal"]),
        manifest=UNCHECKED if terms == UNCHECKED.value else _manifest(terms),
        reference_values=None
        if values is None
        else references.load_json(canonical(expect_object(values, "reference_values"))),
        models=_digests(members["models"], "models"),
        stock_clients=stock,
    )


def _appraisal(value: object) -> AppraisalPolicy:
    if isinstance(value, str):
        if value not in _PRESETS:
            raise MalformedError(f"appraisal is one of {', '.join(_PRESETS)}, or a whole policy")
        return _PRESETS[value]()
    return policies.load_json(canonical(expect_object(value, "appraisal")))


def _manifest(value: object) -> ManifestTerms:
    what = "the terms for manifests"
    members = expect_object(value, what)
    names = {"signers", "threshold", "name", "minimum_version", "digests"}
    expect_keys(members, what, required=names)
    name = members["name"]
    return ManifestTerms(
        pin=SignerPin(
            signers=_signers(members["signers"]),
            threshold=expect_int(members["threshold"], "a threshold", low=1, high=MAX_OWNERS),
            name=UNCHECKED
            if name == UNCHECKED.value
            else expect_str(name, "a manifest's name", limit=256),
            minimum_version=expect_int(members["minimum_version"], "a minimum version", low=1),
        ),
        digests=_digests(members["digests"], "digests of manifests"),
    )


def _signers(value: object) -> tuple[Owner, ...]:
    listed = expect_list(value, "signers", limit=MAX_OWNERS)
    return tuple(parse_owner(entry) for entry in listed)


def _digests(value: object, what: str) -> Checked[tuple[str, ...]]:
    if value == UNCHECKED.value:
        return UNCHECKED
    listed = expect_list(value, what, limit=_MAX_DIGESTS)
    if not listed:
        raise MalformedError(f"{_WHAT} accepts nothing for {what}")
    return tuple(sorted({expect_hex(entry, what, size=32).hex() for entry in listed}))


def _listed(value: Checked[tuple[str, ...]]) -> Json:
    return value.value if isinstance(value, Unchecked) else list(value)
