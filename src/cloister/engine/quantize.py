"""Makes smaller copies of a GGUF model: the same file with its matrices in another type.

Metadata and the order of tensors stay as they are; what changes is ``general.file_type`` and
``general.quantization_version``. Which matrices are changed follows llama.cpp's ``llama-quantize``
without an importance matrix: those with at least two dimensions whose name ends in ``weight``,
apart from norms, routers and positions. The output matrix, to which a model is most sensitive, gets
at least Q6_K, unless a `pure` file is asked for.

The same file, type and versions of the tools give the same bytes, whatever the number of threads:
rows are quantised one by one.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from cloister.engine.ggml import PLAIN, SIMPLE, TYPES, GgmlQuantiser, WeightType, open_library
from cloister.engine.gguf_copy import (
    announce,
    copy_metadata,
    floats,
    kind_of,
    load_gguf_package,
    reading,
)
from cloister.engine.model_record import FileRecord, ModelRecord, check_room, describe_file
from cloister.errors import BuildError, ConfigurationError, MalformedError, UnsupportedError

OPERATION: Final = "quantize"

_SENSITIVE: Final = TYPES["Q6_K"]
_CHUNK: Final = 1 << 22  # weights taken at a time and per thread, 16 MiB as float32
_KEPT: Final = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "position_embd.weight",
    "token_types.weight", "ssm_conv1d.weight", "attn_rel_b.weight",
)  # fmt: skip
_MATRIX_DIMENSIONS: Final = (2, 3)  # three where experts are stacked

Progress = Callable[[int, int], None]
"""Called with the weights done and the weights there are, for each file anew."""


class Quantiser(Protocol):
    """Turns rows of float32 into rows of blocks."""

    @property
    def tool(self) -> tuple[str, str]:
        """Name and version of what does it."""

    def quantise(self, rows: Any, kind: WeightType) -> Any:
        """Return `rows` (numpy, float32, two-dimensional) as rows of bytes."""


class NumpyQuantiser:
    """The numpy code of the ``gguf`` package: simple types only, the same bytes as llama.cpp's."""

    def __init__(self) -> None:
        self.tool = ("gguf", importlib.metadata.version("gguf"))

    def quantise(self, rows: Any, kind: WeightType) -> Any:
        """As `Quantiser.quantise`; ConfigurationError for a type it does not know."""
        import gguf

        if kind.name not in SIMPLE:
            raise ConfigurationError(
                f"{kind.name} needs llama.cpp: pip install 'cloister[serve]'",
                code="configuration.engine_missing",
            )
        return gguf.quants.quantize(rows, gguf.GGMLQuantizationType(kind.number))


def find_quantiser() -> Quantiser:
    """llama.cpp's own code where it is installed, numpy's otherwise.

    Raises UnsupportedError for a version that was not tried.
    """
    try:
        return GgmlQuantiser(open_library())
    except ConfigurationError:
        return NumpyQuantiser()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """How to quantise. None of it but `pure` and `requantize` changes a byte."""

    pure: bool = False
    """Every matrix gets the type asked for, the output matrix too."""
    requantize: bool = False
    """Accept a file that is quantised already: what it has lost stays lost."""
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One copy to be made of an opened file."""

    reader: Any
    wanted: WeightType
    quantiser: Quantiser
    options: QuantizeOptions
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One tensor and what becomes of it; None: it is copied."""

    tensor: Any
    kind: WeightType | None


def quantize_model(
    source: Path,
    kinds: tuple[WeightType, ...],
    folder: Path,
    *,
    quantiser: Quantiser,
    options: QuantizeOptions,
    progress: Callable[[str, int, int], None] | None = None,
) -> ModelRecord:
    """Write one file per type into `folder`, and ``model.json`` beside them; return that.

    `progress` is called with a type's name, the weights done and the weights there are.

    Raises:
        ConfigurationError: the source is missing, quantised or split, or `folder` holds a record
            of something else.
        MalformedError: the source is not GGUF.
    """
    load_gguf_package()
    inputs = (describe_file(source, source.name),)
    folder.mkdir(parents=True, exist_ok=True)
    check_room(folder, operation=OPERATION, inputs=inputs)
    outputs = []
    with reading(source) as reader:
        _check_source(reader, options)
        for kind in kinds:
            target = folder / f"{_stem(source)}-{kind.name}.gguf"
            if target.exists() and target.samefile(source):
                raise ConfigurationError(
                    f"{target} is the source itself: choose another --out", code="model.out_taken"
                )
            job = _Job(
                reader=reader,
                wanted=kind,
                quantiser=quantiser,
                options=options,
                progress=_named(progress, kind),
            )
            _write(job, target)
            outputs.append(describe_file(target, target.name))
    outputs.sort(key=lambda file: file.path)
    record = _record(inputs, tuple(outputs), kinds, quantiser, options)
    record.write(folder)
    return record


def _named(progress: Callable[[str, int, int], None] | None, kind: WeightType) -> Progress:
    if progress is None:
        return lambda _done, _total: None
    return lambda done, total: progress(kind.name, done, total)


def _stem(source: Path) -> str:
    """The file's name without its ending and without the type it ends in."""
    stem = source.name.removesuffix(".gguf")
    for name in TYPES:
        if stem.upper().endswith((f"-{name}", f".{name}")):
            return stem[: -len(name) - 1]
    return stem


