"""Fetches what a lock names, into a store where each file lies under its digest.

Where a file comes from does not matter: it is compared with the lock before anything reads it. So
Debian's packages come over plain HTTP from whichever mirror answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote

from cloister.errors import BuildError, FetchError
from cloister.image.lock import DebianPackage, ImageLock, Wheel
from cloister.image.resolve import wheel_platform

MIRRORS: Final = (
    "http://deb.debian.org/{archive}/{path}",
    "https://snapshot.debian.org/archive/{archive}/{resolved_at}/{path}",
)
"""The live archive first, which is quick and drops old packages; then its history."""
BLOCK: Final = 1 << 20
PIP_TIMEOUT_S: Final = 1800.0


class Fetcher(Protocol):
    """Gets a file from an address."""

    def fetch(
        self, url: str, *, max_bytes: int
    ) -> contextlib.AbstractContextManager[Iterator[bytes]]:
        """Yield the body in pieces; FetchError if it cannot be had."""


class Store:
    """Files by their SHA-256, in a directory that builds share."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, sha256: str) -> Path:
        """Where the file with this digest lies, if it is there."""
        return self._directory / sha256[:2] / sha256

    def holds(self, sha256: str) -> bool:
        """Whether it is there, and still what its name says."""
        path = self.path(sha256)
        return path.is_file() and file_digest(path) == sha256

    def put(self, pieces: Iterator[bytes], sha256: str, what: str) -> Path:
        """Keep a file if its digest fits; FetchError (``image.digest``) otherwise."""
        target = self.path(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".new-", delete=False) as new:
            try:
                hashed = hashlib.sha256()
                for piece in pieces:
                    hashed.update(piece)
                    new.write(piece)
                if hashed.hexdigest() != sha256:
                    raise FetchError(
                        f"{what} is not the file that the lock names: its digest differs",
                        code="image.digest",
                    )
                new.close()
                os.replace(new.name, target)  # noqa: PTH105 - the temporary file has no Path
            except BaseException:
                Path(new.name).unlink(missing_ok=True)
                raise
        return target


def fetch_debian(
    packages: Sequence[DebianPackage],
    store: Store,
    *,
    resolved_at: str,
    fetcher: Fetcher,
    mirrors: Sequence[str] = MIRRORS,
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Have all `packages` in the store. FetchError where no mirror has one."""
    for package in packages:
        if store.holds(package.sha256):
            continue
        progress(f"{package.name} {package.version}")
        _fetch_one(package, store, resolved_at=resolved_at, fetcher=fetcher, mirrors=mirrors)


def _fetch_one(
    package: DebianPackage,
    store: Store,
    *,
    resolved_at: str,
    fetcher: Fetcher,
    mirrors: Sequence[str],
) -> None:
    refused: list[str] = []
    for mirror in mirrors:
        url = mirror.format(
            archive=package.archive, path=quote(package.path), resolved_at=resolved_at
        )
        try:
            with fetcher.fetch(url, max_bytes=package.size) as pieces:
                store.put(pieces, package.sha256, package.name)
                return
        except FetchError as error:
            refused.append(str(error))
    raise FetchError(
        f"no mirror gives {package.name} {package.version} ({'; '.join(refused)}). The live "
        "archive drops old versions: name a mirror with --mirror, or resolve anew with "
        "`cloister image lock`, which changes the image",
        code="image.package_gone",
    )


def fetch_wheels(
    lock: ImageLock, store: Store, *, progress: Callable[[str], None] = lambda _: None
) -> None:
    """Have all wheels in the store; pip fetches them, from the index that it is set up for."""
    missing = [wheel for wheel in lock.wheels if not store.holds(wheel.sha256)]
    if not missing:
        return
    progress(f"{len(missing)} Python packages")
    with tempfile.TemporaryDirectory(prefix="cloister-wheels-") as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text("".join(_requirement(wheel) for wheel in missing))
        command = (
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--require-hashes", "--only-binary", ":all:", "--dest", folder),
            *wheel_platform(lock.python),
            *("-r", str(wanted)),
        )
        try:
            subprocess.run(  # noqa: S603 - pip, with words of our own
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PIP_TIMEOUT_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", None) or "").strip().splitlines()
            raise FetchError(
                f"pip does not fetch the locked packages: {said[-1] if said else error}",
                code="image.wheels",
            ) from None
        for wheel in missing:
            path = Path(folder) / wheel.filename
            if not path.is_file():
                raise BuildError(f"pip did not fetch {wheel.filename}", code="image.wheels")
            with path.open("rb") as opened:
                store.put(iter(lambda: opened.read(BLOCK), b""), wheel.sha256, wheel.filename)


def _requirement(wheel: Wheel) -> str:
    return f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n"


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
