"""What a guest's operator is answered: who is served, under which manifest, and by which key.

The questions come through `cloister.attester.guest_port`. Certificates are taken for the TPM's own
key alone; API keys and manifest from the port or from a start disk, never two different ones.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cloister.attester import link
from cloister.attester.device_tpm import (
    AttestationKey,
    DeviceTpmAttester,
    find_attestation_key,
    read_boot_log,
)
from cloister.attester.endorsement_key import EndorsementKey, find_endorsement_key
from cloister.attester.guest_port import decoded, encoded
from cloister.attester.start_disk import Start
from cloister.attester.tpm import Tpm
from cloister.errors import (
    AuthenticationError,
    ConfigurationError,
    MalformedError,
    UnsupportedError,
)
from cloister.evidence.subject_key import encode_subject_key, parse_subject_key
from cloister.evidence.tpm import parse_public
from cloister.strictjson import JsonObject, expect_list

RUN: Final = Path("/run/cloister")
"""The worker's own folder, in memory."""
MAX_CHAIN: Final = 4
PATIENCE_S: Final = 3600.0
"""How long a guest waits for its operator. One that nobody starts holds its machine for nothing."""


def written(path: Path, content: bytes) -> Path:
    """`path` with `content`, replaced as a whole, for this user alone."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    fresh.replace(path)
    return path


class OperatorState:
    """What the operator's port stores and tells, beside certificates; or the start disk."""

    def __init__(self, *, api_keys: Path, given: Start | None = None) -> None:
        """`given` is what the start disk says: the worker may start, and the port may repeat it."""
        self._api_keys = api_keys
        self._given = given
        self._started = threading.Event()
        self._manifest: bytes | None = None
        self.ready: JsonObject | None = None
        if given is not None:
            written(api_keys, given.api_keys)
            self._manifest = given.manifest
            self._started.set()

    def start(self, manifest: bytes | None) -> None:
        """Let the worker start, under `manifest` if there is one.

        Raises:
            AuthenticationError: it was started already, and nothing about that can be changed
                (code ``guest.started``).
        """
        if self._given is not None and manifest == self._given.manifest:
            return
        if self._started.is_set():
            raise AuthenticationError("the worker was started already", code="guest.started")
        self._manifest = manifest
        self._started.set()

    def wait_for_start(self, within_s: float = PATIENCE_S) -> bytes | None:
        """The manifest's bundle, once the operator has said that the worker may start.

        Raises:
            ConfigurationError: nobody says so in time (code ``guest.no_start``).
        """
        if not self._started.wait(within_s):
            raise ConfigurationError(
                f"nobody started this guest's worker within {within_s:g} seconds (cloister image"
                " start)",
                code="guest.no_start",
            )
        return self._manifest

    def hear(self, connection: socket.socket) -> None:
        """Wait until the worker says where it listens."""
        message = link.receive(connection)
        if message is not None:
            self.ready = message["ready"]

    def store_api_keys(self, table: bytes) -> None:
        """Replace the table of API keys; the worker judges whether it is one.

        Raises:
            AuthenticationError: a start disk brought another one, and two who say different things
                are not chosen between (code ``guest.started``).
        """
        if self._given is not None:
            if table != self._given.api_keys:
                raise AuthenticationError("a start disk says who is served", code="guest.started")
            return
        written(self._api_keys, table)


class Certifiable:
    """The attestation key as a certifying authority meets it: over a connection of its own."""

    def __init__(
        self,
        attester: DeviceTpmAttester,
        tpm: Tpm,
        key: AttestationKey,
        endorsement: EndorsementKey,
    ) -> None:
        self._attester = attester
        self._tpm = tpm
        self._key = key
        self._endorsement = endorsement

    @classmethod
    def open(cls, attester: DeviceTpmAttester, tpm: Tpm) -> Certifiable:
        """Make the same key once more: a primary key is the same whenever it is made."""
        return cls(
            attester,
            tpm,
            find_attestation_key(tpm, provided=()),
            find_endorsement_key(tpm),
        )

    @property
    def names(self) -> JsonObject:
        """What an authority asks for first."""
        return {
            "ek_certificate": encoded(self._endorsement.certificate),
            "ak_public": encoded(self._key.public),
        }

    def activate(self, credential: bytes, secret: bytes) -> bytes:
        """Open what was sealed to this key; TpmError if it was not."""
        return self._tpm.activate_credential(
            self._key.handle, self._endorsement.key, credential, secret
        )

    def certify(self, chain: Sequence[bytes]) -> None:
        """Put `chain` (DER, the key's own certificate first) into reports from now on.

        Raises:
            AuthenticationError: it is for another key (code ``enrolment.other_key``).
            MalformedError: a certificate does not decode.
        """
        keys = [parse_subject_key(der) for der in chain]
        if not keys or keys[0] != encode_subject_key(parse_public(self._key.public).key):
            raise AuthenticationError(
                "the certificate is for another attestation key", code="enrolment.other_key"
            )
        self._attester.replace_chain(tuple(chain))


class Questions:
    """Answers the messages of the operator's port."""

    def __init__(
        self, key: Certifiable | None, state: OperatorState, *, boot_log: Path = RUN / "boot-log"
    ) -> None:
        """`key` is None where hardware certifies its own, and nobody else has to."""
        self._key = key
        self._state = state
        self._boot_log = boot_log

    def __call__(self, message: JsonObject) -> JsonObject:
        """The answer to one message; raises a CloisterError for any that has none."""
        match message.get("ask"):
            case "start":
                given = message.get("manifest")
                self._state.start(None if given is None else decoded(given))
                return {"started": True}
            case "enrolment":
                return self._certifiable().names
            case "activate":
                credential, secret = (
                    decoded(message.get(name)) for name in ("credential", "secret")
                )
                return {"answer": encoded(self._certifiable().activate(credential, secret))}
            case "certificate":
                listed = expect_list(message.get("chain"), "certificates", limit=MAX_CHAIN)
                self._certifiable().certify([decoded(entry) for entry in listed])
                return {"certified": True}
            case "api_keys":
                self._state.store_api_keys(decoded(message.get("table")))
                return {"stored": True}
            case "boot_log":
                return {"log": encoded(read_boot_log(self._boot_log))}
            case "ready":
                return {"ready": self._state.ready}
        raise MalformedError("the operator's port does not know the question")

    def _certifiable(self) -> Certifiable:
        if self._key is None:
            raise UnsupportedError(
                "this machine has no key that waits for a certificate", code="guest.no_key"
            )
        return self._key
