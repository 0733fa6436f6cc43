"""Where a worker gets the keys of sealed weights: its broker, or a file of the operator's.

With a broker the manifest decides: it names the key's address and the header of the one sealed file
that the key is for. The operator names neither.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cloister.channel.resource_uri import ResourceUri
from cloister.errors import ConfigurationError
from cloister.manifest.bundle import load_bundle
from cloister.weights.cipher import KEY
from cloister.worker.weights import SealedModel

if TYPE_CHECKING:
    from cloister.manifest.entries import SealedWeights
    from cloister.manifest.model import Manifest
    from cloister.worker.releases import KeyReleases


class WeightsKeys(Protocol):
    """Where keys of weights come from."""

    def key(self, model: SealedModel) -> bytes:
        """The key of these weights; may take as long as a broker does.

        Raises KeyReleaseDenied, ConfigurationError, FetchError or AuthenticationError.
        """


def weights_keys(
    file: Path | None, releases: KeyReleases | None, bundle: bytes | None
) -> WeightsKeys:
    """The keys of a worker with this key file, broker and manifest, as far as it has them.

    `bundle` is that of the manifest in force for the worker, already authenticated.
    """
    manifest = None if bundle is None else load_bundle(bundle).manifest
    return _Keys(file=file, releases=releases, manifest=manifest)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Keys:
    file: Path | None
    releases: KeyReleases | None
    manifest: Manifest | None

    def key(self, model: SealedModel) -> bytes:
        """From the broker, where there is one, and from the file else."""
        entry = self._named(model)
        if self.file is not None:
            return read_key(self.file)
        if self.releases is None:
            raise _no_key(
                f"the weights of {model.info.name} lie sealed: name a broker that has their key "
                "(--broker), or the file that it lies in (--weights-key)"
            )
        if entry is None:
            raise _no_key(
                f"no manifest says where the key of {model.info.name} is kept: a worker with a "
                'broker and sealed weights needs --manifest, and "sealed" of the model in it'
            )
        return self.releases.release(ResourceUri.parse(entry.key)).secret

    def _named(self, model: SealedModel) -> SealedWeights | None:
        """What the manifest says of these sealed weights.

        ConfigurationError (``weights.manifest``) if it names others.
        """
        listed = None if self.manifest is None else self.manifest.model(model.info.name)
        entry = None if listed is None else listed.sealed
        if entry is not None and entry.header_sha256 != model.header.sha256:
            raise ConfigurationError(
                f"the manifest names other sealed weights for {model.info.name}: a header with "
                f"the digest {entry.header_sha256}, and here it is {model.header.sha256}",
                code="weights.manifest",
            )
        return entry


def read_key(path: Path) -> bytes:
    """The key in a file that only its owner can read.

    Raises ConfigurationError (``weights.key_file``).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            key = file.read(KEY + 1)
    except OSError as error:
        raise _no_key(f"{path} cannot be read (errno {error.errno})") from None
    if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
        raise _no_key(f"{path} must be a file that only its owner can read (chmod 600)")
    if len(key) != KEY:
        raise _no_key(f"{path} holds no weights key, which is {KEY} bytes")
    return key


def _no_key(why: str) -> ConfigurationError:
    return ConfigurationError(why, code="weights.key_file")
