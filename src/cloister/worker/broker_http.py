"""Requests to the broker over HTTP, bounded in size and time. Nothing rests on the transport."""

from __future__ import annotations

from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from types import TracebackType
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from cloister.channel.rcar import COOKIE
from cloister.errors import ConfigurationError, FetchError
from cloister.streams.address import is_address, parse_address
from cloister.streams.route import Route
from cloister.worker.key_release import MAX_ANSWER_BYTES, Answer

if TYPE_CHECKING:
    import httpx2

TIMEOUT_S: Final = 150.0
"""A thousand workers may stand in line before this one."""


class BrokerHttp:
    """A broker at one address. A context manager; for one thread at a time."""

    def __init__(self, address: str, *, transport: httpx2.BaseTransport | None = None) -> None:
        """`address` is ``http://HOST:PORT`` or ``https://…``, without a path.

        Or any of `cloister.streams.address`: where there is no network, a forwarder carries it.
        ConfigurationError (``broker.address``, ``configuration.address``) if it is another.
        """
        import httpx2

        self._route: Route | None = None
        if is_address(address):
            self._route = Route(parse_address(address))
            if transport is None:
                transport = httpx2.HTTPTransport(uds=self._route.socket_path)
            address = "http://broker.invalid"
        parts = urlsplit(address)
        if parts.scheme not in {"http", "https"} or not parts.netloc or parts.path not in {"", "/"}:
            raise ConfigurationError(
                "a broker's address is http://HOST:PORT or https://HOST:PORT, or vsock://CID:PORT,"
                " unix:/PATH or virtio:/PATH",
                code="broker.address",
            )
        self._client = httpx2.Client(
            base_url=f"{parts.scheme}://{parts.netloc}",
            timeout=TIMEOUT_S,
            transport=transport,
            headers={"accept-encoding": "identity"},
            trust_env=False,
            follow_redirects=False,
        )

    def __enter__(self) -> BrokerHttp:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
        if self._route is not None:
            self._route.close()

    def __call__(
        self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str]
    ) -> Answer:
        """Send one request; FetchError (``broker.unreachable``) if there is no whole answer."""
        import httpx2

        self._client.cookies.clear()  # each request says itself which session it is of
        content = body if method == "POST" else None
        try:
            with self._client.stream(method, path, content=content, headers=headers) as response:
                if response.headers.get("content-encoding", "identity") != "identity":
                    # A few bytes would become more than the bound below in one piece.
                    raise FetchError("the broker's answer is compressed", code="broker.unreachable")
                received = bytearray()
                for chunk in response.iter_bytes():
                    received += chunk
                    if len(received) > MAX_ANSWER_BYTES:
                        raise FetchError(
                            "the broker's answer is too large", code="broker.unreachable"
                        )
                return Answer(
                    status=response.status_code,
                    body=bytes(received),
                    cookie=_cookie(response.headers.get_list("set-cookie")),
                )
        except (httpx2.HTTPError, UnicodeError) as error:
            # The latter where a token or a cookie of the broker's is none that a field can hold.
            raise FetchError(
                f"the broker cannot be reached ({type(error).__name__})", code="broker.unreachable"
            ) from None


def _cookie(lines: list[str]) -> str | None:
    for line in lines:
        jar: SimpleCookie = SimpleCookie()
        try:
            jar.load(line)
        except CookieError:
            continue
        if COOKIE in jar:
            return jar[COOKIE].value
    return None
