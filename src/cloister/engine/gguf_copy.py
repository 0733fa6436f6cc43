"""Reads and writes whole GGUF files with the ``gguf`` package: metadata, shapes, types.

Files are expected to be the operator's own. One that cannot be read is MalformedError, but how
long it takes over a hostile one is not bounded here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cloister.engine.ggml import TYPES, WeightType
from cloister.errors import ConfigurationError, MalformedError, UnsupportedError

QUANTIZATION_VERSION: Final = 2
"""``GGML_QNT_VERSION``: of all block layouts since 2023."""
_FIXED: Final = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count")


def load_gguf_package() -> None:
    """ConfigurationError unless the packages that read GGUF files are there."""
    try:
        import gguf  # noqa: F401
        import numpy as np  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"the package {error.name} is not installed: pip install 'cloister[quantize]'",
            code="quantize.packages",
        ) from None


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Any]:
    """Open a GGUF file with the ``gguf`` package; MalformedError if that cannot read it."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read (errno {error.errno})", code="configuration.model"
        ) from None
    except (ValueError, KeyError, IndexError, OverflowError, MemoryError, TypeError):
        raise MalformedError("the file is not a GGUF model that can be read") from None
    if reader.byte_order != "I":
        raise MalformedError("the GGUF file is of the other byte order")
    yield reader


def kind_of(tensor: Any) -> WeightType:
    """The type of a tensor's weights."""
    return TYPES[tensor.tensor_type.name]


def copy_metadata(reader: Any, writer: Any, wanted: WeightType) -> None:
    """Hand all pairs to the writer, those that name the type of weights as `wanted`."""
    import gguf

    fields = {name: field for name, field in reader.fields.items() if name not in _FIXED}
    # The writer names the architecture by itself, at the very beginning.
    fields.pop("general.architecture", None)
    for name in ("general.file_type", "general.quantization_version"):
        fields.setdefault(name, None)
    for name, field in fields.items():
        if name == "general.file_type":
            writer.add_file_type(wanted.file_type)
        elif name == "general.quantization_version":
            writer.add_quantization_version(QUANTIZATION_VERSION)
        else:
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            value = field.contents()
            if inner is not None and not value:
                raise UnsupportedError(
                    "the model's metadata has an empty list, which the gguf package cannot write",
                    code="quantize.metadata",
                )
            writer.add_key_value(name, value, kind, sub_type=inner)


def announce(writer: Any, tensor: Any, kind: WeightType) -> None:
    """Tell the writer that `tensor` comes, as `kind`: its name, shape and type."""
    import gguf
    import numpy as np

    columns, *rest = (int(size) for size in tensor.shape)
    shape = (*reversed(rest), columns)
    size = int(tensor.n_elements) // columns * kind.row_bytes(columns)
    # With another element type than bytes the writer takes the shape for one of weights.
    number = gguf.GGMLQuantizationType(kind.number)
    writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), size, raw_dtype=number)


def floats(rows: Any, tensor: Any) -> Any:
    """Rows of any type as contiguous float32."""
    import gguf
    import numpy as np

    return np.ascontiguousarray(gguf.quants.dequantize(rows, tensor.tensor_type), dtype=np.float32)
