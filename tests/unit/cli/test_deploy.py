"""``cloister deploy`` as people call it, with tools on the path that write down what they hear."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from cloister.attester.start_disk import Start
from cloister.cli.main import build_app, guard
from cloister.deploy import formats
from support.cloud_plans import PLATFORMS
from support.deployments import (
    write_configuration,
    write_image,
    write_record,
    write_start_disk,
)

FAKE = """#!{python}
import json, os, sys
argv = ["az", *sys.argv[1:]]
with open(os.environ["HEARD"], "a") as file:
    file.write(json.dumps(argv) + "\\n")
if os.environ.get("FAIL") and os.environ["FAIL"] in argv:
    sys.exit("ERROR: not today. AccountKey=c2VjcmV0c2VjcmV0")
text = " ".join(argv)
if argv[1] == "version":
    print("2.91.0")
elif "image-version create" in text:
    print("/subscriptions/01234567-89ab-cdef-0123-456789abcdef/resourceGroups/cloister/providers/"
          "Microsoft.Compute/galleries/images/images/cloister-web/versions/1.0.0")
elif "securityProfile" in text:
    print(json.dumps({{"securityType": "ConfidentialVM", "uefiSettings": {{"vTpmEnabled": True}}}}))
elif "privateIps" in text:
    print("10.0.0.4")
"""
AZURE = [
    *("--location", "northeurope", "--group", "cloister", "--storage-account", "myimages"),
    *("--container", "disks", "--gallery", "images", "--image-version", "1.0.0"),
    *("--network", "net", "--subnet", "default", "--from", "any"),
]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with an ``az``; the file that it writes to."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "az").write_text(FAKE.format(python=sys.executable))
    (folder / "az").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("HEARD", str(tmp_path / "heard"))
    return tmp_path / "heard"


def call(*arguments: str) -> tuple[int, str, str]:
    """Status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = guard(lambda: build_app(["deploy"])(["deploy", *arguments]))
    return code, out.getvalue(), err.getvalue()


