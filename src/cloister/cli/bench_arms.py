"""What ``cloister bench compare`` runs: one engine, in a sandbox or not, behind a seal or not.

A plain arm is the engine alone: the load goes straight to the engine's own socket, through no
worker. A sealed arm is a worker as ``cloister serve`` starts it, with a software TPM, which is
verified before it is asked. Both have an engine of the same settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cloister.errors import ConfigurationError, EngineError

if TYPE_CHECKING:
    import httpx2

    from cloister.attester.launcher import LaunchedWorker
    from cloister.cli.measure import EngineOptions
    from cloister.client.trust import Trust
    from cloister.engine.protocol import ModelInfo

READY_S: Final = 900.0
_SEAL: Final = "sealed"
_PLAIN: Final = "plain"
_SANDBOX: Final = "sandbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way of serving the model."""

    sealed: bool
    sandbox: bool

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        return (_SEAL if self.sealed else _PLAIN) + (f"+{_SANDBOX}" if self.sandbox else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """The engine of all arms: its model and sizes."""

    model: ModelInfo
    parallel: int
    threads: int
    context: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """An arm that answers: where to ask, and the process whose family computes."""

    arm: Arm
    client: httpx2.AsyncClient
    pid: int | None


def parse_arms(text: str) -> tuple[Arm, ...]:
    """Read ``plain,sealed+sandbox``; ConfigurationError for less than two, or others."""
    arms = []
    for part in text.split(","):
        first, *more = part.strip().split("+")
        if first not in (_SEAL, _PLAIN) or more not in ([], [_SANDBOX]):
            raise ConfigurationError(
                "arms are plain, plain+sandbox, sealed and sealed+sandbox, with commas between",
                code="bench.arms",
            )
        arms.append(Arm(sealed=first == _SEAL, sandbox=bool(more)))
    if len(arms) < 2 or len(set(arms)) < len(arms):
        raise ConfigurationError("to compare takes two arms or more, each once", code="bench.arms")
    return tuple(arms)


def places_for(streams: int) -> int:
    """How many requests the engine must compute at a time, so that `streams` of one asker run.

    A worker leaves one place in eight, or at least one, to somebody else who may come.
    """
    return streams + streams // 7 + 1


def open_arm(
    arm: Arm, serving: Serving, state: Path
) -> contextlib.AbstractAsyncContextManager[Running]:
    """Start `arm` for the time of the context, and end all of it then.

    `state` is a directory of the operator's for the software TPM of sealed arms.
    """
    return _sealed(arm, serving, state) if arm.sealed else _plain(arm, serving)


@contextlib.asynccontextmanager
async def _plain(arm: Arm, serving: Serving) -> AsyncIterator[Running]:
    import httpx2

    from cloister.client.connection import TIMEOUT
    from cloister.engine.llama import LlamaEngine, LlamaSettings
    from cloister.engine.sandbox import Sandbox, UnsafeNoSandbox

    engine = LlamaEngine(
        serving.model,
        isolation=Sandbox() if arm.sandbox else UnsafeNoSandbox(),
        settings=LlamaSettings(
            context=serving.context, parallel=serving.parallel, threads=serving.threads
        ),
    )
    await engine.start()
    try:
        # llama.cpp's server closes connections without a word. A worker takes a new one for each
        # request, and so does this.
        async with httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(
                uds=engine.socket_path, limits=httpx2.Limits(max_connections=None)
            ),
            base_url="http://engine",
            headers={"connection": "close"},
            timeout=TIMEOUT,
        ) as client:
            yield Running(arm=arm, client=client, pid=engine.pid)
    finally:
        await engine.aclose()


@contextlib.asynccontextmanager
async def _sealed(arm: Arm, serving: Serving, state: Path) -> AsyncIterator[Running]:
    from cloister.client.connect import aconnect

    with tempfile.TemporaryFile() as log:
        worker, ready = await asyncio.to_thread(_launch, arm, serving, state, log.fileno())
        try:
            if ready is None:
                # Nothing was asked yet, so the worker's output can hold no prompt.
                log.seek(0)
                raise EngineError(
                    "the worker did not start: " + log.read().decode("utf-8", "replace")[-2000:],
                    code="bench.worker",
                )
            url = f"http://{ready['host']}:{ready['port']}"
            async with await aconnect(url, verifier=_trust(worker), trust_env=False) as connection:
                yield Running(arm=arm, client=connection.http, pid=worker.process.pid)
        finally:
            await asyncio.to_thread(worker.close)


def _launch(
    arm: Arm, serving: Serving, state: Path, output: int
) -> tuple[LaunchedWorker, dict[str, Any] | None]:
    from cloister.attester.launcher import LaunchPlan, launch
    from cloister.cli.measure import effective_for, subject_for
    from cloister.cli.serve import COMPILED
    from cloister.worker.operation import Operation
    from cloister.worker.serve import ENTRY

    models = [serving.model]
    worker = launch(
        LaunchPlan(
            state_dir=state,
            subject=subject_for(models, effective_for(models, _options(arm, serving))),
            entry=ENTRY,
            operator=Operation(threads=serving.threads, rate_per_minute=0).to_json(),
            compiled=COMPILED,
            output=output,
        )
    )
    try:
        return worker, worker.wait_ready(READY_S)
    except EngineError:
        return worker, None
    except BaseException:
        worker.close()
        raise


def _options(arm: Arm, serving: Serving) -> EngineOptions:
    from cloister.cli.measure import EngineOptions
    from cloister.cli.process_options import ProcessOptions

    return EngineOptions(
        context=serving.context,
        parallel=serving.parallel,
        unsafe_without_sandbox=not arm.sandbox,
        # An engine process is not exchanged while another arm is measured.
        processes=ProcessOptions(recycle_after=0, recycle_idle=0, recycle_age=0),
    )


def _trust(worker: LaunchedWorker) -> Trust:
    """What is known of a worker that was launched here; engines without sandbox are accepted."""
    from cloister.client.trust import Trust
    from cloister.verifier.policy import UNCHECKED, development

    kit = worker.client_kit(dataclasses.replace(development(), isolation=UNCHECKED))
    return Trust(policy=kit.policy, reference_values=kit.reference_values, roots=kit.roots)
