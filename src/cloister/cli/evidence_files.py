"""From files of evidence, whatever their names, to what one platform's verifier takes.

Each file is recognised by its bytes (`cloister.evidence.recognise`). The most specific piece
decides the platform; the others vouch for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.errors import ConfigurationError, MalformedError
from cloister.evidence.recognise import MAX_BYTES, Kind, recognise
from cloister.verifier.evidence import Verify

if TYPE_CHECKING:
    from cloister.verifier.authenticate.tpm_quote import QuoteEvidence

MAX_FILES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceFile:
    """One file: its name for people, what it seems to be, and its bytes, text encoding undone."""

    name: str
    kind: Kind
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """Evidence of one platform."""

    verify: Verify
    evidence: object
    used: tuple[EvidenceFile, ...]
    left_over: tuple[EvidenceFile, ...]
    """Files that this platform has no use for."""
    nonce_field: str
    """The field that carries a caller's nonce on this platform."""


class Files:
    """The files at hand, and which of them were used."""

    def __init__(self, files: Sequence[EvidenceFile]) -> None:
        self._files = tuple(files)
        self._used: dict[EvidenceFile, None] = {}

    def has(self, *kinds: Kind) -> bool:
        """Whether there is a file of each of `kinds`."""
        present = {file.kind for file in self._files}
        return all(kind in present for kind in kinds)

    def all(self, kind: Kind) -> tuple[bytes, ...]:
        """The bytes of every file of one kind, in order."""
        found = [file for file in self._files if file.kind is kind]
        self._used |= dict.fromkeys(found)
        return tuple(file.data for file in found)

    def optional(self, kind: Kind) -> bytes | None:
        """The bytes of the one file of a kind, if there is one.

        Raises:
            ConfigurationError: there are several (code ``evidence.ambiguous``).
        """
        found = self.all(kind)
        if len(found) > 1:
            raise ConfigurationError(
                f"there are {len(found)} files that seem to be {kind.value}; name one of them",
                code="evidence.ambiguous",
            )
        return found[0] if found else None

    def one(self, kind: Kind) -> bytes:
        """The bytes of the one file of a kind.

        Raises:
            ConfigurationError: there is none, or there are several (codes ``evidence.missing``,
                ``evidence.ambiguous``).
        """
        found = self.optional(kind)
        if found is None:
            raise ConfigurationError(
                f"a file with {kind.value} is needed too", code="evidence.missing"
            )
        return found

    def assembled(
        self, verify: Verify, evidence: object, *, nonce_field: str = "report_data"
    ) -> Assembled:
        """The evidence, with the files that went into it and those that did not."""
        return Assembled(
            verify=verify,
            evidence=evidence,
            used=tuple(self._used),
            left_over=tuple(file for file in self._files if file not in self._used),
            nonce_field=nonce_field,
        )


def read_files(paths: Sequence[Path]) -> tuple[EvidenceFile, ...]:
    """Read files, and the files right inside directories; each is recognised.

    Raises:
        ConfigurationError: one cannot be read, is too large, or there are too many.
    """
    listed = [inner for path in paths for inner in _inside(path)]
    if len(listed) > MAX_FILES:
        raise ConfigurationError(
            f"{len(listed)} files are more than the {MAX_FILES} looked at", code="evidence.many"
        )
    return tuple(map(_read, listed))


def assemble(files: Sequence[EvidenceFile]) -> Assembled:
    """Put together the evidence in `files`.

    Raises:
        ConfigurationError: no evidence among them that a platform's verifier takes, or something
            missing beside it (codes ``evidence.*``).
    """
    at_hand = Files(files)
    for kinds, make in _PLATFORMS:
        if at_hand.has(*kinds):
            return make(at_hand)
    seen = ", ".join(f"{file.name} ({file.kind.value})" for file in files)
    raise ConfigurationError(
        f"there is no evidence that can be verified among: {seen}", code="evidence.none"
    )


def _inside(path: Path) -> list[Path]:
    try:
        if path.is_dir():
            return sorted(inner for inner in path.iterdir() if inner.is_file())
    except OSError as error:
        raise _unreadable(path, error) from None
    return [path]


def _read(path: Path) -> EvidenceFile:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    if len(data) > MAX_BYTES:
        raise ConfigurationError(
            f"{path} has more than {MAX_BYTES} bytes", code="evidence.too_large"
        )
    found = recognise(data)
    return EvidenceFile(name=str(path), kind=found.kind, data=found.data)


def _unreadable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{path} cannot be read: {error.strerror or 'unknown reason'}", code="evidence.unreadable"
    )


