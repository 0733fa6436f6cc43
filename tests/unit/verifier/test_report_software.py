"""Launches and software other than expected, each signed by the TPM as it happened."""

from __future__ import annotations

import dataclasses

import pytest

from cloister.evidence.component import (
    Component,
    ComponentKind,
    configuration_component,
    launch_events,
)
from cloister.evidence.eventlog import SEPARATOR_DATA, Event, EventType, measured_event
from cloister.testing.simulated_tpm import default_components, default_configuration, made_up
from cloister.verifier.reference_values import ReferenceValues
from support.report_world import affirm, refuse, world

# --- launches that break the conventions, each signed by the TPM as it happened -------------

LAUNCH = launch_events(
    (*default_components(), configuration_component("worker", "1", default_configuration()))
)

LAUNCHES: dict[str, tuple[tuple[Event, ...], str, str]] = {
    "into another register": (
        (measured_event(4, EventType.EV_IPL, b"{}"), *LAUNCH),
        "eventlog_replay",
        "eventlog.launch",
    ),
    "with another type of event": (
        (measured_event(8, 5, b"action"), *LAUNCH),
        "eventlog_replay",
        "eventlog.launch",
    ),
    "into a register of another kind": (
        (
            measured_event(8, EventType.EV_IPL, made_up(ComponentKind.MODEL, "second").encode()),
            *LAUNCH,
        ),
        "eventlog_replay",
        "eventlog.launch",
    ),
    "left open": (LAUNCH[:-1], "eventlog_replay", "eventlog.launch"),
    "gone on after it was closed": (
        (*LAUNCH, made_up(ComponentKind.MODEL, "late").event()),
        "eventlog_replay",
        "eventlog.launch",
    ),
    "closed twice": (
        (*LAUNCH, measured_event(15, EventType.EV_SEPARATOR, SEPARATOR_DATA)),
        "eventlog_replay",
        "eventlog.launch",
    ),
    "closed with an error": (
        (*LAUNCH[:-1], measured_event(15, EventType.EV_SEPARATOR, b"\1\0\0\0")),
        "eventlog_replay",
        "eventlog.launch",
    ),
    "with a record that is none": (
        (measured_event(8, EventType.EV_IPL, b"not a record"), *LAUNCH),
        "eventlog_record",
        "eventlog.format",
    ),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_launch_that_breaks_the_conventions_is_refused(name: str) -> None:
    affirm(world(events=LAUNCH))
    events, code, claim = LAUNCHES[name]
    refuse(world(events=events), code, claim)


# --- other software than expected ----------------------------------------------------------


def differing(
    kind: ComponentKind, *, name: str | None = None, version: str | None = None
) -> tuple[Component, ...]:
    """The default components, the last of `kind` with other content, name or version."""
    components = list(default_components())
    index = max(i for i, component in enumerate(components) if component.kind is kind)
    old = components[index]
    content = made_up(kind, old.name, "other content").digest
    components[index] = dataclasses.replace(
        old,
        digest=content if name is None and version is None else old.digest,
        name=name or old.name,
        version=version or old.version,
    )
    return tuple(components)


SOFTWARE: dict[str, tuple[tuple[Component, ...], str, str]] = {
    "another model file": (differing(ComponentKind.MODEL), "model_mismatch", "software.model"),
    "a model of another name": (
        differing(ComponentKind.MODEL, name="other"),
        "model_mismatch",
        "software.model",
    ),
    "a model of another version": (
        differing(ComponentKind.MODEL, version="2.0"),
        "model_mismatch",
        "software.model",
    ),
    "a second model": (
        (*default_components(), made_up(ComponentKind.MODEL, "second")),
        "model_mismatch",
        "software.model",
    ),
    "other package code": (
        differing(ComponentKind.DISTRIBUTION),
        "package_mismatch",
        "software.packages",
    ),
    "another package version": (
        differing(ComponentKind.DISTRIBUTION, version="50.0.1"),
        "package_mismatch",
        "software.packages",
    ),
    "another interpreter": (
        differing(ComponentKind.INTERPRETER),
        "component_mismatch",
        "software.runtime",
    ),
    "another standard library": (
        differing(ComponentKind.STDLIB),
        "component_mismatch",
        "software.runtime",
    ),
    "another engine library": (
        differing(ComponentKind.NATIVE),
        "component_mismatch",
        "software.runtime",
    ),
    "another unowned file": (
        differing(ComponentKind.UNOWNED),
        "component_mismatch",
        "software.runtime",
    ),
    "a package more": (
        (*default_components(), made_up(ComponentKind.DISTRIBUTION, "extra")),
        "component_unexpected",
        "software.nothing_else",
    ),
    "a file more": (
        (*default_components(), made_up(ComponentKind.UNOWNED, "sitecustomize.py")),
        "component_unexpected",
        "software.nothing_else",
    ),
    "a package twice": (
        (*default_components(), default_components()[2]),
        "component_unexpected",
        "software.nothing_else",
    ),
    "a package less": (
        default_components()[:2] + default_components()[3:],
        "component_missing",
        "software.complete",
    ),
    "an empty launch": ((), "model_unmeasured", "software.model"),
}


@pytest.mark.parametrize("name", SOFTWARE)
def test_other_software_is_refused(name: str) -> None:
    good = world()
    affirm(good)
    components, code, claim = SOFTWARE[name]
    bad = world(components=components)
    bad.reference_values = good.reference_values
    refuse(bad, code, claim)


def test_a_changed_configuration_is_refused() -> None:
    good = world()
    affirm(good)
    bad = world(configuration={**default_configuration(), "engine": {"context": 8192}})
    bad.reference_values = good.reference_values
    refuse(bad, "configuration_mismatch", "software.configuration")


def test_alternatives_of_one_component_are_accepted_one_at_a_time() -> None:
    components = differing(ComponentKind.DISTRIBUTION, version="50.0.1")
    good, other = world(), world(components=components)
    both = good.reference_values.merged(other.reference_values)
    for each in (good, other):
        each.reference_values = both
        affirm(each)
    bad = world(components=(*default_components(), components[3]))
    bad.reference_values = both
    refuse(bad, "component_unexpected", "software.nothing_else")


def test_digest_and_version_must_belong_together() -> None:
    """A digest accepted for one version does not pass under another."""
    old = default_components()[3]
    mixed = dataclasses.replace(old, version="50.0.1")
    accepted = made_up(ComponentKind.DISTRIBUTION, old.name, "50.0.1")
    good = world()
    both = good.reference_values.merged(ReferenceValues.from_components((accepted,)))
    good.reference_values = both
    affirm(good)
    bad = world(components=(*default_components()[:3], mixed, *default_components()[4:]))
    bad.reference_values = both
    refuse(bad, "package_mismatch", "software.packages")


def test_a_worker_without_model_needs_a_policy_that_says_so() -> None:
    bad = world(components=default_components()[:-1])
    refuse(bad, "model_unmeasured", "software.model")
    bad.policy = dataclasses.replace(bad.policy, require_model=False)
    affirm(bad)
