"""The guest's program on hardware that names the manifest it was launched for, and its operator.

The hardware is simulated, the worker is a stand-in that says what it was given; the program, the
port, ``cloister image start`` and ``cloister image start-disk`` are real. What the init copies of a
start disk is copied here by the test (tests/unit/image/test_init_start.py has the init's own code).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from typer.testing import CliRunner, Result

from cloister.attester.start_disk import DISK_BYTES, parse_disk
from cloister.cli.main import build_app
from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.roots import Anchor, Roots, Vendor
from cloister.errors import CloisterError, ConfigurationError, EngineError
from cloister.manifest import SignedManifest
from cloister.testing.signed_manifests import make_manifest, sign_first, sign_update
from cloister.verifier.appraise.worker import manifest_register
from cloister.verifier.expected import Expected
from cloister.verifier.ledger import Ledger
from cloister.verifier.platforms.nitro_tpm import NitroTpmEvidence, verify_nitro_tpm
from cloister.verifier.policy import development
from cloister.verifier.result import Finding
from cloister.worker.api_keys import ApiKeyFile
from support.manifests import ALICE, IMAGE

pytestmark = pytest.mark.timeout(120)

WITHIN_S = 60.0

WORKER = """
import time
from pathlib import Path

def main(handover):
    assert handover.measured_root
    given = Path(handover.operator["api_keys"]).read_text()
    handover.ready({
        "address": "http://10.0.2.15:8440\\x07\\x9b31m",
        "manifest": handover.configuration.get("manifest"),
        "stapled": "manifest" in handover.operator,
        "api_keys": given,
    })
    end = Path(handover.operator["api_keys"]).parent / "end"
    while not end.exists():
        time.sleep(0.01)
    return 0
"""
"""Says what it has, and serves until the test has seen that."""

GUEST = """
import socket, sys
from datetime import UTC, datetime
from pathlib import Path

from cloister.attester import guest
from cloister.testing.simulated_hardware import SimulatedHardware

platform, field, value, listening, patience_s, folder = sys.argv[1:]
folder, listening = Path(folder), int(listening)
sys.path.insert(0, str(folder))
guest.ENTRY = "stand_in:main"
hardware = SimulatedHardware.make(
    platform, now=datetime.now(UTC), **({field: bytes.fromhex(value)} if value else {})
)

class Evidence:
    def quote(self, digest):
        return hardware.issue(digest)

