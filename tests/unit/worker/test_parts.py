"""Small parts: padding, wire values, problems, cache domains, logs, operator settings."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.channel.bhttp import ResponseEncoder, ResponseHead
from cloister.channel.claims import MAX_MODELS, parse_claims
from cloister.errors import ConfigurationError
from cloister.evidence.component import SEPARATIONS, separation_mode
from cloister.testing.fake_engine import FakeEngine
from cloister.worker import problems, wire
from cloister.worker.cache_domain import CacheDomains
from cloister.worker.configuration import (
    check_engines,
    claims_of,
    effective_configuration,
    settings_of,
)
from cloister.worker.events import LineAssembler, StreamPadding
from cloister.worker.logs import EventLog, silence_loop
from cloister.worker.metrics import Metrics
from cloister.worker.operation import Operation
from cloister.worker.operator import OperatorServer
from cloister.worker.settings import KeySettings, Separation, SeparationMode, WorkerSettings
from support.memory import count_in_all

# -- padding ------------------------------------------------------------------------------------


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(0, 40_000), min_size=1, max_size=6), st.sampled_from([128, 256, 1024]))
def test_padded_pieces_are_whole_buckets_and_say_the_same(sizes: list[int], bucket: int) -> None:
    padding = StreamPadding(bucket)
    for size in sizes:
        event = b"data: " + b"x" * size + b"\n\n"
        padded = padding.pad(event)
        encoder = ResponseEncoder()
        encoder.head(ResponseHead(status=200))
        assert len(encoder.data(padded)) % bucket == 0
        comment, rest = padded[: -len(event)], padded[-len(event) :]
        assert rest == event
        assert comment == b"" or (
            comment[:1] == b":" and comment[-1:] == b"\n" and not comment[1:-1].strip(b" ")
        )


def test_padding_can_be_off() -> None:
    assert StreamPadding(1).pad(b"data: 1\n\n") == b"data: 1\n\n"


LINES = st.sampled_from(
    [
        b"data: 1\n",
        b"\n",
        b"data: \xc3\xa9\r\n",
        b"data:",
        b"no error",
        b" [DONE]",
        b"id: 7\n",
        b"\r",
    ]
)


def passed(reads: list[bytes]) -> tuple[bytes, bool]:
    lines = LineAssembler(1 << 20)
    out = [lines.feed(read) for read in reads]
    assert all(piece == b"" or piece.endswith(b"\n") for piece in out)
    return b"".join(out) + lines.rest(), lines.failed


@settings(deadline=None)
@given(st.lists(LINES | st.binary(max_size=30)))
def test_lines_are_the_same_however_they_arrive(reads: list[bytes]) -> None:
    whole, failed = passed(reads)
    assert passed([b"".join(reads)]) == (whole, failed)
    assert passed([bytes([one]) for one in b"".join(reads)]) == (whole, failed)
    for line in whole.splitlines():
        assert line == b"" or line.startswith(b"data:")


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs"]))))
def test_lines_of_data_are_neither_lost_nor_changed(texts: list[str]) -> None:
    reads = [f"data: {text}\n\n".encode() for text in texts if "[DONE]" not in text]
    assert passed(reads) == (b"".join(reads), False)


@pytest.mark.parametrize(
    ("stream", "kept", "failed"),
    [
        (b"data: 1\n\ndata: [DONE]\n\n", b"data: 1\n\ndata: [DONE]\n\n", False),
        (b"data: [DONE]\n\ndata: 2\n\n", b"data: [DONE]\n\n", False),
        (b"data: [DONE]\r\ndata: 2\r\n", b"data: [DONE]\n\n", False),
        (b": c\nid: 1\nretry: 0\nevent: x\nX: y\ndata: 1\n\n", b"data: 1\n\n", False),
        (b"data: 1\rid: 2\n\n", b"data: 1\n\n", False),
        (b'data: {"\\u00e9":1}\n\n', b'data: {"\\u00e9":1}\n\n', False),
        (b'data: 1\n\ndata: {"\\u0065rror":"x"}\n\n', b"data: 1\n\n", True),
        (b"data: 1\n\ndata: \x00\n\n", b"data: 1\n\n", True),
        (b"data: 1\n\ndata: \xff\n\n", b"data: 1\n\n", True),
        (b"data: 1\n\ndata: \x1b[2J\n\n", b"data: 1\n\n", True),
    ],
)
def test_what_of_a_stream_goes_on(stream: bytes, kept: bytes, *, failed: bool) -> None:
    assert passed([stream]) == (kept, failed)


def test_translations_see_texts_whose_characters_are_cut() -> None:
    lines = LineAssembler(64, text=False)
    assert lines.feed(b"data: \xf0\x9f\n") == b"data: \xf0\x9f\n"
    assert lines.feed(b"data: \x98\x80\n") == b"data: \x98\x80\n"


def test_a_line_may_be_as_long_as_the_limit() -> None:
    lines = LineAssembler(8)
    assert lines.feed(b"data:") == b""
    assert lines.feed(b"123") == b""
    assert lines.feed(b"\n") == b"data:123\n"
    with pytest.raises(OverflowError):
        lines.feed(b"data:1234")


# -- wire ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=32))
def test_secrets_have_one_spelling(secret: bytes) -> None:
    assert wire.decode_secret(wire.encode_secret(secret), 32) == secret


@pytest.mark.parametrize(
    "value",
    [b"", b"A" * 42, b"A" * 44, b"A" * 42 + b"B", b"A" * 42 + b"=", b"+" + b"A" * 42, b"\xff" * 43],
)
def test_other_spellings_are_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="base64url"):
        wire.decode_secret(value, 32)


@pytest.mark.parametrize("value", [b"", b"x", b"Sun, 32 Nov 1994 08:49:37 GMT", b"\xff"])
def test_bad_dates(value: bytes) -> None:
    assert wire.parse_http_date(wire.http_date(1e9)) == 1e9
    with pytest.raises(ValueError):
        wire.parse_http_date(value)


def test_every_problem_is_a_fixed_sentence_in_a_known_shape() -> None:
    found = [value for value in vars(problems).values() if isinstance(value, problems.Problem)]
    assert len(found) > 30
    for problem in found:
        document = json.loads(problem.body())
        if problem.problem_type is None:
            assert document.keys() == {"error"}
            assert document["error"].keys() == {"message", "type", "param", "code"}
        else:
            assert document.keys() == {"type", "status", "title"}
        if problem.status in (429, 503):
            assert b"retry-after" in dict(problem.headers())


def test_cache_domains() -> None:
    domains = CacheDomains(os.urandom)
    one = domains.domain(b"ann", b"1" * 32)
    assert one == domains.domain(b"ann", b"1" * 32)
    others = {
        domains.domain(b"bob", b"1" * 32),
        domains.domain(b"ann", b"2" * 32),
        domains.domain(b"", b"1" * 32),
        CacheDomains(os.urandom).domain(b"ann", b"1" * 32),
        domains.domain(b"ann", None),
        domains.domain(b"ann", None),
    }
    assert len(others | {one}) == 7
    with pytest.raises(ValueError, match="32"):
        domains.domain(b"ann", b"short")


# -- logs ---------------------------------------------------------------------------------------


def test_failures_are_logged_by_type_alone() -> None:
    stream = io.StringIO()
    EventLog(stream).failure("x", ValueError("canary"))
    assert json.loads(stream.getvalue())["error"] == "ValueError"
    assert "canary" not in stream.getvalue()


def test_a_closed_stream_stops_nothing() -> None:
    stream = io.StringIO()
    stream.close()
    EventLog(stream).event("x")


async def test_the_loop_tells_no_texts() -> None:
    stream = io.StringIO()
    loop = asyncio.get_running_loop()
    silence_loop(loop, EventLog(stream))

    async def fail() -> None:
        raise ValueError("canary")

    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    del task
    import gc

    gc.collect()
    loop.set_exception_handler(None)
    assert json.loads(stream.getvalue())["error"] == "ValueError"
    assert "canary" not in stream.getvalue()


def test_a_silenced_process_tells_no_texts() -> None:
    code = """
