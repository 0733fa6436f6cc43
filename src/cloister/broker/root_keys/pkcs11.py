"""A root key in a hardware security module, by PKCS #11: it never leaves the module.

``pkcs11:token=LABEL;object=LABEL?module-path=FILE&pin-source=FILE``, as RFC 7512 writes it (of its
attributes these four, and all of them). An AES key of 256 bits that the module calls sensitive
and not extractable; AES-GCM (PKCS #11 3.0, section 2.12.3) with a nonce of ours.

Needs the extra ``pkcs11`` (python-pkcs11).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from cloister.broker.root_keys.local import Random, not_ours
from cloister.broker.root_keys.names import read_line, required, split_place
from cloister.errors import ConfigurationError, FetchError

KIND: Final = "pkcs11"
_OPTIONS: Final = frozenset({"module-path", "pin-source"})
_NONCE_SIZE: Final = 12
_TAG_BITS: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    module: str
    pin_file: Path
    token: str
    label: str

    @property
    def name(self) -> str:
        return f"{KIND} token={self.token};object={self.label}"


class Pkcs11RootKey:
    """The key; a session is opened for each use, which are few."""

    def __init__(self, place: _Place, *, random: Random) -> None:
        self._place = place
        self._random = random

    def __repr__(self) -> str:
        return f"<root key: {self.name}>"

    @property
    def name(self) -> str:
        """Token and label."""
        return self._place.name

    def wrap(self, plaintext: bytes, context: bytes) -> bytes:
        """As `RootKey.wrap`: ``nonce ‖ ciphertext ‖ tag``."""
        nonce = self._random(_NONCE_SIZE)
        return nonce + self._use(
            lambda key: key.encrypt(plaintext, **_aes_gcm(nonce, context)), refusing=False
        )

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """As `RootKey.unwrap`."""
        nonce, sealed = wrapped[:_NONCE_SIZE], wrapped[_NONCE_SIZE:]
        if len(sealed) < _TAG_BITS // 8:
            raise not_ours()
        return self._use(lambda key: key.decrypt(sealed, **_aes_gcm(nonce, context)), refusing=True)

    def _use(self, act: Callable[[Any], bytes], *, refusing: bool) -> bytes:
        """`act` on the key; where it fails, what was wrapped is not this key's if `refusing`."""
        errors = _library().exceptions
        with _session(self._place) as session:
            key = _find(session, self._place)
            try:
                return bytes(act(key))
            except errors.PKCS11Error as error:
                if refusing:
                    raise not_ours() from None
                raise _failed(error) from None


def open_key(rest: str, *, random: Random = os.urandom) -> Pkcs11RootKey:
    """Find the key.

    Raises:
        ConfigurationError: there is none (``root_key.missing``), it could be taken out of the
            module (``root_key.extractable``), or the module does not take the PIN.
        FetchError: the module does not work (``root_key.unreachable``).
    """
    place = _parse(rest)
    with _session(place) as session:
        _find(session, place)
    return Pkcs11RootKey(place, random=random)


def make(rest: str, *, random: Random = os.urandom) -> Pkcs11RootKey:
    """Make the key inside the module; raises as `open_key`, and if there is one already."""
    library_ = _library()
    place = _parse(rest)
    attribute = library_.Attribute
    with _session(place, writing=True) as session:
        if _found(session, place):
            raise ConfigurationError(
                f"there is a key {place.label} in this token already", code="root_key.exists"
            )
        try:
            session.generate_key(
                library_.KeyType.AES,
                256,
                label=place.label,
                store=True,
                template={
                    attribute.SENSITIVE: True,
                    attribute.EXTRACTABLE: False,
                    attribute.ENCRYPT: True,
                    attribute.DECRYPT: True,
                    attribute.WRAP: False,
                    attribute.UNWRAP: False,
                    attribute.SIGN: False,
                    attribute.VERIFY: False,
                },
            )
        except library_.exceptions.PKCS11Error as error:
            raise _failed(error) from None
    return open_key(rest, random=random)


def _parse(rest: str) -> _Place:
    path, options = split_place(rest, options=_OPTIONS)
    attributes: dict[str, str] = {}
    for part in path.split(";"):
        name, equals, value = part.partition("=")
        if name not in {"token", "object"} or not equals or not value or name in attributes:
            raise ConfigurationError(
                "a root key in a module is named pkcs11:token=LABEL;object=LABEL"
                "?module-path=FILE&pin-source=FILE",
                code="root_key.kind",
            )
        attributes[name] = unquote(value)
    return _Place(
        module=str(Path(required(options, "module-path")).expanduser()),
        pin_file=Path(required(options, "pin-source").removeprefix("file:")),
        token=required(attributes, "token"),
        label=required(attributes, "object"),
    )


@contextlib.contextmanager
def _session(place: _Place, *, writing: bool = False) -> Iterator[Any]:
    library_ = _library()
    pin = read_line(place.pin_file)
    errors = library_.exceptions
    try:
        token = library_.lib(place.module).get_token(token_label=place.token)
        session = token.open(user_pin=pin, rw=writing)
    except (errors.PinIncorrect, errors.PinLocked, errors.PinInvalid, errors.PinLenRange):
        raise ConfigurationError(
            "the module does not take this PIN", code="root_key.secret"
        ) from None
    except errors.NoSuchToken:
        raise ConfigurationError(
            f"the module has no token {place.token}", code="root_key.missing"
        ) from None
    except (errors.PKCS11Error, RuntimeError, OSError) as error:
        raise _failed(error) from None
    try:
        yield session
    finally:
        session.close()


def _found(session: Any, place: _Place) -> list[Any]:
    library_ = _library()
    wanted = {
        library_.Attribute.LABEL: place.label,
        library_.Attribute.CLASS: library_.ObjectClass.SECRET_KEY,
    }
    return list(session.get_objects(wanted))


def _find(session: Any, place: _Place) -> Any:
    attribute = _library().Attribute
    found = _found(session, place)
    if len(found) != 1:
        raise ConfigurationError(
            f"the token has {len(found)} keys called {place.label}, not one",
            code="root_key.missing",
        )
    key = found[0]
    if key[attribute.EXTRACTABLE] or not key[attribute.SENSITIVE]:
        raise ConfigurationError(
            "the key in the module could be taken out of it: make one that is sensitive and not "
            "extractable (cloister broker root-key make)",
            code="root_key.extractable",
        )
    return key


def _aes_gcm(nonce: bytes, context: bytes) -> dict[str, Any]:
    library_ = _library()
    return {
        "mechanism": library_.Mechanism.AES_GCM,
        "mechanism_param": library_.GCMParams(nonce, context, _TAG_BITS),
    }


def _library() -> Any:
    import pkcs11 as library

    return library


def _failed(error: Exception) -> FetchError:
    return FetchError(
        f"the security module does not work ({type(error).__name__})", code="root_key.unreachable"
    )
