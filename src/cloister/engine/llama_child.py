"""The embedded engine's program: llama.cpp's own server on a unix socket, told to forget.

Runs inside the sandbox after `cloister.engine.confine`, so it imports the standard library
and `xllamacpp` only. Every default of the library that retains, shares or exposes text is set
here by name, then read back; a library that lacks one of the names, or does not keep the
value, is not used. Settings arrive as one JSON object.

Usage: ``llama_child.py CONTROL_FD SOCKET_DIRECTORY SETTINGS_JSON``
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any, Final, NoReturn

SOCKET_NAME: Final = "engine.sock"

#: Settings of llama.cpp's server that would keep, share or show text, and the value each gets.
OVERRIDES: Final[dict[str, object]] = {
    # nothing of one request is reused for, or kept until, another
    "cache_prompt": False,
    "cache_ram_mib": 0,
    "cache_idle_slots": False,
    "n_cache_reuse": 0,
    "n_ctx_checkpoints": 0,
    "slot_prompt_similarity": 0.0,
    "kv_unified": False,
    "ctx_shift": False,
    "slot_save_path": "",
    "path_prompt_cache": "",
    "prompt_cache_all": False,
    # no endpoint but the API's
    "endpoint_slots": False,
    "endpoint_props": False,
    "endpoint_metrics": False,
    "ui": False,
    "ui_mcp_proxy": False,
    "public_path": "",
    "media_path": "",
    "server_tools": [],
    "mcp_servers_config": "",
    "mcp_servers_json": "",
    "models_dir": "",
    "models_preset": "",
    "models_autoload": False,
    # nothing is fetched, printed or written
    "offline": True,
    "hf_token": "",
    "verbosity": -1,
    "verbose_prompt": False,
    "display_prompt": False,
    "log_json": False,
    "path_prompts_log_dir": "",
    "logits_file": "",
    "save_logits": False,
    "out_file": "",
}


_EMBEDDED: Final = 512  # tokens of an input that is embedded, at most


class RefusedError(Exception):
    """Carries the status word that says why the program ends."""


def override(parameters: Any, overrides: dict[str, object]) -> None:
    """Set every one of `overrides` on the library's parameters and read each back."""
    for name, value in overrides.items():
        if not hasattr(parameters, name):
            raise RefusedError("setting-missing")
        try:
            setattr(parameters, name, value)
        except (AttributeError, TypeError, ValueError):
            raise RefusedError("setting-missing") from None
    for name, value in overrides.items():
        if getattr(parameters, name) != value:
            raise RefusedError("setting-refused")


def parameters(library: Any, settings: dict[str, Any], socket_path: str) -> Any:
    """Return the library's parameters for `settings`, with every override in place."""
    made = library.CommonParams()
    made.model.path = settings["files"]["model"]
    made.cpuparams.n_threads = settings["threads"]
    made.cpuparams_batch.n_threads = settings["threads"]
    beside(library, made, settings)
    override(
        made,
        {
            **OVERRIDES,
            "hostnames": [socket_path],
            "model_alias": {settings["name"]},
            "n_ctx": settings["context"] * settings["parallel"],
            "n_parallel": settings["parallel"],
            # A connection holds one of these threads until it closes, waiting ones too.
            "n_threads_http": settings["connections"],
            "embedding": settings["embeddings"],
            **_pooling(library, settings),
            "fit_params": False,  # sizes are given, never guessed from the machine
        },
    )
    return made


def beside(library: Any, made: Any, settings: dict[str, Any]) -> None:
    """Set the files beside the weights; what is not among them is switched off by name."""
    files = settings["files"]
    adapters = []
    if "adapter" in files:
        adapters.append(library.CommonAdapterLoraInfo())
        adapters[0].path = files["adapter"]
        adapters[0].scale = 1.0
    made.lora_adapters = adapters
    if [(one.path, one.scale) for one in made.lora_adapters] != [(a.path, 1.0) for a in adapters]:
        raise RefusedError("setting-refused")
    kinds = library.common_speculative_type
    kind = "DRAFT_SIMPLE" if "draft" in files else "NONE"
    override(made.speculative, {"types": [getattr(kinds, f"COMMON_SPECULATIVE_TYPE_{kind}")]})
    override(made.speculative.draft.mparams, {"path": files.get("draft", "")})
    for cores in (made.speculative.draft.cpuparams, made.speculative.draft.cpuparams_batch):
        override(cores, {"n_threads": settings["threads"]})
    override(made.mmproj, {"path": files.get("projector", "")})


def _pooling(library: Any, settings: dict[str, Any]) -> dict[str, object]:
    """What makes one vector of those of the tokens: their mean, whatever the model."""
    if not settings["embeddings"]:
        return {}
    # An embedding is computed in one piece, and llama.cpp ends the process where its size is not
    # a multiple of the number of sequences: with 512 as it is, for 3 of them, or 10.
    parallel: int = settings["parallel"]
    return {
        "pooling_type": library.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN,
        "n_ubatch": -(-_EMBEDDED // parallel) * parallel,
    }


def serve(control: socket.socket, directory: str, settings: dict[str, Any]) -> None:
    """Load the model, announce readiness and stay until the worker closes the control socket."""
    try:
        import xllamacpp
    except (ImportError, OSError):
        raise RefusedError("library-missing") from None
    path = f"{directory}/{SOCKET_NAME}"
    made = parameters(xllamacpp, settings, path)
    try:
        server = xllamacpp.Server(made)
    except Exception:  # the library's errors are its own, and their text stays here
        raise RefusedError("model-refused") from None
    if server.listening_address != f"unix://{path}":
        raise RefusedError("socket-refused")
    control.send(b"ready")
    control.recv(1)


def main() -> NoReturn:
    """Run, and end without the library's destructors, which may wait for requests."""
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        try:
            settings = json.loads(sys.argv[3])
        except (IndexError, ValueError):
            raise RefusedError("arguments") from None
        serve(control, sys.argv[2], settings)
    except RefusedError as error:
        control.send(str(error).encode("ascii"))
        os._exit(4)
    os._exit(0)


if __name__ == "__main__":
    main()
