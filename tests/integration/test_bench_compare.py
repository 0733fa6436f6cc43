"""``cloister bench compare``: arms take turns and are compared within each; once for real."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import os
import sys
import types
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cloister.cli import bench_compare, bench_plot
from cloister.cli.bench_arms import Arm, Running, Serving, parse_arms, places_for
from cloister.cli.bench_compare import Compared, Comparison
from cloister.cli.main import main
from cloister.engine.protocol import ModelInfo
from cloister.errors import ConfigurationError
from cloister.testing.fake_engine import Answer, FakeEngine, serve

ARMS = parse_arms("plain,sealed+sandbox")
SERVING = Serving(
    model=ModelInfo(name="fake", sha256=None, path=None, context_length=512, quantisation="Q8_0"),
    parallel=4,
    threads=1,
    context=None,
)


def comparison(**changed: Any) -> Comparison:
    settings: dict[str, Any] = {
        "arms": ARMS,
        "serving": SERVING,
        "levels": (1, 3),
        "pairs": 3,
        "requests": 2,
        "max_tokens": 16,
    }
    return Comparison(**{**settings, **changed})


def words(_path: str, body: Mapping[str, Any]) -> Answer:
    return Answer(tokens=(body["messages"][-1]["content"], *(" word",) * 7), rate=400)


Script = Callable[[str, Mapping[str, Any]], Answer]


class Stage:
    """Arms in front of fake engines, and in what order they were asked."""

    def __init__(self, scripts: Mapping[str, Script]) -> None:
        self._scripts = scripts
        self.asked: list[str] = []

    @contextlib.asynccontextmanager
    async def open(self, arm: Arm, _serving: Serving, _state: Path) -> AsyncIterator[Running]:
        script = self._scripts.get(arm.name, words)

        def noted(path: str, body: Mapping[str, Any]) -> Answer:
            self.asked.append(arm.name)
            answer: Answer = script(path, body)
            return answer

        engine = FakeEngine(script=noted)
        await engine.start()
        server = await serve(engine, port=0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, httpx2.AsyncClient(base_url=url, trust_env=False) as client:
            yield Running(arm=arm, client=client, pid=os.getpid())


def run(stage: Stage, asked: Comparison) -> list[Compared]:
    return asyncio.run(bench_compare.compare(asked, opened=stage.open))


def test_arms_take_turns_and_are_compared_within_them() -> None:
    stage = Stage({})
    found = run(stage, comparison())
    assert [one.streams for one in found] == [1, 3]
    assert all(len(samples) == 3 for one in found for samples in one.samples.values())
    plain, sealed = ("plain", "sealed+sandbox")
    first_level = stage.asked[2:14]  # after one request each to warm up
    assert first_level == [plain] * 2 + [sealed] * 4 + [plain] * 4 + [sealed] * 2
    assert bench_compare.judge(found) == 0
    lines = bench_compare.cells(found)
    assert [line[:2] for line in lines] == [
        [plain, "1"],
        [sealed, "1"],
        [plain, "3"],
        [sealed, "3"],
    ]
    assert lines[0][-3:] == ["1", "1", "1"]
    assert "–" in lines[1][-2]
    assert "every other one in reverse" in bench_compare.markdown(found, comparison())
    rows = list(csv.DictReader(io.StringIO(bench_compare.csv(found))))
    assert len(rows) == 2 * 2 * 3
    assert {row["arm"] for row in rows} == {plain, sealed}
    assert all(float(row["decode_tokens_per_s"]) > 0 for row in rows)


def test_a_ratio_to_less_than_a_tick_is_said_to_be_none() -> None:
    name = "server_cpu_us_per_token"
    counted = bench_compare.Compared(
        streams=1, samples={"plain": ({name: 2.0},), "sealed": ({name: 3.0},)}
    )
    ratio = counted.ratio("sealed", "plain", name)
    assert ratio is not None
    assert ratio.median == 1.5
    uncounted = bench_compare.Compared(
        streams=1, samples={"plain": ({name: 0.0},), "sealed": ({name: 3.0},)}
    )
    assert uncounted.ratio("sealed", "plain", name) is None


def test_a_slower_arm_is_seen_as_slower() -> None:
    def slow(path: str, body: Mapping[str, Any]) -> Answer:
        made = words(path, body)
        return Answer(tokens=made.tokens, rate=10)

    (found,) = run(Stage({"sealed+sandbox": slow}), comparison(levels=(1,)))
    ratio = found.ratio("sealed+sandbox", "plain", "decode_tokens_per_s")
    assert ratio is not None
    assert ratio.median < 0.5
    assert ratio.ci_high < 1


def test_failures_and_mixed_up_answers_are_told_and_end_with_1() -> None:
    def failing(_path: str, _body: Mapping[str, Any]) -> Answer:
        return Answer(status=500)

    seen: list[str] = []

    def mixed(path: str, body: Mapping[str, Any]) -> Answer:
        seen.append(body["messages"][-1]["content"])
        return Answer(tokens=(seen[0], " word", " word"))

    for script, word in ((failing, "HTTP 500"), (mixed, "another request's marker")):
        seen.clear()
        asked = comparison(levels=(1,), pairs=2)
        found = run(Stage({"sealed+sandbox": script}), asked)
        assert found[0].failures == (f"sealed+sandbox: {word}",)
        assert bench_compare.judge(found) == 1
        assert word in bench_compare.description(found, asked)


def test_names_of_arms() -> None:
    every = "plain,plain+sandbox,sealed,sealed+sandbox"
    assert ",".join(arm.name for arm in parse_arms(every)) == every
    for text in (
        "",
        "plain",
        "plain,plain",
        "plain,open",
        "plain,sealed+seal",
        "plain+sandbox+x,x",
    ):
        with pytest.raises(ConfigurationError):
            parse_arms(text)


def test_places_leave_room_for_somebody_else() -> None:
    # As `EnginePool` shares them out: one in eight, or at least one, is left to others.
    for streams in range(1, 300):
        places = places_for(streams)
        assert places - max(1, places // 8) >= streams


def test_pictures_have_a_panel_for_each_quantity(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[tuple[str, list[str]]] = []

    class Axes:
        def __init__(self) -> None:
            self.lines: list[str] = []

        def errorbar(self, _x: object, _y: object, *, label: str, **_: object) -> None:
            self.lines.append(label)

        def set_title(self, title: str) -> None:
            drawn.append((title, self.lines))

        def __getattr__(self, _name: str) -> Callable[..., None]:
            return lambda *_args, **_named: None

    class Figure:
        def __init__(self, **_: object) -> None: ...

        def subplots(self, _rows: int, columns: int, **_: object) -> list[list[Axes]]:
            return [[Axes() for _ in range(columns)]]

        def savefig(self, path: Path, **_: object) -> None:
            path.write_bytes(b"drawn")

    modules = {
        "matplotlib": types.ModuleType("matplotlib"),
        "matplotlib.figure": types.ModuleType("f"),
    }
    vars(modules["matplotlib.figure"])["Figure"] = Figure
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    found = run(Stage({}), comparison(pairs=2))
    bench_compare.png(found, tmp_path / "x.png")
    assert [title for title, _ in drawn][:2] == ["tokens/s", "decode tokens/s"]
    assert all(lines == ["plain", "sealed+sandbox"] for _, lines in drawn)
    assert (tmp_path / "x.png").read_bytes() == b"drawn"


def test_without_matplotlib_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match="matplotlib"):
        bench_plot.plot_lines(Path("x.png"), [1], {})


@pytest.mark.tpm
@pytest.mark.sandbox
@pytest.mark.timeout(300)
def test_the_real_arms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "compare", "demo", "--arms", "plain,sealed+sandbox", "--streams", "2"]
    arguments += ["--pairs", "2", "--max-tokens", "8", "--csv", str(tmp_path / "samples.csv")]
    with pytest.raises(SystemExit) as left:
        main(arguments)
    said = capsys.readouterr()
    assert left.value.code == 0, said.err
    assert said.out.count("| plain |") == said.out.count("| sealed+sandbox |") == 1
    rows = list(csv.DictReader(io.StringIO((tmp_path / "samples.csv").read_text())))
    assert [row["arm"] for row in rows] == ["plain", "plain", "sealed+sandbox", "sealed+sandbox"]
    assert all(float(row["server_cpu_us_per_token"]) >= 0 for row in rows)
    assert "WITHOUT a sandbox" in said.err or "unsafe" not in said.err
