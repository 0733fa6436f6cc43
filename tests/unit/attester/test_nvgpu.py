"""NVIDIA GPUs: the driver's library simulated function by function, and what is made of it."""

from __future__ import annotations

import base64
import ctypes
import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.attester import nvgpu, nvml
from cloister.attester.background import BackgroundDevice
from cloister.attester.nvgpu import GpuAttester
from cloister.attester.nvml import GpuCertificate, GpuReport, Nvml, SystemState, collect
from cloister.errors import FetchError, UnsupportedError
from cloister.strictjson import JsonObject

NONCE = bytes(range(32))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def certificate() -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "GPU")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .sign(key, hashes.SHA384())
    )


LEAF, ISSUER = certificate(), certificate()
PEM = LEAF.public_bytes(Encoding.PEM) + ISSUER.public_bytes(Encoding.PEM)


class Library:
    """Functions with the names and signatures of the driver's library."""

    def __init__(self, gpus: int = 2) -> None:
        self.gpus = gpus
        self.state = (2, 1, 0)
        self.codes: dict[str, int] = {}
        self.calls: list[str] = []
        self.report_size: int | None = None
        self.nonce: bytes | None = None

    def _code(self, name: str) -> int:
        self.calls.append(name)
        return self.codes.get(name, 0)

    def nvmlInit_v2(self) -> int:  # noqa: N802 - the library's names
        return self._code("nvmlInit_v2")

    def nvmlShutdown(self) -> int:  # noqa: N802
        return self._code("nvmlShutdown")

    def nvmlSystemGetConfComputeState(self, state: Any) -> int:  # noqa: N802
        found: SystemState = state._obj
        found.environment, found.cc_feature, found.dev_tools_mode = self.state
        return self._code("nvmlSystemGetConfComputeState")

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.gpus
        return self._code("nvmlDeviceGetCount_v2")

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, handle: Any) -> int:  # noqa: N802
        handle._obj.value = 0x1000 + index.value
        return self._code("nvmlDeviceGetHandleByIndex_v2")

    def nvmlDeviceGetConfComputeGpuAttestationReport(  # noqa: N802
        self, handle: ctypes.c_void_p, report: Any
    ) -> int:
        found: GpuReport = report._obj
        nonce = bytes(found.nonce) if self.nonce is None else self.nonce
        data = b"\x11\xe0\x01\xff" + nonce + b"measurements of %x" % (handle.value or 0)
        ctypes.memmove(found.report, data, len(data))
        found.report_size = len(data) if self.report_size is None else self.report_size
        return self._code("nvmlDeviceGetConfComputeGpuAttestationReport")

    def nvmlDeviceGetConfComputeGpuCertificate(  # noqa: N802
        self, handle: ctypes.c_void_p, certificates: Any
    ) -> int:
        found: GpuCertificate = certificates._obj
        ctypes.memmove(found.attestation_chain, PEM + b"\0", len(PEM) + 1)
        found.attestation_chain_size = len(PEM) + 1
        return self._code("nvmlDeviceGetConfComputeGpuCertificate")


