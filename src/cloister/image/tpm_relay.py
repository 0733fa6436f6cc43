"""What stands between an emulated machine and its software TPM: it hides banks that are off.

A software TPM of this kind always names four banks of registers, of which `manufacture` switches
three off. OVMF's modules hash everything that they measure once for each bank that a TPM names,
switched on or not (edk2 ``SecurityPkg``, ``Tcg2Pei`` and ``HashLibBaseCryptoRouter``), and then
drop the digests that no bank takes: five seconds of a start where instructions are emulated. So
the relay takes these banks out of the TPM's answer about its registers (TPM 2.0 Part 3,
``TPM2_GetCapability``, TPM_CAP_PCRS). Every other byte passes as it is, and no register gets
another value.

QEMU's side (``docs/specs/tpm.rst``): on a control socket it sends, with one of its messages, the
descriptor on which it will exchange commands with the TPM.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Final

from cloister.attester.tpm_errors import TpmError

LISTENS_WITHIN_S: Final = 10.0
_NO_SESSIONS: Final = 0x8001
_GET_CAPABILITY: Final = 0x17A
_PCRS: Final = 5
_ASKED: Final = struct.Struct(">HIIII")  # tag, size, command, capability, first property
_HEADER: Final = struct.Struct(">HII")
_ANSWERED: Final = struct.Struct(">HIIBII")  # tag, size, response code, more, capability, count
_BANK: Final = struct.Struct(">HB")  # hash algorithm, size of the bits behind it
_MAX_BANKS: Final = 16
_MAX_PACKET: Final = 4096


def without_idle_banks(command: bytes, answer: bytes) -> bytes:
    """`answer` to `command`; where it lists banks of registers, only those with a register.

    An answer of another shape, or with no bank switched on, is returned as it is.
    """
    try:
        tag, _, code, capability, _ = _ASKED.unpack_from(command)
        if (tag, code, capability) != (_NO_SESSIONS, _GET_CAPABILITY, _PCRS):
            return answer
        tag, size, response, more, kind, count = _ANSWERED.unpack_from(answer)
        if (size, response, kind) != (len(answer), 0, _PCRS) or count > _MAX_BANKS:
            return answer
        at, kept = _ANSWERED.size, list[bytes]()
        for _ in range(count):
            bits = at + _BANK.size
            end = bits + _BANK.unpack_from(answer, at)[1]
            if any(answer[bits:end]):
                kept.append(answer[at:end])
            at = end
    except struct.error:
        return answer
    if at != len(answer) or not kept:
        return answer
    size = _ANSWERED.size + sum(map(len, kept))
    return b"".join((_ANSWERED.pack(tag, size, response, more, kind, len(kept)), *kept))


class TpmRelay:
    """Waits at `listen` for one machine, and brings it to the TPM whose socket `control` is.

    It ends with either side's connection, and then closes the other's.
    """

    def __init__(self, *, listen: Path, control: Path) -> None:
        """Connect to the TPM and begin to wait.

        Raises:
            TpmError: the TPM's socket is not there, or `listen` cannot be made.
        """
        self._listener, self._tpm = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(str(listen))
            self._listener.listen(1)
            _connect(self._tpm, control)
        except OSError as error:
            self._listener.close()
            self._tpm.close()
            raise TpmError(
                f"the software TPM cannot be reached: {error}", code="tpm.swtpm"
            ) from None
        self._lock = threading.Lock()
        self._open = [self._listener, self._tpm]
        self._stopped = False
        self._threads = [threading.Thread(target=self._serve, name="tpm", daemon=True)]
        self._threads[0].start()

    def stop(self) -> None:
        """End every connection. Safe to call twice."""
        with self._lock:
            self._stopped = True
            for one in self._open:
                _end(one)
        for thread in self._threads:
            thread.join()
        # Not before: who waits on a closed descriptor is not told, and may wait on another's.
        for one in self._open:
            one.close()

    def _keep(self, opened: socket.socket) -> socket.socket:
        """See to it that `opened` ends with the relay."""
        with self._lock:
            if self._stopped:
                opened.close()
                raise OSError("the relay has ended")
            self._open.append(opened)
        return opened

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            machine = self._keep(self._listener.accept()[0])
            with contextlib.suppress(OSError):
                self._carry_control(machine)
            _end(machine)
        _end(self._tpm)

    def _carry_control(self, machine: socket.socket) -> None:
        with selectors.DefaultSelector() as either:
            either.register(machine, selectors.EVENT_READ)
            either.register(self._tpm, selectors.EVENT_READ)
            while True:
                for key, _ in either.select():
                    if key.fileobj is self._tpm:
                        piece = self._tpm.recv(_MAX_PACKET)
                        machine.sendall(piece)
                    else:
                        piece, sent, _, _ = socket.recv_fds(machine, _MAX_PACKET, 1)
                        self._pass_on(piece, sent)
                    if not piece:
                        return

    def _pass_on(self, piece: bytes, sent: list[int]) -> None:
        """A message of the machine's; the end that it sends for commands stays here."""
        if not sent:
            self._tpm.sendall(piece)
            return
        near = self._keep(socket.socket(fileno=sent[0]))
        far, theirs = socket.socketpair()
        with theirs:
            self._keep(far)
            socket.send_fds(self._tpm, [piece], [theirs.fileno()])
        commands = threading.Thread(target=_carry, args=(near, far), name="tpm", daemon=True)
        self._threads.append(commands)
        commands.start()


def _carry(machine: socket.socket, tpm: socket.socket) -> None:
    with contextlib.suppress(OSError, EOFError):
        while True:
            command = _packet(machine)
            tpm.sendall(command)
            machine.sendall(without_idle_banks(command, _packet(tpm)))
    _end(machine)
    _end(tpm)


def _packet(source: socket.socket) -> bytes:
    """One command or answer, whose header says its size; EOFError where the connection ends."""
    data = _exactly(source, _HEADER.size)
    size = _HEADER.unpack(data)[1]
    if not _HEADER.size <= size <= _MAX_PACKET:
        raise EOFError
    return data + _exactly(source, size - _HEADER.size)


def _exactly(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = source.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _end(connection: socket.socket) -> None:
    """Let both sides of it know; it stays open until nobody here waits on it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _connect(to: socket.socket, where: Path) -> None:
    """A program's socket is there a moment before the program listens on it."""
    deadline = time.monotonic() + LISTENS_WITHIN_S
    while True:
        try:
            to.connect(str(where))
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)
        else:
            return
