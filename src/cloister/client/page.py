"""The local proxy's page: what was checked about the worker, for people. Plain HTML, no scripts.

Everything on it is escaped: names and sentences may come from a worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

from cloister.verifier.result import Claim, Finding

if TYPE_CHECKING:
    from cloister.client.exchange import SealedExchange
    from cloister.verifier.result import AffirmedAttester, AttestationResult

REFRESH_S = 5
SECURITY_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

_WORDS = {
    Finding.AFFIRMING: "holds",
    Finding.WARNING: "doubtful",
    Finding.CONTRAINDICATED: "contradicted",
    Finding.NONE: "not decided",
}
_VERDICTS = {
    Finding.AFFIRMING: "Affirmed: every claim holds.",
    Finding.WARNING: "Refused: a claim is doubtful. Nothing is sent to this worker.",
    Finding.CONTRAINDICATED: "Refused: a claim is contradicted. Nothing is sent to this worker.",
    Finding.NONE: "Cannot decide. Nothing is sent to this worker.",
}
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color-scheme:light dark}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;
padding:.3rem .6rem .3rem 0;border-bottom:1px solid #8884}
.affirming{color:#187a2f}.contraindicated{color:#c0182b;font-weight:bold}
.warning,.none{color:#a05a00}.verdict{font-size:1.3rem}
.development{border:2px solid #a05a00;padding:.6rem}
code{overflow-wrap:anywhere}small{opacity:.8}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageState:
    """What the page tells."""

    worker: str
    result: AttestationResult | None
    attester: AffirmedAttester | None
    """The worker as affirmed now; ``None`` once the verdict's time is over."""
    failure: str | None
    """Why the last verification ended without a result, if it did."""
    exchanges: int
    last: SealedExchange | None


def render(state: PageState) -> str:
    """The whole page."""
    body = [f"<h1>Cloister</h1><p>Worker: <code>{escape(state.worker)}</code></p>"]
    if state.result is None:
        reason = state.failure or "It has not been verified yet."
        body.append(f'<p class="verdict none">No verdict. {escape(reason)}</p>')
    else:
        body += [_verdict(state.result), _identity(state), _claims(state.result)]
    body.append(_exchanges(state))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="refresh" content="{REFRESH_S}">'
        '<meta name="viewport" content="width=device-width"><title>Cloister</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>"
    )


def _verdict(result: AttestationResult) -> str:
    finding = result.verdict
    parts = [f'<p class="verdict {finding.value}">{_VERDICTS[finding]}</p>']
    if result.development:
        parts.append(
            '<p class="development"><strong>This is a development platform.</strong> It shows how'
            " verification works and proves nothing to anyone else.</p>"
        )
    parts.append(
        f"<p>Platform: {escape(result.platform)}. Memory confidentiality: "
        f"{escape(result.memory_confidentiality)}. Appraised {_time(result.appraised_at)} under"
        f" policy <code>{escape(result.policy_id)}</code>.</p>"
    )
    return "".join(parts)


def _identity(state: PageState) -> str:
    attester = state.attester
    if attester is None:
        return "<p>This verdict's time is over; the next request verifies the worker again.</p>"
    models = attester.claims_document.get("models")
    listed = [
        f"<li>{escape(str(model.get('name')))}"
        f" <code>sha256:{escape(str(model.get('sha256')))}</code></li>"
        for model in (models if isinstance(models, list | tuple) else ())
        if isinstance(model, dict)
    ]
    return (
        f"<p>Requests are sealed to the keys of <code>{escape(attester.keyset_digest)}</code>"
        f" until {_time(attester.expires_at)}.</p><p>Models it may run:</p>"
        f"<ul>{''.join(listed)}</ul>"
    )


def _claims(result: AttestationResult) -> str:
    rows = "".join(_row(claim) for claim in result.claims)
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in result.not_proven)
    return (
        "<h2>What was checked</h2><table><thead><tr><th>Finding<th>Claim<th>Source"
        f"<th>What was found</thead><tbody>{rows}</tbody></table>"
        f"<h2>What is not proven</h2><ul>{sentences}</ul>"
    )


def _row(claim: Claim) -> str:
    code = "" if claim.code is None else f" <small>[{escape(claim.code)}]</small>"
    return (
        f'<tr><td class="{claim.finding.value}">{_WORDS[claim.finding]}'
        f"<td>{escape(claim.name)}<td>{escape(claim.source.value.replace('_', ' '))}"
        f"<td>{escape(claim.explanation)}{code}"
    )


def _exchanges(state: PageState) -> str:
    parts = [f"<h2>Answers</h2><p>{state.exchanges} read to their authenticated end."]
    last = state.last
    if last is not None and last.receipt is not None and last.receipt_verified:
        parts.append(f" The last receipt, <code>{escape(last.receipt.receipt_id)}</code>, verified")
        model = last.model
        if model is not None:
            parts.append(
                f": model {escape(model[0])} <code>sha256:{escape(str(model[1]))}</code> answered"
            )
        parts.append(".")
    parts.append('</p><p><a href="/verification.json">The result as JSON (EAR)</a></p>')
    return "".join(parts)


def _time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
