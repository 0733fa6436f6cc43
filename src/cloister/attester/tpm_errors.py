"""The error a TPM answers with, by the codes of TPM 2.0 Part 2 section 6.6."""

from __future__ import annotations

import enum
from typing import ClassVar

from cloister.errors import CloisterError


class ResponseCode(enum.IntEnum):
    """``TPM_RC`` values told apart here; format-one codes without handle or parameter number."""

    SUCCESS = 0x000
    VALUE = 0x084
    HANDLE = 0x08B
    SIZE = 0x095
    AUTH_FAIL = 0x08E
    POLICY_FAIL = 0x09D
    INTEGRITY = 0x09F
    BAD_AUTH = 0x0A2
    INITIALIZE = 0x100
    COMMAND_CODE = 0x143
    NV_SPACE = 0x14B
    NV_DEFINED = 0x14C
    YIELDED = 0x908
    TESTING = 0x90A
    RETRY = 0x922


RESUBMIT = frozenset({ResponseCode.RETRY, ResponseCode.TESTING, ResponseCode.YIELDED})
"""Warnings after which the same command is sent again (Part 2 section 6.6.3)."""

_FORMAT_ONE = 0x080


def base_code(response_code: int) -> int:
    """Strip the number of the handle, session or parameter that a format-one code carries."""
    if response_code & _FORMAT_ONE:
        return response_code & 0x0BF
    return response_code


class TpmError(CloisterError):
    """A TPM refused a command, or cannot be reached (code ``tpm.io``).

    Apart from `cloister.errors` because only the attester meets it, and because callers tell
    refusals apart by `response_code`.
    """

    default_code: ClassVar[str] = "tpm.refused"

    def __init__(
        self, message: str, *, code: str | None = None, response_code: int | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.response_code = None if response_code is None else base_code(response_code)

    @classmethod
    def from_response(cls, command: str, response_code: int) -> TpmError:
        """The error for a response to `command` other than success."""
        try:
            name = ResponseCode(base_code(response_code)).name
        except ValueError:
            name = "TPM_RC"
        return cls(
            f"the TPM refused {command}: {name} (0x{response_code:03x})",
            response_code=response_code,
        )
