"""Results as JSON on disk, and as the tables of docs/benchmarks.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Direction, Figure, Report, Rounds, Target
from benchmarks.statistics import Summary

BEGIN = "<!-- results: begin (written by `python -m benchmarks --write-docs`) -->"
END = "<!-- results: end -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One benchmark's report as stored: with the machine, and how quiet it was."""

    name: str
    title: str
    method: str
    figures: tuple[Figure, ...]
    remarks: tuple[str, ...]
    environment: Mapping[str, Any]
    seconds: float
    quick: bool = False


def _encode_figure(figure: Figure) -> dict[str, Any]:
    target = figure.target
    return {
        "name": figure.name,
        "comparison": figure.comparison,
        "unit": figure.unit,
        "value": figure.value.encode(),
        "arms": {name: arm.encode() for name, arm in figure.arms.items()},
        "arm_unit": figure.arm_unit,
        "target": None if target is None else [target.direction.value, target.bound],
        "met": figure.met,
        "notes": figure.notes,
    }


def _parse_figure(encoded: Mapping[str, Any]) -> Figure:
    target = encoded["target"]
    return Figure(
        name=encoded["name"],
        comparison=encoded["comparison"],
        unit=encoded["unit"],
        value=Summary.parse(encoded["value"]),
        arms={name: Summary.parse(arm) for name, arm in encoded["arms"].items()},
        arm_unit=encoded["arm_unit"],
        target=None
        if target is None
        else Target(direction=Direction(target[0]), bound=float(target[1])),
        notes=encoded["notes"],
    )


def _encode_rounds(rounds: Rounds) -> dict[str, Any]:
    return {
        "rounds": rounds.rounds,
        "repeated": rounds.repeated,
        "disturbed": rounds.disturbed,
    }


def write(
    path: Path,
    *,
    name: str,
    report: Report,
    environment: Mapping[str, Any],
    seconds: float,
    quick: bool,
) -> None:
    """Store one report, raw numbers included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "name": name,
        "title": report.title,
        "method": report.method,
        "figures": [_encode_figure(figure) for figure in report.figures],
        "remarks": [*report.remarks, *(f"Not measured: {one}" for one in report.failures)],
        "environment": dict(environment),
        "seconds": seconds,
        "quick": quick,
        "raw": {key: _encode_rounds(rounds) for key, rounds in report.raw.items()},
    }
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")


def read(path: Path) -> Outcome:
    """Read what `write` stored, without the raw numbers."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return Outcome(
        name=document["name"],
        title=document["title"],
        method=document["method"],
        figures=tuple(_parse_figure(figure) for figure in document["figures"]),
        remarks=tuple(document["remarks"]),
        environment=document["environment"],
        seconds=document["seconds"],
        quick=document["quick"],
    )


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 0.1:
        return f"{value:.3g}" if size < 1 else f"{value:.2f}"
    return f"{value:.3f}" if size >= 0.001 else f"{value:.2g}"


def _with_unit(value: str, unit: str) -> str:
    return f"{value} {unit}" if unit else value


def _verdict(figure: Figure) -> tuple[str, str]:
    if figure.target is None:
        return "–", "–"
    bound = _with_unit(number(figure.target.bound), figure.unit)
    return f"{figure.target.direction.value} {bound}", "met" if figure.met else "**missed**"


def _row(figure: Figure) -> str:
    value = figure.value
    arms = "; ".join(f"{name} {number(arm.median)}" for name, arm in figure.arms.items())
    target, verdict = _verdict(figure)
    cells = [
        figure.name,
        _with_unit(arms, figure.arm_unit),
        figure.comparison,
        f"**{_with_unit(number(value.median), figure.unit)}**",
        f"{number(value.ci_low)} … {number(value.ci_high)}",
        f"{number(value.q1)} … {number(value.q3)}",
        f"{number(value.minimum)} … {number(value.maximum)}",
        str(value.count),
        target,
        verdict,
    ]
    return "| " + " | ".join(cells) + " |"


_HEAD = (
    "| What | Arms (medians) | Comparison | Median | 95 % interval | Middle half | Extremes "
    "| Rounds | Target | |\n|---|---|---|---|---|---|---|---|---|---|"
)


def table(outcome: Outcome) -> str:
    """Render one benchmark as Markdown: heading, method, table, remarks."""
    parts = [f"### {outcome.title}", "", outcome.method, "", _HEAD]
    parts += [_row(figure) for figure in outcome.figures]
    notes = [f"{figure.name}: {figure.notes}" for figure in outcome.figures if figure.notes]
    remarks = [*notes, *outcome.remarks]
    if remarks:
        parts += ["", *(f"- {remark}" for remark in remarks)]
    return "\n".join(parts)


