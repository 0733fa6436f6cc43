"""A root key in HashiCorp Vault or OpenBao: their transit engine wraps, the key stays there.

``vault:https://HOST:PORT/MOUNT/KEY?token-file=FILE&ca=FILE&namespace=NAME``; ``ca`` and
``namespace`` may be left out.

Source: Vault's HTTP API, "Transit secrets engine", encrypt and decrypt data; OpenBao's is the
same. The key has to be of a type with associated data (aes256-gcm96 by default), with which the
context is authenticated: an engine that ignored it would unwrap under any context, so both
directions are tried once when the key is opened.
"""

from __future__ import annotations

import base64
import os
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx2

from cloister.broker.root_keys.local import Random, not_ours
from cloister.broker.root_keys.names import read_line, required, split_place
from cloister.errors import ConfigurationError, FetchError, MalformedError
from cloister.strictjson import JsonObject, decode_base64, expect_object, parse_json_object

KIND: Final = "vault"
_OPTIONS: Final = frozenset({"token-file", "ca", "namespace"})
_MAX_ANSWER: Final = 64 * 1024
_MAX_WRAPPED: Final = 4096
TIMEOUT_S: Final = 10.0
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_CIPHERTEXT: Final = re.compile(r"vault:v[0-9]{1,9}:[A-Za-z0-9+/=]{1,4000}")


class VaultRootKey:
    """One transit key. `token` is asked for each request, so that a renewed one is used."""

    def __init__(
        self,
        http: httpx2.Client,
        *,
        base: str,
        mount: str,
        key: str,
        token: Callable[[], str],
        namespace: str | None = None,
    ) -> None:
        self._http = http
        self._base = base
        self._mount = mount
        self._key = key
        self._token = token
        self._namespace = namespace

    def __repr__(self) -> str:
        return f"<root key: {self.name}>"

    @property
    def name(self) -> str:
        """Host, mount and key."""
        return f"{KIND} {urlsplit(self._base).netloc}/{self._mount}/{self._key}"

    def wrap(self, plaintext: bytes, context: bytes) -> bytes:
        """As `RootKey.wrap`: the engine's own ciphertext, ``vault:vN:…``."""
        data = self._ask(
            "encrypt", {"plaintext": _b64(plaintext), "associated_data": _b64(context)}
        )
        text = data.get("ciphertext")
        if not isinstance(text, str) or _CIPHERTEXT.fullmatch(text) is None:
            raise _answer()
        return text.encode("ascii")

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """As `RootKey.unwrap`."""
        text = wrapped[:_MAX_WRAPPED].decode("ascii", "replace")
        if _CIPHERTEXT.fullmatch(text) is None:
            raise not_ours()
        data = self._ask("decrypt", {"ciphertext": text, "associated_data": _b64(context)})
        try:
            return decode_base64(data.get("plaintext"), limit=_MAX_ANSWER, what="the plaintext")
        except MalformedError:
            raise _answer() from None

    def check(self, random: Random) -> None:
        """Try both directions; ConfigurationError (``root_key.context``) if any context does."""
        probe = random(32)
        wrapped = self.wrap(probe, b"cloister.probe.1")
        if self.unwrap(wrapped, b"cloister.probe.1") != probe:
            raise _answer()
        try:
            self.unwrap(wrapped, b"cloister.probe.2")
        except ConfigurationError as error:
            if error.code != "root_key.refused":
                raise
        else:
            raise ConfigurationError(
                "this transit key does not authenticate a context: use one of type aes256-gcm96",
                code="root_key.context",
            )

    def _ask(self, operation: str, request: JsonObject) -> JsonObject:
        headers = {
            "Accept-Encoding": "identity",
            "X-Vault-Token": self._token(),
            "X-Vault-Request": "true",
        }
        if self._namespace is not None:
            headers["X-Vault-Namespace"] = self._namespace
        url = f"{self._base}/v1/{self._mount}/{operation}/{self._key}"
        try:
            with self._http.stream(
                "POST",
                url,
                json=request,
                headers=headers,
                timeout=TIMEOUT_S,
                follow_redirects=False,
            ) as response:
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise _answer()  # a few bytes would become more than the bound in one piece
                content = bytearray()
                for piece in response.iter_bytes():
                    content += piece
                    if len(content) > _MAX_ANSWER:
                        raise _answer()
                status = response.status_code
        except httpx2.HTTPError as error:
            raise FetchError(
                f"the transit engine cannot be reached ({type(error).__name__})",
                code="root_key.unreachable",
            ) from None
        return _data(operation, status, bytes(content))


def open_key(
    rest: str, *, random: Random = os.urandom, transport: httpx2.BaseTransport | None = None
) -> VaultRootKey:
    """Reach the engine and try the key. Raises as `RootKey`, and ``root_key.context``."""
    url, options = split_place(rest, options=_OPTIONS)
    parsed = urlsplit(url)
    mount, _, key = parsed.path.strip("/").rpartition("/")
    named = all(_NAME.fullmatch(part) for part in (*mount.split("/"), key))
    if parsed.scheme != "https" or not parsed.hostname or "@" in parsed.netloc or not named:
        # In clear the token and the master key would cross the network.
        raise ConfigurationError(
            "a transit key is named vault:https://HOST:PORT/MOUNT/KEY?token-file=FILE",
            code="root_key.kind",
        )
    token_file = Path(required(options, "token-file"))
    made = VaultRootKey(
        httpx2.Client(verify=_trusting(options.get("ca")), transport=transport, trust_env=False),
        base=f"https://{parsed.netloc}",
        mount=mount,
        key=key,
        token=lambda: read_line(token_file),
        namespace=options.get("namespace"),
    )
    made.check(random)
    return made


def _trusting(authority: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError):
        raise ConfigurationError(
            "the file of authorities cannot be read, or is not PEM", code="root_key.file"
        ) from None


def _data(operation: str, status: int, content: bytes) -> JsonObject:
    if status == 200:
        try:
            members = parse_json_object(content, limit=_MAX_ANSWER, what="the answer")
            return expect_object(members.get("data"), "the answer's data")
        except MalformedError:
            raise _answer() from None
    if status == 403:
        raise ConfigurationError(
            "the transit engine does not accept this token for this key", code="root_key.secret"
        )
    if status == 404:
        raise ConfigurationError("the transit engine is not there", code="root_key.missing")
    if status == 400 and operation == "decrypt":
        raise not_ours()
    raise FetchError(
        f"the transit engine answers with status {status}", code="root_key.unreachable"
    )


def _answer() -> FetchError:
    return FetchError("the answer is none of a transit engine", code="root_key.unreachable")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
