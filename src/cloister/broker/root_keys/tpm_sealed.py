"""A root key sealed to this machine's TPM, and to what it has booted.

``tpm:PATH?pcrs=7+11+14&device=/dev/tpmrm0``: the file holds what the TPM gave out, which only that
TPM opens, and only while these registers of its SHA-256 bank hold what they held. After an update
they hold something else: replace the root key before, or recover by the owners' shares.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from cloister.attester.device_tpm import open_tpm
from cloister.attester.tpm import Tpm
from cloister.attester.tpm_errors import ResponseCode, TpmError
from cloister.attester.tpm_sealing import SealedData, seal, unseal
from cloister.broker.root_keys.local import KEY_SIZE, LocalRootKey, Random
from cloister.broker.root_keys.names import (
    read_private,
    refused,
    required,
    split_place,
    write_new,
)
from cloister.errors import CloisterError, ConfigurationError, FetchError, MalformedError
from cloister.strictjson import (
    decode_base64,
    expect_int,
    expect_keys,
    expect_list,
    parse_json_object,
)

KIND: Final = "tpm"
FORMAT: Final = "cloister.tpm-sealed/1"
_OPTIONS: Final = frozenset({"pcrs", "device"})
_DEVICE: Final = "/dev/tpmrm0"
_PCRS: Final = re.compile(r"[0-9]{1,2}(\+[0-9]{1,2}){0,23}")
_MAX_PCR: Final = 23
_MAX_FILE_BYTES: Final = 4096

OpenTpm = Callable[[Path], Tpm]


def make(
    rest: str, *, random: Random = os.urandom, open_device: OpenTpm = open_tpm
) -> LocalRootKey:
    """Make a new key and seal it to the registers as they are; raises as `open_key`."""
    path, options = _place(rest)
    numbers = required(options, "pcrs")
    pcrs = sorted({int(number) for number in numbers.split("+")}) if _pcrs(numbers) else []
    if not pcrs or pcrs[-1] > _MAX_PCR:
        raise ConfigurationError(
            f"pcrs=7+11+14 names registers from 0 to {_MAX_PCR}", code="root_key.kind"
        )
    key = random(KEY_SIZE)
    with _tpm(options, open_device) as tpm:
        sealed = seal(tpm, key, pcrs)
    write_new(path, _encode(sealed))
    return LocalRootKey(key, name=_name(path), random=random)


def open_key(
    rest: str, *, random: Random = os.urandom, open_device: OpenTpm = open_tpm
) -> LocalRootKey:
    """Unseal it.

    Raises:
        ConfigurationError: another TPM's file, or the registers differ (``root_key.secret``); no
            such file.
        FetchError: there is no TPM, or it does not work.
    """
    path, options = _place(rest)
    try:
        sealed = _parse(read_private(path, limit=_MAX_FILE_BYTES))
    except MalformedError:
        raise refused(path, "it holds nothing that a TPM has sealed") from None
    with _tpm(options, open_device) as tpm:
        key = unseal(tpm, sealed)
    if len(key) != KEY_SIZE:
        raise refused(path, "it holds no root key")
    return LocalRootKey(key, name=_name(path), random=random)


def _pcrs(text: str) -> bool:
    return _PCRS.fullmatch(text) is not None


def _place(rest: str) -> tuple[Path, Mapping[str, str]]:
    named, options = split_place(rest, options=_OPTIONS)
    return Path(named).expanduser(), options


@contextlib.contextmanager
def _tpm(options: Mapping[str, str], open_device: OpenTpm) -> Iterator[Tpm]:
    """The machine's TPM; what it says in the words of the root key's protocol."""
    try:
        tpm = open_device(Path(options.get("device", _DEVICE)))
    except CloisterError as error:
        raise FetchError(str(error), code="root_key.unreachable") from None
    try:
        yield tpm
    except TpmError as error:
        match error.response_code:
            case ResponseCode.POLICY_FAIL:
                why = "the registers are not what they were: this machine has booted other software"
            case ResponseCode.INTEGRITY:
                why = "another TPM has sealed it, or it was altered"
            case _:
                raise FetchError(str(error), code="root_key.unreachable") from None
        raise ConfigurationError(
            f"the TPM does not unseal the root key: {why}", code="root_key.secret"
        ) from None
    finally:
        tpm.close()


def _encode(sealed: SealedData) -> bytes:
    members = {
        "format": FORMAT,
        "pcrs": list(sealed.pcrs),
        "private": base64.b64encode(sealed.private).decode("ascii"),
        "public": base64.b64encode(sealed.public).decode("ascii"),
    }
    return json.dumps(members, indent=2).encode() + b"\n"


def _parse(content: bytes) -> SealedData:
    what = "the sealed root key"
    members = parse_json_object(content, limit=_MAX_FILE_BYTES, what=what)
    expect_keys(members, what, required={"format", "pcrs", "private", "public"})
    if members["format"] != FORMAT:
        raise MalformedError(f"{what} is of another format")
    pcrs = [
        expect_int(pcr, what, high=_MAX_PCR)
        for pcr in expect_list(members["pcrs"], what, limit=_MAX_PCR + 1)
    ]
    return SealedData(
        pcrs=tuple(sorted(set(pcrs))),
        private=decode_base64(members["private"], limit=1024, what=what),
        public=decode_base64(members["public"], limit=1024, what=what),
    )


def _name(path: Path) -> str:
    return f"{KIND} {path.name}"
