"""Ways to a TPM: a stream socket of a software TPM, or the kernel's resource manager.

A transport carries one command and brings back one response; it knows of both only their
length. Everything is synchronous: a TPM answers one command at a time, most within a
millisecond.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final, Protocol

from cloister.attester.tpm_errors import TpmError

MAX_RESPONSE_BYTES: Final = 4096
"""``MAX_RESPONSE_SIZE`` of the reference implementation; longer answers are not TPM answers."""

HEADER_BYTES: Final = 10
"""Tag, size and code (TPM 2.0 Part 1 section 18.1)."""

RESOURCE_MANAGER: Final = Path("/dev/tpmrm0")


class Transport(Protocol):
    """Carries commands to one TPM."""

    def exchange(self, command: bytes) -> bytes:
        """Send `command` and return the response, header included; TpmError if it cannot."""

    def fileno(self) -> int:
        """The descriptor behind it, for handing the connection on to another process."""

    def close(self) -> None:
        """End the connection. Safe to call twice."""


class SocketTransport:
    """A TPM behind a connected stream socket, as ``swtpm socket --server`` serves it."""

    def __init__(self, connection: socket.socket, *, timeout: float = 30.0) -> None:
        """Use `connection`; `timeout` in seconds is for each read and write of a command.

        RSA key generation, the slowest command, takes a few seconds in a software TPM.
        """
        connection.settimeout(timeout)
        self._connection = connection

    @classmethod
    def from_fd(cls, descriptor: int) -> SocketTransport:
        """Take over an inherited connection."""
        return cls(socket.socket(fileno=descriptor))

    def exchange(self, command: bytes) -> bytes:
        """See `Transport.exchange`."""
        try:
            self._connection.sendall(command)
            response = self._receive(HEADER_BYTES)
            size = int.from_bytes(response[2:6], "big")
            if not HEADER_BYTES <= size <= MAX_RESPONSE_BYTES:
                raise TpmError(f"the TPM announced a response of {size} bytes", code="tpm.io")
            return response + self._receive(size - HEADER_BYTES)
        except OSError as error:
            raise _lost(error) from None

    def _receive(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            piece = self._connection.recv(size - len(received))
            if not piece:
                raise TpmError("the TPM closed the connection", code="tpm.io")
            received += piece
        return bytes(received)

    def fileno(self) -> int:
        """See `Transport.fileno`."""
        return self._connection.fileno()

    def close(self) -> None:
        """See `Transport.close`."""
        self._connection.close()


class DeviceTransport:
    """A TPM behind a character device, normally the kernel's resource manager."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def open(cls, device: Path = RESOURCE_MANAGER) -> DeviceTransport:
        """Open `device`.

        Raises:
            TpmError: it is not there, or this user may not use it (code ``tpm.io``).
        """
        try:
            return cls(os.open(device, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise TpmError(f"{device} cannot be opened: {error.strerror}", code="tpm.io") from None

    def exchange(self, command: bytes) -> bytes:
        """See `Transport.exchange`. The driver wants one write and gives one read."""
        try:
            os.write(self._descriptor, command)
            return os.read(self._descriptor, MAX_RESPONSE_BYTES)
        except OSError as error:
            raise _lost(error) from None

    def fileno(self) -> int:
        """See `Transport.fileno`."""
        return self._descriptor

    def close(self) -> None:
        """See `Transport.close`."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _lost(error: OSError) -> TpmError:
    why = error.strerror or "no answer in time"
    return TpmError(f"the connection to the TPM failed: {why}", code="tpm.io")
