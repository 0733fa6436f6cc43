"""A manifest narrows a relying party's policy, and never widens it.

For each field the stricter of the two holds: both must accept what is accepted, either may require
what is required. What both accept may be nothing; then nothing can be affirmed, and that is said
at once. A manifest that permits what opens conversations to others (development platforms,
debugging, a GPU's DevTools) is refused by who does not permit it too, whatever the worker shows:
its signer has other things in mind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final

from cloister.errors import AppraisalError
from cloister.manifest.model import Manifest
from cloister.verifier.policy import UNCHECKED, AppraisalPolicy, MinimumTcb

PERMITS: Final = {
    "accept_development": "development platforms",
    "accept_debug": "debugging",
    "accept_devtools": "GPUs in DevTools mode",
}
"""What a manifest may permit only to who permits it as well."""


def narrowed(policy: AppraisalPolicy, manifest: Manifest) -> AppraisalPolicy:
    """What `policy` accepts of that which `manifest` accepts.

    Raises:
        AppraisalError: the manifest permits what the policy never does (``manifest.permits``), or
            the two have nothing in common (``manifest.contradiction``).
    """
    _check_permitted(policy, manifest)
    fields: dict[str, Any] = {
        name: _stricter(name, getattr(policy, name), value)
        for name, value in manifest.policy.items()
    }
    return dataclasses.replace(policy, **fields)


def _check_permitted(policy: AppraisalPolicy, manifest: Manifest) -> None:
    permitted = [
        what
        for name, what in PERMITS.items()
        if manifest.policy.get(name) is True and not getattr(policy, name)
    ]
    if not policy.accept_debug:
        permitted += [
            f"the image {image.name} {image.version}, which is for debugging"
            for image in manifest.images
            if image.debug or any(built.debug for built in image.reference_values.images)
        ]
    if permitted:
        raise AppraisalError(
            f"the manifest permits {', '.join(permitted)}, and your policy does not: it is not"
            " meant for you",
            code="manifest.permits",
        )


def _stricter(name: str, own: Any, other: Any) -> object:
    """The stricter of the client's `own` value and the manifest's, by the kind of field."""
    if name in _UNCHECKED_IS_STRICTEST and own is UNCHECKED:
        return own
    if own is UNCHECKED:
        return other
    found = _RULES[name](own, other)
    if found or name in _MAY_BE_EMPTY or isinstance(found, bool):
        return found
    raise AppraisalError(
        f"of what your policy accepts for {name}, the manifest accepts nothing",
        code="manifest.contradiction",
    )


def _both(own: tuple[object, ...], other: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(value for value in own if value in other)


def _either(own: tuple[object, ...], other: tuple[object, ...]) -> tuple[object, ...]:
    return (*own, *other)


def _and(own: bool, other: bool) -> bool:
    return own and other


def _or(own: bool, other: bool) -> bool:
    return own or other


def _minimums(own: MinimumTcb, other: MinimumTcb) -> Mapping[str, Mapping[str, int]]:
    """A product needs a minimum in both: without one it is refused (`AppraisalPolicy`)."""
    return {
        product: {
            part: max(own[product].get(part, 0), other[product].get(part, 0))
            for part in {*own[product], *other[product]}
        }
        for product in own
        if product in other
    }


_RULES: Final[Mapping[str, Callable[[Any, Any], object]]] = {
    "accept_development": _and,
    "accept_debug": _and,
    "accept_migration": _and,
    "accept_devtools": _and,
    "require_safe_clock": _or,
    "require_model": _or,
    "require_managed": _or,
    "require_endorsements": _or,
    "require_cc_gpu": _or,
    "memory_confidentiality": _both,
    "isolation": _both,
    "termination": _both,
    "separation": _both,
    "tcb_statuses": _both,
    "tcb_accepted_advisories": _both,
    "snp_vmpls": _both,
    "chip_ids": _both,
    "denied": _either,
    "tcb_denied_advisories": _either,
    "max_keyset_lifetime_s": min,
    "max_age_s": min,
    "max_evidence_age_s": min,
    "max_collateral_age_s": min,
    "tcb_grace_s": min,
    "required_gpus": max,
    "tcb_minimum_evaluation_number": max,
    "snp_minimum_tcb": _minimums,
}
"""For every field of a policy, what holds when two values meet. A test looks for missing ones."""

_MAY_BE_EMPTY: Final = ("denied", "tcb_accepted_advisories", "tcb_denied_advisories")
_UNCHECKED_IS_STRICTEST: Final = ("tcb_grace_s",)
