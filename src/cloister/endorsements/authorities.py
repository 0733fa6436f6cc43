"""Certificates of CAs, decoded once: evidence brings the same few along with every leaf."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from cryptography import x509

from cloister.endorsements.certificates import parse_certificate

REMEMBERED: Final = 128
"""Certificates that are remembered; all vendors' CAs that are in use together are some dozens."""

MAX_REMEMBERED_BYTES: Final = 4096
"""Longest certificate that is remembered, so that none of them takes much; CAs' have 2000."""


def parse_authority(data: bytes) -> x509.Certificate:
    """As `parse_certificate`, for a certificate that stands above many others.

    What is remembered depends on `data` alone and cannot be changed. It says nothing of whether
    the CA is believed.

    Raises MalformedError, and nothing else.
    """
    if len(data) > MAX_REMEMBERED_BYTES:
        return parse_certificate(data)
    return _remembered(bytes(data))


_remembered = lru_cache(maxsize=REMEMBERED)(parse_certificate)
