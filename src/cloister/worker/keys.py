"""The worker's keys: made in memory, never written, replaced every hour.

One Ed25519 key signs receipts from start to stop, and where attested TLS is switched on another
key ends it; every keyset lists both. Request keys come in generations: each has
one key pair per KEM, a keyset of its own, and per key the memory of what it has opened. A
generation's age runs on the steady clock, so a host that sets the clock back cannot make a key
live longer; what clients see as ``not_after`` is wall time, which they check on their own clock.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.channel.hpke import Kem
from cloister.channel.keyset import (
    OHTTP_ALGORITHM,
    RECEIPT_ALGORITHM,
    Keyset,
    PublicKeyEntry,
    TlsKeyEntry,
)
from cloister.channel.ohttp import ServerKey, encode_key_configs
from cloister.worker.replay import Admission, ReplayMemory
from cloister.worker.settings import Clocks, KeySettings

if TYPE_CHECKING:
    from cloister.worker.tls_key import Certificates, TlsKey

KEMS = (Kem.MLKEM768_X25519, Kem.X25519)
"""One key pair each, in the order in which they are offered."""


class ReceiptKey:
    """The Ed25519 key that signs receipts, and nothing else."""

    __slots__ = ("key_id", "private", "public_bytes")

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self.private = private
        self.public_bytes = private.public_key().public_bytes_raw()
        self.key_id = f"receipt-{hashlib.sha256(self.public_bytes).hexdigest()[:16]}"

    def __repr__(self) -> str:
        return f"ReceiptKey(key_id={self.key_id!r})"


@dataclass(slots=True, kw_only=True, eq=False)
class RequestKey:
    """One private key with the memory of the requests it has opened."""

    server_key: ServerKey = field(repr=False)
    replay: ReplayMemory = field(repr=False)
    generation: Generation = field(repr=False)


@dataclass(slots=True, kw_only=True, eq=False)
class Generation:
    """The request keys of one hour, and the keyset that names them."""

    keyset: Keyset
    digest: str
    key_configs: bytes
    """The body of ``/ohttp-keys``."""
    made: float
    """Steady time."""
    dies: float
    """Steady time from which its keys open nothing."""
    key_ids: tuple[int, ...]
    certificates: Certificates | None = None
    """Of the TLS key, until this keyset ends; None without attested TLS."""


class KeyRing:
    """All live keys. `refresh` must run before each use; it is cheap when nothing is due."""

    def __init__(
        self,
        *,
        subject: str,
        settings: KeySettings,
        clocks: Clocks,
        random: Callable[[int], bytes],
        receipt_key: ReceiptKey | None = None,
        tls_key: TlsKey | None = None,
    ) -> None:
        self.tls_key = tls_key
        self._subject = subject
        self._settings = settings
        self._clocks = clocks
        self._random = random
        self.receipt_key = receipt_key or ReceiptKey(Ed25519PrivateKey.generate())
        self._keys: dict[int, RequestKey] = {}
        self._server_keys: dict[int, ServerKey] = {}
        self._next_id = random(1)[0]
        self.rotations = 0
        self._current = self._make()

    def __repr__(self) -> str:
        return f"KeyRing(keyset={self._current.digest!r}, live_keys={len(self._keys)})"

    @property
    def current(self) -> Generation:
        """The newest generation, made if the last one's hour is over."""
        self.refresh()
        return self._current

    def opening_keys(self) -> Mapping[int, ServerKey]:
        """The keys that may open a request now, by key id."""
        self.refresh()
        return self._server_keys

    def request_key(self, key_id: int) -> RequestKey | None:
        """The live key called `key_id`. A key that died while a request arrived is gone."""
        self.refresh()
        return self._keys.get(key_id)

    def admit(self, key: RequestKey, enc: bytes) -> Admission:
        """Admit one request to `key`, at most once ever.

        A key that is full after this opens nothing more. It is replaced at once, unless keys
        were replaced a moment ago (`seconds_to_rotation`).
        """
        admission = key.replay.admit(enc)
        if key.replay.full:
            self._drop(key.server_key.config.key_id)
            self.refresh()
        return admission

    def seconds_to_rotation(self) -> int:
        """How long until a flooded key may be replaced; 0 when a fresh one is there."""
        self.refresh()
        if all(one in self._keys for one in self._current.key_ids):
            return 0
        due = self._current.made + self._settings.min_rotation_s
        return max(1, math.ceil(due - self._clocks.steady()))

    def refresh(self) -> bool:
        """Drop dead keys, and rotate when the newest are an hour old. True if it rotated."""
        now = self._clocks.steady()
        rotated = False
        current = self._current
        broken = not all(one in self._keys for one in current.key_ids)
        if now >= current.made + self._settings.life_s or (
            broken and now >= current.made + self._settings.min_rotation_s
        ):
            self.rotate()
            rotated = True
        for key_id in [one for one, key in self._keys.items() if key.generation.dies <= now]:
            self._drop(key_id)
        return rotated

    def rotate(self) -> Generation:
        """Make new keys and a new keyset; the replaced ones open requests a little longer."""
        replaced = self._current
        replaced.dies = min(replaced.dies, self._clocks.steady() + self._settings.overlap_s)
        self._current = self._make()
        self.rotations += 1
        return self._current

    def _drop(self, key_id: int) -> None:
        self._keys.pop(key_id, None)
        self._server_keys.pop(key_id, None)

    def _make(self) -> Generation:
        now = self._clocks.steady()
        server_keys = [
            ServerKey.generate(self._free_id(), kem, random=self._random) for kem in KEMS
        ]
        keyset = self._keyset(server_keys)
        generation = Generation(
            keyset=keyset,
            digest=keyset.digest,
            key_configs=encode_key_configs(tuple(key.config for key in server_keys)),
            made=now,
            dies=now + self._settings.lifetime_s,
            key_ids=tuple(key.config.key_id for key in server_keys),
            certificates=None
            if self.tls_key is None
            else self.tls_key.certificates(now=self._clocks.wall(), not_after=keyset.not_after),
        )
        for server_key in server_keys:
            self._server_keys[server_key.config.key_id] = server_key
            self._keys[server_key.config.key_id] = RequestKey(
                server_key=server_key,
                replay=ReplayMemory(self._settings.replay_capacity),
                generation=generation,
            )
        return generation

    def _free_id(self) -> int:
        while self._next_id in self._keys:
            self._next_id = (self._next_id + 1) % 256
        key_id = self._next_id
        self._next_id = (key_id + 1) % 256
        return key_id

    def _keyset(self, server_keys: list[ServerKey]) -> Keyset:
        receipt = self.receipt_key
        return Keyset(
            subject=self._subject,
            not_after=int(self._clocks.wall() + self._settings.lifetime_s),
            receipt_signing_keys=(
                PublicKeyEntry(
                    key_id=receipt.key_id,
                    algo=RECEIPT_ALGORITHM,
                    public_key=receipt.public_bytes.hex(),
                ),
            ),
            e2ee_public_keys=tuple(_entry(key.config.encode()) for key in server_keys),
            tls_public_keys=()
            if self.tls_key is None
            else (TlsKeyEntry(spki_sha256=self.tls_key.spki_sha256),),
        )


def _entry(config: bytes) -> PublicKeyEntry:
    return PublicKeyEntry(
        key_id=f"ohttp-{hashlib.sha256(config).hexdigest()[:16]}",
        algo=OHTTP_ALGORITHM,
        public_key=config.hex(),
    )
