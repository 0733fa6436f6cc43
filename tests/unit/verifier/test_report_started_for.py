"""The manifest that a platform says its worker was started for: compared, and denied."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import pytest

from cloister.strictjson import JsonObject
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.verifier import policy
from cloister.verifier.platform_references import ReferenceImage
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.report import NO_MANIFEST
from cloister.verifier.result import Finding, Source
from support.hardware_reports import (
    NOW,
    OTHER,
    WORKERS,
    codes,
    documented,
    verify,
)

MANIFEST = hashlib.sha256(b"a manifest").digest()
STARTED_FOR: dict[str, Callable[[bytes], dict[str, object]]] = {
    "snp": lambda digest: {"host_data": digest},
    "tdx": lambda digest: {"mr_config_id": digest + bytes(16)},
    "sgx": lambda digest: {"config_id": digest + bytes(32)},
    **dict.fromkeys(
        ("azure-snp", "gcp-snp", "gcp-tdx", "gcp-vtpm", "tpm", "nitro-tpm"),
        lambda digest: {"manifest_sha256": digest},
    ),
    "nitro": lambda digest: {
        "pcrs": {
            **{index: bytes([0xD0 + index]) * 48 for index in range(3)},
            16: hashlib.sha384(bytes(48) + digest).digest(),
        }
    },
}


def started_for(platform: str, digest: bytes) -> SimulatedHardware:
    fields = STARTED_FOR[platform](digest)
    made = SimulatedHardware.make(platform, now=NOW, worker=None, **fields)
    document = made.worker.claims_document
    named: JsonObject = {**document.configuration, "manifest_sha256": MANIFEST.hex()}
    naming = dataclasses.replace(document, configuration=named, manifest_sha256=MANIFEST.hex())
    return documented(made, naming)


@pytest.mark.parametrize("platform", STARTED_FOR)
def test_the_manifest_that_the_platform_was_started_for(platform: str) -> None:
    result = verify(started_for(platform, MANIFEST))
    assert result.verdict is Finding.AFFIRMING, result.failures
    assert "manifest.bound" in {claim.name for claim in result.claims}
    assert NO_MANIFEST not in result.not_proven
    assert NO_MANIFEST in verify(WORKERS[platform]).not_proven
    found = codes(verify(started_for(platform, OTHER)))
    assert found["manifest.bound"] == "manifest_mismatch"
    if "manifest_sha256" not in STARTED_FOR[platform](MANIFEST):
        # Elsewhere the register is one of those that name software.
        assert found == {"manifest.bound": "manifest_mismatch"}


@pytest.mark.parametrize("platform", ["snp", "azure-snp", "gcp-snp", "gcp-tdx", "gcp-vtpm"])
@pytest.mark.parametrize("digest", [MANIFEST, OTHER], ids=["named", "another"])
def test_what_only_a_tpm_says_beside_a_processor_is_the_providers_word(
    platform: str, digest: bytes
) -> None:
    """Google's processors do not name the TPM's key, so two machines may have answered together.
    Azure's do, and of Google's TPM alone nobody is told that a processor stands behind it."""
    made = started_for(platform, digest)
    vendors = tuple(dataclasses.replace(one, development=False) for one in made.roots.anchors)
    made.roots = dataclasses.replace(made.roots, anchors=vendors)
    (reference,) = made.reference_values.platforms

    def accepting(*, debug: bool) -> ReferenceValues:
        image = ReferenceImage(name="x", version="1", debug=debug)
        return ReferenceValues.from_platforms(dataclasses.replace(reference, image=image))

    result = verify(made, values=accepting(debug=False))
    assert not result.development
    assert (result.verdict is Finding.AFFIRMING) == (digest == MANIFEST)
    sources = {(claim.device, claim.name): claim.source for claim in result.claims}
    beside = platform in {"gcp-snp", "gcp-tdx"}
    word = Source.PROVIDER_ASSERTED if beside else Source.HARDWARE_PROVEN
    assert sources["cpu0", "manifest.bound"] is word
    assert sources["cpu0", "software.registers"] is word
    assert sources.get(("cpu0", "image.debug"), word) is word
    groups = {name for _, name in sources if name.startswith("boot.")}
    assert {sources["cpu0", name] for name in groups} == ({word} if platform != "snp" else set())
    assert sources["cpu0", "keyset.bound"] is Source.HARDWARE_PROVEN
    if beside:
        assert sources["cpu0", "gcp.same_challenge"] is Source.PROVIDER_ASSERTED
        assert sources["vtpm0", "tpm.signature"] is Source.PROVIDER_ASSERTED
        hardware = {"gcp-snp": "snp.signature", "gcp-tdx": "tdx.quote_signature"}[platform]
        assert sources["cpu0", hardware] is Source.HARDWARE_PROVEN
    else:
        assert Source.PROVIDER_ASSERTED not in sources.values()
    if digest == MANIFEST:
        (registers,) = [one for one in result.claims if one.name == "software.registers"]
        assert ("the provider's word" in registers.explanation) == beside
        assert ("cpu0", "image.debug") in sources
        shown = verify(made, values=accepting(debug=True))
        assert codes(shown) == {"image.debug": "image_debug"}
        (said,) = shown.failures
        assert said.source is word
    without = verify(made, values=ReferenceValues.from_platforms())
    assert codes(without)["software.registers"] == "measurement_mismatch"
    (nothing,) = [one for one in without.claims if one.name == "software.registers"]
    assert nothing.source is word


@pytest.mark.parametrize("platform", ["gcp-snp", "gcp-tdx"])
def test_what_a_cloud_wrote_where_hosts_name_a_manifest_counts_for_nothing(platform: str) -> None:
    """Customers choose neither HOST_DATA nor MRCONFIGID there."""
    field = {"gcp-snp": "host_data", "gcp-tdx": "mr_config_id"}[platform]
    written: dict[str, object] = {field: MANIFEST.ljust(48 if platform == "gcp-tdx" else 32, b"\0")}
    made = SimulatedHardware.make(platform, now=NOW, worker=None, **written)
    verify(made).require_affirming()
    document = made.worker.claims_document
    named: JsonObject = {**document.configuration, "manifest_sha256": MANIFEST.hex()}
    naming = dataclasses.replace(document, configuration=named, manifest_sha256=MANIFEST.hex())
    assert codes(verify(documented(made, naming))) == {"manifest.bound": "manifest_mismatch"}


@pytest.mark.parametrize("platform", STARTED_FOR)
def test_a_denied_manifest_that_only_the_platform_names(platform: str) -> None:
    """Also where a register was extended with it, and so does not say it."""
    fields = STARTED_FOR[platform](MANIFEST)
    made = SimulatedHardware.make(platform, now=NOW, worker=None, **fields)
    other = dataclasses.replace(policy.development(), denied=(f"sha256:{OTHER.hex()}",))
    assert "denied" not in {claim.name for claim in verify(made, under=other).failures}
    under = dataclasses.replace(policy.development(), denied=(f"sha256:{MANIFEST.hex()}",))
    assert codes(verify(made, under=under))["denied"] == "denied"
