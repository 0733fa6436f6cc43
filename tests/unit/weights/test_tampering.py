"""No sealed file that was altered opens, and no wrong byte reaches whoever reads.

Each alteration is of one small file, whose unaltered twin opens in the same way.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cloister.errors import AuthenticationError, CloisterError, ConfigurationError, MalformedError
from cloister.weights.cipher import ChunkCipher
from cloister.weights.folder import FolderSink
from cloister.weights.header import MAGIC, MIN_CHUNK, PREAMBLE, TAG, Chunk, FileEntry, Header
from cloister.weights.opening import Output, Sink, open_sealed
from cloister.weights.reader import SealedFile
from support.sealed_weights import Kept, Sealed, opened, sealed_file, sealed_folder

SIZES = {"config.json": 0, "model.safetensors": 2 * MIN_CHUNK + 7, "z/tokenizer.json": MIN_CHUNK}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    """One file of two chunks."""
    return sealed_file(tmp_path_factory.mktemp("small"), MIN_CHUNK + 16)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    """Three files of five chunks, one of them empty."""
    return sealed_folder(tmp_path_factory.mktemp("several"), SIZES)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "altered.sealed"


def refuse(path: Path, data: bytes, sealed: Sealed, *, key: bytes | None = None) -> CloisterError:
    """The error with which `data` is refused; the unaltered file opens in the same way."""
    path.write_bytes(data)
    kept = Kept()
    try:
        opened(path, sealed.key if key is None else key, kept)
    except (AuthenticationError, MalformedError) as error:
        assert kept.holds_only_parts_of(sealed.files)
        return error
    pytest.fail("it opened")


def test_the_unaltered_twins_open(small: Sealed, several: Sealed, target: Path) -> None:
    for sealed in (small, several):
        target.write_bytes(sealed.path.read_bytes())
        kept = opened(target, sealed.key)
        assert {name: bytes(data) for name, data in kept.files.items()} == sealed.files
        assert kept.finished == sealed.files.keys()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A folder opens, and a pipe too; neither can be read from any place."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe):
        with pytest.raises(ConfigurationError, match="no file"):
            SealedFile(path)


def test_every_flipped_bit_is_refused(small: Sealed, target: Path) -> None:
    data = small.path.read_bytes()
    target.write_bytes(data)
    refused = 0
    with target.open("r+b", buffering=0) as file:
        for place, byte in enumerate(data):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), place)
                kept = Kept()
                try:
                    opened(target, small.key, kept)
                except (AuthenticationError, MalformedError):
                    refused += 1
                assert kept.holds_only_parts_of(small.files)
            os.pwrite(file.fileno(), bytes([byte]), place)
    assert refused == 8 * len(data)
    assert opened(target, small.key).finished == small.files.keys()


def test_every_truncation_is_refused(several: Sealed, target: Path) -> None:
    target.write_bytes(several.path.read_bytes())
    for length in reversed(range(several.header.sealed_bytes)):
        os.truncate(target, length)
        kept = Kept()
        with pytest.raises(MalformedError):
            opened(target, several.key, kept)
        assert kept.files == {}


def test_anything_appended_is_refused(several: Sealed, target: Path) -> None:
    data = several.path.read_bytes()
    last = data[-(MIN_CHUNK + TAG) :]
    for more in (b"\0", last, data):
        assert refuse(target, data + more, several).code == "weights.length"


def pieces(sealed: Sealed) -> tuple[bytes, list[bytes]]:
    """The preamble with the header, and every chunk."""
    data, header = sealed.path.read_bytes(), sealed.header
    found = [
        data[chunk.position : chunk.position + chunk.size + TAG]
        for span in header.spans
        for chunk in header.chunks(span)
    ]
    return data[: PREAMBLE + len(header.encoded)], found


def test_every_reordering_and_duplication_is_refused(several: Sealed, target: Path) -> None:
    head, chunks = pieces(several)
    assert head + b"".join(chunks) == several.path.read_bytes()
    for one in range(len(chunks)):
        for other in range(len(chunks)):
            if one == other:
                continue
            swapped, doubled = list(chunks), list(chunks)
            swapped[one], swapped[other] = chunks[other], chunks[one]
            doubled[one] = chunks[other]
            for altered in (swapped, doubled):
                refuse(target, head + b"".join(altered), several)


def test_a_chunk_left_out_is_refused(several: Sealed, target: Path) -> None:
    head, chunks = pieces(several)
    for one in range(len(chunks)):
        refuse(target, head + b"".join(chunks[:one] + chunks[one + 1 :]), several)


def headers_like(header: Header) -> Iterator[Header]:
    """Headers that decode and differ in one thing, each fit for a file of the same length."""
    yield replace(header, salt=bytes(32))
    yield replace(header, about=replace(header.about, name="tiny!"))
    yield replace(header, about=replace(header.about, context_length=65))
    first, second, third = header.files
    yield replace(header, files=(replace(first, sha256="0" * 64), second, third))
    yield replace(header, files=(replace(first, path="config.jsonx"), second, third))
    # One byte more here and one less there: the length of the whole stays.
    yield replace(
        header,
        files=(first, replace(second, size=second.size + 1), replace(third, size=third.size - 1)),
    )


def test_every_other_header_is_refused(several: Sealed, target: Path) -> None:
    _, chunks = pieces(several)
    for header in headers_like(several.header):
        encoded = header.encoded
        data = MAGIC + len(encoded).to_bytes(4, "big") + encoded + b"".join(chunks)
        assert len(data) == header.sealed_bytes
        assert refuse(target, data, several).code == "weights.chunk"


def test_the_header_of_other_weights_is_refused(tmp_path: Path, target: Path) -> None:
    """The same files sealed twice differ in their key and salt only."""
    sealed = sealed_file(tmp_path, MIN_CHUNK + 9)
    (tmp_path / "again").mkdir()
    again = sealed_file(tmp_path / "again", MIN_CHUNK + 9)
    assert sealed.files == again.files
    assert sealed.key != again.key
    assert sealed.header.salt != again.header.salt
    head, chunks = pieces(again)
    data = head + b"".join(pieces(sealed)[1])
    assert refuse(target, data, sealed).code == "weights.key"
    assert refuse(target, data, sealed, key=again.key).code == "weights.chunk"
    mixed = head + chunks[0] + pieces(sealed)[1][1]
    assert refuse(target, mixed, sealed, key=again.key).code == "weights.chunk"


def test_a_file_of_other_weights_in_its_place_is_refused(tmp_path: Path, target: Path) -> None:
    one, two = (sealed_folder(tmp_path, SIZES, label=label) for label in ("one", "two"))
    head, chunks = pieces(one)
    _, others = pieces(two)
    for number in range(len(chunks)):
        altered = [*chunks[:number], others[number], *chunks[number + 1 :]]
        assert refuse(target, head + b"".join(altered), one).code == "weights.chunk"


def test_another_key_is_refused_before_anything_is_read(small: Sealed) -> None:
    kept = Kept()
    with pytest.raises(AuthenticationError) as refused:
        opened(small.path, bytes(32), kept)
    assert refused.value.code == "weights.key"
    assert kept.files == {}
    assert "00000000" not in str(refused.value)


class Forger(ChunkCipher):
    """Whoever has the key, and seals what no sealer would."""

    __slots__ = ()

    def sealed(self, chunk: Chunk, plaintext: bytes) -> bytes:
        out = bytearray(len(plaintext) + TAG)
        self.seal_into(chunk, plaintext, out)
        return bytes(out)


def forged(sealed: Sealed, **changes: object) -> bytes:
    """The same content with each chunk's record changed before it is sealed."""
    head, _ = pieces(sealed)
    forger = Forger(sealed.key, sealed.header)
    made = [head]
    for span in sealed.header.spans:
        content = sealed.files[span.entry.path]
        for chunk in sealed.header.chunks(span):
            plain = content[chunk.offset : chunk.offset + chunk.size]
            made.append(forger.sealed(replace(chunk, **changes), plain))  # type: ignore[arg-type]
    return b"".join(made)


