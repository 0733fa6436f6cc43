"""Reference values of an image: from predicted registers to what a verifier compares.

Golden registers join predicted ones here: one accepted state for each firmware and shape of
machine, and nothing that mixes two of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from cloister.evidence.tpm import Alg
from cloister.image.boot_events import secure_boot_policy
from cloister.image.configuration import Platform
from cloister.image.direct_boot import check_pinned
from cloister.image.eif import EifMeasurements
from cloister.image.golden import Golden
from cloister.image.gramine import EnclaveSignature
from cloister.image.image_files import ImageFiles, ImageName
from cloister.image.pcrs import Prediction, extend, predict
from cloister.image.rtmrs import predicted_rtmrs
from cloister.image.secure_boot import SECURE_BOOT_ABSENT, SECURE_BOOT_OFF, SecureBoot
from cloister.verifier.platform_references import PlatformReference, ReferenceImage

BELOW: Final[Mapping[str, tuple[str, ...]]] = {
    "tpm": (),
    "gcp-vtpm": (),
    "gcp-snp": ("measurement",),
    "azure-snp": ("measurement",),
    "azure-tdx": ("mr_td",),
}
"""Platforms whose TPM measures the image, and what their processor measures of the firmware."""
RECORDED_TDX: Final = ("mr_td", "rtmr0")
BY_THE_INIT: Final = ("pcr12", "pcr13", "pcr14", "pcr15")
"""What no firmware decides: additions beside the image, its manifest, and its disks."""


def machine_references(
    files: ImageFiles, golden: Iterable[Golden], *, state: SecureBoot = SECURE_BOOT_OFF
) -> tuple[PlatformReference, ...]:
    """The states of machines that boot an image, as verifiers of its platform compare them.

    Of a platform that starts guests by itself only what a TPM beside it would measure.

    Raises:
        UnsupportedError: the image leaves a disk open that the processor has to name (code
            ``image.unpinned``).
    """
    if files.platform is Platform.NITRO_TPM:
        return (nitro_tpm_reference(files, state),)
    parts = files.parts(state)
    prediction = predict(parts)
    # What other machines' firmware is, in reference values, would only be refused later.
    measured = files.platform in BELOW or files.platform is Platform.GCP_TDX
    of = files.platform if measured else Platform.TPM_BOOT
    golden = [entry for entry in golden if entry.is_of(of)]
    if files.platform is Platform.GCP_TDX:
        check_pinned(files.kernel)
        return google_tdx_references(
            prediction,
            predicted_rtmrs(parts),
            golden,
            files.name,
            secure_boot=state.enabled,
        )
    return tpm_references(
        prediction,
        golden,
        files.name,
        secure_boot=state.enabled,
        platform=files.platform if files.platform in BELOW else "tpm",
    )


def tpm_references(
    prediction: Prediction,
    golden: Iterable[Golden],
    image: ImageName,
    *,
    secure_boot: bool,
    platform: str = "tpm",
) -> tuple[PlatformReference, ...]:
    """One state for each of `golden` that was recorded in the same Secure Boot state.

    `platform` is a key of `BELOW`; of a processor's, those golden values count alone that have what
    it measured. Where Secure Boot is off, PCR 7 may also be that of firmware which was built
    without it.
    """
    predicted: dict[str, bytes | tuple[bytes, ...]] = {
        f"pcr{pcr}": value for pcr, value in prediction.registers.items()
    }
    if not secure_boot:
        absent = extend(e.digests[Alg.SHA256] for e in secure_boot_policy(SECURE_BOOT_ABSENT))
        predicted["pcr7"] = (prediction.registers[7], absent)
    return tuple(
        _reference(
            platform,
            image,
            {
                "pcr0": entry.pcr0,
                "pcr1": entry.pcr1,
                **_recorded(entry, BELOW[platform]),
                **predicted,
            },
            on=entry.name,
        )
        for entry in golden
        if entry.secure_boot is secure_boot and _has(entry, BELOW[platform])
    )


def nitro_tpm_reference(files: ImageFiles, state: SecureBoot) -> PlatformReference:
    """The state of an AWS instance with a NitroTPM, whose document has registers of SHA-384.

    Nothing is recorded: AWS keeps PCR 0 and 1 constant, and no verifier compares them.
    """
    prediction = predict(files.parts(state), bank=Alg.SHA384)
    registers = {f"pcr{pcr}": value for pcr, value in prediction.registers.items()}
    return _reference("nitro-tpm", files.name, registers)


def google_tdx_references(
    prediction: Prediction,
    rtmrs: Mapping[str, tuple[bytes, ...]],
    golden: Iterable[Golden],
    image: ImageName,
    *,
    secure_boot: bool,
) -> tuple[PlatformReference, ...]:
    """The same of guests of TDX with Google's TPM beside it.

    The processor's registers name the image, `rtmrs` of them as predicted. Of the TPM's only those
    are compared that the image itself decides: what Google's firmware measures into the others,
    where it has both, is not known.
    """
    beside = {name: prediction.registers[int(name.removeprefix("pcr"))] for name in BY_THE_INIT}
    return tuple(
        _reference(
            "gcp-tdx", image, {**_recorded(entry, RECORDED_TDX), **rtmrs, **beside}, on=entry.name
        )
        for entry in golden
        if entry.secure_boot is secure_boot and _has(entry, RECORDED_TDX)
    )


def _has(entry: Golden, names: tuple[str, ...]) -> bool:
    return dict(entry.hardware).keys() >= set(names)


def _recorded(entry: Golden, names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: dict(entry.hardware)[name] for name in names}


def nitro_reference(measurements: EifMeasurements, image: ImageName) -> PlatformReference:
    """The state of an enclave started from an image in the enclave format."""
    registers = {
        "pcr0": measurements.pcr0,
        "pcr1": measurements.pcr1,
        "pcr2": measurements.pcr2,
        **({} if measurements.pcr8 is None else {"pcr8": measurements.pcr8}),
    }
    return _reference("nitro", image, registers)


def sgx_reference(enclave: EnclaveSignature, image: ImageName) -> PlatformReference:
    """The state of an SGX enclave with this signature; a debuggable one is a debug image."""
    named = ImageName(name=image.name, version=image.version, debug=image.debug or enclave.debug)
    return _reference("sgx", named, {"mrenclave": enclave.mrenclave})


def snp_reference(digest: bytes, image: ImageName, *, on: str) -> PlatformReference:
    """The state of an SEV-SNP guest with this launch digest."""
    return _reference("snp", image, {"measurement": digest}, on=on)


def tdx_reference(
    mr_td: bytes,
    rtmr0: bytes,
    predicted: Mapping[str, tuple[bytes, ...]],
    image: ImageName,
    on: str,
) -> PlatformReference:
    """The state of a TDX guest; `predicted` are RTMR1 to RTMR3 with the accepted values of each."""
    return _reference("tdx", image, {"mr_td": mr_td, "rtmr0": rtmr0, **predicted}, on=on)


def _reference(
    platform: str,
    image: ImageName,
    registers: Mapping[str, bytes | tuple[bytes, ...]],
    *,
    on: str = "",
) -> PlatformReference:
    listed = {
        name: tuple(sorted(v.hex() for v in (value if isinstance(value, tuple) else (value,))))
        for name, value in sorted(registers.items())
    }
    where = f" on {on}" if on else ""
    return PlatformReference(
        platform=platform,
        name=f"{image.name} {image.version}{where}"[:256],
        registers=listed,
        image=ReferenceImage(name=image.name, version=image.version, debug=image.debug),
    )
