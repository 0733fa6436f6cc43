"""What a plain guest imports until it has answered, and what it leaves to guests that need it.

Everything is what a booted image has but the machine around it: the files are those that the build
of an image puts on the application disk, the program is `cloister.attester.guest`, the TPM is a
software TPM, the operator's port is a socket, and the engine is the image's, in its sandbox. Where
instructions are emulated, each module costs some ten milliseconds.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import pytest

from cloister.attester.enrolment import EnrolmentCa
from cloister.engine.demo_model import demo_model_path
from cloister.errors import EngineError
from cloister.image.boot import enrol_guest
from cloister.image.operator_link import OperatorLink
from cloister.worker.api_keys import ApiKeyFile
from support.application_files import application_files
from support.guests import free_port
from support.software_tpm import HAVE_SWTPM, software_tpm

pytestmark = [
    pytest.mark.tpm,
    pytest.mark.sandbox,
    pytest.mark.skipif(not HAVE_SWTPM, reason="swtpm is not installed"),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
    pytest.mark.timeout(240),
]

WITHIN_S = 120.0

IMAGE = """
configuration = 1
name = "plain"
version = "1"
compat = {compat}

[[model]]
name = "demo"
file = "{model}"

[engine]
context = 256
parallel = 1

[network]
listen = [{port}]
"""

GUEST = """
import sys
from pathlib import Path
from threading import Lock

from cloister.attester import guest
from cloister.attester.tpm import Tpm
from cloister.attester.transport import SocketTransport

folder, tpm, port = sys.argv[1:]


class Shared(SocketTransport):
    '''What the kernel's resource manager gives: one TPM for several who ask.'''

    lock = Lock()

    def exchange(self, command):
        with self.lock:
            return super().exchange(command)


opened = Tpm(Shared.from_fd(int(tpm)))
status = guest.main(guest.Surroundings(
    settings=Path(folder, "worker.json"),
    run=Path(folder, "run"),
    open_tpm=lambda: opened,
    open_port=lambda: int(port),
))
Path(folder, "imported").write_text("\\n".join(sys.modules))
sys.exit(status)
"""

LEFT_OUT = frozenset(
    {
        # A certificate is passed on; who judges it is the client.
        "cryptography.x509",
        "cryptography.hazmat.primitives.serialization",
        "cloister.endorsements.certificates",
        # Launchers, and whoever certifies keys.
        "cloister.attester.enrolment",
        "cloister.attester.launcher",
        "cloister.attester.quote",
        "cloister.attester.takeover",
        # Other platforms.
        "cloister.attester.azure",
        "cloister.attester.machine",
        "cloister.attester.nitro_tpm",
        "cloister.attester.nsm",
        "cbor2",
        # Manifests, brokers, sealed weights.
        "cloister.manifest",
        "cloister.verifier",
        "cloister.weights",
        "cloister.worker.key_release",
        "cloister.worker.manifest",
        "cloister.worker.releases",
        "cloister.worker.weights",
        # Attested TLS.
        "cloister.worker.tls_key",
        "cloister.worker.tls_server",
        # Other servers' paths.
        "cloister.worker.compat.cosmian",
        "cloister.worker.compat.translation",
        "cloister.worker.compat.triton",
        # Ways in without a card.
        "cloister.streams.forward",
        "cloister.streams.multiplex",
        "cloister.streams.serial",
        "cloister.worker.stream_server",
        # Other engines, and models that are folders, are fetched or are made.
        "cloister.engine.asgi_app",
        "cloister.engine.fetch",
        "cloister.engine.hub",
        "cloister.engine.managed",
        "cloister.engine.model_folder",
        "cloister.engine.openai_upstream",
        "cloister.engine.prepare",
        "cloister.engine.safetensors",
        # Clients, command line, builder.
        "cloister.cli",
        "cloister.client",
        "cloister.image",
        "httpx2",
        "pydantic",
        "rich",
        "typer",
    }
)


def test_what_is_left_out_is_there() -> None:
    """Otherwise a module that is renamed could come back."""
    for name in sorted(LEFT_OUT):
        importlib.import_module(name)


@pytest.mark.parametrize("dialect", ["", "cosmian"])
def test_a_guest_imports_what_its_configuration_needs(dialect: str) -> None:
    imported = modules_of_guest([dialect] if dialect else [])
    assert {"cloister.worker.serve", "cloister.engine.llama"} <= imported
    assert {"cloister.evidence.subject_key", "cloister.worker.api"} <= imported
    needed = {"cloister.worker.compat.cosmian", "cloister.worker.compat.translation"}
    assert LEFT_OUT & imported == (needed if dialect else set())


def modules_of_guest(compat: list[str]) -> set[str]:
    """Its modules once it was certified, has answered without the engine, and was told to end."""
    # Not pytest's folder: the path of a socket holds 107 bytes.
    with TemporaryDirectory(prefix="guest-") as directory, software_tpm() as (running, made):
        folder = Path(directory)
        url = f"http://127.0.0.1:{(port := free_port())}"
        text = IMAGE.format(port=port, model=demo_model_path(), compat=json.dumps(compat))
        settings = json.loads(application_files(folder, text)["worker.json"])
        # What is elsewhere here: the mount point, the address of the card.
        settings["models"]["demo"]["model"]["path"] = str(demo_model_path())
        settings["operator"] |= {"host": "127.0.0.1"}
        (folder / "worker.json").write_text(json.dumps(settings))
        (folder / "run").mkdir(mode=0o700)
        ApiKeyFile(folder / "keys.json").add("test", at=int(time.time()))
        ours, theirs = socket.socketpair()
        descriptors = (running.tpm.transport.fileno(), theirs.fileno())
        with ours, (folder / "errors").open("wb") as errors:
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-c", GUEST, str(folder), *map(str, descriptors)],
                    stdin=subprocess.DEVNULL,
                    stderr=errors,
                    pass_fds=descriptors,
                    env={"PATH": os.environ["PATH"], "TMPDIR": str(folder / "run")},
                )

            def waiting() -> None:
                if process.poll() is not None:
                    raise EngineError((folder / "errors").read_text(), code="guest.ended")

            try:
                link = OperatorLink(ours, waiting=waiting)
                ca = EnrolmentCa.in_memory(manufacturers=(made.root,), at=datetime.now(UTC))
                enrol_guest(link, ca, issuer=made.issuer, at=datetime.now(UTC))
                table = (folder / "keys.json").read_bytes()
                link.ask("api_keys", table=base64.b64encode(table).decode())
                link.ask("start")
                ends = time.monotonic() + WITHIN_S
                while not isinstance(link.ask("ready")["ready"], dict):
                    assert time.monotonic() < ends, (folder / "errors").read_text()
                    time.sleep(0.1)
                assert httpx2.get(f"{url}/v1/aci/attestation").status_code == 200
                assert httpx2.get(f"{url}/health").is_client_error  # it was not sealed
                process.terminate()
                assert process.wait(WITHIN_S) == 0, (folder / "errors").read_text()
            finally:
                process.kill()
                process.wait()
        return set((folder / "imported").read_text().split("\n"))
