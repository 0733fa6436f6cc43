"""Prompts and answers carry a random marker; afterwards it is searched for, and is nowhere.

Not in a log line, a metric, a file, a socket's name, a process's arguments, the body of an error
or the text of an exception, whatever became of the request. Neither is the API key. That the
search would find them is shown first, place by place.
"""

from __future__ import annotations

import base64
import itertools
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cloister.client import ClientSettings, Connection
from cloister.testing.fake_engine import Answer, FakeEngine
from cloister.worker.api_keys import ApiKeyFile
from cloister.worker.settings import Limits, WorkerSettings
from support.canary import Search, everything_logged, new_marker
from support.hostile import cut_reply, forge_page
from support.scene import ATTESTATION, CHAT, Scene, question, scene, until


@dataclass(kw_only=True)
class Watch:
    """A client that asks about the marker, and everything it is told that is no answer."""

    at: Scene
    client: Connection
    marker: str
    key: str
    search: Search

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    def question(self, **fields: Any) -> dict[str, Any]:
        return question(f"tell me about {self.marker}", **fields)

    def post(self, document: object = None, **options: Any) -> httpx2.Response | None:
        """Ask. Bodies of errors are searched, and the text of whatever is raised."""
        document = self.question() if document is None else document
        options = {"headers": self.headers, "json": document, **options}
        path = options.pop("path", CHAT)
        try:
            response = self.client.http.post(path, **options)
        except Exception as error:
            self.search.add_error("exceptions", error)
            return None
        if response.status_code >= 400:
            self.search.add("bodies of errors", response.content + repr(response.headers).encode())
        return response

    def refused(self, status: int, document: object = None, **options: Any) -> None:
        response = self.post(document, **options)
        assert response is not None
        assert response.status_code == status, response.text

    def says(self, **options: Any) -> None:
        """What the engine answers from now on, the marker in it unless told otherwise."""
        tokens = ("about", f" {self.marker}", " I", " know", " nothing")
        self.at.live.engine.script = lambda *_: Answer(**{"tokens": tokens, **options})

    def ready(self) -> None:
        until(lambda: self.at.live.worker.ready)


LIMITS = Limits(generation_s=1.5, max_request_bytes=200_000, first_byte_s=1.5)


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    marker, key_file = new_marker(), tmp_path / "state" / "keys.json"
    key = ApiKeyFile(key_file).add("canary", at=0)[1]
    for directory in ("temporary", "here"):
        (tmp_path / directory).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "here")
    search = Search(secrets=(marker, key))
    with (
        everything_logged() as logged,
        scene(WorkerSettings(limits=LIMITS), engine=FakeEngine(), api_keys=key_file) as at,
    ):
        made = Watch(at=at, client=at.client(), marker=marker, key=key, search=search)
        made.says()
        yield made
        search.add("log of the worker", at.live.stream.getvalue())
        search.add("log of both processes", logged.getvalue())
        search.add("metrics", at.live.worker.context.metrics.exposition())
        search.add_tree("files", tmp_path)
        search.add_processes("process", [os.getpid()])
    assert "httpcore2" in logged.getvalue()  # the libraries below the client did log
    assert '"worker.ready"' in at.live.stream.getvalue()
    assert b"cloister_" in search.places["metrics"]
    assert search.hits() == []


# -- the search itself ------------------------------------------------------------------------


@pytest.mark.parametrize("spelled", ["plain", "upper", "hex", "base64", "url", "shifted"])
def test_the_search_finds_a_planted_marker(spelled: str, tmp_path: Path) -> None:
    marker = new_marker()
    written = {
        "plain": marker.encode(),
        "upper": marker.upper().encode(),
        "hex": marker.encode().hex().encode(),
        "base64": base64.b64encode(marker.encode()),
        "url": base64.urlsafe_b64encode(b"ab" + marker.encode() + b"cde"),
        "shifted": base64.b64encode(b"a" + marker.encode() + b"cd"),
    }[spelled]
    text = written.decode()
    search = Search(secrets=(marker,))
    search.add("honest", b"nothing of the kind" * 1000)
    (tmp_path / "honest").write_bytes(b"nothing")
    search.add_tree("files", tmp_path)
    assert search.hits() == []

    with everything_logged() as logged:
        logging.getLogger("a.library").debug("sending %s", {"content": text})
    search.add("log", logged.getvalue())
    with pytest.raises(ValueError, match="planted") as caught:
        try:
            raise KeyError(text)
        except KeyError as cause:
            raise ValueError("planted") from cause
    search.add_error("exception", caught.value)
    (tmp_path / "content").mkdir()
    (tmp_path / "content" / "file").write_bytes(b"x" * 5000 + written)
    search.add_tree("content of a file", tmp_path / "content")
    (tmp_path / "names").mkdir()
    if spelled not in {"base64", "url", "shifted"}:
        (tmp_path / "names" / f"{text}.sock").touch()
        search.add_tree("name of a file", tmp_path / "names")
    with tempfile.TemporaryFile() as unnamed:
        unnamed.write(written)
        unnamed.flush()
        search.add_processes("open file without a name", [os.getpid()])
    places = set(search.places) - {"honest", "files"}
    assert set(search.hits()) == places


