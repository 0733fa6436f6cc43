"""``cloister deploy aws key-policy``: the policy of a KMS key that only attested software uses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from cloister.aws.key_policy import Image, Use

MAX_IMAGES = 32
"""More do not fit: an image with six registers takes 900 bytes."""
MAX_POLICY_BYTES = 32 * 1024
"""AWS KMS Developer Guide, "Resource quotas": key policy document size."""
_MANIFEST = 13
"""The register that an image extends with the manifest's digest, and with nothing else."""
_REGISTER = re.compile(r"([0-9]{1,2})=([0-9A-Fa-f]{96})")


def key_policy(
    *,
    administrator: Annotated[
        list[str], typer.Option("--administrator", help="ARN; may change the policy. Repeatable.")
    ],
    enclave_role: Annotated[
        str, typer.Option("--enclave-role", help="ARN of the role whose credentials it has.")
    ],
    reference_values: Annotated[
        Path | None,
        typer.Option(
            "--reference-values",
            help="Of enclave images (`cloister image eif describe --reference-values`), or with"
            " --nitro-tpm of images for a NitroTPM (`cloister image build`).",
        ),
    ] = None,
    pcr: Annotated[
        list[str] | None,
        typer.Option("--pcr", help="N=HEX, one image's registers, instead. Repeatable."),
    ] = None,
    nitro_tpm: Annotated[
        bool, typer.Option("--nitro-tpm", help="The registers are those of a NitroTPM.")
    ] = False,
    manifest: Annotated[
        list[str] | None,
        typer.Option(
            "--manifest",
            help="SHA-256 of the manifest that the instance is started with (--nitro-tpm and"
            " --reference-values). Repeatable. Without it: an instance without a manifest.",
        ),
    ] = None,
    use: Annotated[str, typer.Option("--use", help="secret, questions or answers.")] = "secret",
    caller_role: Annotated[
        str | None,
        typer.Option("--caller-role", help="ARN of who asks, for questions and answers."),
    ] = None,
) -> None:
    """Print the policy, for `aws kms create-key --policy`. Nothing is sent anywhere."""
    from cloister.aws import key_policy as policies

    made = policies.key_policy(
        administrators=administrator,
        enclave_role=enclave_role,
        images=_images(reference_values, pcr or [], manifest or [], nitro_tpm=nitro_tpm),
        use=_use(use),
        caller_role=caller_role,
        measured=policies.Measured.NITRO_TPM if nitro_tpm else policies.Measured.ENCLAVE,
    )
    text = json.dumps(made, indent=2)
    if len(text) > MAX_POLICY_BYTES:
        raise ConfigurationError(
            f"the policy has {len(text)} bytes, and AWS takes {MAX_POLICY_BYTES}: name fewer"
            " images, or fewer manifests",
            code="kms.policy",
        )
    typer.echo(text)


def _use(name: str) -> Use:
    from cloister.aws.key_policy import Use

    try:
        return Use(name)
    except ValueError:
        raise ConfigurationError(
            "--use is secret, questions or answers", code="kms.policy"
        ) from None


def _images(
    path: Path | None, registers: list[str], manifests: list[str], *, nitro_tpm: bool
) -> list[Image]:
    from cloister.aws.key_policy import Image

    if (path is None) == (not registers):
        raise ConfigurationError(
            "name images either by --reference-values or by --pcr", code="kms.policy"
        )
    if manifests and (path is None or not nitro_tpm):
        raise ConfigurationError(
            "--manifest goes with --nitro-tpm and --reference-values: it is what PCR13 has to hold"
            " instead of the zeros of an instance without one",
            code="kms.policy",
        )
    if path is not None:
        if not nitro_tpm:
            return _referenced(path, "nitro")
        images = _referenced(path, "nitro-tpm")
        digests = dict.fromkeys(map(_digest, manifests))
        started = [_started(image, one) for image in images for one in digests] or images
        if len(started) > MAX_IMAGES:
            raise _too_many()
        return started
    found = [_REGISTER.fullmatch(text) for text in registers]
    named = {int(match[1]): bytes.fromhex(match[2]) for match in found if match is not None}
    if len(named) != len(registers):
        raise ConfigurationError(
            "--pcr is N=HEX with 96 digits, and each register once", code="kms.policy"
        )
    return [Image(registers=named)]


def _digest(manifest: str) -> bytes:
    from cloister.deploy import words

    found = words.digest(manifest)
    if not any(found):
        raise ConfigurationError(
            "--manifest is the SHA-256 of a manifest, and zeros are none's: leave it out for an"
            " instance without a manifest",
            code="kms.policy",
        )
    return found


def _started(image: Image, manifest: bytes) -> Image:
    """`image` where it was started with the manifest of this digest."""
    from cloister.aws.key_policy import Image
    from cloister.verifier.appraise.worker import manifest_register

    value = manifest_register("nitro-tpm", manifest)
    if any(image.registers[_MANIFEST]):
        raise ConfigurationError(
            "these reference values list a PCR13 that holds a manifest already: leave out"
            " --manifest, or take those of the image as it was built",
            code="kms.policy",
        )
    return Image(registers={**image.registers, _MANIFEST: value})


def _referenced(path: Path, platform: str) -> list[Image]:
    """Every combination that the references accept, which are one each for images as built."""
    from itertools import product

    from cloister.aws.key_policy import Image
    from cloister.client.trust import read_reference_values

    images: list[Image] = []
    references = read_reference_values(path).platforms
    for reference in references:
        if reference.platform != platform:
            continue
        if reference.image is not None and reference.image.debug:
            raise ConfigurationError(
                f"{reference.name} is a debug image: whoever looks into it has the key",
                code="kms.policy",
            )
        names = sorted(reference.registers)
        for values in product(*(reference.registers[name] for name in names)):
            pairs = zip(names, values, strict=True)
            registers = {int(name.removeprefix("pcr")): bytes.fromhex(v) for name, v in pairs}
            images.append(Image(registers=registers))
            if len(images) > MAX_IMAGES:
                raise _too_many()
    if images:
        return images
    listed = {reference.platform for reference in references}
    if platform == "nitro":
        hint = ", but images for a NitroTPM: add --nitro-tpm" if "nitro-tpm" in listed else ""
        raise ConfigurationError(f"{path} lists no Nitro enclave{hint}", code="kms.policy")
    hint = ", but enclaves: leave out --nitro-tpm" if "nitro" in listed else ""
    raise ConfigurationError(f"{path} lists no image for a NitroTPM{hint}", code="kms.policy")


def _too_many() -> ConfigurationError:
    return ConfigurationError(f"a key policy has room for {MAX_IMAGES} images", code="kms.policy")
