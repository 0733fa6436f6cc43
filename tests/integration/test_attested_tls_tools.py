"""``cloister verify --write-cert``, and what curl and the OpenAI SDK do with the file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from cloister.attester.kit import ClientKit
from cloister.channel.receipt import parse_receipt, verify_receipt
from cloister.cli.main import main
from cloister.strictjson import JsonObject
from cloister.testing.fake_engine import Answer, FakeEngine
from cloister.testing.simulated_tpm import default_configuration
from cloister.verifier import policy as policies
from cloister.worker.settings import WorkerSettings
from support.scene import LiveWorker, launched, live_worker, until
from support.sealed import chat

PATH = "/v1/chat/completions"
NAMES = ("localhost", "127.0.0.1")
SAYS_SO: JsonObject = {**default_configuration(), "worker": {"attested_tls": True}}
PEER_REFUSED = 60
"""curl's exit status for a certificate that does not lead to what is pinned."""

Run = Callable[..., tuple[int, str, str]]


@contextlib.contextmanager
def with_tls(
    *,
    names: tuple[str, ...] = NAMES,
    configuration: JsonObject = SAYS_SO,
    settings: WorkerSettings | None = None,
    **options: Any,
) -> Iterator[LiveWorker]:
    """A worker with attested TLS whose evidence a verifier affirms."""
    with live_worker(
        settings or WorkerSettings(attested_tls=bool(names)),
        attester=launched(configuration=configuration),
        tls_names=names,
        **options,
    ) as live:
        yield live


