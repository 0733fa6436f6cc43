"""One GPU or switch: its report and certificates, and every way in which they fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.endorsements.nvidia import COMPOSITE_DEVICE_ID, TCB_INFO
from cloister.endorsements.roots import Roots
from cloister.errors import ConfigurationError
from cloister.testing.simulated_nvgpu import SimulatedGpu, SimulatedNvidia, digest
from cloister.verifier.expected import NOTHING_EXPECTED, Expected
from cloister.verifier.ledger import Ledger
from cloister.verifier.platforms.nvgpu import (
    NOT_ATTACHED,
    NOT_RECENT,
    GpuChain,
    GpuEvidence,
    verify_nvgpu,
)
from cloister.verifier.policy import development, strict
from cloister.verifier.result import Finding
from support.nvgpu import (
    ASKED,
    BARE,
    GOOD,
    GPU,
    NONCE,
    NOW,
    NVIDIA,
    affirmed,
    evidence,
    failures,
    verify,
    with_chain,
    with_report,
)


@pytest.mark.parametrize("model", ["GH100", "GB100", "LS10"])
def test_a_device_is_affirmed(model: str) -> None:
    gpu = NVIDIA.device(model)
    result = verify(evidence(gpu), expected=ASKED)
    assert result.verdict is Finding.AFFIRMING, failures(result)
    assert result.platform == f"development (NVIDIA {model})"
    device = "nvswitch0" if model == "LS10" else "gpu0"
    assert {claim.device for claim in result.claims} == {device, "gpus", "cpu0"}
    assert NOT_ATTACHED in result.not_proven
    assert NOT_RECENT in result.not_proven


def test_an_outcome_binds_only_what_is_authentic() -> None:
    def outcome(made: GpuEvidence) -> tuple[bytes | None, int]:
        found = verify_nvgpu(
            made,
            policy=development(),
            roots=NVIDIA.roots,
            at=NOW,
            expected=NOTHING_EXPECTED,
            ledger=Ledger(),
        )
        return found.bound, len(found.registers)

    assert outcome(GOOD) == (NONCE, 64)
    altered = bytearray(GOOD.devices[0].report)
    altered[-1] ^= 1
    assert outcome(with_report(GOOD, bytes(altered))) == (None, 0)


def test_simulated_devices_need_a_policy_that_names_development() -> None:
    affirmed(GOOD)
    assert failures(verify(GOOD, policy=strict())) == {
        ("cpu0", "platform.development"): "development_refused"
    }


def test_an_unpinned_vendor_is_refused() -> None:
    affirmed(GOOD)
    found = failures(verify(GOOD, roots=SimulatedNvidia.make(now=NOW).roots))
    assert found["gpu0", "nvgpu.chain"] == "bad_chain"
    assert found["gpu0", "nvgpu.driver_rim_chain"] == "rim_bad_chain"
    found = failures(verify(GOOD, roots=Roots()))
    assert found["gpu0", "nvgpu.chain"] == "bad_chain"


REPORT = GOOD.devices[0].report


@pytest.mark.parametrize(
    "offset", [4, 35, 60, len(REPORT) - 97, len(REPORT) - 96, len(REPORT) - 1], ids=str
)
def test_every_byte_is_signed(offset: int) -> None:
    affirmed(GOOD)
    altered = bytearray(REPORT)
    altered[offset] ^= 1
    result = verify(with_report(GOOD, bytes(altered)))
    assert result.verdict is Finding.CONTRAINDICATED
    assert failures(result)["gpu0", "nvgpu.signature"] == "bad_signature"
    assert failures(result)["gpus", "nvgpu.all_devices"] == "device_refused"


def test_a_zero_signature_is_refused() -> None:
    affirmed(GOOD)
    found = failures(verify(with_report(GOOD, REPORT[:-96] + bytes(96))))
    assert found["gpu0", "nvgpu.signature"] == "bad_signature"


def test_another_devices_chain_is_refused() -> None:
    other = NVIDIA.device()
    affirmed(GOOD)
    affirmed(evidence(other))
    found = failures(verify(with_chain(GOOD, *other.chain)))
    assert found["gpu0", "nvgpu.signature"] == "bad_signature"


def test_a_response_to_another_request_is_refused() -> None:
    """The request with your nonce, spliced before an older response."""
    older = evidence(GPU, nonce=bytes(32)).devices[0].report
    affirmed(GOOD)
    found = failures(verify(with_report(GOOD, REPORT[:37] + older[37:]), expected=ASKED))
    assert found["gpu0", "nvgpu.signature"] == "bad_signature"
    # What the request states is refused or not decided, but never affirmed.
    assert found["gpu0", "expected.nonce"] == "unauthenticated"


def test_another_nonce_is_refused() -> None:
    assert verify(GOOD, expected=ASKED).verdict is Finding.AFFIRMING
    assert failures(verify(evidence(GPU, nonce=bytes(32)), expected=ASKED)) == {
        ("gpu0", "expected.nonce"): "nonce_mismatch"
    }


def test_other_fields_can_be_expected() -> None:
    assert GPU.fwid is not None
    fields = {"fwid": GPU.fwid, "driver_version": b"550.90.07", "vbios_version": b"96.00.9f.00.01"}
    assert verify(GOOD, expected=Expected(values=fields)).verdict is Finding.AFFIRMING
    wrong = Expected(values=dict.fromkeys(fields, b"x"))
    assert set(failures(verify(GOOD, expected=wrong)).values()) == {"measurement_mismatch"}
    with pytest.raises(ConfigurationError, match="mr_td"):
        verify(GOOD, expected=Expected(values={"mr_td": b""}))


def test_unauthenticated_measurements_are_refused_but_not_affirmed() -> None:
    gpu = NVIDIA.device()
    made = evidence(gpu)
    gpu.devtools()
    forged = verify(with_report(made, gpu.unsigned(NONCE) + bytes(96)))
    by_name = {claim.name: claim for claim in forged.claims}
    vbios = by_name["nvgpu.vbios_rim_measurements"]
    driver = by_name["nvgpu.driver_rim_measurements"]
    assert (vbios.finding, vbios.code) == (Finding.CONTRAINDICATED, "measurement_mismatch")
    assert (driver.finding, driver.code) == (Finding.NONE, "unauthenticated")
    assert by_name["nvgpu.debug"].finding is Finding.NONE
    assert by_name["denied"].finding is Finding.NONE


@pytest.mark.parametrize(
    "report", [b"", REPORT[:-1], REPORT + b"\x00", b"x" * len(REPORT)], ids=["0", "-", "+", "x"]
)
def test_what_does_not_decode_is_a_claim(report: bytes) -> None:
    affirmed(GOOD)
    found = failures(verify(with_report(GOOD, report)))
    assert found["gpu0", "nvgpu.report"] == "malformed"
    assert found["gpus", "nvgpu.all_devices"] == "device_refused"


def test_signed_measurements_that_do_not_decode_are_refused() -> None:
    affirmed(GOOD)
    unsigned = bytearray(GPU.unsigned(NONCE))
    unsigned[45] = 0
    found = failures(verify(with_report(GOOD, GPU.sign(bytes(unsigned)))))
    assert found["gpu0", "nvgpu.measurements"] == "malformed"
    assert ("gpu0", "nvgpu.signature") not in found
    assert found["gpus", "nvgpu.all_devices"] == "device_refused"


def reissued(**changes: Any) -> SimulatedGpu:
    """A device whose reporting key was certified in another way."""
    own = NVIDIA.provisioner.issue("GH100 A01 GSP BROM")
    return dataclasses.replace(
        NVIDIA.device(),
        leaf=own.issue("GH100 A01 GSP FMC LF", **changes),
        fwid=None,
    )


def test_a_chain_needs_every_link() -> None:
    affirmed(GOOD)
    chain = GPU.chain
    affirmed(with_chain(GOOD, *chain[:-1]))  # the pinned root may be left out
    for gone in range(1, len(chain) - 1):
        found = failures(verify(with_chain(GOOD, *chain[:gone], *chain[gone + 1 :])))
        assert found["gpu0", "nvgpu.chain"] == "bad_chain"
    found = failures(verify(with_chain(GOOD)))
    assert found["gpu0", "nvgpu.chain"] == "malformed"
    found = failures(verify(with_chain(GOOD, b"x", *chain[1:])))
    assert found["gpu0", "nvgpu.chain"] == "malformed"
    found = failures(verify(with_chain(GOOD, *chain, *chain)))
    assert found["gpu0", "nvgpu.chain"] == "malformed"


@pytest.mark.parametrize("cut", [1, 4], ids=["leaf missing", "root alone"])
def test_a_chain_begins_with_a_key_that_signs(cut: int) -> None:
    """A CA's certificate leads to the root as well, but no CA makes reports."""
    good = verify(GpuChain(chain=GPU.chain), policy=BARE)
    assert good.verdict is Finding.AFFIRMING
    found = failures(verify(GpuChain(chain=GPU.chain[cut:]), policy=BARE))
    assert found == {("gpu0", "nvgpu.chain"): "bad_chain"}


