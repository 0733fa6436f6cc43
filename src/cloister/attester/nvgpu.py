"""Evidence of NVIDIA GPUs, asked for in a child and kept per nonce.

Asking takes a second or more per GPU, and the driver's library hangs on loaded machines. But
what a GPU proves (genuine, this firmware, confidential mode) does not change from one report to
the next: a worker asks once, over a nonce made of its receipt key, and ships the same evidence
until it ends (docs/design.md section 5). So results are kept per nonce, and `prefetch` asks
ahead of the first report.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attester.background import BackgroundDevice, Exchange
from cloister.attester.device_tpm import certificates
from cloister.attester.devices import absent, answer_error, check_digest
from cloister.endorsements.certificates import parse_certificates
from cloister.errors import CloisterError, MalformedError, UnsupportedError
from cloister.evidence.items import MAX_GPUS, MEDIA_TYPE_GPU_EVIDENCE, gpu_item
from cloister.evidence.report import EvidenceItem
from cloister.strictjson import Json, JsonObject

HANDLER: Final = "cloister.attester.nvml:handle"
LIMIT_S: Final = 60.0
"""Eight GPUs answer in 10 to 20 seconds; the library's own start may take 5 more."""

KEPT: Final = 4
"""Nonces whose evidence is kept."""

_WHAT: Final = "NVIDIA's management library"


class GpuAttester:
    """Evidence of every GPU of the machine. For several threads; they wait for one another."""

    def __init__(
        self,
        device: Exchange | None = None,
        *,
        nonce: bytes | None = None,
        accept_devtools: bool = False,
    ) -> None:
        """With `nonce` (32 bytes) `quote` asks over it; without, over the statement digest.

        Verifiers refuse GPUs whose developer tools are on; so does this, unless told otherwise.
        """
        self._device = BackgroundDevice(HANDLER, limit_s=LIMIT_S) if device is None else device
        if nonce is not None:
            check_digest(nonce)
        self._nonce = nonce
        self._accept_devtools = accept_devtools
        self._kept: OrderedDict[bytes, Mapping[str, EvidenceItem]] = OrderedDict()
        self._lock = threading.Lock()

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        """Evidence over the attester's nonce, or else over `statement_digest` (32 bytes).

        Raises what `collect` raises.
        """
        check_digest(statement_digest)
        return self.collect(statement_digest if self._nonce is None else self._nonce)

    def collect(self, nonce: bytes) -> Mapping[str, EvidenceItem]:
        """Evidence over `nonce` (32 bytes), one item per GPU, from memory if it was asked before.

        Raises:
            UnsupportedError: no GPU, none in confidential mode (code ``gpu.cc_off``), or
                developer tools on (code ``gpu.dev_tools``).
            FetchError: the driver fails or hangs.
        """
        check_digest(nonce)
        with self._lock:
            if nonce not in self._kept:
                self._kept[nonce] = self._ask(nonce)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            return self._kept[nonce]

    def prefetch(self, nonce: bytes) -> threading.Thread:
        """Begin to collect over `nonce`; a failure shows when `collect` is called."""
        check_digest(nonce)
        thread = threading.Thread(target=self._try, args=(nonce,), name="gpu-evidence", daemon=True)
        thread.start()
        return thread

    def _try(self, nonce: bytes) -> None:
        with contextlib.suppress(CloisterError):
            self.collect(nonce)

    def _ask(self, nonce: bytes) -> Mapping[str, EvidenceItem]:
        answer = self._device.ask({"nonce": nonce.hex()})
        if answer.get("cc") is not True:
            raise UnsupportedError(
                "the GPU's confidential mode is off; the host's administrator turns it on",
                code="gpu.cc_off",
            )
        if answer.get("dev_tools") is not False and not self._accept_devtools:
            raise UnsupportedError(
                "the GPU's developer tools are on, so its memory is no secret",
                code="gpu.dev_tools",
            )
        gpus = answer.get("gpus")
        if not isinstance(gpus, list) or len(gpus) > MAX_GPUS:
            raise answer_error(_WHAT, "lists no GPUs")
        if not gpus:
            raise absent("a GPU that NVIDIA's driver sees")
        return {gpu_item(index): _item(gpu, nonce) for index, gpu in enumerate(gpus)}


def _item(gpu: Json, nonce: bytes) -> EvidenceItem:
    if not isinstance(gpu, dict):
        raise answer_error(_WHAT, "lists no GPUs")
    report = _decode(gpu, "report")
    # An SPDM GET_MEASUREMENTS request (DSP0274 1.1, table 49) has its nonce at byte 4.
    if report[4:36] != nonce:
        raise answer_error("the GPU", "is no report over the nonce given")
    try:
        chain = parse_certificates(_decode(gpu, "chain").rstrip(b"\0"))
    except MalformedError:
        raise answer_error("the GPU", "holds no certificates") from None
    return EvidenceItem(
        media_type=MEDIA_TYPE_GPU_EVIDENCE,
        data=report,
        endorsements=certificates([entry.public_bytes(Encoding.DER) for entry in chain]),
    )


def _decode(gpu: JsonObject, name: str) -> bytes:
    try:
        return base64.b64decode(str(gpu.get(name)), validate=True)
    except (binascii.Error, ValueError):
        raise answer_error(_WHAT, f"holds no {name}") from None
