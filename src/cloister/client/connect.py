"""Ways to begin: a verified connection, blocking or asynchronous."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import httpx2

from cloister.client.attestation import Verifier
from cloister.client.connection import TIMEOUT, AsyncConnection, Connection
from cloister.client.httpx2_transport import AsyncHttpx2Transport, Httpx2Transport
from cloister.client.link import ExchangeHook
from cloister.client.settings import ClientSettings
from cloister.client.trust import make_verifier

if TYPE_CHECKING:
    from cloister.client.manifest_memory import ManifestMemory
    from cloister.client.manifest_options import ManifestOptions, SignerLike
    from cloister.endorsements.roots import Roots
    from cloister.verifier.policy import AppraisalPolicy
    from cloister.verifier.reference_values import ReferenceValues


class TrustOptions(TypedDict, total=False):
    """What a report is checked against; see `cloister.client.trust.make_trust`."""

    kit: str | Path | None
    policy: AppraisalPolicy | None
    reference_values: ReferenceValues | None
    roots: Roots | None
    development: bool


class ManifestTrustOptions(TypedDict, total=False):
    """Whose manifest to trust; see `cloister.client.manifest_options.ManifestOptions`."""

    signer: SignerLike | Sequence[SignerLike] | None
    minimum_version: int | None
    manifest: str | Path | None
    """A bundle's file."""
    manifest_name: str | None
    manifest_digest: str | None
    manifest_memory: str | Path | ManifestMemory | None
    unsafe_unsigned_manifest: bool
    sigstore_root: str | Path | None


class Options(TrustOptions, ManifestTrustOptions, total=False):
    """All options of a connection."""

    verifier: Verifier | None
    """Instead of everything a report is checked against: something that checks it itself."""
    settings: ClientSettings | None
    on_exchange: ExchangeHook | None
    """Called with every completed `SealedExchange`, receipt checked, by whoever read its end."""
    proxy: str | None
    """A forward proxy's URL, instead of the environment's."""
    trust_env: bool
    """Whether proxies are taken from the environment; they are by default."""
    tls: ssl.SSLContext | None


def connect(url: str, **options: Unpack[Options]) -> Connection:
    """Verify the worker at `url` and return a connection to it.

    Raises:
        AppraisalError, AuthenticationError, UnsupportedError: the evidence is not affirmed.
        FetchError: no report could be had.
        ConfigurationError: an option is missing or contradicts another.
    """
    connection = open_connection(url, **options)
    try:
        connection.verify().require_affirming()
    except BaseException:
        connection.close()
        raise
    return connection


async def aconnect(url: str, **options: Unpack[Options]) -> AsyncConnection:
    """As `connect`, asynchronous."""
    connection = open_async_connection(url, **options)
    try:
        (await connection.verify()).require_affirming()
    except BaseException:
        await connection.aclose()
        raise
    return connection


def open_connection(
    url: str, *, inner: httpx2.BaseTransport | None = None, **options: Unpack[Options]
) -> Connection:
    """A connection that verifies the worker at its first use; `inner` as for the transport."""
    transport = make_transport(url, inner, options)
    root = transport.link.address.root
    return Connection(transport, httpx2.Client(transport=transport, base_url=root, timeout=TIMEOUT))


def open_async_connection(
    url: str, *, inner: httpx2.AsyncBaseTransport | None = None, **options: Unpack[Options]
) -> AsyncConnection:
    """As `open_connection`, asynchronous."""
    transport = make_async_transport(url, inner, options)
    root = transport.link.address.root
    return AsyncConnection(
        transport, httpx2.AsyncClient(transport=transport, base_url=root, timeout=TIMEOUT)
    )


def make_transport(
    url: str, inner: httpx2.BaseTransport | None, options: Options
) -> Httpx2Transport:
    """The transport that `options` describe."""
    return Httpx2Transport(
        url,
        _verifier(options),
        inner=inner,
        settings=options.get("settings"),
        on_exchange=options.get("on_exchange"),
        proxy=options.get("proxy"),
        trust_env=options.get("trust_env", True),
        tls=options.get("tls"),
    )


def make_async_transport(
    url: str, inner: httpx2.AsyncBaseTransport | None, options: Options
) -> AsyncHttpx2Transport:
    """As `make_transport`, asynchronous."""
    return AsyncHttpx2Transport(
        url,
        _verifier(options),
        inner=inner,
        settings=options.get("settings"),
        on_exchange=options.get("on_exchange"),
        proxy=options.get("proxy"),
        trust_env=options.get("trust_env", True),
        tls=options.get("tls"),
    )


def _verifier(options: Options) -> Verifier:
    given = options.get("verifier")
    if given is not None:
        return given
    return make_verifier(
        _manifest(options),
        kit=options.get("kit"),
        policy=options.get("policy"),
        reference_values=options.get("reference_values"),
        roots=options.get("roots"),
        development=options.get("development", False),
    )


def _manifest(options: Options) -> ManifestOptions | None:
    if not ManifestTrustOptions.__annotations__.keys() & options.keys():
        return None  # nothing of manifests is imported
    from cloister.client.manifest_options import ManifestOptions

    signer = options.get("signer")
    if signer is None:
        signers: tuple[SignerLike, ...] = ()
    elif isinstance(signer, Sequence) and not isinstance(signer, str):
        signers = tuple(signer)
    else:
        signers = (signer,)
    return ManifestOptions(
        signers=signers,
        bundle=options.get("manifest"),
        digest=options.get("manifest_digest"),
        minimum_version=options.get("minimum_version"),
        name=options.get("manifest_name"),
        memory=options.get("manifest_memory"),
        unsafe_unsigned=options.get("unsafe_unsigned_manifest", False),
        sigstore_root=options.get("sigstore_root"),
    )
