"""``cloister verify``, ``chat`` and ``proxy`` against simulated evidence, over real sockets."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import openai
import pytest
import uvicorn

from cloister.attester.kit import ClientKit
from cloister.cli.main import main
from cloister.cli.proxy import allowed_hosts
from cloister.cli.verify import encode
from cloister.client import open_async_connection
from cloister.client.proxy import LocalProxy
from cloister.client.trust import make_trust
from cloister.endorsements.pinned import pinned_roots
from cloister.endorsements.roots import Vendor
from cloister.errors import AppraisalError, ConfigurationError
from cloister.testing.simulated_tpm import SimulatedAttester, default_components
from cloister.verifier import policy as policies
from support.fake_worker import FakeWorker, json_answer, openai_like
from support.hostile import HostileProxy, cut_reply
from support.serve import served

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def attester() -> SimulatedAttester:
    return SimulatedAttester.make(now=datetime.now(UTC) - timedelta(minutes=1))


@pytest.fixture
def kit(attester: SimulatedAttester, tmp_path: Path) -> Path:
    ClientKit(
        roots=attester.roots,
        reference_values=attester.reference_values,
        policy=policies.development(),
    ).write(tmp_path / "kit")
    return tmp_path / "kit"


@pytest.fixture
def proxy(attester: SimulatedAttester) -> HostileProxy:
    return HostileProxy(FakeWorker(attester=attester, application=openai_like))


@pytest.fixture
def url(proxy: HostileProxy) -> Iterator[str]:
    with served(proxy) as address:
        yield address


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: str | Path, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as leaving:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert isinstance(leaving.value.code, int)
        return leaving.value.code, out, err

    return command


def other_software(attester: SimulatedAttester) -> SimulatedAttester:
    """The same CA, but a worker that runs one changed component."""
    first, *rest = default_components()
    return SimulatedAttester.make(
        now=datetime.now(UTC) - timedelta(minutes=1),
        ca=attester.ca,
        components=[dataclasses.replace(first, digest="sha256:" + "0" * 64), *rest],
    )


# Trust


def test_a_kit_alone_never_admits_a_development_platform(
    attester: SimulatedAttester, kit: Path
) -> None:
    nonce = b"n" * 32
    now = datetime.now(UTC)

    def verdict(**options: object) -> None:
        trust = make_trust(kit=kit, **options)  # type: ignore[arg-type]
        trust.appraise_report(attester.report(nonce), nonce=nonce, at=now).require_affirming()

    verdict(development=True)
    verdict(policy=policies.development())
    with pytest.raises(AppraisalError, match="development"):
        verdict()
    with pytest.raises(ConfigurationError) as caught:
        verdict(policy=policies.strict(), development=True)
    assert caught.value.code == "trust.contradiction"


def test_without_roots_the_vendors_own_are_pinned(
    attester: SimulatedAttester, tmp_path: Path
) -> None:
    pinned = make_trust(reference_values=attester.reference_values).roots
    assert pinned == pinned_roots()
    assert pinned.vendor(*Vendor)
    assert not pinned.enrolment_cas
    assert not any(anchor.development for anchor in pinned.anchors)
    (tmp_path / "enrolment-ca.pem").write_bytes(attester.roots.to_pem())
    both = make_trust(kit=tmp_path, reference_values=attester.reference_values).roots
    assert both == pinned.merged(attester.roots)


def test_without_a_kit_reference_values_must_be_given(attester: SimulatedAttester) -> None:
    make_trust(reference_values=attester.reference_values, roots=attester.roots)
    for roots in (None, attester.roots):
        with pytest.raises(ConfigurationError) as caught:
            make_trust(roots=roots)
        assert caught.value.code == "trust.missing"
    assert (
        make_trust(reference_values=attester.reference_values, roots=attester.roots).policy
        == policies.strict()
    )


# verify


def test_verify_affirms(run: Run, url: str, kit: Path) -> None:
    code, out, _ = run("verify", url, "--kit", kit, "--development")
    assert code == 0
    assert "affirmed: every claim holds" in out
    assert "development" in out
    assert "Not proven" in out
    assert "software TPM" in out


def test_verify_as_json(run: Run, url: str, kit: Path) -> None:
    code, out, _ = run("verify", f"{url}/v1", "--kit", kit, "--development", "--json")
    assert code == 0
    ear = json.loads(out)
    assert ear["submods"]["cpu0"]["ear.status"] in {"affirming", 2}
    assert len(ear["eat_nonce"]) == 43


def test_verify_with_single_files(run: Run, url: str, kit: Path) -> None:
    files = (
        "--reference-values",
        kit / "reference-values.json",
        "--root",
        kit / "enrolment-ca.pem",
    )
    code, _, _ = run("verify", url, *files, "--policy", kit / "policy.toml")
    assert code == 0
    code, out, _ = run("verify", url, *files)
    assert code == 1  # the strict policy
    assert "development" in out


def test_verify_refuses(
    run: Run, url: str, kit: Path, proxy: HostileProxy, attester: SimulatedAttester
) -> None:
    proxy.upstream = FakeWorker(attester=other_software(attester))
    code, out, _ = run("verify", url, "--kit", kit, "--development")
    assert code == 1
    assert "refused" in out
    code, out, _ = run("verify", url, "--kit", kit, "--development", "--json")
    assert code == 1
    assert "contraindicated" in out or "96" in out


def test_verify_cannot_use_what_is_not_there(run: Run, url: str, tmp_path: Path) -> None:
    code, _, err = run("verify", url, "--kit", tmp_path)
    assert code == 2
    assert "reference-values.json" in err
    code, _, err = run("verify", "nonsense", "--kit", tmp_path)
    assert code == 2


def test_verify_reaches_nobody(run: Run, kit: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        code, out, err = run("verify", address, "--kit", kit)
    assert code == 4
    assert out == ""
    assert "fetch.unreachable" in err


# chat


def test_chat_answers_what_comes_through_a_pipe(run: Run, url: str, kit: Path) -> None:
    code, out, _ = run(
        "chat", url, "--kit", kit, "--development",
        stdin="hello there\n\n/model\n/why\n/clear\n/help\nand again\n/quit\nnever asked\n",
    )  # fmt: skip
    assert code == 0
    assert "affirmed" in out
    assert "hello there" in out
    assert "and again" in out
    assert out.count("receipt rcpt-1 verified") == 2
    assert "* tiny" in out
    assert "Not proven" in out
    assert "never asked" not in out


def test_chat_refuses_to_speak_to_a_refused_worker(
    run: Run, url: str, kit: Path, proxy: HostileProxy, attester: SimulatedAttester
) -> None:
    proxy.upstream = FakeWorker(attester=other_software(attester))
    code, out, _ = run("chat", url, "--kit", kit, "--development", stdin="a secret\n")
    assert code == 1
    assert "refused" in out
    assert proxy.sealed == []


def test_chat_in_a_pipe_ends_with_the_first_failure(
    run: Run, url: str, kit: Path, proxy: HostileProxy
) -> None:
    arguments = ("chat", url, "--kit", kit, "--development", "--model", "tiny")
    code, _, _ = run(*arguments, stdin="one two\n")
    assert code == 0
    proxy.on_reply = cut_reply(3)
    code, out, _ = run(*arguments, stdin="one two\nthree\n")
    assert code == 1
    assert "channel.truncated" in out
    assert "three" not in out


def test_chat_does_not_obey_what_a_model_says(
    run: Run, url: str, kit: Path, proxy: HostileProxy
) -> None:
    code, out, _ = run(
        "chat", url, "--kit", kit, "--development", stdin="a\x1b[2Jb [red]c[/red] \u202ed\n"
    )
    assert code == 0
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "[red]c[/red]" in out


def test_chat_does_not_obey_what_an_error_says(
    run: Run, url: str, kit: Path, proxy: HostileProxy, attester: SimulatedAttester
) -> None:
    hostile = {"error": {"message": "\x1b[2Jmarker", "code": "\x1b[2Jmarker"}}
    proxy.upstream = FakeWorker(
        attester=attester, application=lambda _, __: json_answer(hostile, 400)
    )
    code, out, _ = run("chat", url, "--kit", kit, "--development", "--model", "m", stdin="a\n")
    assert code == 1
    assert out.count("marker") == 2
    assert "\x1b" not in out


# proxy


class Running:
    """A local proxy in a thread."""

    def __init__(self, url: str, kit: Path) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._connection = open_async_connection(url, kit=kit, development=True)
        app = LocalProxy(
            self._connection, allowed_hosts=allowed_hosts("127.0.0.1", self.port), encode=encode
        )
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        async with self._connection:
            await self._server.serve(sockets=[self._listening])

    def replace_transport(self, transport: httpx2.AsyncBaseTransport) -> None:
        """Put something else where requests would be sealed."""
        self._connection.http = httpx2.AsyncClient(transport=transport)

    def __enter__(self) -> Running:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listening.close()


@pytest.fixture
def local(url: str, kit: Path) -> Iterator[Running]:
    with Running(url, kit) as running:
        yield running


def test_any_client_speaks_through_the_proxy(local: Running, proxy: HostileProxy) -> None:
    with openai.OpenAI(base_url=f"{local.url}/v1", api_key="sk-mine", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        stream = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "one two"}], stream=True
        )
        assert [chunk.choices[0].delta.content for chunk in stream] == ["one ", "two "]
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="tiny", input="x")
    worker = proxy.upstream
    assert isinstance(worker, FakeWorker)
    head = dict(worker.opened[0][0].headers)
    assert head[b"authorization"] == b"Bearer sk-mine"
    assert worker.opened[0][0].path == b"/v1/models"


def test_a_caller_who_leaves_stops_the_request(local: Running) -> None:
    left = threading.Event()

    class Slow(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            if request.url.path == "/v1/models":
                return httpx2.Response(200, stream=httpx2.ByteStream(b"{}"))
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                left.set()
                raise
            return httpx2.Response(200, stream=httpx2.ByteStream(b"{}"))

    local.replace_transport(Slow())
    hasty = httpx2.Timeout(60, read=0.5)
    assert httpx2.get(f"{local.url}/v1/models").status_code == 200
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"{local.url}/v1/chat/completions", json={}, timeout=hasty)
    assert left.wait(60)


def test_the_page_shows_what_was_checked(local: Running) -> None:
    before = httpx2.get(local.url).text
    assert "No verdict" in before
    assert httpx2.get(f"{local.url}/verification.json").status_code == 503
    httpx2.get(f"{local.url}/v1/models")
    response = httpx2.get(local.url)
    page = response.text
    assert "Affirmed: every claim holds." in page
    assert "This is a development platform." in page
    assert "What is not proven" in page
    assert 'http-equiv="refresh"' in page
    assert "<script" not in page
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "quote" in page
    ear = httpx2.get(f"{local.url}/verification.json").json()
    assert "cpu0" in ear["submods"]


@pytest.mark.parametrize("host", ["evil.test", "evil.test:80", "127.0.0.1", "localhost:1", ""])
@pytest.mark.parametrize("path", ["/", "/v1/models", "/verification.json"])
def test_other_names_are_refused(local: Running, proxy: HostileProxy, host: str, path: str) -> None:
    assert httpx2.get(local.url + path, headers={"host": f"LOCALHOST:{local.port}"}).is_success or (
        path == "/verification.json"
    )
    seen = len(proxy.seen)
    assert httpx2.get(local.url + path, headers={"host": host}).status_code in {400, 421}
    assert len(proxy.seen) == seen


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.test"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "https://127.0.0.1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_pages_of_others_are_refused(
    local: Running, proxy: HostileProxy, headers: dict[str, str]
) -> None:
    path = f"{local.url}/v1/chat/completions"
    own = {"origin": local.url, "sec-fetch-site": "same-origin"}
    question = {"messages": [{"role": "user", "content": "one"}]}
    assert httpx2.post(path, json=question, headers=own).status_code == 200
    seen = len(proxy.seen)
    answer = httpx2.post(path, json=question, headers=headers)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    assert len(proxy.seen) == seen


def test_cookies_of_other_programs_stay_here(local: Running, proxy: HostileProxy) -> None:
    httpx2.get(f"{local.url}/v1/models", headers={"cookie": "other=1", "referer": "http://x/y"})
    worker = proxy.upstream
    assert isinstance(worker, FakeWorker)
    names = {name for name, _ in worker.opened[0][0].headers}
    assert not names & {b"cookie", b"referer", b"origin", b"host"}


def test_a_cut_answer_breaks_the_connection(local: Running, proxy: HostileProxy) -> None:
    path = f"{local.url}/v1/chat/completions"
    question = {"messages": [{"role": "user", "content": "one two three"}], "stream": True}
    assert httpx2.post(path, json=question).text.rstrip().endswith("[DONE]")
    proxy.on_reply = cut_reply(4)
    received = bytearray()
    with (
        pytest.raises(httpx2.RemoteProtocolError),
        httpx2.stream("POST", path, json=question) as response,
    ):
        for piece in response.iter_raw():
            received += piece
    assert b"[DONE]" not in received
    assert b"channel.truncated" in received


def test_a_refused_worker_is_a_502(
    url: str, kit: Path, proxy: HostileProxy, attester: SimulatedAttester
) -> None:
    proxy.upstream = FakeWorker(attester=other_software(attester))
    with Running(url, kit) as local:
        answer = httpx2.get(f"{local.url}/v1/models")
        assert answer.status_code == 502
        assert answer.headers["x-should-retry"] == "false"
        assert answer.json()["error"]["type"] == "cloister_error"
        assert "Refused" in httpx2.get(local.url).text
    assert proxy.sealed == []


def test_the_proxy_command_refuses_a_refused_worker(
    run: Run, url: str, kit: Path, proxy: HostileProxy, attester: SimulatedAttester
) -> None:
    proxy.upstream = FakeWorker(attester=other_software(attester))
    code, out, _ = run("proxy", url, "--kit", kit, "--development")
    assert code == 1
    assert "refused" in out


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_the_proxy_command_wants_one_address(run: Run, url: str, kit: Path, address: str) -> None:
    code, _, err = run("proxy", url, "--kit", kit, "--development", "--unsafe-host", address)
    assert code == 2
    assert "proxy.address" in err
