"""Verifies evidence of an AWS instance whose NitroTPM measured its boot.

AWS calls this "EC2 instance attestation". Steps: ``nitro.document`` (it decodes),
`cloister.verifier.authenticate.nitro` (the signature and AWS' chain, as of an enclave's document),
`cloister.verifier.appraise.nitro_tpm`, the event log where there is one
(`cloister.verifier.authenticate.tpm_log`, against the registers in the document, of the SHA-384
bank), and what the caller expects.

A NitroTPM measures software. Whatever else AWS says of the machine below, no evidence of it is in
the document: so memory is not confidential by this evidence, as with any other TPM.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cloister.endorsements.roots import Roots
from cloister.evidence.nitro import DocumentKind, NitroDocument
from cloister.evidence.tpm import Alg
from cloister.strictjson import JsonObject
from cloister.verifier.appraise import nitro_tpm as appraise
from cloister.verifier.appraise.nitro import fields
from cloister.verifier.authenticate import nitro as authenticate
from cloister.verifier.authenticate import tpm_log
from cloister.verifier.authenticate.tpm_log import LogFindings
from cloister.verifier.expected import Expected, check_names, compare
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.platforms import nitro, tpm
from cloister.verifier.policy import AppraisalPolicy, Unchecked

PLATFORM: Final = "AWS NitroTPM"

NOT_PROVEN: Final = (
    "AWS and its hypervisor are trusted, for everything: the hypervisor keeps the registers and"
    " signs what it says they hold, and that it keeps the instance's memory from others is AWS'"
    " word.",
    "PCR 0 and 1 say nothing about the firmware: AWS keeps them constant, so that it can change"
    " its firmware.",
    *tpm.NOT_PROVEN,
    "Revocation of certificates is not checked, as AWS asks: those of instances live for hours.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroTpmEvidence:
    """An attestation document, in any wrapper of `unwrap_document`, and the firmware's log."""

    document: bytes
    event_log: bytes | None = None


def claim_names(
    evidence: NitroTpmEvidence, policy: AppraisalPolicy, expected: Expected
) -> tuple[str, ...]:
    """Names of all claims about `evidence`, in order."""
    return (
        nitro.DOCUMENT,
        *authenticate.CLAIMS,
        *appraise.claims(policy),
        *(() if evidence.event_log is None else tpm_log.CLAIMS),
        *expected.names,
    )


def verify_nitro_tpm(
    evidence: NitroTpmEvidence,
    *,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    expected: Expected,
    ledger: Ledger,
) -> Outcome:
    """Verify `evidence` at time `at`; whatever is wrong with it is a claim in `ledger`.

    Raises:
        ConfigurationError: `expected` names a field that no document has.
    """
    check_names(expected, appraise.FIELD_NAMES)
    ledger.expect(*claim_names(evidence, policy, expected))
    document = nitro.read_document(evidence.document, ledger)
    if document is None:
        return Outcome(platform=PLATFORM, memory_confidentiality=tpm.NO_MEMORY, facts={})
    found = authenticate.authenticate_nitro(document, roots=roots, at=at, ledger=ledger)
    authenticated = found.document is not None and found.chain is not None
    if found.document is not None and found.chain is not None:
        appraise.appraise_nitro_tpm(
            found.document, found.chain, policy=policy, at=at, ledger=ledger
        )
    else:
        appraise.appraise_stated(document, found.chain, policy=policy, at=at, ledger=ledger)
    said = ledger if authenticated else ledger.stated()
    log = _log(evidence.event_log, document, said)
    compare(expected, fields(document), said)
    anchor = None if found.chain is None else found.chain.anchor
    # Registers of an enclave have the same numbers, and other meanings.
    proven = authenticated and document.kind is DocumentKind.NITRO_TPM
    return Outcome(
        platform=PLATFORM,
        memory_confidentiality=tpm.NO_MEMORY,
        facts=nitro.document_facts(document, found) | _log_facts(log),
        development=anchor is not None and anchor.development,
        bound=document.user_data if proven else None,
        registers=appraise.registers(document) if proven else {},
        not_proven=(*NOT_PROVEN, *_unsaid(log, policy)),
    )


def _log(data: bytes | None, document: NitroDocument, ledger: Ledger) -> LogFindings | None:
    if data is None or document.kind is not DocumentKind.NITRO_TPM:
        return None
    return tpm_log.authenticate_log(data, {Alg.SHA384: document.pcrs}, ledger)


def _log_facts(log: LogFindings | None) -> JsonObject:
    return {} if log is None else tpm_log.log_facts(log)


def _unsaid(log: LogFindings | None, policy: AppraisalPolicy) -> tuple[str, ...]:
    unlimited = isinstance(policy.max_evidence_age_s, Unchecked)
    return (*tpm.unsaid((), log), *((nitro.UNCHECKED_AGE,) if unlimited else ()))
