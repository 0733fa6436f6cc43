"""The official OpenAI SDK's own clients, with a verifying transport inside.

Nothing of the SDK is wrapped or hidden: the objects returned are of the classes ``openai.OpenAI``
and ``openai.AsyncOpenAI`` themselves. Four things are set on each instance: requests carry the
SDK's idempotency key, the same on each of its retries, so that a retry never runs a prompt twice;
``copy`` and ``with_options`` hand all this on; `connection_of` finds what is underneath; and web
sockets, which the SDK opens past its HTTP client, have nowhere to go.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import httpx2

from cloister.client.connect import Options, make_async_transport, make_transport
from cloister.client.connection import AsyncConnection, Connection
from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    import openai

    from cloister.channel.receipt import Receipt

PLACEHOLDER_KEY = "unused"
"""The SDK insists on a key; a worker that wants none ignores it."""

_ATTRIBUTE = "cloister"
_IDEMPOTENCY_HEADER = "Idempotency-Key"
_OURS = frozenset(Options.__annotations__)
_SDK = TypeVar("_SDK")


class _NotSealed:
    """Stands where the SDK looks for the address of its web sockets; using it is a TypeError.

    They would carry the API key and all that is said to a worker that nobody verified.
    """

    def __repr__(self) -> str:
        return "web sockets, which are not sealed"


class SdkOptions(Options, total=False):
    """Options of a connection, and those of the SDK's class; others of its own are passed on."""

    organization: str | None
    project: str | None
    timeout: float | httpx2.Timeout | None
    max_retries: int
    default_headers: Mapping[str, str] | None
    default_query: Mapping[str, object] | None


def OpenAI(  # noqa: N802 - stands in for the class whose instance it returns
    *,
    base_url: str,
    api_key: str | None = None,
    inner: httpx2.BaseTransport | None = None,
    **options: Unpack[SdkOptions],
) -> openai.OpenAI:
    """An ``openai.OpenAI`` that speaks to the worker at `base_url`, verified, and nobody else.

    The worker is verified at the first request; ``cloister.connection_of(client).verify()`` does
    it before, and shows the result. `api_key` (or ``OPENAI_API_KEY``) travels inside the seal
    only. `inner` as for `Httpx2Transport`.

    Raises:
        ConfigurationError: the SDK is not installed, or an option is missing or contradicts
            another.
    """
    sdk = _load_sdk()
    ours, theirs = _split(options)
    transport = make_transport(base_url, inner, ours)
    http = sdk.DefaultHttpxClient(transport=transport)
    connection = Connection(transport, http)
    client: openai.OpenAI = sdk.OpenAI(
        base_url=connection.url + "/v1", api_key=_api_key(api_key), http_client=http, **theirs
    )
    return _prepared(client, connection)


def AsyncOpenAI(  # noqa: N802 - stands in for the class whose instance it returns
    *,
    base_url: str,
    api_key: str | None = None,
    inner: httpx2.AsyncBaseTransport | None = None,
    **options: Unpack[SdkOptions],
) -> openai.AsyncOpenAI:
    """As `OpenAI`, an ``openai.AsyncOpenAI``. Nothing is sent before the first request."""
    sdk = _load_sdk()
    ours, theirs = _split(options)
    transport = make_async_transport(base_url, inner, ours)
    http = sdk.DefaultAsyncHttpxClient(transport=transport)
    connection = AsyncConnection(transport, http)
    client: openai.AsyncOpenAI = sdk.AsyncOpenAI(
        base_url=connection.url + "/v1", api_key=_api_key(api_key), http_client=http, **theirs
    )
    return _prepared(client, connection)


def connection_of(client: object) -> Connection | AsyncConnection:
    """The connection under a client made here, or under any copy of it.

    Raises TypeError for any other object.
    """
    connection = getattr(client, _ATTRIBUTE, None)
    if not isinstance(connection, Connection | AsyncConnection):
        raise TypeError("this client was not made by cloister.OpenAI or cloister.AsyncOpenAI")
    return connection


def last_receipt(client: object) -> Receipt | None:
    """The verified receipt of the answer that `client` completed last, if it came with one.

    With several requests at once use ``on_exchange``, or the response's
    ``extensions["cloister"]`` (``client.….with_raw_response``), to know which answer is meant.
    """
    return connection_of(client).last_receipt


def _load_sdk() -> ModuleType:
    try:
        import openai
    except ImportError as error:
        raise ConfigurationError(
            "the OpenAI SDK is not installed; install cloister[openai]", code="client.no_sdk"
        ) from error
    if not issubclass(openai.DefaultHttpxClient, httpx2.Client):
        raise ConfigurationError(
            "this release of the OpenAI SDK speaks through httpx; install cloister[openai], or give"
            " openai.OpenAI a client with cloister.client.httpx_transport.HttpxTransport",
            code="client.old_sdk",
        )
    return openai


def _split(options: Mapping[str, Any]) -> tuple[Options, dict[str, Any]]:
    if "http_client" in options:
        raise ConfigurationError(
            "an http_client of your own would not verify anything", code="client.http_client"
        )
    ours: Options = {}
    theirs: dict[str, Any] = {}
    for name, value in options.items():
        if name in _OURS:
            ours[name] = value  # type: ignore[literal-required]  # it is one of the names
        else:
            theirs[name] = value
    return ours, theirs


def _api_key(given: str | None) -> str:
    return given or os.environ.get("OPENAI_API_KEY") or PLACEHOLDER_KEY


def _prepared(client: _SDK, connection: Connection | AsyncConnection) -> _SDK:
    copy: Callable[..., _SDK] = client.copy  # type: ignore[attr-defined]  # both classes have it

    def sealed_copy(**options: Any) -> _SDK:
        if options.get("http_client") is not None:
            raise ConfigurationError(
                "an http_client of your own would not verify anything", code="client.http_client"
            )
        return _prepared(copy(**options), connection)

    # The SDK makes one key per call and keeps it over its retries, but sends it only if told in
    # which field; and a copy it makes itself forgets that.
    for name, value in (
        ("_idempotency_header", _IDEMPOTENCY_HEADER),
        ("copy", sealed_copy),
        ("with_options", sealed_copy),
        ("websocket_base_url", _NotSealed()),
        (_ATTRIBUTE, connection),
    ):
        setattr(client, name, value)
    return client
