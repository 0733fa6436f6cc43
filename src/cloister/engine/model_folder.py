"""A model that is a folder: which files it may hold, what its digest is, and how it is shown.

Folders are those that ``cloister model prepare`` makes: safetensors with configuration, tokeniser
and templates. A file that could hold code (Python, pickles) is refused, and so is every other that
no engine needs, links and devices among them; the engine sees the files that were hashed and no
others.

The digest is the SHA-256 over one line for each file, ``<sha256 hex>  <path>`` and a line feed,
sorted by the bytes of the path: what `cloister.attester.tree` says of such a folder, so that the
launcher measures the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cloister.engine.confined import DESCRIPTORS
from cloister.engine.model_record import NAME as RECORD
from cloister.engine.models import sha256_descriptor
from cloister.engine.prepare import choose, kind_of
from cloister.engine.protocol import ModelFile, ModelInfo
from cloister.engine.safetensors import check_safetensors
from cloister.errors import ConfigurationError, MalformedError
from cloister.model_digest import Role

MAX_FILES: Final = 1_000
"""A model of a trillion parameters has about 200; each takes a descriptor while it is served."""
_MAX_CONFIGURATION: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class OpenFolder:
    """The files of a folder, opened: what is hashed and what is shown cannot differ."""

    descriptors: Mapping[str, int]

    def digest(self) -> str:
        """Lower-case hex."""
        lines = [
            (path.encode(), sha256_descriptor(descriptor))
            for path, descriptor in self.descriptors.items()
        ]
        whole = hashlib.sha256()
        for path, content in sorted(lines):
            whole.update(content.encode() + b"  " + path + b"\n")
        return whole.hexdigest()

    def shown_at(self, place: str) -> dict[str, Path]:
        """Path inside the sandbox → the descriptor to bind there."""
        return {
            f"{place}/{path}": DESCRIPTORS / str(descriptor)
            for path, descriptor in self.descriptors.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFacts:
    """What a folder says of itself: digest, context in tokens (0: unknown), quantisation."""

    sha256: str
    context_length: int
    quantisation: str


@contextlib.contextmanager
def open_folder(folder: Path) -> Iterator[OpenFolder]:
    """Open every file of `folder`; ConfigurationError for one that does not belong there."""
    names = _names(folder)
    with contextlib.ExitStack() as stack:
        descriptors: dict[str, int] = {}
        for name in names:
            try:
                flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
                descriptor = os.open(folder / name, flags)
            except OSError as error:
                raise _unreadable(folder / name, error) from None
            stack.callback(os.close, descriptor)
            descriptors[name] = descriptor
        yield OpenFolder(descriptors)


def describe_folder(folder: Path) -> FolderFacts:
    """Check and hash a folder.

    Raises:
        ConfigurationError: a file does not belong there, or cannot be read.
        MalformedError: a file is not what its name says.
    """
    with open_folder(folder) as opened:
        for name in opened.descriptors:
            if name.endswith(".safetensors"):
                check_safetensors(folder / name)
        return folder_facts(folder, sha256=opened.digest())


def folder_facts(folder: Path, *, sha256: str) -> FolderFacts:
    """What the configuration of a folder says whose digest is known.

    Raises ConfigurationError or MalformedError if it cannot be read.
    """
    configuration = _configuration(folder)
    return FolderFacts(
        sha256=sha256,
        context_length=_context(configuration),
        quantisation=_quantisation(configuration),
    )


def model_of_folder(folder: Path, *, sha256: str, name: str) -> ModelInfo:
    """The model that lies in `folder` and has this digest. Raises as `folder_facts`."""
    facts = folder_facts(folder, sha256=sha256)
    return ModelInfo(
        name=name,
        sha256=sha256,
        path=folder,
        context_length=facts.context_length,
        quantisation=facts.quantisation,
        files={Role.MODEL: ModelFile(path=folder, sha256=sha256)},
    )


def _names(folder: Path) -> list[str]:
    found: list[str] = []
    pending = [folder]
    while pending:
        place = pending.pop()
        try:
            entries = sorted(place.iterdir())
        except OSError as error:
            raise _unreadable(place, error) from None
        for entry in entries:
            mode = entry.lstat().st_mode
            if stat.S_ISDIR(mode):
                pending.append(entry)
            elif stat.S_ISREG(mode):
                found.append(entry.relative_to(folder).as_posix())
            else:
                raise _stranger(entry.relative_to(folder).as_posix())
        if len(found) > MAX_FILES:
            raise ConfigurationError(
                f"{folder} holds more than {MAX_FILES} files: is it a model?",
                code="configuration.model",
            )
    taken, left = choose(found)
    strangers = [name for name in left if name != RECORD]
    if strangers:
        raise _stranger(strangers[0])
    if any(not name.isprintable() or "  " in name for name in found):
        raise ConfigurationError(
            f"{folder} holds a file with a name that cannot be written down",
            code="configuration.model",
        )
    if kind_of(taken) != "safetensors":
        raise ConfigurationError(
            "a folder is served from safetensors; name a GGUF file itself",
            code="configuration.model",
        )
    return sorted(found)


def _configuration(folder: Path) -> dict[str, Any]:
    try:
        with (folder / "config.json").open("rb") as file:
            document = json.loads(file.read(_MAX_CONFIGURATION + 1))
    except OSError as error:
        raise _unreadable(folder / "config.json", error) from None
    except (ValueError, RecursionError):
        raise MalformedError("config.json: this is not JSON") from None
    if not isinstance(document, dict):
        raise MalformedError("config.json: this is not an object")
    return document


def _context(configuration: dict[str, Any]) -> int:
    nested = configuration.get("text_config")
    for section in (configuration, nested if isinstance(nested, dict) else {}):
        value = section.get("max_position_embeddings")
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def _quantisation(configuration: dict[str, Any]) -> str:
    quantised = configuration.get("quantization_config")
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    dtype = configuration.get("dtype", configuration.get("torch_dtype"))
    name = method if isinstance(method, str) else dtype
    return name[:32] if isinstance(name, str) and name.isprintable() else ""


def _stranger(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"the model's folder holds {name!r}, which no engine needs and which may hold code, or is "
        "a link: `cloister model prepare` makes a folder without such files",
        code="configuration.model_file",
    )


def _unreadable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{path} cannot be read (errno {error.errno})", code="configuration.model"
    )