def test_a_ca_makes_no_reports() -> None:
    affirmed(evidence(reissued(ca=False)))
    found = failures(verify(evidence(reissued(ca=True))))
    assert found["gpu0", "nvgpu.chain"] == "bad_chain"
    assert found["gpu0", "nvgpu.signature"] == "bad_signature"


def test_a_leaf_signs_and_does_nothing_else() -> None:
    """A CA that may sign reports as well, and a key that may sign nothing."""
    affirmed(evidence(reissued(ca=False, signs=True)))
    for ca, signs in ((True, True), (False, False)):
        found = failures(verify(evidence(reissued(ca=ca, signs=signs))))
        assert found["gpu0", "nvgpu.chain"] == "bad_chain"


def test_another_curve_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    affirmed(evidence(reissued(ca=False)))
    found = failures(verify(evidence(reissued(ca=False, key=key))))
    assert found["gpu0", "nvgpu.chain"] == "bad_chain"


def test_dates_are_a_claim_of_their_own() -> None:
    affirmed(evidence(reissued(ca=False, not_after=NOW + timedelta(days=1))))
    expired = evidence(reissued(ca=False, not_after=NOW - timedelta(seconds=1)))
    result = verify(expired)
    found = failures(result)
    assert found["gpu0", "nvgpu.validity"] == "expired"
    assert ("gpu0", "nvgpu.chain") not in found
    assert found["gpu0", "nvgpu.debug"] == "not_checked"


