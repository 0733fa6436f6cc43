"""A manifest narrows a policy; it never widens one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from cloister.errors import AppraisalError
from cloister.manifest.model import Manifest
from cloister.manifest.narrowing import _RULES, PERMITS, narrowed
from cloister.testing.signed_manifests import make_manifest
from cloister.verifier import policy as policies
from cloister.verifier.policy import UNCHECKED, AppraisalPolicy
from support.manifests import ALICE, IMAGE, ISSUED

STRICT = policies.strict()


def saying(policy: Mapping[str, object], **fields: Any) -> Manifest:
    return make_manifest(owners=[ALICE], policy=policy, at=ISSUED, **fields)


def test_every_field_of_a_policy_has_a_rule() -> None:
    assert set(_RULES) == {
        field.name for field in dataclasses.fields(AppraisalPolicy) if field.init
    }


def test_a_manifest_that_says_nothing_changes_nothing() -> None:
    assert narrowed(STRICT, saying({})) == STRICT


WIDE: Mapping[str, object] = {
    "accept_migration": True,
    "require_safe_clock": False,
    "require_model": False,
    "require_managed": False,
    "require_endorsements": False,
    "require_cc_gpu": False,
    "memory_confidentiality": ["nitro", "none", "sev_snp", "sgx", "tdx"],
    "isolation": ["none (unsafe)", "sandbox"],
    "termination": ["in-engine", "worker"],
    "separation": ["process-per-client", "shared"],
    "max_keyset_lifetime_s": 10 * policies.DAY,
    "max_age_s": policies.DAY,
    "denied": [],
    "tcb_statuses": [*policies.TCB_STATUSES],
    "tcb_accepted_advisories": ["INTEL-SA-00001"],
    "tcb_denied_advisories": [],
    "tcb_grace_s": policies.DAY,
}


def test_whatever_it_permits_beyond_the_policy_counts_for_nothing() -> None:
    assert narrowed(STRICT, saying(WIDE)) == STRICT


@pytest.mark.parametrize(
    ("own", "said", "expected"),
    [
        ({"accept_migration": True}, {"accept_migration": False}, False),
        ({"require_cc_gpu": False}, {"require_cc_gpu": True}, True),
        ({"memory_confidentiality": ("tdx", "sgx")}, {"memory_confidentiality": ["tdx"]}, ("tdx",)),
        ({"chip_ids": UNCHECKED}, {"chip_ids": ["aa"]}, ("aa",)),
        ({"snp_vmpls": (0, 1)}, {"snp_vmpls": [1, 2]}, (1,)),
        ({"max_age_s": 3600}, {"max_age_s": 60}, 60),
        ({"max_evidence_age_s": UNCHECKED}, {"max_evidence_age_s": 60}, 60),
        ({"required_gpus": 1}, {"required_gpus": 8}, 8),
        ({"required_gpus": 8}, {"required_gpus": 1}, 8),
        ({"tcb_minimum_evaluation_number": 17}, {"tcb_minimum_evaluation_number": 20}, 20),
        ({"tcb_grace_s": 3600}, {"tcb_grace_s": 60}, 60),
        ({"tcb_grace_s": UNCHECKED}, {"tcb_grace_s": 60}, UNCHECKED),
        (
            {"denied": ("sha256:" + "1" * 64,)},
            {"denied": ["sha256:" + "2" * 64]},
            ("sha256:" + "1" * 64, "sha256:" + "2" * 64),
        ),
        ({"tcb_accepted_advisories": ("INTEL-SA-1",)}, {"tcb_accepted_advisories": []}, ()),
        (
            {"snp_minimum_tcb": {"milan": {"snp": 8, "tee": 1}, "genoa": {"snp": 3}}},
            {"snp_minimum_tcb": {"milan": {"snp": 5, "microcode": 200}}},
            {"milan": {"snp": 8, "tee": 1, "microcode": 200}},
        ),
    ],
)
def test_the_stricter_of_the_two_holds(
    own: dict[str, Any], said: Mapping[str, object], expected: object
) -> None:
    (name,) = said
    found = narrowed(dataclasses.replace(STRICT, **own), saying(said))
    assert getattr(found, name) == expected
    assert dataclasses.replace(found, **own) == dataclasses.replace(STRICT, **own)


@pytest.mark.parametrize(
    "said",
    [
        {"memory_confidentiality": ["none"]},
        {"isolation": ["none (unsafe)"]},
        {"tcb_statuses": ["OutOfDate"]},
    ],
)
def test_nothing_in_common_is_said_at_once(said: Mapping[str, object]) -> None:
    with pytest.raises(AppraisalError) as refused:
        narrowed(STRICT, saying(said))
    assert refused.value.code == "manifest.contradiction"


@pytest.mark.parametrize("name", PERMITS)
def test_a_manifest_that_permits_what_opens_conversations_is_refused(name: str) -> None:
    narrowed(STRICT, saying({name: False}))
    with pytest.raises(AppraisalError) as refused:
        narrowed(STRICT, saying({name: True}))
    assert refused.value.code == "manifest.permits"
    permitting: dict[str, Any] = {name: True}
    lax = dataclasses.replace(STRICT, **permitting)
    assert getattr(narrowed(lax, saying({name: True})), name) is True
    assert getattr(narrowed(lax, saying({name: False})), name) is False


def test_a_manifest_that_lists_an_image_for_debugging_is_refused() -> None:
    narrowed(STRICT, saying({}, images=[IMAGE]))
    debug = saying({}, images=[IMAGE, dataclasses.replace(IMAGE, name="debug", debug=True)])
    with pytest.raises(AppraisalError, match="for debugging") as refused:
        narrowed(STRICT, debug)
    assert refused.value.code == "manifest.permits"
    narrowed(dataclasses.replace(STRICT, accept_debug=True), debug)