def heard(path: Path) -> list[list[str]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def image_for(platform: str, folder: Path) -> str:
    write_image(folder)
    write_configuration(folder, members={"platform": platform})
    write_record(folder, {"debug": False})
    return str(folder)


def azure(tmp_path: Path, *more: str) -> tuple[int, str, str]:
    image = tmp_path / "image"
    if not image.exists():
        image_for(PLATFORMS["azure"], image)
    more = ("--start-disk", str(write_start_disk(tmp_path)), *more)
    folder = str(tmp_path / "deployment")
    return call("azure", str(image), "--name", "web", *AZURE, "--folder", folder, *more)


def test_without_apply_nothing_is_called_and_nothing_written(tools: Path, tmp_path: Path) -> None:
    for more in ([], ["--dry-run"], ["--json"]):
        code, out, _ = azure(tmp_path, *more)
        assert code == 0
        assert "sig" in out
    assert heard(tools) == []
    assert not (tmp_path / "deployment").exists()


def test_apply_calls_fails_tells_and_goes_on(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "image-version")
    code, out, err = azure(tmp_path, "--apply")
    assert code == 1
    assert out == ""
    assert "ERROR: not today." in err
    assert "c2VjcmV0" not in err
    assert "definition is done" in err
    assert "image is done" not in err
    first = len(heard(tools))
    monkeypatch.delenv("FAIL")
    code, out, err = azure(tmp_path, "--apply")
    assert code == 0
    assert json.loads(out)["address"] == "10.0.0.4"
    later = heard(tools)[first:]
    assert not any("definition" in " ".join(one[:4]) for one in later)
    # What the cut-off step may have made is looked for before it is made again.
    assert [one[2:4] for one in later if one[1] == "sig"] == [
        ["image-version", "list"],
        ["image-version", "create"],
    ]
    code, out, _ = azure(tmp_path, "--undo")
    assert code == 0
    assert json.loads(out) == {"undone": "web", "cut_off": []}
    assert heard(tools)[-1][1:4] == ["storage", "blob", "delete"]


def test_tools_hear_exactly_what_was_shown(tools: Path, tmp_path: Path) -> None:
    _, shown, _ = azure(tmp_path, "--json")
    azure(tmp_path, "--apply")
    planned = [step["run"] for step in json.loads(shown)["steps"] if "run" in step]
    flat = [[word for word in argv if isinstance(word, str)] for argv in planned]
    called = [[word for word in argv if not word.startswith("/subs")] for argv in heard(tools)[1:]]
    assert called == flat


def test_what_was_deployed_is_taken_back_without_its_files(tools: Path, tmp_path: Path) -> None:
    assert azure(tmp_path, "--apply")[0] == 0
    made = heard(tools)
    shutil.rmtree(tmp_path / "image")
    (tmp_path / "start.img").write_bytes(Start(api_keys=b"new", manifest=None).disk())
    image_for(PLATFORMS["azure"], tmp_path / "image")
    (tmp_path / "image" / "root.img").write_bytes(b"another root".ljust(8192, b"\2"))
    write_record(tmp_path / "image", {"debug": False})
    code, _, err = azure(tmp_path, "--apply")
    assert code == 2
    assert "belongs to another plan" in err
    code, _, err = azure(tmp_path, "--undo", "--name", "other")
    assert code == 2
    assert "is called web" in err
    assert [one[1] for one in heard(tools)[len(made) :]] == ["version"]
    code, out, _ = azure(tmp_path, "--undo")
    assert code == 0
    assert json.loads(out) == {"undone": "web", "cut_off": []}
    (disk,) = [one for one in made if one[1:3] == ["disk", "create"]]
    name = disk[disk.index("--name") + 1]
    assert [one for one in heard(tools) if one[1:3] == ["disk", "delete"] and name in one]
    # And the next image goes where this one was.
    assert azure(tmp_path, "--apply")[0] == 0


def test_without_its_description_the_files_have_to_be_there(tools: Path, tmp_path: Path) -> None:
    assert azure(tmp_path, "--apply")[0] == 0
    (tmp_path / "deployment" / "deployment.json").unlink()
    (tmp_path / "start.img").write_bytes(Start(api_keys=b"new", manifest=None).disk())
    code, _, err = azure(tmp_path, "--undo")
    assert code == 2
    assert "belongs to another plan" in err


@pytest.mark.parametrize(
    "more",
    [
        *(["--apply", "--undo"], ["--dry-run", "--apply"], ["--json", "--apply"]),
        *(["--terraform", "tf", "--apply"], ["--from", "203.0.113.7/24"]),
    ],
)
def test_options_that_say_two_things_are_refused(
    more: list[str], tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert azure(tmp_path)[0] == 0
    code, _, err = azure(tmp_path, *more)
    assert code == 2
    assert "[deploy." in err
    assert heard(tools) == []
    assert not (tmp_path / "tf").exists()


def test_a_hostile_name_reaches_nobody(tools: Path, tmp_path: Path) -> None:
    image = image_for(PLATFORMS["azure"], tmp_path / "image")
    start = ("--start-disk", str(write_start_disk(tmp_path)))
    good = call("azure", image, "--name", "web", *AZURE, *start)
    assert good[0] == 0
    for name in ("web --yes", "../web", "$(id)", "web;id"):
        code, out, err = call("azure", image, "--name", name, *AZURE, *start, "--apply")
        assert (code, out) == (2, "")
        assert "[deploy.word]" in err
        assert name not in err
    assert heard(tools) == []


def test_terraform_is_written_with_how_to_make_its_disk(tmp_path: Path) -> None:
    code, out, _ = azure(tmp_path, "--terraform", str(tmp_path / "tf"))
    assert code == 0
    assert "cloister deploy convert disk" in out
    assert "cloister deploy convert vhd" in out
    module = json.loads((tmp_path / "tf" / "main.tf.json").read_text())
    assert module["resource"]["azurerm_shared_image"]["image"]["confidential_vm_supported"] is True


AWS = "--region us-east-2 --bucket abc --vpc vpc-0123abcd --subnet subnet-0123abcd --from any"
GOOGLE = "--project my-project --zone us-central1-a --bucket abc --from any"


@pytest.mark.parametrize(
    ("target", "options"),
    [
        *(("qemu snp", ""), ("qemu tdx", ""), ("libvirt snp", ""), ("libvirt tdx", "")),
        *(("aws snp", AWS), ("aws nitrotpm", AWS)),
        *(("google", GOOGLE), ("google", GOOGLE + " --kind tdx")),
        ("google", GOOGLE + " --kind vtpm"),
    ],
)
def test_every_target_writes_its_commands(target: str, options: str, tmp_path: Path) -> None:
    named = options.rpartition(" --kind ")
    kind = f" {named[2] if named[1] else 'snp'}" if target == "google" else ""
    image = image_for(PLATFORMS[f"{target}{kind}".replace(" ", "-")], tmp_path / "image")
    words = [*target.split(), image, "--name", "web", *options.split()]
    start = write_start_disk(tmp_path)
    code, out, err = call(*words, "--start-disk", str(start))
    assert (code, err.count("reading")) == (0, 5)
    assert out.startswith("#!/bin/sh\n")
    code, out, _ = call(*words, "--json", "--start-disk", str(start))
    plan = json.loads(out)
    assert plan["format"] == "cloister/deployment-plan/1"
    assert str(start) in {one["path"] for one in plan["inputs"]}
    code, out, err = call(*words)
    if target.startswith(("qemu", "libvirt")):  # whose guests have a port
        assert (code, "start.img" in out) == (0, False)
    else:
        assert (code, out) == (2, "")
        assert "[deploy.start_disk]" in err


@pytest.mark.parametrize("way", ["script", "json", "terraform", "apply"])
@pytest.mark.parametrize("kind", ["tdx", "vtpm"])
def test_whoever_gets_no_protection_of_memory_is_told(
    way: str, kind: str, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every way to go on from here, and not where there is such a protection."""
    monkeypatch.setattr(formats, "GIBIBYTE", 1 << 20)  # whole ones take seconds to compress
    image = image_for(PLATFORMS[f"google-{kind}"], tmp_path / "image")
    words = ["google", image, "--name", "web", *GOOGLE.split(), "--kind", kind]
    words += ["--start-disk", str(write_start_disk(tmp_path)), "--folder", str(tmp_path / "made")]
    words += {
        "script": [],
        "json": ["--json"],
        "terraform": ["--terraform", str(tmp_path / "tf")],
        "apply": ["--apply"],
    }[way]
    gcloud = tools.with_name("bin") / "gcloud"
    described = {"tdx": "TDX", "vtpm": "True"}[kind]
    gcloud.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        "*--version*) echo Google Cloud SDK 528.0.0;;\n"
        "*natIP*|*networkIP*) echo 10.0.0.4;;\n"
        f"*describe*) echo {described};;\n"
        "esac\n"
    )
    gcloud.chmod(0o755)
    code, out, err = call(*words)
    assert code == 0, err
    told = "MEMORY IS NOT PROTECTED FROM GOOGLE" in out + err
    assert told == (kind == "vtpm")


def test_a_kind_of_googles_is_one_of_three(tmp_path: Path) -> None:
    image = image_for("gcp-vtpm", tmp_path / "image")
    words = ["google", image, "--name", "web", *GOOGLE.split()]
    words += ["--start-disk", str(write_start_disk(tmp_path))]
    assert call(*words, "--kind", "vtpm")[0] == 0
    code, out, err = call(*words, "--kind", "sev")
    assert (code, out) == (2, "")
    assert "--kind is one of snp, tdx, vtpm" in err


def test_a_start_disk_is_one(tmp_path: Path) -> None:
    assert azure(tmp_path)[0] == 0
    for data in (b"", b"x" * 8192):
        write_start_disk(tmp_path).write_bytes(data)
        code, out, err = azure(tmp_path)
        assert (code, out) == (2, "")
        assert "[image.start_disk]" in err


def test_disks_are_converted_by_hand_too(tmp_path: Path) -> None:
    image = write_image(tmp_path / "image")
    disk = tmp_path / "disk"
    parts = [str(image / name) for name in ("esp.img", "root.img")]
    assert call("convert", "disk", *parts, "--out", str(disk))[0] == 0
    assert disk.stat().st_size % (1 << 20) == 0
    code, _, err = call("convert", "vmdk", str(disk), "--out", str(tmp_path / "x"))
    assert code == 1
    assert "[deploy.disk]" in err
