"""What a report says and carries, by the one thing that breaks it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from cloister.channel.keyset import PublicKeyEntry
from cloister.channel.ohttp_keys import ServerKey
from cloister.channel.statement import statement_digest
from cloister.evidence.component import ComponentKind
from cloister.evidence.eventlog import Event, EventType, measured_event
from cloister.evidence.report import ITEM_EVENT_LOG, ITEM_QUOTE, ITEM_SIGNATURE
from cloister.evidence.tpm import Alg, PcrSelection, encode_quote, parse_quote, sized
from cloister.testing.simulated_tpm import SimulatedAttester, SimulatedTpm, made_up
from support.report_world import NONCE, NOW, Cases, Change, World, world

OLD_NONCE = bytes(reversed(range(32)))
CASES = Cases()
case = CASES.case


def raw_with(change: Callable[[dict[str, Any]], None]) -> Change:
    def apply(bad: World) -> None:
        document = json.loads(bad.report.encode())
        change(document)
        bad.raw = json.dumps(document).encode()

    return apply


@case("report_malformed", "report.format")
def report_that_is_not_json(bad: World) -> None:
    bad.raw = b"{"


@case("report_malformed", "report.format")
def report_that_names_a_member_twice(bad: World) -> None:
    bad.raw = bad.report.encode()[:-1] + b',"api_version":"aci/1"}'


@case("report_malformed", "report.format")
def report_without_attestation(bad: World) -> None:
    raw_with(lambda document: document.pop("attestation"))(bad)


@case("report_malformed", "report.format")
def report_beyond_the_bound(bad: World) -> None:
    bad.raw = bad.report.encode() + b" " * (8 * 1024 * 1024)


@case("report_version", "report.format")
def report_of_another_version(bad: World) -> None:
    bad.report = dataclasses.replace(bad.report, api_version="aci/2")


@case("keyset_malformed", "keyset.format")
def keyset_with_an_unknown_member(bad: World) -> None:
    bad.report = dataclasses.replace(bad.report, keyset={**bad.report.keyset, "more": 1})


# the quote


@case("quote_missing", "tpm.signature")
def signature_missing(bad: World) -> None:
    bad.replace_item(ITEM_SIGNATURE, None)


@case("quote_malformed", "tpm.quote")
def quote_cut_short(bad: World) -> None:
    bad.requote(bad.report.evidence[ITEM_QUOTE].data[:-1])


@case("quote_malformed", "tpm.quote")
def quote_with_more_after_it(bad: World) -> None:
    bad.requote(bad.report.evidence[ITEM_QUOTE].data + b"\0")


@case("quote_type", "tpm.quote")
def quote_that_no_tpm_made(bad: World) -> None:
    bad.requote(b"\xff\xff\xff\xff" + bad.report.evidence[ITEM_QUOTE].data[4:])


@case("quote_type", "tpm.quote")
def attestation_of_another_kind(bad: World) -> None:
    data = bad.report.evidence[ITEM_QUOTE].data
    bad.requote(data[:4] + b"\x80\x17" + data[6:])


@case("quote_signature", "tpm.signature")
def quote_changed_after_signing(bad: World) -> None:
    data = bytearray(bad.report.evidence[ITEM_QUOTE].data)
    data[-1] ^= 1
    bad.replace_data(ITEM_QUOTE, bytes(data))


@case("quote_signature", "tpm.signature")
def signature_changed(bad: World) -> None:
    data = bytearray(bad.report.evidence[ITEM_SIGNATURE].data)
    data[-1] ^= 1
    bad.replace_data(ITEM_SIGNATURE, bytes(data))


@case("quote_signature", "tpm.signature")
def signature_of_zeros(bad: World) -> None:
    zeros = sized(bytes(32))
    bad.replace_data(ITEM_SIGNATURE, b"\x00\x18\x00\x0b" + zeros + zeros)


@case("quote_signature", "tpm.signature")
def quote_signed_by_an_uncertified_key(bad: World) -> None:
    quote = bad.report.evidence[ITEM_QUOTE].data
    bad.replace_data(ITEM_SIGNATURE, SimulatedTpm().sign(quote))


@case("quote_malformed", "tpm.signature")
def signature_cut_short(bad: World) -> None:
    bad.replace_data(ITEM_SIGNATURE, bad.report.evidence[ITEM_SIGNATURE].data[:-1])


@case("quote_algorithm", "tpm.signature")
def signature_that_names_another_hash(bad: World) -> None:
    data = bad.report.evidence[ITEM_SIGNATURE].data
    bad.replace_data(ITEM_SIGNATURE, data[:2] + b"\x00\x04" + data[4:])


@case("quote_algorithm", "tpm.signature")
def signature_of_an_rsa_key(bad: World) -> None:
    bad.replace_data(ITEM_SIGNATURE, b"\x00\x14\x00\x0b" + sized(bytes(256)))


def selecting(*selection: PcrSelection) -> Change:
    def apply(bad: World) -> None:
        extra = parse_quote(bad.report.evidence[ITEM_QUOTE].data).extra_data
        quote, signature = bad.attester.tpm.quote(extra, selection=selection)
        bad.replace_data(ITEM_QUOTE, quote)
        bad.replace_data(ITEM_SIGNATURE, signature)

    return apply


SHA256_BANK = PcrSelection(hash_algorithm=Alg.SHA256, pcrs=tuple(range(16)))


@case("quote_selection", "tpm.selection")
def selection_without_the_model(bad: World) -> None:
    selecting(PcrSelection(hash_algorithm=Alg.SHA256, pcrs=tuple(range(15))))(bad)


@case("quote_selection", "tpm.selection")
def selection_of_launch_registers_alone(bad: World) -> None:
    selecting(PcrSelection(hash_algorithm=Alg.SHA256, pcrs=(8, 14, 15)))(bad)


@case("quote_selection", "tpm.selection")
def selection_of_one_register_more(bad: World) -> None:
    selecting(PcrSelection(hash_algorithm=Alg.SHA256, pcrs=tuple(range(17))))(bad)


@case("quote_selection", "tpm.selection")
def selection_of_another_bank(bad: World) -> None:
    selecting(PcrSelection(hash_algorithm=Alg.SHA384, pcrs=tuple(range(16))))(bad)


@case("quote_selection", "tpm.selection")
def selection_of_a_second_bank(bad: World) -> None:
    selecting(SHA256_BANK, PcrSelection(hash_algorithm=Alg.SHA1, pcrs=(0,)))(bad)


@case("quote_selection", "tpm.selection")
def selection_of_nothing(bad: World) -> None:
    selecting()(bad)


@case("quote_selection", "tpm.selection")
def selection_that_differs_where_the_digest_does_not(bad: World) -> None:
    """Registers 7 and 9 are both zero: only the signed selection tells the two apart."""
    good = parse_quote(bad.report.evidence[ITEM_QUOTE].data)
    pcrs = tuple(pcr for pcr in range(17) if pcr != 9)
    bad.requote(
        encode_quote(
            qualified_signer=good.qualified_signer,
            extra_data=good.extra_data,
            clock_info=good.clock_info,
            firmware_version=good.firmware_version,
            selections=(PcrSelection(hash_algorithm=Alg.SHA256, pcrs=pcrs),),
            pcr_digest=good.pcr_digest,
        )
    )


# freshness and binding


@case("quote_nonce", "quote.fresh")
def whole_report_from_earlier(bad: World) -> None:
    bad.report = bad.attester.attestation_report(OLD_NONCE)


@case("quote_nonce", "quote.fresh")
def older_quote_in_a_fresh_report(bad: World) -> None:
    older = bad.attester.attestation_report(OLD_NONCE)
    bad.replace_item(ITEM_QUOTE, older.evidence[ITEM_QUOTE])
    bad.replace_item(ITEM_SIGNATURE, older.evidence[ITEM_SIGNATURE])


@case("quote_nonce", "quote.fresh")
def report_without_challenge(bad: World) -> None:
    bad.report = bad.attester.attestation_report(None)


@case("quote_nonce", "quote.fresh")
def quote_of_somebody_else(bad: World) -> None:
    """Another worker of the same kind, certified by the same CA, asked for the same nonce."""
    other = SimulatedAttester.make(now=NOW, ca=bad.attester.ca).attestation_report(NONCE)
    for name in (ITEM_QUOTE, ITEM_SIGNATURE, ITEM_EVENT_LOG):
        bad.replace_item(name, other.evidence[name])


@case("quote_nonce", "quote.fresh")
def keys_replaced_and_everything_else_rewritten(bad: World) -> None:
    forged = dataclasses.replace(
        bad.attester.keyset, e2ee_public_keys=(_request_entry(_another_key()),)
    )
    bad.report = dataclasses.replace(
        bad.report,
        keyset=forged.to_json(),
        keyset_digest=forged.digest,
        report_data=statement_digest(forged.digest, NONCE),
    )


@case("keyset_unbound", "keyset.bound")
def keys_replaced_beside_the_old_digest(bad: World) -> None:
    forged = dataclasses.replace(
        bad.attester.keyset, e2ee_public_keys=(_request_entry(_another_key()),)
    )
    bad.report = dataclasses.replace(bad.report, keyset=forged.to_json())


@case("keyset_unbound", "keyset.bound")
def expiry_put_off(bad: World) -> None:
    later = dataclasses.replace(bad.attester.keyset, not_after=bad.attester.keyset.not_after + 60)
    bad.report = dataclasses.replace(bad.report, keyset=later.to_json())


@case("keyset_unbound", "keyset.bound")
def digest_beside_the_keyset_changed(bad: World) -> None:
    bad.report = dataclasses.replace(bad.report, keyset_digest="sha256:" + "0" * 64)


@case("report_data_mismatch", "report.data")
def report_data_of_another_report(bad: World) -> None:
    bad.report = dataclasses.replace(bad.report, report_data=bytes(32))


# the event log


def _tell(event: Event, name: str, *, rehash: bool) -> Event:
    data = json.dumps(
        {**json.loads(event.data), "name": name}, sort_keys=True, separators=(",", ":")
    ).encode()
    told = measured_event(event.pcr, event.type, data)
    return told if rehash else dataclasses.replace(told, digests=event.digests)


@case("eventlog_missing", "eventlog.format")
def log_missing(bad: World) -> None:
    bad.replace_item(ITEM_EVENT_LOG, None)


@case("eventlog_malformed", "eventlog.format")
def log_cut_short(bad: World) -> None:
    bad.replace_data(ITEM_EVENT_LOG, bad.report.evidence[ITEM_EVENT_LOG].data[:-1])


@case("eventlog_bank", "eventlog.format")
def log_of_another_bank(bad: World) -> None:
    data = bad.report.evidence[ITEM_EVENT_LOG].data
    header = data[:28] + data[28:].replace(b"\x0b\x00\x20\x00", b"\x12\x00\x20\x00", 1)
    bad.replace_data(ITEM_EVENT_LOG, header.replace(b"\x0b\x00", b"\x12\x00"))


@case("eventlog_digest", "eventlog.digests")
def log_with_one_event_that_says_something_else(bad: World) -> None:
    bad.relog(lambda events: [_tell(events[0], "pypy", rehash=False), *events[1:]])


@case("eventlog_digest", "eventlog.digests")
def log_with_a_separator_that_says_something_else(bad: World) -> None:
    bad.relog(lambda events: [*events[:-1], dataclasses.replace(events[-1], data=b"\0\0\0\1")])


@case("pcr_digest", "tpm.registers")
def log_with_one_event_changed(bad: World) -> None:
    bad.relog(lambda events: [_tell(events[0], "pypy", rehash=True), *events[1:]])


@case("pcr_digest", "tpm.registers")
def log_with_one_event_added(bad: World) -> None:
    bad.relog(lambda events: [made_up(ComponentKind.DISTRIBUTION, "extra").event(), *events])


@case("pcr_digest", "tpm.registers")
def log_with_one_event_left_out(bad: World) -> None:
    bad.relog(lambda events: events[1:])


@case("pcr_digest", "tpm.registers")
def log_in_another_order(bad: World) -> None:
    bad.relog(lambda events: [events[1], events[0], *events[2:]])


@case("pcr_digest", "tpm.registers")
def something_extended_that_the_log_does_not_tell(bad: World) -> None:
    bad.attester.tpm.extend(measured_event(4, EventType.EV_IPL, b"bootkit"))
    bad.report = bad.attester.attestation_report(NONCE)


@case("eventlog_replay", "eventlog.launch")
def log_with_an_event_that_is_not_measured(bad: World) -> None:
    """An event of this type is told but not extended: whatever it says is unmeasured."""
    bad.relog(lambda events: [measured_event(8, EventType.EV_NO_ACTION, b"hello"), *events])


@pytest.mark.parametrize("name", sorted(CASES))
def test_one_change_is_refused(name: str) -> None:
    CASES.refuse_one(name)


def _another_key() -> ServerKey:
    from cloister.channel.hpke import Kem

    return ServerKey.generate(1, Kem.MLKEM768_X25519)


def _request_entry(key: ServerKey) -> PublicKeyEntry:
    return PublicKeyEntry(key_id="request-1", algo="ohttp", public_key=key.config.encode().hex())


def test_keys_that_were_replaced_are_named_beside_the_missing_freshness() -> None:
    bad = world()
    keys_replaced_and_everything_else_rewritten(bad)
    assert {"quote_nonce", "keyset_unbound"} <= {claim.code for claim in bad.verify().failures}