def test_the_final_chunk_has_to_say_so_and_no_other_may(several: Sealed, target: Path) -> None:
    target.write_bytes(forged(several))
    opened(target, several.key)
    for final in (True, False):
        assert refuse(target, forged(several, final=final), several).code == "weights.chunk"


def test_what_opens_and_has_another_digest_is_refused(several: Sealed, target: Path) -> None:
    """The owner's own sealer, gone wrong: each chunk is authentic, the file is another."""
    lying = replace(several, files={**several.files, "z/tokenizer.json": bytes(MIN_CHUNK)})
    data = forged(lying)
    target.write_bytes(data)
    kept = Kept()
    with pytest.raises(AuthenticationError) as refused:
        opened(target, several.key, kept)
    assert refused.value.code == "weights.digest"
    assert "z/tokenizer.json" not in kept.finished


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_any_number_of_threads_refuses_the_same(
    several: Sealed, small: Sealed, target: Path, threads: int
) -> None:
    for sealed in (several, small):
        assert opened(sealed.path, sealed.key, threads=threads).finished == sealed.files.keys()
        data = bytearray(sealed.path.read_bytes())
        data[-1] ^= 1
        target.write_bytes(data)
        kept = Kept()
        with pytest.raises(AuthenticationError):
            opened(target, sealed.key, kept, threads=threads)
        assert kept.holds_only_parts_of(sealed.files)
        assert kept.finished != sealed.files.keys()


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    """A file of 19 chunks, which helpers open some at a time, and one beside it."""
    sizes = {"config.json": 7, "model.safetensors": 18 * MIN_CHUNK + 5}
    return sealed_folder(tmp_path_factory.mktemp("long"), sizes, label="long")


