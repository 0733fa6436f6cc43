"""Recipes against the platforms' own words: libvirt's schema and QEMU's description of its objects.

Both come from the newest Debian packages, for the everyday system's are older than SEV-SNP and TDX;
``make deploy-check`` fetches them. No guest is started.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from cloister.deploy import qemu
from cloister.deploy.libvirt import libvirt_snp_plan, libvirt_tdx_plan
from cloister.deploy.plan import Plan, Run, Write
from support.cloud_plans import GPU, plan_of
from support.deployments import built_for, deployment

pytestmark = pytest.mark.platforms

ROOT: Final = Path(os.environ.get("CLOISTER_PLATFORM_ROOT", "build/platforms"))
SCHEMA: Final = "/usr/share/libvirt/schemas/domain.rng"


def inside(*command: str, given: str) -> subprocess.CompletedProcess[str]:
    """Run a program of that root, with nothing of this machine's."""
    view = ("--ro-bind", str(ROOT), "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp")
    return subprocess.run(
        ["bwrap", "--unshare-all", *view, *command],
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )


def domain(
    folder: Path, tee: str, network: qemu.Network, gpus: tuple[str, ...], *, manifest: bool
) -> str:
    what = built_for(deployment(folder), {"snp": "sev-snp", "tdx": "tdx"}[tee])
    if not manifest:
        what = replace(what, manifest=None)
    host = qemu.Host(
        firmware=Path("/usr/share/ovmf/OVMF.fd"),
        machine=qemu.Machine(vcpus=4, memory_mib=8192),
        network=network,
        interface="tap0" if network is qemu.Network.TAP else "",
        gpus=gpus,
    )
    plan = (
        libvirt_snp_plan(what, host)
        if tee == "snp"
        else libvirt_tdx_plan(what, host, quotes=Path("/run/qgs.socket"))
    )
    (written,) = [step for step in plan.steps if isinstance(step, Write)]
    assert isinstance(written.content, str)
    return written.content


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("gpus", [(), (GPU,)], ids=["no-gpu", "gpu"])
@pytest.mark.parametrize("network", [qemu.Network.SERIAL, qemu.Network.TAP])
@pytest.mark.parametrize("tee", ["snp", "tdx"])
def test_libvirts_schema_takes_the_domain(
    tee: str, network: qemu.Network, gpus: tuple[str, ...], manifest: bool, tmp_path: Path
) -> None:
    text = domain(tmp_path, tee, network, gpus, manifest=manifest)
    asked = ("xmllint", "--noout", "--relaxng", SCHEMA, "-")
    done = inside(*asked, given=text)
    assert done.returncode == 0, done.stderr
    assert inside(*asked, given=text.replace("policy>", "polizy>")).returncode != 0


def described() -> dict[str, Any]:
    """The types of QEMU's monitor by name, as it describes them itself (`query-qmp-schema`)."""
    asked = [{"execute": name} for name in ("qmp_capabilities", "query-qmp-schema", "quit")]
    machine = ("-machine", "none", "-nodefaults", "-nographic", "-qmp", "stdio")
    done = inside("qemu-system-x86_64", *machine, given="\n".join(map(json.dumps, asked)) + "\n")
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    (schema,) = [one["return"] for one in answers if isinstance(one.get("return"), list)]
    return {entry["name"]: entry for entry in schema}


def members_of(types: dict[str, Any], kind: str) -> set[str]:
    """What `object-add` takes for an object of this type."""
    options = types[types["object-add"]["arg-type"]]
    (variant,) = [one["type"] for one in options["variants"] if one["case"] == kind]
    return {one["name"] for one in (*options["members"], *types[variant]["members"])}


@pytest.mark.parametrize(
    ("target", "kind"), [("qemu-snp", "sev-snp-guest"), ("qemu-tdx", "tdx-guest")]
)
def test_qemu_knows_every_member_of_the_confidential_guest(
    target: str, kind: str, tmp_path: Path
) -> None:
    types = described()
    given = objects(plan_of(target, tmp_path))
    assert kind in {one["qom-type"] for one in given}
    for one in given:
        assert set(one) <= members_of(types, one["qom-type"])


def objects(plan: Plan) -> list[dict[str, Any]]:
    step = plan.steps[-1]
    assert isinstance(step, Run)
    words = [str(word) for word in step.argv]
    return [json.loads(words[at + 1]) for at, word in enumerate(words) if word == "-object"]
