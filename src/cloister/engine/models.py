"""From what an operator writes after ``--model`` to a file whose digest is known.

A path is taken as it is and hashed. Anything that must be fetched (an ``https:`` address, or
``hf:ORGANISATION/REPOSITORY/FILE`` of the Hugging Face hub) needs its SHA-256 beforehand: what
arrives is compared before anything reads it, and only then given its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from cloister.engine.demo_model import DEMO_MODEL_NAME, demo_model_path
from cloister.engine.gguf import parse_gguf
from cloister.engine.protocol import ModelFile, ModelInfo
from cloister.errors import ConfigurationError, FetchError, MalformedError
from cloister.model_digest import Role, model_digest

DEMO: Final = "demo"
MAX_DOWNLOAD: Final = 1 << 40  # bytes
_BLOCK: Final = 1 << 20
_SHA256 = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_HUB = re.compile(
    r"hf:(?P<org>[A-Za-z0-9][\w.-]*)/(?P<repo>[A-Za-z0-9][\w.-]*)/"
    r"(?P<file>(?:[A-Za-z0-9][\w.-]*/)*[A-Za-z0-9][\w.-]*\.gguf)"
)
_NAME = re.compile(r"[^A-Za-z0-9._-]+")


class Fetcher(Protocol):
    """Fetches large files; the network is an argument."""

    def fetch(
        self, url: str, *, max_bytes: int
    ) -> contextlib.AbstractContextManager[Iterator[bytes]]:
        """Open `url` and yield its body; FetchError when it cannot, or is longer."""


def sha256_file(path: Path, *, progress: Callable[[int], None] | None = None) -> str:
    """Return the lower-case hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return sha256_descriptor(file.fileno(), progress=progress)


def sha256_descriptor(descriptor: int, *, progress: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of an open file from its beginning; the file position is not moved."""
    digest = hashlib.sha256()
    offset = 0
    while block := os.pread(descriptor, _BLOCK, offset):
        digest.update(block)
        offset += len(block)
        if progress is not None:
            progress(offset)
    return digest.hexdigest()


def resolve_model(
    reference: str,
    *,
    sha256: str | None = None,
    name: str | None = None,
    cache: Path | None = None,
    fetcher: Fetcher | None = None,
) -> ModelInfo:
    """Return the model that `reference` names: ``demo``, a path, an address or a hub file.

    With `sha256` the file must have that digest; without it an address or hub name is refused.
    Fetched files go to `cache`, named by their digest. ConfigurationError for everything the
    operator has to change, FetchError for the network, MalformedError for a file not GGUF.
    """
    wanted = _digest(sha256)
    url = _url(reference)
    if url is not None:
        if wanted is None:
            raise ConfigurationError(
                f"a model that is fetched needs its SHA-256 beforehand: give --model-sha256 "
                f"with the digest that its publisher names for {_shown(reference)}",
                code="configuration.model_unpinned",
            )
        path = _fetched(url, wanted, cache, fetcher)
        # The name is public: nothing of the query, which may hold a token.
        name = name or Path(urlsplit(url).path).name.removesuffix(".gguf")
    else:
        path = _local(reference)
        name = name or (DEMO_MODEL_NAME if reference == DEMO else None)
    return describe_model(path, name=name, sha256=wanted)


def describe_model(path: Path, *, name: str | None = None, sha256: str | None = None) -> ModelInfo:
    """Hash `path`, read its metadata and return both; ConfigurationError on another digest."""
    try:
        with path.open("rb") as file:
            found = sha256_descriptor(file.fileno())
    except OSError as error:
        raise _unreadable(path, error) from None
    if sha256 is not None and found != sha256:
        raise ConfigurationError(
            f"the model file {path} has the digest {found}, not {sha256}",
            code="configuration.model_digest",
        )
    return model_of_files({Role.MODEL: ModelFile(path=path, sha256=found)}, name=name)


def model_of_files(files: Mapping[Role, ModelFile], *, name: str | None = None) -> ModelInfo:
    """The model that is made of `files`, whose digests are known; reads its metadata.

    ConfigurationError or MalformedError for weights that cannot be read.
    """
    weights = files[Role.MODEL]
    try:
        with weights.path.open("rb") as file:
            metadata = parse_gguf(file)
    except OSError as error:
        raise _unreadable(weights.path, error) from None
    except MalformedError as error:
        raise MalformedError(f"{weights.path}: {error}", code=error.code) from None
    label = _NAME.sub("-", name or metadata.name or weights.path.stem).strip("-.")
    return ModelInfo(
        name=label[:128] or "model",
        sha256=model_digest({role: file.sha256 for role, file in files.items()}),
        path=weights.path,
        context_length=metadata.context_length,
        quantisation=metadata.quantisation,
        cache_bytes=metadata.cache_bytes,
        files=files,
        template_words=metadata.template_words,
    )


def _unreadable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"the model file {path} cannot be read (errno {error.errno})", code="configuration.model"
    )


def _digest(text: str | None) -> str | None:
    if text is None:
        return None
    match = _SHA256.fullmatch(text.strip().lower())
    if match is None:
        raise ConfigurationError(
            "a SHA-256 is 64 hexadecimal digits", code="configuration.model_digest"
        )
    return match[1]


def _url(reference: str) -> str | None:
    """Return the address to fetch, or None for a path."""
    if reference.startswith("hf:"):
        match = _HUB.fullmatch(reference)
        if match is None:
            raise ConfigurationError(
                "a hub model is written hf:ORGANISATION/REPOSITORY/FILE.gguf",
                code="configuration.model",
            )
        return "https://huggingface.co/{org}/{repo}/resolve/main/{file}".format(**match.groupdict())
    if reference.startswith("https://"):
        return reference
    if "://" in reference:
        raise ConfigurationError("a model is fetched over https: only", code="configuration.model")
    return None


def _shown(reference: str) -> str:
    """The reference without what may be secret in an address (user, query)."""
    return re.sub(r"//[^/@]*@", "//", reference).partition("?")[0]


def _local(reference: str) -> Path:
    path = demo_model_path() if reference == DEMO else Path(reference).expanduser()
    if not path.is_file():
        raise ConfigurationError(
            f"there is no model file at {path}", code="configuration.model_missing"
        )
    return path.resolve()


def _fetched(url: str, wanted: str, cache: Path | None, fetcher: Fetcher | None) -> Path:
    if cache is None or fetcher is None:
        raise ConfigurationError(
            "fetching a model needs a cache directory and a network",
            code="configuration.model_cache",
        )
    target = cache / f"{wanted}.gguf"
    if target.is_file() and sha256_file(target) == wanted:
        return target
    cache.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=cache, prefix="part-")
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            found = _download(url, file.write, fetcher)
            file.flush()
            os.fsync(file.fileno())
        if found != wanted:
            raise FetchError(
                f"the model that was fetched has the digest {found}, not {wanted}",
                code="fetch.model_digest",
            )
        partial.chmod(0o444)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _download(url: str, write: Callable[[bytes], object], fetcher: Fetcher) -> str:
    digest = hashlib.sha256()
    size = 0
    with fetcher.fetch(url, max_bytes=MAX_DOWNLOAD) as blocks:
        for block in blocks:
            size += len(block)
            if size > MAX_DOWNLOAD:
                raise FetchError("the model is longer than the limit", code="fetch.model_size")
            digest.update(block)
            write(block)
    return digest.hexdigest()
