"""Guests in a cloud: a tiny image, a machine that boots it, and the guest's own program on it.

The vendors are simulated. What a machine measures is what an image of these bytes makes it measure;
the disk that it starts from is made by `cloister deploy`. The program is `cloister.attester.guest`,
the judge is the ordinary verifier.
"""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest

from cloister.attester import guest
from cloister.attester.configfs_tsm import TsmAttester
from cloister.attester.handover import Evidence, Handover
from cloister.attester.metadata import MetadataService
from cloister.attester.start_disk import Start
from cloister.deploy.formats import convert
from cloister.endorsements.roots import Roots
from cloister.evidence import items
from cloister.evidence.eventlog import Event, EventType
from cloister.evidence.report import Endorsement, EvidenceItem
from cloister.evidence.tpm import Alg
from cloister.image.boot_events import BootParts, predicted_events
from cloister.image.footer import BLOCK, DiskFooter
from cloister.image.golden import Golden, golden_from_report
from cloister.image.image_files import read_image
from cloister.image.partition_table import PREFIX_BYTES, measured_table
from cloister.image.references import machine_references
from cloister.manifest import SignedManifest
from cloister.strictjson import JsonObject
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.testing.simulated_tpm import SimulatedAttester
from cloister.testing.simulated_vtpm import SimulatedVtpm
from cloister.verifier import policy
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.reference_values import ReferenceValues
from cloister.verifier.report import verify_report
from cloister.verifier.result import AttestationResult, Finding
from support import boot_parts
from support.deployments import tiny_disk
from support.fake_tpm import FakeTpm
from support.tsm import Entries, table

NOW: Final = datetime(2026, 11, 3, 12, tzinfo=UTC)
NONCE: Final = bytes(range(32))
PINNED: Final = frozenset({"gcp-tdx"})
"""Platforms whose images name every disk on the command line."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """What may be another one: each field changes one part."""

    application: str = "a"
    model: str = "b"
    kernel: bytes = b"a kernel"
    initrd: bytes = b"an initrd"
    command_line: str = "quiet"
    debug: bool = False

    def write(self, folder: Path, platform: str) -> Path:
        """As `cloister image build` leaves it, with disks of a few bytes."""
        folder.mkdir()
        disks = {"root": "0", "application": self.application, "model": self.model}
        footers = {kind: _footer(kind, digit) for kind, digit in disks.items()}
        for kind, footer in footers.items():
            (folder / f"{kind}.img").write_bytes(bytes(BLOCK) + footer.encode())
        pinned = platform in PINNED
        named = {
            kind: footer.argument() if pinned or kind == "root" else "measured"
            for kind, footer in footers.items()
        }
        line = " ".join(
            (self.command_line, *(f"cloister.{kind}={value}" for kind, value in named.items()))
        )
        name = "demo-debug" if self.debug else "demo"
        uki = boot_parts.uki(
            osrel=f"ID={name}\nVERSION_ID=1\n".encode(),
            cmdline=f"{line}{' cloister.debug=1' if self.debug else ''}".encode(),
            initrd=self.initrd,
            linux=boot_parts.kernel(self.kernel),
        )
        (folder / "uki.efi").write_bytes(uki)
        (folder / "esp.img").write_bytes(tiny_disk(b"FAT32".ljust(64 * 512, b"\1")))
        (folder / "configuration.json").write_text(json.dumps({"platform": platform}))
        return folder


def _footer(kind: str, digit: str) -> DiskFooter:
    fs = "erofs" if kind == "model" else "squashfs"
    return DiskFooter(
        kind=kind, fs=fs, data_blocks=1, hash_start=1, root_hash=digit * 64, salt="1" * 64
    )


def deployed_parts(folder: Path) -> BootParts:
    """What a machine finds that starts from the one disk that a deployment makes of an image."""
    disk = folder.parent / f"{folder.name}.raw"
    names = ("esp.img", "root.img", "application.img", "model.img")
    convert("disk", [folder / name for name in names], disk)
    table = measured_table(disk.read_bytes()[:PREFIX_BYTES])
    return dataclasses.replace(read_image(folder).parts(), partition_table=table)


def boot(folder: Path) -> SimulatedVtpm:
    """A virtual TPM after a start of the image: what firmware, image and init measured."""
    vtpm = SimulatedVtpm(banks=(Alg.SHA256,))
    vtpm.measure(0, EventType.EV_S_CRTM_VERSION, b"a cloud's firmware")
    vtpm.measure(1, EventType.EV_EFI_VARIABLE_BOOT, b"order")
    for pcr in (0, 1):
        vtpm.measure(pcr, EventType.EV_SEPARATOR, bytes(4))
    for predicted in predicted_events(deployed_parts(folder)):
        digests = {int(Alg.SHA256): predicted.digests[Alg.SHA256]}
        event = dataclasses.replace(predicted.event(), digests=digests)
        vtpm.extend(event)
        if event.pcr < 14:  # the init's own the firmware's log does not hold
            vtpm.events.append(event)
    return vtpm


class BootedTpm(FakeTpm):
    """The attester's side of a `SimulatedVtpm`, with what its provider put into its memory."""

    def __init__(self, vtpm: SimulatedVtpm, nv: Mapping[int, bytes]) -> None:
        super().__init__()
        self.vtpm, self.nv = vtpm, dict(nv)
        self.signing = vtpm
        """Whose key signs; another's, to see that it does not pass."""
        self.written: list[int] = []

    @property
    def public(self) -> bytes:
        return self.vtpm.public()

    def read_pcrs(self, pcrs: Sequence[int], *, bank: int = Alg.SHA256) -> dict[int, bytes]:
        return {pcr: self.vtpm.registers[bank][pcr] for pcr in pcrs}

    def quote(self, key: int, qualifying_data: bytes, pcrs: Sequence[int]) -> tuple[bytes, bytes]:
        self.handles.append(key)
        made = self.vtpm.quote(qualifying_data, pcrs=tuple(sorted(pcrs)))
        return made.quote, self.signing.sign(made.quote)

    def extend_banks(self, pcr: int, digests: Mapping[int, bytes]) -> None:
        self.written.append(pcr)
        self.vtpm.extend(Event(pcr=pcr, type=EventType.EV_IPL, digests=digests, data=b""))