@pytest.mark.parametrize("threads", [1, 4, 6, 9, 64])
def test_helpers_put_every_chunk_in_its_place(long: Sealed, threads: int, tmp_path: Path) -> None:
    kept = opened(long.path, long.key, threads=threads)
    assert {name: bytes(data) for name, data in kept.files.items()} == long.files
    assert sum(len(data) for _, _, data in kept.written) == long.header.plaintext_bytes
    with SealedFile(long.path) as sealed, FolderSink(tmp_path) as sink:
        open_sealed(sealed, long.key, sink, threads=threads)
    assert {name: (tmp_path / name).read_bytes() for name in long.files} == long.files


@pytest.mark.parametrize("threads", [1, 4, 9])
def test_helpers_refuse_each_altered_chunk(long: Sealed, threads: int, target: Path) -> None:
    assert opened(long.path, long.key, threads=threads).finished == long.files.keys()
    data = long.path.read_bytes()
    for span in long.header.spans:
        for chunk in long.header.chunks(span):
            altered = bytearray(data)
            altered[chunk.position] ^= 1
            target.write_bytes(altered)
            kept = Kept()
            with pytest.raises(AuthenticationError) as refused:
                opened(target, long.key, kept, threads=threads)
            assert refused.value.code == "weights.chunk"
            assert kept.holds_only_parts_of(long.files)
            assert span.entry.path not in kept.finished


@pytest.mark.parametrize("threads", [1, 4, 9])
def test_helpers_change_nothing_about_the_digest(long: Sealed, threads: int, target: Path) -> None:
    """Each chunk is authentic, and one of them is not what the header's digest is of."""
    content = bytearray(long.files["model.safetensors"])
    content[-1] ^= 1
    lying = replace(long, files={**long.files, "model.safetensors": bytes(content)})
    assert forged(long) == long.path.read_bytes()
    target.write_bytes(forged(lying))
    kept = Kept()
    with pytest.raises(AuthenticationError) as refused:
        opened(target, long.key, kept, threads=threads)
    assert refused.value.code == "weights.digest"
    assert "model.safetensors" not in kept.finished


class Slow:
    """A sink that takes its time over each piece."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def create(self, entry: FileEntry) -> Output:
        return SlowFile(self._sink.create(entry))


class SlowFile:
    def __init__(self, output: Output) -> None:
        self._output = output

    def write(self, data: memoryview, offset: int) -> None:
        time.sleep(0.01 if offset else 0)
        self._output.write(data, offset)

    def finish(self) -> None:
        self._output.finish()


def test_nothing_is_written_once_opening_has_failed(long: Sealed, target: Path) -> None:
    """A helper that was still at work would write to a sink that was thrown away."""
    data = bytearray(long.path.read_bytes())
    data[long.header.spans[1].position + 5 * (MIN_CHUNK + TAG)] ^= 1
    target.write_bytes(data)

    kept = Kept()
    with SealedFile(target) as sealed, pytest.raises(AuthenticationError):
        open_sealed(sealed, long.key, Slow(kept), threads=8)
    written = len(kept.written)
    assert not [t for t in threading.enumerate() if t.name.startswith("weights")]
    assert len(kept.written) == written
