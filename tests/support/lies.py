"""Reports changed on their way, and what a client says to them."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509

from cloister.client.connect import TrustOptions
from cloister.errors import CloisterError
from cloister.evidence.eventlog import Event, encode_event_log, parse_event_log
from cloister.evidence.report import (
    ITEM_EVENT_LOG,
    ITEM_QUOTE,
    AttestationReport,
    parse_attestation_report,
)
from cloister.testing.simulated_tpm import endorse
from support.hostile import ReplyHook, only
from support.scene import ATTESTATION, Scene, answered, ask
from support.wire import WireReply, WireRequest

Edit = Callable[[AttestationReport, bytes], AttestationReport]
"""From a genuine report and the nonce it was asked for with, the report that is delivered."""


def delivered(edit: Edit) -> ReplyHook:
    """Deliver every report as `edit` makes it."""

    def hook(request: WireRequest, answer: WireReply) -> WireReply:
        report = parse_attestation_report(b"".join(answer.chunks))
        nonce = bytes.fromhex(parse_qs(urlsplit(request.url).query)["nonce"][0])
        return dataclasses.replace(answer, chunks=iter([edit(report, nonce).encode()]))

    return only(ATTESTATION, hook)


def with_data(report: AttestationReport, **items: bytes) -> AttestationReport:
    """`report` with other bytes in items; ``tpm_quote`` stands for ``tpm.quote``."""
    evidence = dict(report.evidence)
    for name, data in items.items():
        item = name.replace("_", ".", 1)
        evidence[item] = dataclasses.replace(evidence[item], data=data)
    return dataclasses.replace(report, evidence=evidence)


def endorsed_by(report: AttestationReport, *chain: x509.Certificate) -> AttestationReport:
    """`report` with other certificates for its attestation key."""
    evidence = dict(report.evidence)
    evidence[ITEM_QUOTE] = dataclasses.replace(evidence[ITEM_QUOTE], endorsements=endorse(chain))
    return dataclasses.replace(report, evidence=evidence)


def relogged(
    report: AttestationReport, change: Callable[[list[Event]], list[Event]]
) -> AttestationReport:
    """`report` with its event log changed, and nothing else."""
    log = parse_event_log(report.evidence[ITEM_EVENT_LOG].data)
    return with_data(report, tpm_event_log=encode_event_log(change(list(log.events))))


def affirmed(at: Scene, **trust: object) -> None:
    """The twin: this client believes this worker, and is answered."""
    answered(at.client(**trust))


def refusal(at: Scene, trust: TrustOptions | None = None) -> CloisterError:
    """Connect, and ask, through a client that refuses; nothing of the prompt may leave it.

    Returns the error, whose code and sentence are the same both times.
    """
    options = at.trust if trust is None else trust
    posts, seen = len(at.proxy.sealed), len(at.proxy.seen)
    prompt = "the prompt " + secrets.token_hex(16)
    with pytest.raises(CloisterError) as at_once:
        at.client(**options)
    with pytest.raises(CloisterError) as at_first_request:
        ask(at.unverified(**options), prompt)
    assert at_once.value.code == at_first_request.value.code
    assert str(at_once.value) == str(at_first_request.value)
    assert len(at.proxy.sealed) == posts
    for request in at.proxy.seen[seen:]:
        assert (request.method, request.path, request.body) == ("GET", ATTESTATION, b"")
        assert prompt not in request.url + repr(request.headers)
    return at_once.value
