"""The types of weights in GGUF files, and llama.cpp's own code that quantises to them.

The shared object of `xllamacpp` exports the C interface of ggml and llama.cpp
(``ggml/include/ggml.h``, ``include/llama.h``), which makes no promise between versions. So it is
used only in versions that were tried, and before its first use every symbol is looked up, every
size is compared with the table below, and one block is quantised whose bytes are known.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cloister.errors import ConfigurationError, UnsupportedError

LIBRARY: Final = "xllamacpp"
TRIED: Final = ("2026.10.11549",)
"""Versions whose interface is known to be the one declared here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightType:
    """One type of weights: `block` weights in `block_bytes` bytes.

    `number` is its ``ggml_type``; `file_type` the ``llama_ftype`` (``general.file_type``) of a
    file that mostly has it. For K-quants that is the "small" mixture, which is what a file has
    whose matrices are all of one type.
    """

    name: str
    number: int
    file_type: int
    block: int
    block_bytes: int
    fallback: str | None = None
    """What a matrix becomes whose rows are no multiple of `block`."""

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` weights, a multiple of `block`."""
        return columns // self.block * self.block_bytes


def _types() -> dict[str, WeightType]:
    rows: tuple[tuple[str, int, int, int, int, str | None], ...] = (
        # name, ggml_type, llama_ftype, weights in a block, bytes of a block, fallback
        ("F32", 0, 0, 1, 4, None),
        ("F16", 1, 1, 1, 2, None),
        ("BF16", 30, 32, 1, 2, None),
        ("Q8_0", 8, 7, 32, 34, "F16"),
        ("Q5_1", 7, 9, 32, 24, "F16"),
        ("Q5_0", 6, 8, 32, 22, "F16"),
        ("Q4_1", 3, 3, 32, 20, "F16"),
        ("Q4_0", 2, 2, 32, 18, "F16"),
        ("Q6_K", 14, 18, 256, 210, "Q8_0"),
        ("Q5_K", 13, 16, 256, 176, "Q5_1"),
        ("Q4_K", 12, 14, 256, 144, "Q5_0"),
        ("Q3_K", 11, 11, 256, 110, "Q4_0"),
        ("Q2_K", 10, 10, 256, 84, "Q4_0"),
    )
    return {
        name: WeightType(
            name=name,
            number=number,
            file_type=file_type,
            block=block,
            block_bytes=size,
            fallback=fallback,
        )
        for name, number, file_type, block, size, fallback in rows
    }


TYPES: Final = _types()
PLAIN: Final = ("F32", "F16", "BF16")
SIMPLE: Final = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""Those that numpy code of the ``gguf`` package makes as well."""


def weight_type(name: str) -> WeightType:
    """The type of that name, in any case; ConfigurationError for one that is not known."""
    found = TYPES.get(name.strip().upper())
    if found is None:
        raise ConfigurationError(
            f"weights can be made {', '.join(TYPES)}; {name.strip()[:20]!r} is none of them",
            code="quantize.type",
        )
    return found


class Library:
    """The shared object, in a version that was tried. Nothing is called that is not declared."""

    def __init__(self, version: str, handle: ctypes.CDLL) -> None:
        self.version = version
        self._handle = handle

    def declare(self, name: str, result: Any, *arguments: Any) -> Any:
        """Look `name` up and declare it. UnsupportedError if it is not there."""
        try:
            function = getattr(self._handle, name)
        except AttributeError:
            raise UnsupportedError(
                f"{LIBRARY} {self.version} does not export {name}", code="engine.interface"
            ) from None
        function.restype = result
        function.argtypes = arguments
        return function


def open_library() -> Library:
    """Load the shared object.

    Raises:
        ConfigurationError: it is not installed (code ``configuration.engine_missing``).
        UnsupportedError: it is of a version that was not tried, or laid out in another way
            (code ``engine.interface``).
    """
    found = importlib.util.find_spec(LIBRARY)
    if found is None or found.origin is None:
        raise ConfigurationError(
            f"{LIBRARY} is not installed: pip install 'cloister[serve]'",
            code="configuration.engine_missing",
        )
    version = importlib.metadata.version(LIBRARY)
    if version not in TRIED:
        raise UnsupportedError(
            f"the C interface of {LIBRARY} {version} was not tried; "
            f"use one that was: pip install '{LIBRARY}=={TRIED[-1]}'",
            code="engine.interface",
        )
    objects = sorted(Path(found.origin).parent.glob("*.so"))
    if len(objects) != 1:
        raise UnsupportedError(
            f"{LIBRARY} {version} has {len(objects)} shared objects, not one",
            code="engine.interface",
        )
    try:
        return Library(version, ctypes.CDLL(str(objects[0])))
    except OSError:
        raise ConfigurationError(
            f"the shared object of {LIBRARY} cannot be loaded "
            "(Debian: apt-get install libgomp1 libstdc++6)",
            code="configuration.engine_missing",
        ) from None


class GgmlQuantiser:
    """Quantises rows with ``ggml_quantize_chunk``. Safe to use from several threads."""

    def __init__(self, library: Library) -> None:
        """Declare what is used and check it; UnsupportedError if anything is not as expected."""
        self.tool = (LIBRARY, library.version)
        number, pointer = ctypes.c_int, ctypes.c_void_p
        wide = ctypes.c_int64
        self._chunk = library.declare(
            "ggml_quantize_chunk", ctypes.c_size_t, number, pointer, pointer, wide, wide, wide,
            pointer,
        )  # fmt: skip
        self._row_size = library.declare("ggml_row_size", ctypes.c_size_t, number, wide)
        initialise = library.declare("ggml_quantize_init", None, number)
        name_of = library.declare("ggml_type_name", ctypes.c_char_p, number)
        for kind in TYPES.values():
            said = name_of(kind.number)
            size = self._row_size(kind.number, kind.block * 3)
            if said is None or said.decode().upper() != kind.name or size != 3 * kind.block_bytes:
                raise _unknown(library.version, f"of {kind.name}")
            initialise(kind.number)  # tables that are made at first use; here, in one thread
        self._check(library.version)

    def quantise(self, rows: Any, kind: WeightType) -> Any:
        """Return `rows` (numpy, float32, contiguous, two-dimensional) as rows of bytes."""
        import numpy as np

        if rows.dtype != np.float32 or rows.ndim != 2 or not rows.flags.c_contiguous:
            raise TypeError("rows are a contiguous, two-dimensional array of float32")
        count, columns = rows.shape
        if columns % kind.block:
            raise ValueError("a row is a multiple of the block")
        made = np.zeros((count, kind.row_bytes(columns)), dtype=np.uint8)
        size = self._chunk(kind.number, rows.ctypes.data, made.ctypes.data, 0, count, columns, None)
        if size != made.nbytes:
            raise RuntimeError("the library wrote another number of bytes than it said")
        return made

    def _check(self, version: str) -> None:
        """Quantise a block with the scale 1, whose bytes follow from the format."""
        block = [*range(31), 127]
        weights = (ctypes.c_float * 32)(*block)
        made = (ctypes.c_uint8 * 64)()
        size = self._chunk(TYPES["Q8_0"].number, weights, made, 0, 1, 32, None)
        if size != 34 or bytes(made[:34]) != struct.pack("<e32b", 1.0, *block) or any(made[34:]):
            raise _unknown(version, "of quantised blocks")


def _unknown(version: str, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"the layout {what} in {LIBRARY} {version} is not the one known here",
        code="engine.interface",
    )
