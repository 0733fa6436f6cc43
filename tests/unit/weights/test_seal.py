"""Sealing: a new key each time, whole or not at all, nothing that changed meanwhile."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cloister.errors import (
    AuthenticationError,
    BuildError,
    CloisterError,
    ConfigurationError,
    MalformedError,
)
from cloister.weights.cipher import ChunkCipher
from cloister.weights.folder import FolderSink
from cloister.weights.header import MIN_CHUNK, About, Kind
from cloister.weights.opening import open_sealed
from cloister.weights.reader import SealedFile, is_sealed
from cloister.weights.seal import seal
from support.sealed_weights import Sealed, opened, sealed_file, sealed_folder

SIZES = {"config.json": 0, "deep/er/x.json": 10, "model.safetensors": 3 * MIN_CHUNK + 5}


@pytest.fixture
def folder(tmp_path: Path) -> Sealed:
    return sealed_folder(tmp_path, SIZES)


def test_each_seal_has_its_own_key_and_salt_and_ciphertext(tmp_path: Path) -> None:
    made = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        made.append(sealed_file(tmp_path / str(number), 4096))
    assert len({one.key for one in made}) == 3
    assert len({one.header.salt for one in made}) == 3
    assert len({one.path.read_bytes()[-4096:] for one in made}) == 3
    for one in made:
        assert len(one.key) == 32
        assert one.key not in one.path.read_bytes()
        assert one.files["model.gguf"][:16] not in one.path.read_bytes()


def test_any_part_can_be_read_alone(folder: Sealed) -> None:
    content = folder.files["model.safetensors"]
    with SealedFile(folder.path) as sealed:
        cipher = ChunkCipher(folder.key, sealed.header)
        for offset in (0, 1, MIN_CHUNK - 1, MIN_CHUNK, len(content) - 1, len(content)):
            for size in (0, 1, MIN_CHUNK, MIN_CHUNK + 2, 10 * MIN_CHUNK):
                part = sealed.read(cipher, "model.safetensors", offset, size)
                assert part == content[offset : offset + size]
        assert sealed.read(cipher, "config.json", 0, 5) == b""
        with pytest.raises(KeyError):
            sealed.read(cipher, "elsewhere", 0, 1)


def test_a_part_of_altered_weights_is_refused(folder: Sealed) -> None:
    data = bytearray(folder.path.read_bytes())
    data[-1] ^= 1
    folder.path.write_bytes(data)
    with SealedFile(folder.path) as sealed:
        cipher = ChunkCipher(folder.key, sealed.header)
        assert sealed.read(cipher, "model.safetensors", 0, MIN_CHUNK)
        with pytest.raises(AuthenticationError):
            sealed.read(cipher, "model.safetensors", 3 * MIN_CHUNK, 1)


def test_a_header_can_be_expected(folder: Sealed, tmp_path: Path) -> None:
    with SealedFile(folder.path) as sealed:
        sealed.expect(folder.header.sha256)
        with pytest.raises(AuthenticationError) as refused:
            sealed.expect("0" * 64)
        assert refused.value.code == "weights.header"


def test_sealed_weights_are_known_by_their_beginning(folder: Sealed, tmp_path: Path) -> None:
    assert is_sealed(folder.path)
    assert not is_sealed(tmp_path / "one-source" / "config.json")
    assert not is_sealed(tmp_path / "missing")
    assert not is_sealed(tmp_path)


def reseal(source: Path, target: Path, **changes: object) -> None:
    arguments: dict[str, object] = {
        "kind": Kind.GGUF,
        "about": About(name="x"),
        "keep_key": lambda _key: None,
        **changes,
    }
    seal({"model.gguf": source}, target, **arguments)  # type: ignore[arg-type]


def test_a_file_that_changes_meanwhile_is_not_sealed(tmp_path: Path) -> None:
    source, target = tmp_path / "model.gguf", tmp_path / "out.sealed"
    for change in (b"B" * 5000, b"A" * 4999):
        source.write_bytes(b"A" * 5000)

        def meddle(step: str, _done: int, change: bytes = change) -> None:
            if step == "hashing":
                source.write_bytes(change)

        with pytest.raises(BuildError):
            reseal(source, target, progress=meddle)
        assert sorted(tmp_path.iterdir()) == [source]
    reseal(source, target)
    assert is_sealed(target)


def test_weights_whose_key_is_lost_never_come_to_be(tmp_path: Path) -> None:
    source, target = tmp_path / "model.gguf", tmp_path / "out.sealed"
    source.write_bytes(b"A")

    def lose(_key: bytes) -> None:
        raise OSError

    with pytest.raises(OSError):
        reseal(source, target, keep_key=lose)
    assert sorted(tmp_path.iterdir()) == [source]


def test_what_cannot_be_sealed_is_refused(tmp_path: Path) -> None:
    source, link, pipe = tmp_path / "model.gguf", tmp_path / "link", tmp_path / "pipe"
    source.write_bytes(b"A")
    link.symlink_to(source)
    os.mkfifo(pipe)
    target = tmp_path / "out.sealed"
    for bad in (link, pipe, tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigurationError):
            reseal(bad, target)
    with pytest.raises(ConfigurationError):
        reseal(source, tmp_path / "missing" / "out")
    with pytest.raises(MalformedError):
        reseal(source, target, chunk_bytes=1)
    assert not target.exists()
    reseal(source, target)
    with pytest.raises(ConfigurationError) as refused:
        reseal(source, target)
    assert refused.value.code == "weights.out_taken"


def test_a_key_of_another_size_is_refused(folder: Sealed) -> None:
    with pytest.raises(ConfigurationError):
        opened(folder.path, folder.key[:16])
    assert folder.key.hex() not in repr(ChunkCipher(folder.key, folder.header))


@pytest.mark.parametrize("threads", [1, 4])
def test_a_folder_gets_the_files_and_nothing_else(
    folder: Sealed, tmp_path: Path, threads: int
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with SealedFile(folder.path) as sealed, FolderSink(out) as sink:
        open_sealed(sealed, folder.key, sink, threads=threads)
    found = {p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.is_file()}
    assert {name: path.read_bytes() for name, path in found.items()} == folder.files
    assert all(path.stat().st_mode & 0o777 == 0o400 for path in found.values())


@pytest.mark.parametrize("threads", [1, 4])
def test_a_folder_is_empty_again_when_anything_fails(
    folder: Sealed, tmp_path: Path, threads: int
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    data = bytearray(folder.path.read_bytes())
    data[-1] ^= 1
    folder.path.write_bytes(data)
    with (
        pytest.raises(AuthenticationError),
        SealedFile(folder.path) as sealed,
        FolderSink(out) as sink,
    ):
        open_sealed(sealed, folder.key, sink, threads=threads)
    assert list(out.iterdir()) == []


def test_no_file_is_written_over_and_no_link_followed(folder: Sealed, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.write_text("mine")
    (out / "model.safetensors").symlink_to(elsewhere)
    with (
        pytest.raises(ConfigurationError),
        SealedFile(folder.path) as sealed,
        FolderSink(out) as sink,
    ):
        open_sealed(sealed, folder.key, sink)
    assert elsewhere.read_text() == "mine"
    assert [p.name for p in out.iterdir()] == ["model.safetensors"]


def test_a_file_that_is_there_stays_as_it_is(folder: Sealed, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").write_text("mine")
    with (
        pytest.raises(ConfigurationError),
        SealedFile(folder.path) as sealed,
        FolderSink(out) as sink,
    ):
        open_sealed(sealed, folder.key, sink)
    assert (out / "model.safetensors").read_text() == "mine"


def test_what_progress_raises_ends_the_opening(folder: Sealed) -> None:
    def stop(_bytes: int) -> None:
        raise InterruptedError

    for threads in (1, 3, 8):
        with SealedFile(folder.path) as sealed, pytest.raises(InterruptedError):
            open_sealed(sealed, folder.key, FolderSinkless(), threads=threads, progress=stop)


class FolderSinkless:
    """A sink to nowhere."""

    def create(self, _entry: object) -> FolderSinkless:
        return self

    def write(self, data: memoryview, offset: int) -> None:
        del data, offset

    def finish(self) -> None:
        raise AssertionError("it was stopped")


def test_a_disk_that_fails_is_an_error_of_our_own(
    folder: Sealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where dm-verity finds a block altered: reading it gives EIO."""
    preadv = os.preadv

    def failing(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset >= broken[0]:
            raise OSError(errno.EIO, "Input/output error")
        return preadv(descriptor, buffers, offset)

    broken = [folder.header.sealed_bytes]
    monkeypatch.setattr(os, "preadv", failing)
    assert opened(folder.path, folder.key).finished == folder.files.keys()
    for place in (folder.header.spans[-1].position, 20, 0):
        broken[0] = place
        with pytest.raises(ConfigurationError, match="errno 5"):
            opened(folder.path, folder.key)


def test_a_file_that_is_cut_while_it_is_read_is_refused(folder: Sealed) -> None:
    with SealedFile(folder.path) as sealed:
        os.truncate(folder.path, folder.header.sealed_bytes - 1)
        with pytest.raises(CloisterError) as refused:
            open_sealed(sealed, folder.key, FolderSinkless())
        assert refused.value.code == "weights.length"
