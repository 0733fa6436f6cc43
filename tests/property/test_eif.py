"""Enclave images from anyone: they decode, or are malformed; no measured byte is ignored."""

from __future__ import annotations

import contextlib
import io
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import MalformedError, UnsupportedError
from cloister.image.eif import Eif, read_eif
from cloister.image.eif_signature import parse_image_signature
from cloister.image.eif_write import EifParts, Signer, write_eif
from support.certificates import issue


def made() -> bytes:
    party = issue("image signer", key=ec.derive_private_key(7, ec.SECP384R1()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("kernel", "boot", "app"):
            (folder / part).write_bytes(part.encode() * 3)
        parts = EifParts(
            kernel=folder / "kernel",
            cmdline="panic=30",
            ramdisks=(folder / "boot", folder / "app"),
            name="demo",
            version="1",
            built_at=datetime(2026, 1, 1, tzinfo=UTC),
            signer=Signer(certificate=party.certificate, key=party.key),
        )
        write_eif(parts, folder / "image.eif")
        return (folder / "image.eif").read_bytes()


GOOD = made()


def decode(data: bytes) -> Eif:
    return read_eif(io.BytesIO(data))


def test_the_example_is_good() -> None:
    signature = decode(GOOD).signature
    assert signature is not None
    parse_image_signature(signature)


@given(data=st.binary(max_size=700))
def test_any_bytes(data: bytes) -> None:
    for start in (b"", GOOD[:548], GOOD[:560]):
        with contextlib.suppress(MalformedError, UnsupportedError):
            decode(start + data)
    with contextlib.suppress(MalformedError):
        parse_image_signature(data)


@given(place=st.integers(0, len(GOOD) - 1), flip=st.integers(1, 255))
def test_a_changed_byte_is_noticed(place: int, flip: int) -> None:
    altered = bytearray(GOOD)
    altered[place] ^= flip
    with contextlib.suppress(MalformedError, UnsupportedError):
        decode(bytes(altered))
        raise AssertionError("an image with a changed byte was read")


@given(place=st.integers(0), cut=st.integers(0, 8), more=st.binary(max_size=8))
def test_altered_signatures(place: int, cut: int, more: bytes) -> None:
    signature = decode(GOOD).signature or b""
    place %= len(signature)
    with contextlib.suppress(MalformedError):
        parse_image_signature(signature[:place] + more + signature[place + cut :])