@pytest.fixture
def live() -> Iterator[LiveWorker]:
    with with_tls() as made:
        yield made


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_PROXY", "*")

    def command(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert isinstance(leaving.value.code, int)
        return leaving.value.code, out, err

    return command


def kit(live: LiveWorker, folder: Path) -> Path:
    attester = live.attester
    ClientKit(
        roots=attester.roots,
        reference_values=attester.reference_values,
        policy=policies.development(),
    ).write(folder)
    return folder


def pinning(live: LiveWorker, folder: Path, *, tls: str | None = None) -> list[str | Path]:
    """The command that verifies `live` and writes ``pin.pem``."""
    return [
        *("verify", live.url, "--kit", kit(live, folder / "kit"), "--development"),
        *("--write-cert", folder / "pin.pem"),
        *("--tls", tls or f"127.0.0.1:{live.tls_port}"),
    ]


@pytest.fixture
def pin(live: LiveWorker, run: Run, tmp_path: Path) -> Path:
    assert run(*pinning(live, tmp_path))[0] == 0
    return tmp_path / "pin.pem"


def curl(*arguments: str | Path) -> tuple[int, bytes]:
    done = subprocess.run(
        ["curl", "--silent", "--noproxy", "*", "--max-time", "60", *map(str, arguments)],
        capture_output=True,
        check=False,
    )
    return done.returncode, done.stdout


def url(live: LiveWorker, path: str = PATH, *, host: str = "127.0.0.1") -> str:
    return f"https://{host}:{live.tls_port}{path}"


# What is written


def test_the_file_is_written_and_what_it_is_good_for_is_said(
    live: LiveWorker, run: Run, tmp_path: Path
) -> None:
    status, out, err = run(*pinning(live, tmp_path))
    assert status == 0
    certificates = live.worker.context.keys.current.certificates
    assert certificates is not None
    assert (tmp_path / "pin.pem").read_bytes() == certificates.pin
    assert (tmp_path / "pin.pem").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["pin.pem"]
    assert "good until" in err
    assert "Nobody checks the worker again" in err
    assert "takes requests over attested TLS" in out


def test_an_old_file_is_replaced(live: LiveWorker, run: Run, tmp_path: Path) -> None:
    (tmp_path / "pin.pem").write_text("old")
    assert run(*pinning(live, tmp_path))[0] == 0
    assert (tmp_path / "pin.pem").read_bytes().startswith(b"-----BEGIN CERTIFICATE-----")


def test_somebody_in_between_is_found_out(live: LiveWorker, run: Run, tmp_path: Path) -> None:
    assert run(*pinning(live, tmp_path))[0] == 0
    before = (tmp_path / "pin.pem").read_bytes()
    # As good as ours in everything, for the same names, but with a key of its own.
    with with_tls() as other:
        status, _, err = run(*pinning(live, tmp_path, tls=f"127.0.0.1:{other.tls_port}"))
        assert (status, "tls.other_key" in err) == (1, True)
        assert (tmp_path / "pin.pem").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["pin.pem"]


@pytest.mark.parametrize("lacks", ["keys", "configuration"])
def test_a_worker_that_does_not_say_so_has_none(run: Run, tmp_path: Path, lacks: str) -> None:
    with with_tls() as live:
        assert run(*pinning(live, tmp_path / "twin"))[0] == 0
    names = () if lacks == "keys" else NAMES
    configuration = SAYS_SO if lacks == "keys" else default_configuration()
    with with_tls(names=names, configuration=configuration) as live:
        port = live.tls_port or 1
        status, _, err = run(*pinning(live, tmp_path, tls=f"127.0.0.1:{port}"))
        assert (status, "tls.not_listed" in err) == (1, True)
        assert not (tmp_path / "pin.pem").exists()


def test_nothing_is_written_of_a_worker_that_is_not_affirmed(
    live: LiveWorker, run: Run, tmp_path: Path
) -> None:
    arguments = pinning(live, tmp_path)
    assert run(*arguments)[0] == 0
    (tmp_path / "pin.pem").unlink()
    arguments.remove("--development")
    status, _, err = run(*arguments)
    assert status == 1
    assert "no certificate was written" in err
    assert not (tmp_path / "pin.pem").exists()


def test_a_name_that_the_certificate_lacks_is_said(run: Run, tmp_path: Path) -> None:
    with with_tls(names=("127.0.0.1",)) as live:
        assert run(*pinning(live, tmp_path))[0] == 0
        (tmp_path / "pin.pem").unlink()
    with with_tls(names=("worker.example",)) as live:
        status, _, err = run(*pinning(live, tmp_path))
        assert (status, "tls.name" in err) == (1, True)
        assert not (tmp_path / "pin.pem").exists()


def test_nobody_there_and_no_tls_there(live: LiveWorker, run: Run, tmp_path: Path) -> None:
    in_clear = live.url.removeprefix("http://")
    for address, code in (("127.0.0.1:1", "tls.unreachable"), (in_clear, "tls.handshake")):
        status, _, err = run(*pinning(live, tmp_path, tls=address))
        assert (status, code in err) == (4, True)
        assert not (tmp_path / "pin.pem").exists()


def test_a_folder_that_cannot_be_written_to(live: LiveWorker, run: Run, tmp_path: Path) -> None:
    arguments = pinning(live, tmp_path)
    arguments[arguments.index(tmp_path / "pin.pem")] = tmp_path / "nowhere" / "pin.pem"
    status, _, err = run(*arguments)
    assert (status, "tls.file" in err) == (2, True)


def test_options_that_would_do_nothing_are_refused(
    live: LiveWorker, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    pinned = ["--write-cert", tmp_path / "pin.pem"]
    known = ["--kit", kit(live, tmp_path / "kit"), "--development"]
    for arguments in (
        [tmp_path / "file", *pinned],
        [tmp_path / "file", "--tls", "127.0.0.1"],
        ["--case", tmp_path, *pinned],
        [live.url, *known, "--tls", "127.0.0.1"],
        [live.url, *known, *pinned, "--proxy", "http://127.0.0.1:1"],
    ):
        status, _, err = run("verify", *arguments)
        assert (status, "verify.options" in err) == (2, True)


# What tools do with it


@pytest.mark.curl
def test_curl_asks_and_checks_the_receipt_by_hand(
    live: LiveWorker, pin: Path, tmp_path: Path
) -> None:
    body = json.dumps(chat("hello"))
    head, answer = tmp_path / "head", tmp_path / "answer"
    asked = ("--cacert", pin, "--data", body, "--dump-header", head, "--output", answer)
    assert curl(*asked, url(live))[0] == 0
    assert json.loads(answer.read_bytes())["choices"][0]["message"]["content"]
    fields = dict(line.split(": ", 1) for line in head.read_text().splitlines() if ": " in line)
    found = curl("--cacert", pin, url(live, "/v1/aci/receipts/" + fields["x-receipt-id"]))[1]
    verify_receipt(
        parse_receipt(found),
        keyset=live.worker.context.keys.current.keyset,
        request_hash=hashlib.sha256(body.encode()).digest(),
        response_hash=hashlib.sha256(answer.read_bytes()).digest(),
    )


@pytest.mark.curl
def test_curl_streams(live: LiveWorker, pin: Path) -> None:
    body = json.dumps(chat(stream=True))
    status, out = curl("--cacert", pin, "--no-buffer", "--data", body, url(live))
    assert status == 0
    assert out.count(b'"delta"') >= 32
    assert out.endswith(b"data: [DONE]\n\n")


@pytest.mark.curl
def test_curl_sends_a_large_request(live: LiveWorker, pin: Path, tmp_path: Path) -> None:
    (tmp_path / "body").write_text(json.dumps(chat("x" * 3_000_000)))
    status, _ = curl("--cacert", pin, "--data-binary", f"@{tmp_path}/body", url(live))
    assert status == 0
    assert len(live.prompts[-1]) == 3_000_000


@pytest.mark.curl
def test_curl_lets_nobody_else_in(live: LiveWorker, pin: Path) -> None:
    body = ("--data", json.dumps(chat("secret")))
    assert curl("--cacert", pin, *body, url(live))[0] == 0
    assert curl("--cacert", pin, *body, url(live, host="localhost"))[0] == 0
    asked = len(live.engine.requests)
    assert curl(*body, url(live))[0] == PEER_REFUSED  # by the system's authorities
    with with_tls() as other:
        assert curl("--cacert", pin, *body, url(other))[0] == PEER_REFUSED
        assert not other.engine.requests
    named = ("--resolve", f"example.org:{live.tls_port}:127.0.0.1")
    assert curl("--cacert", pin, *named, *body, url(live, host="example.org"))[0] == PEER_REFUSED
    assert curl("--cacert", pin, "--tls-max", "1.2", *body, url(live))[0] == 35
    assert curl(*body, url(live).replace("https", "http"))[0] != 0
    assert len(live.engine.requests) == asked


@pytest.mark.curl
def test_curl_refuses_a_pin_whose_time_is_over(live: LiveWorker, pin: Path, tmp_path: Path) -> None:
    assert curl("--cacert", pin, url(live, "/v1/models"))[0] == 0
    # As the worker would have made it two hours ago, with this same key.
    key = live.worker.context.keys.tls_key
    assert key is not None
    now = live.clocks.wall()
    over = key.certificates(now=now - 7200, not_after=int(now - 10))
    (tmp_path / "over.pem").write_bytes(over.pin)
    assert curl("--cacert", tmp_path / "over.pem", url(live, "/v1/models"))[0] == PEER_REFUSED


@pytest.mark.curl
def test_a_restarted_worker_has_another_key(run: Run, tmp_path: Path) -> None:
    with with_tls() as first:
        assert run(*pinning(first, tmp_path))[0] == 0
        assert curl("--cacert", tmp_path / "pin.pem", url(first, "/v1/models"))[0] == 0
    with with_tls() as second:
        refused = curl("--cacert", tmp_path / "pin.pem", url(second, "/v1/models"))
        assert refused[0] == PEER_REFUSED


@pytest.mark.curl
def test_curl_that_is_ended_frees_the_engine(run: Run, tmp_path: Path) -> None:
    engine = FakeEngine(script=lambda *_: Answer(rate=50, tokens=("x",) * 10_000))
    with with_tls(engine=engine) as live:
        assert run(*pinning(live, tmp_path))[0] == 0
        command = ["curl", "--silent", "--noproxy", "*", "--no-buffer", "--cacert"]
        command += [str(tmp_path / "pin.pem"), "--data", json.dumps(chat(stream=True)), url(live)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            process.terminate()
        until(lambda: engine.cancelled == 1)


def test_the_openai_sdk_with_a_pinned_client(live: LiveWorker, pin: Path) -> None:
    def ask(pinned: LiveWorker) -> tuple[str | None, str]:
        context = ssl.create_default_context(cafile=str(pin))
        http = httpx2.Client(verify=context, trust_env=False)
        with openai.OpenAI(
            base_url=url(pinned, "/v1"), api_key="none", http_client=http, max_retries=0
        ) as client:
            messages: Any = [{"role": "user", "content": "hello"}]
            whole = client.chat.completions.create(model="fake", messages=messages)
            stream = client.chat.completions.create(model="fake", messages=messages, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            return whole.choices[0].message.content, text

    whole, streamed = ask(live)
    assert whole == streamed != ""
    with with_tls() as other:
        with pytest.raises(openai.APIConnectionError):
            ask(other)
        assert not other.engine.requests
