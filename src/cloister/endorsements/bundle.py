"""Endorsements in one file, for verifiers without a network.

::

    {"format": "cloister-endorsements/1",
     "artefacts": [{"kind": …, "key": …, "sha256": …, "data_b64": …, "issuer_chain": …,
                    "source": …, "fetched_at": …}, …]}

One JSON document in canonical form (RFC 8785), so the same artefacts give the same bytes, and
there are no paths in it to lead anywhere. A bundle is not signed and needs no trust: each
artefact in it is signed by its publisher, which is checked when it is imported and again when it
is used.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from cloister.endorsements.artefact import (
    MAX_BYTES,
    MAX_ISSUER_CHAIN_BYTES,
    Artefact,
    ArtefactKind,
    ArtefactRequest,
)
from cloister.endorsements.contents import make_artefact
from cloister.errors import ConfigurationError, MalformedError
from cloister.strictjson import (
    Json,
    JsonObject,
    canonical,
    decode_base64,
    expect_int,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
    parse_json_object,
)

FORMAT: Final = "cloister-endorsements/1"
MAX_BUNDLE_BYTES: Final = 64 * 1024 * 1024
MAX_ARTEFACTS: Final = 4096

_CODE: Final = "endorsement.bundle"
_MEMBERS: Final = frozenset(
    {"kind", "key", "sha256", "data_b64", "issuer_chain", "source", "fetched_at"}
)


def encode_bundle(artefacts: Iterable[Artefact]) -> bytes:
    """The bundle of `artefacts`, in the order of kind and key.

    Raises:
        ConfigurationError: they are too many or too large for one bundle
            (``endorsement.bundle``).
    """
    chosen = {(one.kind, one.key): one for one in artefacts}
    entries: list[Json] = [_encode(chosen[name]) for name in sorted(chosen)]
    document: JsonObject = {"format": FORMAT, "artefacts": entries}
    data = canonical(document)
    if len(entries) > MAX_ARTEFACTS or len(data) > MAX_BUNDLE_BYTES:
        raise ConfigurationError(
            "too many endorsements for one bundle; choose some with --for", code=_CODE
        )
    return data


def parse_bundle(data: bytes, *, name: str) -> tuple[Artefact, ...]:
    """Decode a bundle of at most `MAX_BUNDLE_BYTES`; `name` is where it came from.

    Every artefact decodes and is about what the bundle says. Nothing is authenticated.

    Raises MalformedError (code ``endorsement.bundle``), and nothing else.
    """
    try:
        members = parse_json_object(data, limit=MAX_BUNDLE_BYTES, what="the bundle")
        if members.get("format") != FORMAT:
            raise MalformedError(f"the bundle is not of the format {FORMAT}")
        expect_keys(members, "the bundle", required={"format", "artefacts"})
        entries = expect_list(members["artefacts"], "artefacts", limit=MAX_ARTEFACTS)
        artefacts = tuple(_artefact(entry) for entry in entries)
    except (MalformedError, ConfigurationError) as error:
        raise MalformedError(f"{name}: {error}", code=_CODE) from None
    if len({one.request for one in artefacts}) != len(artefacts):
        raise MalformedError(f"{name}: two artefacts are for the same request", code=_CODE)
    return artefacts


def _encode(artefact: Artefact) -> JsonObject:
    return {
        "kind": str(artefact.kind),
        "key": artefact.key,
        "sha256": artefact.sha256,
        "data_b64": base64.b64encode(artefact.data).decode("ascii"),
        "issuer_chain": artefact.issuer_chain.decode("ascii"),
        "source": artefact.source,
        "fetched_at": int(artefact.fetched_at.timestamp()),
    }


def _artefact(entry: object) -> Artefact:
    members = expect_object(entry, "an artefact")
    expect_keys(members, "an artefact", required=_MEMBERS)
    request = _request(members)
    data = decode_base64(
        members["data_b64"], limit=MAX_BYTES[request.kind], what=f"{request.kind} {request.key}"
    )
    if hashlib.sha256(data).hexdigest() != members["sha256"]:
        raise MalformedError(f"{request.kind} {request.key} is damaged: its SHA-256 differs")
    return make_artefact(
        request,
        data,
        source=expect_str(members["source"], "source"),
        fetched_at=_time(members["fetched_at"]),
        issuer_chain=_ascii(members["issuer_chain"]),
    )


def _request(members: JsonObject) -> ArtefactRequest:
    kind = expect_str(members["kind"], "kind", limit=64)
    if kind not in list(ArtefactKind):
        raise MalformedError(f"{kind!r} is no kind of artefact that this version knows")
    return ArtefactRequest(kind=ArtefactKind(kind), key=expect_str(members["key"], "key"))


def _ascii(value: object) -> bytes:
    text = expect_str(value, "issuer_chain", limit=MAX_ISSUER_CHAIN_BYTES)
    if not text.isascii():
        raise MalformedError("issuer_chain is not PEM")
    return text.encode("ascii")


def _time(value: object) -> datetime:
    return datetime.fromtimestamp(expect_int(value, "fetched_at", high=1 << 33), UTC)
