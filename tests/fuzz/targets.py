"""Every parser of bytes from outside, with what it may raise, good examples and its bounds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.aws.cms import parse_enveloped_data
from cloister.aws.messages import Message
from cloister.broker.backup import SealedShare
from cloister.channel.claims import parse_claims
from cloister.cli.cases.folder import decode_file
from cloister.endorsements.ak import google_instance, parse_ak_certificate, parse_ak_public
from cloister.endorsements.amd import parse_endorsement_key
from cloister.endorsements.bundle import parse_bundle
from cloister.endorsements.certificates import parse_certificate, parse_certificates, parse_crl
from cloister.endorsements.contents import parse_signed_json
from cloister.endorsements.intel import parse_collateral, parse_members
from cloister.endorsements.intel_pck import parse_pck_extensions
from cloister.endorsements.intel_tcb_info import parse_qe_identity, parse_tcb_info
from cloister.endorsements.nvidia import parse_chain
from cloister.endorsements.ocsp import parse_ocsp
from cloister.errors import AuthenticationError, CloisterError, ConfigurationError, MalformedError
from cloister.evidence.cbor import parse_cbor
from cloister.evidence.ccel import parse_ccel
from cloister.evidence.component import parse_component
from cloister.evidence.dcap import parse_pem_certificates, parse_quote
from cloister.evidence.dstack import parse_dstack_log
from cloister.evidence.eventlog import parse_event_log, parse_legacy_event_log
from cloister.evidence.hcl import parse_hcl_report, parse_runtime_data
from cloister.evidence.nitro import parse_document, unwrap_document
from cloister.evidence.nvgpu import parse_device_report, parse_evidence_list, split_pem
from cloister.evidence.pcrs import parse_pcrs_file, parse_pcrs_json
from cloister.evidence.recognise import recognise
from cloister.evidence.report import parse_attestation_report
from cloister.evidence.rim import parse_rim, parse_signed_content
from cloister.evidence.sgx import parse_enclave_report
from cloister.evidence.snp import parse_certificate_table
from cloister.evidence.snp import parse_report as parse_snp_report
from cloister.evidence.spdm import parse_measurements
from cloister.evidence.spdm import parse_report as parse_spdm_report
from cloister.evidence.tdx import parse_td_report
from cloister.evidence.tpm import parse_public, parse_signature, parse_tpm2b_public
from cloister.evidence.tpm import parse_quote as parse_tpm_quote
from cloister.streams.frames import FrameReader, Kind, encode_greeting
from cloister.verifier import policy, reference_values

EVIDENCE: Final = Path(__file__).parents[3] / "shared" / "evidence"
KIB: Final = 1024

Parse = Callable[[bytes], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One parser."""

    parse: Parse
    examples: str
    """Which recorded files are examples of it: a pattern over their paths below the folder."""
    longest: int
    """Bytes to fuzz with; of more than a parser takes, there is nothing to learn."""
    per_byte: int = 32
    """Bytes of memory that it may take for each byte of input…"""
    at_least: int = 256 * KIB
    """… beyond this many, at its worst moment."""
    raises: type[CloisterError] = MalformedError
    words: tuple[bytes, ...] = ()
    """What the format is made of: names, magic numbers."""

    def memory(self, size: int) -> int:
        """Bytes of memory that `size` bytes of input may cost."""
        return self.at_least + self.per_byte * size


def _both(first: Callable[[bytes], object], second: Callable[..., object]) -> Parse:
    return lambda data: second(first(data))


def _cbor(data: bytes) -> object:
    return parse_cbor(data, limit=32 * KIB, depth=8, what="the fuzzed CBOR", indefinite=True)


def _nitro(data: bytes) -> object:
    return parse_document(unwrap_document(data))


def _spdm(data: bytes) -> object:
    return parse_measurements(parse_spdm_report(data))


def _ak(data: bytes) -> object:
    return google_instance(parse_ak_certificate(data))


