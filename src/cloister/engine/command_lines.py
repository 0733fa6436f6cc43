"""The command line and environment with which each managed engine is started.

Pure functions from sizes to words. Whatever would print a prompt, call home, fetch, run code out of
a model's folder or share a cache between people is switched off by name here, also where it is off
by default: a default may change with a release. Options were read in the releases named below; one
that a release does not know makes the engine end at once, which shows, rather than be ignored.

- vLLM 0.33.0: ``vllm/entrypoints/common/cli_args.py``, ``vllm/engine/arg_utils.py``,
  ``vllm/envs.py``, ``vllm/usage/usage_lib.py``.
- SGLang 0.5.23: ``sglang/srt/arg_groups/fields/``, ``sglang/srt/environ.py``.
- Text Generation Inference 3.3: ``docs/source/reference/launcher.md``, ``launcher/src/main.rs``,
  ``server/text_generation_server/models/globals.py``.
- llama-server (llama.cpp build 11549): ``tools/server/README.md``.
- Triton 26.07: ``python/openai/openai_frontend/main.py``.

None of them but llama.cpp could be run where this was written: the words are checked by tests,
the engines by stand-ins.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from cloister.engine.managed_sandbox import HOME, SOCKET

PORT: Final = 8000
"""On the loopback of the sandbox's own network, for engines that know TCP only."""
FOLDER: Final = "/model"
"""Where a model's folder is shown; a GGUF file is `GGUF`."""
GGUF: Final = f"{FOLDER}/model.gguf"
_LOOPBACK: Final = "127.0.0.1"
_REPOSITORY: Final = "/triton"


class ManagedKind(StrEnum):
    """The engines that a worker can start itself, besides the embedded one."""

    VLLM = "vllm"
    SGLANG = "sglang"
    TGI = "tgi"
    LLAMA_SERVER = "llama-server"
    TRITON = "triton"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What an engine is told about its work.

    `context` tokens per request, `parallel` requests at a time, over `gpus` GPUs (0: the
    processor). `threads` are llama-server's. `options` are further ones, of those in `OPTIONS`.
    """

    name: str
    context: int
    parallel: int
    gpus: int = 0
    threads: int = 1
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What follows the program's name, its environment, and the files that it finds.

    `port` is where it listens; None if it makes the socket itself. `tuning` follows the arguments
    and changes nothing but speed, so it is not measured.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    port: int | None = None
    tuning: tuple[str, ...] = ()
    texts: Mapping[str, bytes] = field(default_factory=dict)


#: Options that an operator may add. They size, quantise or parse; none of them names a file, an
#: address, a log, a cache that others see, or code to load.
OPTIONS: Final[Mapping[ManagedKind, frozenset[str]]] = {
    ManagedKind.VLLM: frozenset(
        {
            "async-scheduling", "block-size", "cpu-offload-gb", "dtype",
            "enable-auto-tool-choice", "enable-chunked-prefill", "enforce-eager",
            "gpu-memory-utilization", "kv-cache-dtype", "kv-offloading-size",
            "limit-mm-per-prompt", "max-num-batched-tokens", "quantization", "reasoning-parser",
            "runner", "seed", "tool-call-parser",
        }
    ),
    ManagedKind.SGLANG: frozenset(
        {
            "attention-backend", "chunked-prefill-size", "cpu-offload-gb",
            "cuda-graph-max-bs-decode", "cuda-graph-max-bs-prefill", "disable-overlap-schedule",
            "dtype", "grammar-backend", "kv-cache-dtype", "mem-fraction-static", "quantization",
            "random-seed", "reasoning-parser", "tool-call-parser",
        }
    ),
    ManagedKind.TGI: frozenset(
        {
            "cuda-graphs", "cuda-memory-fraction", "dtype", "kv-cache-dtype",
            "max-batch-prefill-tokens", "max-batch-total-tokens", "quantize",
        }
    ),
    ManagedKind.LLAMA_SERVER: frozenset(
        {
            "batch-size", "cache-type-k", "cache-type-v", "flash-attn", "gpu-layers",
            "reasoning-format", "split-mode", "tensor-split", "ubatch-size",
        }
    ),
    ManagedKind.TRITON: frozenset({"default-max-tokens", "tool-call-parser"}),
}  # fmt: skip

PROGRAMS: Final[Mapping[ManagedKind, str]] = {
    ManagedKind.VLLM: "vllm",
    ManagedKind.SGLANG: "sglang",
    ManagedKind.TGI: "text-generation-launcher",
    ManagedKind.LLAMA_SERVER: "llama-server",
    ManagedKind.TRITON: "/opt/tritonserver/python/openai/openai_frontend/main.py",
}
"""What is looked for where no program is named."""

DISTRIBUTIONS: Final[Mapping[ManagedKind, str]] = {
    ManagedKind.VLLM: "vllm",
    ManagedKind.SGLANG: "sglang",
}
"""Python distributions whose version is the engine's."""

