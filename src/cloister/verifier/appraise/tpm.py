"""Appraises an authenticated launch: every measured component against the reference values.

Steps, in order; each makes one claim unless the policy leaves it unchecked:

1. ``software.model``: the measured model is an accepted one.
2. ``software.packages``: every installed distribution is an accepted release, file for file.
3. ``software.runtime``: so are interpreter, standard library, native libraries, other files.
4. ``software.configuration``: the effective configuration is an accepted one.
5. ``software.complete``: nothing that the reference values name is missing.
6. ``software.nothing_else``: nothing was measured that they do not name, or twice.
7. ``configuration.debug``, those of `cloister.verifier.appraise.serving`, and
   ``configuration.isolation``: no debugging, an accepted way of serving, an accepted sandbox.
8. ``tpm.clock``: the TPM vouches for its clock.
9. ``denied``: nothing that the policy denies by digest.

Only compares: whatever is compared here was authenticated before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from cloister.endorsements.roots import fingerprints
from cloister.evidence.component import (
    CONFIGURATION_DEBUG,
    Component,
    ComponentKind,
    isolation_mode,
    manifest_of,
    without_manifest,
)
from cloister.strictjson import JsonObject
from cloister.verifier.appraise import manifest as manifests
from cloister.verifier.appraise import serving
from cloister.verifier.authenticate.tpm import TpmLaunch
from cloister.verifier.authenticated import Authenticated
from cloister.verifier.expected_manifest import ExpectedManifest
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import AppraisalPolicy, Unchecked
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.result import Source

MODEL: Final = "software.model"
PACKAGES: Final = "software.packages"
RUNTIME: Final = "software.runtime"
CONFIGURATION: Final = "software.configuration"
COMPLETE: Final = "software.complete"
NOTHING_ELSE: Final = "software.nothing_else"
DEBUG: Final = "configuration.debug"
ISOLATION: Final = "configuration.isolation"
CLOCK: Final = "tpm.clock"
DENIED: Final = "denied"

MAX_NAMED: Final = 4
"""Components that an explanation names before it only counts them."""

_CLAIM_OF_KIND: Final = {
    ComponentKind.MODEL: MODEL,
    ComponentKind.MODEL_FILE: MODEL,
    ComponentKind.DISTRIBUTION: PACKAGES,
    ComponentKind.CONFIGURATION: CONFIGURATION,
}
"""The claim a changed component is reported under; every other kind is `RUNTIME`."""


def claims(policy: AppraisalPolicy) -> tuple[str, ...]:
    """Names of the claims made under `policy`, in order."""
    names = [MODEL, PACKAGES, RUNTIME, CONFIGURATION, COMPLETE, NOTHING_ELSE]
    if not policy.accept_debug:
        names.append(DEBUG)
    names += serving.claims(policy)
    if not isinstance(policy.isolation, Unchecked):
        names.append(ISOLATION)
    if policy.require_safe_clock:
        names.append(CLOCK)
    if not isinstance(policy.denied, Unchecked):
        names.append(DENIED)
    return tuple(names)


def appraise_tpm(
    authenticated: Authenticated[TpmLaunch],
    *,
    reference_values: ReferenceValues,
    policy: AppraisalPolicy,
    keyset_digest: str,
    manifest: ExpectedManifest | None = None,
    ledger: Ledger,
) -> None:
    """Add every claim of `claims(policy)` to `ledger`.

    With a `manifest`, `reference_values` are those that it lists, of a configuration that names
    none; that the measured one names this manifest is a claim of its own (``manifest.bound``).
    """
    launch = authenticated.value
    components = launch.components
    if manifest is not None:
        manifests.appraise_measured(configuration_of(components), manifest, ledger)
        components = tuple(map(without_manifest, components))
    _components(components, reference_values, policy, ledger)
    _configuration(launch.components, policy, ledger)
    if policy.require_safe_clock:
        _clock(launch, ledger)
    if not isinstance(policy.denied, Unchecked):
        named = manifest_of(configuration_of(launch.components))
        others = (keyset_digest, *(() if named is None else (f"sha256:{named}",)))
        signers = () if manifest is None else manifest.signer_ids
        _denied(launch, (*others, *signers), policy.denied, ledger)


def configuration_of(components: Iterable[Component]) -> JsonObject:
    """The one configuration that was measured. None, or two, say nothing at all."""
    found = [
        component.configuration for component in components if component.configuration is not None
    ]
    return found[0] if len(found) == 1 else {}


def _components(
    components: tuple[Component, ...],
    reference_values: ReferenceValues,
    policy: AppraisalPolicy,
    ledger: Ledger,
) -> None:
    """Steps 1 to 6."""
    exact, named = reference_values.exact, reference_values.named
    wrong = [
        one for one in components if (one.kind, one.name, one.version, one.digest) not in exact
    ]
    changed = [one for one in wrong if (one.kind, one.name) in named]
    unexpected = [one for one in wrong if (one.kind, one.name) not in named]
    names = [(one.kind, one.name) for one in components]
    measured = set(names)
    twice = [] if len(measured) == len(names) else _repeated(names)
    missing = [_named(kind, name) for kind, name in sorted(named - measured)]
    _model(components, [*changed, *unexpected], policy, ledger)
    _unchanged(PACKAGES, "package_mismatch", "installed packages", changed, ledger)
    _unchanged(RUNTIME, "component_mismatch", "interpreter and native files", changed, ledger)
    _unchanged(CONFIGURATION, "configuration_mismatch", "effective configuration", changed, ledger)
    ledger.check(
        COMPLETE,
        holds=not missing,
        affirmed="Everything that the reference values name was measured.",
        code="component_missing",
        refused=f"Not measured, though expected: {_some(missing)}.",
        source=Source.HARDWARE_PROVEN,
    )
    extra = [_describe(component) for component in unexpected] + twice
    ledger.check(
        NOTHING_ELSE,
        holds=not extra,
        affirmed="Nothing else was measured.",
        code="component_unexpected",
        refused=f"Measured, though not expected (or twice): {_some(extra)}.",
        source=Source.HARDWARE_PROVEN,
    )


def _repeated(names: list[tuple[ComponentKind, str]]) -> list[str]:
    return [_named(kind, name) for (kind, name), count in Counter(names).items() if count > 1]


def _model(
    components: tuple[Component, ...],
    wrong: list[Component],
    policy: AppraisalPolicy,
    ledger: Ledger,
) -> None:
    """Step 1: another file, another name and one model too many are all the wrong model."""
    models = [component for component in components if component.kind is ComponentKind.MODEL]
    others = [component for component in wrong if _CLAIM_OF_KIND.get(component.kind) == MODEL]
    if others:
        ledger.refuse(
            MODEL,
            "model_mismatch",
            f"The worker serves a model that is not accepted: {_some(map(_describe, others))}.",
            source=Source.HARDWARE_PROVEN,
        )
    elif models and serving.shows_model(configuration_of(components)):
        ledger.affirm(
            MODEL,
            f"The worker serves {_some(map(_describe, models))}.",
            source=Source.HARDWARE_PROVEN,
        )
    elif policy.require_model:
        ledger.refuse(
            MODEL,
            "model_unmeasured",
            serving.UNPROVEN_MODEL
            if models
            else "No model was measured, so nothing shows which one answers.",
            source=Source.HARDWARE_PROVEN,
        )
    else:
        ledger.affirm(MODEL, "Nothing shows which model answers, which the policy accepts.")


def _unchanged(name: str, code: str, what: str, changed: list[Component], ledger: Ledger) -> None:
    """Steps 2 to 4: none of the components reported under `name` differs."""
    wrong = [
        component for component in changed if _CLAIM_OF_KIND.get(component.kind, RUNTIME) == name
    ]
    ledger.check(
        name,
        holds=not wrong,
        affirmed=f"The {what}: all as the reference values say.",
        code=code,
        refused=f"The {what}: not as the reference values say: {_some(map(_describe, wrong))}.",
        source=Source.HARDWARE_PROVEN,
    )


def _configuration(
    components: tuple[Component, ...], policy: AppraisalPolicy, ledger: Ledger
) -> None:
    """Step 7. A configuration that does not say is refused."""
    configuration = configuration_of(components)
    if not policy.accept_debug:
        ledger.check(
            DEBUG,
            holds=configuration.get(CONFIGURATION_DEBUG) is False,
            affirmed="Debugging is off in the measured configuration.",
            code="configuration_debug",
            refused="The measured configuration has debugging on, or does not say that it is off.",
            source=Source.HARDWARE_PROVEN,
        )
    serving.appraise_serving(
        configuration, policy=policy, source=Source.HARDWARE_PROVEN, ledger=ledger
    )
    if not isinstance(policy.isolation, Unchecked):
        isolation = isolation_mode(configuration)
        ledger.check(
            ISOLATION,
            holds=isolation in policy.isolation,
            affirmed=f"The engine is held as your policy accepts: {isolation}.",
            code="sandbox_unsafe",
            refused=(
                "The engine is not held in a sandbox that the policy accepts"
                f" (it names: {_quoted(isolation)})."
            ),
            source=Source.HARDWARE_PROVEN,
        )


def _clock(launch: TpmLaunch, ledger: Ledger) -> None:
    """Step 8. Freshness comes from the nonce; this says whether the counts can be compared."""
    clock = launch.quote.clock_info
    ledger.check(
        CLOCK,
        holds=clock.safe,
        affirmed=(
            f"The TPM's clock has not gone backwards (reset {clock.reset_count} times, restarted"
            f" {clock.restart_count} times since)."
        ),
        code="quote_clock",
        refused="The TPM says that its clock may have gone backwards.",
        source=Source.HARDWARE_PROVEN,
    )


def _denied(
    launch: TpmLaunch, others: tuple[str, ...], denied: tuple[str, ...], ledger: Ledger
) -> None:
    """Step 9. `others` are digests of what was not measured: the keyset, the manifest."""
    digests = {
        *others,
        *(fingerprints(launch.certificate) if denied else ()),
        *(fingerprints(launch.root) if denied else ()),
        *(component.digest for component in launch.components),
    }
    found = sorted(digests.intersection(denied))
    ledger.check(
        DENIED,
        holds=not found,
        affirmed="Nothing of it is on your list of denied digests.",
        code="denied",
        refused=f"Your policy denies {_some(found)}.",
    )


def _named(kind: ComponentKind, name: str) -> str:
    return f"{kind} {name}"


def _describe(component: Component) -> str:
    return (
        f"{_named(component.kind, component.name)} {component.version} ({component.digest[:23]}…)"
    )


def _quoted(text: str | None) -> str:
    return text[:80] if text is not None and text.isprintable() else "nothing readable"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    shown = ", ".join(listed[:MAX_NAMED])
    return shown if len(listed) <= MAX_NAMED else f"{shown} and {len(listed) - MAX_NAMED} more"
