"""A seal that ends inside the application: loaded as vLLM loads it, asked by the real client."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

import cloister
from cloister.client.connect import connect
from cloister.client.connection import Connection
from cloister.endorsements.artefact import Artefact, ArtefactRequest
from cloister.endorsements.cache import EndorsementCache
from cloister.errors import AppraisalError, CloisterError
from cloister.testing.simulated_hardware import SimulatedHardware
from cloister.verifier import policy as policies
from cloister.verifier.appraise import serving as claims
from cloister.worker import middleware
from cloister.worker.api_keys import ApiKeyFile
from cloister.worker.logs import EventLog
from cloister.worker.seal import Seal
from cloister.worker.settings import Limits, WorkerSettings
from support.asgi import call
from support.canary import Search, new_marker
from support.chat_app import MODEL, Seen, chat_app
from support.in_engine import Evidence, Served, accepting, add_as_vllm_does, believing, serving
from support.scene import until

CHAT = "/v1/chat/completions"


def seal_file(path: Path, **members: Any) -> Path:
    settings = {
        "version": 1,
        "platform": "sev-snp",
        "model": MODEL,
        "prefix_cache": "salted",
        "open": True,
        "health": ["/health"],
        **members,
    }
    text = "".join(
        f"{name} = {json.dumps(value)}\n" for name, value in settings.items() if value is not None
    )
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def core_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands for the kernel's limit, which would hold for the rest of this process's life."""
    asked: list[str] = []

    def forbid() -> bool:
        asked.append("no core files")
        return True

    monkeypatch.setattr(middleware, "forbid_core_files", forbid)
    return asked


@pytest.fixture
def hardware() -> SimulatedHardware:
    return SimulatedHardware.make("snp", now=datetime.now(UTC))


@pytest.fixture
def sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hardware: SimulatedHardware
) -> Iterator[tuple[Served, Seen]]:
    """A chat application, sealed as vLLM would be."""
    with running(tmp_path, monkeypatch, hardware) as made:
        yield made


@contextlib.contextmanager
def running(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hardware: SimulatedHardware,
    *,
    endless: bool = False,
    **members: Any,
) -> Iterator[tuple[Served, Seen]]:
    seen = Seen()
    app = chat_app(seen, endless=endless)
    monkeypatch.setenv(middleware.VARIABLE, str(seal_file(tmp_path / "seal.toml", **members)))
    monkeypatch.setattr(middleware, "MachineAttester", lambda _platform: Evidence(hardware))
    # uvicorn's own set-up, which other tests leave behind, keeps its words from `caplog`.
    for logger in ("uvicorn", "uvicorn.access"):
        monkeypatch.setattr(logging.getLogger(logger), "propagate", True)
    add_as_vllm_does(app)
    with serving(app) as served:
        yield served, seen


def question(text: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


def asked(client: Connection, text: str, **more: Any) -> httpx2.Response:
    return client.http.post(CHAT, json=question(text, **more))


def test_the_real_client_verifies_it_and_streams_through_it(
    sealed: tuple[Served, Seen], hardware: SimulatedHardware, core_files: list[str]
) -> None:
    served, seen = sealed
    assert core_files == ["no core files"]
    with connect(served.url, trust_env=False, **believing(hardware)) as client:
        result = client.verify()
        assert claims.NOT_PROVEN_IN_ENGINE in result.not_proven
        assert claims.NOT_PROVEN_SHARED in result.not_proven
        document = result.require_affirming().claims_document
        configuration = document["configuration"]
        assert isinstance(configuration, dict)
        # Nothing bounds what stays in a process that is never exchanged, and none claims to.
        assert configuration["separation"]["recycle_requests"] == 0
        assert configuration["termination"] == "in-engine"
        assert configuration["managed"] is False
        response = asked(client, "one two three")
        assert response.json()["choices"][0]["message"]["content"] == "one two three"
        assert response.extensions["cloister"].receipt_verified
        assert not {"x-app", "set-cookie"} & response.headers.keys()
        with client.http.stream("POST", CHAT, json=question("a b c", stream=True)) as stream:
            lines = [line for line in stream.iter_lines() if line.startswith("data: ")]
            assert "x-app" not in stream.headers
    assert lines[-1] == "data: [DONE]"
    said = [json.loads(line[6:])["choices"][0]["delta"] for line in lines[:-1]]
    assert "".join(delta.get("content", "") for delta in said) == "a b c "
    # The application was asked by nobody.
    assert seen.clients == [None, None]
    assert {tuple(sorted(headers)) for headers in seen.headers} == {
        ("content-length", "content-type", "host")
    }


def test_openais_client_streams_through_it(
    sealed: tuple[Served, Seen], hardware: SimulatedHardware
) -> None:
    served, _ = sealed
    with cloister.OpenAI(
        base_url=f"{served.url}/v1", api_key="none", trust_env=False, **believing(hardware)
    ) as client:
        stream = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "a b c"}], stream=True
        )
        said = [event.choices[0].delta.content or "" for event in stream]
    assert "".join(said) == "a b c "


