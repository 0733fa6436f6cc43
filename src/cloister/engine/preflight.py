"""What is known to break, or to be other than it seems, under NVIDIA's confidential computing.

Pure: from settings and a GPU's mode to findings, each with the reason and where it is reported.
What cannot work is refused; what works otherwise than people expect is said. None of it was seen
here, where there is no GPU: it is what the projects' own reports say of H100, H200 and Blackwell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cloister.engine.command_lines import ManagedKind
from cloister.engine.managed import ManagedSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing to know. `refused` when the engine would not start, or answer wrongly."""

    setting: str
    text: str
    refused: bool = False


def preflight(settings: ManagedSettings, *, confidential: bool | None) -> tuple[Finding, ...]:
    """Findings for these settings; `confidential` is the GPUs' mode, None where it is unknown."""
    if not settings.gpus:
        return ()
    if confidential is None:
        return (
            Finding(
                setting="gpus",
                text="the driver does not say whether the GPUs are in confidential mode: "
                "nvidia-smi conf-compute -f",
            ),
        )
    if not confidential:
        return (
            Finding(
                setting="gpus",
                text="the GPUs are not in confidential mode: prompts lie open in their memory and "
                "on the bus to whoever owns the machine",
            ),
        )
    return tuple(_confidential(settings))


def _confidential(settings: ManagedSettings) -> Iterator[Finding]:
    options = settings.options
    if "kv-offloading-size" in options:
        yield Finding(
            setting="kv-offloading-size",
            text="offloading the KV cache ends the engine at its start: it needs cudaHostRegister, "
            "which is not allowed in confidential mode (vllm#55428; NVIDIA RN-12523-001)",
            refused=True,
        )
    if "cpu-offload-gb" in options:
        yield Finding(
            setting="cpu-offload-gb",
            text="memory asked for as pinned is silently not pinned in confidential mode, so the "
            "GPU reads old contents (vllm#50671)",
            refused=True,
        )
    if settings.kind is ManagedKind.VLLM:
        yield Finding(
            setting="vllm",
            text="releases without vllm#50671 compute with stale sampling parameters in "
            "confidential mode: ask twice with temperature 0 and with top_k 1, and compare",
        )
        if options.get("async-scheduling") != "false":
            yield Finding(
                setting="async-scheduling",
                text="copies between processor and GPU wait in confidential mode, so scheduling "
                "ahead gains nothing (vllm#52226); decoding was reported up to 3.3 times slower "
                "(vllm#57680)",
            )
    if settings.kind is ManagedKind.SGLANG and options.get("disable-overlap-schedule") != "true":
        yield Finding(
            setting="disable-overlap-schedule",
            text="copies from the GPU wait in confidential mode, which holds the overlapped "
            "scheduler up (sglang#36810)",
        )
    if settings.kind in (ManagedKind.TGI, ManagedKind.TRITON, ManagedKind.LLAMA_SERVER):
        yield Finding(
            setting="gpus",
            text="copies between processor and GPU wait in confidential mode: measure before "
            "promising a speed (vllm#52226 has the reason)",
        )
    if len(settings.gpus) > 1:
        yield Finding(
            setting="gpus",
            text="several GPUs are confidential in Protected PCIe mode only, with all GPUs and "
            "switches of the board in this guest: attest every one of them, and know that traffic "
            "between them is not encrypted there (nvtrust#153)",
        )
