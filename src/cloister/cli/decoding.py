"""Decodes a file of evidence, whatever it is, into names and values for people and programs.

Decoding only: nothing shown here was authenticated. Records of the parsers are shown field by
field under their own names, which are the vendors'.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cloister.errors import MalformedError
from cloister.evidence.recognise import Kind
from cloister.strictjson import Json, JsonObject, parse_json

MAX_SHOWN_BYTES: Final = 512
"""Longer byte strings are shown by their beginning and length."""
MAX_SHOWN_ENTRIES: Final = 4096

_COPIES: Final = frozenset({"raw", "signed", "certificate"})
"""Fields that repeat what other fields, or the record around them, show."""


def decode(kind: Kind, data: bytes) -> Json:
    """Decode `data` as what it seems to be.

    Raises:
        MalformedError: it is not that.
    """
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise MalformedError(f"nothing here decodes {kind.value}")
    return show(decoder(data))


def show(value: object) -> Json:
    """Any record of a parser as JSON."""
    match value:
        case None | bool() | str():
            return value
        case enum.Enum():
            return f"{value.name} ({value.value})" if isinstance(value, int) else str(value.value)
        case int():
            # Beyond what JSON's readers keep exactly.
            return value if abs(value) < 1 << 53 else hex(value)
        case bytes():
            return _hex(value)
        case datetime():
            return value.isoformat()
        case x509.Certificate():
            return certificate_facts(value)
        case x509.CertificateRevocationList():
            return _list_facts(value)
        case Mapping():
            return {_key(key): show(inner) for key, inner in value.items()}
        case tuple() | list() | frozenset():
            return [show(inner) for inner in list(value)[:MAX_SHOWN_ENTRIES]]
    return _fields(value) if dataclasses.is_dataclass(value) else str(value)


def _fields(record: object) -> JsonObject:
    """A record's fields, without what repeats others: raw bytes, the certificate it is from."""
    if not dataclasses.is_dataclass(record):
        raise TypeError("only records have fields")
    return {
        field.name: show(getattr(record, field.name))
        for field in dataclasses.fields(record)
        if field.name not in _COPIES
    }


def certificate_facts(certificate: x509.Certificate) -> JsonObject:
    """What a certificate says, with the vendors' extensions that platforms are judged by."""
    from cloister.endorsements.certificates import serial_number
    from cloister.endorsements.roots import fingerprint, name_of

    facts: JsonObject = {
        "subject": name_of(certificate),
        "issuer": certificate.issuer.rfc4514_string(),
        "serial_number": hex(serial_number(certificate)),
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "public_key": _key_facts(certificate),
        "sha256": fingerprint(certificate).removeprefix("sha256:"),
    }
    return facts | _vendor_extensions(certificate)


def _vendor_extensions(certificate: x509.Certificate) -> JsonObject:
    from cloister.endorsements.amd import parse_endorsement_key
    from cloister.endorsements.intel_pck import parse_pck_extensions

    found: JsonObject = {}
    parsers: dict[str, Callable[[x509.Certificate], object]] = {
        "amd": parse_endorsement_key,
        "intel_pck": parse_pck_extensions,
    }
    for name, parse in parsers.items():
        with suppress(MalformedError):
            found[name] = _fields(parse(certificate))
    return found


def _key_facts(certificate: x509.Certificate) -> str:
    try:
        key = certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return "unreadable"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA, {key.key_size} bits"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ECDSA on {key.curve.name}"
    return type(key).__name__


def _list_facts(crl: x509.CertificateRevocationList) -> JsonObject:
    until = crl.next_update_utc
    return {
        "issuer": crl.issuer.rfc4514_string(),
        "last_update": crl.last_update_utc.isoformat(),
        "next_update": None if until is None else until.isoformat(),
        "revoked": len(crl),
    }


def _hex(value: bytes) -> str:
    if len(value) <= MAX_SHOWN_BYTES:
        return value.hex()
    return f"{value[:32].hex()}… ({len(value)} bytes)"


def _key(key: object) -> str:
    return key.name.lower() if isinstance(key, enum.Enum) else str(key)


def _snp(data: bytes) -> object:
    from cloister.evidence.snp import parse_report

    return parse_report(data)


def _dcap(data: bytes) -> object:
    from cloister.endorsements.certificates import parse_certificate
    from cloister.evidence.dcap import parse_pem_certificates, parse_quote

    quote = parse_quote(data)
    shown = show(quote)
    if isinstance(shown, dict):
        chain = parse_pem_certificates(quote.certification.data)
        shown["certification"] = [certificate_facts(parse_certificate(der)) for der in chain]
    return shown


def _nitro(data: bytes) -> object:
    from cloister.endorsements.certificates import parse_certificate
    from cloister.evidence.nitro import parse_document, unwrap_document

    document = parse_document(unwrap_document(data))
    shown = show(document)
    if isinstance(shown, dict):
        chain = (document.certificate, *reversed(document.cabundle))
        shown["cabundle"] = [certificate_facts(parse_certificate(der)) for der in chain]
    return shown


def _tpm_quote(data: bytes) -> object:
    from cloister.evidence.tpm import parse_quote

    return parse_quote(data)