def _snp(files: Files) -> Assembled:
    from cloister.verifier.platforms.snp import SnpEvidence, verify_snp

    evidence = SnpEvidence(
        report=files.one(Kind.SNP_REPORT),
        certificates=files.all(Kind.CERTIFICATES),
        crls=files.all(Kind.REVOCATION_LIST),
    )
    return files.assembled(verify_snp, evidence)


def _dstack(files: Files) -> Assembled:
    from cloister.verifier.platforms.dstack import DstackEvidence, verify_dstack
    from cloister.verifier.platforms.tdx import TdxEvidence

    evidence = DstackEvidence(
        tdx=TdxEvidence(
            quote=files.one(Kind.DCAP_QUOTE), collateral=files.optional(Kind.COLLATERAL)
        ),
        event_log=files.one(Kind.DSTACK_EVENT_LOG),
        app_compose=files.optional(Kind.DSTACK_COMPOSE),
    )
    return files.assembled(verify_dstack, evidence)


def _dcap(files: Files) -> Assembled:
    from cloister.evidence.dcap import Tee, parse_quote
    from cloister.verifier.platforms.sgx import SgxEvidence, verify_sgx
    from cloister.verifier.platforms.tdx import TdxEvidence, verify_tdx

    quote = files.one(Kind.DCAP_QUOTE)
    collateral = files.optional(Kind.COLLATERAL)
    certificates = files.all(Kind.CERTIFICATES)
    tee: Tee = "tdx"
    with suppress(MalformedError):  # a verifier says what is wrong with it
        tee = parse_quote(quote).tee
    if tee == "sgx":
        return files.assembled(
            verify_sgx, SgxEvidence(quote=quote, collateral=collateral, certificates=certificates)
        )
    evidence = TdxEvidence(
        quote=quote,
        collateral=collateral,
        certificates=certificates,
        ccel_event_log=files.optional(Kind.EVENT_LOG),
    )
    return files.assembled(verify_tdx, evidence)


def _nitro(files: Files) -> Assembled:
    from cloister.verifier.platforms.nitro import NitroEvidence, verify_nitro

    evidence = NitroEvidence(document=files.one(Kind.NITRO_DOCUMENT))
    return files.assembled(verify_nitro, evidence, nonce_field="nonce")


def _tpm(files: Files) -> Assembled:
    from cloister.verifier.authenticate.ak import AkEvidence
    from cloister.verifier.platforms.tpm import TpmEvidence, verify_tpm

    certificates = files.all(Kind.CERTIFICATES)
    public = files.optional(Kind.TPM_PUBLIC)
    if public is None and not certificates:
        public = files.one(Kind.PUBLIC_KEY)
    evidence = TpmEvidence(
        quote=_quote(files),
        ak_public=public,
        ak=AkEvidence(certificate=certificates[0], intermediates=certificates[1:])
        if certificates
        else None,
        event_log=files.optional(Kind.EVENT_LOG),
    )
    return files.assembled(verify_tpm, evidence, nonce_field="extra_data")


def _quote(files: Files) -> QuoteEvidence:
    from cloister.evidence.pcrs import parse_pcrs_json
    from cloister.verifier.authenticate.tpm_quote import QuoteEvidence

    bare = not files.has(Kind.TPM_SIGNATURE)
    values = files.optional(Kind.PCR_VALUES)
    return QuoteEvidence(
        quote=files.one(Kind.TPM_QUOTE),
        signature=files.one(Kind.RSA_SIGNATURE if bare else Kind.TPM_SIGNATURE),
        pcrs=files.one(Kind.TPM_PCR_FILE) if values is None else parse_pcrs_json(values),
        bare_signature=bare,
    )


def _log(files: Files) -> Assembled:
    from cloister.verifier.platforms.tpm import TpmEvidence, verify_tpm

    return files.assembled(verify_tpm, TpmEvidence(quote=None, event_log=files.one(Kind.EVENT_LOG)))


_Make = Callable[[Files], Assembled]

_PLATFORMS: Final[tuple[tuple[tuple[Kind, ...], _Make], ...]] = (
    ((Kind.DCAP_QUOTE, Kind.DSTACK_EVENT_LOG), _dstack),
    ((Kind.DCAP_QUOTE,), _dcap),
    ((Kind.SNP_REPORT,), _snp),
    ((Kind.NITRO_DOCUMENT,), _nitro),
    ((Kind.TPM_QUOTE,), _tpm),
    ((Kind.EVENT_LOG,), _log),
)
"""What has to be there for a platform, the composite ones first."""
