"""Frames of a packet capture (pcap, version 2.4), as QEMU's filter-dump writes it."""

from __future__ import annotations

import struct


def frames(capture: bytes) -> list[bytes]:
    """Every frame, whole or as far as it was captured."""
    assert capture[:4] == b"\xd4\xc3\xb2\xa1"
    at, found = 24, []
    while at + 16 <= len(capture):
        (size,) = struct.unpack_from("<I", capture, at + 8)
        found.append(capture[at + 16 : at + 16 + size])
        at += 16 + size
    return found


def sent_by(capture: bytes, card: bytes) -> list[bytes]:
    """Those whose Ethernet source is `card`."""
    return [frame for frame in frames(capture) if frame[6:12] == card]
