"""What checking a worker's whole report costs the client, from the bytes to the attested keys.

Every report is fresh: a nonce of its own, a quote of its own. The software TPM's log has one event
for each distribution installed here, as a worker's has. Beside each stands what cannot be avoided:
the signatures that are never the same twice or that come as bytes with each report (collateral and
revocation lists are stapled to it), and SHA-256 over the whole report. Hardware is simulated, with
the same formats and, but for RSA keys half as long, the same algorithms.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from benchmarks.context import Context
from benchmarks.harness import (
    MILLISECONDS,
    Arm,
    Figure,
    Report,
    Rounds,
    Sample,
    Target,
    at_most,
    beside,
    measure,
)
from benchmarks.primitives import Signature, cpu_of_signatures, listed
from cloister.client.trust import KIT_POLICY, KIT_REFERENCE_VALUES, KIT_ROOTS
from cloister.evidence.component import ComponentKind
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.testing.simulated_tpm import SimulatedAttester, default_components, made_up
from cloister.verifier import policy as policies
from cloister.verifier.report import verify_report

# One process each: what is imported, then the first report ever.
_COLD = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path
from cloister.client.trust import make_trust
kit = Path(sys.argv[1])
trust = make_trust(kit=kit, development=True)
result = trust.appraise_report(
    (kit / "report").read_bytes(), nonce=bytes(32), at=datetime.now(UTC)
)
result.require_affirming()
print(time.process_time())
"""
_COLD_PRIMITIVES = """
import sys, time
from pathlib import Path
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
kit = Path(sys.argv[1])
certificate = x509.load_pem_x509_certificate((kit / "enrolment-ca.pem").read_bytes())
key = certificate.public_key()
for _ in range(2):
    key.verify(
        certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(hashes.SHA256())
    )
print(time.process_time())
"""

_P256, _P384, _RSA = Signature.P256, Signature.P384, Signature.RSA_2048
_NAMES = {"snp": "SNP with a CRL", "tdx": "TDX with collateral", "nitro": "Nitro"}
_SIGNATURES = {
    # The report; its key's certificate and the list, by keys half as long as AMD's.
    "snp": (_P384, _RSA, _RSA),
    # Quote, quoting enclave, platform's certificate; TCB info and QE identity, the certificate of
    # their signer, two lists, and the certificate of the CA that made one of them.
    "tdx": (_P256,) * 9,
    # Document, enclave's certificate.
    "nitro": (_P384,) * 2,
}


def attester() -> SimulatedAttester:
    """A worker with an event for each distribution that is installed here."""
    names = sorted({found.metadata["Name"] for found in metadata.distributions()})
    installed = [made_up(ComponentKind.DISTRIBUTION, name) for name in names]
    given = [one for one in default_components() if one.kind is not ComponentKind.DISTRIBUTION]
    return SimulatedAttester.make(now=datetime.now(UTC), components=[*given, *installed])


def _verifier(worker: SimulatedAttester | SimulatedHardware, count: int) -> Callable[[], Sample]:
    policy, values, roots = policies.development(), worker.reference_values, worker.roots

    def run() -> Sample:
        nonces = [os.urandom(32) for _ in range(count)]
        reports = [worker.report(nonce) for nonce in nonces]
        at = datetime.now(UTC)
        began = time.process_time()
        for nonce, report in zip(nonces, reports, strict=True):
            verify_report(
                report, nonce=nonce, policy=policy, reference_values=values, roots=roots, at=at
            ).require_affirming()
        return {"cpu": (time.process_time() - began) / count}

    return run


def _primitives(
    worker: SimulatedAttester | SimulatedHardware, kinds: Sequence[Signature], count: int
) -> Callable[[], Sample]:
    report = worker.report(bytes(32))

    def run() -> Sample:
        signatures = cpu_of_signatures(kinds, count)
        began = time.process_time()
        for _ in range(count):
            hashlib.sha256(report).digest()
        return {"cpu": signatures + (time.process_time() - began) / count}

    return run


def _pair(
    worker: SimulatedAttester | SimulatedHardware, kinds: Sequence[Signature], count: int
) -> list[Arm]:
    return [
        Arm(name="verify", run=_verifier(worker, count)),
        Arm(name="primitives", run=_primitives(worker, kinds, count)),
    ]


def _process(code: str, *arguments: str) -> Callable[[], Sample]:
    """CPU seconds of a whole new process, as it says itself at its end."""

    def run() -> Sample:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, check=True, text=True
        )
        return {"cpu": float(done.stdout)}

    return run


def _hardware(context: Context) -> dict[str, Rounds]:
    """Workers on simulated hardware, by platform."""
    now = datetime.now(UTC)
    return {
        platform: measure(
            _pair(SimulatedHardware.make(platform, now=now), kinds, context.count(20, 2)),
            context.plan(10),
        )
        for platform, kinds in _SIGNATURES.items()
    }


def _first(worker: SimulatedAttester, context: Context) -> Rounds:
    """The first report in a new process."""
    with contextlib.ExitStack() as stack:
        kit = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench")))
        (kit / KIT_POLICY).write_text(policies.development().dump_toml())
        (kit / KIT_REFERENCE_VALUES).write_text(worker.reference_values.dump_json())
        (kit / KIT_ROOTS).write_bytes(worker.roots.to_pem())
        (kit / "report").write_bytes(worker.report(bytes(32)))
        return measure(
            [
                Arm(name="verify", run=_process(_COLD, str(kit))),
                Arm(name="primitives", run=_process(_COLD_PRIMITIVES, str(kit))),
            ],
            context.plan(12),
        )


def _figure(name: str, rounds: Rounds, target: Target | None = None) -> Figure:
    return beside(name, rounds, "verify", "primitives", "cpu", scale=MILLISECONDS, target=target)


def run(context: Context) -> Report:
    """Measure reports after the first, and the first in a new process."""
    worker = attester()
    warm = measure(
        _pair(worker, (Signature.P256, Signature.P256), context.count(40, 2)), context.plan(20)
    )
    hardware = _hardware(context)
    cold = _first(worker, context)
    size = len(worker.report(bytes(32)))
    events = len(worker.events)
    claims = len(json.loads(worker.report(bytes(32)))["attestation"]["evidence"])
    return Report(
        title="Verifying a worker's report",
        method=" ".join(__doc__.partition("\n\n")[2].split()),
        figures=(
            _figure("Software TPM, a fresh report: CPU", warm, at_most(3.0)),
            *(
                _figure(f"Simulated {_NAMES[platform]}, a fresh report: CPU", rounds)
                for platform, rounds in hardware.items()
            ),
            _figure("Software TPM, the first of a new process, imports included: CPU", cold),
        ),
        remarks=(
            f"The software TPM's report: {size} bytes, {events} events in its log, {claims} items"
            " of evidence.",
            *(
                f"Signatures in a report of simulated {_NAMES[platform]}: {listed(kinds)}."
                for platform, kinds in _SIGNATURES.items()
            ),
        ),
        raw={"warm": warm, **hardware, "cold": cold},
    )
