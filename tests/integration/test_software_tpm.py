"""Starting a software TPM, and its failing to start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cloister.attester.swtpm import SoftwareTpm
from cloister.attester.tpm_errors import TpmError
from support.processes import mentioning
from support.software_tpm import HAVE_SWTPM, manufactured

pytestmark = pytest.mark.skipif(not HAVE_SWTPM, reason="swtpm is not installed")

SOCKET_PATH_BYTES = 107
"""What a Unix socket's address holds (``sun_path`` in unix(7), without its end)."""


def test_a_deep_folder_is_no_obstacle(tmp_path: Path) -> None:
    runtime = tmp_path / ("d" * SOCKET_PATH_BYTES)
    runtime.mkdir()
    running = SoftwareTpm.start(manufactured(), runtime=runtime)
    try:
        assert running.tpm.read_pcrs((0,)) == {0: bytes(32)}
    finally:
        running.stop()
    assert running.poll() is not None


def test_state_that_is_no_tpms_is_refused_and_nothing_runs_on(tmp_path: Path) -> None:
    made = manufactured()
    (tmp_path / "whole").mkdir()
    SoftwareTpm.start(made, runtime=tmp_path / "whole").stop()

    broken = tmp_path / "broken"
    broken.mkdir()
    for file in made.state.iterdir():
        (broken / file.name).write_bytes(b"no state of a TPM")
    (tmp_path / "runtime").mkdir()
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(TpmError, match="does not start") as refused:
        SoftwareTpm.start(replace(made, state=broken), runtime=tmp_path / "runtime")
    assert refused.value.code == "tpm.swtpm"
    assert set(Path("/proc/self/fd").iterdir()) <= before
    assert mentioning(str(tmp_path)) == []
