"""Parts of evidence that may change without being refused, because nothing is decided by them.

Each is here with a test that tells it from everything else, and the reason. An affirmed mutant
that none of these tests knows is a finding. ``docs/reference/mutation.md`` is made from the table.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from cloister.endorsements.certificates import parse_certificate
from cloister.endorsements.roots import Roots
from cloister.errors import MalformedError
from cloister.evidence.ccel import parse_ccel
from cloister.evidence.dstack import parse_dstack_log
from cloister.evidence.eventlog import (
    Event,
    EventType,
    is_crypto_agile,
    parse_event_log,
    parse_legacy_event_log,
)
from cloister.evidence.hcl import parse_hcl_report, quoted_td_report
from cloister.evidence.nitro import unwrap_document
from cloister.evidence.tpm import HASH_NAMES, Alg, PublicArea, parse_public, parse_tpm2b_public
from cloister.verifier.authenticate.tpm_payload import measured_bytes, must_be_covered
from cloister.verifier.chain import same_key
from cloister.verifier.platforms.tpm import LOG_ALONE
from cloister.verifier.result import AttestationResult
from mutation.spelling import MISSING, Certificate, Difference, Tree, decoded, differences, leaves


@dataclass(frozen=True, slots=True, kw_only=True)
class Affirmed:
    """An affirmed mutant: what the part was, what it is, and what the verifier said."""

    subject: str
    part: str
    encoding: str
    original: bytes
    changed: bytes
    roots: Roots
    result: AttestationResult

    @property
    def differences(self) -> list[Difference]:
        """Where it differs, text decoded."""
        one, other = decoded(self.original, self.encoding), decoded(self.changed, self.encoding)
        return list(differences(one, other))


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsigned:
    """One part that nothing is decided by."""

    name: str
    applies: Callable[[Affirmed], bool]
    reason: str


def excuse(mutant: Affirmed) -> str | None:
    """The name of the entry that explains why this mutant is no forgery."""
    for entry in TABLE:
        with contextlib.suppress(MalformedError):
            if entry.applies(mutant):
                return entry.name
    return None


def _padding(mutant: Affirmed) -> bool:
    """Zeros, or 0xFF, behind the end."""
    return any(
        mutant.original.rstrip(fill) == mutant.changed.rstrip(fill) for fill in (b"\0", b"\xff")
    )


def _needless_certificates(mutant: Affirmed) -> bool:
    """Only certificates differ that the verifier has of its own, or that came twice."""
    original = decoded(mutant.original, mutant.encoding)
    found = mutant.differences
    return bool(found) and all(
        isinstance(before, Certificate) and _is_needless(before, original, mutant.roots)
        for _path, before, _after in found
    )


def _is_needless(certificate: Certificate, tree: Tree, roots: Roots) -> bool:
    parsed = parse_certificate(certificate.der)
    anchors = [anchor.certificate for anchor in roots.anchors]
    return (
        any(same_key(parsed, anchor) for anchor in anchors)
        or parsed in roots.intermediates
        or list(leaves(tree)).count(certificate) > 1
    )


def _log_alone(mutant: Affirmed) -> bool:
    return mutant.result.platform == LOG_ALONE


def _tcg_events(data: bytes) -> tuple[Event, ...]:
    with contextlib.suppress(MalformedError):
        return parse_ccel(data).events
    log = parse_event_log(data) if is_crypto_agile(data) else parse_legacy_event_log(data)
    return log.events


def _logs(mutant: Affirmed) -> tuple[bytes, bytes] | None:
    """Two event logs: the parts themselves, or all that differs inside a report."""
    if mutant.part.endswith(("bin", "event_log", "event_log.data")):
        return mutant.original, mutant.changed
    match mutant.differences:
        case [((*_path, "tpm.event_log", "data_b64"), bytes(before), bytes(after))]:
            return before, after
    return None


def _event_comments(mutant: Affirmed) -> bool:
    """The same digests in the same order; only what no digest covers differs."""
    logs = _logs(mutant)
    if logs is None:
        return False
    before, after = map(_tcg_events, logs)
    return _extended(before) == _extended(after) and all(
        _is_comment(old, new) for old, new in _pairs(before, after) if old != new
    )


def _is_comment(old: Event, new: Event) -> bool:
    """Nothing is read from the event as it is now, or the very bytes that its digest covers."""
    return not must_be_covered(new) or all(
        measured_bytes(new, bank) == measured_bytes(old, bank) is not None
        for bank in new.digests
        if bank in HASH_NAMES
    )


def _extended(events: Iterable[Event]) -> list[object]:
    return [
        (event.pcr, tuple(event.digests.items()))
        for event in events
        if event.type != EventType.EV_NO_ACTION
    ]


def _pairs(before: Iterable[Event], after: Iterable[Event]) -> Iterable[tuple[Event, Event]]:
    """Events that are extended, with each other."""
    kept = [[e for e in events if e.type != EventType.EV_NO_ACTION] for events in (before, after)]
    return zip(*kept, strict=True)


def _dstack_comments(mutant: Affirmed) -> bool:
    if not mutant.part.endswith("event_log.json"):
        return False
    before = parse_dstack_log(mutant.original).events
    after = parse_dstack_log(mutant.changed).events
    return [(e.rtmr, e.digest, e.is_runtime) for e in before] == [
        (e.rtmr, e.digest, e.is_runtime) for e in after
    ] and all(
        not new.is_runtime and (not new.payload or _is_comment(old.as_event(), new.as_event()))
        for old, new in zip(before, after, strict=True)
        if old != new
    )


def _td_report_mac(mutant: Affirmed) -> bool:
    if "hcl_report" not in mutant.part:
        return False
    before, after = parse_hcl_report(mutant.original), parse_hcl_report(mutant.changed)
    return (before.hardware_type, before.runtime_bytes, before.hash) == (
        after.hardware_type,
        after.runtime_bytes,
        after.hash,
    ) and quoted_td_report(before.hardware_report) == quoted_td_report(after.hardware_report)


def _area(data: bytes) -> PublicArea:
    if len(data) == 2 + int.from_bytes(data[:2], "big"):
        return parse_tpm2b_public(data)
    return parse_public(data)


def _public_area(mutant: Affirmed) -> bool:
    """The same key; other words of the TPM around it, none that an attestation key may not have."""
    if "public" not in mutant.part:
        return False
    return _area(mutant.original).key == _area(mutant.changed).key


def _wrapper(mutant: Affirmed) -> bool:
    """The document inside is the same."""
    return mutant.subject == "nitro/dstack-nsm" and (
        unwrap_document(mutant.original) == unwrap_document(mutant.changed)
    )


def _other_banks(mutant: Affirmed) -> bool:
    """The digests of the bank that was signed are the same, and all that is no digest.

    Simulated quotes are of SHA-256; documents of NitroTPMs of SHA-384.
    """
    logs = _logs(mutant)
    if logs is None or not mutant.subject.startswith(("simulated/", "worker/")):
        return False
    bank = Alg.SHA384 if "nitro-tpm" in mutant.subject else Alg.SHA256
    before, after = map(_tcg_events, logs)
    return [replace(event, digests={bank: event.digests[bank]}) for event in before] == [
        replace(event, digests={bank: event.digests[bank]}) for event in after
    ]


_LABELS: Final = {
    "report.json": {
        "media_type",
        "service_capabilities",
        "source_provenance",
        "supported_e2ee_versions",
    },
    "hopper_evidence.json": {"arch", "nonce"},
}


def _labels(mutant: Affirmed) -> bool:
    """What a list or report says of the evidence in it, or of itself."""
    found, labels = mutant.differences, _LABELS.get(mutant.part)
    return bool(found and labels) and all(
        before == MISSING or (labels or set()).intersection(path) for path, before, _ in found
    )


TABLE: Final = (
    Unsigned(
        name="padding",
        applies=_padding,
        reason="Zeros, or 0xFF, behind the end that a structure declares: NV indices, fixed buffers"
        " and log areas are longer than what is in them. Anything else there is refused.",
    ),
    Unsigned(
        name="needless_certificate",
        applies=_needless_certificates,
        reason="A certificate for a name and key that the verifier pins, or one that it has or got"
        " twice. The verifier's own copy is what the chain is led to; this one is in no chain.",
    ),
    Unsigned(
        name="log_alone",
        applies=_log_alone,
        reason="An event log without any quote. Nobody signs it: it is only checked against itself,"
        " the platform reads 'not signed', and nothing is bound or named as a register.",
    ),
    Unsigned(
        name="event_comment",
        applies=_event_comments,
        reason="Event data that no digest covers (what describes an image, a blob or a file; the"
        " GUID and name before a boot variable's value), the type of such an event, and"
        " EV_NO_ACTION events, which are never extended. Digests, their registers and their order"
        " are the same; nothing is read from such data.",
    ),
    Unsigned(
        name="other_bank",
        applies=_other_banks,
        reason="Digests in a bank of which no register was signed. What is read from an event has"
        " to be covered by its digests in every bank.",
    ),
    Unsigned(
        name="dstack_comment",
        applies=_dstack_comments,
        reason="Type, name and data of firmware's events in dstack's JSON, where the digest covers"
        " none of them. Runtime events (RTMR3), which say what runs, are covered whole.",
    ),
    Unsigned(
        name="td_report_mac",
        applies=_td_report_mac,
        reason="The MAC, its key's identity and reserved bytes of the TDREPORT that Azure's"
        " paravisor hands on: they can be checked on the same processor only. All 584 bytes that"
        " the quote holds too are compared with the quote, and everything is read from there.",
    ),
    Unsigned(
        name="public_area",
        applies=_public_area,
        reason="What a TPM says around a public key (attributes, policy, scheme): no name of the"
        " key came along. The key itself is the one that the certificate names, or that signed;"
        " and attributes that an attestation key must have, or must not, are still refused.",
    ),
    Unsigned(
        name="nitro_wrapper",
        applies=_wrapper,
        reason="What dstack puts around the document of the security module. It is passed over:"
        " nothing is read from it.",
    ),
    Unsigned(
        name="label",
        applies=_labels,
        reason="Media types in a worker's report, what the server says it can do, members that no"
        " version knows, and the nonce that a list of GPUs repeats. Items are found by name and"
        " judged by their own, signed bytes; endorsements with another media type are not used, as"
        " if they had been left out.",
    ),
)