sys.exit(guest.main(guest.Surroundings(
    settings=folder / "worker.json",
    run=folder,
    open_machine=lambda named: Evidence(),
    open_port=lambda: (
        None if listening < 0 else socket.socket(fileno=listening).accept()[0].detach()
    ),
    patience_s=float(patience_s),
)))
"""

FIELDS = {"snp": ("host_data", 32), "tdx": ("mr_config_id", 48)}


@dataclass(frozen=True, kw_only=True)
class Guest:
    process: subprocess.Popen[bytes]
    folder: Path

    def start(self, manifest: SignedManifest | None, *, keys: bytes | None = None) -> Result:
        """What the operator runs, and what it says."""
        if keys is None:
            ApiKeyFile(self.folder / "keys.json").add("test", at=1)
        else:
            (self.folder / "keys.json").write_bytes(keys)
            (self.folder / "keys.json").chmod(0o600)
        words = [str(self.folder / "port"), "--api-keys", str(self.folder / "keys.json")]
        if manifest is not None:
            (self.folder / "bundle.json").write_bytes(manifest.encode())
            words += ["--manifest", str(self.folder / "bundle.json")]
        return CliRunner().invoke(build_app(["image"]), ["image", "start", *words])

    def served(self) -> bool:
        """Let the worker end, if there is one; whether it did, with nothing amiss."""
        (self.folder / "end").touch()
        return self.process.wait(WITHIN_S) == 0

    @property
    def reason(self) -> str:
        """Why it ended."""
        assert self.process.wait(WITHIN_S) == 1
        return str(json.loads((self.folder / "errors").read_text().splitlines()[-1])["code"])


@contextlib.contextmanager
def guest(
    platform: str,
    launched_for: str | None,
    *,
    disk: bytes | None = None,
    port: bool = True,
    patience_s: float = WITHIN_S,
    program: str = GUEST,
) -> Iterator[Guest]:
    """A guest on hardware whose register holds the digest `launched_for`, or zeros.

    `disk` is what the init copies of its start disk, `port` whether it has an operator's port.
    """
    field, size = FIELDS.get(platform, ("", 48))
    value = "" if launched_for is None else bytes.fromhex(launched_for).ljust(size, b"\0").hex()
    # Not pytest's folder: the path of a socket holds 107 bytes.
    with TemporaryDirectory(prefix="guest-") as name, socket.socket(socket.AF_UNIX) as listening:
        folder = Path(name)
        (folder / "stand_in.py").write_text(WORKER)
        (folder / "worker.json").write_text(
            json.dumps({"configuration": {}, "operator": {}, "models": {}, "platform": platform})
        )
        listening.bind(str(folder / "port"))
        listening.listen(1)
        if disk is not None:
            (folder / "start").write_bytes(disk)
        end = listening.fileno() if port else -1
        words = [platform, field, value, str(end), str(patience_s), str(folder)]
        if program == ENCLAVE:
            words = [str(listening.fileno()), value or bytes(size).hex(), str(folder)]
        with (folder / "errors").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-c", program, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(listening.fileno(),),
                env={"PATH": os.environ["PATH"]},
            )
        try:
            yield Guest(process=process, folder=folder)
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def manifest() -> SignedManifest:
    return sign_first(make_manifest(owners=[ALICE], images=[IMAGE]), ALICE)


@pytest.mark.parametrize("platform", FIELDS)
def test_the_worker_starts_under_the_manifest_the_machine_was_launched_for(
    platform: str, manifest: SignedManifest
) -> None:
    with guest(platform, manifest.digest) as at:
        said = at.start(manifest)
        assert said.exit_code == 0, said.output
        assert "listens on http://10.0.2.15:8440" in said.output
        assert not set("\x07\x9b") & set(said.output)
        assert at.served()
        assert (at.folder / "manifest.json").read_bytes() == manifest.encode()
        assert (at.folder / "api-keys.json").read_bytes() == (at.folder / "keys.json").read_bytes()


@pytest.mark.parametrize("platform", FIELDS)
def test_it_ends_under_any_other(platform: str, manifest: SignedManifest) -> None:
    other = sign_update(manifest, ALICE)
    with guest(platform, other.digest) as at:
        assert at.start(other).exit_code == 0
    for launched_for in (other.digest, None):
        with guest(platform, launched_for) as at:
            assert at.start(manifest).exit_code == 1
            assert at.reason == "attester.manifest"
            assert not (at.folder / "manifest.json").exists()


@pytest.mark.parametrize("platform", FIELDS)
def test_without_a_manifest_it_starts_only_where_it_was_launched_for_none(
    platform: str, manifest: SignedManifest
) -> None:
    with guest(platform, None) as at:
        assert at.start(None).exit_code == 0
        assert not (at.folder / "manifest.json").exists()
    with guest(platform, manifest.digest) as at:
        assert at.start(None).exit_code == 1
        assert at.reason == "attester.manifest"


ENCLAVE = """
import os, pathlib, socket, sys
from cloister.attester import guest
from cloister.attester.nsm import Register

listening, found, folder = sys.argv[1:]
folder = pathlib.Path(folder)
sys.path.insert(0, str(folder))
guest.ENTRY = "stand_in:main"

class Module:
    value, locked = bytes.fromhex(found), False
    def describe_pcr(self, index):
        assert index == 16
        return Register(value=self.value, locked=self.locked)
    def extend_pcr(self, index, data):
        assert (index, self.locked) == (16, False)
        (folder / "extended").write_bytes(data)
    def lock_pcr(self, index):
        assert index == 16
        self.locked = True
        (folder / "locked").touch()

class Evidence:
    def quote(self, digest):
        raise AssertionError("nobody asked")

sys.exit(guest.main(guest.Surroundings(
    settings=folder / "worker.json",
    run=folder,
    open_machine=lambda named: Evidence(),
    open_port=lambda: sys.exit("an enclave has no virtio port"),
    open_listener=lambda: socket.socket(fileno=int(listening)),
    open_nsm=Module,
)))
"""


NITRO_TPM = """
import hashlib, json, os, socket, sys
from datetime import UTC, datetime
from pathlib import Path

