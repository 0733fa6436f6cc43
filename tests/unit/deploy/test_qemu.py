"""QEMU and libvirt recipes: exact words, checked against the documented models of both."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cloister.attester import guest_port
from cloister.deploy import google, qemu
from cloister.deploy.apply import DeployError, apply
from cloister.deploy.deployment import Deployment
from cloister.deploy.ingress import make_filter
from cloister.deploy.libvirt import libvirt_snp_plan, libvirt_tdx_plan
from cloister.deploy.plan import Plan, Run, Write
from cloister.deploy.qemu_snp import qemu_snp_plan
from cloister.deploy.qemu_tdx import QuoteService, qemu_tdx_plan
from cloister.errors import ConfigurationError, UnsupportedError
from cloister.image.direct_boot import DirectBoot, direct_boot
from cloister.image.snp_launch import SnpMachine, launch_digest
from cloister.image.stub import parse_uki
from cloister.strictjson import JsonObject
from support import boot_parts
from support.cloud_plans import GOOGLE_PLACE, answers, plan_of
from support.deployments import (
    COMMAND_LINE,
    MANIFEST,
    Recorder,
    built_for,
    deployment,
    write_configuration,
    write_image,
    write_record,
)

GPU = "0000:41:00.0"
OBJECTS = {
    # qapi/qom.json of QEMU 10.1: SevSnpGuestProperties with SevCommonProperties.
    "sev-snp-guest": {
        *("sev-device", "cbitpos", "reduced-phys-bits", "kernel-hashes", "policy"),
        *("guest-visible-workarounds", "id-block", "id-auth", "author-key-enabled"),
        *("host-data", "vcek-disabled"),
    },
    # The same file: TdxGuestProperties.
    "tdx-guest": {
        *("attributes", "sept-ve-disable", "mrconfigid", "mrowner", "mrownerconfig"),
        "quote-generation-socket",
    },
    "memory-backend-memfd": {"size", "share", "prealloc", "reserve"},
    "memory-backend-ram": {"size"},
    "iommufd": set(),
}


def host(folder: Path, **changes: object) -> qemu.Host:
    made = qemu.Host(firmware=folder / "OVMF.fd", machine=qemu.Machine(vcpus=4, memory_mib=8192))
    return replace(made, **changes)  # type: ignore[arg-type]  # names of its own fields


def for_snp(folder: Path) -> Deployment:
    return built_for(deployment(folder), "sev-snp")


def for_tdx(folder: Path) -> Deployment:
    return built_for(deployment(folder), "tdx")


def snp(folder: Path, **changes: object) -> Plan:
    return qemu_snp_plan(for_snp(folder), host(folder, **changes))


def tdx(folder: Path, **changes: object) -> Plan:
    return qemu_tdx_plan(for_tdx(folder), host(folder, **changes), quotes=QuoteService())


def command(plan: Plan) -> list[str]:
    step = plan.steps[-1]
    assert isinstance(step, Run)
    assert all(isinstance(word, str) for word in step.argv)
    return [str(word) for word in step.argv]


def values(argv: list[str], option: str) -> list[str]:
    return [argv[at + 1] for at, word in enumerate(argv) if word == option]


def objects(argv: list[str]) -> dict[str, JsonObject]:
    read = [json.loads(value) for value in values(argv, "-object")]
    return {one.pop("qom-type"): one for one in read}


@pytest.mark.parametrize("make", [snp, tdx])
def test_every_object_has_only_members_that_qemu_knows(make: object, tmp_path: Path) -> None:
    assert callable(make)
    found = objects(command(make(tmp_path, gpus=(GPU,))))
    assert len(found) == 3
    for kind, members in found.items():
        assert members.keys() - {"id"} <= OBJECTS[kind]


def test_snp_starts_the_parts_of_the_uki_under_measured_hashes(tmp_path: Path) -> None:
    argv = command(snp(tmp_path))
    guest = objects(argv)["sev-snp-guest"]
    assert guest["kernel-hashes"] is True
    assert guest["policy"] == 0x30000  # no debug (bit 19), no migration agent (bit 18)
    assert guest["host-data"] == base64.b64encode(MANIFEST).decode()
    assert values(argv, "-kernel") == [str(tmp_path / "deployment" / "kernel")]
    assert values(argv, "-initrd") == [str(tmp_path / "deployment" / "initrd")]
    assert values(argv, "-append") == [COMMAND_LINE]
    (machine,) = values(argv, "-machine")
    assert f"confidential-guest-support={guest['id']}" in machine.split(",")
    assert values(argv, "-cpu") == ["EPYC-v4"]
    assert values(argv, "-smp") == ["4"]


def booted(plan: Plan) -> tuple[str, str, str]:
    """Kernel, initrd and command line that the guest is told of."""
    if plan.target == "qemu-snp":
        argv = command(plan)
        found = [values(argv, option)[0] for option in ("-kernel", "-initrd", "-append")]
    else:
        found = [
            domain(plan).findtext(f"os/{one}") or "" for one in ("kernel", "initrd", "cmdline")
        ]
    kernel, initrd, line = found
    return kernel, initrd, line


@pytest.mark.parametrize("target", ["qemu-snp", "libvirt-snp"])
def test_an_snp_guest_is_given_what_its_launch_digest_is_predicted_from(
    target: str, tmp_path: Path
) -> None:
    plan = plan_of(target, tmp_path)
    tools = Recorder(answers(plan))
    apply(plan, tools.effects, tell=lambda *_: None)
    kernel, initrd, line = booted(plan)
    given = DirectBoot(
        kernel=Path(kernel).read_bytes(), initrd=Path(initrd).read_bytes(), command_line=line
    )
    predicted = direct_boot(parse_uki((tmp_path / "image" / "uki.efi").read_bytes()))
    assert given == predicted
    firmware = tmp_path / "OVMF.fd"
    firmware.write_bytes(boot_parts.snp_firmware())
    machine = SnpMachine(firmware=firmware, vcpus=4, vcpu_type="EPYC-v4")
    assert launch_digest(machine, given) == launch_digest(machine, predicted)


@pytest.mark.parametrize("target", ["qemu-snp", "libvirt-snp"])
def test_an_image_that_leaves_a_disk_open_does_not_start_without_a_tpm(
    target: str, tmp_path: Path
) -> None:
    plan_of(target, tmp_path)
    line = COMMAND_LINE.replace("model=b", "model=measured")
    (tmp_path / "image" / "uki.efi").write_bytes(boot_parts.uki(cmdline=line.encode()))
    write_record(tmp_path / "image", {"debug": False})
    with pytest.raises(UnsupportedError) as caught:
        plan_of(target, tmp_path)
    assert caught.value.code == "image.unpinned"
    plan_of("qemu-tdx", tmp_path)


def test_a_uki_that_changes_while_it_is_planned_is_refused(tmp_path: Path) -> None:
    made = for_snp(tmp_path)
    qemu_snp_plan(made, host(tmp_path))
    line = f"{COMMAND_LINE} more"
    (tmp_path / "image" / "uki.efi").write_bytes(boot_parts.uki(cmdline=line.encode()))
    with pytest.raises(ConfigurationError) as caught:
        qemu_snp_plan(made, host(tmp_path))
    assert caught.value.code == "deploy.changed"


def test_tdx_starts_from_the_disk_and_names_the_manifest_in_48_bytes(tmp_path: Path) -> None:
    argv = command(tdx(tmp_path))
    guest = objects(argv)["tdx-guest"]
    named = base64.b64decode(str(guest["mrconfigid"]))
    assert named == MANIFEST + bytes(16)
    assert guest["quote-generation-socket"] == {
        "type": "unix",
        "path": "/var/run/tdx-qgs/qgs.socket",
    }
    assert "attributes" not in guest  # bit 0 of it would be debug
    assert "-kernel" not in argv
    (machine,) = values(argv, "-machine")
    assert {"kernel-irqchip=split", f"confidential-guest-support={guest['id']}"} <= set(
        machine.split(",")
    )
    booted = [json.loads(one) for one in values(argv, "-device") if "bootindex" in one]
    assert [one["drive"] for one in booted] == ["esp"]


def test_quotes_over_vsock_go_to_the_host(tmp_path: Path) -> None:
    plan = qemu_tdx_plan(
        for_tdx(tmp_path), host(tmp_path), quotes=QuoteService(path=None, vsock_port=4050)
    )
    guest = objects(command(plan))["tdx-guest"]
    assert guest["quote-generation-socket"] == {"type": "vsock", "cid": "2", "port": "4050"}


@pytest.mark.parametrize("make", [snp, tdx])
def test_the_guest_gets_read_only_disks_and_nothing_it_was_not_given(
    make: object, tmp_path: Path
) -> None:
    assert callable(make)
    argv = command(make(tmp_path))
    drives = [json.loads(one) for one in values(argv, "-blockdev")]
    assert drives
    assert all(one["read-only"] is True for one in drives)
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(argv)
    assert values(argv, "-monitor") == ["none"]
    devices = [json.loads(one) for one in values(argv, "-device")]
    assert all(one["iommu_platform"] is True for one in devices if one["driver"][-4:] == "-pci")
    (net,) = [json.loads(one) for one in values(argv, "-netdev")]
    assert net["restrict"] is True
    assert net["hostfwd"] == [{"str": "tcp:127.0.0.1:8440-10.0.2.15:8440"}]
    assert [one["romfile"] for one in devices if one["driver"] == "virtio-net-pci"] == [""]


def test_an_address_outside_of_qemus_network_is_refused_there(tmp_path: Path) -> None:
    snp(tmp_path)
    write_configuration(tmp_path / "image", address="10.0.9.9/24")
    write_record(tmp_path / "image", {"debug": False})
    with pytest.raises(ConfigurationError) as caught:
        snp(tmp_path)
    assert caught.value.code == "deploy.network"
    snp(tmp_path, network=qemu.Network.TAP, interface="tap0")


def test_an_image_without_a_card_starts_where_there_is_none(tmp_path: Path) -> None:
    image = write_image(tmp_path / "image")
    nothing: dict[str, object] = {
        name: [] for name in ("listen", "allow_out", "address", "gateway")
    }
    write_configuration(image, members={"network": {"card": False, **nothing}})
    write_record(image, {"debug": False})
    made = for_snp(tmp_path)
    qemu_snp_plan(made, host(tmp_path, network=qemu.Network.SERIAL))
    libvirt_snp_plan(made, serial(tmp_path))
    refused: tuple[Callable[[], Plan], ...] = (
        lambda: qemu_snp_plan(made, host(tmp_path)),
        lambda: libvirt_snp_plan(made, host(tmp_path, network=qemu.Network.TAP, interface="tap0")),
        lambda: google.google_plan(
            built_for(made, "gcp-snp"),
            GOOGLE_PLACE,
            make_filter(made.port, ["any"], ()),
            google.Kind.SNP,
        ),
    )
    for plan in refused:
        with pytest.raises(ConfigurationError) as caught:
            plan()
        assert caught.value.code == "deploy.network"
    for card in (True, None):
        write_configuration(image, members={"network": {"card": card, **nothing}})
        write_record(image, {"debug": False})
        with pytest.raises(ConfigurationError) as caught:
            deployment(tmp_path)
        assert caught.value.code == "deploy.image"


def test_without_a_card_the_way_in_is_a_serial_port(tmp_path: Path) -> None:
    argv = command(snp(tmp_path, network=qemu.Network.SERIAL))
    assert "-netdev" not in argv
    assert "virtio-net" not in " ".join(argv)
    devices = [json.loads(one) for one in values(argv, "-device")]
    ports = {one["name"] for one in devices if one["driver"] == "virtserialport"}
    assert ports == {guest_port.PORT_NAME, "cloister.requests", "cloister.broker"}
    page = Path(__file__).parents[3] / "docs" / "how-to" / "boot-images.md"
    assert "virtio:/dev/virtio-ports/cloister.requests" in page.read_text()


def test_an_interface_of_the_host_runs_no_script(tmp_path: Path) -> None:
    argv = command(snp(tmp_path, network=qemu.Network.TAP, interface="tap0"))
    (net,) = [json.loads(one) for one in values(argv, "-netdev")]
    assert net == {
        "type": "tap",
        "id": "net0",
        "ifname": "tap0",
        "script": "no",
        "downscript": "no",
    }


def test_gpus_are_in_confidential_mode_before_the_guest_starts(tmp_path: Path) -> None:
    plan = snp(tmp_path, gpus=(GPU, "0000:42:00.0"))
    answers = {
        ("cat",): "Y\n",
        ("nvidia_gpu_tools.py", "--devices", GPU, "--query-cc-mode"): f"GPU {GPU} CC mode is on\n",
        ("nvidia_gpu_tools.py", "--devices", "0000:42:00.0", "--query-cc-mode"): "CC mode is on\n",
        ("readlink",): "../../../../bus/pci/drivers/vfio-pci\n",
        ("qemu-system-x86_64", "--version"): "QEMU emulator version 9.1.0 (Debian)",
    }
    tools = Recorder(answers)
    apply(plan, tools.effects, tell=lambda *_: None)
    assert tools.calls[-1][0] == "qemu-system-x86_64"
    for mode in ("off", "devtools", "only"):
        query = ("nvidia_gpu_tools.py", "--devices", GPU, "--query-cc-mode")
        other = Recorder({**answers, query: f"GPU {GPU} CC mode is {mode}\n"})
        again = replace(plan, folder=tmp_path / mode)
        with pytest.raises(DeployError) as caught:
            apply(again, other.effects, tell=lambda *_: None)
        assert caught.value.code == "deploy.expectation"
        assert other.calls[-1] == query
    devices = [json.loads(one) for one in values(command(plan), "-device")]
    ports = {one["id"] for one in devices if one["driver"] == "pcie-root-port"}
    assert (
        {one["bus"] for one in devices if one["driver"] == "vfio-pci"} == ports == {"gpu0", "gpu1"}
    )
    assert values(command(plan), "-fw_cfg") == ["name=opt/ovmf/X-PciMmio64Mb,string=524288"]


@pytest.mark.parametrize("said", ["N\n", "0\n", "", "YN\n"])
def test_a_host_without_the_feature_starts_nothing(tmp_path: Path, said: str) -> None:
    answers = {
        ("cat",): said,
        ("qemu-system-x86_64", "--version"): "QEMU emulator version 10.1.0",
    }
    tools = Recorder(answers)
    with pytest.raises(DeployError):
        apply(tdx(tmp_path), tools.effects, tell=lambda *_: None)
    assert tools.calls[-1][0] == "cat"


@pytest.mark.parametrize(("make", "version"), [(snp, "9.0.4"), (tdx, "10.0.2")], ids=["snp", "tdx"])
def test_an_older_qemu_is_refused(make: object, version: str, tmp_path: Path) -> None:
    assert callable(make)
    tools = Recorder({("qemu-system-x86_64",): f"QEMU emulator version {version}"})
    with pytest.raises(ConfigurationError, match=re.escape(version)):
        apply(make(tmp_path), tools.effects, tell=lambda *_: None)


@pytest.mark.parametrize(
    "changes",
    [
        {"gpus": ("0000:41:00.0,rombar=0",)},
        {"gpus": ("41:00.0",)},
        {"gpus": (GPU, GPU)},
        {"network": qemu.Network.TAP, "interface": "tap0,script=/bin/x"},
        {"network": qemu.Network.TAP, "interface": ""},
        {"listen": "127.0.0.1:1-10.0.0.1:1,guestfwd=x"},
        {"firmware": Path("/x,format=raw")},
        {"firmware": Path("-x")},
    ],
)
def test_words_that_could_become_options_are_refused(
    changes: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError):
        snp(tmp_path, **changes)


@pytest.mark.parametrize(("vcpus", "memory"), [(0, 1024), (513, 1024), (1, 255), (1, 1 << 25)])
def test_machines_have_a_size(vcpus: int, memory: int) -> None:
    assert qemu.Machine(vcpus=1, memory_mib=256).memory_mib == 256
    with pytest.raises(ConfigurationError):
        qemu.Machine(vcpus=vcpus, memory_mib=memory)


def test_other_words_are_refused_too(tmp_path: Path) -> None:
    for cpu in ("host", "EPYC-v4,+x", "max"):
        with pytest.raises(ConfigurationError):
            qemu_snp_plan(for_snp(tmp_path), host(tmp_path), cpu=cpu)
    for name in ("Web", "web,x", "-web", "web web"):
        with pytest.raises(ConfigurationError):
            deployment(tmp_path, name=name)
    for path in ("/a,b", "a", "-a"):
        with pytest.raises(ConfigurationError):
            QuoteService(path=Path(path))
        with pytest.raises(ConfigurationError):
            libvirt_tdx_plan(
                for_tdx(tmp_path),
                host(tmp_path, network=qemu.Network.SERIAL),
                quotes=Path(path),
            )


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU")
@pytest.mark.parametrize("make", [snp, tdx])
def test_qemu_takes_all_but_what_only_such_hosts_have(make: object, tmp_path: Path) -> None:
    """QEMU reads every other word, makes the devices and ends; the guest's processor never runs."""
    assert callable(make)
    argv = command(make(tmp_path))
    (tmp_path / "deployment").mkdir()
    without = {
        "-accel",
        "-cpu",
        "-bios",
        "-m",
        "-kernel",
        "-initrd",
        "-append",
        "-object",
        "-machine",
    }
    taken = ["qemu-system-x86_64", "-accel", "tcg", "-machine", "q35,memory-backend=ram0"]
    taken += ["-cpu", "max", "-m", "256M", "-object", "memory-backend-ram,id=ram0,size=256M"]
    skip = False
    for word in argv[1:]:
        if skip or word == "-daemonize":
            skip = False
        elif word in without:
            skip = True
        else:
            taken.append(word)
    done = subprocess.run(
        [*taken, "-S", "-qmp", "stdio"],
        input='{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n',
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert '"return"' in done.stdout


# libvirt


def domain(plan: Plan) -> ET.Element:
    (written,) = [step for step in plan.steps if isinstance(step, Write)]
    assert isinstance(written.content, str)
    return ET.fromstring(written.content)


def serial(folder: Path, **changes: object) -> qemu.Host:
    return host(folder, network=qemu.Network.SERIAL, **changes)


def test_an_snp_domain_has_the_documented_launch_security(tmp_path: Path) -> None:
    found = domain(libvirt_snp_plan(for_snp(tmp_path), serial(tmp_path)))
    security = found.find("launchSecurity")
    assert security is not None
    assert security.attrib == {"type": "sev-snp", "kernelHashes": "yes"}
    assert {one.tag: one.text for one in security} == {
        "cbitpos": "51",
        "reducedPhysBits": "1",
        "policy": "0x00030000",
        "hostData": base64.b64encode(MANIFEST).decode(),
    }
    assert found.findtext("os/kernel") == str(tmp_path / "deployment" / "kernel")
    assert found.findtext("os/initrd") == str(tmp_path / "deployment" / "initrd")
    assert found.findtext("os/cmdline") == COMMAND_LINE


def test_a_tdx_domain_has_the_documented_launch_security(tmp_path: Path) -> None:
    found = domain(
        libvirt_tdx_plan(for_tdx(tmp_path), serial(tmp_path), quotes=Path("/run/qgs.socket"))
    )
    security = found.find("launchSecurity")
    assert security is not None
    assert security.attrib == {"type": "tdx"}
    assert security.findtext("policy") == "0x10000000"  # bit 0 would be debug
    named = base64.b64decode(security.findtext("mrConfigId") or "")
    assert named == MANIFEST + bytes(16)
    service = security.find("quoteGenerationService")
    assert service is not None
    assert service.attrib == {"path": "/run/qgs.socket"}
    first = found.find("devices/disk")
    assert first is not None
    assert first.find("boot") is not None


@pytest.mark.parametrize("network", [qemu.Network.SERIAL, qemu.Network.TAP])
def test_a_domain_holds_what_it_was_given_and_no_more(
    network: qemu.Network, tmp_path: Path
) -> None:
    made = host(tmp_path, network=network, interface="tap0", gpus=(GPU,))
    found = domain(libvirt_snp_plan(for_snp(tmp_path), made))
    devices = found.find("devices")
    assert devices is not None
    way = () if network is qemu.Network.SERIAL else ("interface",)
    assert {one.tag for one in devices} == {
        *("disk", "controller", "channel", *way, "serial", "rng", "hostdev", "memballoon")
    }
    targets = [one.attrib["name"] for one in devices.findall("channel/target")]
    ports = [] if way else ["cloister.requests", "cloister.broker"]
    assert targets == ["cloister.operator", *ports]
    assert all(disk.find("readonly") is not None for disk in devices.findall("disk"))
    assert [found.findtext(f"on_{event}") for event in ("poweroff", "reboot", "crash")] == [
        "destroy"
    ] * 3
    address = devices.find("hostdev/source/address")
    assert address is not None
    assert address.attrib == {
        "domain": "0x0000",
        "bus": "0x41",
        "slot": "0x00",
        "function": "0x0",
    }


def test_a_name_cannot_leave_its_element(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        deployment(tmp_path, name="a</name><x>")
    made = for_snp(tmp_path)
    object.__setattr__(
        made, "name", "a</name><x>"
    )  # past the first lock: the encoder is the second
    found = domain(libvirt_snp_plan(made, serial(tmp_path)))
    assert found.findtext("name") == "a</name><x>"
    assert found.find("x") is None


def test_libvirt_publishes_no_port_for_a_guest_that_may_not_call_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        libvirt_snp_plan(for_snp(tmp_path), host(tmp_path))
    assert caught.value.code == "deploy.network"


def test_a_domain_is_validated_then_started(tmp_path: Path) -> None:
    tools = Recorder({("virsh", "--version"): "10.5.0\n"})
    apply(
        libvirt_snp_plan(for_snp(tmp_path), serial(tmp_path)),
        tools.effects,
        tell=lambda *_: None,
    )
    assert [call[3:] for call in tools.calls[1:]] == [
        ("define", "--validate", str(tmp_path / "deployment" / "domain.xml")),
        ("start", "web"),
    ]
