"""AWS' vendor command in front of a real TPM 2.0, a software one with the banks of a NitroTPM."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloister.attester.guest import MANIFEST_REGISTER, measure_manifest
from cloister.attester.nitro_tpm import NitroTpmAttester, request_document
from cloister.attester.swtpm import SoftwareTpm
from cloister.attester.tpm import Tpm
from cloister.errors import UnsupportedError
from cloister.evidence.eventlog import EventType
from cloister.evidence.items import ITEM_NITRO_TPM_DOCUMENT
from cloister.evidence.nitro import DocumentKind, parse_document
from cloister.evidence.tpm import Alg
from cloister.image.boot_events import measured, separator
from cloister.image.pcrs import extend
from cloister.testing.signed_manifests import make_manifest, sign_first
from cloister.testing.simulated_nitro import SimulatedNitro
from cloister.testing.simulated_nitro_tpm import SimulatedNitroTpm
from cloister.verifier.appraise.worker import manifest_register
from support.manifests import ALICE, IMAGE
from support.software_tpm import HAVE_SWTPM, manufactured

pytestmark = pytest.mark.skipif(not HAVE_SWTPM, reason="swtpm is not installed")

NOW = datetime(2026, 11, 3, 12, tzinfo=UTC)
DIGEST = bytes(range(32))


@pytest.fixture
def below(tmp_path: Path) -> Iterator[Tpm]:
    """A software TPM that keeps registers of SHA-256 and of SHA-384."""
    made = manufactured()
    state = tmp_path / "made"
    shutil.copytree(made.state, state, ignore=shutil.ignore_patterns(".lock"))
    subprocess.run(
        [
            *("swtpm_setup", "--tpm2", "--reconfigure", "--tpmstate", str(state)),
            *("--config", str(made.state.parent / "setup.conf")),
            *("--pcr-banks", "sha256,sha384"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=60,
    )
    runtime = tmp_path / "run"
    runtime.mkdir()
    running = SoftwareTpm.start(replace(made, state=state), runtime=runtime)
    try:
        yield running.tpm
    finally:
        running.stop()


def instance(below: Tpm) -> Tpm:
    """The same TPM as a NitroTPM."""
    nitro = SimulatedNitro(now=NOW)

    def attest(*, user_data: bytes, nonce: bytes, public_key: bytes) -> bytes:
        return nitro.document(
            kind=DocumentKind.NITRO_TPM,
            pcrs=below.read_pcrs(range(24), bank=Alg.SHA384),
            user_data=user_data,
            nonce=nonce,
            public_key=public_key,
        )

    return Tpm(SimulatedNitroTpm(attest, below=below.transport))


def test_a_manifest_in_both_banks(below: Tpm) -> None:
    tpm = instance(below)
    before = parse_document(request_document(tpm)).pcrs
    assert before[MANIFEST_REGISTER] == bytes(48)
    manifest = sign_first(make_manifest(owners=[ALICE], images=[IMAGE]), ALICE)
    measure_manifest(tpm, manifest.encode(), sha384=True)
    item = NitroTpmAttester(tpm).quote(DIGEST)[ITEM_NITRO_TPM_DOCUMENT]
    document = parse_document(item.data)
    digest = bytes.fromhex(manifest.digest)
    assert document.user_data == DIGEST
    assert document.pcrs[MANIFEST_REGISTER] == manifest_register("nitro-tpm", digest)
    other = tpm.read_pcrs((MANIFEST_REGISTER,))
    assert other == {MANIFEST_REGISTER: manifest_register("tpm", digest)}


def test_what_the_init_measures_goes_into_every_bank(below: Tpm) -> None:
    """``TPM2_PCR_Event``, byte for byte as ``src/cloister/image/init/tpm.c`` sends it."""
    line = b"cloister-disk/1 application squashfs 10 11 ab cd\n"
    for data in (line, bytes(4)):
        command = b"".join(
            (
                bytes.fromhex("8002") + (29 + len(data)).to_bytes(4, "big"),
                bytes.fromhex("0000013c 0000000e 00000009 40000009 0000000000"),
                len(data).to_bytes(2, "big") + data,
            )
        )
        assert below.transport.exchange(command)[6:10] == bytes(4)
    events = (measured(14, EventType.EV_IPL, "application disk", line), separator(14))
    for bank in (Alg.SHA256, Alg.SHA384):
        predicted = extend((event.digests[bank] for event in events), bank=bank)
        assert below.read_pcrs((14,), bank=bank) == {14: predicted}


def test_a_tpm_that_is_no_nitro_tpm(below: Tpm) -> None:
    assert parse_document(request_document(instance(below), user_data=DIGEST)).user_data == DIGEST
    with pytest.raises(UnsupportedError, match="NitroTPM"):
        request_document(below, user_data=DIGEST)
