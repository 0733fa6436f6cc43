"""A marker in every prompt and answer, and then a search for it wherever it should not be."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

import pytest

from cloister.testing.fake_engine import Answer, FakeEngine
from cloister.worker.settings import Limits, WorkerSettings
from support.asgi import call
from support.sealed import chat, until
from support.worker import running

LIMITS = WorkerSettings(limits=Limits(generation_s=1.5, drain_s=0.05))


def found(marker: str, *places: Path) -> list[Path]:
    """Files below `places` that hold `marker`."""
    hits = []
    for place in places:
        for folder, _, names in os.walk(place):
            for name in names:
                path = Path(folder) / name
                if path.is_file() and marker.encode() in path.read_bytes():
                    hits.append(path)
    return hits


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def test_prompts_and_answers_are_nowhere_but_inside_the_seal(
    temporary: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    marker = "canary" + secrets.token_hex(8)
    prompt = f"tell {marker} please"
    engine = FakeEngine()
    outside: list[bytes] = []
    errors: list[bytes] = []
    (temporary / "control").write_text(marker)
    async with running(LIMITS, engine=engine) as bench:
        peer = bench.peer

        async def ask(answer: Answer, **fields: object) -> bytes:
            await until(lambda: bench.worker.ready)
            engine.script = lambda *_: answer
            sealed = peer.seal(document=chat(prompt, **fields))
            outer = await peer.send(sealed)
            outside.append(outer.body)
            outside.extend(name + value for name, value in outer.headers.items())
            return sealed.opened(outer).body

        for stream in (True, False):
            # Success: the answer arrives, and so the marker is known to have gone through.
            body = await ask(Answer.text(marker), stream=stream)
            assert marker.encode() in body
            # The engine's own error repeats the prompt; so does its crash's last event.
            errors.append(await ask(Answer(status=400), stream=stream))
            errors.append(await ask(Answer(status=500), stream=stream))
            errors.append(await ask(Answer(crash_after=0), stream=stream))
            errors.append(await ask(Answer(stall_after=0), stream=stream))
            errors.append(await ask(Answer(), model=marker))
            errors.append(await ask(Answer(), provider={"aci_" + marker: 1}))
            # Cancelled by the client.
            await until(lambda: bench.worker.ready)
            engine.script = lambda *_: Answer(rate=50, tokens=(marker,) * 100)
            started = peer.start(peer.seal(document=chat(prompt, stream=True)))
            await started.pieces(2)
            started.gone.set()
            outside.append((await started.result()).body)
        # Malformed, unknown, replayed, in plaintext.
        for sealed in (
            peer.seal(body=b'{"model": "' + marker.encode()),
            peer.seal(f"/v1/{marker}", chat(prompt)),
            peer.seal(document=chat(prompt), extra={"x-cloister-nonce": marker}),
            peer.seal(document=chat(prompt), extra={"date": marker}),
            peer.seal(document=chat(prompt), extra={"authorization": f"Basic {marker}"}),
            peer.seal(document=chat(prompt), extra={"idempotency-key": marker * 20}),
        ):
            outer = await peer.send(sealed)
            errors.append(sealed.opened(outer).body)
            errors.append(sealed.opened(await peer.send(sealed)).body)
            outside.append(outer.body)
        for path in ("/v1/chat/completions", f"/{marker}", "/ohttp"):
            plain = await call(bench.worker, "POST", path, body=prompt.encode())
            outside.append(plain.body)
        query = b"nonce=" + marker.encode()
        report = await call(bench.worker, "GET", "/v1/aci/attestation", query=query)
        outside.append(report.body)
        # A fault of the worker's own, whose exception holds the prompt.
        engine.script = _raise
        errors.append((await peer.ask(document=chat(prompt))).body)
        metrics = bench.worker.context.metrics.exposition()
        logged = bench.stream.getvalue()
    assert len(errors) > 20
    assert bench.events("request.failed")
    streams = capfd.readouterr()
    for place in (*errors, *outside, metrics, logged.encode()):
        assert marker.encode() not in place
    assert marker not in caplog.text
    assert marker not in streams.out + streams.err
    assert found(marker, temporary) == [temporary / "control"]


def _raise(_path: str, body: object) -> Answer:
    raise LookupError(f"a fault that repeats {body}")
