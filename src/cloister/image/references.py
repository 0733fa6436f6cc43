"""Reference values of an image: from predicted registers to what a verifier compares.

Golden registers join predicted ones here: one accepted state for each firmware and shape of
machine, and nothing that mixes two of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cloister.evidence.tpm import Alg
from cloister.image.boot_events import secure_boot_policy
from cloister.image.eif import EifMeasurements
from cloister.image.golden import Golden
from cloister.image.gramine import EnclaveSignature
from cloister.image.image_files import ImageFiles, ImageName
from cloister.image.pcrs import Prediction, extend, predict
from cloister.image.secure_boot import SECURE_BOOT_ABSENT, SecureBoot
from cloister.verifier.platform_references import PlatformReference, ReferenceImage


def tpm_references(
    prediction: Prediction, golden: Iterable[Golden], image: ImageName, *, secure_boot: bool
) -> tuple[PlatformReference, ...]:
    """One state for each of `golden` that was recorded in the same Secure Boot state.

    Where Secure Boot is off, PCR 7 may also be that of firmware which was built without it.
    """
    predicted: dict[str, bytes | tuple[bytes, ...]] = {
        f"pcr{pcr}": value for pcr, value in prediction.registers.items()
    }
    if not secure_boot:
        absent = extend(e.digests[Alg.SHA256] for e in secure_boot_policy(SECURE_BOOT_ABSENT))
        predicted["pcr7"] = (prediction.registers[7], absent)
    return tuple(
        _reference(
            "tpm",
            image,
            {"pcr0": entry.pcr0, "pcr1": entry.pcr1, **predicted},
            on=entry.name,
        )
        for entry in golden
        if entry.secure_boot is secure_boot
    )


def nitro_tpm_reference(files: ImageFiles, state: SecureBoot) -> PlatformReference:
    """The state of an AWS instance with a NitroTPM, whose document has registers of SHA-384.

    Nothing is recorded: AWS keeps PCR 0 and 1 constant, and no verifier compares them.
    """
    prediction = predict(files.parts(state), bank=Alg.SHA384)
    registers = {f"pcr{pcr}": value for pcr, value in prediction.registers.items()}
    return _reference("nitro-tpm", files.name, registers)


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
