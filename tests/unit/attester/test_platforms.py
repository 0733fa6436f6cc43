"""Detection by files alone, on machines made of a temporary directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.attester.platforms import (
    AMAZON_VENDOR,
    AZURE_ASSET_TAG,
    GOOGLE_PRODUCT,
    GPU,
    TSM_REPORTS,
    PlatformFinding,
    State,
    detect,
)

DIRECTORIES = {TSM_REPORTS, "sys/module/sev_guest", "sys/module/tdx_guest", "sys/class/tpm/tpm0"}


class Machine:
    """Files below a directory; `locked` names those this user may not use."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.locked: set[str] = set()

    def put(self, name: str, text: str = "") -> Machine:
        path = self.root / name
        if name in DIRECTORIES:
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return self

    def cpu(self, *flags: str) -> Machine:
        return self.put("proc/cpuinfo", f"processor\t: 0\nflags\t\t: fpu {' '.join(flags)}\n")

    def kernel(self, release: str) -> Machine:
        return self.put("proc/sys/kernel/osrelease", f"{release}\n")

    def look(self, platform: str) -> PlatformFinding:
        found = detect(
            self.root, may_use=lambda path: str(path.relative_to(self.root)) not in self.locked
        )
        (only,) = (finding for finding in found if finding.platform == platform)
        return only


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_an_empty_machine_has_nothing(machine: Machine) -> None:
    found = detect(machine.root)
    assert {finding.state for finding in found} == {State.ABSENT}
    assert not any(finding.found or finding.steps for finding in found)


def test_looking_changes_nothing(machine: Machine) -> None:
    machine.put(TSM_REPORTS).put("sys/module/sev_guest").cpu("hypervisor", "sev_snp")
    before = sorted(machine.root.rglob("*"))
    assert machine.look("sev-snp").state is State.READY
    assert sorted(machine.root.rglob("*")) == before


def test_this_very_machine_can_be_looked_at() -> None:
    assert len(detect()) == 9


def test_an_snp_guest_with_configfs_is_ready(machine: Machine) -> None:
    machine.cpu("hypervisor", "sev_snp").put("sys/module/sev_guest").put(TSM_REPORTS)
    finding = machine.look("sev-snp")
    assert finding.state is State.READY
    assert "configfs-tsm" in finding.found


def test_an_snp_host_is_no_guest(machine: Machine) -> None:
    machine.cpu("sev_snp")
    assert machine.look("sev-snp").state is State.ABSENT


def test_an_old_kernels_device_is_enough(machine: Machine) -> None:
    machine.put("dev/sev-guest").kernel("6.1.0-1-amd64")
    assert machine.look("sev-snp").state is State.READY


@pytest.mark.parametrize(
    ("platform", "flag", "module"),
    [("sev-snp", "sev_snp", "sev-guest"), ("tdx", "tdx_guest", "tdx-guest")],
)
def test_what_a_guest_lacks_is_said_step_by_step(
    machine: Machine, platform: str, flag: str, module: str
) -> None:
    machine.cpu("hypervisor", flag).kernel("6.12.5-cloud")
    finding = machine.look(platform)
    assert finding.state is State.BLOCKED
    assert finding.steps == (
        f"load the kernel module: modprobe {module}",
        "mount configfs: mount -t configfs none /sys/kernel/config",
    )
    machine.put(f"sys/module/{module.replace('-', '_')}")
    assert len(machine.look(platform).steps) == 1
    machine.put(TSM_REPORTS)
    assert machine.look(platform).state is State.READY
    machine.locked = {TSM_REPORTS}
    assert machine.look(platform).steps == (
        f"run as root, or give this user /{TSM_REPORTS} (read and write)",
    )


def test_an_old_kernel_without_device_is_too_old(machine: Machine) -> None:
    machine.cpu("hypervisor", "tdx_guest").kernel("5.15.0")
    assert any("6.7" in step for step in machine.look("tdx").steps)


def test_a_device_that_is_locked_needs_a_right(machine: Machine) -> None:
    machine.put("dev/tdx_guest").kernel("6.1")
    machine.locked = {"dev/tdx_guest"}
    finding = machine.look("tdx")
    assert finding.state is State.BLOCKED
    assert finding.steps == ("run as root, or give this user /dev/tdx_guest (read and write)",)


