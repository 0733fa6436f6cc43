"""A simulated TPM, enrolment CA and attester: reports that verify, without any TPM.

For tests of verifiers and of programs that talk to verified workers. The structures are byte
for byte those of a TPM 2.0; the keys live in this process and the CA is made up, so a report
says nothing about anything. Only roots made here accept it, and only a policy that names
development affirms it::

    attester = SimulatedAttester.make(now=datetime.now(UTC))
    result = verify_report(
        attester.report(nonce),
        nonce=nonce,
        policy=policy.development(),
        reference_values=attester.reference_values,
        roots=attester.roots,
        at=datetime.now(UTC),
    )
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.channel.claims import ClaimsDocument, ModelClaim
from cloister.channel.hpke import Kem
from cloister.channel.keyset import OHTTP_ALGORITHM, RECEIPT_ALGORITHM, Keyset, PublicKeyEntry
from cloister.channel.ohttp_keys import ServerKey
from cloister.channel.statement import StatementDigest, statement_digest
from cloister.endorsements.roots import Roots
from cloister.evidence.component import (
    QUOTED_REGISTERS,
    Component,
    ComponentKind,
    configuration_component,
    isolation_mode,
    launch_events,
)
from cloister.evidence.eventlog import PCR_COUNT, Event, encode_event_log
from cloister.evidence.report import (
    API_VERSION,
    ITEM_CLAIMS,
    ITEM_EVENT_LOG,
    ITEM_QUOTE,
    ITEM_SIGNATURE,
    MEDIA_TYPE_CERTIFICATE,
    MEDIA_TYPE_CLAIMS,
    MEDIA_TYPE_EVENT_LOG,
    MEDIA_TYPE_QUOTE,
    MEDIA_TYPE_SIGNATURE,
    TEE_TYPE_TPM,
    AttestationReport,
    Endorsement,
    EvidenceItem,
)
from cloister.evidence.tpm import (
    Alg,
    ClockInfo,
    EcdsaSignature,
    PcrSelection,
    encode_ecdsa_signature,
    encode_quote,
    pcr_digest,
)
from cloister.model_digest import Role
from cloister.strictjson import JsonObject
from cloister.verifier.authenticate.ak_chain import TCG_KP_AIK_CERTIFICATE
from cloister.verifier.reference_values import ReferenceValues

SIMULATED_FIRMWARE: Final = 0x5349_4D55_4C41_5445
"""Firmware version in simulated quotes: the letters ``SIMULATE``."""

DEFAULT_SELECTION: Final = (PcrSelection(hash_algorithm=Alg.SHA256, pcrs=QUOTED_REGISTERS),)


class SimulatedTpm:
    """Registers and an attestation key, in memory. Quotes whatever it is asked to."""

    def __init__(self, *, clock_info: ClockInfo | None = None) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.registers = {pcr: bytes(32) for pcr in range(PCR_COUNT)}
        self.clock_info = clock_info or ClockInfo(
            clock=60_000, reset_count=1, restart_count=0, safe=True
        )

    def extend(self, event: Event) -> None:
        """Extend an event's SHA-256 digest into its register (Part 3 section 22.2)."""
        value = self.registers[event.pcr] + event.digests[Alg.SHA256]
        self.registers[event.pcr] = hashlib.sha256(value).digest()

    def quote(
        self, extra_data: bytes, *, selection: Iterable[PcrSelection] = DEFAULT_SELECTION
    ) -> tuple[bytes, bytes]:
        """Return a ``TPMS_ATTEST`` over the selected registers, and its ``TPMT_SIGNATURE``.

        Banks other than SHA-256 are quoted as if their registers were zero.
        """
        selected = tuple(selection)
        values = {
            (choice.hash_algorithm, pcr): self.registers[pcr]
            if choice.hash_algorithm == Alg.SHA256
            else bytes(32)
            for choice in selected
            for pcr in choice.pcrs
        }
        quote = encode_quote(
            qualified_signer=b"\x00\x0b" + hashlib.sha256(b"simulated").digest(),
            extra_data=extra_data,
            clock_info=self.clock_info,
            firmware_version=SIMULATED_FIRMWARE,
            selections=selected,
            pcr_digest=pcr_digest(selected, values),
        )
        return quote, self.sign(quote)

    def sign(self, message: bytes) -> bytes:
        """Sign anything at all with the attestation key, which no real TPM would do."""
        r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(hashes.SHA256())))
        return encode_ecdsa_signature(EcdsaSignature(hash_algorithm=Alg.SHA256, r=r, s=s))