def test_the_strict_policy_refuses_it(
    sealed: tuple[Served, Seen], hardware: SimulatedHardware
) -> None:
    served, seen = sealed
    with connect(served.url, trust_env=False, **believing(hardware)) as client:
        assert asked(client, "hello").status_code == 200
    # All else is accepted each time, so one thing alone is wrong.
    strict = policies.strict()
    for policy, code in (
        (accepting(termination=strict.termination), "termination_refused"),
        (accepting(require_managed=strict.require_managed), "engine_unmanaged"),
        (accepting(require_model=strict.require_model), "model_unmeasured"),
        (accepting(isolation=strict.isolation), "sandbox_unsafe"),
        (accepting(separation=("process-per-client",)), "separation_refused"),
    ):
        with pytest.raises(AppraisalError) as refused:
            connect(served.url, trust_env=False, **believing(hardware, policy))
        assert refused.value.code == code
    with pytest.raises(CloisterError):
        connect(served.url, trust_env=False, **believing(hardware, policies.development()))
    assert len(seen.bodies) == 1


def test_a_stated_file_is_hashed_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hardware: SimulatedHardware
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    with (
        running(tmp_path, monkeypatch, hardware, model_file=str(file)) as (served, _),
        connect(
            served.url, trust_env=False, **believing(hardware, accepting(require_model=True))
        ) as client,
    ):
        (model,) = [one for one in client.verify().claims if one.name == "software.model"]
        assert MODEL in model.explanation
        assert asked(client, "hello").status_code == 200


def test_in_clear_only_health_is_answered_and_says_nothing(sealed: tuple[Served, Seen]) -> None:
    served, seen = sealed
    with httpx2.Client(base_url=served.url, trust_env=False) as plain:
        assert plain.get("/ohttp-keys").status_code == 200
        healthy = plain.get("/health", params={"prompt": "x"}, headers={"x-mine": "1"})
        assert (healthy.status_code, healthy.content) == (200, b"")
        assert "x-inside" not in healthy.headers
        assert plain.head("/health").status_code == 200
        # The application saw a question without anything of the caller's.
        assert seen.headers == [{"host": "localhost"}] * 2
        assert seen.paths == ["http://localhost/health"] * 2
        for method, path in (
            ("POST", CHAT),
            ("POST", "/v1/completions"),
            ("GET", "/v1/models"),
        ):
            refused = plain.request(method, path, json=question("in clear"))
            assert refused.status_code == 403
            assert refused.json()["error"]["code"] == "plaintext_refused"
        for method, path in (("POST", "/health"), ("GET", "/metrics"), ("GET", "/docs")):
            assert plain.request(method, path).status_code == 404
    assert seen.bodies == []


def test_websockets_are_refused(sealed: tuple[Served, Seen]) -> None:
    served, _ = sealed
    upgrade = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "sec-websocket-version": "13",
    }
    with httpx2.Client(base_url=served.url, trust_env=False) as plain:
        assert plain.get("/v1/realtime", headers=upgrade).status_code in (403, 404)


def test_api_keys_are_checked_inside_the_seal_and_stay_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hardware: SimulatedHardware
) -> None:
    table = tmp_path / "keys.json"
    _, key = ApiKeyFile(table).add("alice", at=1)
    members: dict[str, Any] = {"open": None, "api_keys": str(table)}
    with (
        running(tmp_path, monkeypatch, hardware, **members) as (served, seen),
        connect(served.url, trust_env=False, **believing(hardware)) as client,
    ):
        assert asked(client, "hello").status_code == 401
        assert seen.bodies == []
        authorised = {"authorization": f"Bearer {key}"}
        answer = client.http.post(CHAT, json=question("hello"), headers=authorised)
        assert answer.status_code == 200
        assert key not in json.dumps([seen.headers, seen.bodies])


def test_a_client_that_goes_away_ends_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hardware: SimulatedHardware
) -> None:
    with running(tmp_path, monkeypatch, hardware, endless=True) as (served, seen):
        with (
            connect(served.url, trust_env=False, **believing(hardware)) as client,
            client.http.stream("POST", CHAT, json=question("a b", stream=True)) as stream,
        ):
            next(iter(stream.iter_lines()))

        def abandoned() -> bool:
            gc.collect()
            return seen.abandoned.is_set()

        until(abandoned)
        with connect(served.url, trust_env=False, **believing(hardware)) as client:
            assert asked(client, "still there?").status_code == 200


