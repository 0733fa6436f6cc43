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
"""AWS takes 32 KiB of policy; an image with six registers takes 900 bytes of it."""
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
            help="Of enclave images (`cloister image eif describe --reference-values`).",
        ),
    ] = None,
    pcr: Annotated[
        list[str] | None,
        typer.Option("--pcr", help="N=HEX, one image's registers, instead. Repeatable."),
    ] = None,
    nitro_tpm: Annotated[
        bool, typer.Option("--nitro-tpm", help="The registers are those of a NitroTPM.")
    ] = False,
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
        images=_images(reference_values, pcr or [], nitro_tpm=nitro_tpm),
        use=_use(use),
        caller_role=caller_role,
        measured=policies.Measured.NITRO_TPM if nitro_tpm else policies.Measured.ENCLAVE,
    )
    typer.echo(json.dumps(made, indent=2))


def _use(name: str) -> Use:
    from cloister.aws.key_policy import Use

    try:
        return Use(name)
    except ValueError:
        raise ConfigurationError(
            "--use is secret, questions or answers", code="kms.policy"
        ) from None


def _images(path: Path | None, registers: list[str], *, nitro_tpm: bool) -> list[Image]:
    from cloister.aws.key_policy import Image

    if (path is None) == (not registers):
        raise ConfigurationError(
            "name images either by --reference-values or by --pcr", code="kms.policy"
        )
    if path is not None:
        if nitro_tpm:
            raise ConfigurationError("a NitroTPM's registers are named by --pcr", code="kms.policy")
        return _referenced(path)
    found = [_REGISTER.fullmatch(text) for text in registers]
    named = {int(match[1]): bytes.fromhex(match[2]) for match in found if match is not None}
    if len(named) != len(registers):
        raise ConfigurationError(
            "--pcr is N=HEX with 96 digits, and each register once", code="kms.policy"
        )
    return [Image(registers=named)]


def _referenced(path: Path) -> list[Image]:
    """Every combination that the references accept, which are one each for images as built."""
    from itertools import product

    from cloister.aws.key_policy import Image
    from cloister.client.trust import read_reference_values

    images: list[Image] = []
    for reference in read_reference_values(path).platforms:
        if reference.platform != "nitro":
            continue
        names = sorted(reference.registers)
        for values in product(*(reference.registers[name] for name in names)):
            pairs = zip(names, values, strict=True)
            registers = {int(name.removeprefix("pcr")): bytes.fromhex(v) for name, v in pairs}
            images.append(Image(registers=registers))
            if len(images) > MAX_IMAGES:
                raise ConfigurationError(
                    f"a key policy has room for {MAX_IMAGES} images", code="kms.policy"
                )
    if not images:
        raise ConfigurationError(f"{path} lists no Nitro enclave", code="kms.policy")
    return images