from cloister.attester import guest
from cloister.attester.tpm import Tpm
from cloister.evidence.eventlog import Event
from cloister.evidence.nitro import DocumentKind
from cloister.evidence.tpm import Alg
from cloister.testing.simulated_nitro import SimulatedNitro
from cloister.testing.simulated_nitro_tpm import SimulatedNitroTpm
from cloister.testing.simulated_vtpm import SimulatedVtpm

listening, folder = int(sys.argv[4]), Path(sys.argv[6])
sys.path.insert(0, str(folder))
import stand_in

vtpm, nitro = SimulatedVtpm(banks=(Alg.SHA256, Alg.SHA384)), SimulatedNitro(now=datetime.now(UTC))
vtpm.boot()
(folder / "boot-log").write_bytes(vtpm.event_log())
(folder / "root").write_bytes(nitro.root.der)

def attest(**asked):
    return nitro.document(
        kind=DocumentKind.NITRO_TPM, pcrs=vtpm.registers[Alg.SHA384], **asked
    )

class Measuring:
    def extend_banks(self, pcr, digests):
        vtpm.extend(Event(pcr=pcr, type=0, digests=digests, data=b""))

def worker(handover):
    assert handover.tee_type == "nitro-tpm"
    for name, item in handover.attester.quote(bytes(range(32))).items():
        (folder / name).write_bytes(item.data)
    return stand_in_main(handover)

