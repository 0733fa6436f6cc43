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

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.errors import ConfigurationError, MalformedError
from cloister.evidence.recognise import MAX_BYTES, Kind, recognise
from cloister.verifier.evidence import Verify

if TYPE_CHECKING:
    from cloister.evidence.pcrs import PcrValues
    from cloister.verifier.authenticate.ak import AkEvidence
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
    certificates = _der(files)
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
    """Whose document it is, an enclave's or a NitroTPM's, its registers' name says."""
    from cloister.evidence.nitro import DocumentKind, parse_document, unwrap_document
    from cloister.verifier.platforms.nitro import NitroEvidence, verify_nitro
    from cloister.verifier.platforms.nitro_tpm import NitroTpmEvidence, verify_nitro_tpm

    document = files.one(Kind.NITRO_DOCUMENT)
    kind = DocumentKind.ENCLAVE
    with suppress(MalformedError):  # a verifier says what is wrong with it
        kind = parse_document(unwrap_document(document)).kind
    if kind is DocumentKind.ENCLAVE:
        evidence = NitroEvidence(document=document)
        return files.assembled(verify_nitro, evidence, nonce_field="nonce")
    measured = NitroTpmEvidence(document=document, event_log=files.optional(Kind.EVENT_LOG))
    return files.assembled(verify_nitro_tpm, measured, nonce_field="nonce")


def _tpm(files: Files) -> Assembled:
    """A quote; whose TPM it is, its attestation key's certificate says."""
    from cloister.verifier.platforms.gcp import GcpEvidence, verify_gcp
    from cloister.verifier.platforms.tpm import TpmEvidence, verify_tpm

    certificates = files.all(Kind.CERTIFICATES)
    ak = _ak(certificates)
    public = files.optional(Kind.TPM_PUBLIC)
    if public is None and ak is None:
        public = files.one(Kind.PUBLIC_KEY)
    quotes, log = _quotes(files), files.optional(Kind.EVENT_LOG)
    if len(quotes) > 1 or _issued_by("Google LLC", certificates):
        evidence = GcpEvidence(quotes=quotes, ak_public=public, ak=ak, event_log=log)
        return files.assembled(verify_gcp, evidence, nonce_field="extra_data")
    record = TpmEvidence(quote=quotes[0], ak_public=public, ak=ak, event_log=log)
    return files.assembled(verify_tpm, record, nonce_field="extra_data")


def _azure(files: Files) -> Assembled:
    from cloister.verifier.platforms.azure import AzureEvidence, verify_azure

    certificates = files.all(Kind.CERTIFICATES)
    amd = tuple(data for data in certificates if _issued_by("Advanced Micro Devices", (data,)))
    quotes = _quotes(files)
    if len(quotes) > 1:  # all but one would count as used, and nobody would have looked at them
        raise ConfigurationError(
            f"there are {len(quotes)} quotes of one virtual TPM; name one of them",
            code="evidence.ambiguous",
        )
    evidence = AzureEvidence(
        hcl_report=files.one(Kind.HCL_REPORT),
        quote=quotes[0],
        snp_certificates=amd,
        snp_crls=files.all(Kind.REVOCATION_LIST),
        td_quote=files.optional(Kind.DCAP_QUOTE),
        td_collateral=files.optional(Kind.COLLATERAL),
        ak=_ak(tuple(data for data in certificates if data not in amd)),
        event_log=files.optional(Kind.EVENT_LOG),
    )
    return files.assembled(verify_azure, evidence, nonce_field="extra_data")


def _ak(certificates: Sequence[bytes]) -> AkEvidence | None:
    """The key's certificate is the one that is no CA's; the others complete its chain."""
    from cloister.verifier.authenticate.ak import AkEvidence

    leaves = [data for data in certificates if not _is_ca(data)]
    if not leaves:
        return None
    others = tuple(data for data in certificates if data is not leaves[0])
    return AkEvidence(certificate=leaves[0], intermediates=others)


def _der(files: Files) -> tuple[bytes, ...]:
    """Every certificate in every file, one by one."""
    return tuple(
        certificate.public_bytes(Encoding.DER)
        for data in files.all(Kind.CERTIFICATES)
        for certificate in _parsed(data)
    )


def _parsed(data: bytes) -> tuple[x509.Certificate, ...]:
    from cloister.endorsements.certificates import parse_certificates

    try:
        return parse_certificates(data)
    except MalformedError:
        return ()


def _is_ca(data: bytes) -> bool:
    return any(
        extension.oid == x509.BasicConstraints.oid and getattr(extension.value, "ca", False)
        for certificate in _parsed(data)[:1]
        for extension in certificate.extensions
    )


