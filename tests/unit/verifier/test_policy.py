"""A policy says everything, or says that it does not."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping

import pytest

from cloister.errors import ConfigurationError
from cloister.verifier import policy
from cloister.verifier.policy import UNCHECKED, AppraisalPolicy

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
FIELDS = [field.name for field in dataclasses.fields(AppraisalPolicy) if field.init]


def loosest(**changes: object) -> AppraisalPolicy:
    fields: dict[str, object] = {
        "accept_development": True,
        "accept_debug": True,
        "require_safe_clock": False,
        "require_model": False,
        "require_managed": False,
        "memory_confidentiality": UNCHECKED,
        "isolation": UNCHECKED,
        "max_keyset_lifetime_s": UNCHECKED,
        "max_age_s": UNCHECKED,
        "denied": UNCHECKED,
        "require_endorsements": False,
        "accept_migration": True,
        "accept_devtools": True,
        "require_cc_gpu": False,
        **{
            field.name: UNCHECKED
            for field in dataclasses.fields(AppraisalPolicy)
            if "Unchecked" in str(field.type) or "Checked" in str(field.type)
        },
    }
    return AppraisalPolicy(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("made", [policy.strict(), policy.development()])
def test_policies_survive_both_formats(made: AppraisalPolicy) -> None:
    assert policy.load_json(made.dump_json().encode()) == made
    assert policy.load_toml(made.dump_toml().encode()) == made


def test_unchecked_survives_both_formats() -> None:
    made = dataclasses.replace(policy.strict(), isolation=UNCHECKED, max_age_s=UNCHECKED)
    assert json.loads(made.dump_json())["isolation"] == "unchecked"
    assert tomllib.loads(made.dump_toml())["max_age_s"] == "unchecked"
    assert policy.load_json(made.dump_json().encode()) == made
    assert policy.load_toml(made.dump_toml().encode()) == made
    assert set(made.unchecked) - set(policy.strict().unchecked) == {"isolation", "max_age_s"}


def test_presets_differ_in_development_alone() -> None:
    strict, development = policy.strict().to_json(), policy.development().to_json()
    differing = {name for name in strict if strict[name] != development[name]}
    assert differing == {"accept_development", "memory_confidentiality"}
    assert not policy.strict().accept_development
    assert not policy.strict().accept_debug
    assert "none" not in str(strict["memory_confidentiality"])


@pytest.mark.parametrize("preset", [policy.strict(), policy.development()])
def test_presets_keep_keys_from_engines_and_accept_no_strangers(preset: AppraisalPolicy) -> None:
    assert preset.termination == ("worker",)
    assert preset.require_managed
    assert preset.separation == ("process-per-client", "shared")


def test_the_id_is_that_of_the_meaning() -> None:
    one = dataclasses.replace(policy.strict(), denied=(A, B))
    other = dataclasses.replace(policy.strict(), denied=(B, A))
    assert one.policy_id == other.policy_id
    assert one.policy_id != policy.strict().policy_id
    assert policy.strict().policy_id.startswith("sha256:")


@pytest.mark.parametrize("data", [b"", b"# nothing\n"])
def test_an_empty_policy_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigurationError) as raised:
        policy.load_toml(data)
    assert raised.value.code == "policy.empty"


def test_an_empty_object_is_refused() -> None:
    with pytest.raises(ConfigurationError) as raised:
        policy.load_json(b"{}")
    assert raised.value.code == "policy.empty"


def test_a_policy_that_checks_nothing_cannot_be_made() -> None:
    with pytest.raises(ConfigurationError) as raised:
        loosest()
    assert raised.value.code == "policy.empty"
    with pytest.raises(ConfigurationError):
        loosest(denied=())
    assert loosest(denied=(A,)).unchecked
    assert loosest(require_model=True).unchecked
    assert loosest(require_managed=True).unchecked
    assert loosest(accept_development=False).unchecked


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_required(name: str) -> None:
    members = policy.strict().to_json()
    policy.load_json(json.dumps(members).encode())
    del members[name]
    with pytest.raises(ConfigurationError, match=name) as raised:
        policy.load_json(json.dumps(members).encode())
    assert raised.value.code == "policy.malformed"


def test_unknown_fields_are_refused() -> None:
    members = policy.strict().to_json()
    with pytest.raises(ConfigurationError, match="does not know"):
        policy.load_json(json.dumps({**members, "accept_anything": True}).encode())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accept_development", "unchecked"),
        ("accept_development", 1),
        ("accept_debug", None),
        ("require_model", "true"),
        ("max_age_s", 0),
        ("max_age_s", True),
        ("max_age_s", "1h"),
        ("max_age_s", 10**12),
        ("max_keyset_lifetime_s", -1),
        ("isolation", []),
        ("isolation", "sandbox"),
        ("isolation", [1]),
        ("require_managed", "unchecked"),
        ("termination", []),
        ("termination", "worker"),
        ("termination", ["worker", "gateway"]),
        ("separation", []),
        ("separation", ["kindly"]),
        ("memory_confidentiality", []),
        ("denied", [None]),
        ("denied", ["sha256:" + "A" * 64]),
        ("denied", ["a" * 64]),
    ],
)
def test_values_of_a_wrong_kind_are_refused(name: str, value: object) -> None:
    members = {**policy.strict().to_json(), name: value}
    with pytest.raises(ConfigurationError) as raised:
        policy.load_json(json.dumps(members).encode())
    assert raised.value.code == "policy.malformed"


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b'{"a":1,"a":2}', b"\xff", b" " * 300_000, b"a = " + b"9" * 5000]
)
def test_other_bytes_are_no_policy(data: bytes) -> None:
    for load in (policy.load_json, policy.load_toml):
        with pytest.raises(ConfigurationError):
            load(data)


GOOD: dict[str, list[object]] = {
    "tcb_statuses": [("UpToDate", "SWHardeningNeeded"), UNCHECKED],
    "tcb_accepted_advisories": [(), ("INTEL-SA-00837",), UNCHECKED],
    "tcb_denied_advisories": [(), ("INTEL-SA-00837",), UNCHECKED],
    "tcb_grace_s": [1, UNCHECKED],
    "tcb_minimum_evaluation_number": [17, UNCHECKED],
    "required_gpus": [8, UNCHECKED],
    "snp_vmpls": [(0,), UNCHECKED],
    "snp_minimum_tcb": [{"milan": {"snp": 24}, "turin": {"fmc": 1, "microcode": 81}}, UNCHECKED],
    "chip_ids": [("00ff",), UNCHECKED],
}
BAD: dict[str, list[object]] = {
    "tcb_statuses": [(), ("Revoked",), ("uptodate",), "UpToDate", (1,)],
    "tcb_accepted_advisories": [("intel",), ("",), 1],
    "tcb_denied_advisories": [("INTEL SA",)],
    "tcb_grace_s": [0, -1, True, "1"],
    "tcb_minimum_evaluation_number": [0, True, 1.5],
    "required_gpus": [0, False],
    "snp_vmpls": [(), (4,), (-1,), (True,), 0],
    "snp_minimum_tcb": [
        {},
        {"milan": {}},
        {"naples": {"snp": 1}},
        {"milan": {"ucode": 1}},
        {"milan": {"snp": 256}},
        {"milan": {"snp": True}},
        {"milan": 1},
        (),
    ],
    "chip_ids": [(), ("00FF",), ("0",), ("zz",)],
    "accept_migration": [1, "no", UNCHECKED],
    "require_endorsements": [None, UNCHECKED],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in GOOD.items() for value in values]
)
def test_fields_of_the_platforms(name: str, value: object) -> None:
    made = dataclasses.replace(policy.strict(), **{name: value})  # type: ignore[arg-type]
    assert policy.load_json(made.dump_json().encode()) == made
    assert policy.load_toml(made.dump_toml().encode()) == made
    assert (name in made.unchecked) == (value is UNCHECKED)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_fields_that_mean_nothing_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError) as raised:
        dataclasses.replace(policy.strict(), **{name: value})  # type: ignore[arg-type]
    assert raised.value.code == "policy.malformed"


def test_a_minimum_cannot_be_changed_behind_the_policys_back() -> None:
    minimum = {"milan": {"snp": 24}}
    made = dataclasses.replace(policy.strict(), snp_minimum_tcb=minimum)
    before = made.policy_id
    minimum["milan"]["snp"] = 0
    assert made.policy_id == before
    assert isinstance(made.snp_minimum_tcb, Mapping)
    with pytest.raises(TypeError):
        made.snp_minimum_tcb["milan"]["snp"] = 0  # type: ignore[index]


def test_recorded_evidence_is_judged_on_what_it_contains_and_on_all_of_that() -> None:
    loose, tight = policy.as_captured(policy.strict()).to_json(), policy.strict().to_json()
    assert {name for name in tight if tight[name] != loose[name]} == {"require_endorsements"}


def test_a_policy_made_from_another_has_a_digest_of_its_own() -> None:
    """Also where the other's was asked for already, and is kept."""
    kept = policy.strict()
    assert kept.policy_id == policy.strict().policy_id
    changed = dataclasses.replace(kept, accept_debug=True)
    assert changed.policy_id == dataclasses.replace(policy.strict(), accept_debug=True).policy_id
    assert changed.policy_id != kept.policy_id
