"""The guest's program with sealed weights and a broker, without its machine.

Everything is what a booted image has but the machine around it: the files are those that the build
of an image puts on the application disk, the process is `cloister.attester.guest`, the software TPM
holds the registers of a boot that was recorded, and the operator's port is a socket.
tests/boot/test_sealed.py boots the same.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import IO, Any

import pytest

from cloister.attester.enrolment import EnrolmentCa
from cloister.broker.store import Revoked
from cloister.cli.image_carry import carried_broker
from cloister.endorsements.roots import Roots
from cloister.errors import EngineError
from cloister.evidence.eventlog import EventType, parse_event_log, replay
from cloister.evidence.tpm import Alg
from cloister.image.boot import enrol_guest
from cloister.image.operator_link import OperatorLink
from cloister.manifest import ImageEntry, Serving, SignedManifest
from cloister.testing.signed_manifests import sign_update
from cloister.verifier.platform_references import PlatformReference, ReferenceImage
from cloister.verifier.reference_values import ReferenceValues
from cloister.worker.api_keys import ApiKeyFile
from support.application_files import application_files
from support.guests import free_port
from support.links import virtio_port
from support.manifests import ALICE
from support.owners import (
    MODEL,
    Broker,
    SealedDemo,
    ask_knowing_alice,
    broker_for,
    sealed_demo,
    signed_for,
)
from support.software_tpm import HAVE_SWTPM, manufactured, software_tpm

pytestmark = [
    pytest.mark.tpm,
    pytest.mark.sandbox,
    pytest.mark.skipif(not HAVE_SWTPM, reason="swtpm is not installed"),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
    pytest.mark.timeout(240),
]

WITHIN_S = 120.0
RECORDED = Path(__file__).parents[1] / "vectors/measured_boot/default.json"
BROKERS_ADDRESS = "10.0.2.100:8450"

IMAGE = """
configuration = 1
name = "sealed-test"
version = "1"

[[model]]
name = "demo"
file = "demo.sealed"

[engine]
context = 256
parallel = 1

[broker]
peer = "broker"
identity = "{identity}"
development = true

[network]
listen = [{port}]
allow_out = [{{ name = "broker", address = "10.0.2.100", port = 8450 }}]
"""

GUEST = """
import sys
from pathlib import Path
from threading import Lock

from cloister.attester import guest
from cloister.attester.device_tpm import DeviceTpmAttester
from cloister.attester.tpm import Tpm
from cloister.attester.transport import SocketTransport

application, run, tpm, port, meminfo = sys.argv[1:]


class Shared(SocketTransport):
    '''What the kernel's resource manager gives: one TPM for several who ask.'''

    lock = Lock()

    def exchange(self, command):
        with self.lock:
            return super().exchange(command)


waits = DeviceTpmAttester.wait_for_chain


def waits_aloud(self, within_s):
    print("waiting for the certificate", flush=True)
    waits(self, within_s)


