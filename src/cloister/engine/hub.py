"""Models of the Hugging Face hub, at one commit: ``hf:ORGANISATION/REPOSITORY@COMMIT``.

A commit is named by all of its 40 hexadecimal digits, since branches and tags move. The hub's
listing of the commit names each file with its size and a digest: SHA-256 for large files, git's
blob digest (SHA-1 over ``blob SIZE\\0`` and the content) for small ones. What arrives is compared
with it. The listing itself is the hub's word: that a commit holds what it held last time is shown
only by comparing with an earlier ``model.json``.

API: ``https://huggingface.co/docs/hub/api``, ``GET /api/models/{repo}/tree/{revision}``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from cloister.engine.models import MAX_DOWNLOAD, Fetcher
from cloister.errors import ConfigurationError, FetchError, MalformedError
from cloister.strictjson import Json, parse_json

HUB: Final = "https://huggingface.co"
MAX_LISTING: Final = 8 << 20
PAGE: Final = 1000
"""Entries after which the hub goes on in another page, which is not asked for."""
_REFERENCE = re.compile(
    r"hf:(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)@(?P<commit>[^/]*)", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PATH = re.compile(r"(?:[A-Za-z0-9_][\w.+ -]*/)*[A-Za-z0-9_][\w.+ -]*", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A repository at a commit."""

    repo: str
    commit: str

    def url(self, path: str) -> str:
        """Where a file of the commit is fetched from."""
        return f"{HUB}/{self.repo}/resolve/{self.commit}/{path.replace(' ', '%20')}"

    @property
    def listing_url(self) -> str:
        """Where the commit's files are listed."""
        return f"{HUB}/api/models/{self.repo}/tree/{self.commit}?recursive=true"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file as listed: `sha256` for large ones, `blob` (git's SHA-1) for the others."""

    path: str
    size: int
    sha256: str | None
    blob: str


def parse_hub_reference(reference: str) -> HubModel:
    """Read ``hf:ORG/REPO@COMMIT``; ConfigurationError for anything else."""
    match = _REFERENCE.fullmatch(reference)
    if match is None or not _COMMIT.fullmatch(match["commit"]):
        raise ConfigurationError(
            "a hub model is written hf:ORGANISATION/REPOSITORY@COMMIT, with all 40 digits of the "
            "commit: names of branches and tags move",
            code="model.hub",
        )
    return HubModel(repo=match["repo"], commit=match["commit"])


def fetch_listing(model: HubModel, fetcher: Fetcher) -> tuple[HubFile, ...]:
    """List the commit's files. FetchError, or MalformedError for an answer that is none."""
    data = bytearray()
    with fetcher.fetch(model.listing_url, max_bytes=MAX_LISTING) as blocks:
        for block in blocks:
            data += block
            if len(data) > MAX_LISTING:
                raise FetchError("the hub's listing is too long", code="fetch.listing")
    listing = parse_json(bytes(data), limit=MAX_LISTING, what="the hub's listing")
    if not isinstance(listing, list):
        raise MalformedError("the hub's listing is not a list")
    if len(listing) >= PAGE:
        raise FetchError("the repository has too many files", code="fetch.listing")
    entries = [entry for entry in map(_entry, listing) if entry is not None]
    if len({entry.path for entry in entries}) != len(entries):
        raise MalformedError("the hub's listing names a file twice")
    return tuple(entries)


def _entry(value: Json) -> HubFile | None:
    if not isinstance(value, dict):
        raise MalformedError("the hub's listing has an entry that is none")
    if value.get("type") == "directory":
        return None
    path, size, blob, large = (value.get(name) for name in ("path", "size", "oid", "lfs"))
    if not isinstance(path, str) or not isinstance(size, int) or not 0 <= size <= MAX_DOWNLOAD:
        raise MalformedError("the hub's listing has a file without a name or a size")
    sha256 = large.get("oid") if isinstance(large, dict) else None
    if not isinstance(blob, str) or not _COMMIT.fullmatch(blob):
        raise MalformedError("the hub's listing has a file without a digest")
    if large is not None and not (
        isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256)
    ):
        raise MalformedError("the hub's listing has a large file without a digest")
    return HubFile(
        path=path, size=size, sha256=sha256 if isinstance(sha256, str) else None, blob=blob
    )


def safe_path(path: str) -> bool:
    """Whether a listed path is one we would write: plain names, nothing hidden, nothing above."""
    return _PATH.fullmatch(path) is not None and ".." not in PurePosixPath(path).parts


def fetch_file(
    model: HubModel,
    file: HubFile,
    target: Path,
    fetcher: Fetcher,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Fetch `file` to `target`, which is there only if it is what the listing says.

    FetchError for another size or digest (code ``fetch.model_digest``).
    """
    large, blob, size = hashlib.sha256(), hashlib.sha1(usedforsecurity=False), 0
    blob.update(b"blob %d\0" % file.size)
    partial = target.with_name(f".part-{target.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            fetcher.fetch(model.url(file.path), max_bytes=file.size) as blocks,
            partial.open("wb") as out,
        ):
            for block in blocks:
                size += len(block)
                if size > file.size:
                    break
                large.update(block)
                blob.update(block)
                out.write(block)
                progress(size)
        found = large.hexdigest() if file.sha256 else blob.hexdigest()
        if size != file.size or found != (file.sha256 or file.blob):
            raise FetchError(
                f"{file.path} is not the file that the hub lists", code="fetch.model_digest"
            )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