import logging, sys, threading, warnings
from cloister.worker.logs import EventLog, silence_process
silence_process(EventLog(sys.stderr))
logging.getLogger("uvicorn.error").error("canary %s", "canary")
logging.getLogger("fresh").warning("canary")
try:
    raise ValueError("canary")
except ValueError:
    logging.getLogger("asyncio").exception("canary")
warnings.warn("canary")
def fail():
    raise KeyError("canary")
thread = threading.Thread(target=fail); thread.start(); thread.join()
class Bad:
    def __del__(self):
        raise TypeError("canary")
Bad()
raise OSError("canary")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "canary" not in done.stdout + done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert {event.get("error") for event in events} >= {
        "ValueError",
        "KeyError",
        "TypeError",
        "OSError",
    }


def test_hardening_is_granted() -> None:
    code = """
import os, resource
allowed = resource.getrlimit(resource.RLIMIT_CORE)[1]
from cloister.worker.hardening import harden_process
print(harden_process())
# At one byte the kernel hands a core to no program either.
assert resource.getrlimit(resource.RLIMIT_CORE) == ((1, 1) if allowed else (0, 0))
harden_process()
assert os.umask(0) == 0o077
import ctypes
assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "no_core=True, undumpable=True" in done.stdout
    assert "freed_memory_overwritten=True" in done.stdout


@pytest.mark.parametrize(
    ("soft", "hard", "granted", "left"),
    [
        (64, 9999, True, 9216),
        (9216, 9216, True, 9216),
        (9999, 9999, True, 9999),
        (64, 99, False, 99),
    ],
)
def test_connections_leave_descriptors_for_engines(
    soft: int, hard: int, granted: bool, left: int
) -> None:
    code = f"""