DeviceTpmAttester.wait_for_chain = waits_aloud
opened = Tpm(Shared.from_fd(int(tpm)))
sys.exit(guest.main(guest.Surroundings(
    settings=Path(application, "worker.json"),
    run=Path(run),
    open_tpm=lambda: opened,
    open_port=lambda: int(port),
    meminfo=Path(meminfo),
)))
"""


@dataclass(frozen=True, kw_only=True)
class Owned:
    """What the owner has, and whoever certifies guests."""

    folder: Path
    demo: SealedDemo
    broker: Broker
    ca: EnrolmentCa
    signed: SignedManifest

    @property
    def roots(self) -> Roots:
        return Roots(enrolment_cas=(self.ca.certificate,))


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owned]:
    folder = tmp_path_factory.mktemp("owned")
    demo = sealed_demo(folder / "demo.sealed")
    ca = EnrolmentCa.in_memory(manufacturers=(manufactured().root,), at=datetime.now(UTC))
    roots = Roots(enrolment_cas=(ca.certificate,))
    with broker_for(demo, folder / "broker.db", roots) as broker:
        signed = signed_by_alice(demo)
        yield Owned(folder=folder, demo=demo, broker=broker, ca=ca, signed=signed)


def signed_by_alice(demo: SealedDemo) -> SignedManifest:
    """What the owner signs: the model, where its key is, the image, and its one way out."""
    values = replay(parse_event_log(base64.b64decode(recorded()["event_log_b64"])))
    registers = {f"pcr{pcr}": (values.get(pcr, bytes(32)).hex(),) for pcr in range(10)}
    registers |= {f"pcr{pcr}": (values.get(pcr, bytes(32)).hex(),) for pcr in (11, 12)}
    registers |= {"pcr13": ("00" * 32,), "pcr14": ("00" * 32,), "pcr15": ("00" * 32,)}
    reference = PlatformReference(
        platform="tpm",
        name="sealed-test 1",
        registers=registers,
        image=ReferenceImage(name="sealed-test", version="1", debug=False),
    )
    image = ImageEntry(
        name="sealed-test",
        version="1",
        debug=False,
        reference_values=ReferenceValues.from_platforms(reference),
    )
    serving = Serving(
        egress=(BROKERS_ADDRESS,), receipts_keep_s=600, stream_bucket=256, body_bucket=1024
    )
    return signed_for(demo, image, serving)


def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORDED.read_text())
    return found


@dataclass(kw_only=True)
class Guest:
    """A guest's program that runs, and the operator's end of its port."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    errors: Path
    url: str
    run: Path
    api_key: str = field(repr=False)
    table: bytes = field(repr=False)

    def start(self, owned: Owned, signed: SignedManifest | None = None) -> None:
        """Let it start, and certify its key when it has nothing more to do without."""
        link = self.link
        link.ask("start", manifest=base64.b64encode((signed or owned.signed).encode()).decode())
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"waiting for the certificate\n", self.said
        enrol_guest(link, owned.ca, issuer=manufactured().issuer, at=datetime.now(UTC))

    def serve(self, owned: Owned) -> dict[str, Any]:
        """Start it, and wait until it listens; what it says of itself."""
        self.start(owned)
        self.link.ask("api_keys", table=base64.b64encode(self.table).decode())
        ends = time.monotonic() + WITHIN_S
        while not isinstance(ready := self.link.ask("ready")["ready"], dict):
            assert time.monotonic() < ends, self.said
            time.sleep(0.1)
        return ready

    def refuses(self, owned: Owned, signed: SignedManifest | None = None) -> str:
        """Start it, and wait for its end; the code that it gives as the reason."""
        self.start(owned, signed)
        return self.ended()

    def ended(self) -> str:
        assert self.process.wait(WITHIN_S) == 1, self.said
        last = json.loads(self.said.splitlines()[-1])
        assert last["event"] in {"worker.failed", "guest.failed"}
        return str(last["code"])

    @property
    def said(self) -> str:
        return self.errors.read_text()

    @property
    def link(self) -> OperatorLink:
        def waiting() -> None:
            if self.process.poll() is not None:
                raise EngineError(self.said, code="guest.ended")

        return OperatorLink(self.connection, waiting=waiting)