class InProcess:
    """Asks the simulated library without a child."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.asked: list[str] = []

    def ask(self, request: JsonObject) -> JsonObject:
        nonce = str(request["nonce"])
        self.asked.append(nonce)
        with Nvml(self.library) as library:
            return collect(library, bytes.fromhex(nonce))


def test_structures_have_the_sizes_of_the_header() -> None:
    assert ctypes.sizeof(SystemState) == 12
    assert ctypes.sizeof(GpuCertificate) == 8 + 0x1000 + 0x1400
    assert ctypes.sizeof(GpuReport) == 12 + 32 + 0x2000 + 0x1000
    assert GpuReport.report.offset == 44


def test_every_gpu_gives_an_item_with_its_chain() -> None:
    items = GpuAttester(InProcess(Library())).collect(NONCE)
    assert list(items) == ["gpu0.evidence", "gpu1.evidence"]
    assert items["gpu1.evidence"].data == b"\x11\xe0\x01\xff" + NONCE + b"measurements of 1001"
    assert [entry.data for entry in items["gpu0.evidence"].endorsements] == [
        entry.public_bytes(Encoding.DER) for entry in (LEAF, ISSUER)
    ]


def test_the_library_is_shut_down_after_each_request() -> None:
    library = Library()
    GpuAttester(InProcess(library)).collect(NONCE)
    assert library.calls[0] == "nvmlInit_v2"
    assert library.calls[-1] == "nvmlShutdown"


def test_evidence_is_kept_per_nonce_and_only_so_much_of_it() -> None:
    device = InProcess(Library())
    attester = GpuAttester(device)
    assert attester.collect(NONCE) is attester.collect(NONCE)
    assert len(device.asked) == 1
    for index in range(nvgpu.KEPT):
        attester.collect(bytes([index]) * 32)
    attester.collect(NONCE)
    assert len(device.asked) == 2 + nvgpu.KEPT


def test_with_a_nonce_of_its_own_the_statement_changes_nothing() -> None:
    device = InProcess(Library())
    attester = GpuAttester(device, nonce=NONCE)
    assert attester.quote(bytes(32)) is attester.quote(b"x" * 32)
    assert device.asked == [NONCE.hex()]
    other = InProcess(Library())
    GpuAttester(other).quote(b"x" * 32)
    assert other.asked == [(b"x" * 32).hex()]


def test_failures_are_not_kept() -> None:
    library = Library()
    attester = GpuAttester(InProcess(library))
    library.codes["nvmlInit_v2"] = 999
    with pytest.raises(FetchError):
        attester.collect(NONCE)
    library.codes.clear()
    assert attester.collect(NONCE)


def test_prefetching_asks_before_the_first_report() -> None:
    device = InProcess(Library())
    attester = GpuAttester(device, nonce=NONCE)
    attester.prefetch(NONCE).join()
    assert device.asked == [NONCE.hex()]
    attester.quote(bytes(32))
    assert len(device.asked) == 1


def test_a_prefetch_that_fails_shows_later() -> None:
    library = Library()
    library.codes["nvmlInit_v2"] = 999
    attester = GpuAttester(InProcess(library))
    attester.prefetch(NONCE).join()
    with pytest.raises(FetchError):
        attester.collect(NONCE)


def test_a_gpu_outside_confidential_mode_gives_nothing() -> None:
    library = Library()
    library.state = (2, 0, 0)
    with pytest.raises(UnsupportedError) as caught:
        GpuAttester(InProcess(library)).collect(NONCE)
    assert caught.value.code == "gpu.cc_off"
    assert "nvmlDeviceGetConfComputeGpuAttestationReport" not in library.calls


def test_developer_tools_are_refused_unless_asked_for() -> None:
    library = Library()
    library.state = (2, 1, 1)
    with pytest.raises(UnsupportedError) as caught:
        GpuAttester(InProcess(library)).collect(NONCE)
    assert caught.value.code == "gpu.dev_tools"
    assert GpuAttester(InProcess(library), accept_devtools=True).collect(NONCE)


def test_a_machine_without_gpus_says_so() -> None:
    with pytest.raises(UnsupportedError, match="not on this machine"):
        GpuAttester(InProcess(Library(0))).collect(NONCE)


def test_the_number_of_gpus_is_bounded() -> None:
    assert len(GpuAttester(InProcess(Library(16))).collect(NONCE)) == 16
    with pytest.raises(FetchError, match="more than 16"):
        GpuAttester(InProcess(Library(17))).collect(NONCE)


@pytest.mark.parametrize("size", [0, nvml.MAX_REPORT_BYTES + 1])
def test_sizes_beyond_the_buffer_are_refused(size: int) -> None:
    library = Library()
    library.report_size = size
    with pytest.raises(FetchError) as caught:
        GpuAttester(InProcess(library)).collect(NONCE)
    assert caught.value.code == "device.answer"


def test_a_report_over_another_nonce_is_refused() -> None:
    library = Library()
    library.nonce = bytes(32)
    with pytest.raises(FetchError, match="nonce"):
        GpuAttester(InProcess(library)).collect(NONCE)


@pytest.mark.parametrize("code", [3, 9, 13])
def test_what_the_driver_lacks_is_not_on_this_machine(code: int) -> None:
    library = Library()
    library.codes["nvmlSystemGetConfComputeState"] = code
    with pytest.raises(UnsupportedError, match="not on this machine"):
        GpuAttester(InProcess(library)).collect(NONCE)


def test_an_old_library_without_the_function_is_told_apart() -> None:
    old = SimpleNamespace(nvmlInit_v2=lambda: 0, nvmlShutdown=lambda: 0)
    with Nvml(old) as library, pytest.raises(UnsupportedError, match="ConfComputeState"):
        library.system_state()


def test_no_permission_says_so() -> None:
    library = Library()
    library.codes["nvmlInit_v2"] = 4
    with pytest.raises(UnsupportedError) as caught:
        GpuAttester(InProcess(library)).collect(NONCE)
    assert caught.value.code == "device.permission"


class Says:
    def __init__(self, answer: JsonObject) -> None:
        self.answer = answer

    def ask(self, request: JsonObject) -> JsonObject:
        return self.answer


def gpu(**changed: str) -> JsonObject:
    report = base64.b64encode(b"\x11\xe0\x01\xff" + NONCE).decode()
    return {"report": report, "chain": base64.b64encode(PEM).decode(), **changed}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"gpus": "two"},
        {"gpus": [gpu()] * 17},
        {"gpus": ["gpu"]},
        {"gpus": [gpu(report="*")]},
        {"gpus": [gpu(chain="*")]},
        {"gpus": [gpu(chain=base64.b64encode(b"no chain").decode())]},
        {"gpus": [{}]},
    ],
)
def test_a_child_that_talks_nonsense_is_refused(answer: JsonObject) -> None:
    state: JsonObject = {"cc": True, "dev_tools": False}
    assert GpuAttester(Says({**state, "gpus": [gpu()]})).collect(NONCE)
    with pytest.raises(FetchError) as caught:
        GpuAttester(Says({**state, **answer})).collect(NONCE)
    assert caught.value.code == "device.answer"


def test_a_nonce_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        GpuAttester(InProcess(Library())).collect(bytes(31))
    with pytest.raises(ValueError, match="32 bytes"):
        GpuAttester(InProcess(Library()), nonce=bytes(31))
    with Nvml(Library()) as library, pytest.raises(ValueError, match="32 bytes"):
        library.report(0, bytes(31))


def test_requests_wait_for_one_another() -> None:
    device = InProcess(Library())
    attester = GpuAttester(device)
    threads = [threading.Thread(target=attester.collect, args=(NONCE,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(device.asked) == 1


def test_without_a_driver_the_child_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", "libno-such-library.so.1")
    with pytest.raises(UnsupportedError, match="not on this machine"):
        nvml.handle({"nonce": NONCE.hex()})


@pytest.mark.gpu
def test_a_real_driver_answers_in_a_child() -> None:
    device = BackgroundDevice("cloister.attester.nvml:handle_state", limit_s=60)
    try:
        state = device.ask({})
    finally:
        device.close()
    assert isinstance(state["count"], int)
