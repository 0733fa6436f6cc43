"""Stands in for the program ``llama-server``: the same server, from the wheel's library.

The command line goes first to llama.cpp's own parser, which ends the process at a word that it does
not know; then its meaning is set on the library's parameters. Runs inside the sandbox; the wheel's
directory is in the environment of the installation that `support.stand_ins` makes.
"""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path

_SERVER_EXAMPLE = 12  # LLAMA_EXAMPLE_SERVER of the build that the tests pin


def own_parser(library: Path, words: list[str]) -> int:
    """Have llama.cpp parse `words`; how many options it found. The process dies at a strange one.

    ``common_params_to_map`` (common/arg.h) fills a ``std::map``, here an empty one of libstdc++'s
    layout, that is left to the end of the process.
    """
    loaded = ctypes.CDLL(str(library))
    name = (
        "_Z20common_params_to_mapiPPc13llama_exampleRSt3m"
        "apI10common_argSsSt4lessIS3_ESaISt4pairIKS3_SsEEE"
    )
    parse = getattr(loaded, name)
    parse.restype = ctypes.c_bool
    parse.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    tree = (ctypes.c_uint64 * 6)()  # less, header: colour, parent, left, right; count
    tree[3] = tree[4] = ctypes.addressof(tree) + 8
    encoded = [b"llama-server", *(word.encode() for word in words)]
    argv = (ctypes.c_char_p * (len(encoded) + 1))(*encoded)
    done = parse(
        len(encoded), ctypes.cast(argv, ctypes.c_void_p), _SERVER_EXAMPLE, ctypes.addressof(tree)
    )
    return int(tree[5]) if done else 0


def value_of(words: list[str], name: str) -> str:
    """The word after `name`."""
    return words[words.index(name) + 1]


def serve(words: list[str]) -> None:
    """Do as the words say, and stay."""
    import xllamacpp

    made = xllamacpp.CommonParams()
    made.model.path = value_of(words, "--model")
    made.hostnames = [value_of(words, "--host")]
    made.model_alias = {value_of(words, "--alias")}
    made.n_ctx = int(value_of(words, "--ctx-size"))
    made.n_parallel = int(value_of(words, "--parallel"))
    made.cpuparams.n_threads = int(value_of(words, "--threads"))
    made.cpuparams_batch.n_threads = int(value_of(words, "--threads-batch"))
    made.n_threads_http = int(value_of(words, "--threads-http"))
    made.cache_prompt = "--no-cache-prompt" not in words
    made.cache_ram_mib = int(value_of(words, "--cache-ram"))
    made.cache_idle_slots = "--no-cache-idle-slots" not in words
    made.n_ctx_checkpoints = int(value_of(words, "--ctx-checkpoints"))
    made.slot_prompt_similarity = float(value_of(words, "--slot-prompt-similarity"))
    made.kv_unified = "--no-kv-unified" not in words
    made.ctx_shift = "--no-context-shift" not in words
    made.endpoint_slots = "--no-slots" not in words
    made.ui = "--no-ui" not in words
    made.offline = "--offline" in words
    made.verbosity = int(value_of(words, "--log-verbosity"))
    made.fit_params = value_of(words, "--fit") != "off"
    server = xllamacpp.Server(made)
    sys.stdout.write(f"listening at {server.listening_address}\n")
    while True:
        time.sleep(3600)


def main() -> None:
    """Parse, then serve."""
    words = sys.argv[1:]
    if words[:1] == ["--only-parse"]:
        sys.stdout.write(str(own_parser(Path(words[1]), words[2:])))
        return
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent.parent / "wheel"))
    found = next(Path(sys.path[0], "xllamacpp").glob("*.so"))
    if not own_parser(found, words):
        sys.exit(2)
    serve(words)


if __name__ == "__main__":
    main()