def test_the_search_finds_what_a_careless_worker_would_leave(watch: Watch) -> None:
    """A worker that logs one prompt and one key is caught by exactly this watch."""
    before = len(watch.at.live.stream.getvalue())
    watch.at.live.worker.context.log.event("careless", prompt=watch.marker)
    watch.at.live.worker.context.log.event("careless", credential=watch.key)
    lines = watch.at.live.stream.getvalue()[before:].splitlines()
    for line in lines:
        found = Search(secrets=watch.search.secrets)
        found.add("log of the worker", line)
        assert found.hits() == ["log of the worker"]
    watch.at.live.stream.truncate(before)
    watch.at.live.stream.seek(before)


# -- what may become of a request -------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_success_leaves_nothing(watch: Watch, stream: bool) -> None:
    response = watch.post(watch.question(stream=stream, user=watch.marker))
    assert response is not None
    assert watch.marker in response.text
    assert response.extensions["cloister"].receipt_verified
    receipt = response.extensions["cloister"].receipt
    watch.search.add("receipt", receipt.encode())
    found = watch.client.http.get(f"/v1/aci/receipts/{receipt.receipt_id}", headers=watch.headers)
    assert found.status_code == 200
    watch.search.add("receipt", found.content)
    watch.search.add("exchange", repr(response.extensions["cloister"]))


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 503])
@pytest.mark.parametrize("stream", [True, False])
def test_an_engines_error_that_repeats_the_prompt_is_not_passed_on(
    watch: Watch, status: int, stream: bool
) -> None:
    watch.says(status=status)
    response = watch.post(watch.question(stream=stream))
    assert response is not None
    assert response.status_code >= 400


@pytest.mark.parametrize("crash_after", [0, 3])
@pytest.mark.parametrize("stream", [True, False])
def test_a_crash_leaves_nothing(watch: Watch, crash_after: int, stream: bool) -> None:
    watch.says(crash_after=crash_after)
    response = watch.post(watch.question(stream=stream))
    assert response is not None
    assert (response.status_code >= 400) or "engine_failed" in response.text
    watch.ready()
    watch.says()
    assert watch.post() is not None


class Faulty(tuple[str, ...]):
    """Tokens among which something is wrong, and says what it was working on."""

    def __getitem__(self, index: Any) -> Any:
        token = super().__getitem__(index)
        if token == "fault":
            raise RuntimeError(f"cannot generate {self!r}")
        return token


@pytest.mark.parametrize("stream", [True, False])
def test_a_fault_that_nobody_foresaw_leaves_nothing(watch: Watch, stream: bool) -> None:
    watch.says(tokens=Faulty((watch.marker, " and", "fault")))
    response = watch.post(watch.question(stream=stream))
    assert response is None or response.status_code == 500 or "error" in response.text

    def script(_: str, body: Mapping[str, Any]) -> Answer:
        raise ValueError(body)

    watch.at.live.engine.script = script
    watch.refused(500, watch.question(stream=stream))
    assert "request.failed" in watch.at.live.stream.getvalue()