def _signed_json(data: bytes) -> object:
    return parse_signed_json(data, "tcbInfo")


def _bundle(data: bytes) -> object:
    return parse_bundle(data, name="the fuzzed bundle")


def _share(data: bytes) -> object:
    try:
        return SealedShare.parse(data)
    except AuthenticationError as error:  # its signature is checked where it is read
        raise MalformedError(str(error)) from None


def _frames(data: bytes) -> object:
    """What a reader makes of it that is out of step, and one that is in step."""
    return FrameReader().feed(data), FrameReader().feed(encode_greeting(Kind.HELLO) + data)


def _chain(data: bytes) -> object:
    return parse_chain(split_pem(data))


_JSON: Final = (b"{}", b"[]", b'""', b"null", b"1e9", b"\\u0000", b'{"":', b"-1", b"[[[[")
_COLLATERAL: Final = (
    b'"pck_crl_issuer_chain"',
    b'"root_ca_crl"',
    b'"tcb_info"',
    b'"tcbLevels"',
    b'"tdxModuleIdentities"',
    b'"fmspc"',
)
_DER: Final = (b"\x30\x82", b"\x06\x09", b"\x02\x01\x00", b"\xa0\x03\x02\x01\x02", b"\x55\x1d\x13")
_PEM: Final = (b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----", b"\n")
_TPM: Final = (b"\xffTCG", b"\x80\x18", b"\x00\x0b", b"\x00\x14", b"\x00\x23", b"\x00\x18")
_LOG: Final = (b"Spec ID Event03\0", b"StartupLocality\0", b"\x0b\0\x20\0", b"\xff\xff\xff\xff")
_TOML: Final = (b"[[", b"]]", b"'''", b'"""', b"= ", b"0x", b"inf", b"1979-05-27T07:32:00Z", b"{")
_CBOR: Final = (b"\x84", b"\x9f", b"\xbf", b"\xff", b"\xd2\x84\x44\xa1\x01\x38\x22\xa0", b"\x5b")

TARGETS: Final[dict[str, Target]] = {
    "snp_report": Target(parse=parse_snp_report, examples=r"^snp/.*report", longest=1200),
    "snp_certificate_table": Target(
        parse=parse_certificate_table, examples=r"simulated/snp_table", longest=8 * KIB
    ),
    "dcap_quote": Target(
        parse=parse_quote, examples=r"^(tdx|sgx)/.*quote", longest=8 * KIB, words=_PEM
    ),
    "sgx_enclave_report": Target(
        parse=parse_enclave_report, examples=r"simulated/enclave_report", longest=512
    ),
    "td_report": Target(parse=parse_td_report, examples=r"simulated/td_report", longest=1200),
    "pem_certificates": Target(
        parse=parse_pem_certificates, examples=r"\.pem$", longest=8 * KIB, words=_PEM
    ),
    "certificates": Target(
        parse=parse_certificates, examples=r"\.(pem|der)$", longest=8 * KIB, words=(*_PEM, *_DER)
    ),
    "crl": Target(parse=parse_crl, examples=r"crl", longest=4 * KIB, words=_DER),
    "ocsp": Target(parse=parse_ocsp, examples=r"ocsp", longest=4 * KIB, words=_DER),
    "pck_extensions": Target(
        parse=_both(parse_certificate, parse_pck_extensions),
        examples=r"simulated/pck",
        longest=4 * KIB,
        words=_DER,
    ),
    "amd_extensions": Target(
        parse=_both(parse_certificate, parse_endorsement_key),
        examples=r"(vcek|vlek)\.der|simulated/vcek",
        longest=4 * KIB,
        words=_DER,
    ),
    "nvidia_chain": Target(parse=_chain, examples=r"nvidia.*\.pem", longest=8 * KIB, words=_PEM),
    "cbor": Target(parse=_cbor, examples=r"\.cbor$", longest=8 * KIB, words=_CBOR, per_byte=512),
    "nitro_document": Target(
        parse=_nitro,
        examples=r"^nitro/|simulated/nitro",
        longest=8 * KIB,
        words=_CBOR,
        per_byte=512,
    ),
    "tpm_quote": Target(
        parse=parse_tpm_quote, examples=r"quote.*\.msg$", longest=1 * KIB, words=_TPM
    ),
    "tpm_signature": Target(
        parse=parse_signature, examples=r"quote.*\.sig$", longest=1 * KIB, words=_TPM
    ),
    "tpm_public": Target(parse=parse_public, examples=r"tpmt_public$", longest=1 * KIB, words=_TPM),
    "tpm2b_public": Target(
        parse=parse_tpm2b_public, examples=r"tpm2b_public$", longest=1 * KIB, words=_TPM
    ),
    "ak_public": Target(
        parse=parse_ak_public, examples=r"(ak|ek)\..*(public|pem)$", longest=1 * KIB, words=_TPM
    ),
    "ak_certificate": Target(
        parse=_ak, examples=r"ak_cert.*\.(der|bin)$", longest=4 * KIB, words=_DER
    ),
    "event_log": Target(
        parse=parse_event_log, examples=r"eventlog\.bin$", longest=48 * KIB, words=_LOG
    ),
    "legacy_event_log": Target(
        parse=parse_legacy_event_log,
        examples=r"(arch|debian).*eventlog",
        longest=24 * KIB,
        words=_LOG,
    ),
    "ccel": Target(parse=parse_ccel, examples=r"simulated/ccel", longest=32 * KIB, words=_LOG),
    "dstack_log": Target(
        parse=parse_dstack_log,
        examples=r"^dstack/.*event_log\.json",
        longest=16 * KIB,
        words=(*_JSON, b'"imr"', b'"event_type"', b"134217729"),
        per_byte=256,
    ),
    "hcl_report": Target(parse=parse_hcl_report, examples=r"hcl_report", longest=4 * KIB),
    "hcl_runtime_data": Target(
        parse=parse_runtime_data,
        examples=r"runtime_data",
        longest=4 * KIB,
        words=_JSON,
        per_byte=256,
    ),
    "pcr_file": Target(parse=parse_pcrs_file, examples=r"quotepcr", longest=2 * KIB, words=_TPM),
    "pcr_json": Target(
        parse=parse_pcrs_json,
        examples=r"pcrs.*\.json$",
        longest=4 * KIB,
        words=_JSON,
        per_byte=256,
    ),
    "spdm_report": Target(
        parse=_spdm, examples=r"nvidia.*report.*\.(hex|bin)$", longest=8 * KIB, per_byte=64
    ),
    "nvgpu_report": Target(
        parse=parse_device_report,
        examples=r"nvidia.*report.*\.(hex|bin)$",
        longest=8 * KIB,
        per_byte=64,
    ),
    "nvgpu_list": Target(
        parse=parse_evidence_list,
        examples=r"evidence.json$",
        longest=24 * KIB,
        words=_JSON,
        per_byte=256,
    ),
    "rim": Target(
        parse=parse_rim,
        examples=r"\.xml$",
        longest=32 * KIB,
        words=(b"<!DOCTYPE", b"<!--", b"]]>", b"&#x0;", b'xmlns="', b"Hash0", b"<?", b"</"),
        per_byte=256,
    ),
    "rim_content": Target(
        parse=parse_signed_content,
        examples=r"simulated/rim_content",
        longest=32 * KIB,
        per_byte=256,
    ),
    "collateral": Target(
        parse=_both(parse_collateral, parse_members),
        examples=r"collateral\.json$",
        longest=24 * KIB,
        words=(*_JSON, *_COLLATERAL),
        per_byte=256,
        at_least=1024 * KIB,
    ),
    "tcb_info": Target(
        parse=parse_tcb_info,
        examples=r"simulated/tcb_info",
        longest=16 * KIB,
        words=(*_JSON, *_COLLATERAL),
        per_byte=256,
    ),
    "qe_identity": Target(
        parse=parse_qe_identity,
        examples=r"simulated/qe_identity",
        longest=8 * KIB,
        words=(*_JSON, *_COLLATERAL),
        per_byte=256,
    ),
    "signed_json": Target(
        parse=_signed_json, examples=r"pcs_tcbinfo", longest=8 * KIB, words=_JSON
    ),
    "bundle": Target(
        parse=_bundle, examples=r"simulated/bundle", longest=16 * KIB, words=_JSON, per_byte=256
    ),
    "attestation_report": Target(
        parse=parse_attestation_report,
        examples=r"simulated/report",
        longest=16 * KIB,
        words=(*_JSON, b'"attestation"', b'"evidence"', b'"data_b64"'),
        per_byte=256,
    ),
    "component": Target(
        parse=parse_component,
        examples=r"simulated/component",
        longest=4 * KIB,
        words=_JSON,
        per_byte=256,
    ),
    "claims_document": Target(
        parse=parse_claims,
        examples=r"simulated/claims",
        longest=4 * KIB,
        words=_JSON,
        per_byte=256,
    ),
    "kms_envelope": Target(
        parse=parse_enveloped_data,
        examples=r"simulated/kms_envelope",
        longest=4 * KIB,
        words=(b"\x30\x80", b"\x24\x80", b"\x00\x00", b"\xa0\x80", b"\x04\x82", b"\x80\x10"),
        per_byte=256,
    ),
    "kms_message": Target(
        parse=Message.parse,
        examples=r"simulated/kms_message",
        longest=4 * KIB,
        words=_JSON,
        per_byte=256,
    ),
    "broker_share": Target(
        parse=_share,
        examples=r"simulated/broker_share",
        longest=8 * KIB,
        words=_JSON,
        per_byte=256,
    ),
    "mux_frames": Target(
        parse=_frames,
        examples=r"simulated/mux",
        longest=32 * KIB,
        words=(
            encode_greeting(Kind.WELCOME)[-40:],
            b"\x05\x00\x00\x01\x00\x00\x00\x01x",
            b"\x04\x00\x00\x00\x00\x00\x00\x02",
            b"cloister.mux/1\r\n",
        ),
        per_byte=128,
    ),
    "recognise": Target(parse=recognise, examples=r".", longest=16 * KIB, per_byte=256),
    "policy_json": Target(
        parse=policy.load_json,
        examples=r"simulated/policy\.json",
        longest=8 * KIB,
        raises=ConfigurationError,
        words=_JSON,
        per_byte=256,
    ),
    "policy_toml": Target(
        parse=policy.load_toml,
        examples=r"simulated/policy\.toml",
        longest=8 * KIB,
        raises=ConfigurationError,
        words=_TOML,
        per_byte=1024,
    ),
    "reference_values_json": Target(
        parse=reference_values.load_json,
        examples=r"simulated/values\.json",
        longest=16 * KIB,
        raises=ConfigurationError,
        words=_JSON,
        per_byte=256,
    ),
    "reference_values_toml": Target(
        parse=reference_values.load_toml,
        examples=r"simulated/values\.toml",
        longest=16 * KIB,
        raises=ConfigurationError,
        words=_TOML,
        per_byte=1024,
    ),
}


def examples(target: Target) -> Iterator[bytes]:
    """Good examples, recorded and simulated, as bytes and, of text files, as what they encode."""
    from fuzz.simulated import simulated_examples

    pattern = re.compile(target.examples)
    for name, data in simulated_examples().items():
        if pattern.search(name):
            yield data
    for path in sorted(EVIDENCE.glob("*/*/*")):
        name = path.relative_to(EVIDENCE).as_posix()
        if path.name != "case.json" and pattern.search(name):
            data = path.read_bytes()
            yield from {data, decode_file(data, "hex-text")}
