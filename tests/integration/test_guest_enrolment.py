"""A guest's key is certified across the operator's port, and no other key ever is."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attester.device_tpm import DeviceTpmAttester, find_attestation_key
from cloister.attester.enrolment import EnrolmentCa
from cloister.attester.guest import MANIFEST_REGISTER, measure_manifest
from cloister.attester.guest_operator import Certifiable, OperatorState, Questions
from cloister.attester.guest_port import (
    HELLO,
    MAX_MESSAGE_BYTES,
    Lines,
    encoded,
    framed,
    serve_port,
)
from cloister.attester.start_disk import Start
from cloister.attester.swtpm import Manufactured
from cloister.attester.tpm import signing_template
from cloister.errors import AuthenticationError, EngineError, FetchError, MalformedError
from cloister.evidence.report import ITEM_QUOTE
from cloister.image.boot import enrol_guest
from cloister.image.operator_link import MAX_ANSWER_BYTES, OperatorLink, bytes_of
from cloister.testing.signed_manifests import ManifestOwner, make_manifest, sign_first
from cloister.verifier.appraise.worker import manifest_register
from support.software_tpm import ak_certificate, software_tpm

pytestmark = pytest.mark.tpm


DIGEST = bytes(range(32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Both ends of a port, with a TPM at the guest's."""

    link: OperatorLink
    connection: socket.socket
    attester: DeviceTpmAttester
    made: Manufactured
    state: OperatorState

    @property
    def chain(self) -> tuple[bytes, ...]:
        """The certificates in the guest's evidence."""
        quote = self.attester.quote(DIGEST)[ITEM_QUOTE]
        return tuple(entry.data for entry in quote.endorsements)


class ClosedError(Exception):
    """Ends the guest's thread, which otherwise waits for the next machine to hold the port."""


@contextlib.contextmanager
def port(folder: Path, *, before: bytes = b"", lost: int = 0) -> Iterator[Pair]:
    """A guest that answers, behind a firmware that has written `before` and reads `lost` bytes."""
    ours, theirs = socket.socketpair()

    def until_closed(_: float) -> None:
        raise ClosedError

    with software_tpm() as (running, made), ours, theirs:
        tpm = running.tpm
        attester = DeviceTpmAttester(tpm, find_attestation_key(tpm, provided=()))
        state = OperatorState(api_keys=folder / "api-keys.json")
        questions = Questions(Certifiable.open(attester, tpm), state)

        def answer() -> None:
            with contextlib.suppress(ClosedError):
                theirs.sendall(before)
                assert len(theirs.recv(lost, socket.MSG_WAITALL)) == lost
                serve_port(theirs.fileno(), questions, pause=until_closed)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            link = OperatorLink(ours, waiting=lambda: None)
            yield Pair(link=link, connection=ours, attester=attester, made=made, state=state)
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            thread.join()


def authority(made: Manufactured) -> EnrolmentCa:
    return EnrolmentCa.in_memory(manufacturers=(made.root,), at=datetime.now(UTC))


def test_the_key_is_certified_and_the_certificate_is_in_the_evidence(tmp_path: Path) -> None:
    with port(tmp_path) as at:
        assert at.chain == ()
        ca = authority(at.made)
        certificate = enrol_guest(at.link, ca, issuer=at.made.issuer, at=datetime.now(UTC))
        assert at.chain == tuple(
            one.public_bytes(Encoding.DER) for one in (certificate, ca.certificate)
        )


def test_a_certificate_of_another_key_is_not_taken(tmp_path: Path) -> None:
    with port(tmp_path) as at:
        ca = authority(at.made)
        enrol_guest(at.link, ca, issuer=at.made.issuer, at=datetime.now(UTC))
        before = at.chain
        other = encoded(ca.certificate.public_bytes(Encoding.DER))
        for chain in ([other], [], ["AAAA"]):
            with pytest.raises(FetchError) as caught:
                at.link.ask("certificate", chain=chain)
            assert caught.value.code == "guest.refused"
        assert at.chain == before


