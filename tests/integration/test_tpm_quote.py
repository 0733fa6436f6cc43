"""A real TPM 2.0 implementation: enrolment, measured launch, quote, and what must not work."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from shutil import which
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.attester.endorsement_key import PERSISTENT_EKS, find_endorsement_key
from cloister.attester.enrolment import EnrolmentCa
from cloister.attester.quote import TpmAttester, enrol
from cloister.attester.swtpm import Manufactured, SoftwareTpm, manufacture
from cloister.attester.tpm import AK_ATTRIBUTES, LoadedKey, signing_template
from cloister.attester.tpm_errors import ResponseCode, TpmError
from cloister.endorsements.roots import Roots
from cloister.errors import AuthenticationError, UnsupportedError
from cloister.evidence.component import (
    QUOTED_REGISTERS,
    Component,
    ComponentKind,
    configuration_component,
    launch_events,
)
from cloister.evidence.eventlog import encode_event_log, parse_event_log, replay
from cloister.evidence.report import ITEM_EVENT_LOG, ITEM_QUOTE, ITEM_SIGNATURE
from cloister.evidence.tpm import Alg, ObjectAttribute, parse_quote, pcr_digest
from cloister.verifier.authenticate.tpm import CLAIMS, StatementDigests, authenticate_tpm
from cloister.verifier.ledger import Ledger
from support.software_tpm import HAVE_SWTPM, software_tpm

pytestmark = [
    pytest.mark.tpm,
    pytest.mark.skipif(not HAVE_SWTPM, reason="swtpm is not installed"),
]

DIGEST: Final = hashlib.sha256(b"a statement").digest()
RSA_EK: Final = ((0x81010001, 0x01C00002),)
ECC_EK: Final = ((0x81010016, 0x01C00016),)


@pytest.fixture
def running() -> Iterator[tuple[SoftwareTpm, Manufactured]]:
    with software_tpm() as made:
        yield made


def now() -> datetime:
    return datetime.now(UTC)


def launch(tpm: SoftwareTpm) -> bytes:
    components = [
        Component(
            kind=ComponentKind.DISTRIBUTION,
            name="cloister",
            version="1",
            digest="sha256:" + "a" * 64,
        ),
        Component(kind=ComponentKind.MODEL, name="m", version="", digest="sha256:" + "b" * 64),
        configuration_component("worker", "1", {"debug": False}),
    ]
    events = launch_events(components)
    for event in events:
        tpm.tpm.extend(event.pcr, event.digests[Alg.SHA256])
    return encode_event_log(events)


def certified(
    running: tuple[SoftwareTpm, Manufactured],
) -> tuple[TpmAttester, EnrolmentCa, LoadedKey, bytes]:
    tpm, made = running
    log = launch(tpm)
    ca = EnrolmentCa.in_memory(manufacturers=[made.root], at=now())
    ak, certificate = enrol(tpm.tpm, ca, intermediates=[made.issuer], at=now())
    chain = (certificate, ca.certificate)
    attester = TpmAttester(tpm.tpm, ak_handle=ak.handle, ak_chain=chain, event_log=log)
    return attester, ca, ak, log


@pytest.mark.parametrize("candidates", [PERSISTENT_EKS, ECC_EK, RSA_EK])
def test_key_is_certified_by_activation_with_either_endorsement_key(
    running: tuple[SoftwareTpm, Manufactured], candidates: tuple[tuple[int, int], ...]
) -> None:
    tpm, made = running
    ca = EnrolmentCa.in_memory(manufacturers=[made.root], at=now())
    ak, certificate = enrol(
        tpm.tpm, ca, intermediates=[made.issuer], at=now(), candidates=candidates
    )
    certificate.verify_directly_issued_by(ca.certificate)
    point = certificate.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert point[1:33] in ak.public
    assert ca.renew(certificate, at=now()).public_key() == certificate.public_key()


def test_renewal_is_only_for_keys_seen_in_a_tpm(
    running: tuple[SoftwareTpm, Manufactured],
) -> None:
    tpm, made = running
    ca = EnrolmentCa.in_memory(manufacturers=[made.root], at=now())
    _, certificate = enrol(tpm.tpm, ca, intermediates=[made.issuer], at=now())
    ca.renew(certificate, at=now())
    with pytest.raises(AuthenticationError) as caught:
        ca.renew(ca.certificate, at=now())
    assert caught.value.code == "enrolment.unknown_key"


def test_ca_that_pins_another_manufacturer_refuses(
    running: tuple[SoftwareTpm, Manufactured],
) -> None:
    tpm, made = running
    stranger = EnrolmentCa.in_memory(manufacturers=[], at=now()).certificate
    ca = EnrolmentCa.in_memory(manufacturers=[stranger], at=now())
    with pytest.raises(AuthenticationError) as caught:
        enrol(tpm.tpm, ca, intermediates=[made.issuer], at=now())
    assert caught.value.code == "enrolment.ek_chain"


def test_activation_works_for_no_other_key(running: tuple[SoftwareTpm, Manufactured]) -> None:
    tpm, made = running
    ca = EnrolmentCa.in_memory(manufacturers=[made.root], at=now())
    endorsement = find_endorsement_key(tpm.tpm)
    ak = tpm.tpm.create_primary(signing_template())
    # The same key but for one attribute: its name differs, and so it is another key.
    other = tpm.tpm.create_primary(signing_template(AK_ATTRIBUTES | ObjectAttribute.NO_DA))
    challenge = ca.challenge(
        ek_certificate=endorsement.certificate,
        intermediates=[made.issuer],
        ak_public=ak.public,
        at=now(),
    )
    sealed = challenge.sealed
    with pytest.raises(TpmError) as caught:
        tpm.tpm.activate_credential(other.handle, endorsement.key, sealed.credential, sealed.secret)
    assert caught.value.response_code == ResponseCode.INTEGRITY
    answer = tpm.tpm.activate_credential(
        ak.handle, endorsement.key, sealed.credential, sealed.secret
    )
    ca.certify(challenge.id, answer, at=now())
    with pytest.raises(AuthenticationError):  # a challenge is answered once
        ca.certify(challenge.id, answer, at=now())


def test_activation_works_in_no_other_tpm(running: tuple[SoftwareTpm, Manufactured]) -> None:
    tpm, made = running
    ca = EnrolmentCa.in_memory(manufacturers=[made.root], at=now())
    endorsement = find_endorsement_key(tpm.tpm, ECC_EK)
    another = find_endorsement_key(tpm.tpm, RSA_EK)
    ak = tpm.tpm.create_primary(signing_template())
    challenge = ca.challenge(
        ek_certificate=endorsement.certificate,
        intermediates=[made.issuer],
        ak_public=ak.public,
        at=now(),
    )
    with pytest.raises(TpmError):
        tpm.tpm.activate_credential(
            ak.handle, another.key, challenge.sealed.credential, challenge.sealed.secret
        )


def test_attestation_key_is_the_same_after_every_start() -> None:
    names = []
    for _ in range(2):
        with software_tpm() as (tpm, _made):
            names.append(tpm.tpm.create_primary(signing_template()).public)
    assert names[0] == names[1]


def test_verifier_authenticates_the_quote(running: tuple[SoftwareTpm, Manufactured]) -> None:
    attester, ca, _, log = certified(running)
    evidence = attester.quote(DIGEST)
    assert evidence[ITEM_EVENT_LOG].data == log

    def codes(digest: bytes, roots: tuple[x509.Certificate, ...]) -> set[str | None]:
        ledger = Ledger()
        authenticate_tpm(
            evidence,
            roots=Roots(enrolment_cas=roots),
            statements=StatementDigests(expected=digest, named=digest, unchallenged=bytes(32)),
            at=now(),
            ledger=ledger,
        )
        return {claim.code for claim in ledger.close(CLAIMS, development=True)}

    assert codes(DIGEST, (ca.certificate,)) == {None}
    assert "quote_nonce" in codes(hashlib.sha256(b"another").digest(), (ca.certificate,))
    stranger = EnrolmentCa.in_memory(manufacturers=[], at=now()).certificate
    assert "ak_root_unpinned" in codes(DIGEST, (stranger,))


def test_quote_selects_registers_0_to_15_and_carries_the_statement(
    running: tuple[SoftwareTpm, Manufactured],
) -> None:
    attester, _, _, _ = certified(running)
    quote = parse_quote(attester.quote(DIGEST)[ITEM_QUOTE].data)
    assert quote.extra_data == DIGEST
    assert [(bank.hash_algorithm, bank.pcrs) for bank in quote.selections] == [
        (Alg.SHA256, QUOTED_REGISTERS)
    ]
    other = parse_quote(attester.quote(bytes(32))[ITEM_QUOTE].data)
    assert other.extra_data != DIGEST
    assert other.pcr_digest == quote.pcr_digest


def test_event_log_replays_to_the_registers(running: tuple[SoftwareTpm, Manufactured]) -> None:
    attester, _, _, log = certified(running)
    tpm, _ = running
    values = tpm.tpm.read_pcrs(QUOTED_REGISTERS)
    replayed = replay(parse_event_log(log))
    assert values == {pcr: replayed[pcr] for pcr in QUOTED_REGISTERS}
    assert [pcr for pcr, value in values.items() if any(value)] == [8, 14, 15]
    quote = parse_quote(attester.quote(DIGEST)[ITEM_QUOTE].data)
    by_bank = {(int(Alg.SHA256), pcr): value for pcr, value in values.items()}
    assert quote.pcr_digest == pcr_digest(quote.selections, by_bank)


@pytest.mark.parametrize("pcr", [0, 8, 11, 15])
def test_register_extended_afterwards_shows_in_the_quote(
    running: tuple[SoftwareTpm, Manufactured], pcr: int
) -> None:
    attester, _, _, _ = certified(running)
    before = parse_quote(attester.quote(DIGEST)[ITEM_QUOTE].data)
    running[0].tpm.extend(pcr, bytes(32))
    after = parse_quote(attester.quote(DIGEST)[ITEM_QUOTE].data)
    assert before.pcr_digest != after.pcr_digest


def test_quote_wants_a_whole_digest(running: tuple[SoftwareTpm, Manufactured]) -> None:
    attester, _, _, _ = certified(running)
    attester.quote(DIGEST)
    with pytest.raises(ValueError, match="32 bytes"):
        attester.quote(DIGEST[:31])


def test_copies_run_side_by_side_and_vouch_for_their_clocks() -> None:
    with software_tpm() as first, software_tpm() as second:
        first[0].tpm.extend(8, DIGEST)
        assert first[0].tpm.read_pcrs([8]) != second[0].tpm.read_pcrs([8])
        attester, _, _, _ = certified(second)
        assert parse_quote(attester.quote(DIGEST)[ITEM_QUOTE].data).clock_info.safe


def test_machine_without_swtpm_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cloister.attester.swtpm._PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match="apt install swtpm") as caught:
        manufacture(tmp_path / "new")
    assert caught.value.code == "tpm.swtpm_missing"
    assert not (tmp_path / "new" / "software-tpm").exists()


def test_manufacturer_keeps_no_key(running: tuple[SoftwareTpm, Manufactured]) -> None:
    _, made = running
    kept = [path.read_bytes() for path in made.state.parent.rglob("*.pem")]
    assert len(kept) == 2
    assert not any(b"PRIVATE KEY" in content for content in kept)


def test_tpm_ends_with_its_last_connection(running: tuple[SoftwareTpm, Manufactured]) -> None:
    tpm, _ = running
    assert tpm.poll() is None
    tpm.tpm.close()
    assert tpm._process.wait(60) == 0


@pytest.mark.skipif(which("tpm2_checkquote") is None, reason="tpm2-tools is not installed")
def test_tpm2_tools_agree(running: tuple[SoftwareTpm, Manufactured], tmp_path: Path) -> None:
    attester, _, _, log = certified(running)
    evidence = attester.quote(DIGEST)
    der = evidence[ITEM_QUOTE].endorsements[0].data
    key = x509.load_der_x509_certificate(der).public_key()
    files = {
        "ak.pem": key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
        "quote": evidence[ITEM_QUOTE].data,
        "signature": evidence[ITEM_SIGNATURE].data,
        "log": log,
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)

    def check(digest: bytes) -> int:
        command = ["tpm2_checkquote", "-u", "ak.pem", "-m", "quote", "-s", "signature"]
        command += ["-g", "sha256", "-q", digest.hex()]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode

    assert check(DIGEST) == 0
    assert check(bytes(32)) != 0
    told = subprocess.run(
        ["tpm2_eventlog", "log"], cwd=tmp_path, capture_output=True, check=True, text=True
    ).stdout
    registers = replay(parse_event_log(log))
    assert all(f"0x{registers[pcr].hex()}" in told.lower() for pcr in (8, 14, 15))
