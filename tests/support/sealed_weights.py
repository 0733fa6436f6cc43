"""Small sealed weights for tests, and a sink that remembers what reached it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from cloister.weights.header import MIN_CHUNK, About, FileEntry, Header, Kind
from cloister.weights.opening import open_sealed
from cloister.weights.reader import SealedFile
from cloister.weights.seal import seal


def filling(label: str, size: int) -> bytes:
    """Bytes that repeat nothing and are the same in every run."""
    return hashlib.shake_256(label.encode()).digest(size)


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """A sealed file, what it was made from, and its key."""

    path: Path
    key: bytes = field(repr=False)
    header: Header
    files: dict[str, bytes] = field(repr=False)


def sealed_folder(
    folder: Path,
    sizes: dict[str, int],
    *,
    label: str = "one",
    kind: Kind = Kind.SAFETENSORS,
    chunk_bytes: int = MIN_CHUNK,
) -> Sealed:
    """Seal files of these sizes, filled by `label`, into `folder`/`label`.sealed."""
    source = folder / f"{label}-source"
    files = {name: filling(f"{label}/{name}", size) for name, size in sizes.items()}
    for name, content in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    keys: list[bytes] = []
    target = folder / f"{label}.sealed"
    header = seal(
        {name: source / name for name in files},
        target,
        kind=kind,
        about=About(name="small", context_length=64, template_words=frozenset({"think"})),
        keep_key=keys.append,
        chunk_bytes=chunk_bytes,
    )
    return Sealed(path=target, key=keys[0], header=header, files=files)


def sealed_file(folder: Path, size: int, *, label: str = "one") -> Sealed:
    """Seal one file of this size, as GGUF."""
    return sealed_folder(folder, {"model.gguf": size}, label=label, kind=Kind.GGUF)


class Kept:
    """A sink that keeps what reaches it, and which files were finished."""

    def __init__(self) -> None:
        self.written: list[tuple[str, int, bytes]] = []
        self.files: dict[str, bytearray] = {}
        self.finished: set[str] = set()

    def create(self, entry: FileEntry) -> _KeptFile:
        self.files[entry.path] = bytearray()
        return _KeptFile(self, entry.path)

    def holds_only_parts_of(self, files: dict[str, bytes]) -> bool:
        """Whether no byte is here that was not sealed at this very place."""
        return self.files.keys() <= files.keys() and all(
            files[name][offset : offset + len(data)] == data for name, offset, data in self.written
        )


class _KeptFile:
    def __init__(self, kept: Kept, name: str) -> None:
        self._kept = kept
        self._name = name

    def write(self, data: memoryview, offset: int) -> None:
        self._kept.written.append((self._name, offset, bytes(data)))
        content = self._kept.files[self._name]
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        content[offset : offset + len(data)] = data

    def finish(self) -> None:
        self._kept.finished.add(self._name)


def opened(path: Path, key: bytes, sink: Kept | None = None, *, threads: int = 1) -> Kept:
    """Open a sealed file into memory."""
    kept = Kept() if sink is None else sink
    with SealedFile(path) as sealed:
        open_sealed(sealed, key, kept, threads=threads)
    return kept
