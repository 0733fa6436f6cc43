"""A machine's TPM names the banks that are switched on, and nothing else changes."""

from __future__ import annotations

import struct

import pytest

from cloister.image.tpm_relay import without_idle_banks

SHA1, SHA256, SHA384 = 4, 11, 12
ASK = struct.pack(">HIIIII", 0x8001, 22, 0x17A, 5, 0, 64)
ON, OFF = b"\xff\xff\xff", b"\0\0\0"


def listing(*banks: tuple[int, bytes], kind: int = 5, code: int = 0) -> bytes:
    """An answer to `ASK` (TPM 2.0 Part 2, TPML_PCR_SELECTION)."""
    rows = b"".join(struct.pack(">HB", name, len(bits)) + bits for name, bits in banks)
    body = struct.pack(">IBII", code, 0, kind, len(banks)) + rows
    return struct.pack(">HI", 0x8001, 6 + len(body)) + body


MANY = listing((SHA1, OFF), (SHA256, ON), (SHA384, OFF))


def test_banks_without_a_register_are_not_named() -> None:
    assert without_idle_banks(ASK, MANY) == listing((SHA256, ON))
    some = listing((SHA1, b"\0\0\1"), (SHA256, OFF), (SHA384, b"\1\0\0"))
    assert without_idle_banks(ASK, some) == listing((SHA1, b"\0\0\1"), (SHA384, b"\1\0\0"))


@pytest.mark.parametrize(
    "command",
    [
        struct.pack(">HIIIII", 0x8001, 22, 0x17A, 6, 0, 64),
        struct.pack(">HIIIII", 0x8001, 22, 0x17E, 5, 0, 64),
        struct.pack(">HIIIII", 0x8002, 22, 0x17A, 5, 0, 64),
        ASK[:-5],
        b"",
    ],
    ids=["another property", "another command", "with sessions", "short", "empty"],
)
def test_answers_to_other_commands_pass(command: bytes) -> None:
    assert without_idle_banks(ASK, MANY) != MANY
    assert without_idle_banks(command, MANY) == MANY


@pytest.mark.parametrize(
    "answer",
    [
        listing((SHA1, OFF), (SHA256, OFF)),
        listing(),
        listing((SHA1, OFF), (SHA256, ON), kind=6),
        listing((SHA1, OFF), (SHA256, ON), code=0x922),
        MANY + b"\0",
        MANY[:-1],
        struct.pack(">HI", 0x8001, len(MANY) + 1) + MANY[6:] + b"\0",
        struct.pack(">HI", 0x8001, len(MANY) - 1) + MANY[6:-1],
        listing(*[(SHA1, OFF)] * 16, (SHA256, ON)),
        struct.pack(">HII", 0x8001, 10, 0x101),
        b"",
    ],
    ids=[
        *("none on", "none", "another kind", "an error", "a byte behind", "a byte short"),
        *("a byte behind the list", "a list cut short", "too many", "refused", "empty"),
    ],
)
def test_an_answer_that_is_no_such_list_passes(answer: bytes) -> None:
    assert without_idle_banks(ASK, MANY) != MANY
    assert without_idle_banks(ASK, answer) == answer
