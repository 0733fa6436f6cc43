"""Exported audit logs: whole, or else refused; and going on from an earlier one."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.broker import audit
from cloister.channel.key_release import BrokerIdentity
from cloister.errors import AuthenticationError, CloisterError, MalformedError
from cloister.strictjson import JsonObject

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
IDENTITY = BrokerIdentity(KEY.public_key().public_bytes_raw())
Lines = list[bytes]


def log(length: int = 5) -> Lines:
    head, entries = audit.NOTHING, []
    for number in range(length):
        entry = audit.encode_entry(head, at=100 + number, event="x", detail={"number": number})
        head, _ = audit.follow(head, entry)
        entries.append(entry)
    return entries


def export(entries: Lines | None = None) -> Lines:
    return list(audit.export_lines(log() if entries is None else entries, KEY))


def test_an_export_is_verified_with_the_identity_alone() -> None:
    head = audit.verify_export(export(), IDENTITY)
    assert head.sequence == 5
    assert audit.verify_export(export([]), IDENTITY) == audit.NOTHING


def changed(entry: bytes, **members: object) -> bytes:
    from cloister.strictjson import canonical

    return canonical(json.loads(entry) | members)


def resigned(lines: Lines) -> Lines:
    """Lines whose checkpoint was made by somebody else, for whatever they hold."""
    head = audit.NOTHING
    for line in lines[:-1]:
        head, _ = audit.follow(head, line)
    other = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
    return [*lines[:-1], audit.encode_checkpoint(head, other)]


def renumbered(lines: Lines) -> Lines:
    """A whole chain, signed by its broker, in which the third entry calls itself the fourth."""
    head = audit.NOTHING
    for line in lines[:2]:
        head, _ = audit.follow(head, line)
    skipped = audit.Head(sequence=head.sequence + 1, digest=head.digest)
    entry = audit.encode_entry(skipped, at=102, event="x", detail={})
    end = audit.Head(sequence=4, digest=hashlib.sha256(entry).digest())
    return [*lines[:2], entry, audit.encode_checkpoint(end, KEY)]


def with_checkpoint(lines: Lines, **members: object) -> Lines:
    return [*lines[:-1], changed(lines[-1], **members)]


ALTERED: dict[str, tuple[Callable[[Lines], Lines], str]] = {
    "an entry's detail": (lambda x: [changed(x[0], detail={}), *x[1:]], "audit.chain"),
    "the last entry's detail": (
        lambda x: [*x[:4], changed(x[4], detail={}), x[5]],
        "audit.checkpoint",
    ),
    "an entry less": (lambda x: [*x[:2], *x[3:]], "audit.chain"),
    "an entry twice": (lambda x: [*x[:2], x[1], *x[2:]], "audit.chain"),
    "two entries the other way round": (lambda x: [x[1], x[0], *x[2:]], "audit.chain"),
    "the first entries cut": (lambda x: x[2:], "audit.chain"),
    "the last entries cut": (lambda x: [*x[:3], x[5]], "audit.checkpoint"),
    "no checkpoint": (lambda x: x[:5], "malformed"),
    "something behind it": (lambda x: [*x, x[0]], "malformed"),
    "somebody else's checkpoint": (resigned, "audit.checkpoint"),
    "nothing at all": (lambda x: [], "malformed"),
    "a line that is none": (lambda x: [b"{}", *x], "malformed"),
    "an entry that counts wrongly": (renumbered, "audit.chain"),
    "a checkpoint with a member more": (lambda x: with_checkpoint(x, more=1), "malformed"),
    "a checkpoint that says more": (
        lambda x: with_checkpoint(
            x, checkpoint=json.loads(x[-1])["checkpoint"] | {"entries": "all of them"}
        ),
        "malformed",
    ),
    "a member more": (lambda x: [changed(x[0], more=1), *x[1:]], "malformed"),
}


@pytest.mark.parametrize("case", ALTERED)
def test_an_altered_export_is_refused(case: str) -> None:
    lines = export()
    audit.verify_export(lines, IDENTITY)
    alter, code = ALTERED[case]
    with pytest.raises(CloisterError) as refused:
        audit.verify_export(alter(list(lines)), IDENTITY)
    assert refused.value.code == code


def test_a_later_export_goes_on_from_an_earlier_one() -> None:
    earlier = audit.verify_export(export(log(3)), IDENTITY)
    assert audit.verify_export(export(log(5)), IDENTITY, earlier=earlier).sequence == 5
    assert audit.verify_export(export(log(3)), IDENTITY, earlier=earlier) == earlier


@pytest.mark.parametrize("length", [0, 2])
def test_a_log_that_was_rolled_back_is_refused(length: int) -> None:
    earlier = audit.verify_export(export(log(3)), IDENTITY)
    with pytest.raises(AuthenticationError) as refused:
        audit.verify_export(export(log(length)), IDENTITY, earlier=earlier)
    assert refused.value.code == "audit.rolled_back"


def test_a_log_that_was_rewritten_is_refused() -> None:
    earlier = audit.verify_export(export(log(3)), IDENTITY)
    head, entries = audit.NOTHING, []
    for number in range(5):
        entry = audit.encode_entry(head, at=100 + number, event="y", detail={})
        head, _ = audit.follow(head, entry)
        entries.append(entry)
    audit.verify_export(export(entries), IDENTITY)
    with pytest.raises(AuthenticationError) as refused:
        audit.verify_export(export(entries), IDENTITY, earlier=earlier)
    assert refused.value.code == "audit.rolled_back"


def test_another_broker_s_log_is_refused() -> None:
    other = BrokerIdentity(b"\x03" * 32)
    audit.verify_export(export(), IDENTITY)
    with pytest.raises(AuthenticationError):
        audit.verify_export(export(), other)


def test_a_line_for_people_holds_no_control_characters() -> None:
    entry = audit.encode_entry(audit.NOTHING, at=1, event="denied", detail={"x": "\x1b[31mé\n"})
    shown = audit.show(entry)
    assert shown.isprintable()
    assert shown.isascii()


def test_a_checkpoint_signs_these_very_bytes() -> None:
    """Its purpose too: no signature that the broker makes for something else is one."""
    checkpoint = json.loads(export()[-1])
    digest = hashlib.sha256(log()[-1]).hexdigest()
    signed = b'cloister.audit.checkpoint.v1\0{"digest":"%s","sequence":5}' % digest.encode()
    KEY.public_key().verify(base64.b64decode(checkpoint["signature"]), signed)


def test_a_broken_chain_is_not_exported() -> None:
    entries = log()
    export(entries)
    with pytest.raises(AuthenticationError) as refused:
        export([*entries[:2], *entries[3:]])
    assert refused.value.code == "audit.chain"


def test_an_entry_is_bounded() -> None:
    """For who writes as for who reads: the log never holds what nobody could verify."""

    def entry(size: int, event: str = "x") -> bytes:
        detail: JsonObject = {"reason": "r" * size}
        return audit.encode_entry(audit.NOTHING, at=1, event=event, detail=detail)

    largest = audit.MAX_ENTRY_BYTES - len(entry(0))
    longest = entry(largest)
    audit.follow(audit.NOTHING, longest)
    audit.follow(audit.NOTHING, entry(0, "x" * 64))
    too_long = longest.replace(b"rr", b"rrr", 1)
    too_wordy = entry(0).replace(b'"x"', b'"%s"' % (b"x" * 65))
    for written, read in (((largest + 1,), too_long), ((0, "x" * 65), too_wordy)):
        with pytest.raises(MalformedError):
            entry(*written)
        with pytest.raises(MalformedError):
            audit.follow(audit.NOTHING, read)


def test_a_checkpoint_is_bounded() -> None:
    line = export()[-1]
    room = audit.MAX_ENTRY_BYTES - len(line)
    assert audit.parse_checkpoint(line + b" " * room, IDENTITY).sequence == 5
    with pytest.raises(MalformedError):
        audit.parse_checkpoint(line + b" " * (room + 1), IDENTITY)
