"""What opening sealed weights takes, and where it goes.

Arms do one more step each over the same bytes, in one thread and in the same pieces: read and
decrypt; that and SHA-256; that and a write to a fresh tmpfs, as the worker does it. The floor is
AES-256-GCM and SHA-256 over one chunk that stays in the core's cache, each alone and one after the
other, as if nothing had to be read or written. Beside them stands the tree of hashes that was not
taken: leaves of a chunk each, by two threads. What opens is a process of its own, which says how
much memory it took at its peak; what lies in its tmpfs, the model, does not count there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.context import Context
from benchmarks.harness import (
    Arm,
    Report,
    Rounds,
    Sample,
    Scale,
    at_least,
    at_most,
    beside,
    measure,
)
from benchmarks.harness import ratio as compared
from cloister.weights.cipher import KEY, ChunkCipher
from cloister.weights.header import DEFAULT_CHUNK, TAG, About, Kind
from cloister.weights.opening import Nowhere, open_sealed
from cloister.weights.reader import SealedFile
from cloister.weights.seal import seal

_GCM: Final = "AES-256-GCM alone"
_FLOOR: Final = "both, in the cache"
_SHM: Final = Path("/dev/shm")  # so that no disk is measured
_GIGABYTES: Final = Scale(unit="GB/s", factor=1e-9)
_MEBIBYTES: Final = Scale(unit="MiB", factor=1 / (1 << 20))

# In a process of its own, as the worker is: its folder in memory, then one checked pass.
_OPENING = """
import json, sys, time
from pathlib import Path
from cloister.attester.memory import close_memory, make_memory
from cloister.weights.folder import FolderSink
from cloister.weights.opening import open_sealed
from cloister.weights.reader import SealedFile
def peak():
    words = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()
    return 1024 * int(words[0])
folder, path, threads = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
key = bytes.fromhex(sys.stdin.readline())
with SealedFile(path) as sealed:
    make_memory(folder, size=sealed.header.plaintext_bytes, files=1, swaps=Path("/dev/null"))
    before = peak()
    cpu, began = time.process_time(), time.perf_counter()
    with FolderSink(folder) as sink:
        open_sealed(sealed, key, sink, threads=threads)
    close_memory(folder)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    more = peak() - before