stand_in_main, stand_in.main = stand_in.main, worker
guest.ENTRY = "stand_in:main"
sys.exit(guest.main(guest.Surroundings(
    settings=folder / "worker.json",
    run=folder,
    open_tpm=Measuring,
    open_nitro_tpm=lambda: Tpm(SimulatedNitroTpm(attest)),
    open_machine=lambda named: sys.exit("the guest knows how to ask a NitroTPM"),
    open_port=lambda: (
        None if listening < 0 else socket.socket(fileno=listening).accept()[0].detach()
    ),
)))
"""


@pytest.mark.parametrize("named", [True, False], ids=["a manifest", "none"])
@pytest.mark.parametrize("port", [True, False], ids=["a port", "a start disk"])
def test_an_instance_with_a_nitro_tpm_measures_its_manifest(
    manifest: SignedManifest, tmp_path: Path, named: bool, port: bool
) -> None:
    """It needs nobody's certificate: with a port not the operator's, and without none at all."""
    given = manifest if named else None
    disk = None if port else start_disk(tmp_path, given)
    with guest("nitro-tpm", None, disk=disk, port=port, program=NITRO_TPM) as at:
        if port:
            said = at.start(given)
            assert said.exit_code == 0, said.output
        assert at.served(), (at.folder / "errors").read_text()
        evidence = NitroTpmEvidence(
            document=(at.folder / "nitrotpm.document").read_bytes(),
            event_log=(at.folder / "tpm.event_log").read_bytes(),
        )
        root = parse_certificate((at.folder / "root").read_bytes())
    anchor = Anchor(vendor=Vendor.AWS_NITRO, certificate=root, development=True)
    ledger = Ledger()
    outcome = verify_nitro_tpm(
        evidence,
        policy=development(),
        roots=Roots(anchors=(anchor,)),
        at=datetime.now(UTC),
        expected=Expected(values={"user_data": bytes(range(32))}),
        ledger=ledger,
    )
    assert {claim.finding for claim in ledger.close(development=True)} == {Finding.AFFIRMING}
    digest = bytes.fromhex(manifest.digest)
    expected = manifest_register("nitro-tpm", digest) if named else bytes(48)
    assert outcome.registers["pcr13"] == expected


@pytest.mark.parametrize("named", [True, False], ids=["a manifest", "none"])
def test_an_enclave_puts_the_manifest_into_a_register_and_locks_it(
    manifest: SignedManifest, named: bool
) -> None:
    with guest("nitro", None, program=ENCLAVE) as at:
        # A connection that ends in the middle of a question leaves the port to the next one.
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(str(at.folder / "port"))
            other.sendall(b"\0\0\0")
        said = at.start(manifest if named else None)
        assert said.exit_code == 0, said.output
        assert at.served()
        assert (at.folder / "locked").exists()
        assert (at.folder / "extended").exists() is named
        if named:
            digest = bytes.fromhex(manifest.digest)
            assert (at.folder / "extended").read_bytes() == digest


def test_an_enclave_ends_whose_register_somebody_wrote_to(manifest: SignedManifest) -> None:
    with guest("nitro", None, program=ENCLAVE) as at:
        assert at.start(manifest).exit_code == 0
    with guest("nitro", "ab", program=ENCLAVE) as at:
        assert at.start(manifest).exit_code == 1
        assert at.reason == "attester.manifest"
        assert not (at.folder / "extended").exists()


def test_a_forwarder_that_listens_before_its_guest_is_asked_again(
    manifest: SignedManifest,
) -> None:
    """Whoever forwards to a vsock lets go of the first connection, for nobody is there yet."""

    def forward(front: socket.socket, behind: Path) -> None:
        front.accept()[0].close()
        near, _ = front.accept()
        with near, socket.socket(socket.AF_UNIX) as far:
            far.connect(str(behind))
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=carry, args=(source, target), daemon=True).start()
            gone.wait(WITHIN_S)

    def carry(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                target.sendall(piece)

    gone = threading.Event()
    with guest("nitro", None, program=ENCLAVE) as at, socket.socket(socket.AF_UNIX) as front:
        behind = (at.folder / "port").rename(at.folder / "behind")
        front.bind(str(at.folder / "port"))
        front.listen(1)
        thread = threading.Thread(target=forward, args=(front, behind), daemon=True)
        thread.start()
        said = at.start(manifest)
        gone.set()
        assert said.exit_code == 0, said.output
        thread.join()
        assert at.served()


def test_one_that_is_gone_for_good_is_not_waited_for() -> None:
    with guest("nitro", None, program=ENCLAVE) as at:
        assert at.start(None).exit_code == 0
    # The same command, to a forwarder that is gone when it is looked for again.
    with TemporaryDirectory(prefix="guest-") as name, socket.socket(socket.AF_UNIX) as front:
        front.bind(f"{name}/port")
        front.listen(1)

        def leave() -> None:
            connection, _ = front.accept()
            (Path(name) / "port").unlink()
            connection.close()

        thread = threading.Thread(target=leave)
        thread.start()
        process = Guest(process=at.process, folder=Path(name))
        said = process.start(None)
        thread.join()
        assert isinstance(said.exception, EngineError)
        assert said.exception.code == "guest.ended"


def start_disk(folder: Path, manifest: SignedManifest | None) -> bytes:
    """Header and document of a start disk, made by the command."""
    keys, disk = folder / "keys.json", folder / "start.img"
    if not keys.exists():
        ApiKeyFile(keys).add("test", at=1)
    words = ["--api-keys", str(keys), "-o", str(disk)]
    if manifest is not None:
        (folder / "bundle.json").write_bytes(manifest.encode())
        words += ["--manifest", str(folder / "bundle.json")]
    done = CliRunner().invoke(build_app(["image"]), ["image", "start-disk", *words])
    assert done.exit_code == 0, done.output
    assert disk.stat().st_mode & 0o777 == 0o600
    written = disk.read_bytes()
    assert len(written) == DISK_BYTES
    return parse_disk(written).encode()


@pytest.mark.parametrize("platform", FIELDS)
def test_a_start_disk_brings_what_the_port_brings(
    platform: str, manifest: SignedManifest, tmp_path: Path
) -> None:
    disk = start_disk(tmp_path, manifest)
    with guest(platform, manifest.digest, disk=disk, port=False) as at:
        assert at.served(), (at.folder / "errors").read_text()
        assert (at.folder / "manifest.json").read_bytes() == manifest.encode()
        written = at.folder / "api-keys.json"
        assert written.read_bytes() == (tmp_path / "keys.json").read_bytes()
        assert written.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("platform", FIELDS)
def test_a_start_disk_with_another_manifest_ends_the_guest(
    platform: str, manifest: SignedManifest, tmp_path: Path
) -> None:
    disk = start_disk(tmp_path, manifest)
    with guest(platform, manifest.digest, disk=disk, port=False) as at:
        assert at.served()
    for launched_for in (sign_update(manifest, ALICE).digest, None):
        with guest(platform, launched_for, disk=disk, port=False) as at:
            assert at.reason == "attester.manifest"
            assert not (at.folder / "manifest.json").exists()
    without = start_disk(tmp_path, None)
    with guest(platform, manifest.digest, disk=without, port=False) as at:
        assert at.reason == "attester.manifest"
    with guest(platform, None, disk=without, port=False) as at:
        assert at.served()


def test_a_guest_that_nobody_starts_ends(manifest: SignedManifest, tmp_path: Path) -> None:
    disk = start_disk(tmp_path, manifest)
    with guest("snp", manifest.digest, disk=disk, port=False) as at:
        assert at.served()
    with guest("snp", manifest.digest, port=False) as at:
        assert at.reason == "guest.no_start"
        assert "start disk" in (at.folder / "errors").read_text()
    with (
        guest("snp", manifest.digest, patience_s=0.1) as at,
        socket.socket(socket.AF_UNIX) as silent,
    ):
        silent.connect(str(at.folder / "port"))
        assert at.reason == "guest.no_start"


def test_a_start_disk_that_does_not_decode_ends_the_guest(
    manifest: SignedManifest, tmp_path: Path
) -> None:
    disk = start_disk(tmp_path, manifest)
    with guest("snp", manifest.digest, disk=disk, port=False) as at:
        assert at.served()
    for port in (False, True):
        for damaged in (disk[:-1], disk + b"\0", disk[:-3] + bytes([disk[-3] ^ 1]) + disk[-2:]):
            with guest("snp", manifest.digest, disk=damaged, port=port) as at:
                assert at.reason == "guest.start_disk"
                assert not (at.folder / "api-keys.json").exists()


def test_a_port_may_repeat_the_start_disk_and_not_contradict_it(
    manifest: SignedManifest, tmp_path: Path
) -> None:
    disk = start_disk(tmp_path, manifest)
    keys = (tmp_path / "keys.json").read_bytes()
    with guest("snp", manifest.digest, disk=disk) as at:
        assert at.start(manifest, keys=keys).exit_code == 0
        assert at.served()
    for other in (None, sign_update(manifest, ALICE)):
        with guest("snp", manifest.digest, disk=disk) as at:
            assert "refuses the question for its start" in str(at.start(other, keys=keys).exception)
            assert at.served()
            assert (at.folder / "manifest.json").read_bytes() == manifest.encode()
    with guest("snp", manifest.digest, disk=disk) as at:
        assert "refuses the question for its api_keys" in str(at.start(manifest).exception)
        assert at.served()
        assert (at.folder / "api-keys.json").read_bytes() == keys


def test_inputs_of_a_start_disk(manifest: SignedManifest, tmp_path: Path) -> None:
    start_disk(tmp_path, manifest)
    app, (keys, bundle) = build_app(["image"]), (tmp_path / "keys.json", tmp_path / "bundle.json")
    good = {"--api-keys": str(keys), "--manifest": str(bundle), "-o": str(tmp_path / "new.img")}
    for option, value, code in (
        ("--api-keys", str(tmp_path / "none.json"), "image.api_keys"),
        ("--api-keys", str(bundle), "keys.permissions"),
        ("--manifest", str(tmp_path / "none.json"), "image.manifest"),
        ("--manifest", str(keys), "image.manifest"),
        ("-o", str(tmp_path / "none" / "new.img"), "image.start_disk"),
    ):
        words = [word for pair in (good | {option: value}).items() for word in pair]
        refused = CliRunner().invoke(app, ["image", "start-disk", *words])
        assert isinstance(refused.exception, CloisterError), refused.output
        assert refused.exception.code == code
        assert not (tmp_path / "new.img").exists()
    words = [word for pair in good.items() for word in pair]
    assert CliRunner().invoke(app, ["image", "start-disk", *words]).exit_code == 0


def test_what_the_operator_names_wrongly(manifest: SignedManifest) -> None:
    with guest("snp", manifest.digest) as at:
        app = build_app(["image"])
        words = ["image", "start", str(at.folder / "port"), "--api-keys"]
        absent = CliRunner().invoke(app, [*words, str(at.folder / "none.json")])
        assert absent.exit_code != 0
        elsewhere = [*words[:2], "tcp://127.0.0.1:1", "--api-keys", str(at.folder / "keys.json")]
        ApiKeyFile(at.folder / "keys.json").add("test", at=1)
        refused = CliRunner().invoke(app, elsewhere).exception
        assert isinstance(refused, ConfigurationError)
        assert refused.code == "image.operator_port"
        assert "does not exist" in absent.output + str(absent.exception)
        assert at.start(manifest).exit_code == 0