@contextlib.contextmanager
def guest(
    owned: Owned,
    *,
    identity: str | None = None,
    application_register: bytes | None = None,
    meminfo: Path = Path("/proc/meminfo"),
    broker: str | None = None,
) -> Iterator[Guest]:
    """Start the program as an image's init would.

    `application_register` is extended into register 14 before, as by another application disk.
    """
    port = free_port()
    files = application_files(
        owned.folder,
        IMAGE.format(identity=identity or str(owned.broker.store.identity), port=port),
    )
    settings = json.loads(files["worker.json"])
    # What is elsewhere here: the mount points, the address of the card, that of the broker.
    assert settings["models"][MODEL]["model"]["path"] == "/model/demo.sealed"
    assert settings["operator"]["broker"] == f"http://{BROKERS_ADDRESS}"
    settings["models"][MODEL]["model"]["path"] = str(owned.demo.path)
    settings["operator"] |= {"host": "127.0.0.1", "broker": broker or owned.broker.url}
    log = base64.b64decode(recorded()["event_log_b64"])
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as stack:
        # Not pytest's folder: the path of a socket holds 107 bytes.
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="guest-")))
        running, _ = stack.enter_context(software_tpm())
        stack.enter_context(ours)
        for event in parse_event_log(log).events:
            if event.type != EventType.EV_NO_ACTION:
                running.tpm.extend(event.pcr, event.digests[Alg.SHA256])
        if application_register is not None:
            running.tpm.extend(14, application_register)
        _, api_key = ApiKeyFile(folder / "keys.json").add("test", at=int(time.time()))
        (folder / "application").mkdir()
        (folder / "application" / "worker.json").write_text(json.dumps(settings))
        (folder / "run").mkdir(mode=0o700)
        (folder / "run" / "boot-log").write_bytes(log)
        errors: IO[bytes] = stack.enter_context((folder / "errors").open("wb"))
        descriptors = (running.tpm.transport.fileno(), theirs.fileno())
        words = [str(folder / "application"), str(folder / "run"), *map(str, descriptors)]
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", GUEST, *words, str(meminfo)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                pass_fds=descriptors,
                env={"PATH": os.environ["PATH"], "TMPDIR": str(folder / "run")},
            )
        stack.callback(_end, process)
        yield Guest(
            process=process,
            connection=ours,
            errors=folder / "errors",
            url=f"http://127.0.0.1:{port}",
            run=folder / "run",
            api_key=api_key,
            table=(folder / "keys.json").read_bytes(),
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(60)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture(scope="module")
def unaltered(owned: Owned) -> str:
    """The twin of every refusal: the same guest serves; all that it wrote."""
    with guest(owned) as at:
        ready = at.serve(owned)
        assert ready["models"] == [MODEL]
        exchange = ask_knowing_alice(at.url, at.api_key, owned.roots)
        assert exchange.receipt_verified
        assert exchange.model == (MODEL, owned.demo.header.model_sha256)
        # In memory that the guest's processes alone see, and nothing of it on a disk.
        assert list((at.run / "worker" / "weights").iterdir()) == []
        if os.geteuid() == 0:  # nobody else may look into a process that cannot be dumped
            folder = Path(f"/proc/{at.process.pid}/root{at.run}/worker/weights")
            opened = [path for path in folder.rglob("*") if path.is_file()]
            assert [path.stat().st_size for path in opened] == [owned.demo.header.plaintext_bytes]
            with pytest.raises(OSError, match="Read-only file system"):
                opened[0].open("r+b")
        said = at.said
    assert owned.broker.events[-2:] == ["attested", "released"]
    return said


def test_from_the_owners_seal_to_the_clients_receipt(unaltered: str, owned: Owned) -> None:
    events = [json.loads(line)["event"] for line in unaltered.splitlines()]
    assert events.index("broker.checked") < events.index("weights.opened")
    secret = owned.demo.key.hex()
    assert secret not in unaltered
    assert secret.encode() not in b"".join(owned.broker.store.audit_entries())


def test_a_broker_behind_a_port_of_the_machine(unaltered: str, owned: Owned) -> None:
    """As for a guest without a network card; what carries it is that of `cloister image boot`."""
    assert unaltered
    with (
        TemporaryDirectory(prefix="port-") as name,
        virtio_port(Path(name)) as (device, host),
        carried_broker(
            SimpleNamespace(sockets=SimpleNamespace(broker=host)),  # type: ignore[arg-type]
            f"tcp://{owned.broker.authority}",
        ),
        guest(owned, broker=f"virtio:{device}") as at,
    ):
        at.serve(owned)
        exchange = ask_knowing_alice(at.url, at.api_key, owned.roots)
    assert exchange.model == (MODEL, owned.demo.header.model_sha256)
    assert owned.broker.events[-2:] == ["attested", "released"]


def test_another_image_gets_no_key(unaltered: str, owned: Owned) -> None:
    assert unaltered
    with guest(owned, application_register=b"\1" * 32) as at:
        code = at.refuses(owned)
    assert code == "key_release.evidence"
    assert owned.broker.denied() == ("key_release.evidence", "measurement_mismatch")


def test_a_revoked_manifest_gets_no_key(unaltered: str, owned: Owned) -> None:
    assert unaltered
    signed = sign_update(owned.signed, ALICE)
    owned.broker.store.revoke(Revoked.MANIFEST, f"sha256:{signed.digest}", reason="a test")
    with guest(owned) as at:
        code = at.refuses(owned, signed)
    assert code == "key_release.revoked"
    assert owned.broker.denied() == ("key_release.revoked", "manifest.revoked")


def test_another_broker_is_not_asked(unaltered: str, owned: Owned) -> None:
    assert unaltered
    before = owned.broker.events
    with guest(owned, identity="ed25519:" + "00" * 32) as at:
        code = at.refuses(owned)
    assert code.startswith("broker.")
    assert owned.broker.events == before


def test_weights_that_do_not_fit_are_refused_before_anything_is_asked(
    unaltered: str, owned: Owned, tmp_path: Path
) -> None:
    assert unaltered
    before = owned.broker.events
    small = tmp_path / "meminfo"
    small.write_text("MemTotal:  2048 kB\nMemAvailable:  1024 kB\n")
    with guest(owned, meminfo=small) as at:
        assert at.ended() == "guest.memory"
        assert "1 MiB left" in at.said
        assert not (at.run / "worker" / "weights").exists()
    assert owned.broker.events == before
