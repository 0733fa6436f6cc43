"""A root key in a file, sealed by a passphrase or by another file.

``sealed-file:PATH?passphrase-file=FILE`` or ``sealed-file:PATH?key-file=FILE``. A passphrase is
stretched by scrypt (RFC 7914); a key file has 32 to 4096 random bytes, and goes through
HKDF-SHA256. Without either, the passphrase is asked for on the terminal.

The file protects from who reads it alone. Whoever reads both files, or the broker's memory, has
the key: keep the second one elsewhere (a systemd credential, a removable disk).
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from cloister.broker.root_keys.local import KEY_SIZE, LocalRootKey, Random
from cloister.broker.root_keys.names import (
    read_line,
    read_private,
    refused,
    split_place,
    write_new,
)
from cloister.channel.hpke import hkdf_expand, hkdf_extract
from cloister.errors import ConfigurationError, MalformedError
from cloister.strictjson import (
    JsonObject,
    canonical,
    decode_base64,
    expect_int,
    expect_keys,
    expect_str,
    parse_json_object,
)

KIND: Final = "sealed-file"
FORMAT: Final = "cloister.root-key/1"
OPTIONS: Final = frozenset({"passphrase-file", "key-file"})
MIN_PASSPHRASE: Final = 12
"""Characters. scrypt makes a guess dear, not a short passphrase long."""
MIN_KEY_FILE_BYTES: Final = 32

LOG2_N: Final = 17
"""128 MiB and some tenths of a second for each guess, with r = 8."""
MAX_LOG2_N: Final = 20
"""What a file may ask for: a gigabyte."""
_BLOCK_SIZE: Final = 8
_NONCE_SIZE: Final = 12
_SALT_SIZE: Final = 32
_MAX_FILE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Passphrase:
    """What people remember, and how dear a guess is."""

    text: str
    log2_n: int = LOG2_N

    def __repr__(self) -> str:
        return "<Passphrase>"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFile:
    """Random bytes that lie elsewhere."""

    content: bytes

    def __repr__(self) -> str:
        return "<KeyFile>"


Opener = Passphrase | KeyFile
Ask = Callable[[str], str]


def make(rest: str, *, ask: Ask, random: Random = os.urandom) -> LocalRootKey:
    """Make a new key in a new file. ConfigurationError (``root_key.file``, ``root_key.secret``)."""
    path, opener = _place(rest, ask, new=True)
    key = random(KEY_SIZE)
    write_new(path, seal_key(key, opener, random=random))
    return LocalRootKey(key, name=_name(path), random=random)


def open_key(rest: str, *, ask: Ask, random: Random = os.urandom) -> LocalRootKey:
    """Open it; ConfigurationError for another passphrase, or a file that is none."""
    path, opener = _place(rest, ask, new=False)
    try:
        key = unseal_key(read_private(path, limit=_MAX_FILE_BYTES), opener)
    except MalformedError:
        raise refused(path, "it holds no sealed root key") from None
    return LocalRootKey(key, name=_name(path), random=random)


def seal_key(key: bytes, opener: Opener, *, random: Random) -> bytes:
    """The file's content: JSON, the sealed key authenticated together with everything else."""
    salt, nonce = random(_SALT_SIZE), random(_NONCE_SIZE)
    header: JsonObject = {"format": FORMAT, "salt": _b64(salt), "nonce": _b64(nonce)}
    if isinstance(opener, Passphrase):
        header |= {"kdf": "scrypt", "log2_n": opener.log2_n}
    else:
        header |= {"kdf": "hkdf-sha256"}
    sealed = AESGCM(_stretched(opener, salt)).encrypt(nonce, key, canonical(header))
    return json.dumps({**header, "sealed": _b64(sealed)}, indent=2).encode() + b"\n"


def unseal_key(content: bytes, opener: Opener) -> bytes:
    """The key.

    Raises:
        MalformedError: no such file.
        ConfigurationError: ``root_key.secret``: the passphrase or key file is another one, or the
            file was altered; which of them nobody can tell.
    """
    what = "the sealed root key"
    members = parse_json_object(content, limit=_MAX_FILE_BYTES, what=what)
    required = {"format", "salt", "nonce", "kdf", "sealed"}
    expect_keys(members, what, required=required, optional={"log2_n"})
    kdf = expect_str(members["kdf"], what, limit=16)
    if members["format"] != FORMAT or (kdf == "scrypt") is not ("log2_n" in members):
        raise MalformedError(f"{what} is of another format")
    if kdf == "scrypt":
        log2_n = expect_int(members["log2_n"], what, low=1, high=MAX_LOG2_N)
        if not isinstance(opener, Passphrase):
            raise _wrong("is opened by a passphrase")
        opener = Passphrase(text=opener.text, log2_n=log2_n)
    elif kdf != "hkdf-sha256" or not isinstance(opener, KeyFile):
        raise _wrong("is opened by a key file")
    salt = decode_base64(members["salt"], limit=_SALT_SIZE, what=what)
    nonce = decode_base64(members["nonce"], limit=_NONCE_SIZE, what=what)
    sealed = decode_base64(members["sealed"], limit=KEY_SIZE + 16, what=what)
    header = {name: value for name, value in members.items() if name != "sealed"}
    try:
        return AESGCM(_stretched(opener, salt)).decrypt(nonce, sealed, canonical(header))
    except (InvalidTag, ValueError):
        raise _wrong("does not open: another passphrase or key file, or an altered file") from None


def _stretched(opener: Opener, salt: bytes) -> bytes:
    if isinstance(opener, Passphrase):
        scrypt = Scrypt(salt=salt, length=32, n=1 << opener.log2_n, r=_BLOCK_SIZE, p=1)
        return scrypt.derive(opener.text.encode("utf-8"))
    return hkdf_expand(hkdf_extract(salt, opener.content), FORMAT.encode(), 32)


def _place(rest: str, ask: Ask, *, new: bool) -> tuple[Path, Opener]:
    named, options = split_place(rest, options=OPTIONS)
    path = Path(named).expanduser()
    if len(options) > 1:
        raise ConfigurationError(
            "a sealed root key is opened by a passphrase or a key file, not by both",
            code="root_key.kind",
        )
    if "key-file" in options:
        content = read_private(Path(options["key-file"]))
        if len(content) < MIN_KEY_FILE_BYTES:
            raise _wrong(f"needs a key file of at least {MIN_KEY_FILE_BYTES} random bytes")
        return path, KeyFile(content=content)
    if "passphrase-file" in options:
        text = read_line(Path(options["passphrase-file"]))
    else:
        text = ask(f"Passphrase of {path}: ")
        if new and ask("Once more: ") != text:
            raise _wrong("got two different passphrases")
    if new and len(text) < MIN_PASSPHRASE:
        raise _wrong(f"needs a passphrase of at least {MIN_PASSPHRASE} characters")
    return path, Passphrase(text=text)


def _name(path: Path) -> str:
    return f"{KIND} {path.name}"


def _wrong(why: str) -> ConfigurationError:
    return ConfigurationError(f"the sealed root key {why}", code="root_key.secret")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
