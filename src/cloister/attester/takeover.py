"""How a worker takes over what the launcher that started it hands to it."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from cloister.attester import link
from cloister.attester.handover import Handover, MeasuredFile
from cloister.attester.quote import TpmAttester
from cloister.attester.tpm import Tpm
from cloister.attester.transport import DeviceTransport, SocketTransport, Transport
from cloister.model_digest import Role

ORPHAN_GRACE_S: Final = 45.0
"""How long a worker may finish its streams after its launcher died, before it is ended."""


def accept(connection: socket.socket, message: Mapping[str, Any]) -> Handover:
    """Take over what `message` describes and start listening to the launcher."""
    directory = Path(message["directory"])
    attester = TpmAttester(
        Tpm(_transport(message["tpm"])),
        ak_handle=message["tpm"]["ak_handle"],
        ak_chain=certificates(message["ak_chain"]),
        event_log=base64.b64decode(message["event_log"]),
    )
    handover = Handover(
        configuration=message["configuration"],
        operator=message["operator"],
        models={model["name"]: _model_files(model["files"]) for model in message["models"]},
        native={name: _measured_file(entry) for name, entry in message["native"].items()},
        directory=directory,
        memory=Path(message["memory"]["folder"]) if message.get("memory") else None,
        attester=attester,
        _connection=connection,
    )
    threading.Thread(
        target=_listen, args=(connection, attester, directory), name="launcher", daemon=True
    ).start()
    return handover


def certificates(encoded: list[str]) -> tuple[x509.Certificate, ...]:
    """Decode base64 of DER."""
    return tuple(x509.load_der_x509_certificate(base64.b64decode(entry)) for entry in encoded)


def _listen(connection: socket.socket, attester: TpmAttester, directory: Path) -> None:
    """Take renewed certificates; when the launcher is gone, end this worker as it would have."""
    while (message := link.receive(connection)) is not None:
        if "ak_chain" in message:
            attester.replace_chain(certificates(message["ak_chain"]))
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_GRACE_S)
    # Still here: it is not listening yet, or does not come to an end.
    shutil.rmtree(directory, ignore_errors=True)
    os._exit(1)


def _transport(tpm: Mapping[str, Any]) -> Transport:
    descriptor = int(tpm["fd"])
    # The engine that this worker starts must not inherit the way to the TPM.
    os.set_inheritable(descriptor, False)
    if tpm["kind"] == "socket":
        return SocketTransport.from_fd(descriptor)
    return DeviceTransport(descriptor)


def _model_files(entries: Mapping[str, Mapping[str, Any]]) -> Mapping[Role, MeasuredFile]:
    return {Role(role): _measured_file(entry) for role, entry in entries.items()}


def _measured_file(entry: Mapping[str, Any]) -> MeasuredFile:
    return MeasuredFile(
        name=entry["name"],
        path=Path(entry["path"]),
        sha256=entry["sha256"],
        sealed=entry.get("sealed") is True,
    )
