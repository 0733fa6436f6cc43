"""The command lines of managed engines: what has to be in each, and what may not."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from cloister.engine import llama_child
from cloister.engine.command_lines import (
    FOLDER,
    GGUF,
    OPTIONS,
    PORT,
    Command,
    ManagedKind,
    Sizes,
    command_line,
)
from support import stand_in_llama_server
from support.stand_ins import wheel_library

ALL = list(ManagedKind)
SIZES = Sizes(name="some-model", context=4096, parallel=8, threads=3)


def made(kind: ManagedKind, **changes: object) -> Command:
    values = {name: getattr(SIZES, name) for name in Sizes.__slots__}
    return command_line(kind, Sizes(**{**values, **changes}))


def has(command: Command, *words: str) -> bool:
    if len(words) == 1:
        return words[0] in command.arguments
    return words in set(pairwise(command.arguments))


@pytest.mark.parametrize("kind", ALL)
def test_every_engine_is_told_to_stay_offline_and_not_to_report(kind: ManagedKind) -> None:
    environment = made(kind).environment
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "DO_NOT_TRACK": "1",
        "OTEL_SDK_DISABLED": "true",
    }.items():
        assert environment[name] == value
    assert not {"HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "LD_PRELOAD"} & environment.keys()


@pytest.mark.parametrize("kind", ALL)
def test_bytecode_that_nobody_measured_is_not_read(kind: ManagedKind) -> None:
    environment = made(kind).environment
    assert environment["PYTHONPYCACHEPREFIX"].startswith("/tmp/home/")
    assert environment["PYTHONNOUSERSITE"] == "1"


@pytest.mark.parametrize("kind", ALL)
def test_they_listen_where_only_the_worker_gets_and_load_what_they_are_shown(
    kind: ManagedKind,
) -> None:
    command = made(kind)
    words = " ".join(command.arguments)
    shown = GGUF if kind is ManagedKind.LLAMA_SERVER else FOLDER
    assert shown in command.arguments
    assert "0.0.0.0" not in words
    assert "http" not in words.replace("--threads-http", "").replace("--log-level-http", "")
    if command.port is None:
        assert "/run/engine/engine.sock" in command.arguments
    else:
        assert command.port == PORT
        assert "127.0.0.1" in command.arguments
        assert str(PORT) in command.arguments
    assert "some-model" in words + " ".join(command.texts) or kind is ManagedKind.TGI


def test_vllm_keeps_prefixes_apart_and_prints_nothing() -> None:
    command = made(ManagedKind.VLLM)
    assert has(command, "serve", FOLDER)
    assert has(command, "--enable-prefix-caching")
    assert has(command, "--prefix-caching-hash-algo", "sha256")
    assert has(command, "--load-format", "safetensors")
    assert has(command, "--mm-processor-cache-gb", "0")
    for word in (
        "--no-trust-remote-code",
        "--no-trust-request-chat-template",
        "--no-enable-prompt-tokens-details",
        "--no-enable-prompt-embeds",
        "--no-enable-log-requests",
        "--no-enable-log-outputs",
        "--no-log-error-stack",
        "--disable-log-stats",
        "--disable-uvicorn-access-log",
        "--disable-fastapi-docs",
        "--no-enable-sleep-mode",
    ):
        assert has(command, word), word
    environment = command.environment
    assert environment["VLLM_NO_USAGE_STATS"] == environment["VLLM_DO_NOT_TRACK"] == "1"
    assert environment["VLLM_USAGE_STATS_SERVER"].startswith("http://127.0.0.1:")
    assert environment["VLLM_PLUGINS"] == ""
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "0"
    assert environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "0"
    assert environment["VLLM_SERVER_DEV_MODE"] == "0"
    assert environment["VLLM_DEBUG_LOG_API_SERVER_RESPONSE"] == "False"
    assert environment["VLLM_USE_RUST_FRONTEND"] == "0"


def test_sglang_reuses_nothing_and_prints_nothing() -> None:
    command = made(ManagedKind.SGLANG)
    assert has(command, "--disable-radix-cache")
    assert has(command, "--model-type", "llm")
    assert has(command, "--load-format", "safetensors")
    assert has(command, "--log-level-http", "critical")
    assert has(command, "--allowed-media-domains", "none.invalid")
    assert has(command, "--mm-preprocess-cache-size-mb", "0")
    assert command.environment["SGLANG_VLM_CACHE_SIZE_MB"] == "0"
    for word in ("--trust-remote-code", "--log-requests", "--enable-metrics", "--enable-trace"):
        assert word not in command.arguments
    assert not any("crash-dump" in word or "hicache" in word for word in command.arguments)
    assert command.environment["SGLANG_PLUGINS"] == "none"
    assert command.environment["SGLANG_RUST_SERVER"] == "0"
    # As the release has it: two options, of which the shorter name is neither.
    assert "cuda-graph-max-bs" not in OPTIONS[ManagedKind.SGLANG]
    assert has(
        made(ManagedKind.SGLANG, options={"cuda-graph-max-bs-decode": "8"}),
        "--cuda-graph-max-bs-decode=8",
    )


def test_tgi_reports_no_usage_and_reuses_nothing() -> None:
    command = made(ManagedKind.TGI)
    assert has(command, "--usage-stats", "off")
    assert command.environment["PREFIX_CACHING"] == "0"
    assert command.environment["TRUST_REMOTE_CODE"] == "false"
    assert "--trust-remote-code" not in command.arguments
    assert "OTLP_ENDPOINT" not in command.environment
    assert not any("otlp" in word or word == "--ngrok" for word in command.arguments)


def test_triton_is_given_a_repository_that_reuses_nothing() -> None:
    command = made(ManagedKind.TRITON)
    model = json.loads(command.texts["/triton/some-model/1/model.json"])
    assert model["model"] == FOLDER
    assert model["enable_prefix_caching"] is False
    assert model["trust_remote_code"] is False
    assert model["enable_log_requests"] is False
    assert b'backend: "vllm"' in command.texts["/triton/some-model/config.pbtxt"]
    assert has(command, "--model-control-mode", "none")
    assert "--enable-kserve-frontends" not in command.arguments


def test_llama_server_is_told_what_the_embedded_engine_is_told() -> None:
    command = made(ManagedKind.LLAMA_SERVER)
    told = {
        "cache_prompt": ("--no-cache-prompt",),
        "cache_ram_mib": ("--cache-ram", "0"),
        "cache_idle_slots": ("--no-cache-idle-slots",),
        "n_cache_reuse": ("--cache-reuse", "0"),
        "n_ctx_checkpoints": ("--ctx-checkpoints", "0"),
        "slot_prompt_similarity": ("--slot-prompt-similarity", "0"),
        "kv_unified": ("--no-kv-unified",),
        "ctx_shift": ("--no-context-shift",),
        "endpoint_slots": ("--no-slots",),
        "ui": ("--no-ui",),
        "ui_mcp_proxy": ("--no-ui-mcp-proxy",),
        "server_tools": ("--no-agent",),
        "models_autoload": ("--no-models-autoload",),
        "offline": ("--offline",),
        "verbosity": ("--log-verbosity", "-1"),
    }
    for words in told.values():
        assert has(command, *words), words
    # What has no word to switch it off is off unless it is named: so nothing may name it.
    unnamed = {
        "slot_save_path": "--slot-save-path", "path_prompt_cache": "--prompt-cache",
        "prompt_cache_all": "--prompt-cache-all", "endpoint_props": "--props",
        "endpoint_metrics": "--metrics", "public_path": "--path", "media_path": "--media-path",
        "mcp_servers_config": "--mcp-servers-config", "mcp_servers_json": "--mcp-servers-json",
        "models_dir": "--models-dir", "models_preset": "--models-preset", "hf_token": "--hf-token",
        "verbose_prompt": "--verbose-prompt", "display_prompt": "--display-prompt",
        "log_json": "--log-jsonl", "path_prompts_log_dir": "--log-prompts-dir",
        "logits_file": "--kl-divergence-base", "save_logits": "--save-logits",
        "out_file": "--output-file", "lora_adapters": "--lora",
    }  # fmt: skip
    assert not set(unnamed.values()) & set(command.arguments)
    assert not set(unnamed.values()) & {f"--{name}" for name in OPTIONS[ManagedKind.LLAMA_SERVER]}
    assert told.keys() | unnamed.keys() >= set(llama_child.OVERRIDES)
    assert command.tuning == ("--threads", "3", "--threads-batch", "3")


def parsed_by_llama(words: tuple[str, ...]) -> subprocess.CompletedProcess[bytes]:
    script = Path(stand_in_llama_server.__file__)
    return subprocess.run(
        [sys.executable, str(script), "--only-parse", str(wheel_library()), *words],
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_llama_cpps_own_parser_knows_every_word() -> None:
    options = {
        "batch-size": "512", "cache-type-k": "q8_0", "cache-type-v": "q8_0", "flash-attn": "on",
        "gpu-layers": "0", "reasoning-format": "none", "split-mode": "none", "tensor-split": "1",
        "ubatch-size": "256",
    }  # fmt: skip
    assert options.keys() == OPTIONS[ManagedKind.LLAMA_SERVER]
    command = made(ManagedKind.LLAMA_SERVER, options=options)
    words = (*command.arguments, *command.tuning)
    done = parsed_by_llama(words)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len([word for word in words if word.startswith("--")])
    assert parsed_by_llama((*words, "--no-such-word")).returncode != 0


@pytest.mark.parametrize("kind", ALL)
def test_options_are_those_of_the_list_and_no_others(kind: ManagedKind) -> None:
    for name in sorted(OPTIONS[kind]):
        assert any(name in word for word in made(kind, options={name: "true"}).arguments)
    for name in ("trust-remote-code", "log-requests", "enable-log-requests", "middleware", "lora"):
        with pytest.raises(ValueError, match=name):
            made(kind, options={name: "true"})


def test_switches_are_on_or_off() -> None:
    assert has(made(ManagedKind.VLLM, options={"enforce-eager": "true"}), "--enforce-eager")
    assert has(made(ManagedKind.VLLM, options={"enforce-eager": "false"}), "--no-enforce-eager")
    with pytest.raises(ValueError, match="true or false"):
        made(ManagedKind.VLLM, options={"enforce-eager": "perhaps"})


def test_gpus_decide_how_a_model_is_divided() -> None:
    assert has(made(ManagedKind.VLLM, gpus=4), "--tensor-parallel-size", "4")
    assert has(made(ManagedKind.SGLANG, gpus=0), "--device", "cpu")
    assert "--device" not in made(ManagedKind.SGLANG, gpus=1).arguments
    assert has(made(ManagedKind.LLAMA_SERVER), "--device", "none")
    assert "--device" not in made(ManagedKind.LLAMA_SERVER, gpus=1).arguments
