"""Key policies for AWS KMS that give a key to attested software only.

Sources: AWS KMS Developer Guide, "Condition keys for Nitro Enclaves" and "Condition keys for
NitroTPM"; IAM User Guide, "Policy evaluation logic". What makes such a policy hold, besides the
conditions that everybody copies:

* Each image has a statement of its own. With several values under each register in one statement,
  a mixture of two images would be accepted.
* Nobody gets ``kms:*``. The usual statement for the account's root gives it, and with it lets every
  IAM policy of the account hand out ``kms:Decrypt`` without attestation.
* Attested operations are also denied to everybody whose request has no document of one of the
  images. A denial overrides IAM policies and grants alike.
* Registers of zeros, an enclave in debug mode, are refused here. A NitroTPM's may be zero, which
  says that nothing was added to an image, but not those that the firmware measures into (0 to 7).

Whoever may change the policy (``kms:PutKeyPolicy``: the administrators named) can open the key.
That is the trust that remains, besides AWS'.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cloister.errors import ConfigurationError
from cloister.strictjson import JsonObject

REGISTER_BYTES: Final = 48
_UNTOUCHED: Final = (bytes(REGISTER_BYTES), b"\xff" * REGISTER_BYTES)
_BY_FIRMWARE: Final = range(8)
"""Registers of a NitroTPM that every measured boot extends (`cloister.verifier.appraise`)."""
_ARN: Final = re.compile(r"arn:aws(-[a-z]+)*:iam::[0-9]{12}:(role|user)/[A-Za-z0-9+=,.@_/-]{1,512}")

_ATTESTED: Final = (
    "kms:Decrypt",
    "kms:DeriveSharedSecret",
    "kms:GenerateDataKey",
    "kms:GenerateDataKeyPair",
)
"""Operations with a key that take a recipient."""
_UNATTESTABLE: Final = (
    "kms:CreateGrant",
    "kms:Encrypt",
    "kms:GenerateDataKeyPairWithoutPlaintext",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
)
"""Operations that no key of ours needs. ``ReEncryptFrom`` would turn a ciphertext into one of a
key without conditions."""
_ADMINISTER: Final = (
    "kms:CancelKeyDeletion",
    "kms:DescribeKey",
    "kms:DisableKey",
    "kms:EnableKey",
    "kms:EnableKeyRotation",
    "kms:GetKeyPolicy",
    "kms:GetKeyRotationStatus",
    "kms:ListResourceTags",
    "kms:PutKeyPolicy",
    "kms:ScheduleKeyDeletion",
    "kms:TagResource",
    "kms:UntagResource",
)


class Measured(enum.StrEnum):
    """Who measures, and so how KMS names the registers."""

    ENCLAVE = "PCR"
    NITRO_TPM = "NitroTPMPCR"


_NEEDED: Final = {Measured.ENCLAVE: {0, 1, 2}, Measured.NITRO_TPM: {4, 7}}
"""Registers without which an image is not told from others."""


class Use(enum.StrEnum):
    """What a key is for."""

    SECRET = "secret"  # noqa: S105 - a word, not a password
    """Both directions inside: the enclave makes data keys and opens them."""
    QUESTIONS = "questions"
    """The caller makes data keys, the enclave opens them (`cloister.aws.messages`)."""
    ANSWERS = "answers"
    """The enclave makes data keys, the caller opens them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """Registers that identify one image: by index, 48 bytes each."""

    registers: Mapping[int, bytes]

    def __post_init__(self) -> None:
        if not self.registers or any(not 0 <= index < 32 for index in self.registers):
            raise ConfigurationError("an image is told by its registers", code="kms.policy")
        for value in self.registers.values():
            if len(value) != REGISTER_BYTES:
                raise ConfigurationError(
                    f"a register has {REGISTER_BYTES} bytes", code="kms.policy"
                )