HANDED: Final[list[Handover]] = []


def main(handover: Handover) -> int:
    """Stands for the worker's: keeps what the guest's program gave it."""
    HANDED.append(handover)
    return 0


Quote = Callable[[bytes], Mapping[str, EvidenceItem]]


@dataclass(kw_only=True)
class CloudGuest:
    """A machine on which an image was started."""

    platform: str
    folder: Path
    """Of the image, as it was built."""
    tpm: BootedTpm
    roots: Roots
    processor: Quote | None = None
    """What makes the processor's evidence, where it is not the TPM that holds it."""
    service: MetadataService | None = None
    vouching: Mapping[str, tuple[Endorsement, ...]] = field(default_factory=dict)
    """What clients fetch and a worker may staple, by item."""

    def surroundings(self, run: Path) -> guest.Surroundings:
        return guest.Surroundings(
            settings=run / "worker.json",
            run=run,
            open_tpm=lambda: self.tpm,
            open_port=lambda: None,
            open_machine=self.open_machine,
            metadata=self.service,
        )

    def open_machine(self, platform: str) -> Evidence:
        """The kernel's interface, behind which the processor is."""
        name, provider = _PROCESSORS[platform]
        quote = self.processor
        assert quote is not None
        asked = quote(NONCE)[name]
        auxiliary = table(asked) if platform == "sev-snp" else b""
        entries = Entries(provider, lambda digest: quote(digest)[name].data, auxiliary)
        return TsmAttester(entries)

    def run(
        self,
        run: Path,
        monkeypatch: pytest.MonkeyPatch,
        manifest: SignedManifest | None = None,
    ) -> Handover | None:
        """The guest's program until it ends; what its worker was given, or None if none started."""
        run.mkdir()
        settings: JsonObject = {"configuration": {}, "operator": {}, "models": {}}
        settings["platform"] = self.platform
        (run / "worker.json").write_text(json.dumps(settings))
        bundle = None if manifest is None else manifest.encode()
        (run / "start").write_bytes(Start(api_keys=b"table", manifest=bundle).encode())
        (run / "boot-log").write_bytes(self.tpm.vtpm.event_log())
        HANDED.clear()
        ours, theirs = socket.socketpair()
        with ours, theirs, monkeypatch.context() as patch:
            patch.setattr(guest, "ENTRY", f"{__name__}:main")
            # Nobody waits for a worker that only keeps what it was given.
            patch.setattr(guest, "_in_background", lambda name, run: None)
            patch.setattr(guest, "socket", SimpleNamespace(socketpair=lambda: (ours, theirs)))
            status = guest.main(self.surroundings(run))
        assert (status == 0) == bool(HANDED)
        return HANDED[0] if HANDED else None

    def stapled(self, made: Mapping[str, EvidenceItem]) -> Mapping[str, EvidenceItem]:
        """With collateral and revocation lists, which clients fetch and a worker may staple."""
        made = {
            name: dataclasses.replace(
                item, endorsements=(*item.endorsements, *self.vouching.get(name, ()))
            )
            for name, item in made.items()
        }
        name = items.ITEM_TDX_QUOTE
        if name not in made or self.processor is None:
            return made
        endorsements = self.processor(NONCE)[name].endorsements
        return {**made, name: dataclasses.replace(made[name], endorsements=endorsements)}