def test_a_ca_that_knows_another_manufacturer_certifies_nothing(tmp_path: Path) -> None:
    with port(tmp_path) as at:
        enrol_guest(at.link, authority(at.made), issuer=at.made.issuer, at=datetime.now(UTC))
        stranger = EnrolmentCa.in_memory(
            manufacturers=(authority(at.made).certificate,), at=datetime.now(UTC)
        )
        with pytest.raises(AuthenticationError) as caught:
            enrol_guest(at.link, stranger, issuer=at.made.issuer, at=datetime.now(UTC))
        assert caught.value.code == "enrolment.ek_chain"


def test_a_credential_for_another_key_is_not_opened(tmp_path: Path) -> None:
    with port(tmp_path) as at:
        names = at.link.ask("enrolment")
        challenge = authority(at.made).challenge(
            ek_certificate=bytes_of(names, "ek_certificate"),
            intermediates=(at.made.issuer,),
            ak_public=bytes_of(names, "ak_public"),
            at=datetime.now(UTC),
        )
        sealed = challenge.sealed
        assert at.link.ask(
            "activate", credential=encoded(sealed.credential), secret=encoded(sealed.secret)
        )["answer"]
        wrong = sealed.credential[:-1] + bytes([sealed.credential[-1] ^ 1])
        with pytest.raises(FetchError):
            at.link.ask("activate", credential=encoded(wrong), secret=encoded(sealed.secret))


def test_who_is_served_is_the_operators_to_say(tmp_path: Path) -> None:
    with port(tmp_path) as at:
        for table in (b"one", b"two"):
            at.link.ask("api_keys", table=encoded(table))
            path = tmp_path / "api-keys.json"
            assert path.read_bytes() == table
            assert path.stat().st_mode & 0o777 == 0o600


def test_ready_is_told_when_it_is(tmp_path: Path) -> None:
    with port(tmp_path) as at:
        assert at.link.ask("ready") == {"ready": None}
        at.state.ready = {"port": 8440}
        assert at.link.ask("ready") == {"ready": {"port": 8440}}


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"[]", id="no object"),
        pytest.param(b'{"ask": "ready"}', id="no id"),
        pytest.param(b'{"ask": "ready", "id": 1}', id="a number for an id"),
        pytest.param(b'{"ask": "ready", "id": "' + b"1" * 65 + b'"}', id="a long id"),
        pytest.param(b'{"ask": "keys", "id": "1"}', id="unknown"),
        pytest.param(b'{"ask": "enrolment", "ask": "x", "id": "1"}', id="twice"),
        pytest.param(b"\xff", id="no text"),
        pytest.param(b" " * (MAX_MESSAGE_BYTES + 1), id="too long"),
    ],
)
def test_what_does_not_decode_is_refused_and_the_next_question_answered(
    tmp_path: Path, message: bytes
) -> None:
    with port(tmp_path) as at:
        at.connection.settimeout(60)
        at.connection.sendall(b'{"ask": "ready", "id": "0"}\n' + message + b"\n")
        with at.connection.makefile("rb") as answers:
            lines = (json.loads(line) for line in answers if line.strip())
            assert next(lines) == {"id": "0", "ready": None}
            assert "error" in next(lines)
        assert at.link.ask("ready") == {"ready": None}


def test_a_line_without_an_end_is_not_kept_whole() -> None:
    lines = Lines(8)
    for _ in range(5):
        assert lines.take(b"12345678") == []
    assert lines.take(b"\n\nnext\n") == [b"123456781", b"next"]


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(b"\x1b[2J\x1b[001;001HBdsDxe: starting", id="no whole line"),
        pytest.param(b"\x1b[2J\r\n\xff\x00\r\n", id="lines"),
        pytest.param(b'{"id": "0123456789abcdef", "ready": {"port": 1}}\n', id="an answer"),
        pytest.param(b'\n{"error": "malformed"}\n', id="an error"),
        pytest.param(b'{"id": []}\n{"id": {}}\n', id="no ids"),
        pytest.param(b"x" * (2 * MAX_ANSWER_BYTES), id="much"),
    ],
)
def test_what_the_firmware_writes_is_no_answer(tmp_path: Path, before: bytes) -> None:
    """OVMF of 2025 has a driver of these ports; this guest begins behind its output."""
    with port(tmp_path, before=before) as at:
        assert at.link.ask("ready") == {"ready": None}


