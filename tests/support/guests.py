"""Booted guests for tests: an image, the operator's TPM and CA, and what a client makes of both."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Unpack

import httpx2

from cloister.attester.enrolment import EnrolmentCa
from cloister.attester.swtpm import Manufactured, manufacture
from cloister.cli.image_boot import DISKS, ESP
from cloister.cli.image_carry import carried_broker
from cloister.client.connect import Options, TrustOptions, connect
from cloister.endorsements.roots import Roots
from cloister.evidence.items import ITEM_TPM_PCRS
from cloister.evidence.report import parse_attestation_report
from cloister.image.boot import BootedGuest, BootPlan
from cloister.image.machine import Machine, can_accelerate, find_firmware
from cloister.strictjson import JsonObject
from cloister.verifier import policy as policies
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.report import verify_report
from cloister.verifier.result import AttestationResult
from cloister.worker.api_keys import ApiKeyFile

SETTINGS = Path(__file__).parents[1] / "boot" / "image.toml"

LIMIT_S = float(os.environ.get("CLOISTER_BOOT_LIMIT_S", "600"))
"""Of one boot: about a minute on a quiet machine, and many times that on a busy one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Whoever runs guests here: a manufactured TPM, an enrolment CA, one API key."""

    tpm: Manufactured
    ca: EnrolmentCa
    table: bytes = field(repr=False)
    api_key: str = field(repr=False)

    @classmethod
    def make(cls, folder: Path) -> Operator:
        made, now = manufacture(folder), datetime.now(UTC)
        file = folder / "api-keys.json"
        _, api_key = ApiKeyFile(file).add("test", at=int(now.timestamp()))
        ca = EnrolmentCa.in_memory(manufacturers=(made.root,), at=now)
        return cls(tpm=made, ca=ca, table=file.read_bytes(), api_key=api_key)

    @property
    def roots(self) -> Roots:
        return Roots(enrolment_cas=(self.ca.certificate,))


def machine_for(folder: Path) -> Machine:
    """The machine that every test begins with."""
    return Machine(
        firmware=find_firmware(),
        esp=folder / ESP,
        disks=tuple(folder / name for name in DISKS),
        port=free_port(),
        accelerated=can_accelerate(),
    )


def built_for(image: Path, folder: Path, platform: str, more: str = "") -> Path:
    """The image that `image` is, built for another platform (most of its steps stand already).

    `more` is added to its configuration. ``make`` has put the model where that says.
    """
    text = SETTINGS.read_text().replace("\nname =", f'\nplatform = "{platform}"\nname =', 1)
    text = text.replace('file = "../..', f'file = "{SETTINGS.parents[2]}')
    (folder / "image.toml").write_text(text + more)
    lock = image.parent / "image-lock.json"
    words = [str(folder / "image.toml"), "--out", str(folder / "image")]
    words += ["--lock", str(lock)] if lock.exists() else []
    program = Path(sys.executable).parent / "cloister"
    subprocess.run([program, "image", "build", *words], check=True, capture_output=True)
    return folder / "image"


def free_port() -> int:
    """A port for a guest that is told it long before it listens: none of those that the kernel
    gives to whoever asks for any, or another test might have it by then."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = first // 2 + secrets.randbelow(first // 2)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A guest whose worker listens."""

    booted: BootedGuest
    operator: Operator
    ready: JsonObject
    url: str

    @property
    def model(self) -> str:
        models = self.ready["models"]
        assert isinstance(models, list)
        return str(models[0])

    def registers(self) -> dict[int, bytes]:
        """The registers as a report lists them; `result` says whether they were signed."""
        return registers_of(self.report(secrets.token_bytes(32)))

    def report(self, nonce: bytes) -> bytes:
        address = f"{self.url}/v1/aci/attestation"
        answer = httpx2.get(address, params={"nonce": nonce.hex()}, timeout=60)
        answer.raise_for_status()
        return answer.content

    def trust(self, values: ReferenceValues) -> TrustOptions:
        return {
            "policy": policies.development(),
            "reference_values": values,
            "roots": self.operator.roots,
        }

    def result(self, values: ReferenceValues) -> AttestationResult:
        """What a client that accepts `values` makes of the guest."""
        nonce = secrets.token_bytes(32)
        return judged(self.report(nonce), nonce, values, self.operator.roots)

    def ask(self, values: ReferenceValues, question: str) -> str:
        """One question by the ordinary client, sealed; raises what it raises."""
        return self.ask_trusting(question, **self.trust(values))

    def ask_trusting(self, question: str, **trust: Unpack[Options]) -> str:
        """The same by a client that trusts as it is told."""
        trust["trust_env"] = False
        with connect(self.url, **trust) as connection:
            answer = connection.http.post(
                "/v1/chat/completions",
                headers={"authorization": f"Bearer {self.operator.api_key}"},
                json={
                    "model": self.model,
                    "messages": [{"role": "user", "content": question}],
                    "max_tokens": 16,
                    "temperature": 0,
                },
                timeout=300,
            )
        answer.raise_for_status()
        content: str = answer.json()["choices"][0]["message"]["content"]
        return content


def judged(report: bytes, nonce: bytes, values: ReferenceValues, roots: Roots) -> AttestationResult:
    return verify_report(
        report,
        nonce=nonce,
        policy=policies.development(),
        reference_values=values,
        roots=roots,
        at=datetime.now(UTC),
    )


def registers_of(report: bytes) -> dict[int, bytes]:
    document = json.loads(parse_attestation_report(report).evidence[ITEM_TPM_PCRS].data)
    return {int(number): bytes.fromhex(value) for number, value in document["sha256"].items()}


def findings(result: AttestationResult) -> dict[str, str]:
    """Code (or "affirmed") of every claim about the machine itself, by name."""
    return {claim.name: claim.code or "affirmed" for claim in result.claims}


@contextlib.contextmanager
def booted(
    machine: Machine,
    operator: Operator,
    *,
    manifest: bytes | None = None,
    broker: str | None = None,
) -> Iterator[Guest]:
    """Boot, and wait until the worker listens.

    `broker` is ``HOST:PORT`` of the broker of a guest without a network card.
    """
    plan = BootPlan(
        machine=machine,
        tpm=operator.tpm,
        ca=operator.ca,
        api_keys=operator.table,
        manifest=manifest,
    )
    address = None if broker is None else f"tcp://{broker}"
    with BootedGuest(plan, progress=print) as guest, carried_broker(guest, address):
        ready = guest.wait_ready(LIMIT_S)
        yield Guest(
            booted=guest,
            operator=operator,
            ready=ready,
            url=f"http://127.0.0.1:{machine.port}",
        )


def changed(machine: Machine, changes: Mapping[str, object]) -> Machine:
    """The machine with other fields, and another port, for the last one may linger."""
    return dataclasses.replace(machine, port=free_port(), **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodBoot:
    """What the untouched image left behind when it was booted, affirmed and talked to."""

    machine: Machine
    values: ReferenceValues
    """Predicted, but for PCR 0 and 1, which are those of this very boot."""
    registers: Mapping[int, bytes]
    boot_log: bytes
    nonce: bytes
    report: bytes
    """For `nonce`."""
    answer: str
    time_line: Mapping[str, float]
