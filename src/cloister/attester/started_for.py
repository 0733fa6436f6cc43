"""Whether this machine was started for the manifest that is about to be used on it.

The host chooses HOST_DATA, MRCONFIGID and their like; the hardware only signs what it chose. So a
measured image compares them itself, before it uses the manifest, and halts if they differ: then a
verifier that knows the image also knows which manifest it loaded.

The registers are read from a report that the machine gives about itself. Nothing of it is
authenticated: the image asks its own hardware, over no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cloister.errors import ConfigurationError, MalformedError, UnsupportedError
from cloister.evidence import items
from cloister.evidence.report import EvidenceItem
from cloister.verifier.appraise.worker import MANIFEST_REGISTER, manifest_value

_CODE: Final = "attester.manifest"
_PLATFORMS: Final = {
    items.ITEM_SNP_REPORT: "snp",
    items.ITEM_TDX_QUOTE: "tdx",
    items.ITEM_SGX_QUOTE: "sgx",
    items.ITEM_NITRO_DOCUMENT: "nitro",
}


def require_started_for(evidence: Mapping[str, EvidenceItem], digest: str | None) -> None:
    """Return only if the machine that gave `evidence` was started for the manifest with `digest`.

    `digest` is the SHA-256 of the manifest's canonical bytes, as hexadecimal digits; None asks that
    the machine was started for none, which holds where no register could name one. Whoever calls
    this in a guest halts on any error, and has used nothing of the manifest before.

    Raises:
        ConfigurationError: it was started for another manifest or for none (``attester.manifest``).
        UnsupportedError: evidence of no platform that names a manifest.
        MalformedError: the evidence does not decode.
    """
    if digest is None and _PLATFORMS.keys().isdisjoint(evidence):
        return
    platform, found = _register(evidence)
    register = MANIFEST_REGISTER[platform]
    if digest is None:
        if not any(found):
            return
        raise ConfigurationError(
            f"this machine was started for a manifest, which its {register} names, and was given"
            " none",
            code=_CODE,
        )
    if found == manifest_value(platform, digest, len(found)):
        return
    raise ConfigurationError(
        f"this machine was not started for the manifest with the SHA-256 {digest}: its"
        f" {register} names {'another' if any(found) else 'none'}. Whoever launches it has to give"
        " that digest",
        code=_CODE,
    )


def _register(evidence: Mapping[str, EvidenceItem]) -> tuple[str, bytes]:
    """The platform, and what its register for the manifest holds."""
    named = [(name, platform) for name, platform in _PLATFORMS.items() if name in evidence]
    if len(named) != 1:
        raise UnsupportedError(
            "this machine has no register that names a manifest", code="attester.unsupported"
        )
    name, platform = named[0]
    return platform, _READERS[platform](evidence[name].data)


def _snp(data: bytes) -> bytes:
    from cloister.evidence.snp import parse_report

    return parse_report(data).host_data


def _tdx(data: bytes) -> bytes:
    from cloister.evidence.dcap import parse_quote
    from cloister.evidence.tdx import TdReport

    body = parse_quote(data).body
    if not isinstance(body, TdReport):
        raise MalformedError("the quote is not one of a trust domain")
    return body.mr_config_id


def _sgx(data: bytes) -> bytes:
    from cloister.evidence.dcap import parse_quote
    from cloister.evidence.sgx import EnclaveReport

    body = parse_quote(data).body
    if not isinstance(body, EnclaveReport):
        raise MalformedError("the quote is not one of an enclave")
    return body.config_id


def _nitro(data: bytes) -> bytes:
    from cloister.evidence.nitro import parse_document

    return parse_document(data).pcrs.get(16, b"")


_READERS: Final = {"snp": _snp, "tdx": _tdx, "sgx": _sgx, "nitro": _nitro}
