"""Rules for every fetch: which hosts, how often, how long, how much.

A service may be slow, gone, broken, overloaded or hostile. Nothing that it answers is trusted,
so the rules are about what it can cost: time, memory, and requests to addresses that it chose.
"""

from __future__ import annotations

import ipaddress
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit

from cloister.endorsements.fetch.transport import HttpAnswer, HttpRequest, Transport
from cloister.errors import ConfigurationError, FetchError

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_BUSY: Final = frozenset({429, 503})
_MAX_URL_CHARACTERS: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """Times in seconds."""

    total_s: float = 30.0
    """For one exchange, from looking up the name to the last byte."""
    attempts: int = 4
    """Exchanges while a service says that it is busy (429, 503)."""
    first_wait_s: float = 1.0
    """Doubles with each attempt; half of it is chance, so that a fleet does not march in step."""
    longest_wait_s: float = 30.0
    """A service that asks for more is left alone, and the caller told so."""
    redirects: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How time passes while a service is busy."""

    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = field(default=random.SystemRandom().random)
    """Between 0 and 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRules:
    """Which addresses may be asked."""

    allowed: frozenset[str] | None = None
    """Names of hosts; a name that begins with a dot stands for every host below it. Without
    any, every host: for services whose address the operator gave."""
    plain_http: bool = False
    """Whether to accept ``http:``, for what is signed and published like that."""
    loopback: bool = False
    """Whether to accept ``http:`` to this very machine (a PCCS beside the worker, a test)."""


class Retriever:
    """Asks one service, or one list of hosts."""

    def __init__(
        self,
        transport: Transport,
        *,
        hosts: HostRules,
        limits: FetchLimits | None = None,
        waiting: Waiting | None = None,
    ) -> None:
        self._transport = transport
        self._hosts = hosts
        self._limits = FetchLimits() if limits is None else limits
        self._waiting = Waiting() if waiting is None else waiting

    def fetch(
        self,
        url: str,
        *,
        limit: int,
        at: datetime,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> HttpAnswer:
        """GET `url`, or POST `body` to it, and return the answer with status 200.

        `at` is now, by which a ``Retry-After`` date is understood.

        Raises:
            FetchError: with the codes of the transport, and ``fetch.status``,
                ``fetch.throttled``, ``fetch.redirect``, ``fetch.content``.
            ConfigurationError: the address is one that must not be asked (``fetch.address``).
        """
        request = HttpRequest(
            url=url, method="GET" if body is None else "POST", headers=headers or {}, body=body
        )
        for attempt in range(self._limits.attempts):
            answer = self._follow(request, limit)
            if answer.status not in _BUSY:
                return self._good(answer, url)
            if attempt + 1 < self._limits.attempts:
                self._wait(answer, attempt, url, at)
        raise FetchError(
            f"{_host(url)} is too busy to answer (HTTP {answer.status}), also after"
            f" {self._limits.attempts} attempts; try again later, or use a copy of your own",
            code="fetch.throttled",
        )

    def _follow(self, request: HttpRequest, limit: int) -> HttpAnswer:
        """One exchange, with redirects on the same host."""
        origin = self._checked(request.url)
        for _ in range(self._limits.redirects + 1):
            answer = self._transport.exchange(request, limit=limit, total_s=self._limits.total_s)
            if answer.status not in _REDIRECTS:
                return answer
            target = urljoin(request.url, answer.headers.get("location", ""))
            if request.body is not None or not _same_origin(origin, target):
                raise FetchError(
                    f"{origin.hostname} sends the question elsewhere, which is not followed",
                    code="fetch.redirect",
                )
            request = HttpRequest(url=target, headers=request.headers)
        raise FetchError(f"{origin.hostname} redirects on and on", code="fetch.redirect")

    def _checked(self, url: str) -> SplitResult:
        parts = _split(url)
        host = parts.hostname or ""
        if parts.scheme == "http":
            permitted = self._hosts.plain_http or (self._hosts.loopback and _is_loopback(host))
        else:
            permitted = parts.scheme == "https"
        if not permitted or not host or parts.username is not None or not self._allows(host):
            raise ConfigurationError(
                f"{url[:200]!r} is not an address that endorsements are fetched from",
                code="fetch.address",
            )
        return parts

    def _allows(self, host: str) -> bool:
        if self._hosts.allowed is None or (self._hosts.loopback and _is_loopback(host)):
            return True
        return any(
            host.endswith(name) if name.startswith(".") else host == name
            for name in self._hosts.allowed
        )

    def _good(self, answer: HttpAnswer, url: str) -> HttpAnswer:
        if answer.status != 200:
            raise FetchError(
                f"{_host(url)} has no such artefact, or will not give it"
                f" (HTTP {answer.status} for {urlsplit(url).path})",
                code="fetch.status",
            )
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            raise FetchError(
                f"{_host(url)} sent a compressed answer that was not asked for",
                code="fetch.content",
            )
        return answer

    def _wait(self, answer: HttpAnswer, attempt: int, url: str, at: datetime) -> None:
        asked = retry_after(answer.headers.get("retry-after"), at)
        if asked is not None and asked > self._limits.longest_wait_s:
            raise FetchError(
                f"{_host(url)} asks to be left alone for {asked:.0f} seconds"
                f" (HTTP {answer.status})",
                code="fetch.throttled",
            )
        usual = min(self._limits.first_wait_s * 2**attempt, self._limits.longest_wait_s)
        spread = usual / 2 * self._waiting.chance()
        self._waiting.sleep(usual / 2 + spread if asked is None else asked + spread)


def retry_after(value: str | None, at: datetime) -> float | None:
    """Seconds that a ``Retry-After`` field asks for (RFC 9110 section 10.2.3), if it is one."""
    if value is None or len(value) > 64:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # numbers that no date has
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - at).total_seconds())


def check_base(url: str) -> str:
    """The address of a service as configured, without a slash at its end.

    Raises:
        ConfigurationError: it has a query, a fragment or credentials (``fetch.address``).
    """
    parts = _split(url)
    if parts.query or parts.fragment or not parts.hostname or parts.username is not None:
        raise ConfigurationError(
            f"{url[:200]!r} is not the address of a service", code="fetch.address"
        )
    return url.rstrip("/")


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = SplitResult("", "", "", "", "")
    if len(url) > _MAX_URL_CHARACTERS or not url.isascii() or not url.isprintable():
        parts = SplitResult("", "", "", "", "")
    return parts


def _same_origin(origin: SplitResult, target: str) -> bool:
    there = _split(target)
    return (
        (there.scheme, there.hostname) == (origin.scheme, origin.hostname)
        and _port(there) == _port(origin)
        and there.username is None
    )


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host(url: str) -> str:
    return urlsplit(url).hostname or "the service"