def _issued_by(organization: str, certificates: Sequence[bytes]) -> bool:
    return any(
        attribute.value == organization
        for data in certificates
        for certificate in _parsed(data)
        for attribute in certificate.issuer.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    )


def _quotes(files: Files) -> tuple[QuoteEvidence, ...]:
    """Quotes with their signatures and register values; of several, by the order of names.

    Raises:
        ConfigurationError: there are not as many of each.
    """
    from cloister.verifier.authenticate.tpm_quote import QuoteEvidence

    bare = not files.has(Kind.TPM_SIGNATURE)
    quotes = files.all(Kind.TPM_QUOTE)
    signatures = files.all(Kind.RSA_SIGNATURE if bare else Kind.TPM_SIGNATURE)
    values = [*map(_values, files.all(Kind.PCR_VALUES)), *files.all(Kind.TPM_PCR_FILE)]
    if not len(quotes) == len(signatures) == len(values):
        raise ConfigurationError(
            f"{len(quotes)} quotes need as many signatures and sets of register values; there are"
            f" {len(signatures)} and {len(values)}",
            code="evidence.missing",
        )
    return tuple(
        QuoteEvidence(quote=quote, signature=signature, pcrs=pcrs, bare_signature=bare)
        for quote, signature, pcrs in zip(quotes, signatures, values, strict=True)
    )


def _values(data: bytes) -> PcrValues | bytes:
    from cloister.evidence.pcrs import parse_pcrs_json

    try:
        return parse_pcrs_json(data)
    except MalformedError:
        return data  # whose verifier says that it does not decode


def _log(files: Files) -> Assembled:
    from cloister.verifier.platforms.tpm import TpmEvidence, verify_tpm

    return files.assembled(verify_tpm, TpmEvidence(quote=None, event_log=files.one(Kind.EVENT_LOG)))


def _gpus(files: Files) -> Assembled:
    from cloister.evidence.nvgpu import GpuDevice
    from cloister.verifier.platforms.nvgpu import GpuEvidence, verify_nvgpu

    evidence = GpuEvidence(
        devices=(GpuDevice(report=files.one(Kind.GPU_REPORT), chain=_der(files)),),
        rims=files.all(Kind.RIM),
        crls=files.all(Kind.REVOCATION_LIST),
        ocsp=files.all(Kind.OCSP_RESPONSE),
    )
    return files.assembled(verify_nvgpu, evidence, nonce_field="nonce")


def _gpu_list(files: Files) -> Assembled:
    from cloister.verifier.platforms.nvgpu import GpuEvidence, verify_nvgpu

    try:
        listed = GpuEvidence.from_json(files.one(Kind.GPU_EVIDENCE_LIST))
    except MalformedError as error:
        raise ConfigurationError(
            f"the list of GPU evidence is refused: {error}", code="evidence.malformed"
        ) from None
    evidence = GpuEvidence(
        devices=listed.devices,
        rims=files.all(Kind.RIM),
        crls=files.all(Kind.REVOCATION_LIST),
        ocsp=files.all(Kind.OCSP_RESPONSE),
    )
    return files.assembled(verify_nvgpu, evidence, nonce_field="nonce")


def _rim(files: Files) -> Assembled:
    from cloister.verifier.platforms.nvgpu import RimEvidence, verify_nvgpu

    evidence = RimEvidence(
        document=files.one(Kind.RIM),
        crls=files.all(Kind.REVOCATION_LIST),
        ocsp=files.all(Kind.OCSP_RESPONSE),
    )
    return files.assembled(verify_nvgpu, evidence, nonce_field="nonce")


_Make = Callable[[Files], Assembled]

_PLATFORMS: Final[tuple[tuple[tuple[Kind, ...], _Make], ...]] = (
    ((Kind.HCL_REPORT, Kind.TPM_QUOTE), _azure),
    ((Kind.DCAP_QUOTE, Kind.DSTACK_EVENT_LOG), _dstack),
    ((Kind.DCAP_QUOTE,), _dcap),
    ((Kind.SNP_REPORT,), _snp),
    ((Kind.NITRO_DOCUMENT,), _nitro),
    ((Kind.TPM_QUOTE,), _tpm),
    ((Kind.GPU_EVIDENCE_LIST,), _gpu_list),
    ((Kind.GPU_REPORT,), _gpus),
    ((Kind.EVENT_LOG,), _log),
    ((Kind.RIM,), _rim),
)
"""What has to be there for a platform, the composite ones first."""
