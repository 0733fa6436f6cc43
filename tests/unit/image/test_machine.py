"""The machine of an image, as QEMU is told of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cloister.errors import ConfigurationError, UnsupportedError
from cloister.image.machine import (
    Carried,
    Firmware,
    Machine,
    Sockets,
    can_accelerate,
    find_firmware,
    qemu_command,
)

SOCKETS = Sockets(folder=Path("/run/vm"))
MACHINE = Machine(
    firmware=Firmware(program=Path("/fw/code.fd"), variables=Path("/fw/vars.fd")),
    esp=Path("/image/esp.img"),
    disks=(Path("/image/root.img"), Path("/image/model.img")),
)


def words(machine: Machine) -> str:
    return " ".join(qemu_command(machine, SOCKETS))


def test_disks_and_firmware_are_read_only_and_nothing_is_qemus_own_idea() -> None:
    command = qemu_command(MACHINE, SOCKETS)
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(command)
    drives = [word for word in command if "file=/image" in word or "file=/fw" in word]
    assert len(drives) == 4
    assert all("readonly=on" in drive for drive in drives)
    assert "file=/run/vm/variables.fd" in words(MACHINE)


def test_an_emulated_processor_clears_memory_in_words() -> None:
    assert "-cpu max,erms=off,model=5 " in words(MACHINE)
    assert "-cpu host " in words(dataclasses.replace(MACHINE, accelerated=True))


def test_the_firmware_that_starts_sooner_is_taken_where_there_is_one(tmp_path: Path) -> None:
    for name in ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd", "OVMF_CODE_4M.secboot.fd"):
        (tmp_path / name).touch()
    assert find_firmware(folders=[tmp_path]).program.name == "OVMF_CODE_4M.fd"
    (tmp_path / "OVMF_CODE.fd").touch()
    assert find_firmware(folders=[tmp_path]).program.name == "OVMF_CODE_4M.fd"  # no variables
    (tmp_path / "OVMF_VARS.fd").touch()
    found = find_firmware(folders=[tmp_path])
    assert (found.program.name, found.variables.name) == ("OVMF_CODE.fd", "OVMF_VARS.fd")
    secure = find_firmware(secure_boot=True, folders=[tmp_path])
    assert secure.secure_boot
    assert (secure.program.name, secure.variables.name) == (
        "OVMF_CODE_4M.secboot.fd",
        "OVMF_VARS_4M.fd",
    )


def test_a_missing_firmware_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"OVMF_CODE_4M\.fd is not installed") as caught:
        find_firmware(folders=[tmp_path])
    assert caught.value.code == "image.firmware_missing"
    with pytest.raises(UnsupportedError, match=r"OVMF_CODE_4M\.secboot\.fd"):
        find_firmware(secure_boot=True, folders=[tmp_path])


def test_disks_can_show_as_nvme() -> None:
    assert "nvme" not in words(MACHINE)
    assert "virtio-blk" in words(MACHINE)
    other = words(dataclasses.replace(MACHINE, disk_device="nvme"))
    assert "-device nvme,drive=root,serial=root" in other
    assert "-device nvme,drive=esp,serial=esp,bootindex=1" in other
    assert "virtio-blk" not in other


def test_a_start_disk_is_one_more_read_only_disk() -> None:
    assert "start" not in words(MACHINE)
    disk = Path("/operator/root.img")
    for device in ("virtio-blk-pci", "nvme"):
        machine = dataclasses.replace(MACHINE, start_disk=disk, disk_device=device)
        assert f"id=start,format=raw,readonly=on,file={disk} " in words(machine)
        assert f"-device {device},drive=start,serial=start " in words(machine)
    with pytest.raises(ConfigurationError, match="no comma"):
        dataclasses.replace(MACHINE, start_disk=Path("/a,b"))


def test_the_network_lets_nothing_out_and_listens_on_loopback() -> None:
    command = words(MACHINE)
    assert "restrict=on" in command
    assert "hostfwd=tcp:127.0.0.1:8440-10.0.2.15:8440" in command
    assert "romfile=" in command
    assert "cloister.requests" not in command
    assert "cloister.broker" not in command


def test_peers_are_carried_and_nobody_else_is_called() -> None:
    carried = Carried(address="10.0.2.100", port=8450, host="127.0.0.1", host_port=18450)
    command = words(dataclasses.replace(MACHINE, peers=(carried,)))
    assert "restrict=on" in command
    assert command.count("guestfwd=") == 1
    assert f"guestfwd=tcp:10.0.2.100:8450-cmd:{carried.command} " in command
    assert carried.command.endswith("-I -m cloister.image.dial 127.0.0.1 18450")
    assert "guestfwd" not in words(MACHINE)
    with pytest.raises(ConfigurationError, match="calls nobody"):
        dataclasses.replace(MACHINE, peers=(carried,), port=None)


def test_without_a_network_there_is_a_port_and_no_card() -> None:
    command = words(dataclasses.replace(MACHINE, port=None))
    assert "netdev" not in command
    assert "virtio-net" not in command
    assert "name=cloister.requests" in command
    assert "path=/run/vm/broker.sock" in command
    assert "name=cloister.broker" in command


def test_the_operators_port_is_always_there() -> None:
    for machine in (MACHINE, dataclasses.replace(MACHINE, port=None)):
        assert "name=cloister.operator" in words(machine)


def test_secure_boot_protects_its_variables() -> None:
    secure = dataclasses.replace(
        MACHINE, firmware=dataclasses.replace(MACHINE.firmware, secure_boot=True)
    )
    assert "property=secure" in words(secure)
    assert "smm=on" in words(secure)
    assert "property=secure" not in words(MACHINE)


@pytest.mark.parametrize("change", [{"memory_mib": 64}, {"cpus": 0}, {"esp": Path("/a,b=c.img")}])
def test_what_is_no_machine(change: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        dataclasses.replace(MACHINE, **change)  # type: ignore[arg-type]
    assert caught.value.code == "image.machine"


@pytest.mark.parametrize(
    ("flags", "usable", "accelerated"),
    [
        ("fpu vmx sse", True, True),
        ("fpu svm sse", True, True),
        ("fpu vmx sse", False, False),
        ("fpu sse hypervisor", True, False),
        ("fpu vmx_something", True, False),
    ],
)
def test_the_processor_decides_and_not_the_device(
    tmp_path: Path, flags: str, *, usable: bool, accelerated: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    found = can_accelerate(
        cpuinfo=tmp_path / "cpuinfo", device=tmp_path / "kvm", may_use=lambda _: usable
    )
    assert found is accelerated


def test_a_machine_without_proc_emulates(tmp_path: Path) -> None:
    assert not can_accelerate(cpuinfo=tmp_path / "none", may_use=lambda _: True)
