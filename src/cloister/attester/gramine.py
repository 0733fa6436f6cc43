"""SGX quotes inside Gramine, by its pseudo-files.

Source: Gramine documentation, "Attestation and Secret Provisioning", low-level
``/dev/attestation`` interface: 64 bytes into ``user_report_data``, then ``quote`` gives a quote
over them. Gramine keeps what was written per process, so one request at a time. Available only
where the manifest says ``sgx.remote_attestation = "dcap"``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cloister.attester.devices import (
    absent,
    answer_error,
    failed,
    opened,
    read_file,
    report_data,
)
from cloister.evidence.items import ITEM_SGX_QUOTE, MEDIA_TYPE_SGX_QUOTE
from cloister.evidence.report import EvidenceItem

ATTESTATION: Final = Path("/dev/attestation")

MAX_QUOTE_BYTES: Final = 64 * 1024
"""A DCAP quote with its certificates has 5 KB."""

_USER_DATA: Final = "user_report_data"
_TYPE_BYTES: Final = 64
_REPORT_DATA: Final = slice(48 + 320, 48 + 384)
"""Of a quote: the header's 48 bytes, then the report body with its report data at 320."""


class GramineAttester:
    """Turns statement digests into SGX quotes. One request at a time."""

    def __init__(self, directory: Path = ATTESTATION) -> None:
        self._directory = directory
        self._lock = threading.Lock()

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        """A quote over `statement_digest` (32 bytes) in the report data.

        Raises:
            UnsupportedError: not inside Gramine, or its manifest offers no DCAP attestation.
            FetchError: quoting fails, or the quote is over other data.
        """
        user_data = report_data(statement_digest)
        with self._lock:
            self._check_type()
            self._write(user_data)
            quote = read_file(self._directory / "quote", limit=MAX_QUOTE_BYTES)
        if quote[_REPORT_DATA] != user_data:
            raise answer_error("Gramine", "is no quote over the data given")
        return {ITEM_SGX_QUOTE: EvidenceItem(media_type=MEDIA_TYPE_SGX_QUOTE, data=quote)}

    def _check_type(self) -> None:
        kind = read_file(self._directory / "attestation_type", limit=_TYPE_BYTES).strip(b"\0\n ")
        if kind != b"dcap":
            raise absent(
                'Gramine\'s manifest asks for no DCAP attestation (sgx.remote_attestation = "dcap")'
            )

    def _write(self, user_data: bytes) -> None:
        path = self._directory / _USER_DATA
        with opened(path) as descriptor:
            try:
                written = os.write(descriptor, user_data)
            except OSError as error:
                raise failed(str(path), error) from None
        if written != len(user_data):
            raise answer_error("Gramine", "took only a part of the data given")
