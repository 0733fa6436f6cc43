"""Attestation reports, made apart from inference.

A quote takes a TPM or a secure processor tens of milliseconds, and anybody may ask for one. So
reports with a nonce are made one after the other from a bounded queue, each source of requests
has a rate limit, and the report without a nonce (which proves no freshness) is cached.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol
from urllib.parse import parse_qsl

from cloister.channel.claims import ClaimsDocument
from cloister.channel.receipt import API_VERSION
from cloister.channel.statement import statement_digest
from cloister.evidence.report import (
    ITEM_CLAIMS,
    ITEM_MANIFEST,
    MEDIA_TYPE_CLAIMS,
    MEDIA_TYPE_MANIFEST,
    AttestationReport,
    EvidenceItem,
)
from cloister.strictjson import JsonObject
from cloister.worker import problems
from cloister.worker.keys import Generation, KeyRing
from cloister.worker.logs import EventLog
from cloister.worker.metrics import Metrics
from cloister.worker.problems import RefusedError
from cloister.worker.rate import RateLimiter
from cloister.worker.response import Scope
from cloister.worker.settings import Clocks, ReportSettings

_NONCE: Final = re.compile(r"[0-9a-f]{64}")
_MAX_QUERY: Final = 1024
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
"""RFC 6052, section 2.1: the IPv4 address is the last 32 bits."""
_CAPABILITIES: Final[JsonObject] = {
    "supported_e2ee_versions": [],
    "serving": "direct",
    "ohttp": "chunked",
}


class EvidenceSource(Protocol):
    """What asks the machine for evidence (`cloister.attester.quote`)."""

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        """Evidence that binds these 32 bytes. Called in a thread, one call at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cached:
    """A report without a nonce, of the keyset with this digest, for as long as it serves all."""

    digest: str
    body: bytes
    until: float


class ReportService:
    """Makes reports, one at a time."""

    def __init__(
        self,
        *,
        source: EvidenceSource,
        tee_type: str,
        claims: ClaimsDocument,
        keys: KeyRing,
        settings: ReportSettings,
        clocks: Clocks,
        log: EventLog,
        metrics: Metrics,
        provenance: JsonObject | None = None,
        boot_evidence: Mapping[str, EvidenceItem] | None = None,
        manifest: bytes | None = None,
    ) -> None:
        self._source = source
        self._unchanging = dict(boot_evidence or {})
        if manifest is not None:
            self._unchanging[ITEM_MANIFEST] = EvidenceItem(
                media_type=MEDIA_TYPE_MANIFEST, data=manifest
            )
        self._tee_type = tee_type
        self._claims = EvidenceItem(media_type=MEDIA_TYPE_CLAIMS, data=claims.encode())
        self._keys = keys
        self._settings = settings
        self._clocks = clocks
        self._log = log
        self._metrics = metrics
        self._provenance = provenance
        self._rates = RateLimiter(settings.per_source, max_names=settings.max_sources)
        self._turn = asyncio.Lock()
        # One thread of its own: a device that hangs must not take those of others with it, one
        # for each request that gives up waiting.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cloister-quote")
        self._waiting = 0
        self._cached: _Cached | None = None

    async def report(self, scope: Scope) -> tuple[bytes, str]:
        """The report's JSON and its keyset digest, for one request. May raise RefusedError."""
        nonce = read_nonce(scope.get("query_string", b""))
        wait = self._rates.take(source_of(scope), self._clocks.steady())
        if wait:
            raise RefusedError(problems.reports_limited(wait))
        generation = self._keys.current
        cached = self._cached
        if nonce is None and cached is not None and self._fresh(cached, generation):
            return cached.body, cached.digest
        if self._waiting >= self._settings.max_waiting:
            raise RefusedError(problems.REPORT_BUSY)
        self._waiting += 1
        try:
            async with asyncio.timeout(self._settings.timeout_s), self._turn:
                return await self._make(nonce)
        except TimeoutError:
            raise RefusedError(problems.REPORT_BUSY) from None
        except RefusedError:
            raise
        except Exception as error:
            self._log.failure("report.failed", error)
            raise RefusedError(problems.REPORT_FAILED) from None
        finally:
            self._waiting -= 1

    def _fresh(self, cached: _Cached, generation: Generation) -> bool:
        return cached.digest == generation.digest and self._clocks.steady() < cached.until

    async def _make(self, nonce: bytes | None) -> tuple[bytes, str]:
        generation = self._keys.current  # again: keys may have changed while this waited
        cached = self._cached
        if nonce is None and cached is not None and self._fresh(cached, generation):
            return cached.body, cached.digest
        digest = statement_digest(generation.digest, nonce)
        loop = asyncio.get_running_loop()
        items = await loop.run_in_executor(self._thread, self._source.quote, digest)
        body = AttestationReport(
            api_version=API_VERSION,
            keyset_digest=generation.digest,
            tee_type=self._tee_type,
            keyset=generation.keyset.to_json(),
            report_data=digest,
            evidence={**self._unchanging, **items, ITEM_CLAIMS: self._claims},
            source_provenance=self._provenance,
            service_capabilities=_CAPABILITIES,
        ).encode()
        self._metrics.reports.inc()
        if nonce is None:
            until = self._clocks.steady() + self._settings.unchallenged_s
            self._cached = _Cached(digest=generation.digest, body=body, until=until)
        return body, generation.digest


def read_nonce(query: bytes) -> bytes | None:
    """The 32-byte nonce of a query string, ``None`` without one (`aci/1` section 3.2)."""
    if not query:
        return None
    if len(query) > _MAX_QUERY:
        raise RefusedError(problems.BAD_NONCE)
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=8)
    except (UnicodeDecodeError, ValueError):
        raise RefusedError(problems.BAD_NONCE) from None
    values = [value for name, value in pairs if name == "nonce"]
    if not values:
        return None
    if len(values) > 1 or _NONCE.fullmatch(values[0]) is None:
        raise RefusedError(problems.BAD_NONCE)
    return bytes.fromhex(values[0])


def source_of(scope: Scope) -> str:
    """The network a request came from: an IPv4 address, or the /64 of an IPv6 address.

    An IPv4 address in an IPv6 one (mapped, or translated by NAT64) is that IPv4 address: one /64
    would be all of them.
    """
    client = scope.get("client")
    return _network(client[0]) if client else "unix"


@lru_cache(maxsize=1024)
def _network(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        if address in _NAT64:
            return str(ipaddress.IPv4Address(address.packed[12:]))
        return str(ipaddress.ip_network((address, 64), strict=False).network_address)
    return str(address)
