"""The parsers over evidence captured on real machines, where this checkout has it beside it.

`../shared/evidence` holds quotes and boot logs with the values that others computed from them.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from cloister.errors import MalformedError
from cloister.evidence.eventlog import parse_event_log, replay
from cloister.evidence.tpm import (
    HASH_NAMES,
    Alg,
    Quote,
    RsaPublic,
    RsaSignature,
    parse_public,
    parse_quote,
    parse_signature,
    parse_tpm2b_public,
    pcr_digest,
)

EVIDENCE = Path(__file__).parents[4] / "shared" / "evidence"

pytestmark = [
    pytest.mark.evidence,
    pytest.mark.skipif(
        not EVIDENCE.is_dir(), reason="REAL EVIDENCE NOT CHECKED: ../shared/evidence is absent"
    ),
]

BANKS = {name: number for number, name in HASH_NAMES.items()}
SHA1_ONLY = {"log-debian-10", "log-neg-ebs-missing"}
"""Logs in the old format, which this parser refuses on purpose."""


def cases(*folders: str, holding: str) -> list[Path]:
    return sorted(
        case
        for folder in folders
        for case in (EVIDENCE / folder).glob("*")
        if list(case.glob(holding))
    )


@cache
def case(path: Path) -> dict[str, Any]:
    loaded = json.loads((path / "case.json").read_text())
    assert isinstance(loaded, dict)
    return loaded


def layer(path: Path, name: str) -> str | None:
    value = case(path)["expected"]["layers"].get(name)
    assert value is None or isinstance(value, str)
    return value


def quotes() -> list[tuple[Path, str]]:
    return [
        (path, quote.stem.removeprefix("quote").removeprefix("_") or "sha256")
        for path in cases("tpm", "gcp-vtpm", "az-vtpm", holding="quote*.msg")
        for quote in sorted(path.glob("quote*.msg"))
    ]


def stem(path: Path, bank: str) -> str:
    return "quote" if (path / "quote.msg").exists() else f"quote_{bank}"


def read_quote(path: Path, bank: str) -> Quote:
    return parse_quote((path / f"{stem(path, bank)}.msg").read_bytes())


def ids(value: object) -> str:
    return value.name if isinstance(value, Path) else str(value)


def test_there_is_something_to_check() -> None:
    assert len(quotes()) >= 20
    assert len(cases("tpm", "gcp-vtpm", holding="eventlog.bin")) >= 10


@pytest.mark.parametrize(
    "path", cases("tpm", "gcp-vtpm", holding="eventlog.bin"), ids=lambda path: path.name
)
def test_real_logs_replay_to_the_values_that_others_computed(path: Path) -> None:
    data = (path / "eventlog.bin").read_bytes()
    if path.name in SHA1_ONLY:
        with pytest.raises(MalformedError):
            parse_event_log(data)
        return
    log = parse_event_log(data)
    checked = 0
    for bank, values in case(path)["facts"].get("replayed_pcrs", {}).items():
        if not values:
            continue
        registers = replay(log, bank=BANKS[bank])
        assert {pcr: registers[int(pcr)].hex() for pcr in values} == values
        checked += 1
    quoted = {
        bank: _values(path, bank)
        for bank in BANKS
        if (path / f"pcrs_{bank}.json").exists() and BANKS[bank] in log.banks
    }
    if quoted:
        agrees = all(
            replay(log, bank=BANKS[bank])[event.pcr] == values[event.pcr]
            for bank, values in quoted.items()
            for event in log.events
        )
        assert agrees == (layer(path, "eventlog") != "fail")
        checked += 1
    assert checked


@pytest.mark.parametrize(("path", "bank"), quotes(), ids=ids)
def test_real_quotes_say_what_others_read_in_them(path: Path, bank: str) -> None:
    quote = read_quote(path, bank)
    facts = case(path)["facts"]
    assert quote.raw == (path / f"{stem(path, bank)}.msg").read_bytes()
    if bank != "sha256":
        assert quote.selections[0].hash_algorithm == BANKS[bank]
        return
    assert quote.extra_data.hex() == facts["extra_data"]
    assert quote.qualified_signer.hex() == facts["qualified_signer"]
    assert quote.pcr_digest.hex() == facts["pcr_digest"]
    assert quote.clock_info.clock == facts["clock"]
    assert quote.clock_info.reset_count == facts["reset_count"]
    assert quote.clock_info.restart_count == facts["restart_count"]
    assert quote.clock_info.safe == bool(facts["safe"])
    assert [
        {"bank": HASH_NAMES[selection.hash_algorithm], "pcrs": list(selection.pcrs)}
        for selection in quote.selections
    ] == facts["pcr_selection"]


@pytest.mark.parametrize(("path", "bank"), quotes(), ids=ids)
def test_real_signatures_hold_where_they_should(path: Path, bank: str) -> None:
    key = _key(path)
    if key is None:
        assert path.parent.name == "az-vtpm", "no key beside the quote"
        return
    raw = (path / f"{stem(path, bank)}.sig").read_bytes()
    signature = parse_signature(raw) if path.parent.name != "az-vtpm" else None
    if signature is None:
        value = raw  # bare, as Azure's agent returns it
    else:
        assert isinstance(signature, RsaSignature)
        assert signature.hash_algorithm == Alg.SHA256
        value = signature.signature
    try:
        key.verify(value, read_quote(path, bank).raw, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        assert layer(path, "signature") == "fail"
    else:
        assert layer(path, "signature") == "pass"


@pytest.mark.parametrize(("path", "bank"), quotes(), ids=ids)
def test_real_register_values_hash_to_the_quoted_digest(path: Path, bank: str) -> None:
    quote = read_quote(path, bank)
    values = {(BANKS[bank], pcr): value for pcr, value in _values(path, bank).items()}
    agrees = pcr_digest(quote.selections, values) == quote.pcr_digest
    assert agrees == (layer(path, "pcr_digest") != "fail")


def public_areas() -> list[Path]:
    return sorted(
        area
        for path in cases("tpm", "gcp-vtpm", holding="ak.tpm*")
        for area in path.glob("ak.tpm*")
    )


@pytest.mark.parametrize("path", public_areas(), ids=lambda path: path.parent.name)
def test_real_public_areas(path: Path) -> None:
    data = path.read_bytes()
    area = parse_tpm2b_public(data) if path.suffix == ".tpm2b_public" else parse_public(data)
    assert isinstance(area.key, RsaPublic)
    key = _key(path.parent)
    assert key is not None
    assert int.from_bytes(area.key.modulus, "big") == key.public_numbers().n
    name = path.parent / "ak.name"
    if name.exists():
        assert area.name == name.read_bytes()


def _key(path: Path) -> rsa.RSAPublicKey | None:
    if (path / "ak.pem").exists():
        key = load_pem_public_key((path / "ak.pem").read_bytes())
    elif (path / "ak_cert.der").exists():
        key = x509.load_der_x509_certificate((path / "ak_cert.der").read_bytes()).public_key()
    else:
        return None
    assert isinstance(key, rsa.RSAPublicKey)
    return key


def _values(path: Path, bank: str) -> dict[int, bytes]:
    for name in ("pcrs.json", f"pcrs_{bank}.json"):
        if (path / name).exists():
            return _from_json(json.loads((path / name).read_text()), bank)
    facts = case(path)["facts"]["pcrs"]
    assert facts["bank"] == bank
    return {int(pcr): bytes.fromhex(value) for pcr, value in facts["values"].items()}


def _from_json(document: Any, bank: str) -> dict[int, bytes]:
    values = document.get("values", document)
    values = values.get(bank, values) if isinstance(values, dict) else values
    if isinstance(values, list):
        return {pcr: bytes.fromhex(value) for pcr, value in enumerate(values)}
    return {int(pcr): bytes.fromhex(value) for pcr, value in values.items()}
