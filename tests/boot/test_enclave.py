"""An enclave image starts in QEMU's emulation of Nitro, and attests the registers predicted for it.

The emulator hashes the image and answers for the security module by code that is not ours. It signs
nothing: so its documents are compared here, and accepted by nobody. What is sealed below is sealed
by a bare client that verifies nothing, to see the worker work; no client of ours can do that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import cbor2
import httpx2
import pytest
from typer.testing import CliRunner

from cloister.channel.hpke import Kem
from cloister.channel.keyset import Keyset, parse_keyset
from cloister.channel.ohttp import KeyConfig
from cloister.cli.main import build_app
from cloister.endorsements.pinned import pinned_roots
from cloister.endorsements.roots import Roots
from cloister.errors import AppraisalError, MalformedError
from cloister.evidence.items import ITEM_NITRO_DOCUMENT
from cloister.evidence.nitro import (
    PROTECTED,
    SIGNATURE_BYTES,
    NitroDocument,
    parse_document,
)
from cloister.evidence.report import parse_attestation_report
from cloister.image.eif import EifMeasurements
from cloister.image.eif_image import measurements_of, signed_parts
from cloister.image.eif_write import write_eif
from cloister.image.image_files import ImageName
from cloister.image.references import nitro_reference
from cloister.testing.simulated_nitro import SimulatedNitro
from cloister.verifier import policy as policies
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.report import verify_report
from cloister.verifier.result import AttestationResult
from cloister.worker.api_keys import ApiKeyFile
from support.enclaves import Enclave, emulated_image, started
from support.guests import LIMIT_S, free_port
from support.sealed import check_receipt, inner_headers, seal

pytestmark = [pytest.mark.boot, pytest.mark.timeout(2400)]

UNSIGNED = {1: -1}
"""How the emulator says, where the algorithm belongs, that it signed nothing (-1)."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one enclave left behind."""

    predicted: EifMeasurements
    heartbeats: tuple[bytes, ...]
    console: str
    nonce: bytes
    report: bytes
    answer: str
    refused: int
    """The status for somebody without an API key."""

    @property
    def raw(self) -> bytes:
        """The document as the emulator wrote it."""
        return parse_attestation_report(self.report).evidence[ITEM_NITRO_DOCUMENT].data

    @property
    def document(self) -> NitroDocument:
        """Decoded, once it claims to be signed: as worthless as the other."""
        return parse_document(as_if_signed(self.raw))


def as_if_signed(document: bytes) -> bytes:
    """The same payload under the header of a signed document, and zeros for a signature."""
    protected, unprotected, payload, signature = cbor2.loads(document)
    assert (cbor2.loads(protected), unprotected, any(signature)) == (UNSIGNED, {}, False)
    return cbor2.dumps([PROTECTED, unprotected, payload, bytes(SIGNATURE_BYTES)])


@pytest.fixture(scope="module")
def folder() -> Path:
    """The folder of an image that `make eif-boot` built."""
    for name in ("CLOISTER_ENCLAVE_IMAGE", "CLOISTER_NITRO_QEMU"):
        if name not in os.environ:
            pytest.skip(f"{name} is not set (make eif-boot sets it)")
    return Path(os.environ["CLOISTER_ENCLAVE_IMAGE"])