SALTED: Final = frozenset({ManagedKind.VLLM})
"""Engines that keep a prefix cache apart by ``cache_salt``. All others reuse nothing."""

_QUIET: Final[Mapping[str, str]] = {
    # Hugging Face libraries: nothing is fetched, nothing reported, no token is read.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_XET": "1",
    # https://consoledonottrack.com
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OTEL_SDK_DISABLED": "true",
    "WANDB_DISABLED": "true",
    # Bytecode beside the engine's sources was not measured, and is not read.
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONPYCACHEPREFIX": f"{HOME}/bytecode",
    "PYTHONNOUSERSITE": "1",
}


def command_line(kind: ManagedKind, sizes: Sizes) -> Command:
    """Return how `kind` is started. ValueError for an option that is not among `OPTIONS`."""
    strangers = sorted(sizes.options.keys() - OPTIONS[kind])
    if strangers:
        raise ValueError(
            f"{strangers[0]} is not among the options of {kind.value} that may be set: "
            + ", ".join(sorted(OPTIONS[kind]))
        )
    match kind:
        case ManagedKind.VLLM:
            return _vllm(sizes)
        case ManagedKind.SGLANG:
            return _sglang(sizes)
        case ManagedKind.TGI:
            return _tgi(sizes)
        case ManagedKind.LLAMA_SERVER:
            return _llama_server(sizes)
        case ManagedKind.TRITON:
            return _triton(sizes)


def _vllm(sizes: Sizes) -> Command:
    return Command(
        arguments=(
            "serve", FOLDER,
            "--uds", SOCKET,
            "--served-model-name", sizes.name,
            "--max-model-len", str(sizes.context),
            "--max-num-seqs", str(sizes.parallel),
            "--tensor-parallel-size", str(max(1, sizes.gpus)),
            # No code out of the model's folder, no pickled weights.
            "--load-format", "safetensors",
            "--no-trust-remote-code",
            "--no-trust-request-chat-template",
            # Prefixes are reused between requests of equal cache_salt only, which the worker sets
            # on every request. SHA-256, since a collision would hand out another's prefix.
            "--enable-prefix-caching",
            "--prefix-caching-hash-algo", "sha256",
            # How many of a prompt's tokens were cached is nobody's business.
            "--no-enable-prompt-tokens-details",
            # Embeddings instead of a prompt crash some releases, and need torch.load.
            "--no-enable-prompt-embeds",
            # Nor is an image that somebody else sent processed sooner. What the encoder made of it
            # vLLM keeps all the same, until it needs the room: no word switches that off.
            "--mm-processor-cache-gb", "0",
            # Nothing of a request is printed.
            "--no-enable-log-requests",
            "--no-enable-log-outputs",
            "--no-enable-log-deltas",
            "--no-log-error-stack",
            "--disable-log-stats",
            "--disable-uvicorn-access-log",
            "--uvicorn-log-level", "error",
            "--disable-fastapi-docs",
            "--no-enable-lora",
            "--no-enable-sleep-mode",
            *_further(
                sizes,
                switches=(
                    "async-scheduling", "enable-auto-tool-choice", "enable-chunked-prefill",
                    "enforce-eager",
                ),
                opposite="--no-",
            ),
        ),
        environment={
            **_QUIET,
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_DO_NOT_TRACK": "1",
            "VLLM_USAGE_STATS_SERVER": "http://127.0.0.1:9",  # the discard port, should all fail
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_REQUEST_BODY_LOG_LEVEL": "DEBUG",
            "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "False",
            "VLLM_TRACE_FUNCTION": "0",
            "VLLM_SERVER_DEV_MODE": "0",
            "VLLM_USE_RUST_FRONTEND": "0",  # another program, which knows these words otherwise
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
            "VLLM_ALLOW_INSECURE_SERIALIZATION": "0",
            "VLLM_USE_MODELSCOPE": "False",
            "VLLM_PLUGINS": "",  # none of those that happen to be installed
            "VLLM_MEDIA_CACHE": "",
            "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
            "VLLM_HOST_IP": _LOOPBACK,
        },
    )  # fmt: skip