def test_gramine_is_asked_for_dcap(machine: Machine) -> None:
    machine.put("dev/attestation/attestation_type", "dcap\0")
    assert machine.look("sgx").state is State.READY
    machine.put("dev/attestation/attestation_type", "none")
    assert "sgx.remote_attestation" in machine.look("sgx").steps[0]


def test_an_sgx_host_is_told_to_use_an_enclave(machine: Machine) -> None:
    machine.put("dev/sgx_enclave")
    assert machine.look("sgx").state is State.BLOCKED


def test_a_nitro_enclave_and_its_parent_are_told_apart(machine: Machine) -> None:
    machine.put("dev/nitro_enclaves")
    assert "nitro-cli run-enclave" in machine.look("nitro").steps[0]
    machine.put("dev/nsm")
    assert machine.look("nitro").state is State.READY
    machine.locked = {"dev/nsm"}
    assert machine.look("nitro").state is State.BLOCKED


def test_a_nitro_tpm_is_asked_past_the_resource_manager(machine: Machine) -> None:
    machine.put("dev/tpm0").put("dev/tpmrm0")
    assert machine.look("nitro-tpm").state is State.ABSENT
    machine.put("sys/class/dmi/id/sys_vendor", f"{AMAZON_VENDOR}\n")
    found = machine.look("nitro-tpm")
    assert (found.state, found.confidential) == (State.READY, False)
    machine.locked.add("dev/tpm0")
    found = machine.look("nitro-tpm")
    assert found.state is State.BLOCKED
    assert "/dev/tpm0" in found.steps[0]


def test_an_instance_without_a_nitro_tpm(machine: Machine) -> None:
    machine.put("sys/class/dmi/id/sys_vendor", AMAZON_VENDOR)
    found = machine.look("nitro-tpm")
    assert found.state is State.BLOCKED
    assert "--tpm-support" in found.steps[0]


def test_azure_and_google_are_told_by_the_firmware(machine: Machine) -> None:
    machine.put("dev/tpmrm0")
    assert machine.look("azure-snp").state is State.ABSENT
    assert machine.look("gcp-vtpm").state is State.ABSENT
    machine.put("sys/class/dmi/id/chassis_asset_tag", f"{AZURE_ASSET_TAG}\n")
    machine.put("sys/class/dmi/id/product_name", f"{GOOGLE_PRODUCT}\n")
    assert machine.look("azure-snp").state is State.READY
    assert machine.look("gcp-vtpm").state is State.READY
    assert not machine.look("gcp-vtpm").confidential
    machine.locked = {"dev/tpmrm0"}
    assert "tss" in machine.look("azure-snp").steps[0]
    assert "tss" in machine.look("gcp-vtpm").steps[0]


def test_a_tpm_is_no_promise_about_memory(machine: Machine) -> None:
    machine.put("dev/tpmrm0")
    finding = machine.look("tpm")
    assert finding.state is State.READY
    assert not finding.confidential


def test_an_old_tpm_does_not_do(machine: Machine) -> None:
    machine.put("sys/class/tpm/tpm0")
    assert "modprobe tpm_crb" in machine.look("tpm").steps[0]
    machine.put("sys/class/tpm/tpm0/tpm_version_major", "1\n")
    assert "1.2" in machine.look("tpm").steps[0]


def test_gpus_are_counted_and_stand_not_alone(machine: Machine) -> None:
    machine.put("dev/nvidiactl").put("dev/nvidia0").put("dev/nvidia1")
    finding = machine.look(GPU)
    assert finding.state is State.READY
    assert finding.found[0] == "2 GPUs with a driver"
    assert not finding.complete


def test_a_gpu_without_driver_is_seen_on_the_bus(machine: Machine) -> None:
    device = "sys/bus/pci/devices/0000:01:00.0"
    machine.put(f"{device}/vendor", "0x10de\n").put(f"{device}/class", "0x020000\n")
    assert machine.look(GPU).state is State.ABSENT  # a network card of the same vendor
    machine.put(f"{device}/class", "0x030200\n")
    finding = machine.look(GPU)
    assert finding.state is State.BLOCKED
    assert "driver" in finding.steps[0]


@pytest.mark.parametrize("release", ["", "strange", "x.y.z"])
def test_strange_files_do_no_harm(machine: Machine, release: str) -> None:
    machine.kernel(release).cpu("hypervisor", "sev_snp")
    (machine.root / "proc/cpuinfo").write_bytes(b"flags : hypervisor sev_snp \xff\xfe")
    assert machine.look("sev-snp").state is State.BLOCKED
