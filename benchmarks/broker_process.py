"""A broker in a process of its own: ``python -m benchmarks.broker_process``.

The spec says where its SQLite file goes, what workers have to be, and on which core it runs:
``{"directory": PATH, "reference_values": JSON, "roots": PEM, "core": 0}``. The ready line has its
port, its identity and this process's id.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.children import read_spec, say
from cloister.broker.clock import SteadyWall
from cloister.broker.database import Database
from cloister.broker.policy import ResourcePolicy
from cloister.broker.root_keys.development import MemoryRootKey
from cloister.broker.serve import Listening, Service, serve
from cloister.broker.store import Store
from cloister.channel.resource_uri import ResourceUri
from cloister.endorsements.roots import Roots
from cloister.verifier import policy as policies
from cloister.verifier.policy import UNCHECKED
from cloister.verifier.reference_values import load_json
from cloister.worker.logs import EventLog
from cloister.worker.settings import RateLimit

SECRET = ResourceUri(repository="bench", type="weights", tag="one")


def make_store(directory: Path, reference_values: str) -> Store:
    """A store on disk with one secret, for workers of these reference values."""
    database = Database.open(f"sqlite:///{directory / 'broker.db'}")
    store = Store.create(database, MemoryRootKey(os.urandom(32)), now=SteadyWall())
    store.put(SECRET, os.urandom(32))
    store.set_policy(
        SECRET,
        ResourcePolicy(
            appraisal=policies.development(),
            manifest=UNCHECKED,
            reference_values=load_json(reference_values.encode()),
        ),
    )
    return store


async def _serve(spec: dict[str, Any]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    store = make_store(Path(spec["directory"]), spec["reference_values"])
    service = Service(
        host="127.0.0.1",
        port=0,
        roots=Roots.from_pem(spec["roots"].encode()),
        per_source=RateLimit(per_minute=0),
    )

    def ready(where: Listening) -> None:
        say(port=where.port, identity=str(store.identity), pid=os.getpid())

    await serve(store, service, log=EventLog(sys.stderr), stop=stop, ready=ready)
    store.database.close()


def main() -> None:
    """Serve until SIGTERM."""
    spec = read_spec()
    os.sched_setaffinity(0, {spec["core"]})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(spec))


if __name__ == "__main__":
    main()
