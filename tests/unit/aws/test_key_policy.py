from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloister.aws.key_policy import Image, Measured, Use, key_policy
from cloister.cli.main import main
from cloister.errors import ConfigurationError
from cloister.verifier.platform_references import PlatformReference
from cloister.verifier.reference_values import ReferenceValues
from support.kms import ADMIN, CALLER, ENCLAVE, image

GOOD: dict[str, Any] = {"administrators": [ADMIN], "enclave_role": ENCLAVE, "images": [image()]}


def statements(policy: Any) -> dict[str, Any]:
    return {statement["Sid"]: statement for statement in policy["Statement"]}


def test_a_secrets_policy_in_full() -> None:
    found = statements(key_policy(**GOOD))
    assert found.keys() == {"Administer", "Image0", "OnlyAttested", "Never"}
    registers = {
        f"kms:RecipientAttestation:PCR{index}": value.hex()
        for index, value in image().registers.items()
    }
    assert found["Image0"] == {
        "Sid": "Image0",
        "Effect": "Allow",
        "Principal": {"AWS": ENCLAVE},
        "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
        "Resource": "*",
        "Condition": {"StringEqualsIgnoreCase": registers},
    }
    assert found["OnlyAttested"] == {
        "Sid": "OnlyAttested",
        "Effect": "Deny",
        "Principal": "*",
        "Action": [
            "kms:Decrypt",
            "kms:DeriveSharedSecret",
            "kms:GenerateDataKey",
            "kms:GenerateDataKeyPair",
        ],
        "Resource": "*",
        # Negated and without "IfExists": it also holds where a request has no document.
        "Condition": {
            "StringNotEqualsIgnoreCase": {
                "kms:RecipientAttestation:PCR0": [image().registers[0].hex()]
            }
        },
    }
    assert found["Never"] == {
        "Sid": "Never",
        "Effect": "Deny",
        "Principal": "*",
        "Action": [
            "kms:CreateGrant",
            "kms:Encrypt",
            "kms:GenerateDataKeyPairWithoutPlaintext",
            "kms:GenerateDataKeyWithoutPlaintext",
            "kms:ReEncryptFrom",
            "kms:ReEncryptTo",
        ],
        "Resource": "*",
    }
    administered = found["Administer"]["Action"]
    used = {"kms:Decrypt", "kms:GenerateDataKey", "kms:CreateGrant", "kms:*", "kms:ReEncryptFrom"}
    assert not set(administered) & used
    assert "kms:PutKeyPolicy" in administered


@pytest.mark.parametrize(
    ("use", "inside", "outside"),
    [
        (Use.QUESTIONS, ["kms:Decrypt"], ["kms:GenerateDataKey"]),
        (Use.ANSWERS, ["kms:GenerateDataKey"], ["kms:Decrypt"]),
    ],
)
def test_each_side_of_a_conversation_has_its_half(
    use: Use, inside: list[str], outside: list[str]
) -> None:
    found = statements(key_policy(**GOOD, use=use, caller_role=CALLER))
    assert found["Image0"]["Action"] == inside
    assert found["Caller"]["Action"] == outside
    assert not set(outside) & set(found["OnlyAttested"]["Action"])
    assert set(inside) <= set(found["OnlyAttested"]["Action"])


@pytest.mark.parametrize(
    "changed",
    [
        {"administrators": []},
        {"images": []},
        {"administrators": ["*"]},
        {"administrators": ["arn:aws:iam::111122223333:root"]},
        {"enclave_role": "arn:aws:iam::111122223333:role/*"},
        {"enclave_role": ADMIN},
        {"caller_role": CALLER},
        {"use": Use.ANSWERS},
        {"use": Use.ANSWERS, "caller_role": ENCLAVE},
        {"use": Use.ANSWERS, "caller_role": ADMIN},
        {"images": [Image(registers={0: bytes([1]) * 48})]},
        {"measured": Measured.NITRO_TPM},
    ],
)
def test_a_policy_that_would_not_hold_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        key_policy(**{**GOOD, **changed})
    assert caught.value.code == "kms.policy"


def test_a_denial_compares_the_boot_image_where_a_nitro_tpm_measured_it() -> None:
    """The register before it is the same for most images."""
    registers = {index: bytes([index + 1]) * 48 for index in (2, 4, 7, 8)}
    both = [Image(registers=registers), Image(registers={**registers, 5: bytes([9]) * 48})]
    found = statements(key_policy(**{**GOOD, "images": both}, measured=Measured.NITRO_TPM))
    condition = found["OnlyAttested"]["Condition"]["StringNotEqualsIgnoreCase"]
    assert list(condition) == ["kms:RecipientAttestation:NitroTPMPCR4"]


@pytest.mark.parametrize("registers", [{}, {0: bytes([1]) * 32}, {32: bytes([1]) * 48}])
def test_an_image_has_registers_that_say_something(registers: dict[int, bytes]) -> None:
    with pytest.raises(ConfigurationError):
        Image(registers=registers)


def test_registers_are_zero_only_where_that_says_something() -> None:
    enclave = dict(image().registers)
    key_policy(**{**GOOD, "images": [Image(registers={**enclave, 8: bytes([8]) * 48})]})
    for index in (0, 1, 2, 8):
        with pytest.raises(ConfigurationError, match="debug mode") as caught:
            key_policy(**{**GOOD, "images": [Image(registers={**enclave, index: bytes(48)})]})
        assert caught.value.code == "kms.policy"
    tpm = {**{index: bytes([index + 1]) * 48 for index in range(16)}, 12: bytes(48), 13: bytes(48)}
    made: dict[str, Any] = {**GOOD, "measured": Measured.NITRO_TPM}
    found = statements(key_policy(**{**made, "images": [Image(registers=tpm)]}))
    (compared,) = found["Image0"]["Condition"].values()
    assert compared["kms:RecipientAttestation:NitroTPMPCR12"] == "00" * 48
    for index in range(8):
        for untouched in (bytes(48), b"\xff" * 48):
            with pytest.raises(ConfigurationError, match=f"PCR{index} .* measure its boot"):
                key_policy(**{**made, "images": [Image(registers={**tpm, index: untouched})]})


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        main(["deploy", "aws", "key-policy", *words])
    code = left.value.code
    assert isinstance(code, int)
    return code, capsys.readouterr().out


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    named = ("--administrator", ADMIN, "--enclave-role", ENCLAVE)
    registers = image().registers
    pcrs = [
        word for index, value in registers.items() for word in ("--pcr", f"{index}={value.hex()}")
    ]
    code, out = run(capsys, *named, *pcrs)
    assert code == 0
    assert json.loads(out) == key_policy(**GOOD)
    references = tmp_path / "reference-values.json"
    reference = PlatformReference(
        platform="nitro",
        name="image",
        registers={f"pcr{index}": (value.hex(),) for index, value in registers.items()},
    )
    references.write_text(ReferenceValues.from_platforms(reference).dump_json())
    code, out = run(capsys, *named, "--reference-values", str(references))
    assert json.loads(out) == key_policy(**GOOD)
    assert run(capsys, *named)[0] == 2
    assert run(capsys, *named, "--pcr", "0=00")[0] == 2
    assert run(capsys, *named, *pcrs, "--use", "other")[0] == 2
    assert run(capsys, *named, *pcrs, *pcrs[:2])[0] == 2