def test_manifests_signers_sign_no_reports() -> None:
    signer = NVIDIA.rim_issuer.issue("GH100 A01 GSP FMC LF", ca=False)
    gpu = dataclasses.replace(NVIDIA.device(), leaf=signer, fwid=None)
    affirmed(evidence(reissued(ca=False)))
    assert failures(verify(evidence(gpu)))["gpu0", "nvgpu.chain"] == "bad_chain"


def extension(value: bytes, oid: x509.ObjectIdentifier = COMPOSITE_DEVICE_ID) -> x509.ExtensionType:
    return x509.UnrecognizedExtension(oid, value)


def own_extension(gpu: SimulatedGpu) -> bytes:
    return next(
        one.value.value
        for one in gpu.leaf.certificate.extensions
        if isinstance(one.value, x509.UnrecognizedExtension)
    )


def test_critical_extensions_are_refused_unless_they_are_read() -> None:
    value = extension(own_extension(GPU))
    affirmed(evidence(reissued(ca=False, extensions=[(value, True)])))
    unknown = extension(b"\x05\x00", x509.ObjectIdentifier("1.2.3.4"))
    affirmed(evidence(reissued(ca=False, extensions=[(unknown, False)])))
    found = failures(verify(evidence(reissued(ca=False, extensions=[(unknown, True)]))))
    assert found["gpu0", "nvgpu.chain"] == "bad_chain"


