"""What stands in for attestation where only the way of a request is measured.

Verification happens once, before the first request, and has a benchmark of its own
(`reports`). Here the worker's report holds no evidence and the client takes its keyset as it
comes, which nobody may do but a measurement on one machine. Everything behind that (keys, seal,
replay memory, idempotency, receipts) is the real thing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime

from cloister.channel.claims import ClaimsDocument, ModelClaim
from cloister.channel.keyset import parse_keyset
from cloister.engine.protocol import Engine
from cloister.evidence.report import ITEM_CLAIMS, EvidenceItem, parse_attestation_report
from cloister.verifier.result import (
    AffirmedAttester,
    AttestationResult,
    Claim,
    Finding,
    Source,
)
from cloister.worker.app import Worker, build_worker
from cloister.worker.logs import EventLog
from cloister.worker.settings import RateLimit, Separation, WorkerSettings


class NoEvidence:
    """A worker's evidence source that has none."""

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        """Nothing binds `statement_digest`."""
        del statement_digest
        return {}


class UnsafeNoVerifier:
    """Takes any report for affirmed. For measurements on one machine only."""

    def appraise_report(self, report: bytes, *, nonce: bytes, at: datetime) -> AttestationResult:
        """Read the keyset and the claims out of `report`; check nothing."""
        del nonce
        parsed = parse_attestation_report(report)
        keyset = parse_keyset(parsed.keyset)
        claims: dict[str, object] = json.loads(parsed.evidence[ITEM_CLAIMS].data)
        attester = AffirmedAttester(
            platform="none (benchmark)",
            development=True,
            keyset_digest=keyset.digest,
            keyset=keyset,
            claims_document=claims,
            expires_at=datetime.fromtimestamp(keyset.not_after, UTC),
        )
        claim = Claim(
            name="benchmark",
            finding=Finding.AFFIRMING,
            source=Source.OPERATOR_ASSERTED,
            explanation="Nothing was checked: this is a measurement.",
        )
        return AttestationResult(
            platform="none (benchmark)",
            development=True,
            memory_confidentiality="none",
            claims=(claim,),
            not_proven=("anything",),
            appraised_at=at,
            policy_id="sha256:" + "0" * 64,
            attester=attester,
        )


def bench_worker(engine: Engine, separation: Separation | None = None) -> Worker:
    """A worker around `engine` with its defaults, but for two that would be in our way.

    Rate limits would stop us, and the plain arm needs the sealed arm's process: it stays, unless
    `separation` says otherwise.
    """
    model = engine.model
    claims = ClaimsDocument(
        models=(ModelClaim(name=model.name, sha256=model.sha256),),
        configuration={"purpose": "benchmark"},
        isolation="benchmark",
    )
    no_limit = RateLimit(per_minute=0.0)
    return build_worker(
        engines=[engine],
        source=NoEvidence(),
        tee_type="benchmark",
        claims=claims,
        log=EventLog(io.StringIO()),
        settings=WorkerSettings(
            rate=no_limit, separation=separation or Separation.of_one_process()
        ),
        open_when_empty=True,
    )
