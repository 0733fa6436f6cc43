"""What a worker staples is what a verifier finds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements.artefact import ak_intermediate, nvidia_rim
from cloister.endorsements.contents import make_artefact
from cloister.endorsements.staple import collateral_of, staple, unstaple
from cloister.errors import ConfigurationError, MalformedError
from cloister.evidence.report import MAX_ENDORSEMENT_BYTES, MAX_ENDORSEMENTS, Endorsement
from support.certificates import issue
from support.published import AMD, CHIP, NOW, TDX_NEEDS, Issue, amd_artefacts, manifest

ISSUE = Issue()
INTEL_FOUR = tuple(map(ISSUE.artefact, TDX_NEEDS))


def test_snp() -> None:
    endorsements = staple(amd_artefacts())
    assert [one.media_type for one in endorsements] == [
        "application/pkix-cert",
        "application/pkix-cert",
        "application/pkix-crl",
    ]
    found = unstaple(endorsements)
    assert found.certificates == (CHIP.certificate, AMD.ask.public_bytes(Encoding.DER))
    assert len(found.crls) == 1
    assert found.collateral is None


def test_tdx() -> None:
    (endorsement,) = staple(INTEL_FOUR)
    assert endorsement.media_type == "application/vnd.cloister.intel-collateral+json"
    assert unstaple([endorsement]).collateral == ISSUE.collateral == collateral_of(INTEL_FOUR)


@pytest.mark.parametrize("index", range(4))
def test_collateral_is_whole_or_none(index: int) -> None:
    with pytest.raises(ConfigurationError) as raised:
        staple(INTEL_FOUR[:index] + INTEL_FOUR[index + 1 :])
    assert raised.value.code == "endorsement.staple"
    with pytest.raises(ConfigurationError):
        staple((*INTEL_FOUR, INTEL_FOUR[index]))


def test_two_sets_of_collateral() -> None:
    with pytest.raises(MalformedError):
        unstaple(staple(INTEL_FOUR) * 2)


def test_a_manifest() -> None:
    artefact = make_artefact(nvidia_rim("NV_X"), manifest(), source="x", fetched_at=NOW)
    assert unstaple(staple([artefact])).rims == (manifest(),)
    too_much = replace(artefact, data=bytes(MAX_ENDORSEMENT_BYTES + 1))
    for refused in ([too_much], [artefact] * (MAX_ENDORSEMENTS + 1)):
        with pytest.raises(ConfigurationError):
            staple(refused)


def test_the_cas_above_an_ak() -> None:
    root = issue("root")
    upper = issue("upper", root)
    lower = issue("lower", upper)
    artefact = make_artefact(
        ak_intermediate("https://pki.goog/x", azure=False),
        lower.certificate.public_bytes(Encoding.DER),
        source="x",
        fetched_at=NOW,
        issuer_chain=upper.certificate.public_bytes(Encoding.PEM),
    )
    assert unstaple(staple([artefact])).certificates == tuple(
        one.certificate.public_bytes(Encoding.DER) for one in (lower, upper)
    )


def test_what_is_not_known_is_left_alone() -> None:
    found = unstaple([Endorsement(media_type="text/plain", data=b"x")])
    assert found == unstaple([])
