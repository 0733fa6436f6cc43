"""What is said of settings that break under confidential computing on GPUs."""

from __future__ import annotations

import pytest

from cloister.engine.command_lines import ManagedKind
from cloister.engine.managed import ManagedSettings
from cloister.engine.preflight import Finding, preflight


def found(
    kind: ManagedKind = ManagedKind.VLLM,
    *,
    confidential: bool | None = True,
    gpus: tuple[int, ...] = (0,),
    options: dict[str, str] | None = None,
) -> dict[str, Finding]:
    settings = ManagedSettings(kind=kind, gpus=gpus, options=options or {})
    return {one.setting: one for one in preflight(settings, confidential=confidential)}


def test_without_gpus_there_is_nothing_to_say() -> None:
    assert found(gpus=(), confidential=True) == {}


def test_gpus_outside_confidential_mode_are_named() -> None:
    assert "lie open" in found(confidential=False)["gpus"].text
    assert "does not say" in found(confidential=None)["gpus"].text
    assert not any(one.refused for one in found(confidential=False).values())


@pytest.mark.parametrize(
    ("kind", "option", "reason"),
    [
        (ManagedKind.VLLM, "kv-offloading-size", "cudaHostRegister"),
        (ManagedKind.VLLM, "cpu-offload-gb", "pinned"),
        (ManagedKind.SGLANG, "cpu-offload-gb", "pinned"),
    ],
)
def test_what_cannot_work_is_refused(kind: ManagedKind, option: str, reason: str) -> None:
    assert not any(one.refused for one in found(kind).values())
    refused = [one for one in found(kind, options={option: "8"}).values() if one.refused]
    assert [one.setting for one in refused] == [option]
    assert reason in refused[0].text
    assert not any(
        one.refused for one in found(kind, confidential=False, options={option: "8"}).values()
    )


def test_what_is_slower_or_wrong_is_said() -> None:
    assert "vllm#52226" in found()["async-scheduling"].text
    assert "async-scheduling" not in found(options={"async-scheduling": "false"})
    assert "vllm#50671" in found()["vllm"].text
    assert "sglang#36810" in found(ManagedKind.SGLANG)["disable-overlap-schedule"].text
    assert found(ManagedKind.SGLANG, options={"disable-overlap-schedule": "true"}) == {}
    assert "Protected PCIe" in found(gpus=(0, 1))["gpus"].text
    assert "gpus" not in found(gpus=(0,))
    for kind in (ManagedKind.TGI, ManagedKind.TRITON, ManagedKind.LLAMA_SERVER):
        assert "vllm#52226" in found(kind)["gpus"].text