@pytest.mark.parametrize("lost", [5, 70, 150])
def test_what_the_firmware_reads_is_asked_again(tmp_path: Path, lost: int) -> None:
    """So many bytes of what the operator sends, which ends within the first question or a later."""
    with port(tmp_path, lost=lost) as at:
        assert at.link.ask("start") == {"started": True}
        assert at.state.wait_for_start() is None


@contextlib.contextmanager
def guest_that_answers(answer: bytes) -> Iterator[OperatorLink]:
    """A link to a guest that answers this to all but hellos."""
    ours, theirs = socket.socketpair()

    def guest() -> None:
        with theirs.makefile("rwb") as stream:
            for asked in (json.loads(line) for line in stream if line.strip()):
                known = asked["ask"] == HELLO
                stream.write(framed({"id": asked["id"]}) if known else answer)
                stream.flush()

    with ours, theirs:
        thread = threading.Thread(target=guest)
        thread.start()
        yield OperatorLink(ours, waiting=lambda: None)
        ours.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"[]\n", id="no object"),
        pytest.param(b"x" * (MAX_ANSWER_BYTES + 1) + b"\n", id="too long"),
        pytest.param(b'{"x": "y"}}\n', id="no JSON"),
        pytest.param(b'{"id": "0123456789abcdef"}\n', id="to another question"),
        pytest.param(b'{"id": []}\n', id="to no question"),
    ],
)
def test_a_guest_that_answers_nonsense(answer: bytes) -> None:
    with guest_that_answers(answer) as link, pytest.raises(FetchError) as caught:
        link.ask("ready")
    assert caught.value.code == "guest.answer"


def test_what_sends_back_its_questions_is_no_guest() -> None:
    """A terminal does, and some firmware."""
    ours, theirs = socket.socketpair()
    looks = iter(range(50))

    def waiting() -> None:
        if next(looks, None) is None:
            raise EngineError("enough", code="guest.not_ready")

    def echo() -> None:
        while piece := theirs.recv(4096):
            theirs.sendall(piece)

    with ours, theirs:
        thread = threading.Thread(target=echo)
        thread.start()
        with pytest.raises(EngineError) as caught:
            OperatorLink(ours, waiting=waiting).ask("start")
        assert caught.value.code == "guest.not_ready"
        ours.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_guest_behind_what_sends_back_some_questions() -> None:
    """Two lines, as a terminal of the firmware's would; and the guest's own port one more."""
    ours, theirs = socket.socketpair()
    looks = iter(range(300))

    def waiting() -> None:
        if next(looks, None) is None:
            raise EngineError("enough", code="guest.not_ready")

    def guest() -> None:
        with theirs.makefile("rwb") as stream:
            for number, line in enumerate(one for one in stream if one.strip()):
                asked = json.loads(line)
                if number < 2 or asked["ask"] != HELLO:
                    stream.write(line)
                if number >= 2:
                    stream.write(framed({"id": asked["id"], "started": True}))
                stream.flush()

    with ours, theirs:
        thread = threading.Thread(target=guest)
        thread.start()
        assert OperatorLink(ours, waiting=waiting).ask("start") == {"started": True}
        ours.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_guest_that_only_ever_writes_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    looks = iter(range(50))

    def waiting() -> None:
        if next(looks, None) is None:
            raise EngineError("enough", code="guest.not_ready")

    def guest() -> None:
        with contextlib.suppress(OSError):
            while True:
                theirs.sendall(b"noise\n" * 1000)

    with ours, theirs:
        thread = threading.Thread(target=guest)
        thread.start()
        with pytest.raises(EngineError) as caught:
            OperatorLink(ours, waiting=waiting).ask("ready")
        assert caught.value.code == "guest.not_ready"
        ours.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_guest_that_goes_away() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        with pytest.raises(EngineError) as caught:
            OperatorLink(ours, waiting=lambda: None).ask("ready")
        assert caught.value.code == "guest.ended"


