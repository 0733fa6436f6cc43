"""``cloister image boot``: whom an image may call, where that is, and whose keys firmware has."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from pathlib import Path

import pytest

from cloister.cli.image_boot import (
    chosen_firmware,
    chosen_state,
    predicted,
    require_places,
)
from cloister.cli.image_needs import carried_peers, fitting_memory, own_port
from cloister.cli.main import main
from cloister.errors import ConfigurationError
from cloister.evidence.tpm import Alg
from cloister.image.machine import Carried, Firmware, Machine
from cloister.image.ovmf_variables import read_variables
from cloister.image.secure_boot import SECURE_BOOT_OFF
from cloister.testing.simulated_vtpm import SimulatedVtpm
from support import boot_parts as made
from support.secure_boot_keys import OperatorKeys

PEERS = [
    {"name": "broker", "address": "10.0.2.100", "port": 8450},
    {"name": "clock", "address": "10.0.2.101", "port": 123},
]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    document = {"network": {"listen": [8440], "allow_out": PEERS}}
    (tmp_path / "configuration.json").write_text(json.dumps(document))
    return tmp_path


def test_peers_are_found_by_name(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = carried_peers(image, ["broker=127.0.0.1:8450", "clock=[::1]:1123"])
    assert found == (
        Carried(address="10.0.2.100", port=8450, host="127.0.0.1", host_port=8450),
        Carried(address="10.0.2.101", port=123, host="::1", host_port=1123),
    )
    assert capsys.readouterr().err == ""


def test_who_is_left_out_is_told_of(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (only,) = carried_peers(image, ["clock=localhost:1123"])
    assert only.host == "localhost"
    assert "tells broker" in capsys.readouterr().err


@pytest.mark.parametrize(
    "written",
    [
        ["stranger=127.0.0.1:1"],
        ["broker=127.0.0.1:1", "broker=127.0.0.1:2"],
        ["127.0.0.1:1"],
    ],
)
def test_a_name_that_is_not_the_images(written: list[str], image: Path) -> None:
    carried_peers(image, ["broker=127.0.0.1:1"])
    with pytest.raises(ConfigurationError, match="its peers: broker, clock") as caught:
        carried_peers(image, written)
    assert caught.value.code == "image.peer"


@pytest.mark.parametrize("target", ["", "127.0.0.1", "127.0.0.1:0", ":1", "a b:1", "127.0.0.1:1,x"])
def test_a_place_that_is_none(target: str, image: Path) -> None:
    carried_peers(image, ["broker=127.0.0.1:1"])
    with pytest.raises(ConfigurationError):
        carried_peers(image, [f"broker={target}"])


def test_an_image_that_does_not_say_whom_it_calls(tmp_path: Path) -> None:
    assert carried_peers(tmp_path, []) == ()
    with pytest.raises(ConfigurationError, match="its peers: none"):
        carried_peers(tmp_path, ["broker=127.0.0.1:1"])


@pytest.mark.parametrize(
    ("model", "mib"),
    [(None, 512), (1, 512), (64 << 20, 512), ((64 << 20) + 1, 768), (4 << 30, 8704)],
)
def test_a_machine_has_the_memory_that_its_model_needs(
    model: int | None, mib: int, tmp_path: Path
) -> None:
    if model is not None:
        with (tmp_path / "model.img").open("wb") as file:
            file.truncate(model)
    assert fitting_memory(tmp_path) == mib


def boot_log(*, secure_boot: bool) -> bytes:
    vtpm = SimulatedVtpm(banks=(Alg.SHA256,))
    vtpm.boot(secure_boot=secure_boot)
    return vtpm.event_log()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> OperatorKeys:
    return OperatorKeys.make(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def firmware(tmp_path: Path) -> tuple[Path, Path]:
    """Code, and an empty store of variables."""
    (tmp_path / "code.fd").write_bytes(b"code")
    (tmp_path / "empty.fd").write_bytes(made.variable_store())
    return tmp_path / "code.fd", tmp_path / "empty.fd"


def test_the_keys_are_in_the_firmwares_variables(
    keys: OperatorKeys, firmware: tuple[Path, Path], tmp_path: Path
) -> None:
    code, empty = firmware
    state = chosen_state(keys.folder, code, secure_boot=True)
    assert state == keys.keys.state()
    chosen = chosen_firmware(code, empty, tmp_path / "state", state)
    assert chosen.secure_boot
    assert chosen.program == code
    found = {one.name: one.value for one in read_variables(chosen.variables.read_bytes())}
    assert found["db"] == keys.keys.state().db
    assert empty.read_bytes() == made.variable_store()
    # Neither a second start nor another operator's disturbs the first.
    assert chosen_firmware(code, empty, tmp_path / "state", state) == chosen
    other = OperatorKeys.make(tmp_path / "others").keys.state()
    assert chosen_firmware(code, empty, tmp_path / "state", other).variables != chosen.variables
    assert len(list((tmp_path / "state").iterdir())) == 2


def test_variables_with_keys_in_them_are_taken_as_they_are(
    firmware: tuple[Path, Path], tmp_path: Path
) -> None:
    state = chosen_state(None, firmware[0], secure_boot=True)
    assert state is None
    chosen = chosen_firmware(*firmware, tmp_path, state)
    assert chosen.secure_boot
    assert chosen.variables == firmware[1]
    off = chosen_firmware(*firmware, tmp_path, chosen_state(None, None, secure_boot=False))
    assert not off.secure_boot


def test_nobody_says_whose_keys(keys: OperatorKeys, firmware: tuple[Path, Path]) -> None:
    """An empty store would mean Secure Boot off, whatever the option is called."""
    assert chosen_state(None, None, secure_boot=False) == SECURE_BOOT_OFF
    assert chosen_state(keys.folder, None, secure_boot=True)
    for named, code, on in (
        (None, None, True),
        (keys.folder, None, False),
        (keys.folder, firmware[0], False),
    ):
        with pytest.raises(ConfigurationError, match="--keys") as caught:
            chosen_state(named, code, secure_boot=on)
        assert caught.value.code == "image.machine"


@pytest.mark.parametrize("which", [0, 1])
def test_half_a_firmware(which: int, firmware: tuple[Path, Path], tmp_path: Path) -> None:
    assert chosen_firmware(*firmware, tmp_path, SECURE_BOOT_OFF).program == firmware[0]
    code, variables = (path if at == which else None for at, path in enumerate(firmware))
    with pytest.raises(ConfigurationError, match="by both") as caught:
        chosen_firmware(code, variables, tmp_path, SECURE_BOOT_OFF)
    assert caught.value.code == "image.machine"
    gone = tmp_path / "gone.fd"
    code, variables = (gone if at == which else path for at, path in enumerate(firmware))
    with pytest.raises(ConfigurationError, match=r"gone\.fd is no file"):
        chosen_firmware(code, variables, tmp_path, SECURE_BOOT_OFF)


def test_values_are_predicted_for_the_state_that_the_log_tells_of(
    keys: OperatorKeys, firmware: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "image"
    folder.mkdir()
    (folder / "uki.efi").write_bytes(made.uki(osrel=b"ID=cloister\nVERSION_ID=7\n"))
    (folder / "esp.img").write_bytes(made.disk())
    machine = Machine(
        firmware=chosen_firmware(*firmware, tmp_path, SECURE_BOOT_OFF),
        esp=folder / "esp.img",
        disks=(),
    )
    logs = {on: boot_log(secure_boot=on) for on in (False, True)}
    for on, state in ((False, None), (False, SECURE_BOOT_OFF), (True, keys.keys.state())):
        (reference,) = predicted(folder, logs[on], machine, state).platforms
        assert ("Secure Boot" in reference.name) is on
        with pytest.raises(ConfigurationError, match="another state") as caught:
            predicted(folder, logs[not on], machine, state)
        assert caught.value.code == "image.no_golden"


def test_the_port_is_the_one_that_the_image_listens_on(tmp_path: Path) -> None:
    assert own_port(tmp_path) == 8440
    (tmp_path / "configuration.json").write_text(json.dumps({"operator": {"port": 9000}}))
    assert own_port(tmp_path) == 9000


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    firmware = Firmware(program=tmp_path / "code.fd", variables=tmp_path / "variables.fd")
    return Machine(firmware=firmware, esp=tmp_path / "esp.img", disks=(), port=None)


def test_a_port_that_is_taken_is_refused_before_the_boot(machine: Machine, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = dataclasses.replace(machine, port=other.getsockname()[1])
        require_places(machine, tmp_path / "kit", None)
        with pytest.raises(ConfigurationError, match="--port") as caught:
            require_places(taken, tmp_path / "kit", None)
    assert caught.value.code == "image.machine"
    require_places(taken, tmp_path / "kit", None)


def test_a_place_that_cannot_be_written_is_refused_before_the_boot(
    machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    require_places(machine, tmp_path / "new" / "kit", tmp_path / "boot.log")
    for kit, log in (
        (tmp_path / "file", None),
        (tmp_path / "file" / "kit", None),
        (tmp_path / "kit", tmp_path),
        (tmp_path / "kit", tmp_path / "none" / "boot.log"),
    ):
        with pytest.raises(ConfigurationError, match="written to") as caught:
            require_places(machine, kit, log)
        assert caught.value.code == "image.machine"


def test_a_log_that_is_there_counts_for_itself(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as /dev/stdout, or a file that is read only, in whichever folder."""
    log = tmp_path / "logs" / "boot.log"
    log.parent.mkdir()
    log.touch()
    kit = tmp_path / "kit"
    monkeypatch.setattr(os, "access", lambda path, _: path not in (log.parent, log.parent.parent))
    with pytest.raises(ConfigurationError, match="kit"):
        require_places(machine, kit, log)
    monkeypatch.setattr(os, "access", lambda path, _: path != log.parent)
    require_places(machine, kit, log)
    monkeypatch.setattr(os, "access", lambda path, _: path != log)
    with pytest.raises(ConfigurationError, match=r"boot\.log"):
        require_places(machine, kit, log)


@pytest.mark.parametrize(
    ("option", "code"),
    [("--manifest", "image.manifest"), ("--reference-values", "reference_values_malformed")],
)
def test_a_file_that_is_none_of_its_kind_is_refused_before_the_boot(
    option: str, code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """QEMU would have been started, and this have ended a minute later."""
    (tmp_path / "file").write_text("{}")
    for name in ("esp.img", "root.img"):
        (tmp_path / name).touch()
    words = ["image", "boot", str(tmp_path), option, str(tmp_path / "file")]
    with pytest.raises(SystemExit) as left:
        main([*words, "--port", "0", "--state", str(tmp_path / "state")])
    said = capsys.readouterr().err
    assert left.value.code in (1, 2)
    assert f"[{code}]" in said
    assert str(tmp_path / "file") in said
    assert "Booting" not in said