@pytest.fixture(scope="module")
def seen(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Starts an enclave once; what has to be asked of it is asked in here."""
    work = tmp_path_factory.mktemp("enclave")
    predicted = emulated_image(folder, work / "started.eif")
    keys = work / "api-keys.json"
    _, api_key = ApiKeyFile(keys).add("test", at=int(time.time()))
    with started(work / "started.eif") as enclave:
        enclave.wait_until(lambda: "init: " in enclave.console, limit_s=LIMIT_S)
        enclave.wait_until(lambda: "] worker" in enclave.console, limit_s=LIMIT_S)
        words = ["image", "start", str(enclave.operator), "--api-keys", str(keys)]
        said = CliRunner().invoke(build_app(["image"]), [*words, "--timeout", str(LIMIT_S)])
        assert said.exit_code == 0, said.output + enclave.console[-2000:]
        assert "listens on vsock://" in said.output
        with forwarded(enclave) as url, httpx2.Client(base_url=url, timeout=300) as http:
            nonce = secrets.token_bytes(32)
            got = http.get("/v1/aci/attestation", params={"nonce": nonce.hex()})
            assert got.status_code == 200
            keyset = parse_keyset(parse_attestation_report(got.content).keyset)
            (model,) = json.loads((folder / "configuration.json").read_bytes())["models"]
            answer, _ = asked(http, keyset, model["name"], api_key)
            _, refused = asked(http, keyset, model["name"], None)
        return Seen(
            predicted=predicted,
            heartbeats=tuple(enclave.heartbeats),
            console=enclave.console,
            nonce=nonce,
            report=got.content,
            answer=answer,
            refused=refused,
        )


@contextlib.contextmanager
def forwarded(enclave: Enclave) -> Iterator[str]:
    """`cloister forward`, as on a parent: TCP on this side, the enclave's vsock on the other."""
    port = free_port()
    addresses = (f"tcp://127.0.0.1:{port}", f"unix:{enclave.requests}")
    program = Path(sys.executable).with_name("cloister")
    process = subprocess.Popen([program, "forward", *addresses])
    try:
        until = time.monotonic() + 60
        while not reached(port):
            assert process.poll() is None, "cloister forward does not start"
            assert time.monotonic() < until, "cloister forward does not listen"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def reached(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def asked(http: httpx2.Client, keyset: Keyset, model: str, api_key: str | None) -> tuple[str, int]:
    """One sealed question, and what is said: text and status."""
    listed = [KeyConfig.parse(data) for data in keyset.ohttp_key_configs()]
    config = next(config for config in listed if config.kem is Kem.MLKEM768_X25519)
    question = {
        "model": model,
        "messages": [{"role": "user", "content": "What is Cloister?"}],
        "max_tokens": 8,
        "temperature": 0,
    }
    body = json.dumps(question).encode()
    sealed = seal(config, body=body, headers=inner_headers(api_key=api_key))
    got = http.post(
        "/ohttp",
        headers={"content-type": sealed.media_type.decode()},
        content=sealed.body,
    )
    assert got.status_code == 200, got.content
    inner = sealed.opened_body(got.content)
    check_receipt(sealed, inner, keyset)
    choices = inner.json.get("choices")
    return "" if choices is None else str(choices[0]["message"]["content"]), inner.status


def test_registers_are_those_that_were_predicted(seen: Seen) -> None:
    """Byte for byte, hashed from the image by the emulator's own reader."""
    predicted = seen.predicted
    assert seen.document.pcrs[0] == predicted.pcr0
    assert seen.document.pcrs[1] == predicted.pcr1
    assert seen.document.pcrs[2] == predicted.pcr2
    assert not any(seen.document.pcrs[8]), "nobody signed the image"
    assert len({predicted.pcr0, predicted.pcr1, predicted.pcr2}) == 3


def test_the_register_for_a_manifest_is_locked_without_one(seen: Seen) -> None:
    """The emulator's documents list registers that are locked, and no others."""
    assert sorted(seen.document.pcrs) == [*range(16), 16]
    assert not any(seen.document.pcrs[16])


def test_the_document_binds_the_workers_keys(seen: Seen) -> None:
    report = parse_attestation_report(seen.report)
    assert seen.document.user_data is not None
    assert len(seen.document.user_data) == 32
    assert report.tee_type == "nitro"


def test_the_parent_heard_one_heartbeat_before_the_worker_ran(seen: Seen) -> None:
    assert seen.heartbeats == (b"\xb7", b"")
    lines = [line.split("] ")[-1] for line in seen.console.splitlines() if "init: " in line]
    assert lines.index("heartbeat") < lines.index("worker")
    assert "network: none" in lines


def test_the_worker_answers_what_is_sealed_and_whom_it_knows(seen: Seen) -> None:
    assert seen.answer.strip()
    assert seen.refused == 401


@pytest.mark.parametrize(
    "policy", [policies.strict(), policies.development()], ids=["strict", "development"]
)
def test_nobody_accepts_the_emulators_document(seen: Seen, policy: AppraisalPolicy) -> None:
    """Neither as it is, which is no document, nor once it claims to be signed.

    The same registers and keys under a simulated vendor's signature are affirmed, by whoever names
    that vendor: so it is the signature that is missed, and nothing else about this worker.
    """
    now = datetime.now(UTC)
    vendor = SimulatedNitro(now=now)
    twin = vendor.document(pcrs=seen.document.pcrs, user_data=seen.document.user_data)
    affirmed = judged(seen, twin, policies.development(), vendor.roots, now)
    assert affirmed.require_affirming().development
    with pytest.raises(MalformedError, match="other than the one that says ES384"):
        parse_document(seen.raw)
    for document in (seen.raw, as_if_signed(seen.raw)):
        for roots in (pinned_roots(), vendor.roots):
            with pytest.raises(AppraisalError):
                judged(seen, document, policy, roots, now).require_affirming()


def judged(
    seen: Seen, document: bytes, policy: AppraisalPolicy, roots: Roots, at: datetime
) -> AttestationResult:
    """What a client makes of the enclave's report with that document in it."""
    named = ImageName(name="cloister", version="1", debug=False)
    return verify_report(
        with_document(seen.report, document),
        nonce=seen.nonce,
        policy=policy,
        reference_values=ReferenceValues.from_platforms(nitro_reference(seen.predicted, named)),
        roots=roots,
        at=at,
    )


def with_document(report: bytes, document: bytes) -> bytes:
    """The report with another document in it."""
    read = parse_attestation_report(report)
    item = dataclasses.replace(read.evidence[ITEM_NITRO_DOCUMENT], data=document)
    evidence = {**read.evidence, ITEM_NITRO_DOCUMENT: item}
    return dataclasses.replace(read, evidence=evidence).encode()


def test_an_enclave_that_its_parent_does_not_answer_ends(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        emulated_image(folder, Path(work) / "started.eif")
        with started(Path(work) / "started.eif", parent_answers=False) as enclave:
            assert enclave.qemu.wait(LIMIT_S) == 0
            assert "the parent does not wait for the enclave" in enclave.console
            assert "] worker" not in enclave.console


def test_words_moved_out_of_the_command_line_are_missed_by_the_init(folder: Path) -> None:
    """No register tells this image from the one that starts: the init has to."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        predicted = emulated_image(folder, work / "started.eif")
        (work / "image.eif").write_bytes((work / "started.eif").read_bytes())
        parts = signed_parts(work, work, None)
        begins = parts.cmdline.index("module.sig_enforce=1")
        moved, rest = parts.cmdline[:begins], parts.cmdline[begins:]
        assert "lockdown=confidentiality" in moved
        # The console is among them, as it comes first: what is said goes unheard.
        with parts.kernel.open("ab") as kernel:
            kernel.write(moved.encode())
        altered = dataclasses.replace(parts, cmdline=rest)
        assert measurements_of(write_eif(altered, work / "altered.eif")) == predicted
        with started(work / "altered.eif") as enclave:
            assert enclave.qemu.wait(LIMIT_S) == 0
            assert enclave.heartbeats == []
