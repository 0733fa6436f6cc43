"""What checking a worker's evidence costs the client.

Every report is fresh: a nonce of its own, a quote of its own. The log has one event for each
distribution installed here, as a worker's has. Beside it stands what cannot be avoided: two ECDSA
P-256 signatures (the certificate's and the quote's) and SHA-256 over the whole report.
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
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.context import Context
from benchmarks.harness import (
    MILLISECONDS,
    Arm,
    Report,
    Sample,
    at_most,
    beside,
    measure,
)
from cloister.client.trust import KIT_POLICY, KIT_REFERENCE_VALUES, KIT_ROOTS
from cloister.evidence.component import ComponentKind
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


def attester() -> SimulatedAttester:
    """A worker with an event for each distribution that is installed here."""
    names = sorted({found.metadata["Name"] for found in metadata.distributions()})
    installed = [made_up(ComponentKind.DISTRIBUTION, name) for name in names]
    given = [one for one in default_components() if one.kind is not ComponentKind.DISTRIBUTION]
    return SimulatedAttester.make(now=datetime.now(UTC), components=[*given, *installed])


def _verifier(worker: SimulatedAttester, count: int) -> Callable[[], Sample]:
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


def _primitives(worker: SimulatedAttester, count: int) -> Callable[[], Sample]:
    message = os.urandom(200)
    key = ec.generate_private_key(ec.SECP256R1())
    signature = key.sign(message, ec.ECDSA(hashes.SHA256()))
    public = key.public_key()
    report = worker.report(bytes(32))

    def run() -> Sample:
        began = time.process_time()
        for _ in range(count):
            public.verify(signature, message, ec.ECDSA(hashes.SHA256()))
            public.verify(signature, message, ec.ECDSA(hashes.SHA256()))
            hashlib.sha256(report).digest()
        return {"cpu": (time.process_time() - began) / count}

    return run


def _process(code: str, *arguments: str) -> Callable[[], Sample]:
    """CPU seconds of a whole new process, as it says itself at its end."""

    def run() -> Sample:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, check=True, text=True
        )
        return {"cpu": float(done.stdout)}

    return run


def run(context: Context) -> Report:
    """Measure a verification after the first, and the first in a new process."""
    worker = attester()
    count = context.count(40, 2)
    warm = measure(
        [
            Arm(name="verify", run=_verifier(worker, count)),
            Arm(name="primitives", run=_primitives(worker, count)),
        ],
        context.plan(20),
    )
    with contextlib.ExitStack() as stack:
        kit = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench")))
        (kit / KIT_POLICY).write_text(policies.development().dump_toml())
        (kit / KIT_REFERENCE_VALUES).write_text(worker.reference_values.dump_json())
        (kit / KIT_ROOTS).write_bytes(worker.roots.to_pem())
        (kit / "report").write_bytes(worker.report(bytes(32)))
        cold = measure(
            [
                Arm(name="verify", run=_process(_COLD, str(kit))),
                Arm(name="primitives", run=_process(_COLD_PRIMITIVES, str(kit))),
            ],
            context.plan(12),
        )
    size = len(worker.report(bytes(32)))
    events = len(worker.events)
    claims = len(json.loads(worker.report(bytes(32)))["attestation"]["evidence"])
    return Report(
        title="Verifying a report (software TPM)",
        method=" ".join(__doc__.partition("\n\n")[2].split()),
        figures=(
            beside(
                "A fresh report, after the first: CPU",
                warm,
                "verify",
                "primitives",
                "cpu",
                scale=MILLISECONDS,
                target=at_most(3.0),
            ),
            beside(
                "The first report of a new process, imports included: CPU",
                cold,
                "verify",
                "primitives",
                "cpu",
                scale=MILLISECONDS,
            ),
        ),
        remarks=(
            f"The report: {size} bytes, {events} events in its log, {claims} items of evidence.",
        ),
        raw={"warm": warm, "cold": cold},
    )
