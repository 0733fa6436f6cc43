"""What the measured configuration says, and which policy accepts it."""

from __future__ import annotations

import dataclasses

import pytest

from cloister.errors import AppraisalError
from cloister.evidence.component import configuration_component
from cloister.strictjson import Json, JsonObject
from cloister.testing.simulated_tpm import default_components, default_configuration
from cloister.verifier.appraise import serving
from cloister.verifier.policy import UNCHECKED
from support.report_world import affirm, refuse, world

CONFIGURATIONS: dict[str, tuple[JsonObject, str, str]] = {
    "debugging": ({"debug": True}, "configuration_debug", "configuration.debug"),
    "debugging as a number": ({"debug": 0}, "configuration_debug", "configuration.debug"),
    "no sandbox": (
        {"isolation": {"mode": "none (unsafe)", "layers": []}},
        "sandbox_unsafe",
        "configuration.isolation",
    ),
    "no sandbox, in one word": (
        {"isolation": "none (unsafe)"},
        "sandbox_unsafe",
        "configuration.isolation",
    ),
    "a seal that ends in the engine": (
        {"termination": "in-engine"},
        "termination_refused",
        "configuration.termination",
    ),
    "a seal that ends elsewhere": (
        {"termination": "gateway"},
        "termination_refused",
        "configuration.termination",
    ),
    "a list of places": (
        {"termination": ["worker"]},
        "termination_refused",
        "configuration.termination",
    ),
    "people kept apart by a word": (
        {"separation": "by good will"},
        "separation_refused",
        "configuration.separation",
    ),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_that_the_policy_refuses(name: str) -> None:
    """The reference values accept each of these: the policy alone refuses."""
    affirm(world())
    change, code, claim = CONFIGURATIONS[name]
    refuse(world(configuration={**default_configuration(), **change}), code, claim)


@pytest.mark.parametrize(
    ("member", "code", "claim"),
    [
        ("debug", "configuration_debug", "configuration.debug"),
        ("isolation", "sandbox_unsafe", "configuration.isolation"),
        ("termination", "termination_refused", "configuration.termination"),
        ("separation", "separation_refused", "configuration.separation"),
    ],
)
def test_a_configuration_that_does_not_say(member: str, code: str, claim: str) -> None:
    configuration = default_configuration()
    del configuration[member]
    refuse(world(configuration=configuration), code, claim)


@pytest.mark.parametrize("managed", [False, None, 1, "true"])
def test_somebody_elses_engine_is_refused_and_proves_no_model(managed: Json) -> None:
    """Its model file may have been measured: nothing shows that the engine loads that one."""
    affirm(world())
    configuration = {**default_configuration(), "managed": managed}
    if managed is None:
        del configuration["managed"]
    bad = world(configuration=configuration)
    refused = bad.verify()
    codes = {claim.name: claim.code for claim in refused.failures}
    assert codes == {
        "software.model": "model_unmeasured",
        "configuration.managed": "engine_unmanaged",
    }
    with pytest.raises(AppraisalError, match="somebody else's"):
        refused.require_affirming()
    bad.policy = dataclasses.replace(bad.policy, require_managed=False)
    refuse(bad, "model_unmeasured", "software.model")
    bad.policy = dataclasses.replace(bad.policy, require_managed=True, require_model=False)
    refuse(bad, "engine_unmanaged", "configuration.managed")
    bad.policy = dataclasses.replace(bad.policy, require_managed=False)
    affirm(bad)
    result = bad.verify()
    assert serving.NOT_PROVEN_UNMANAGED in result.not_proven
    (model,) = [claim for claim in result.claims if claim.name == "software.model"]
    assert model.explanation == "Nothing shows which model answers, which the policy accepts."


def test_a_policy_may_accept_a_seal_that_ends_in_the_engine() -> None:
    in_engine = world(
        configuration={**default_configuration(), "termination": "in-engine", "managed": False}
    )
    codes = {claim.code for claim in in_engine.verify().failures}
    assert codes == {"termination_refused", "engine_unmanaged"}
    in_engine.policy = dataclasses.replace(
        in_engine.policy, termination=("in-engine",), require_managed=False
    )
    affirm(in_engine)
    not_proven = in_engine.verify().not_proven
    assert serving.NOT_PROVEN_IN_ENGINE in not_proven
    assert serving.NOT_PROVEN_UNMANAGED not in not_proven
    other = world()
    affirm(other)
    other.policy = dataclasses.replace(other.policy, termination=("in-engine",))
    refuse(other, "termination_refused", "configuration.termination")


@pytest.mark.parametrize("said", ["process-per-client", {"mode": "process-per-client", "idle": 1}])
def test_both_separations_are_accepted_and_one_says_what_it_leaves_open(said: Json) -> None:
    shared, apart = world(), world(configuration={**default_configuration(), "separation": said})
    affirm(shared)
    affirm(apart)
    assert serving.NOT_PROVEN_SHARED in shared.verify().not_proven
    assert serving.NOT_PROVEN_SHARED not in apart.verify().not_proven
    shared.policy = dataclasses.replace(shared.policy, separation=("process-per-client",))
    refuse(shared, "separation_refused", "configuration.separation")
    apart.policy = dataclasses.replace(apart.policy, separation=("shared",))
    refuse(apart, "separation_refused", "configuration.separation")


def test_nobody_keeps_people_apart_in_somebody_elses_engine() -> None:
    bad = world(configuration={**default_configuration(), "separation": "process-per-client"})
    bad.policy = dataclasses.replace(bad.policy, require_managed=False, require_model=False)
    affirm(bad)
    configuration = {
        **default_configuration(),
        "separation": "process-per-client",
        "managed": False,
    }
    policy = bad.policy
    bad = world(configuration=configuration)
    bad.policy = policy
    refuse(bad, "separation_refused", "configuration.separation")
    assert serving.NOT_PROVEN_SHARED in bad.verify().not_proven


def test_what_a_policy_leaves_unchecked_is_not_claimed_but_still_told() -> None:
    lax = world(configuration={"debug": False, "isolation": "sandbox"})
    lax.policy = dataclasses.replace(
        lax.policy,
        require_model=False,
        require_managed=False,
        termination=UNCHECKED,
        separation=UNCHECKED,
    )
    affirm(lax)
    result = lax.verify()
    assert {claim.name for claim in result.claims}.isdisjoint(
        {serving.TERMINATION, serving.MANAGED, serving.SEPARATION}
    )
    assert {serving.NOT_PROVEN_SHARED, serving.NOT_PROVEN_UNMANAGED} < set(result.not_proven)
    for name in ("termination", "separation"):
        assert any(f" {name} unchecked" in sentence for sentence in result.not_proven)


def test_two_configurations_are_as_good_as_none() -> None:
    second = configuration_component("second", "1", default_configuration())
    bad = world(components=(*default_components(), second))
    bad.policy = dataclasses.replace(bad.policy, require_model=False)
    refuse(bad, "configuration_debug", "configuration.debug")


def test_a_policy_may_name_debugging_and_an_unsafe_sandbox() -> None:
    unsafe = world(
        configuration={**default_configuration(), "debug": True, "isolation": "none (unsafe)"}
    )
    unsafe.policy = dataclasses.replace(
        unsafe.policy, accept_debug=True, isolation=("none (unsafe)",)
    )
    affirm(unsafe)
    unsafe.policy = dataclasses.replace(unsafe.policy, isolation=UNCHECKED)
    result = unsafe.verify()
    result.require_affirming()
    assert "configuration.isolation" not in {claim.name for claim in result.claims}
    assert any("isolation" in sentence for sentence in result.not_proven)