_PROCESSORS: Final = {
    "sev-snp": (items.ITEM_SNP_REPORT, "sev_guest"),
    "tdx": (items.ITEM_TDX_QUOTE, "tdx_guest"),
}


def worker_of(
    given: CloudGuest,
    handover: Handover,
    *,
    manifest: str | None = None,
    quote: Quote | None = None,
) -> SimulatedHardware:
    """A worker whose evidence is what the guest's attester makes (or `quote`, if something else);
    `manifest` is what its claims document names."""
    own = SimulatedAttester.make(now=NOW)
    document = own.claims_document
    if manifest is not None:
        configuration: JsonObject = {**document.configuration, "manifest_sha256": manifest}
        document = dataclasses.replace(
            document, configuration=configuration, manifest_sha256=manifest
        )
        keyset = dataclasses.replace(own.keyset, subject=document.subject)
        own = dataclasses.replace(own, claims_document=document, keyset=keyset)
    made = SimulatedHardware.make("tpm", now=NOW, worker=own)
    ask = handover.attester.quote if quote is None else quote

    return dataclasses.replace(
        made,
        platform=given.platform,
        tee_type=handover.tee_type,
        issue=lambda digest: given.stapled(ask(digest)),
        roots=given.roots,
    )


def golden_of(report: bytes) -> Golden:
    """What somebody records of a cloud's firmware, from a report of a machine of their own."""
    return golden_from_report(report, firmware="cloud 1", machine="small")


def references(folder: Path, golden: Golden) -> ReferenceValues:
    """As `cloister image measure` predicts them."""
    return ReferenceValues.from_platforms(*machine_references(read_image(folder), [golden]))


def judged(
    worker: SimulatedHardware,
    values: ReferenceValues,
    *,
    under: AppraisalPolicy | None = None,
    roots: Roots | None = None,
) -> AttestationResult:
    return verify_report(
        worker.report(NONCE),
        nonce=NONCE,
        policy=policy.development() if under is None else under,
        reference_values=values,
        roots=worker.roots if roots is None else roots,
        at=NOW,
    )


def refused(result: AttestationResult) -> dict[str, str | None]:
    """Code of every claim that was refused, by name."""
    return {
        claim.name: claim.code
        for claim in result.failures
        if claim.finding is Finding.CONTRAINDICATED
    }
