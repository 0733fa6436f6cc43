"""A whole worker, measured for its broker: it starts behind that one, and behind no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.attester.launcher import launch
from cloister.channel.key_release import BrokerIdentity
from cloister.cli.measure import EngineOptions
from cloister.cli.model_options import ModelOptions
from cloister.cli.serve import embedded_plan
from cloister.errors import EngineError
from cloister.worker.operation import Operation
from cloister.worker.releases import broker_settings
from support.broker import bench
from support.broker_server import served

pytestmark = [pytest.mark.tpm, pytest.mark.sandbox, pytest.mark.slow]


@pytest.mark.timeout(300)
def test_it_starts_behind_its_own_broker_only(tmp_path: Path) -> None:
    state, output = tmp_path / "state", tmp_path / "output.log"
    with bench(tmp_path) as at, served(at) as broker:

        def started(identity: BrokerIdentity) -> None:
            settings = broker_settings(str(identity), None, development=True)
            with output.open("wb") as log:
                plan = embedded_plan(
                    state,
                    Operation(broker=broker.url),
                    models=ModelOptions(),
                    options=EngineOptions(parallel=1, broker=settings),
                    output=log.fileno(),
                )
                with launch(plan) as launched:
                    launched.wait_ready(120)

        started(at.store.identity)
        assert b"broker.checked" in output.read_bytes()
        with pytest.raises(EngineError) as ended:
            started(BrokerIdentity(b"\x07" * 32))
        assert ended.value.code == "worker.ended"
        assert b"broker.identity" in output.read_bytes()
