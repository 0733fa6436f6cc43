"""A conversation over one verified connection: questions in, pieces of answers out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cloister.errors import EngineError, MalformedError

if TYPE_CHECKING:
    import httpx2

    from cloister.client.connection import Connection

CHAT_PATH = "/v1/chat/completions"
MODELS_PATH = "/v1/models"
_MAX_LINE = 1024 * 1024


class Conversation:
    """Messages so far, with one model of one worker."""

    def __init__(
        self,
        connection: Connection,
        *,
        model: str | None = None,
        system: str | None = None,
        api_key: str | None = None,
    ) -> None:
        self._connection = connection
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._system = system
        self.model = model
        self.messages: list[dict[str, str]] = []
        self.clear()

    def clear(self) -> None:
        """Forget everything that was said."""
        self.messages[:] = [{"role": "system", "content": self._system}] if self._system else []

    def models(self) -> tuple[str, ...]:
        """Names of the models that the worker serves.

        Raises EngineError for an error the worker answers, MalformedError for nonsense.
        """
        response = self._connection.http.get(MODELS_PATH, headers=self._headers)
        check_answer(response)
        try:
            return tuple(str(model["id"]) for model in response.json()["data"])
        except (ValueError, KeyError, TypeError):
            raise MalformedError("the worker's list of models is not one") from None

    def ask(self, question: str, **parameters: Any) -> Iterator[str]:
        """Send `question` and yield the answer's text piece by piece.

        Question and answer join the conversation once the answer has ended, its receipt checked.

        Raises:
            EngineError: the worker answers with an error; it is authentic.
            MalformedError: an event of the stream is not one.
            ChannelError, AuthenticationError: the answer is not whole, or its receipt not right.
        """
        if self.model is None:
            self.model = next(iter(self.models()), None)
        asked = [*self.messages, {"role": "user", "content": question}]
        body = {"model": self.model, "messages": asked, "stream": True, **parameters}
        said: list[str] = []
        with self._connection.http.stream(
            "POST", CHAT_PATH, json=body, headers=self._headers
        ) as response:
            if response.status_code != 200:
                response.read()
                check_answer(response)
            for event in _events(response):
                text = _text(event)
                if text:
                    said.append(text)
                    yield text
        self.messages[:] = [*asked, {"role": "assistant", "content": "".join(said)}]


def _events(response: httpx2.Response) -> Iterator[Any]:
    """The JSON of every ``data:`` line, read to the authenticated end."""
    for line in response.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            continue
        if len(data) > _MAX_LINE:
            raise MalformedError("an event of the worker's stream is too long")
        try:
            yield json.loads(data)
        except (ValueError, RecursionError):
            raise MalformedError("an event of the worker's stream is not JSON") from None


def _text(event: Any) -> str:
    if isinstance(event, dict) and event.get("error"):
        raise _error(event)
    try:
        choices = event["choices"]
        text = choices[0]["delta"].get("content") if choices else None
    except (KeyError, TypeError, IndexError, AttributeError):
        raise MalformedError("an event of the worker's stream has no text in it") from None
    return text if isinstance(text, str) else ""


def check_answer(response: httpx2.Response) -> None:
    """EngineError with the worker's own words, unless `response` (read whole) is a 200."""
    if response.status_code == 200:
        return
    try:
        document = response.json()
    except ValueError:
        document = None
    raise _error(document, f"HTTP {response.status_code}")


def _error(document: Any, otherwise: str = "no reason given") -> EngineError:
    error = document.get("error") if isinstance(document, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    code = error.get("code") if isinstance(error, dict) else None
    return EngineError(
        f"the worker answers with an error: {message if isinstance(message, str) else otherwise}",
        code=code if isinstance(code, str) else "engine.answered",
    )
