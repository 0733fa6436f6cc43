"""The official SDK's own clients over the sealed channel."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import httpx2
import openai
import pytest

import cloister
from cloister.channel import bhttp
from cloister.client import AsyncConnection, Connection, SealedTruncatedError
from cloister.errors import AppraisalError, ChannelError, ConfigurationError, TruncatedError
from support.fake_worker import (
    Answer,
    FakeVerifier,
    FakeWorker,
    events_answer,
    field_of,
    json_answer,
    openai_like,
)
from support.hostile import (
    HostileProxy,
    cut_reply,
    deliver_then_forge_unknown_key,
    forge_page,
    sealed_only,
)
from support.wire import AsyncHttpx2Wire, Handler, Httpx2Wire, WireReply, WireRequest

URL = "http://worker.test/v1"
QUESTION: Any = [{"role": "user", "content": "one two three"}]


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.01)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)


def blocking(handler: Handler, **options: Any) -> openai.OpenAI:
    options.setdefault("verifier", FakeVerifier())
    return cloister.OpenAI(base_url=URL, inner=Httpx2Wire(handler), **options)


def asynchronous(handler: Handler, **options: Any) -> openai.AsyncOpenAI:
    options.setdefault("verifier", FakeVerifier())
    return cloister.AsyncOpenAI(base_url=URL, inner=AsyncHttpx2Wire(handler), **options)


def ask(client: openai.OpenAI) -> str | None:
    return (
        client.chat.completions.create(model="tiny", messages=QUESTION).choices[0].message.content
    )


def test_the_clients_are_the_official_classes() -> None:
    worker = FakeWorker(application=openai_like)
    assert type(blocking(worker)) is openai.OpenAI
    assert type(asynchronous(worker)) is openai.AsyncOpenAI
    assert worker.reports == 0  # nothing is sent by making one


def test_models_answers_and_streams() -> None:
    worker = FakeWorker(application=openai_like)
    client = blocking(worker)
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert ask(client) == "one two three"
    receipt = cloister.last_receipt(client)
    assert receipt is not None
    stream = client.chat.completions.create(model="tiny", messages=QUESTION, stream=True)
    words = [chunk.choices[0].delta.content for chunk in stream]
    assert words == ["one ", "two ", "three "]
    assert cloister.last_receipt(client) not in (None, receipt)
    assert worker.reports == 1


async def test_models_answers_and_streams_asynchronously() -> None:
    worker = FakeWorker(application=openai_like)
    async with asynchronous(worker) as client:
        assert [model.id async for model in client.models.list()] == ["tiny"]
        answer = await client.chat.completions.create(model="tiny", messages=QUESTION)
        assert answer.choices[0].message.content == "one two three"
        stream = await client.chat.completions.create(model="tiny", messages=QUESTION, stream=True)
        words = [chunk.choices[0].delta.content async for chunk in stream]
        assert words == ["one ", "two ", "three "]
        assert cloister.last_receipt(client) is not None
        connection = cloister.connection_of(client)
        assert isinstance(connection, AsyncConnection)
        assert connection.last_exchange is not None
        assert connection.last_exchange.receipt_verified


def test_raw_responses_carry_their_own_exchange() -> None:
    client = blocking(FakeWorker(application=openai_like))
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=QUESTION)
    assert raw.http_response.extensions["cloister"].receipt_verified
    with client.chat.completions.with_streaming_response.create(
        model="tiny", messages=QUESTION
    ) as response:
        response.read()
        assert response.http_response.extensions["cloister"].receipt_verified


def test_credentials_travel_inside() -> None:
    worker = FakeWorker(application=openai_like)
    proxy = HostileProxy(worker)
    ask(blocking(proxy, api_key="sk-secret", organization="org-secret"))
    head = worker.opened[0][0]
    assert field_of(head, b"authorization") == b"Bearer sk-secret"
    assert field_of(head, b"openai-organization") == b"org-secret"
    for request in proxy.seen:
        assert b"secret" not in repr((request.url, request.headers)).encode() + request.body
        assert request.header("user-agent") is None


def test_a_key_is_not_needed_and_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = FakeWorker(application=openai_like)
    assert blocking(worker).api_key == "unused"
    monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
    assert blocking(worker).api_key == "from-environment"
    assert blocking(worker, api_key="given").api_key == "given"


@pytest.mark.parametrize("change", [{"timeout": 5}, {"max_retries": 0}, {"api_key": "other"}])
def test_copies_keep_everything(change: dict[str, Any]) -> None:
    worker = FakeWorker(application=openai_like)
    client = blocking(worker)
    ask(client)
    for copy in (
        client.with_options(**change),
        client.copy(**change),
        client.with_options(**change).with_options(timeout=1),
    ):
        assert type(copy) is openai.OpenAI
        assert ask(copy) == "one two three"
        assert cloister.connection_of(copy) is cloister.connection_of(client)
        key = field_of(worker.opened[-1][0], b"idempotency-key")
        assert (key or b"").startswith(b"stainless-python-retry-")
    secrets = {field_of(head, b"x-cloister-cache-secret") for head, _ in worker.opened}
    assert len(secrets) == worker.reports == 1


def test_a_client_of_ones_own_is_refused() -> None:
    worker = FakeWorker(application=openai_like)
    client = blocking(worker)
    own = httpx2.Client()
    attempts: list[Callable[..., openai.OpenAI]] = [
        partial(blocking, worker),
        client.with_options,
        client.copy,
    ]
    for attempt in attempts:
        with pytest.raises(ConfigurationError) as caught:
            attempt(http_client=own)
        assert caught.value.code == "client.http_client"
    own.close()


def test_another_base_url_is_refused() -> None:
    proxy = HostileProxy(FakeWorker(application=openai_like))
    client = blocking(proxy, max_retries=0)
    ask(client)
    with pytest.raises(openai.APIConnectionError) as caught:
        ask(client.with_options(base_url="http://other.test/v1"))
    assert isinstance(caught.value.__cause__, ChannelError)
    assert {request.url.split("/")[2] for request in proxy.seen} == {"worker.test"}


def test_web_sockets_would_not_be_sealed_and_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[object] = []
    for name in ("websockets", "websockets.sync", "websockets.sync.client"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(
        sys.modules["websockets.sync.client"],
        "connect",
        lambda url, **_: reached.append(url),
        raising=False,
    )
    worker = FakeWorker(application=openai_like)
    with blocking(worker) as client:
        for one in (client, client.with_options(websocket_base_url="ws://worker.test/v1")):
            for connect in (one.realtime.connect(model="tiny"), one.responses.connect()):
                with pytest.raises(TypeError, match="not sealed"):
                    connect.enter()
    with pytest.raises(TypeError, match="not sealed"):
        httpx2.URL(asynchronous(worker).websocket_base_url)  # type: ignore[arg-type]
    assert reached == []


def test_connection_of_other_objects() -> None:
    client = openai.OpenAI(api_key="x")
    for other in (client, None, object()):
        with pytest.raises(TypeError):
            cloister.connection_of(other)
    client.close()


def test_verifying_before_the_first_request() -> None:
    worker = FakeWorker(application=openai_like)
    client = blocking(worker)
    connection = cloister.connection_of(client)
    assert isinstance(connection, Connection)
    assert connection.result is None
    result = connection.verify()
    assert result.require_affirming().keyset_digest == worker.keyset.digest
    assert result.development
    ask(client)
    assert worker.reports == 1


def test_errors_of_the_worker_are_the_sdks_own() -> None:
    worker = FakeWorker(application=openai_like)
    client = blocking(worker, max_retries=0)
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="tiny", input="x")
    assert caught.value.code == "not_found"


def test_a_refused_worker_is_no_connection_error_and_not_retried() -> None:
    worker = FakeWorker(application=openai_like, refuse="components.differ")
    with pytest.raises(AppraisalError) as caught:
        ask(blocking(worker))
    assert caught.value.code == "components.differ"
    assert caught.value.result is not None
    assert worker.reports == 1


# Retries


def failing_once(status: int) -> Callable[[bhttp.RequestHead, bytes], Answer]:
    calls = 0

    def application(head: bhttp.RequestHead, body: bytes) -> Answer:
        nonlocal calls
        calls += 1
        if calls == 1:
            return json_answer({"error": {"message": "busy"}}, status)
        return openai_like(head, body)

    return application


def lose_answers(times: int) -> Any:
    """The worker runs the request; the connection ends before its answer."""
    left = times

    def hook(_: WireRequest, answer: WireReply) -> WireReply:
        nonlocal left
        if left == 0:
            return answer
        left -= 1
        for _chunk in answer.chunks:
            pass
        raise httpx2.ReadError("connection reset")

    return sealed_only(hook)


@pytest.mark.parametrize(
    "hook",
    [lose_answers(1), cut_reply(0), cut_reply(2), deliver_then_forge_unknown_key()],
    ids=["lost", "cut-empty", "cut", "unknown-key"],
)
def test_retries_of_the_sdk_do_not_run_a_prompt_twice(hook: Any) -> None:
    worker = FakeWorker(application=openai_like)
    proxy = HostileProxy(worker)
    client = blocking(proxy)
    assert ask(client) == "one two three"
    proxy.on_reply = hook
    with pytest.raises((openai.ConflictError, openai.APIConnectionError)):
        ask(client)
    assert len(proxy.sealed) > 2  # it was tried again
    assert len(worker.generations) == 2


def test_retries_without_a_key_of_the_sdk_share_ours() -> None:
    """A client somebody else made: our transport, the SDK's defaults, no idempotency header."""
    worker = FakeWorker(application=openai_like)
    proxy = HostileProxy(worker)
    connection = cloister.connection_of(blocking(proxy))
    assert isinstance(connection, Connection)
    client = openai.OpenAI(base_url=URL, api_key="x", http_client=connection.http)
    assert ask(client) == "one two three"
    assert ask(client) == "one two three"  # the same words, a second wish
    assert len(worker.generations) == 2
    proxy.on_reply = lose_answers(1)
    with pytest.raises(openai.ConflictError):
        ask(client)
    assert len(worker.generations) == 3
    assert ask(client) == "one two three"


