"""Every error Cloister raises on purpose, drawn as a tree.

::

    CloisterError
    ├── MalformedError           bytes do not decode
    ├── AuthenticationError      a signature, chain or revocation check failed
    ├── AppraisalError           authenticated, but not what the policy accepts
    ├── UnsupportedError         cannot decide; never a pass
    ├── FetchError               something needed could not be fetched
    ├── ChannelError             the sealed channel failed; one message for every failed open
    │   └── TruncatedError       a sealed message ended before its authenticated end
    ├── KeyReleaseDenied         the broker said no
    ├── BuildError               an image or a measurement could not be made
    ├── ConfigurationError       the operator or caller must change a setting
    ├── EngineError              the engine cannot start or has stopped
    └── SandboxError             the engine's sandbox cannot be set up

Each error carries a stable ``code`` (lower-case words joined by dots) that scripts may
branch on, and a sentence that names what is wrong and who can act. No message holds a
prompt, an answer, a key or a token. Misuse by our own code is ``TypeError`` or
``RuntimeError``, never one of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from cloister.verifier.result import AttestationResult


class CloisterError(Exception):
    """Base of all deliberate errors; ``code`` is stable across releases."""

    default_code: ClassVar[str] = "cloister.error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code if code is not None else self.default_code


class MalformedError(CloisterError):
    """Bytes from outside do not decode as the format they claim to be."""

    default_code = "malformed"


class AuthenticationError(CloisterError):
    """A signature, certificate chain or revocation check failed."""

    default_code = "authentication"


class AppraisalError(CloisterError):
    """Evidence is authentic but the policy does not accept it.

    ``result`` lists every claim with its finding, so that a caller can show all of them.
    """

    default_code = "appraisal"

    def __init__(
        self, message: str, *, code: str | None = None, result: AttestationResult | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.result = result


class UnsupportedError(CloisterError):
    """Cloister cannot decide about this input. Never to be treated as a pass."""

    default_code = "unsupported"


class FetchError(CloisterError):
    """A report, a certificate or other material could not be fetched."""

    default_code = "fetch"


class ChannelError(CloisterError):
    """The sealed channel failed.

    Failed opens all carry the same message and code, so that nobody learns which
    check failed (RFC 9458 section 6).
    """

    default_code = "channel"


class TruncatedError(ChannelError):
    """A sealed message ended before its authenticated final chunk."""

    default_code = "channel.truncated"


class KeyReleaseDenied(CloisterError):  # noqa: N818 - the name is the broker's answer, word for word
    """The broker refused to release a key."""

    default_code = "key_release.denied"


class BuildError(CloisterError):
    """An image or a measurement could not be made."""

    default_code = "build"


class ConfigurationError(CloisterError):
    """A setting, file or argument given by the operator or caller must change."""

    default_code = "configuration"


class EngineError(CloisterError):
    """The engine cannot start, has stopped, or refuses a request.

    ``field`` is the name of the field that it refuses, one of its own table, or None.
    """

    default_code = "engine"

    def __init__(self, message: str, *, code: str | None = None, field: str | None = None) -> None:
        super().__init__(message, code=code)
        self.field = field


class SandboxError(CloisterError):
    """The engine's sandbox cannot be set up on this machine."""

    default_code = "sandbox"
