"""NVIDIA's management library, as far as attestation needs it, called through `ctypes`.

Source: ``nvml.h``, "Confidential Compute" (driver 535 and later). Nothing is imported but the
library that comes with the driver, so no Python package of NVIDIA's has to be measured. Calls
may take seconds, and initialisation hangs on loaded machines: use it only in a child
(`cloister.attester.background`), as `handle` is.

Structures, native byte order, no gaps::

    nvmlConfComputeSystemState_t            u32 environment, u32 ccFeature, u32 devToolsMode
    nvmlConfComputeGpuCertificate_t         u32 sizes of both chains, 4096 B chain, 5120 B
                                            attestation chain (PEM)
    nvmlConfComputeGpuAttestationReport_t   u32 is CEC report there, u32 sizes of both reports,
                                            32 B nonce, 8192 B report, 4096 B CEC report
"""

from __future__ import annotations

import base64
import ctypes
from typing import Any, Final

from cloister.attester.devices import absent, answer_error
from cloister.errors import CloisterError, FetchError, UnsupportedError
from cloister.evidence.items import MAX_GPUS
from cloister.strictjson import JsonObject

LIBRARY: Final = "libnvidia-ml.so.1"
NONCE_SIZE: Final = 32

MAX_CHAIN_BYTES: Final = 0x1000
MAX_ATTESTATION_CHAIN_BYTES: Final = 0x1400
MAX_REPORT_BYTES: Final = 0x2000
MAX_CEC_REPORT_BYTES: Final = 0x1000

_SUCCESS: Final = 0
_NOT_SUPPORTED: Final = 3
_NO_PERMISSION: Final = 4
_NOT_FOUND: Final = 6
_DRIVER_NOT_LOADED: Final = 9
_FUNCTION_NOT_FOUND: Final = 13
_ABSENT: Final = frozenset({_NOT_SUPPORTED, _NOT_FOUND, _DRIVER_NOT_LOADED, _FUNCTION_NOT_FOUND})


class SystemState(ctypes.Structure):
    """``nvmlConfComputeSystemState_t``."""

    _fields_ = (
        ("environment", ctypes.c_uint),
        ("cc_feature", ctypes.c_uint),
        ("dev_tools_mode", ctypes.c_uint),
    )


class GpuCertificate(ctypes.Structure):
    """``nvmlConfComputeGpuCertificate_t``."""

    _fields_ = (
        ("chain_size", ctypes.c_uint),
        ("attestation_chain_size", ctypes.c_uint),
        ("chain", ctypes.c_ubyte * MAX_CHAIN_BYTES),
        ("attestation_chain", ctypes.c_ubyte * MAX_ATTESTATION_CHAIN_BYTES),
    )


class GpuReport(ctypes.Structure):
    """``nvmlConfComputeGpuAttestationReport_t``."""

    _fields_ = (
        ("cec_present", ctypes.c_uint),
        ("report_size", ctypes.c_uint),
        ("cec_report_size", ctypes.c_uint),
        ("nonce", ctypes.c_ubyte * NONCE_SIZE),
        ("report", ctypes.c_ubyte * MAX_REPORT_BYTES),
        ("cec_report", ctypes.c_ubyte * MAX_CEC_REPORT_BYTES),
    )


class Nvml:
    """An initialised library. A context manager; leaving shuts it down.

    Every method raises UnsupportedError where library, driver, GPU or mode are absent, and
    FetchError where a call fails.
    """

    def __init__(self, library: Any) -> None:
        """`library` is a `ctypes.CDLL`, or anything with functions of the same names."""
        self._library = library

    @classmethod
    def load(cls) -> Nvml:
        """Load the driver's library."""
        try:
            return cls(ctypes.CDLL(LIBRARY))
        except OSError:
            raise absent(f"NVIDIA's driver ({LIBRARY} cannot be loaded)") from None

    def __enter__(self) -> Nvml:
        self._call("nvmlInit_v2")
        return self

    def __exit__(self, *_: object) -> None:
        self._library.nvmlShutdown()

    def system_state(self) -> SystemState:
        """Whether confidential computing is on, and whether developer tools may look in."""
        state = SystemState()
        self._call("nvmlSystemGetConfComputeState", ctypes.byref(state))
        return state

    def count(self) -> int:
        """GPUs that the driver sees, at most `MAX_GPUS`."""
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        if count.value > MAX_GPUS:
            raise answer_error(_WHAT, f"counts more than {MAX_GPUS} GPUs")
        return count.value

    def report(self, index: int, nonce: bytes) -> bytes:
        """The SPDM measurements of GPU `index` over `nonce` (32 bytes): request and response."""
        if len(nonce) != NONCE_SIZE:
            raise ValueError(f"a nonce has {NONCE_SIZE} bytes")
        report = GpuReport(nonce=(ctypes.c_ubyte * NONCE_SIZE)(*nonce))
        self._call(
            "nvmlDeviceGetConfComputeGpuAttestationReport",
            self._device(index),
            ctypes.byref(report),
        )
        return _content(report.report, report.report_size)

    def certificates(self, index: int) -> bytes:
        """The PEM chain of the key that signs the measurements of GPU `index`."""
        found = GpuCertificate()
        self._call(
            "nvmlDeviceGetConfComputeGpuCertificate", self._device(index), ctypes.byref(found)
        )
        return _content(found.attestation_chain, found.attestation_chain_size)

    def _device(self, index: int) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        return handle

    def _call(self, name: str, *arguments: object) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise absent(f"confidential computing in this NVIDIA driver ({name})") from None
        code = function(*arguments)
        if code != _SUCCESS:
            raise _error(name, code)


def handle(request: JsonObject) -> JsonObject:
    """Answer ``{"nonce": hex}`` with the state and evidence of every GPU. Runs in a child."""
    nonce = bytes.fromhex(str(request["nonce"]))
    with Nvml.load() as nvml:
        return collect(nvml, nonce)


def handle_state(request: JsonObject) -> JsonObject:
    """Answer anything with the number of GPUs and their mode. Runs in a child."""
    del request
    with Nvml.load() as nvml:
        return {"count": nvml.count(), **_state(nvml)}


def collect(nvml: Nvml, nonce: bytes) -> JsonObject:
    """State and evidence of every GPU, bytes in base64."""
    state = _state(nvml)
    if not state["cc"]:
        return {**state, "gpus": []}
    return {
        **state,
        "gpus": [
            {
                "report": base64.b64encode(nvml.report(index, nonce)).decode("ascii"),
                "chain": base64.b64encode(nvml.certificates(index)).decode("ascii"),
            }
            for index in range(nvml.count())
        ],
    }


def _state(nvml: Nvml) -> JsonObject:
    state = nvml.system_state()
    return {
        "cc": bool(state.cc_feature),
        "dev_tools": bool(state.dev_tools_mode),
        "environment": int(state.environment),
    }


_WHAT: Final = "NVIDIA's management library"


def _content(buffer: ctypes.Array[ctypes.c_ubyte], size: int) -> bytes:
    if not 0 < size <= len(buffer):
        raise answer_error(_WHAT, f"has {size} bytes")
    return bytes(buffer[:size])


def _error(name: str, code: int) -> CloisterError:
    if code in _ABSENT:
        return absent(f"what {name} asks for (NVML error {code})")
    if code == _NO_PERMISSION:
        return UnsupportedError(
            f"this user may not call {name} of NVIDIA's driver", code="device.permission"
        )
    return FetchError(f"{name} of NVIDIA's driver failed (error {code})", code="device.io")
