"""Every option of every target, given what a shell, Terraform or a tool reads more into."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import typer.main

from cloister.cli.main import build_app, guard
from support.cloud_plans import PLATFORMS, with_enclave_image
from support.deployments import MANIFEST, write_configuration, write_record, write_start_disk

AWS = (
    "--region us-east-2 --bucket my-images --vpc vpc-0123abcd --subnet subnet-0123abcd"
    " --machine-type m6a.large --from 203.0.113.0/24"
)
HOST = (
    f"--manifest-digest {MANIFEST.hex()} --firmware /usr/share/OVMF.fd --network tap"
    " --interface tap0 --gpu 0000:41:00.0 --vcpus 4 --memory 8192"
)
GOOD = {
    "qemu snp": HOST + " --cpu EPYC-v4 --listen 127.0.0.1",
    "qemu tdx": HOST + " --quotes /run/qgs.socket --listen 127.0.0.1",
    "libvirt snp": HOST + " --cpu EPYC-v4",
    "libvirt tdx": HOST + " --quotes /run/qgs.socket",
    "aws nitro": "--listen 10.0.0.4 --program /usr/bin/cloister --vcpus 2 --memory 512 --cid 16",
    "aws snp": AWS,
    "aws nitrotpm": AWS,
    "azure": (
        "--location northeurope --group cloister --storage-account myimages --container disks"
        " --gallery images --image-version 1.0.0 --network net --subnet default"
        " --machine-type Standard_DC4as_v5 --from 203.0.113.0/24"
    ),
    "google": (
        "--project my-project --zone us-central1-a --bucket my-images --kind snp"
        " --machine-type n2d-standard-4 --network default --subnet default --from 203.0.113.0/24"
    ),
}
"""A good value for each option of a target that takes any."""
NUMBERS = {"--port", "--vcpus", "--memory", "--cid"}
"""Refused before a target sees them."""
HOSTILE = (
    "x'\"; touch canary; $(touch canary) `touch canary`\n--undo",
    "${file('/etc/passwd')}%{if true}x%{endif},0.0.0.0/0",
)
WRITTEN_ONLY = "--terraform"
"""Names the folder that gets the module, and stands in no command or document."""


@pytest.fixture(scope="module")
def program() -> Any:
    """The program, made once."""
    return typer.main.get_command(build_app(["deploy"]))


def with_values(program: Any, target: str) -> Iterator[str]:
    """Every option of a target that takes a value at all."""
    command = program.commands["deploy"]
    for name in target.split():
        command = command.commands[name]
    for one in command.params:
        if one.param_type_name == "option" and not one.is_flag:
            yield one.opts[0]


@pytest.mark.parametrize("target", GOOD)
def test_no_option_lets_through_what_could_be_read_as_more(
    target: str, program: Any, tmp_path: Path
) -> None:
    with_enclave_image(tmp_path)
    kind = {"google": " snp"}.get(target, "")
    platform = PLATFORMS[f"{target}{kind}".replace(" ", "-")]
    write_configuration(tmp_path / "image", members={"platform": platform})
    write_record(tmp_path / "image", {"debug": False})
    words = f"--name web --port 8440 {GOOD[target]}".split()
    good = dict(zip(words[::2], words[1::2], strict=True))
    good["--folder"] = str(tmp_path / "deployment")
    if target != "aws nitro":
        good["--start-disk"] = str(write_start_disk(tmp_path))
    assert {*with_values(program, target)} - {WRITTEN_ONLY} == good.keys()

    def called(changes: dict[str, str]) -> tuple[int, str, str]:
        """Status, standard output, standard error."""
        given = [f"{name}={value}" for name, value in {**good, **changes}.items()]
        words = ["deploy", *target.split(), str(tmp_path / "image"), *given]
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = guard(lambda: program(words))
        return code, out.getvalue(), err.getvalue()

    code, out, err = called({})
    assert (code, out[:10]) == (0, "#!/bin/sh\n"), err
    for option in good:
        for hostile in HOSTILE:
            code, out, err = called({option: hostile})
            assert (code, out) == (2, ""), (option, hostile)
            assert option in NUMBERS or ("[deploy." in err and hostile not in err), option