import resource
from cloister.worker.server import allow_connections
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
print(allow_connections(listeners=2), resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"{granted} ({left}, {hard})\n"


@pytest.mark.parametrize("hardened", [False, True])
def test_what_a_worker_has_freed_is_overwritten(hardened: bool) -> None:
    code = f"""
import os, sys
from cloister.worker.hardening import harden_process
if {hardened}:
    harden_process(lock_memory=False)
halves = [os.urandom(8).hex(), os.urandom(8).hex()]
prompts = ["".join(halves * count) for count in (40, 400, 40_000)]
print(*halves, flush=True)
sys.stdin.readline()
del prompts
print("freed", flush=True)
sys.stdin.readline()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        marker = "".join(child.stdout.readline().split()).encode()
        assert count_in_all({child.pid}, marker) >= 40_440
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "freed\n"
        assert (count_in_all({child.pid}, marker) == 0) is hardened
        child.stdin.write("\n")


# -- operator socket ------------------------------------------------------------------------------


async def ask(path: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_the_operator_socket(tmp_path: Path) -> None:
    ready = {"one": True, "two": False}
    path = tmp_path / "operator.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    server = OperatorServer(path, metrics=Metrics(), ready=lambda: ready)
    await server.start()
    try:
        assert path.stat().st_mode & 0o777 == 0o600
        assert b" 200 " in await ask(path, b"GET /livez HTTP/1.1\r\n\r\n")
        assert b" 503 " in await ask(path, b"GET /readyz HTTP/1.1\r\n\r\n")
        assert b" 200 " in await ask(path, b"GET /readyz/one HTTP/1.1\r\n\r\n")
        assert b" 503 " in await ask(path, b"GET /readyz/two HTTP/1.1\r\n\r\n")
        assert b" 404 " in await ask(path, b"GET /readyz/three HTTP/1.1\r\n\r\n")
        ready["two"] = True
        answer = await ask(path, b"GET /readyz HTTP/1.1\r\n\r\n")
        assert b" 200 " in answer
        assert answer.endswith(b"one: ready\ntwo: ready\n")
        assert b"cloister_open_requests" in await ask(path, b"GET /metrics HTTP/1.1\r\n\r\n")
        assert b" 404 " in await ask(path, b"POST /metrics HTTP/1.1\r\n\r\n")
        assert await ask(path, b"x" * 20_000 + b"\r\n\r\n") == b""
    finally:
        await server.aclose()
    assert not path.exists()


async def test_the_operator_socket_replaces_sockets_only(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("x")
    with pytest.raises(ConfigurationError):
        await OperatorServer(path, metrics=Metrics(), ready=dict).start()
    assert path.read_text() == "x"


# -- configuration ------------------------------------------------------------------------------


def test_the_configuration_says_all_and_reads_back() -> None:
    separation = Separation(mode=SeparationMode.PER_CLIENT, max_processes=3, recycle_requests=1)
    settings = WorkerSettings(keys=KeySettings(life_s=1800), separation=separation)
    engine = FakeEngine()
    configuration = effective_configuration([engine], settings)
    assert configuration["debug"] is False
    assert settings_of(configuration).keys.life_s == 1800
    assert settings_of(configuration).separation == settings.separation
    again = effective_configuration([engine], settings_of(configuration))
    assert again == configuration
    check_engines(configuration, [engine])
    claims = claims_of(configuration, [engine])
    assert parse_claims(claims.encode()) == claims
    assert claims.isolation == "none (fake engine)"
    assert claims.models[0].sha256 == "0" * 64


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"debug": True},
        {"debug": 0},
        {"separation": "process-per-client"},
        {"separation": None},
        {"worker": {}},
        {"separation": {}},
        {"worker": {"keys": {}, "limits": {}, "padding": {}, "receipts": {}}},
    ],
)
def test_other_configurations_are_refused(change: dict[str, Any]) -> None:
    configuration = effective_configuration([FakeEngine()], WorkerSettings())
    settings_of(configuration)
    with pytest.raises(ConfigurationError):
        settings_of({**configuration, **change})


@pytest.mark.parametrize("value", [-1, True, "1", 1.5, None, 0])
def test_settings_are_whole_numbers_in_range(value: Any) -> None:
    configuration = effective_configuration([FakeEngine()], WorkerSettings())
    worker: Any = configuration["worker"]
    padding = {**worker["padding"], "stream_bucket": value}
    with pytest.raises(ConfigurationError):
        settings_of({**configuration, "worker": {**worker, "padding": padding}})


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "none"},
        {"mode": None},
        {"mode": 1},
        {"max_processes": 0},
        {"max_processes": True},
        {"max_processes": 257},
        {"warm": 2},
        {"recycle_requests": -1},
        {"recycle_idle_s": 1.5},
        {"recycle_age_s": "1"},
        {"more": 1},
    ],
)
def test_how_people_are_kept_apart_is_said_in_known_words(change: dict[str, Any]) -> None:
    configuration = effective_configuration([FakeEngine()], WorkerSettings())
    separation: Any = configuration["separation"]
    settings_of({**configuration, "separation": {**separation, "recycle_requests": 7}})
    with pytest.raises(ConfigurationError):
        settings_of({**configuration, "separation": {**separation, **change}})


def test_another_engine_than_the_measured_one_is_refused() -> None:
    engine = FakeEngine()
    configuration = effective_configuration([engine], WorkerSettings())
    check_engines(configuration, [engine])
    described: Any = configuration["engines"]
    mismatch, unreadable = "configuration.engine_mismatch", "configuration.worker"
    changes: list[tuple[dict[str, Any], str]] = [
        ({"engines": [{**described[0], "engine": "other"}]}, mismatch),
        ({"engines": [*described, *described]}, mismatch),
        ({"engines": []}, unreadable),
        ({"engines": ["fake"]}, unreadable),
        ({"engines": None}, unreadable),
        ({"isolation": {"mode": "sandbox"}}, mismatch),
        ({"managed": False}, mismatch),
        ({"termination": "in-engine"}, mismatch),
    ]
    for change, code in changes:
        changed = {**configuration, **change}
        with pytest.raises(ConfigurationError) as refused:
            check_engines(changed, [engine])
        assert refused.value.code == code


class Described(FakeEngine):
    """An engine that says other things about itself."""

    def __init__(self, **said: object) -> None:
        super().__init__()
        self.described = said

    def configuration(self) -> dict[str, object]:
        described = {**super().configuration(), **self.described}
        return {name: value for name, value in described.items() if value is not None}


@pytest.mark.parametrize(
    ("said", "managed", "termination"),
    [
        ({}, True, "worker"),
        ({"managed": False}, False, "worker"),
        ({"managed": None}, False, "worker"),
        ({"managed": "yes"}, False, "worker"),
        ({"managed": False, "termination": "in-engine"}, False, "in-engine"),
    ],
)
def test_whose_engine_it_is_and_where_the_seal_ends_is_what_the_engine_says(
    said: dict[str, object], managed: bool, termination: str
) -> None:
    configuration = effective_configuration([Described(**said)], WorkerSettings())
    assert configuration["managed"] is managed
    assert configuration["termination"] == termination
    assert separation_mode(configuration) == "shared"


def test_all_engines_of_a_worker_are_held_alike_and_named_apart() -> None:
    second = {"name": "second", "sha256": "0" * 64}
    model = dataclasses.replace(FakeEngine().model, name="second")
    engines = [FakeEngine(), Described(model=second)]
    engines[1].model = model
    configuration = effective_configuration(engines, WorkerSettings())
    check_engines(configuration, engines)
    assert [claim.name for claim in claims_of(configuration, engines).models] == ["fake", "second"]
    for said, code in (
        ({"managed": False}, "configuration.isolation"),
        ({"isolation": {"mode": "sandbox"}}, "configuration.isolation"),
        ({}, "configuration.model_name"),
    ):
        other = Described(**said)
        if said:
            other.model = model
        with pytest.raises(ConfigurationError) as refused:
            effective_configuration([FakeEngine(), other], WorkerSettings())
        assert refused.value.code == code


def test_no_more_models_than_a_claims_document_holds() -> None:
    model = FakeEngine().model
    engines = [
        FakeEngine(model=dataclasses.replace(model, name=f"m{number}"))
        for number in range(MAX_MODELS + 1)
    ]
    configuration = effective_configuration(engines[:-1], WorkerSettings())
    claims = claims_of(configuration, engines[:-1])
    assert parse_claims(claims.encode()) == claims
    with pytest.raises(ConfigurationError, match="at most 64"):
        effective_configuration(engines, WorkerSettings())


def test_a_verifier_knows_every_way_of_keeping_people_apart() -> None:
    assert sorted(SEPARATIONS) == sorted(mode.value for mode in SeparationMode)


@pytest.mark.parametrize(
    ("settings", "open_without_keys"),
    [
        ({}, True),
        ({"host": "0.0.0.0"}, False),
        ({"listen": "tcp://[::1]:0"}, True),
        ({"listen": "tcp://0.0.0.0:0"}, False),
        ({"listen": "unix:/run/worker.sock"}, True),
        ({"listen": "vsock://any:8440"}, True),
        ({"listen": "virtio:/dev/vport0p1"}, True),
        ({"listen": "unix:/run/worker.sock", "host": "0.0.0.0", "tls_port": 1}, False),
    ],
)
def test_where_a_worker_is_open_while_nobody_has_a_key(
    settings: dict[str, Any], open_without_keys: bool
) -> None:
    operation = Operation(**settings)
    assert operation.local_only is open_without_keys
    assert Operation.from_json(operation.to_json()) == operation


def test_the_operators_settings_read_back(tmp_path: Path) -> None:
    operation = Operation(host="::1", port=1, api_keys=tmp_path, rate_burst=3)
    assert Operation.from_json(operation.to_json()) == operation
    assert operation.on_loopback
    assert not Operation(host="0.0.0.0").on_loopback
    relative = Operation(api_keys=Path("keys.json"), operator_socket=Path("~/x.sock"))
    read = Operation.from_json(relative.to_json())
    assert read.api_keys == Path("keys.json").absolute()
    assert read.operator_socket == Path.home() / "x.sock"
    for change in (
        {"api_keys": "keys.json"},
        {"operator_socket": "~/x"},
        {"host": 1},
        {"unknown": 1},
        {"host": "localhost"},
        {"listen": "tcp://localhost:1"},
        {"listen": "127.0.0.1:1"},
        {"port": True},
    ):
        with pytest.raises(ConfigurationError):
            Operation.from_json({**operation.to_json(), **change})
