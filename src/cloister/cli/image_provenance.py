"""The signed provenance of an image: who says that they built it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.errors import AuthenticationError, BuildError, ConfigurationError, MalformedError
from cloister.strictjson import canonical, parse_json_object

if TYPE_CHECKING:
    from cloister.manifest.owners import KeyOwner

MAX_BYTES: Final = 16 * 1024 * 1024
_KEY: Final = "image.signing_key"


def provenance_signer(path: Path) -> Callable[[bytes], bytes]:
    """What makes a signed envelope of a provenance, by the key (PEM) at `path`.

    The key is read now: a build takes minutes. ConfigurationError (``image.signing_key``) where it
    cannot be used.
    """
    from cloister.image.bill import PAYLOAD_TYPE
    from cloister.manifest.dsse import Envelope
    from cloister.manifest.signing import KeySigner, add_signature, load_private_key

    data = _read(path, _KEY)
    try:
        signer = KeySigner.of("builder", load_private_key(data))
    except ConfigurationError as error:
        raise ConfigurationError(f"{path} cannot sign: {error}", code=_KEY) from None

    def sign(payload: bytes) -> bytes:
        envelope = Envelope(payload_type=PAYLOAD_TYPE, payload=payload)
        return canonical(add_signature(envelope, signer).to_json()) + b"\n"

    return sign


def check_signed(path: Path, provenance: bytes, signer: Path | None) -> None:
    """That the envelope at `path` holds this very `provenance`, and that `signer` signed it.

    Without `signer`, a public key (PEM), whose signature it is is not looked at.

    Raises:
        BuildError: it holds something else (code ``image.differs``).
        AuthenticationError: the key did not sign it (code ``image.signature``).
        ConfigurationError: a file cannot be used (codes ``image.check``, ``image.signing_key``).
    """
    from cloister.image.bill import PAYLOAD_TYPE
    from cloister.manifest.dsse import parse_envelope
    from cloister.manifest.signatures import LoadedKeys, Signatures

    try:
        written = parse_json_object(_read(path, "image.check"), limit=MAX_BYTES, what=path.name)
        envelope = parse_envelope(written, payload_type=PAYLOAD_TYPE, limit=MAX_BYTES)
    except MalformedError as error:
        raise BuildError(f"{path}: {error}", code="image.differs") from None
    if envelope.payload != provenance:
        raise BuildError(
            f"{path} is about another build: what is signed there is not the provenance of this"
            " image",
            code="image.differs",
        )
    if signer is None:
        return
    owner = _owner(signer)
    try:
        signed = bool(Signatures(envelope, None, LoadedKeys()).by([owner]))
    except AuthenticationError:
        signed = False
    if not signed:
        raise AuthenticationError(
            f"{path} has no signature by {signer} that holds", code="image.signature"
        )


def require_signature(path: Path, signer: Path) -> None:
    """That there are an envelope and a key to check it by, before a build that takes minutes.

    ConfigurationError (``image.check``, ``image.signing_key``).
    """
    _read(path, "image.check")
    _owner(signer)


def _owner(signer: Path) -> KeyOwner:
    from cloister.manifest.signing import load_owner

    data = _read(signer, _KEY)
    try:
        return load_owner(signer.stem, data)
    except ConfigurationError as error:
        raise ConfigurationError(f"{signer}: {error}", code=_KEY) from None


def _read(path: Path, code: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", code=code) from None