def _sglang(sizes: Sizes) -> Command:
    return Command(
        arguments=(
            "serve",
            "--model-type", "llm",  # no server of another package's that claims the model
            "--model-path", FOLDER,
            "--served-model-name", sizes.name,
            "--host", _LOOPBACK,
            "--port", str(PORT),
            "--context-length", str(sizes.context),
            "--max-running-requests", str(sizes.parallel),
            "--tp-size", str(max(1, sizes.gpus)),
            *(() if sizes.gpus else ("--device", "cpu")),
            # No pickled weights. That code from the folder is not run is the default; its switch
            # (--trust-remote-code), like those for request logs, crash dumps, traces, metrics and
            # cache reports, has no opposite to name.
            "--load-format", "safetensors",
            # The radix tree reuses prefixes whoever sent them. This release can divide it by a
            # field of the request; it is off all the same until that has been tried.
            "--disable-radix-cache",
            # Nor is an image that somebody else sent processed sooner.
            "--mm-preprocess-cache-size-mb", "0",
            "--log-level", "error",
            "--log-level-http", "critical",
            "--file-storage-path", f"{HOME}/files",
            # No address is a host name of this kind: media come as data, or not at all.
            "--allowed-media-domains", "none.invalid",
            *_further(sizes, switches=("disable-overlap-schedule",)),
        ),
        environment={
            **_QUIET,
            "SGLANG_VLM_CACHE_SIZE_MB": "0",
            "SGLANG_MM_FEATURE_CACHE_MB": "0",
            "SGLANG_LOG_REQUEST_EXCEEDED_MS": "-1",
            "SGLANG_PLUGINS": "none",  # an empty list would mean all that are installed
            "SGLANG_RUST_SERVER": "0",  # another program, which knows these words otherwise
            "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0",
            "SGLANG_CUDA_COREDUMP": "0",
            "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0",
        },
        port=PORT,
    )  # fmt: skip


def _tgi(sizes: Sizes) -> Command:
    return Command(
        arguments=(
            "--model-id", FOLDER,
            "--tokenizer-config-path", f"{FOLDER}/tokenizer_config.json",
            "--hostname", _LOOPBACK,
            "--port", str(PORT),
            "--prometheus-port", str(PORT + 1),
            "--shard-uds-path", f"{HOME}/shard",
            "--huggingface-hub-cache", f"{HOME}/hub",
            "--max-total-tokens", str(sizes.context),
            "--max-input-tokens", str(max(1, sizes.context - 1)),
            "--max-concurrent-requests", str(sizes.parallel),
            "--num-shard", str(max(1, sizes.gpus)),
            "--payload-limit", str(32 << 20),  # a request's size is the worker's to bound
            "--usage-stats", "off",
            *_further(sizes, switches=()),
        ),
        environment={
            **_QUIET,
            "HF_HUB_ENABLE_HF_TRANSFER": "0",
            # Prefixes would be reused whoever sent them.
            "PREFIX_CACHING": "0",
            "TRUST_REMOTE_CODE": "false",
            "NGROK": "false",
            "LOG_LEVEL": "error",  # "off" is no level to the part that is written in Python
        },
        port=PORT,
    )  # fmt: skip


