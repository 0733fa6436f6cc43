"""The asking side: verifying transports, OpenAI helpers, local proxy, chat.

Transports for ``httpx`` are in `cloister.client.httpx_transport`, since that library is an extra.
"""

from cloister.client import completion
from cloister.client.address import SEALED_URL
from cloister.client.connect import (
    Options,
    aconnect,
    connect,
    open_async_connection,
    open_connection,
)
from cloister.client.connection import AsyncConnection, Connection
from cloister.client.exchange import SealedExchange
from cloister.client.httpx2_transport import (
    AsyncHttpx2Transport,
    Httpx2Transport,
    ReportFetchError,
    SealedProtocolError,
    SealedTruncatedError,
)
from cloister.client.openai_sdk import AsyncOpenAI, OpenAI, connection_of, last_receipt
from cloister.client.settings import ClientSettings, Receipts, ReverifyLimits
from cloister.client.trust import Trust, make_trust

__all__ = [
    "SEALED_URL",
    "AsyncConnection",
    "AsyncHttpx2Transport",
    "AsyncOpenAI",
    "ClientSettings",
    "Connection",
    "Httpx2Transport",
    "OpenAI",
    "Options",
    "Receipts",
    "ReportFetchError",
    "ReverifyLimits",
    "SealedExchange",
    "SealedProtocolError",
    "SealedTruncatedError",
    "Trust",
    "aconnect",
    "completion",
    "connect",
    "connection_of",
    "last_receipt",
    "make_trust",
    "open_async_connection",
    "open_connection",
]
