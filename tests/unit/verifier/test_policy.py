"""A policy says everything, or says that it does not."""

from __future__ import annotations

import dataclasses
import json
import tomllib

import pytest

from cloister.errors import ConfigurationError
from cloister.verifier import policy
from cloister.verifier.policy import UNCHECKED, AppraisalPolicy

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
FIELDS = [field.name for field in dataclasses.fields(AppraisalPolicy)]


def loosest(**changes: object) -> AppraisalPolicy:
    fields: dict[str, object] = {
        "accept_development": True,
        "accept_debug": True,
        "require_safe_clock": False,
        "require_model": False,
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