def test_an_application_that_hangs_holds_up_nobody_else(hardware: SimulatedHardware) -> None:
    hung: list[Any] = []
    answering = chat_app(Seen())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/v1/completions":
            hung.append(await receive())
            await asyncio.Event().wait()
        await answering(scope, receive, send)

    sealed = middleware.SealMiddleware(
        app,
        Seal(platform="sev-snp", model=MODEL, cache_salt=False, open=True),
        source=Evidence(hardware),
        settings=WorkerSettings(limits=Limits(generation_s=2)),
        log=EventLog(io.StringIO()),
    )
    with (
        serving(sealed) as served,
        connect(served.url, trust_env=False, **believing(hardware)) as client,
    ):
        assert asked(client, "hello").status_code == 200
        late = client.http.post("/v1/completions", json={"model": MODEL, "prompt": "x"})
        assert late.json()["error"]["code"] == "timeout"
        assert len(hung) == 1
        assert asked(client, "hello").status_code == 200


def test_what_vouches_for_the_evidence_goes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hardware: SimulatedHardware
) -> None:
    """A folder that cannot be used stops the start; one that can is asked for each item."""
    looked_up: list[str] = []
    peek = EndorsementCache.peek

    def noted(cache: EndorsementCache, request: ArtefactRequest) -> Artefact | None:
        looked_up.append(request.kind)
        return peek(cache, request)

    monkeypatch.setattr(EndorsementCache, "peek", noted)
    folder = tmp_path / "endorsements"
    with (
        running(tmp_path, monkeypatch, hardware, endorsements=str(folder)) as (served, _),
        connect(served.url, trust_env=False, **believing(hardware)) as client,
    ):
        assert asked(client, "hello").status_code == 200
    assert looked_up
    folder.chmod(0o777)
    with (
        pytest.raises(RuntimeError, match="did not start"),
        running(tmp_path, monkeypatch, hardware, endorsements=str(folder)),
    ):
        pass


@pytest.mark.parametrize(
    "wrong",
    [
        ({"platform": "my-word"}, "platform is none of"),
        ({"model": "other"}, "serves no model called other"),
        ({"model_file": "/none"}, "/none cannot be read"),
        ({"health": ["/v1/models"]}, "cannot be a path that answers in clear"),
        ({"open": None}, "name api_keys"),
    ],
)
def test_a_seal_that_cannot_be_set_up_stops_the_server(
    wrong: tuple[dict[str, Any], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hardware: SimulatedHardware,
    caplog: pytest.LogCaptureFixture,
) -> None:
    members, said = wrong
    with running(tmp_path, monkeypatch, hardware):
        pass
    caplog.clear()
    with (
        pytest.raises(RuntimeError, match="did not start"),
        running(tmp_path, monkeypatch, hardware, **members),
    ):
        pass
    assert said in caplog.text


async def test_without_a_lifespan_everything_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(middleware.VARIABLE, str(seal_file(tmp_path / "seal.toml")))
    seen = Seen()
    sealed = middleware.SealMiddleware(chat_app(seen))
    for method, path in (("GET", "/health"), ("POST", CHAT), ("GET", "/ohttp-keys")):
        outer = await call(sealed, method, path)
        assert outer.status == 503
    assert seen.headers == []


async def test_other_kinds_of_scope_never_reach_the_application(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(middleware.VARIABLE, str(seal_file(tmp_path / "seal.toml")))
    reached: list[str] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        reached.append(scope["type"])

    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    sealed = middleware.SealMiddleware(app)
    await sealed({"type": "websocket", "path": "/v1/realtime"}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]
    await sealed({"type": "webtransport"}, receive, send)
    assert len(sent) == 1
    assert reached == []


def test_nothing_of_a_prompt_is_left_behind(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hardware: SimulatedHardware,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    marker = new_marker()
    search = Search((marker,))
    # The search finds what is there: this application logs what it is asked.
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger("app").addHandler(handler)
    caplog.set_level(logging.DEBUG)
    try:
        with (
            running(tmp_path, monkeypatch, hardware) as (served, seen),
            connect(served.url, trust_env=False, **believing(hardware)) as client,
        ):
            assert asked(client, marker).status_code == 200
            assert asked(client, marker, stream=True).status_code == 200
            failed = asked(client, f"raise {marker}")
            assert failed.status_code == 502
            search.add("the error", failed.content)
            bad = asked(client, marker, cache_salt="x")
            assert bad.status_code == 400
            search.add("the refusal", bad.content)
            search.add("logs", caplog.text)
            assert len(seen.bodies) == 3
            assert search.hits() == []
            # The server's own log of requests is on, and knows one path.
            servers = [one for one in caplog.records if one.name.startswith("uvicorn")]
            servers_log = "\n".join(record.getMessage() for record in servers)
            assert '"POST /ohttp HTTP/1.1" 200' in servers_log
            assert CHAT not in servers_log
            caplog.clear()
            assert asked(client, f"log {marker}").status_code == 200
            search.add("the application's own log", stream.getvalue())
    finally:
        logging.getLogger("app").removeHandler(handler)
    search.add("outputs", "".join(capfd.readouterr()))
    assert search.hits() == ["the application's own log"]