def test_an_overload_is_tried_again() -> None:
    worker = FakeWorker(application=openai_like)
    proxy = HostileProxy(worker)
    overloaded = 0

    def forge(request: WireRequest) -> WireReply | None:
        nonlocal overloaded
        if request.path.endswith("/ohttp") and overloaded < 2:
            overloaded += 1
            return forge_page(503, "application/json", b"{}")(request)
        return None

    proxy.forge = forge
    assert ask(blocking(proxy)) == "one two three"
    proxy.forge = forge_page(429, "application/json", b"{}")
    with pytest.raises(openai.APIConnectionError) as caught:
        ask(blocking(proxy, max_retries=1))
    assert isinstance(caught.value.__cause__, ChannelError)
    assert caught.value.__cause__.code == "channel.overloaded"


def test_a_sealed_overload_is_a_rate_limit_error() -> None:
    worker = FakeWorker(application=failing_once(429))
    with pytest.raises(openai.RateLimitError):
        ask(blocking(worker, max_retries=0))


def test_a_stream_cut_in_the_middle_raises_with_the_reason() -> None:
    worker = FakeWorker(application=openai_like)
    proxy = HostileProxy(worker)
    client = blocking(proxy)

    def words() -> list[str | None]:
        stream = client.chat.completions.create(model="tiny", messages=QUESTION, stream=True)
        return [chunk.choices[0].delta.content for chunk in stream]

    assert len(words()) == 3
    # Nonce, head, three events, "[DONE]": all but the authenticated end.
    for keep in range(2, 7):
        proxy.on_reply = cut_reply(keep)
        with pytest.raises(openai.APIConnectionError) as caught:
            words()
        assert isinstance(caught.value.__cause__, TruncatedError)
        assert isinstance(caught.value.__cause__, SealedTruncatedError)