def _record(
    inputs: tuple[FileRecord, ...],
    outputs: tuple[FileRecord, ...],
    kinds: tuple[WeightType, ...],
    quantiser: Quantiser,
    options: QuantizeOptions,
) -> ModelRecord:
    tools = {name: importlib.metadata.version(name) for name in ("cloister", "gguf", "numpy")}
    tools[quantiser.tool[0]] = quantiser.tool[1]
    return ModelRecord(
        operation=OPERATION,
        inputs=inputs,
        outputs=outputs,
        tools=tools,
        options={
            "types": ",".join(kind.name for kind in kinds),
            "pure": "yes" if options.pure else "no",
            "requantize": "yes" if options.requantize else "no",
        },
    )


def _check_source(reader: Any, options: QuantizeOptions) -> None:
    split = reader.get_field("split.count")
    if split is not None and split.contents() > 1:
        raise ConfigurationError(
            "the model is split over several files; join them first (llama-gguf-split --merge)",
            code="quantize.split",
        )
    quantised = {t.tensor_type.name for t in reader.tensors} - set(PLAIN)
    unknown = quantised - set(TYPES)
    if unknown:
        raise UnsupportedError(
            f"the model has weights of the type {min(unknown)}, which is not known here",
            code="quantize.type",
        )
    if quantised and not options.requantize:
        raise ConfigurationError(
            f"the model is quantised already ({', '.join(sorted(quantised))}): start from the "
            "unquantised one, or accept its loss with --requantize",
            code="quantize.source",
        )


def plan(reader: Any, wanted: WeightType, *, pure: bool) -> list[tuple[str, str]]:
    """What becomes of each tensor: (name, type), in the order of the file."""
    return [
        (step.tensor.name, (step.kind or kind_of(step.tensor)).name)
        for step in _steps(reader, wanted, pure=pure)
    ]


def _steps(reader: Any, wanted: WeightType, *, pure: bool) -> list[_Step]:
    names = {tensor.name for tensor in reader.tensors}
    # Where embeddings are tied there is no output matrix of its own.
    output = "output.weight" if "output.weight" in names else "token_embd.weight"
    return [
        _Step(tensor=tensor, kind=_choose(tensor, wanted, pure=pure, sensitive=output))
        for tensor in reader.tensors
    ]


def _choose(tensor: Any, wanted: WeightType, *, pure: bool, sensitive: str) -> WeightType | None:
    name, dimensions = tensor.name, len(tensor.shape)
    if dimensions not in _MATRIX_DIMENSIONS or not name.endswith("weight") or name.endswith(_KEPT):
        return None
    kind = wanted
    if name == sensitive and not pure and _bits(wanted) < _bits(_SENSITIVE):
        kind = _SENSITIVE
    columns = int(tensor.shape[0])
    while columns % kind.block:
        kind = TYPES[kind.fallback or "F16"]
    return None if kind is kind_of(tensor) else kind


def _bits(kind: WeightType) -> float:
    return 8 * kind.block_bytes / kind.block


def _write(job: _Job, target: Path) -> None:
    """Write `target`, whole or not at all."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".quantize-", suffix=".gguf")
    os.close(descriptor)
    partial = Path(name)
    try:
        _write_file(job, partial)
        partial.chmod(0o644)
        partial.replace(target)
    except OSError as error:
        raise BuildError(
            f"{target} cannot be written (errno {error.errno})", code="quantize.write"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def _write_file(job: _Job, path: Path) -> None:
    import gguf

    reader = job.reader
    architecture = reader.get_field("general.architecture")
    if architecture is None:
        raise MalformedError("the GGUF file does not name an architecture")
    with contextlib.closing(gguf.GGUFWriter(path, architecture.contents())) as writer:
        writer.data_alignment = int(reader.alignment)
        copy_metadata(reader, writer, job.wanted)
        steps = _steps(reader, job.wanted, pure=job.options.pure)
        for step in steps:
            announce(writer, step.tensor, step.kind or kind_of(step.tensor))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        _write_weights(writer, steps, job)


def _write_weights(writer: Any, steps: list[_Step], job: _Job) -> None:
    total, done = sum(int(step.tensor.n_elements) for step in steps), 0
    with ThreadPoolExecutor(max(1, job.options.threads)) as pool:
        for step in steps:
            writer.write_tensor_data(_made(step, job.quantiser, pool))
            done += int(step.tensor.n_elements)
            job.progress(done, total)


def _made(step: _Step, quantiser: Quantiser, pool: ThreadPoolExecutor) -> Any:
    """The bytes of one tensor as they are to be written."""
    import numpy as np

    if step.kind is None:
        return np.ascontiguousarray(step.tensor.data)
    kind, columns = step.kind, int(step.tensor.shape[0])
    rows = step.tensor.data.reshape(-1, step.tensor.data.shape[-1])
    made = np.empty((len(rows), kind.row_bytes(columns)), dtype=np.uint8)
    height = max(1, _CHUNK // columns)

    def convert(start: int) -> None:
        part = slice(start, start + height)
        made[part] = _encode(floats(rows[part], step.tensor), kind, quantiser)

    for _ in pool.map(convert, range(0, len(rows), height)):
        pass
    return made


def _encode(rows: Any, kind: WeightType, quantiser: Quantiser) -> Any:
    import gguf
    import numpy as np

    if kind.name in PLAIN:
        made = gguf.quants.quantize(rows, gguf.GGMLQuantizationType(kind.number))
    else:
        made = quantiser.quantise(rows, kind)
    return np.ascontiguousarray(made).view(np.uint8).reshape(len(rows), -1)


def parse_kinds(text: str) -> tuple[WeightType, ...]:
    """The types in a list such as ``Q8_0,Q4_K``, each once; ConfigurationError for others."""
    from cloister.engine.ggml import weight_type

    kinds = tuple(weight_type(name) for name in text.split(",") if name.strip())
    if not kinds or any(a is b for a, b in itertools.combinations(kinds, 2)):
        raise ConfigurationError("name each type once, at least one", code="quantize.type")
    return kinds
