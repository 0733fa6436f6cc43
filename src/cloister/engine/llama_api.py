"""Runs a model through llama.cpp's C interface, in this process: for measuring, not for serving.

Declared after ``include/llama.h`` of the versions in `cloister.engine.ggml.TRIED`. Of the
parameter structures only the leading members are named here; the rest is room, which the default
functions fill, so that a structure may be shorter than ours but no member may move. Known defaults
are compared before anything else is called.

A mistake in the layout, or a file that the library does not survive, ends the process: call this
in one that may end (`cloister.engine.measure_child`).
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Final

from cloister.engine.ggml import Library
from cloister.errors import EngineError, UnsupportedError

_ROOM: Final = 512  # bytes of a parameter structure with room; they have some 150 and 80
_DEFAULTS: Final = (512, 2048, 512, 1, 0, 0, 1, 4, 4)
"""Of the members of `_ContextParams` below."""
_MAX_TEXT: Final = 64 << 20  # bytes given to the tokeniser at once


class _ContextParams(ctypes.Structure):
    _fields_ = (
        ("n_ctx", ctypes.c_uint32),
        ("n_batch", ctypes.c_uint32),
        ("n_ubatch", ctypes.c_uint32),
        ("n_seq_max", ctypes.c_uint32),
        ("n_rs_seq", ctypes.c_uint32),
        ("n_outputs_max", ctypes.c_uint32),
        ("n_outputs_max_per_seq", ctypes.c_uint32),
        ("n_threads", ctypes.c_int32),
        ("n_threads_batch", ctypes.c_int32),
        ("rest", ctypes.c_uint8 * (_ROOM - 36)),
    )


class _ModelParams(ctypes.Structure):
    # Pointers come first, so the whole must be aligned as they are.
    _fields_ = (("rest", ctypes.c_uint64 * (_ROOM // 8)),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def _drop(_level: int, _text: bytes, _data: object) -> None:
    """What the library would print goes nowhere."""


_SILENT: Final = _LOG(_drop)


class LlamaModel:
    """One model and one context of `context` tokens, a single sequence at a time."""

    def __init__(self, library: Library, path: Path, *, context: int, threads: int) -> None:
        """Load `path`.

        Raises:
            UnsupportedError: the library is not laid out as declared here.
            EngineError: it does not load the model.
        """
        self._declare(library)
        self._context_size = context
        self._log_set(_SILENT, None)
        self._backend_init()
        settings = self._context_defaults()
        found = tuple(getattr(settings, name) for name, _ in _ContextParams._fields_[:-1])
        if found != _DEFAULTS:
            raise UnsupportedError(
                f"the context parameters of llama.cpp in {library.version} are not those known "
                "here",
                code="engine.interface",
            )
        self._model = self._load(str(path).encode(), self._model_defaults())
        if not self._model:
            raise EngineError("llama.cpp does not load the model", code="engine.model_refused")
        settings.n_ctx = settings.n_batch = settings.n_ubatch = context
        settings.n_outputs_max = context
        settings.n_threads = settings.n_threads_batch = threads
        self._context = self._init(self._model, settings)
        if not self._context:
            raise EngineError("llama.cpp has no room for the model", code="engine.model_refused")
        self._vocabulary = self._get_vocabulary(self._model)
        self.vocabulary_size = int(self._vocabulary_size(self._vocabulary))
        self._batch = self._batch_init(context, 0, 1)

    def _declare(self, library: Library) -> None:
        pointer, number, size = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint64
        flag, text = ctypes.c_bool, ctypes.c_char_p
        numbers = ctypes.POINTER(number)
        declare = library.declare
        self._log_set = declare("llama_log_set", None, _LOG, pointer)
        self._backend_init = declare("llama_backend_init", None)
        self._model_defaults = declare("llama_model_default_params", _ModelParams)
        self._context_defaults = declare("llama_context_default_params", _ContextParams)
        self._load = declare("llama_model_load_from_file", pointer, text, _ModelParams)
        self._init = declare("llama_init_from_model", pointer, pointer, _ContextParams)
        self._get_vocabulary = declare("llama_model_get_vocab", pointer, pointer)
        self._vocabulary_size = declare("llama_vocab_n_tokens", number, pointer)
        self._bos = declare("llama_vocab_bos", number, pointer)
        self._add_bos = declare("llama_vocab_get_add_bos", flag, pointer)
        self._tokenise = declare(
            "llama_tokenize", number, pointer, text, number, numbers, number, flag, flag
        )
        self._batch_init = declare("llama_batch_init", _Batch, number, number, number)
        self._decode = declare("llama_decode", number, pointer, _Batch)
        self._get_logits = declare("llama_get_logits", ctypes.POINTER(ctypes.c_float), pointer)
        self._memory = declare("llama_get_memory", pointer, pointer)
        self._memory_clear = declare("llama_memory_clear", None, pointer, flag)
        self._n_params = declare("llama_model_n_params", size, pointer)
        self._trained = declare("llama_model_n_ctx_train", number, pointer)

    @property
    def parameters(self) -> int:
        """How many weights the model has."""
        return int(self._n_params(self._model))

    @property
    def trained_context(self) -> int:
        """Tokens of context that the model was trained for."""
        return int(self._trained(self._model))

    @property
    def beginning(self) -> int | None:
        """The token that this model wants at the beginning of every text, if any."""
        return int(self._bos(self._vocabulary)) if self._add_bos(self._vocabulary) else None

    def tokenise(self, text: bytes, *, special: bool) -> list[int]:
        """Split UTF-8 `text` into tokens, after the token this model wants at the beginning.

        With `special`, control tokens that are written out (``<|im_start|>``) are those tokens,
        otherwise they are text like any other. EngineError if the text cannot be split.
        """
        if len(text) > _MAX_TEXT:
            raise EngineError("the text is too long", code="engine.text")
        room = len(text) + 16  # a token stands for a byte at least
        tokens = (ctypes.c_int32 * room)()
        count = self._tokenise(self._vocabulary, text, len(text), tokens, room, True, special)
        if count < 0:
            raise EngineError("llama.cpp does not split the text", code="engine.text")
        return list(tokens[:count])

    def forget(self) -> None:
        """Empty the context."""
        self._memory_clear(self._memory(self._context), True)

    def feed(self, tokens: list[int], start: int, *, scored_from: int) -> None:
        """Compute `tokens` at positions `start` and on; from index `scored_from` logits are kept.

        EngineError if the library says that it failed.
        """
        if not 0 < len(tokens) <= self._context_size - start:
            raise ValueError("the tokens do not fit into the context")
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = start + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index >= scored_from
        if self._decode(self._context, batch) != 0:
            raise EngineError("llama.cpp does not compute the text", code="engine.compute")

    def logits(self, count: int) -> Any:
        """The last `count` kept rows of logits, waited for: numpy, float32; valid until `feed`."""
        import numpy as np

        return np.ctypeslib.as_array(self._get_logits(self._context), (count, self.vocabulary_size))

    def wait(self) -> None:
        """Return when what was fed has been computed."""
        self._get_logits(self._context)