def test_cancellation_leaves_nothing(watch: Watch) -> None:
    watch.says(tokens=(f" {watch.marker}",) * 500, rate=50)
    engine = watch.at.live.engine
    with watch.client.http.stream(
        "POST", CHAT, json=watch.question(stream=True), headers=watch.headers
    ) as response:
        assert watch.marker.encode() in next(response.iter_bytes())
    until(lambda: engine.running == 0)
    until(lambda: watch.at.live.worker.open_requests == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_time_running_out_leaves_nothing(watch: Watch, stream: bool) -> None:
    watch.says(stall_after=2)
    response = watch.post(watch.question(stream=stream))
    assert response is not None
    assert "timeout" in response.text
    hasty = httpx2.Timeout(60, read=0.1)  # connecting may take its time
    with pytest.raises(httpx2.ReadTimeout) as caught:
        watch.client.http.post(CHAT, json=watch.question(), headers=watch.headers, timeout=hasty)
    watch.search.add_error("exceptions", caught.value)
    until(lambda: watch.at.live.engine.running == 0)


def test_what_is_too_large_leaves_nothing(watch: Watch) -> None:
    large = watch.question(padding=watch.marker * 10_000)
    assert watch.post(large) is None  # the worker's 413 is not sealed
    careful = watch.at.client(settings=ClientSettings(max_request_body=1000))
    with pytest.raises(httpx2.RemoteProtocolError) as caught:
        careful.http.post(CHAT, json=large, headers=watch.headers)
    watch.search.add_error("exceptions", caught.value)
    watch.says(tokens=(watch.marker * 100_000,))
    watch.post()


BODIES: dict[str, Callable[[str], bytes]] = {
    "malformed": lambda marker: b'{"model":"fake","messages":"' + marker.encode(),
    "a member twice": lambda marker: f'{{"{marker}":1,"{marker}":2}}'.encode(),
    "not an object": lambda marker: json.dumps([marker]).encode(),
    "not UTF-8": lambda marker: b"\xff" + marker.encode(),
    "a wrong number": lambda marker: f'{{"model":"fake","x":{marker}}}'.encode(),
    "deep": lambda marker: b"[" * 50_000 + marker.encode(),
    "no model": lambda marker: json.dumps({"messages": marker}).encode(),
    "a model that is a list": lambda marker: json.dumps({"model": [marker]}).encode(),
    "another model": lambda marker: json.dumps({"model": marker}).encode(),
    "a bad constraint": lambda marker: json.dumps(
        {"model": "fake", "provider": {"aci_session_ids": [marker]}}
    ).encode(),
    "an unknown constraint": lambda marker: json.dumps(
        {"model": "fake", "provider": {f"aci_{marker}": marker}}
    ).encode(),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_refused_is_not_repeated(watch: Watch, name: str) -> None:
    response = watch.post(json=None, content=BODIES[name](watch.marker))
    assert response is not None
    assert response.status_code in {400, 404}
    assert not watch.at.live.engine.requests


def test_a_header_that_is_refused_is_not_repeated(watch: Watch) -> None:
    marker = watch.marker
    for fields, status in (
        ({"x-custom": marker, "user-agent": marker, "cookie": marker, "referer": marker}, 200),
        ({"authorization": f"Bearer {marker}"}, 401),
        ({"authorization": f"Basic {marker}"}, 401),
        ({"authorization": f"Bearer {watch.key}{marker}"}, 401),
        ({"x-cloister-cache-secret": marker}, 400),
        ({"idempotency-key": marker * 20}, 400),
        ({"idempotency-key": marker}, 200),
        ({"idempotency-key": marker}, 409),
        ({f"x-{marker}": "1"}, 200),
        ({f"x-{number}": marker for number in range(150)}, 413),
        ({"x-long": marker * 5000}, 413),
    ):
        watch.refused(status, headers={**watch.headers, **fields})
    watch.post(headers={**watch.headers, "x-broken": f"{marker}\x00"})


def test_a_path_that_is_refused_is_not_repeated(watch: Watch) -> None:
    marker = watch.marker
    for path, status in (
        (f"/v1/{marker}", 404),
        (f"/v1/aci/receipts/{marker}", 405),
        (f"{CHAT}?prompt={marker}", 200),
        (f"/v1/models/{marker}", 405),
    ):
        watch.refused(status, path=path)
    for path in (f"/v1/aci/receipts/{marker}", f"/v1/models/{marker}", f"/v1/{marker}?q={marker}"):
        response = watch.client.http.get(path, headers=watch.headers)
        assert response.status_code == 404
        watch.search.add("bodies of errors", response.content)


def test_what_comes_in_clear_is_not_repeated(watch: Watch) -> None:
    """Somebody forgot to connect: the worker must not make it worse."""
    url, marker = watch.at.live.url, watch.marker
    secret = {"authorization": f"Bearer {watch.key}", "x-custom": marker}
    # Of a client that is not ours, so what its own library logs of it is not ours either.
    with httpx2.Client(trust_env=False) as client:
        for method, path in (
            ("POST", CHAT),
            ("GET", f"/{marker}"),
            ("POST", "/ohttp"),
            ("GET", f"{ATTESTATION}?nonce={marker}"),
            ("GET", f"{ATTESTATION}?{marker}=1&nonce={'AB' * 32}"),
            ("DELETE", f"/v1/{marker}"),
        ):
            answer = client.request(method, url + path, headers=secret, json=watch.question())
            assert answer.status_code >= 400 or path.startswith(ATTESTATION)
            watch.search.add("bodies of errors", answer.content + repr(answer.headers).encode())


def test_a_channel_that_fails_says_nothing_of_what_it_carried(watch: Watch) -> None:
    proxy = watch.at.proxy
    pages = (watch.marker, json.dumps({"type": watch.marker, "title": watch.marker}))
    for forged, page in itertools.product((200, 400, 502), pages):
        proxy.forge = forge_page(forged, "application/problem+json", page.encode())
        assert watch.post() is None
    proxy.forge = None
    for keep in (0, 1, 2):
        proxy.on_reply = cut_reply(keep)
        assert watch.post(watch.question(stream=True)) is None
    proxy.on_reply = None
    assert watch.post() is not None