@pytest.mark.parametrize("model", ["GH100", "GB100"])
def test_the_certificate_is_for_the_firmware_that_runs(model: str) -> None:
    gpu = NVIDIA.device(model)
    affirmed(evidence(gpu))
    gpu.fwid = digest("another firmware")
    found = failures(verify(evidence(gpu)))
    assert found["gpu0", "nvgpu.firmware"] == "firmware_mismatch"
    assert found["gpus", "nvgpu.all_devices"] == "device_refused"


def test_firmware_has_to_be_certified_where_it_is_named() -> None:
    gpu = reissued(ca=False)
    result = affirmed(evidence(gpu))
    values = {claim.name: claim.value for claim in result.claims}
    assert values["nvgpu.firmware"] == "not_present"
    gpu.fwid = bytes(48)
    assert failures(verify(evidence(gpu)))["gpu0", "nvgpu.firmware"] == "firmware_mismatch"


def test_a_second_firmware_must_be_none() -> None:
    blackwell = NVIDIA.device("GB100")
    affirmed(evidence(blackwell))
    value = own_extension(blackwell)
    for other, code in ((value, None), (value.replace(bytes(48), b"\x01" * 48), "mismatch")):
        gpu = reissued(ca=False, extensions=[(extension(other, TCB_INFO), False)])
        gpu.fwid = blackwell.fwid
        found = failures(verify(evidence(gpu))).get(("gpu0", "nvgpu.firmware"))
        assert found == (None if code is None else "firmware_mismatch")


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value[:-1],
        lambda value: value + b"\x00",
        lambda value: value[:3] + value[6:],
        lambda value: value.replace(b"\x04\x30", b"\x04\x2f"),
        lambda value: value.replace(bytes.fromhex("0402020430"), bytes.fromhex("0402010430")),
        lambda value: b"",
        lambda value: b"\x30\x00",
    ],
)
def test_firmware_that_is_not_readable_is_refused(change: Callable[[bytes], bytes]) -> None:
    value = own_extension(GPU)
    affirmed(evidence(reissued(ca=False, extensions=[(extension(value), False)])))
    broken = evidence(reissued(ca=False, extensions=[(extension(change(value)), False)]))
    assert failures(verify(broken))["gpu0", "nvgpu.firmware"] == "malformed"


def test_a_certificate_names_firmware_once() -> None:
    one = extension(own_extension(GPU))
    two = extension(own_extension(NVIDIA.device("GB100")), TCB_INFO)
    affirmed(evidence(reissued(ca=False, extensions=[(one, False)])))
    both = evidence(reissued(ca=False, extensions=[(one, False), (two, False)]))
    assert failures(verify(both))["gpu0", "nvgpu.firmware"] == "malformed"


def test_certificates_alone_prove_no_device() -> None:
    assert GPU.fwid is not None
    named = Expected(values={"fwid": GPU.fwid})
    result = verify(GpuChain(chain=GPU.chain), policy=BARE, expected=named)
    assert result.verdict is Finding.AFFIRMING
    assert result.facts["links"] == [True] * 4
    assert any("no report" in sentence for sentence in result.not_proven)
    wrong = Expected(values={"fwid": bytes(48)})
    found = failures(verify(GpuChain(chain=GPU.chain), policy=BARE, expected=wrong))
    assert found == {("gpu0", "expected.fwid"): "measurement_mismatch"}
    broken = verify(GpuChain(chain=GPU.chain[:2] + GPU.chain[3:]), policy=BARE, expected=named)
    assert failures(broken) == {
        ("gpu0", "nvgpu.chain"): "bad_chain",
        ("gpu0", "nvgpu.validity"): "not_checked",
        ("gpu0", "expected.fwid"): "unauthenticated",
    }
    assert broken.facts["links"] == [True, False, True]
