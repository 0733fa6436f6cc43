"""One question, one text: the helper that BlindLlama's SDK had, on a channel that is verified.

`create` returns text only where the worker was affirmed, the answer arrived whole, and its receipt
is for exactly what was asked and names the model that was asked for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from cloister.client.connect import Options, connect
from cloister.client.connection import Connection
from cloister.client.conversation import CHAT_PATH, check_answer
from cloister.errors import ConfigurationError, MalformedError

if TYPE_CHECKING:
    import httpx2

URL_VARIABLE = "CLOISTER_URL"
KEY_VARIABLE = "CLOISTER_API_KEY"


def create(
    *,
    model: str,
    prompt: str,
    url: str | None = None,
    connection: Connection | None = None,
    api_key: str | None = None,
    system: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    **options: Unpack[Options],
) -> str:
    """Ask `model` one question and return its answer, exactly as the model gave it.

    The worker is that of `connection`, which stays open and is verified once for any number of
    questions; or the one at `url` (or ``CLOISTER_URL``), which is connected to with `options`
    (those of `cloister.connect`), verified and left. `api_key` (or ``CLOISTER_API_KEY``) travels
    inside the seal only. What is None is left to the engine.

    Raises:
        ConfigurationError: no worker is named, or two; or an option contradicts another.
        AppraisalError, AuthenticationError, UnsupportedError: the worker is not affirmed, or the
            receipt is not right. In the first case nothing was sent.
        FetchError, ChannelError: no report could be had; the answer is not the worker's, or cut.
        EngineError: the worker answers with an error; it is authentic.
        MalformedError: the answer is none, or its receipt names another model.
    """
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": prompt})
    asked = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "stop": [stop] if isinstance(stop, str) else stop,
    }
    body: dict[str, Any] = {"model": model, "messages": messages}
    body |= {name: value for name, value in asked.items() if value is not None}
    key = api_key or os.environ.get(KEY_VARIABLE)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with _connected(url, connection, options) as chosen:
        response = chosen.http.post(CHAT_PATH, json=body, headers=headers)
        check_answer(response)
        served = response.extensions["cloister"].model
        if served is not None and served[0] != model:
            raise MalformedError("the receipt names another model than was asked for")
        return _text(response)


@contextlib.contextmanager
def _connected(
    url: str | None, connection: Connection | None, options: Options
) -> Iterator[Connection]:
    if connection is not None:
        if url is not None or options:
            raise ConfigurationError(
                "a connection that is open has its address and its options already",
                code="client.connection",
            )
        yield connection
        return
    address = url or os.environ.get(URL_VARIABLE)
    if not address:
        raise ConfigurationError(
            f"name the worker: url=, connection=, or {URL_VARIABLE} in the environment",
            code="client.url",
        )
    with connect(address, **options) as opened:
        yield opened


def _text(response: httpx2.Response) -> str:
    try:
        text = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise MalformedError("the worker's answer holds no text")
    return text