def test_a_stream_that_ends_with_an_error_event() -> None:
    def application(_: bhttp.RequestHead, __: bytes) -> Answer:
        return events_answer([b'data: {"error":{"message":"engine stopped","code":"x"}}\n\n'])

    client = blocking(FakeWorker(application=application))
    with pytest.raises(openai.APIError, match="engine stopped"):
        list(client.chat.completions.create(model="tiny", messages=QUESTION, stream=True))


# Imports


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_the_sdk_the_message_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['openai'] = None\n"
        "import cloister\n"
        "from cloister.errors import ConfigurationError\n"
        "try: cloister.OpenAI(base_url='http://w', kit='nowhere')\n"
        "except ConfigurationError as error: print(error.code, error)"
    )
    assert _python(code) == (
        "client.no_sdk the OpenAI SDK is not installed; install cloister[openai]"
    )


def test_an_sdk_of_before_httpx2_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clients would not take our transports; which they would is said."""
    worker = FakeWorker(application=openai_like)
    assert ask(blocking(worker)) == "one two three"
    monkeypatch.setattr(openai, "DefaultHttpxClient", httpx.Client)
    with pytest.raises(ConfigurationError, match="HttpxTransport") as refused:
        blocking(worker)
    assert refused.value.code == "client.old_sdk"


def test_imports_stay_small() -> None:
    code = "import sys, cloister; print(sorted(m for m in sys.modules if 'cloister' in m))"
    assert _python(code) == "['cloister']"
    code = (
        "import sys, cloister.client\n"
        "heavy = 'openai rich typer starlette uvicorn pydantic numpy asyncio.events httpx'\n"
        "print([name for name in heavy.split() if name in sys.modules])"
    )
    assert _python(code) in {"[]", "['asyncio.events']"}


def test_names_of_the_package() -> None:
    assert set(cloister.__all__) <= set(dir(cloister))
    for name in cloister.__all__:
        assert getattr(cloister, name) is not None
    with pytest.raises(AttributeError):
        cloister.nothing  # noqa: B018
