"""``cloister bench serve`` against a real worker, a plain server, and the embedded engine."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cloister.cli import bench_serve
from cloister.cli.bench_serve import Asked, ServerCpu
from cloister.client.connect import TrustOptions
from cloister.client.load import Level
from cloister.client.trust import make_trust
from cloister.engine.demo_model import demo_model_path
from cloister.engine.llama import LlamaEngine, LlamaSettings
from cloister.engine.models import describe_model
from cloister.engine.sandbox import Sandbox
from cloister.errors import AppraisalError, ConfigurationError
from cloister.evidence.component import Component, ComponentKind
from cloister.testing.fake_engine import Answer, FakeEngine, serve
from support.scene import Scene, launched, scene

ASKED = Asked(levels=(1, 3), requests=2, max_tokens=16)


def repeat(_path: str, body: Mapping[str, Any]) -> Answer:
    return Answer.text(body["messages"][-1]["content"])


def run(world: Scene, asked: Asked = ASKED) -> list[Level]:
    trust = make_trust(**world.trust)
    return asyncio.run(bench_serve.run(bench_serve.sealed_endpoint(world.url, trust, None), asked))


def test_a_sealed_worker() -> None:
    with scene(engine=FakeEngine(script=repeat)) as world:
        found = run(world, Asked(levels=(1, 3), requests=2, max_tokens=16, pid=os.getpid()))
        marked = [prompt for prompt in world.live.prompts if "Repeat after me: " in prompt]
        assert len(marked) == len(set(marked)) == 1 + 2 + 6  # the warm-up is not counted
        assert not any(b"Repeat" in request.body for request in world.proxy.seen)
    assert [(one.streams, len(one.whole), one.own, one.foreign) for one in found] == [
        (1, 2, 2, 0),
        (3, 6, 6, 0),
    ]
    assert bench_serve.judge(found) == 0
    assert all(one.server_cpu is not None for one in found)
    header, *lines = bench_serve.csv(found).splitlines()
    assert header.split(",") == list(bench_serve.COLUMNS)
    assert [line.split(",")[:3] for line in lines] == [["1", "2", "0"], ["3", "6", "0"]]
    assert "sealed" in bench_serve.markdown(found, sealed=True)


def test_a_worker_that_mixes_people_up() -> None:
    engine = FakeEngine(script=repeat)
    engine.script = lambda path, body: repeat(
        path, json.loads(engine.requests[0].body) if len(engine.requests) > 4 else body
    )
    with scene(engine=engine) as world:
        found = run(world)
    assert sum(one.foreign for one in found) > 0
    assert bench_serve.judge(found) == 1


def test_a_worker_that_is_not_affirmed_is_not_asked() -> None:
    with scene(engine=FakeEngine(script=repeat)) as world:
        run(world)
        before = len(world.live.engine.requests)
        others: TrustOptions = {**world.trust, "roots": launched().roots}
        trust = make_trust(**others)
        with pytest.raises(AppraisalError):
            asyncio.run(bench_serve.run(bench_serve.sealed_endpoint(world.url, trust, None), ASKED))
        assert len(world.live.engine.requests) == before


async def test_a_plain_server_that_fails() -> None:
    engine = FakeEngine(script=repeat)
    await engine.start()
    server = await serve(engine, port=0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server:
        found = await bench_serve.run(bench_serve.plain_endpoint(url, None), ASKED)
        assert bench_serve.judge(found) == 0
        engine.script = lambda *_: Answer(status=500)
        failing = await bench_serve.run(bench_serve.plain_endpoint(url, None), ASKED)
    assert bench_serve.judge(failing) == 1
    (first, _) = bench_serve.cells(failing)
    assert first[2] == "2 (HTTP 500)"
    assert "–" in first
    assert "Repeat after me" not in bench_serve.csv(failing)


@pytest.mark.sandbox
def test_the_embedded_engine_with_the_demo_model() -> None:
    model = describe_model(demo_model_path(), name="fake")
    measured = Component(
        kind=ComponentKind.MODEL, name=model.name, version="", digest=f"sha256:{model.sha256}"
    )
    engine = LlamaEngine(model, isolation=Sandbox(), settings=LlamaSettings(parallel=2))
    with scene(engine=engine, attester=launched(measured)) as world:
        found = run(world, Asked(levels=(2,), requests=8, max_tokens=32))
    assert [(len(one.whole), one.foreign) for one in found] == [(16, 0)]
    assert found[0].own > 0  # the model repeats nine of ten markers, whichever are drawn
    assert found[0].tokens > 8


def test_cpu_of_a_family_is_counted() -> None:
    spin = "import subprocess,sys,time\nif len(sys.argv) > 1:\n e=time.time()+.3\n"
    spin += " while time.time()<e: pass\nelse:\n"
    spin += " subprocess.run([sys.executable,'-c',sys.stdin.read(),'x'])\n"
    spin += " print(1,flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        meter = ServerCpu(child.pid)
        before = meter.seconds()
        child.stdin.write(spin)
        child.stdin.close()
        child.stdout.readline()
        after = meter.seconds()
        child.kill()
    assert before is not None
    assert after is not None
    assert after - before > 0.1
    assert meter.seconds() is None
    assert ServerCpu(None).seconds() is None
    with pytest.raises(ConfigurationError):
        ServerCpu(child.pid)


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    assert bench_serve.parse_levels("1, 8,32") == (1, 8, 32)
    assert bench_serve.parse_body('{"a": 1}') == {"a": 1}
    assert bench_serve.parse_body(None) == {}
    for text in ("", "0", "1,x", "1001"):
        with pytest.raises(ConfigurationError):
            bench_serve.parse_levels(text)
    for text in ("{", "[]", '{"stream": false}', '{"messages": []}'):
        with pytest.raises(ConfigurationError):
            bench_serve.parse_body(text)
