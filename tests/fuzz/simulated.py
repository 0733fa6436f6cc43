"""Examples of what recorded evidence has none of, or where there is no recorded evidence."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.aws.messages import Message
from cloister.broker.backup import make_backup
from cloister.broker.owner_keys import OwnerKey
from cloister.endorsements.bundle import encode_bundle
from cloister.endorsements.roots import Vendor
from cloister.evidence.dcap import parse_quote
from cloister.evidence.nitro import DocumentKind
from cloister.evidence.snp import CertificateKind
from cloister.streams.frames import Kind, encode_credit, encode_frame, encode_greeting
from cloister.testing.simulated_azure import SimulatedAzure
from cloister.testing.simulated_dcap import SimulatedIntel
from cloister.testing.simulated_kms_envelope import STYLES, seal_envelope
from cloister.testing.simulated_nitro import SimulatedNitro
from cloister.testing.simulated_nvgpu import SimulatedNvidia, golden, rim_text
from cloister.testing.simulated_snp import SimulatedAmd, certificate_table
from cloister.testing.simulated_tpm import SimulatedAttester
from cloister.testing.simulated_vtpm import SimulatedAkVendor, SimulatedVtpm
from cloister.verifier import policy
from support.kms import RSA_KEY
from support.ocsp import answer
from support.tdx_logs import boot, ccel

NOW: Final = datetime(2026, 6, 1, 12, tzinfo=UTC)
NONCE: Final = bytes(range(32))


@cache
def simulated_examples() -> dict[str, bytes]:
    """By name; targets choose with a pattern."""
    return {f"simulated/{name}": data for name, data in _all().items()}


def _all() -> dict[str, bytes]:
    return {**_amd(), **_intel(), **_others(), **_vtpm(), **_worker(), **_keys(), **_streams()}


def _amd() -> dict[str, bytes]:
    amd = SimulatedAmd(now=NOW)
    key = amd.key()
    ask, ark = amd.authorities()
    table = certificate_table(
        {CertificateKind.VCEK: key.certificate, CertificateKind.ASK: ask, CertificateKind.ARK: ark}
    )
    return {
        "snp_report": amd.report(key),
        "snp_table": table,
        "vcek.der": key.certificate,
        "crl": amd.crl(),
    }


def _intel() -> dict[str, bytes]:
    intel = SimulatedIntel(now=NOW)
    platform, collateral = intel.platform(), intel.collateral()
    tdx, sgx = platform.tdx_quote(), platform.sgx_quote()
    quote = parse_quote(tdx)
    return {
        "tdx_quote": tdx,
        "td15_quote": platform.tdx_quote(version=5, td15=True),
        "sgx_quote": sgx,
        "enclave_report": sgx[48:432],
        "td_report": tdx[48:632],
        "td15_report": platform.tdx_quote(version=5, td15=True)[54:702],
        "pck.der": quote.certification.certificates[0],
        "chain.pem": quote.certification.data,
        "collateral.json": collateral.encode(),
        "tcb_info.json": collateral.tcb_info,
        "qe_identity.json": collateral.qe_identity,
        "intel_crl": collateral.pck_crl,
    }


def _others() -> dict[str, bytes]:
    nvidia = SimulatedNvidia.make(now=NOW)
    gpu = nvidia.device()
    return {
        "nitro.cbor": SimulatedNitro(now=NOW).document(user_data=NONCE),
        "nitro_tpm.cbor": SimulatedNitro(now=NOW).document(
            kind=DocumentKind.NITRO_TPM, user_data=NONCE
        ),
        "nvidia_report.bin": gpu.report(NONCE),
        "driver_rim.xml": nvidia.driver_rim(gpu),
        "rim_content": rim_text(golden(gpu, range(4)), version="550.90.07", size=5).encode(),
        "ocsp": answer(),
        "nvidia_leaf.der": gpu.leaf.certificate.public_bytes(Encoding.DER),
        "hcl_report": SimulatedAzure.make(now=NOW).hcl_report(),
    }


def _vtpm() -> dict[str, bytes]:
    vtpm, vendor = SimulatedVtpm(), SimulatedAkVendor(Vendor.TPM_MANUFACTURER, now=NOW)
    vtpm.boot()
    quote, log = vtpm.quote(NONCE), vtpm.event_log()
    return {
        "quote.msg": quote.quote,
        "quote.sig": quote.signature,
        "tpmt_public": vtpm.public(),
        "tpm2b_public": len(vtpm.public()).to_bytes(2, "big") + vtpm.public(),
        "ak_cert.der": vendor.certify(vtpm.key.public_key(), padding_bytes=8),
        "eventlog.bin": log,
        "ccel": ccel(boot()),
        "bundle": encode_bundle(()),
    }


def _worker() -> dict[str, bytes]:
    worker = SimulatedAttester.make(now=NOW)
    report = worker.attestation_report(NONCE)
    values = worker.reference_values
    return {
        "report.json": report.encode(),
        "component.json": worker.components[0].encode(),
        "claims.json": report.evidence["claims"].data,
        "policy.json": policy.strict().dump_json().encode(),
        "policy.toml": policy.strict().dump_toml().encode(),
        "values.json": values.dump_json().encode(),
        "values.toml": values.dump_toml().encode(),
    }


def _keys() -> dict[str, bytes]:
    message = Message(
        context={"format": "cloister.kms-message/1", "id": "00" * 16, "made_at": "1"},
        wrapped_key=bytes(180),
        nonce=bytes(12),
        ciphertext=bytes(100),
    )
    owners = [OwnerKey(name=name, seed=name.encode() * 8).owner for name in ("Adam", "Bert")]
    share, _ = make_backup(
        bytes(32),
        store_id="0" * 32,
        identity_key=Ed25519PrivateKey.from_private_bytes(bytes(32)),
        owners=owners,
        threshold=2,
        now=1,
    )
    return {
        **{
            f"kms_envelope/{name}": seal_envelope(bytes(40), RSA_KEY.public_key(), style)
            for name, style in STYLES.items()
        },
        "kms_message": message.encode(),
        "broker_share": share.encode(),
    }


def _streams() -> dict[str, bytes]:
    frames = [encode_frame(Kind.OPEN, 1), encode_frame(Kind.DATA, 1, b"x" * 100)]
    frames += [encode_credit(1, 100), encode_frame(Kind.END, 1), encode_frame(Kind.RESET, 1)]
    return {
        "mux_frames": b"".join(frames),
        "mux_greetings": encode_greeting(Kind.HELLO)[-100:] + encode_greeting(Kind.LOST)[-48:],
    }
