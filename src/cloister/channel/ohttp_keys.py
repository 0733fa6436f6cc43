"""Key configurations of Oblivious HTTP (RFC 9458 section 3) and the choice of a suite."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cloister.channel.hpke import Aead, Kdf, Kem, PrivateKey, PublicKey, Suite
from cloister.errors import ChannelError, MalformedError, UnsupportedError

if TYPE_CHECKING:
    from cloister.channel.hpke_kem import Random

KEYS_MEDIA_TYPE = "application/ohttp-keys"
# Enough for a rotation overlap of several KEMs; a list this long is a mistake or an attack.
MAX_KEY_CONFIGS = 64

SUITES_BY_PREFERENCE = (
    Suite(Kem.MLKEM768_X25519, Kdf.HKDF_SHA256, Aead.AES_256_GCM),
    Suite(Kem.MLKEM768_X25519, Kdf.HKDF_SHA256, Aead.CHACHA20_POLY1305),
    Suite(Kem.MLKEM768_X25519, Kdf.HKDF_SHA256, Aead.AES_128_GCM),
    Suite(Kem.X25519, Kdf.HKDF_SHA256, Aead.AES_128_GCM),
    Suite(Kem.X25519, Kdf.HKDF_SHA256, Aead.CHACHA20_POLY1305),
    Suite(Kem.X25519, Kdf.HKDF_SHA256, Aead.AES_256_GCM),
)
DEFAULT_SUITES = {
    Kem.MLKEM768_X25519: (SUITES_BY_PREFERENCE[0],),
    Kem.X25519: SUITES_BY_PREFERENCE[3:5],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyConfig:
    """One public key with the suites it may be used with, in the server's order.

    `key_id` is one byte and only a routing hint. `suites` holds the ones known here; a
    configuration is compared by the bytes that were received, not by encoding it again.
    """

    key_id: int
    kem: Kem
    public_key: bytes
    suites: tuple[Suite, ...]
    _opened: PublicKey | None = field(default=None, init=False, repr=False, compare=False)

    def opened_public_key(self) -> PublicKey:
        """The public key as key objects, made once. Raises MalformedError as they do."""
        opened = self._opened
        if opened is None:
            opened = PublicKey(self.kem, self.public_key)
            object.__setattr__(self, "_opened", opened)
        return opened

    def encode(self) -> bytes:
        """Encode one Key Config (section 3.1), without a length in front."""
        algorithms = b"".join(
            suite.kdf.to_bytes(2, "big") + suite.aead.to_bytes(2, "big") for suite in self.suites
        )
        return (
            self.key_id.to_bytes(1, "big")
            + self.kem.to_bytes(2, "big")
            + self.public_key
            + len(algorithms).to_bytes(2, "big")
            + algorithms
        )

    @classmethod
    def parse(cls, data: bytes) -> KeyConfig:
        """Decode exactly one Key Config (section 3.1). Nothing is authenticated here.

        Raises MalformedError, or UnsupportedError when the KEM, or every pair of KDF and
        AEAD, is unknown here.
        """
        if len(data) < 3:
            raise MalformedError("the key configuration is too short")
        try:
            kem = Kem(int.from_bytes(data[1:3], "big"))
        except ValueError:
            raise UnsupportedError("the key configuration names an unknown KEM") from None
        end = 3 + kem.public_size  # past the data, when that is short: no algorithms follow
        algorithms = data[end + 2 :]
        if len(algorithms) != int.from_bytes(data[end : end + 2], "big"):
            raise MalformedError("the key configuration's algorithm list has a wrong length")
        if not algorithms or len(algorithms) % 4:
            raise MalformedError("the key configuration's algorithm list is not made of pairs")
        suites = _known_suites(kem, algorithms)
        if not suites:
            raise UnsupportedError("the key configuration offers no known KDF and AEAD")
        return cls(key_id=data[0], kem=kem, public_key=bytes(data[3:end]), suites=suites)


def _known_suites(kem: Kem, algorithms: bytes) -> tuple[Suite, ...]:
    suites = []
    for at in range(0, len(algorithms), 4):
        try:
            kdf = Kdf(int.from_bytes(algorithms[at : at + 2], "big"))
            aead = Aead(int.from_bytes(algorithms[at + 2 : at + 4], "big"))
        except ValueError:
            continue
        suites.append(Suite(kem, kdf, aead))
    return tuple(suites)


def encode_key_configs(configs: tuple[KeyConfig, ...]) -> bytes:
    """Encode "application/ohttp-keys" (section 3.2): each with its length in two bytes."""
    encoded = [config.encode() for config in configs]
    return b"".join(len(one).to_bytes(2, "big") + one for one in encoded)


def parse_key_configs(data: bytes) -> tuple[KeyConfig, ...]:
    """Decode "application/ohttp-keys" (section 3.2), in the server's order of preference.

    Configurations with an unknown KEM or no known algorithms are left out, as the section
    asks, so the result may be empty. Raises MalformedError.
    """
    configs: list[KeyConfig] = []
    count, at = 0, 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        count += 1
        if len(data) < end:
            raise MalformedError("the list of key configurations ends too early")
        if count > MAX_KEY_CONFIGS:
            raise MalformedError("the list of key configurations is too long")
        with contextlib.suppress(UnsupportedError):
            configs.append(KeyConfig.parse(data[at + 2 : end]))
        at = end
    return tuple(configs)


def preferred_suite(config: KeyConfig) -> Suite:
    """Return the suite that Cloister prefers among those `config` offers.

    Raises ChannelError (code "channel.suite") when it offers none that is known here.
    """
    for suite in SUITES_BY_PREFERENCE:
        if suite in config.suites:
            return suite
    raise ChannelError("the key configuration offers no usable suite", code="channel.suite")


def preferred_config(configs: tuple[KeyConfig, ...]) -> KeyConfig:
    """Return the first configuration that offers the most preferred suite.

    Raises ChannelError (code "channel.suite") when none offers a known suite.
    """
    for suite in SUITES_BY_PREFERENCE:
        for config in configs:
            if suite in config.suites:
                return config
    raise ChannelError("no key configuration offers a usable suite", code="channel.suite")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerKey:
    """A private key with the configuration published for it."""

    config: KeyConfig
    private_key: PrivateKey

    @classmethod
    def generate(
        cls,
        key_id: int,
        kem: Kem,
        suites: tuple[Suite, ...] | None = None,
        *,
        random: Random = os.urandom,
    ) -> ServerKey:
        """Make a key pair, offered with `suites` (by default those of DEFAULT_SUITES)."""
        private_key = PrivateKey.generate(kem, random)
        config = KeyConfig(
            key_id=key_id,
            kem=kem,
            public_key=private_key.public_bytes,
            suites=DEFAULT_SUITES[kem] if suites is None else suites,
        )
        return cls(config=config, private_key=private_key)