def test_the_worker_starts_once_and_under_one_manifest(tmp_path: Path) -> None:
    with port(tmp_path) as at:
        assert at.link.ask("start", manifest=encoded(b"bundle")) == {"started": True}
        assert at.state.wait_for_start() == b"bundle"
        for again in ({}, {"manifest": encoded(b"another")}):
            with pytest.raises(FetchError):
                at.link.ask("start", **again)
        assert at.state.wait_for_start() == b"bundle"


def test_a_worker_without_a_manifest(tmp_path: Path) -> None:
    with port(tmp_path) as at:
        at.link.ask("start")
        assert at.state.wait_for_start() is None


def test_a_manifest_is_measured_as_the_verifier_computes_it() -> None:
    signer = ManifestOwner.generate("owner")
    signed = sign_first(make_manifest(owners=(signer,)), signer)
    with software_tpm() as (running, _):
        digest = measure_manifest(running.tpm, signed.encode())
        (value,) = running.tpm.read_pcrs([MANIFEST_REGISTER]).values()
    assert digest.hex() == signed.digest
    assert value == manifest_register("tpm", digest)


GUEST = """
import sys
from pathlib import Path

from cloister.attester import guest
from cloister.attester.tpm import Tpm
from cloister.attester.transport import SocketTransport

tpm, folder = Tpm(SocketTransport.from_fd(int(sys.argv[1]))), Path(sys.argv[2])
sys.path.insert(0, str(folder))
guest.ENTRY = "certified_worker:main"
settings = folder / "worker.json"
sys.exit(guest.main(guest.Surroundings(
    settings=settings, run=folder, open_tpm=lambda: tpm, open_port=lambda: None
)))
"""
WORKER = """
def main(handover):
    assert handover.attester.certified
    return 0
"""


@pytest.mark.parametrize("provided", [True, False])
def test_without_a_port_the_tpm_has_to_bring_its_own_certificate(
    tmp_path: Path, *, provided: bool
) -> None:
    """As Google's does; nobody could send another one, so the guest ends and says so."""
    (tmp_path / "certified_worker.py").write_text(WORKER)
    settings: dict[str, object] = {"configuration": {}, "operator": {}, "models": {}}
    (tmp_path / "worker.json").write_text(json.dumps(settings))
    (tmp_path / "start").write_bytes(Start(api_keys=b"table").encode())
    with software_tpm() as (running, _):
        tpm = running.tpm
        if provided:
            der = ak_certificate(tpm.create_primary(signing_template()).public)
            for index, content in ((0x01C10002, der), (0x01C10003, signing_template())):
                tpm.nv_define(index, len(content))
                tpm.nv_write(index, content)
        descriptor = tpm.transport.fileno()
        done = subprocess.run(
            [sys.executable, "-c", GUEST, str(descriptor), str(tmp_path)],
            pass_fds=(descriptor,),
            capture_output=True,
            check=False,
        )
    if provided:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 1
    assert json.loads(done.stderr)["code"] == "guest.no_certificate"


def test_a_certificate_is_not_waited_for_without_end() -> None:
    with software_tpm() as (running, _):
        attester = DeviceTpmAttester(running.tpm, find_attestation_key(running.tpm, provided=()))
        assert not attester.certified
        with pytest.raises(FetchError) as caught:
            attester.wait_for_chain(0.01)
        assert caught.value.code == "device.timeout"
        attester.replace_chain((b"certificate",))
        attester.wait_for_chain(0.01)


def test_what_is_no_manifest_is_not_measured() -> None:
    with software_tpm() as (running, _):
        with pytest.raises(MalformedError):
            measure_manifest(running.tpm, b"{}")
        (value,) = running.tpm.read_pcrs([MANIFEST_REGISTER]).values()
    assert value == bytes(32)