def _llama_server(sizes: Sizes) -> Command:
    """Mirrors `cloister.engine.llama_child.OVERRIDES`, in the server's own words."""
    return Command(
        arguments=(
            "--model", GGUF,
            "--host", SOCKET,
            "--alias", sizes.name,
            "--ctx-size", str(sizes.context * sizes.parallel),
            "--parallel", str(sizes.parallel),
            "--threads-http", str(max(16, 2 * sizes.parallel)),
            "--fit", "off",
            *(() if sizes.gpus else ("--device", "none")),
            # Nothing of one request is reused for, or kept until, another.
            "--no-cache-prompt",
            "--cache-ram", "0",
            "--no-cache-idle-slots",
            "--cache-reuse", "0",
            "--ctx-checkpoints", "0",
            "--slot-prompt-similarity", "0",
            "--no-kv-unified",
            "--no-context-shift",
            # No endpoint but the API's. Those for metrics, properties and slot files are off
            # unless switched on, and have no opposite to name.
            "--no-slots",
            "--no-ui",
            "--no-ui-mcp-proxy",
            "--no-agent",
            "--no-models-autoload",
            "--no-mmproj-auto",
            # Nothing is fetched or printed.
            "--offline",
            "--log-disable",
            "--log-verbosity", "-1",
            "--jinja",
            *_further(sizes, switches=(), joined=False),
        ),
        environment={**_QUIET, "LLAMA_ARG_OFFLINE": "1"},
        tuning=("--threads", str(sizes.threads), "--threads-batch", str(sizes.threads)),
    )  # fmt: skip


def _triton(sizes: Sizes) -> Command:
    """The OpenAI front end over Triton's vLLM backend; the repository is made here.

    Its front end passes no ``cache_salt`` on, so vLLM's prefix cache is off.
    """
    model = {
        "model": FOLDER,
        "served_model_name": sizes.name,
        "max_model_len": sizes.context,
        "max_num_seqs": sizes.parallel,
        "tensor_parallel_size": max(1, sizes.gpus),
        "load_format": "safetensors",
        "trust_remote_code": False,
        "enable_prefix_caching": False,
        "enable_log_requests": False,
        "disable_log_stats": True,
    }
    return Command(
        arguments=(
            "--model-repository", _REPOSITORY,
            "--tokenizer", FOLDER,
            "--backend", "vllm",
            "--host", _LOOPBACK,
            "--openai-port", str(PORT),
            "--model-control-mode", "none",  # no interface loads or unloads models
            "--tritonserver-log-verbose-level", "0",
            "--uvicorn-log-level", "critical",
            *_further(sizes, switches=()),
        ),
        environment={
            **_QUIET,
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_DO_NOT_TRACK": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_PLUGINS": "",
        },
        port=PORT,
        texts={
            f"{_REPOSITORY}/{sizes.name}/config.pbtxt": (
                b'backend: "vllm"\ninstance_group [{kind: KIND_MODEL}]\n'
            ),
            f"{_REPOSITORY}/{sizes.name}/1/model.json": json.dumps(model, indent=1).encode(),
        },
    )  # fmt: skip


def _further(
    sizes: Sizes, *, switches: Collection[str], opposite: str | None = None, joined: bool = True
) -> tuple[str, ...]:
    """The operator's own options. A switch is ``true`` or ``false``.

    `opposite` is how its opposite begins; without one a switch that is off is left out. Name and
    value are `joined` in one word, so that no value is read as an option, where a parser knows
    that form; llama.cpp's does not, and takes the next word whatever it is.
    """
    words: list[str] = []
    for name, value in sorted(sizes.options.items()):
        if name not in switches:
            words += [f"--{name}={value}"] if joined else [f"--{name}", value]
        elif value == "true":
            words.append(f"--{name}")
        elif value != "false":
            raise ValueError(f"{name} is true or false")
        elif opposite is not None:
            words.append(f"{opposite}{name}")
    return tuple(words)