def _tpm_signature(data: bytes) -> object:
    from cloister.evidence.tpm import parse_signature

    return parse_signature(data)


def _tpm_public(data: bytes) -> object:
    from cloister.evidence.tpm import parse_public, parse_tpm2b_public

    return (parse_public if data[:1] == b"\0" and data[1] in {1, 0x23} else parse_tpm2b_public)(
        data
    )


def _pcr_file(data: bytes) -> object:
    from cloister.evidence.pcrs import parse_pcrs_file

    return parse_pcrs_file(data)


def _pcr_values(data: bytes) -> object:
    from cloister.evidence.pcrs import parse_pcrs_json

    return parse_pcrs_json(data)


def _event_log(data: bytes) -> object:
    """A boot's log of TPM registers, or a confidential guest's, which is padded."""
    from cloister.evidence.ccel import parse_ccel
    from cloister.evidence.eventlog import (
        is_crypto_agile,
        parse_event_log,
        parse_legacy_event_log,
    )

    if not is_crypto_agile(data):
        return parse_legacy_event_log(data)
    try:
        return parse_event_log(data)
    except MalformedError:
        return parse_ccel(data)


def _dstack_log(data: bytes) -> object:
    from cloister.evidence.dstack import parse_dstack_log

    return parse_dstack_log(data)


def _hcl(data: bytes) -> object:
    from cloister.evidence.hcl import parse_hcl_report

    return parse_hcl_report(data)


def _gpu_report(data: bytes) -> object:
    from cloister.evidence.nvgpu import parse_device_report

    return parse_device_report(data)


def _gpu_list(data: bytes) -> object:
    from cloister.evidence.nvgpu import parse_evidence_list

    return [show(_gpu_report(device.report)) for device in parse_evidence_list(data)]


def _rim(data: bytes) -> object:
    from cloister.evidence.rim import parse_rim

    return parse_rim(data)


def _collateral(data: bytes) -> object:
    from cloister.endorsements.intel import parse_collateral, parse_members

    return parse_members(parse_collateral(data))


def _certificates(data: bytes) -> object:
    from cloister.endorsements.certificates import parse_certificates

    return parse_certificates(data)


def _crl(data: bytes) -> object:
    from cloister.endorsements.certificates import parse_crl

    return parse_crl(data)


def _public_key(data: bytes) -> object:
    from cloister.endorsements.ak import parse_ak_public

    return parse_ak_public(data)


def _signature(data: bytes) -> object:
    return {"signature": data}


def _ocsp(data: bytes) -> object:
    from cryptography.x509 import ocsp

    try:
        answer = ocsp.load_der_ocsp_response(data)
        until = answer.next_update_utc
        return {
            "status": answer.certificate_status.name.lower(),
            "serial_number": hex(answer.serial_number),
            "this_update": answer.this_update_utc,
            "next_update": until,
        }
    except ValueError:
        raise MalformedError("the OCSP response does not decode") from None


def _json(data: bytes) -> object:
    return parse_json(data, limit=len(data), what="the file")


def _report(data: bytes) -> object:
    """A worker's report, and each item of evidence in it decoded in its turn."""
    from cloister.evidence.recognise import recognise
    from cloister.evidence.report import parse_attestation_report

    report = parse_attestation_report(data)
    shown = show(report)
    if isinstance(shown, dict):
        items: JsonObject = {}
        for name, item in report.evidence.items():
            found = recognise(item.data)
            try:
                inner = decode(found.kind, found.data)
            except MalformedError:
                inner = _hex(item.data)
            items[name] = {
                "media_type": item.media_type,
                "endorsements": [entry.media_type for entry in item.endorsements],
                "decoded": inner,
            }
        shown["evidence"] = items
    return shown


_DECODERS: Final[Mapping[Kind, Callable[[bytes], object]]] = {
    Kind.SNP_REPORT: _snp,
    Kind.DCAP_QUOTE: _dcap,
    Kind.NITRO_DOCUMENT: _nitro,
    Kind.TPM_QUOTE: _tpm_quote,
    Kind.TPM_SIGNATURE: _tpm_signature,
    Kind.TPM_PUBLIC: _tpm_public,
    Kind.RSA_SIGNATURE: _signature,
    Kind.PUBLIC_KEY: _public_key,
    Kind.TPM_PCR_FILE: _pcr_file,
    Kind.PCR_VALUES: _pcr_values,
    Kind.EVENT_LOG: _event_log,
    Kind.DSTACK_EVENT_LOG: _dstack_log,
    Kind.DSTACK_COMPOSE: _json,
    Kind.HCL_REPORT: _hcl,
    Kind.GPU_REPORT: _gpu_report,
    Kind.GPU_EVIDENCE_LIST: _gpu_list,
    Kind.RIM: _rim,
    Kind.COLLATERAL: _collateral,
    Kind.PCS_RESPONSE: _json,
    Kind.CERTIFICATES: _certificates,
    Kind.REVOCATION_LIST: _crl,
    Kind.OCSP_RESPONSE: _ocsp,
    Kind.ATTESTATION_REPORT: _report,
    Kind.POLICY: _json,
    Kind.REFERENCE_VALUES: _json,
}