def _machine(environment: Mapping[str, Any]) -> str:
    packages = ", ".join(
        f"{name} {version}"
        for name, version in environment["packages"].items()
        if name != "cloister"
    )
    return (
        f"{environment['cores']} cores of {environment['cpu']}, {environment['memory_gib']} GiB, "
        f"Linux {environment['kernel']}, Python {environment['python']}; {packages}."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What the page tells of one benchmark."""

    name: str
    machine: str
    times: str
    """When it was measured, and how quiet it was: a line."""
    text: str
    """Heading, method, table, remarks."""


def _section(outcome: Outcome) -> Section:
    times = (
        f"- `{outcome.name}`: {outcome.environment['at']}, commit "
        f"{outcome.environment['commit']}, {outcome.seconds:.0f} s; {_quietness(outcome)}."
    )
    machine = _machine(outcome.environment)
    return Section(name=outcome.name, machine=machine, times=times, text=table(outcome))


def sections(page: str) -> list[Section]:
    """What a page, or what `document` rendered, tells. ValueError if that cannot be taken apart."""
    inner = page.partition(BEGIN)[2].partition(END)[0] if BEGIN in page else page
    times = re.findall(r"^- `\w+`: \d{4}-.*$", inner, re.MULTILINE)
    texts = [f"### {text.strip()}" for text in inner.split("\n### ")[1:]]
    machines: dict[str, str] = {}
    for machine, names in re.findall(
        r"^Measured on (.*?)(?: \((`[`\w, ]+`)\))?$", inner, re.MULTILINE
    ):
        for name in re.findall(r"\w+", names) or told(inner):
            machines[name] = machine
    return [
        Section(name=name, machine=machines[name], times=time, text=text)
        for name, time, text in zip(told(inner), times, texts, strict=True)
    ]


def _verdicts(texts: Iterable[str]) -> list[str]:
    """Say how many targets were met, and name those that were not."""
    rows = [
        line.removeprefix("| ").removesuffix(" |").split(" | ")
        for text in texts
        for line in text.splitlines()
        if line.endswith(("| met |", "| **missed** |"))
    ]
    missed = [row for row in rows if row[-1] != "met"]
    lines = [f"{len(rows) - len(missed)} of {len(rows)} targets met."]
    for name, _, comparison, found, *_, target, _ in missed:
        lines.append(f"- Missed: {name} ({comparison}): {found.strip('*')}, target {target}.")
    return lines


def _quietness(outcome: Outcome) -> str:
    around = outcome.environment
    if "worst_foreign_cpu" not in around:
        load = around.get("load_average")
        return "not watched" + ("" if load is None else f"; load average before it {load:.1f}")
    return (
        f"waited {around['waited_s']:.0f} s for quiet, kept {around['disturbed_rounds']} disturbed "
        f"rounds, worst foreign load {100 * around['worst_foreign_cpu']:.0f} % of a core"
    )


def document(outcomes: Iterable[Outcome], *, kept: Iterable[Section] = ()) -> str:
    """Render the part of docs/benchmarks.md between the markers.

    What is `kept` from an earlier page stays as it is where nothing newer was measured, and in its
    place; what is new comes behind.
    """
    found = {one.name: one for one in kept} | {one.name: _section(one) for one in outcomes}
    listed = list(found.values())
    if not listed:
        return "Nothing was measured."
    machines = dict.fromkeys(one.machine for one in listed)
    parts = [f"Measured on {machine}" for machine in machines]
    if len(machines) > 1:
        parts = [
            f"Measured on {machine} ("
            + ", ".join(f"`{one.name}`" for one in listed if one.machine == machine)
            + ")"
            for machine in machines
        ]
    # Apart: a paragraph each.
    parts = ["\n\n".join(parts), "", *(one.times for one in listed), ""]
    parts += _verdicts(one.text for one in listed)
    for one in listed:
        parts += ["", one.text]
    return "\n".join(parts)


def told(page: str) -> list[str]:
    """Names of the benchmarks that a page, or what `document` rendered, has results of."""
    return re.findall(r"^- `(\w+)`: \d{4}-", page, re.MULTILINE)


def fill(page: str, rendered: str) -> str:
    """Replace what lies between the markers of `page`. ValueError when they are not there."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page lacks the markers between which the tables belong")
    return f"{before}{BEGIN}\n\n{rendered}\n\n{END}{after}"