class SimulatedEnrolmentCa:
    """A CA that certifies any key as an attestation key, without looking."""

    def __init__(self, *, now: datetime, name: str = "Simulated enrolment CA") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._not_before = now - timedelta(days=1)
        self._not_after = now + timedelta(days=365)
        self.certificate = self.certify_ca(self.key.public_key(), self._name)

    @property
    def roots(self) -> Roots:
        """Pins for this CA."""
        return Roots(enrolment_cas=(self.certificate,))

    def certify_ca(
        self,
        public_key: ec.EllipticCurvePublicKey,
        name: x509.Name,
        *,
        may_certify: bool = True,
    ) -> x509.Certificate:
        """Issue the certificate of a CA: this one's own, or an intermediate's.

        Without `may_certify` it is a CA whose key is for other uses.
        """
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=may_certify,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        return (
            self._builder(name, self._not_before, self._not_after)
            .public_key(public_key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def certify(
        self,
        public_key: ec.EllipticCurvePublicKey,
        *,
        usages: tuple[x509.ObjectIdentifier, ...] = (TCG_KP_AIK_CERTIFICATE,),
        ca: bool = False,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
    ) -> x509.Certificate:
        """Issue the certificate of an attestation key, or one that fails to be that."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Simulated attestation key")])
        builder = (
            self._builder(name, not_before or self._not_before, not_after or self._not_after)
            .public_key(public_key)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def _builder(
        self, name: x509.Name, not_before: datetime, not_after: datetime
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
        )


@dataclass(slots=True, kw_only=True)
class SimulatedAttester:
    """A worker's attester with all of its secrets, so that tests can lie with them.

    Every field may be replaced before `report` is called; `make` fills them so that the report
    affirms under `cloister.verifier.policy.development`.
    """

    tpm: SimulatedTpm
    ca: SimulatedEnrolmentCa
    chain: tuple[x509.Certificate, ...]
    """The attestation key's certificate, then intermediates, as the report carries them."""
    components: tuple[Component, ...]
    events: tuple[Event, ...]
    claims_document: ClaimsDocument
    keyset: Keyset
    request_key: ServerKey = field(repr=False)
    receipt_key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def make(
        cls,
        *,
        now: datetime,
        components: Iterable[Component] | None = None,
        configuration: JsonObject | None = None,
        keyset_lifetime: timedelta = timedelta(hours=2),
        kem: Kem = Kem.MLKEM768_X25519,
        ca: SimulatedEnrolmentCa | None = None,
        tpm: SimulatedTpm | None = None,
        events: Iterable[Event] | None = None,
    ) -> SimulatedAttester:
        """Measure `components` and `configuration` into a TPM, and make keys.

        `events` replaces the events of the launch, for launches that break the conventions.
        """
        tpm = tpm or SimulatedTpm()
        ca = ca or SimulatedEnrolmentCa(now=now)
        configuration = default_configuration() if configuration is None else configuration
        measured = (
            *(default_components() if components is None else components),
            configuration_component("worker", "1", configuration),
        )
        launch = tuple(launch_events(measured) if events is None else events)
        for event in launch:
            tpm.extend(event)
        document = _claims_document(measured, configuration)
        request_key, receipt_key = ServerKey.generate(1, kem), Ed25519PrivateKey.generate()
        return cls(
            tpm=tpm,
            ca=ca,
            chain=(ca.certify(tpm.key.public_key()),),
            components=measured,
            events=launch,
            claims_document=document,
            keyset=_keyset(document, now + keyset_lifetime, request_key, receipt_key),
            request_key=request_key,
            receipt_key=receipt_key,
        )

    @property
    def roots(self) -> Roots:
        """Pins for the CA that certified the attestation key."""
        return self.ca.roots

    @property
    def reference_values(self) -> ReferenceValues:
        """Reference values that exactly this launch matches."""
        return ReferenceValues.from_components(self.components)

    def report(self, nonce: bytes | None) -> bytes:
        """The report as served for `nonce`, freshly quoted."""
        return self.attestation_report(nonce).encode()

    def attestation_report(
        self, nonce: bytes | None, *, statement: StatementDigest = statement_digest
    ) -> AttestationReport:
        """The report as a record, to change before it is encoded.

        `statement` says for which purpose: a public report, unless another one is named.
        """
        digest = statement(self.keyset.digest, nonce)
        quote, signature = self.tpm.quote(digest)
        return AttestationReport(
            api_version=API_VERSION,
            keyset_digest=self.keyset.digest,
            tee_type=TEE_TYPE_TPM,
            keyset=self.keyset.to_json(),
            report_data=digest,
            evidence={
                ITEM_QUOTE: EvidenceItem(
                    media_type=MEDIA_TYPE_QUOTE, data=quote, endorsements=endorse(self.chain)
                ),
                ITEM_SIGNATURE: EvidenceItem(media_type=MEDIA_TYPE_SIGNATURE, data=signature),
                ITEM_EVENT_LOG: EvidenceItem(
                    media_type=MEDIA_TYPE_EVENT_LOG, data=encode_event_log(self.events)
                ),
                ITEM_CLAIMS: EvidenceItem(
                    media_type=MEDIA_TYPE_CLAIMS, data=self.claims_document.encode()
                ),
            },
            service_capabilities={"supported_e2ee_versions": [], "serving": "direct"},
        )


def endorse(chain: Iterable[x509.Certificate]) -> tuple[Endorsement, ...]:
    """Certificates as endorsements of a quote."""
    return tuple(
        Endorsement(media_type=MEDIA_TYPE_CERTIFICATE, data=certificate.public_bytes(Encoding.DER))
        for certificate in chain
    )


def made_up(kind: ComponentKind, name: str, version: str = "1.0") -> Component:
    """A component whose content is its own name and version."""
    content = f"{kind} {name} {version}".encode()
    return Component(
        kind=kind,
        name=name,
        version=version,
        digest="sha256:" + hashlib.sha256(content).hexdigest(),
    )


def default_components() -> tuple[Component, ...]:
    """A small made-up installation with one model."""
    return (
        made_up(ComponentKind.INTERPRETER, "python", "3.11.2"),
        made_up(ComponentKind.STDLIB, "python", "3.11.2"),
        made_up(ComponentKind.DISTRIBUTION, "cloister"),
        made_up(ComponentKind.DISTRIBUTION, "cryptography", "50.0.2"),
        made_up(ComponentKind.UNOWNED, "bin/activate", ""),
        made_up(ComponentKind.NATIVE, "libllama.so"),
        made_up(ComponentKind.MODEL, "demo"),
    )


def default_configuration() -> JsonObject:
    """A made-up effective configuration that the presets of policy accept."""
    return {
        "debug": False,
        "termination": "worker",
        "managed": True,
        "isolation": {"mode": "sandbox", "layers": ["namespaces", "seccomp"]},
        "separation": "shared",
        "engine": {"context": 4096, "prefix_cache": "off"},
    }


def _claims_document(
    components: tuple[Component, ...], configuration: JsonObject
) -> ClaimsDocument:
    return ClaimsDocument(
        models=tuple(
            ModelClaim(
                name=component.name,
                sha256=component.digest.removeprefix("sha256:"),
                files=_files_of(component.name, components),
            )
            for component in components
            if component.kind is ComponentKind.MODEL
        ),
        configuration=configuration,
        isolation=isolation_mode(configuration) or "",
    )


def _files_of(model: str, components: tuple[Component, ...]) -> Mapping[Role, str]:
    return {
        Role(component.name.removeprefix(f"{model}/")): component.digest.removeprefix("sha256:")
        for component in components
        if component.kind is ComponentKind.MODEL_FILE and component.name.startswith(f"{model}/")
    }


def _keyset(
    document: ClaimsDocument,
    not_after: datetime,
    request_key: ServerKey,
    receipt_key: Ed25519PrivateKey,
) -> Keyset:
    return Keyset(
        subject=document.subject,
        not_after=int(not_after.timestamp()),
        receipt_signing_keys=(
            PublicKeyEntry(
                key_id="receipt-1",
                algo=RECEIPT_ALGORITHM,
                public_key=receipt_key.public_key().public_bytes_raw().hex(),
            ),
        ),
        e2ee_public_keys=(
            PublicKeyEntry(
                key_id="request-1",
                algo=OHTTP_ALGORITHM,
                public_key=request_key.config.encode().hex(),
            ),
        ),
    )
