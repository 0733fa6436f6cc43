"""NVIDIA GPUs in confidential-computing mode, on the machine that hands them through.

Source: NVIDIA ``gpu-admin-tools``, README (``--set-cc-mode``, ``--query-cc-mode``; modes ``on``,
``devtools`` and ``off``); kernel, ``Documentation/driver-api/vfio.rst``.

The host sets the mode, and the host may lie: what counts is the GPU's own report, which the worker
fetches and clients appraise. Setting it here only spares a start that ends in a refusal.
"""

from __future__ import annotations

from typing import Final

from cloister.deploy.plan import Expect, Run, Tool

PROGRAM: Final = "nvidia_gpu_tools.py"


def gpu_tools(addresses: tuple[str, ...]) -> tuple[Tool, ...]:
    """What is needed for these GPUs."""
    if not addresses:
        return ()
    return (Tool(name=PROGRAM, get="github.com/NVIDIA/gpu-admin-tools, on the path, executable"),)


def gpu_steps(addresses: tuple[str, ...], *, held: bool = True) -> tuple[Run, ...]:
    """Bring each GPU into confidential mode, and see that it is.

    With `held`, see also that VFIO holds it already; libvirt sees to that by itself.
    """
    return tuple(
        step
        for number, one in enumerate(addresses)
        for step in (*_mode(number, one), *([_driver(number, one)] if held else []))
    )


def _mode(number: int, address: str) -> tuple[Run, ...]:
    chosen = (PROGRAM, "--devices", address)
    return (
        Run(
            id=f"gpu-{number}-mode",
            says=f"Switch the GPU {address} to confidential mode, and reset it.",
            argv=(*chosen, "--set-cc-mode=on", "--reset-after-cc-mode-switch"),
        ),
        Run(
            id=f"gpu-{number}-check",
            says=f"Ask the GPU {address} for its mode.",
            argv=(*chosen, "--query-cc-mode"),
            # Neither `off` nor `devtools`, which lets the host look inside.
            expects=(Expect(says="its CC mode is on", equals=r"CC mode is on(?!\w)"),),
        ),
    )


def _driver(number: int, address: str) -> Run:
    return Run(
        id=f"gpu-{number}-driver",
        says=f"See that VFIO holds the GPU {address}.",
        argv=("readlink", f"/sys/bus/pci/devices/{address}/driver"),
        expects=(Expect(says="its driver is vfio-pci", equals=r"/vfio-pci\s*\Z"),),
    )