def key_policy(
    *,
    administrators: Sequence[str],
    enclave_role: str,
    images: Sequence[Image],
    use: Use = Use.SECRET,
    caller_role: str | None = None,
    measured: Measured = Measured.ENCLAVE,
) -> JsonObject:
    """The policy of one KMS key.

    `administrators` (ARNs) may change the policy and delete the key, and use nothing;
    `enclave_role` is the role whose credentials the enclave has; `caller_role` whoever is on the
    other side of messages.

    Raises ConfigurationError (``kms.policy``).
    """
    _check_names(administrators, enclave_role, caller_role)
    _check_images(images, measured)
    if (caller_role is None) != (use is Use.SECRET) or caller_role == enclave_role:
        raise ConfigurationError(
            "a key for questions or answers has a caller's role, other than the enclave's; "
            "a key for secrets has none",
            code="kms.policy",
        )
    inside, outside = _operations(use)
    statements: list[JsonObject] = [
        {
            "Sid": "Administer",
            "Effect": "Allow",
            "Principal": {"AWS": list(administrators)},
            "Action": list(_ADMINISTER),
            "Resource": "*",
        }
    ]
    statements += [
        {
            "Sid": f"Image{number}",
            "Effect": "Allow",
            "Principal": {"AWS": enclave_role},
            "Action": list(inside),
            "Resource": "*",
            "Condition": {"StringEqualsIgnoreCase": _conditions(image, measured)},
        }
        for number, image in enumerate(images)
    ]
    if caller_role is not None:
        statements.append(
            {
                "Sid": "Caller",
                "Effect": "Allow",
                "Principal": {"AWS": caller_role},
                "Action": list(outside),
                "Resource": "*",
            }
        )
    statements.append(_denied_unless_attested(images, outside, measured))
    statements.append(
        {
            "Sid": "Never",
            "Effect": "Deny",
            "Principal": "*",
            "Action": list(_UNATTESTABLE),
            "Resource": "*",
        }
    )
    return {"Version": "2012-10-17", "Id": "cloister", "Statement": list(statements)}


def _denied_unless_attested(
    images: Sequence[Image], outside: Sequence[str], measured: Measured
) -> JsonObject:
    """Denies whatever no image may have caused.

    Each image's own statement compares all registers; a denial can only compare one at a time
    without mixing, so it takes the one that every image has and that says most: an enclave's PCR0,
    and a NitroTPM's PCR4, the boot image. A negated condition also holds where the request has no
    document.
    """
    index = min(_NEEDED[measured])
    values = sorted({image.registers[index].hex() for image in images})
    denied: JsonObject = {
        "Sid": "OnlyAttested",
        "Effect": "Deny",
        "Principal": "*",
        "Action": [action for action in _ATTESTED if action not in outside],
        "Resource": "*",
        "Condition": {
            "StringNotEqualsIgnoreCase": {
                f"kms:RecipientAttestation:{measured.value}{index}": list(values)
            }
        },
    }
    return denied


def _operations(use: Use) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """For the enclave, and for the caller."""
    match use:
        case Use.SECRET:
            return ("kms:Decrypt", "kms:GenerateDataKey"), ()
        case Use.QUESTIONS:
            return ("kms:Decrypt",), ("kms:GenerateDataKey",)
        case Use.ANSWERS:
            return ("kms:GenerateDataKey",), ("kms:Decrypt",)


def _conditions(image: Image, measured: Measured) -> JsonObject:
    return {
        f"kms:RecipientAttestation:{measured.value}{index}": value.hex()
        for index, value in sorted(image.registers.items())
    }


def _check_names(administrators: Sequence[str], enclave_role: str, caller_role: str | None) -> None:
    users = [enclave_role, *([] if caller_role is None else [caller_role])]
    if not administrators:
        raise ConfigurationError("a key policy takes an administrator", code="kms.policy")
    if any(_ARN.fullmatch(arn) is None for arn in (*administrators, *users)):
        raise ConfigurationError(
            "people and machines are named by ARNs of roles or users, without wildcards "
            "(arn:aws:iam::111122223333:role/NAME)",
            code="kms.policy",
        )
    if set(users) & set(administrators):
        raise ConfigurationError(
            "who uses the key may not change its policy as well", code="kms.policy"
        )


def _check_images(images: Sequence[Image], measured: Measured) -> None:
    needed = _NEEDED[measured]
    if not images or any(not needed <= image.registers.keys() for image in images):
        listed = ", ".join(f"PCR{index}" for index in sorted(needed))
        raise ConfigurationError(
            f"a key policy takes at least one image, each with {listed}", code="kms.policy"
        )
    for image in images:
        if measured is Measured.ENCLAVE and not all(map(any, image.registers.values())):
            raise ConfigurationError(
                "a register of zeros is an enclave in debug mode, or no measurement at all",
                code="kms.policy",
            )
        untouched = [i for i in _BY_FIRMWARE if image.registers.get(i) in _UNTOUCHED]
        if measured is Measured.NITRO_TPM and untouched:
            raise ConfigurationError(
                f"a NitroTPM whose PCR{untouched[0]} is zeros or ones did not measure its boot",
                code="kms.policy",
            )