size = sealed.header.plaintext_bytes
print(json.dumps({"rate": size / took, "cpu": size / cpu, "memory": more}))
"""


@contextlib.contextmanager
def _weights(size: int) -> Iterator[tuple[Path, bytes]]:
    """Sealed weights of `size` bytes in memory, and their key."""
    with tempfile.TemporaryDirectory(dir=_SHM) as name:
        folder, keys = Path(name), list[bytes]()
        source = folder / "model.gguf"
        piece = os.urandom(1 << 20)
        with source.open("wb") as file:
            for _ in range(size >> 20):
                file.write(piece)
        seal(
            {source.name: source},
            folder / "sealed",
            kind=Kind.GGUF,
            about=About(name="x"),
            keep_key=keys.append,
        )
        source.unlink()
        yield folder / "sealed", keys[0]


def _rate(size: int, work: Callable[[], object]) -> Sample:
    cpu, began = time.process_time(), time.perf_counter()
    work()
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"rate": size / took, "cpu": size / cpu}


def _decrypting(path: Path, key: bytes) -> None:
    with SealedFile(path) as sealed:
        cipher = ChunkCipher(key, sealed.header)
        into = memoryview(bytearray(sealed.header.chunk_bytes + TAG))
        plain = memoryview(bytearray(sealed.header.chunk_bytes))
        for span in sealed.header.spans:
            for chunk in sealed.header.chunks(span):
                cipher.open_into(chunk, sealed.read_chunk(chunk, into), plain[: chunk.size])


def _checking(path: Path, key: bytes) -> None:
    with SealedFile(path) as sealed:
        open_sealed(sealed, key, Nowhere())


def _opening(path: Path, key: bytes, *, threads: int) -> Sample:
    with tempfile.TemporaryDirectory() as name:
        done = subprocess.run(
            [sys.executable, "-c", _OPENING, f"{name}/memory", str(path), str(threads)],
            input=key.hex() + "\n",
            text=True,
            capture_output=True,
            check=True,
        )
    sample: Sample = json.loads(done.stdout)
    return sample


def _sha(size: int) -> None:
    piece, digest = bytes(DEFAULT_CHUNK), hashlib.sha256()
    for _ in range(size // DEFAULT_CHUNK):
        digest.update(piece)


def _gcm(size: int, *, hashed: bool = False) -> None:
    """Decrypt one chunk again and again, and hash it where it is."""
    key, nonce, digest = AESGCM(bytes(KEY)), bytes(12), hashlib.sha256()
    sealed, plain = key.encrypt(nonce, bytes(DEFAULT_CHUNK), None), bytearray(DEFAULT_CHUNK)
    for _ in range(size // DEFAULT_CHUNK):
        key.decrypt_into(nonce, sealed, None, plain)
        if hashed:
            digest.update(plain)


def _tree(size: int) -> None:
    """Leaves of a chunk each, and one hash over them, by two threads."""
    piece = bytes(DEFAULT_CHUNK)

    def leaves(count: int) -> list[bytes]:
        return [hashlib.sha256(piece).digest() for _ in range(count)]

    with ThreadPoolExecutor(2) as pool:
        halves = pool.map(leaves, [size // DEFAULT_CHUNK // 2] * 2)
        hashlib.sha256(b"".join(leaf for half in halves for leaf in half)).digest()


def run(context: Context) -> Report:
    size = context.count(256 << 20, 8 << 20)
    with _weights(size) as (path, key):
        arms = [
            Arm(name="open, one thread", run=lambda: _opening(path, key, threads=1)),
            Arm(name="open, two threads", run=lambda: _opening(path, key, threads=2)),
            Arm(name="decrypt and hash", run=lambda: _rate(size, lambda: _checking(path, key))),
            Arm(name="decrypt", run=lambda: _rate(size, lambda: _decrypting(path, key))),
            Arm(name=_GCM, run=lambda: _rate(size, lambda: _gcm(size))),
            Arm(name=_FLOOR, run=lambda: _rate(size, lambda: _gcm(size, hashed=True))),
            Arm(name="SHA-256 alone", run=lambda: _rate(size, lambda: _sha(size))),
            Arm(name="tree, two threads", run=lambda: _rate(size, lambda: _tree(size))),
        ]
        rounds = measure(arms, context.plan(7))
    whole, sha = "open, one thread", "SHA-256 alone"
    figures = (
        beside(
            "Sealed weights opened, per core",
            rounds,
            whole,
            sha,
            "cpu",
            scale=_GIGABYTES,
            target=at_least(1.2),
            notes="read, decrypted, hashed, written to memory",
        ),
        compared(
            "The same, by what is left out: the write",
            rounds,
            whole,
            "decrypt and hash",
            "cpu",
            scale=_GIGABYTES,
        ),
        compared("… and hashing", rounds, "decrypt and hash", "decrypt", "cpu", scale=_GIGABYTES),
        compared("Opening over its floor", rounds, whole, _FLOOR, "cpu", scale=_GIGABYTES),
        compared("Opening beside hashing alone", rounds, whole, sha, "cpu", scale=_GIGABYTES),
        beside(
            "One file opened by two threads, by the clock",
            rounds,
            "open, two threads",
            whole,
            "rate",
            scale=_GIGABYTES,
        ),
        compared(
            "Two threads for one file", rounds, "open, two threads", whole, "rate", scale=_GIGABYTES
        ),
        compared(
            "A tree of hashes, two threads",
            rounds,
            "tree, two threads",
            sha,
            "rate",
            scale=_GIGABYTES,
        ),
        beside(
            "Memory besides the model",
            rounds,
            "open, two threads",
            whole,
            "memory",
            scale=_MEBIBYTES,
            target=at_most(64),
        ),
    )
    return Report(
        title="Opening sealed weights",
        method=f"{size >> 20} MiB in chunks of {DEFAULT_CHUNK >> 10} KiB, all of it in memory. "
        "Rates of one thread are per second of processor time.",
        figures=figures,
        remarks=(_shares(rounds, whole, sha),),
        raw={"opening": rounds},
    )


def _shares(rounds: Rounds, whole: str, sha: str) -> str:
    """Where a byte's time goes, from the medians of the arms."""

    def spent(arm: str) -> float:
        return 1e9 / statistics.median(rounds.values(arm, "cpu"))

    total, hashing, decrypting = spent(whole), spent(sha), spent(_GCM)
    reading, writing = spent("decrypt") - decrypting, total - spent("decrypt and hash")
    parts = {"SHA-256": hashing, "AES-256-GCM": decrypting, "reading": reading, "writing": writing}
    parts["the caches that they take from each other, and Python"] = total - sum(parts.values())
    told = ", ".join(f"{name} {part:.2f} ({part / total:.0%})" for name, part in parts.items())
    return (
        f"Of {total:.2f} ns that one thread spends on a byte: {told}. The first two alone come to "
        f"{1 / (hashing + decrypting):.2f} GB/s: one core that decrypts and hashes is no quicker, "
        "whatever the rest costs."
    )
