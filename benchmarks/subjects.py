"""One piece of evidence to measure with, and its recordings from hardware.

Recordings lie outside the project, in ``../shared/evidence``; `benchmarks.simulated_subjects` has
what takes their place, and what nobody recorded.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.primitives import Signature
from cloister.cli.cases.folder import CaseFiles, read_case
from cloister.cli.cases.verdict import reader_of
from cloister.endorsements import authorities
from cloister.endorsements.intel import parse_collateral
from cloister.endorsements.pinned import pinned_roots
from cloister.endorsements.roots import Roots
from cloister.verifier import chain
from cloister.verifier.authenticate.intel_collateral import check_signatures
from cloister.verifier.authenticate.rim import authenticate_rim
from cloister.verifier.evidence import Verify, run
from cloister.verifier.expected import NOTHING_EXPECTED, Expected
from cloister.verifier.policy import (
    TCB_STATUSES,
    UNCHECKED,
    AppraisalPolicy,
    as_captured,
    strict,
)
from cloister.verifier.result import AttestationResult

RECORDINGS: Final = Path(__file__).resolve().parents[2] / "shared" / "evidence"
ABSENT: Final = (
    f"RECORDED EVIDENCE NOT MEASURED: ../{RECORDINGS.parent.name}/{RECORDINGS.name} is absent."
    " Simulated evidence stands in."
)

# What is Intel's for these is given at every call, or authenticated once and kept.
_COLLATERAL: Final = ("collateral", "td_collateral")
_MANIFESTS: Final = ("driver_rims", "vbios_rims")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Evidence with all that it takes to verify it.

    `evidence` is as it arrives: collateral and manifests are bytes. `kept` is the same with these
    authenticated, as by a client that uses them for many workers.
    """

    platform: str
    """Of a platform, several subjects may be measured; a recorded one goes before a simulated."""
    name: str
    verify: Verify
    evidence: object
    kept: object
    policy: AppraisalPolicy
    roots: Roots
    at: datetime
    signatures: tuple[Signature, ...]
    """What cannot be avoided of `kept`, CAs' signatures on one another being remembered."""
    expected: Expected = NOTHING_EXPECTED
    quote: bytes | None = None
    """All of `evidence`, where it is a quote of Intel's and `collateral`: others verify these."""
    collateral: bytes | None = None

    def warm(self) -> AttestationResult:
        """Verify once more what is kept for."""
        return self._run(self.kept)

    def cold(self) -> AttestationResult:
        """Verify as for the first time: nothing about CAs, collateral or manifests is known."""
        chain._issued_a_ca.cache_clear()
        authorities._remembered.cache_clear()
        return self._run(self.evidence)

    def _run(self, evidence: object) -> AttestationResult:
        return run(
            self.verify,
            evidence,
            policy=self.policy,
            roots=self.roots,
            at=self.at,
            expected=self.expected,
        )


def keep(evidence: Any, *, roots: Roots, at: datetime) -> Any:
    """`evidence` with its collateral and manifests authenticated, as far as it has any.

    Raises CloisterError: one of them is not authentic.
    """
    changes: dict[str, object] = {}
    for name in _COLLATERAL:
        if isinstance(given := getattr(evidence, name, None), bytes):
            changes[name] = check_signatures(parse_collateral(given), roots=roots)
    for name in _MANIFESTS:
        manifests = getattr(evidence, name, ())
        changes |= (
            {name: tuple(authenticate_rim(one, roots=roots, at=at) for one in manifests)}
            if manifests
            else {}
        )
    return dataclasses.replace(evidence, **changes)


_P256, _P384, _RSA2, _RSA4 = (
    Signature.P256,
    Signature.P384,
    Signature.RSA_2048,
    Signature.RSA_4096,
)
# Quote, quoting enclave's report, platform's certificate.
_QUOTE: Final = (_P256,) * 3
# Case, platform, and the signatures of evidence and leaf certificates.
_CASES: Final = (
    ("snp/ms-genoa", "SNP", (_P384, _RSA4)),
    ("tdx/phala-v4-uptodate", "TDX", _QUOTE),
    ("tdx/gcp-v4-cos113-ccel", "TDX", _QUOTE),
    ("sgx/azure-v3-swhardening", "SGX", _QUOTE),
    ("nitro/evervault-valid", "Nitro", (_P384,) * 2),
    ("tpm/keylime-quote", "TPM", (_RSA2,)),
    ("az-vtpm/snp-genoa", "Azure", (_P384, _RSA4, _RSA2)),
    ("az-vtpm/tdx-with-ak-chain", "Azure", (*_QUOTE, _RSA4, _RSA2)),
    ("gcp-vtpm/cos-85-nonce9009", "Google Cloud", (_RSA2,) * 4),
    ("nvidia-gpu/h100-535-with-vbios-rim", "GPU", (_P384,) * 2),
)


def recorded(folder: Path = RECORDINGS) -> list[Subject]:
    """The recordings that are measured; none where `folder` is absent.

    Raises ConfigurationError: a case in `folder` cannot be read.
    """
    if not folder.is_dir():
        return []
    return [_recorded(folder / case, platform, kinds) for case, platform, kinds in _CASES]


def _recorded(folder: Path, platform: str, signatures: tuple[Signature, ...]) -> Subject:
    case = read_case(folder)
    reader = reader_of(case)
    made = reader.read(case)
    roots = _roots(case)
    is_quote = platform in {"TDX", "SGX"} and case.optional("ccel_event_log") is None
    # Judged on what it contains, and whatever Intel thinks of its patches: the work is the same.
    policy = dataclasses.replace(
        as_captured(strict()), tcb_statuses=TCB_STATUSES, tcb_accepted_advisories=UNCHECKED
    )
    return Subject(
        platform=platform,
        name=f"{platform} (recorded: {folder.name})",
        verify=reader.VERIFY,
        evidence=made.evidence,
        kept=keep(made.evidence, roots=roots, at=case.at),
        policy=made.narrow(policy),
        roots=roots,
        at=case.at,
        signatures=signatures,
        expected=made.expected,
        quote=case.optional("quote") if is_quote else None,
        collateral=case.optional("collateral") if is_quote else None,
    )


def _roots(case: CaseFiles) -> Roots:
    pinned = pinned_roots()
    intermediates = (*pinned.intermediates, *case.certificates)
    return dataclasses.replace(pinned, intermediates=intermediates)
