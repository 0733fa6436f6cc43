"""What the whole suite shares: which tests need what, and no silence about those not run.

Tests that need a program or a kernel feature carry a marker. Where it is missing they are
skipped, and the summary says so in words. Tests that need the internet, a TEE, a GPU or a long
time run only when their marker is asked for with ``-m``.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from support.llama_index import environment

# How long examples take to be drawn says how busy this machine is, and nothing of what is tested.
UNHURRIED = (HealthCheck.too_slow,)
settings.register_profile(
    "default", max_examples=100, deadline=None, suppress_health_check=UNHURRIED
)
settings.register_profile(
    "long", max_examples=20_000, deadline=None, suppress_health_check=UNHURRIED
)
settings.load_profile("default")

ON_REQUEST = ("network", "tee", "gpu", "slow", "boot", "platforms")
EVIDENCE = Path(__file__).parents[2] / "shared" / "evidence"

NOT_HERE = "not proven here, "
"""How the reason of a skip begins that is this machine's fault. The summary counts these from the
reports: whoever writes it may not be the process that collected the tests (``pytest -n``)."""


@cache
def missing_tpm() -> str | None:
    programs = [name for name in ("swtpm", "swtpm_setup") if shutil.which(name) is None]
    return f"{' and '.join(programs)} not installed" if programs else None


@cache
def missing_sandbox() -> str | None:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "bubblewrap is not installed"
    done = subprocess.run(
        [bwrap, "--unshare-user", "--ro-bind", "/", "/", "true"], capture_output=True, check=False
    )
    return None if done.returncode == 0 else "this machine refuses user namespaces (a chroot?)"


@cache
def missing_node() -> str | None:
    absent = [name for name in ("node", "npm") if shutil.which(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else None


@cache
def missing_langchain() -> str | None:
    names = ("langchain", "langchain_anthropic", "langchain_openai")
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed (make setup)" if absent else None


@cache
def missing_llama_index() -> str | None:
    found = environment().is_dir()
    return None if found else "LlamaIndex's environment is not installed (scripts/setup tests)"


@cache
def missing_curl() -> str | None:
    return None if shutil.which("curl") else "curl is not installed"


@cache
def missing_evidence() -> str | None:
    return None if EVIDENCE.is_dir() else f"no evidence at {EVIDENCE}"


NEEDS: dict[str, Callable[[], str | None]] = {
    "tpm": missing_tpm,
    "sandbox": missing_sandbox,
    "node": missing_node,
    "langchain": missing_langchain,
    "llama_index": missing_llama_index,
    "curl": missing_curl,
    "evidence": missing_evidence,
}


SHORT = 40
"""Longest path of a folder in which pytest's own folders leave room for a Unix socket."""


@pytest.hookimpl(tryfirst=True)  # before pytest chooses its folder
def pytest_configure(config: pytest.Config) -> None:
    """Leave a deep temporary folder: a Unix socket's path holds 107 bytes, pytest takes about
    sixty of them, and many tests have a socket in ``tmp_path``."""
    if config.option.basetemp is None and len(tempfile.gettempdir()) > SHORT:
        short = tempfile.mkdtemp(prefix="tests-", dir="/tmp")
        config.option.basetemp = short
        config.add_cleanup(lambda: shutil.rmtree(short, ignore_errors=True))


LONGEST = (
    "integration/test_guest_launched.py",
    "integration/test_tpm_launch.py",
    "integration/test_managed_engine.py",
    "mutation/test_mutation.py",
    "integration/test_engine_processes.py",
    "integration/test_faults.py",
    "integration/test_sdk_scripted.py",
    "integration/test_sandbox_llama.py",
    "integration/test_sdk_failures.py",
    "integration/test_managed_sandbox.py",
    "integration/test_managed_serve.py",
    "integration/test_api_llama_values.py",
    "unit/cli/test_deploy.py",
    "unit/deploy/test_every_target.py",
    "unit/attester/test_measure.py",
    "integration/test_sdk_llama_index.py",
    "integration/test_guest_enrolment.py",
)
"""Files that take half a minute or more on a busy machine. They go first, so that no process is
left with one of them when the others have nothing more to do (``pytest -n --dist loadfile``)."""


def long_first(items: list[pytest.Item]) -> None:
    rank = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    long_first(items)
    asked_for = str(config.getoption("-m"))
    for item in items:
        for marker in ON_REQUEST:
            if item.get_closest_marker(marker) and marker not in asked_for:
                item.add_marker(pytest.mark.skip(reason=f"runs with -m {marker}"))
        for marker, probe in NEEDS.items():
            if item.get_closest_marker(marker) and (reason := probe()):
                item.add_marker(pytest.mark.skip(reason=f"{NOT_HERE}{marker}: {reason}"))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a case of many bytes by its argument: bytes made at random would name it otherwise in
    each process (``pytest -n`` wants the same names in all), and nobody can read them."""
    return argname if isinstance(val, bytes) and len(val) > 8 else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = [
        str(report.longrepr[2]).partition(NOT_HERE)[2]
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    ]
    not_run = Counter(reason for reason in reasons if reason)
    if not not_run:
        return
    terminalreporter.section("NOT PROVEN HERE", sep="!", red=True, bold=True)
    for reason, count in sorted(not_run.items()):
        terminalreporter.line(f"{count} tests did not run; {reason}")
