"""Which disks an image's measured command line names."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.cli import image_build
from cloister.image.disks import PACK_COMMANDS
from cloister.image.downloads import Store
from cloister.image.http import HttpFetcher
from cloister.image.lock import read_lock
from cloister.image.plan import Plan, Supplies, plan_image

IMAGE = """
configuration = 1
name = "demo"
version = "1"
platform = "{platform}"

[[model]]
name = "demo"
file = "demo"

[network]
listen = [8440]
"""


def planned(folder: Path, platform: str) -> Plan:
    """Nothing is fetched or written."""
    (folder / "image.toml").write_text(IMAGE.format(platform=platform))
    ingredients = image_build.ingredients_of(folder / "image.toml", read_lock(None))
    return plan_image(ingredients, Supplies(store=Store(folder), fetcher=HttpFetcher()))


@pytest.mark.parametrize("disk", ["root-disk", "application-disk", "model-disk"])
def test_another_way_of_packing_makes_another_disk(
    disk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands from before does not go into an image of today."""

    def parameters() -> object:
        plan = planned(tmp_path, "tpm-boot")
        (found,) = [one for one in plan.operations if one.name == disk]
        return found.parameters

    before = parameters()
    assert before == parameters()
    other = {fs: (*command, "-other") for fs, command in PACK_COMMANDS.items()}
    monkeypatch.setattr("cloister.image.plan.DISK_COMMANDS", other)
    assert before != parameters()


@pytest.mark.parametrize(
    ("platform", "named"),
    [
        ("tpm-boot", {"root"}),
        ("sev-snp", {"root", "application", "model"}),
        ("tdx", {"root", "application", "model"}),
        ("gcp-snp", {"root"}),
        ("gcp-tdx", {"root", "application", "model"}),
        ("gcp-vtpm", {"root"}),
    ],
)
def test_the_boot_image_is_made_from_the_disks_that_it_names(
    platform: str, named: set[str], tmp_path: Path
) -> None:
    plan = planned(tmp_path, platform)
    (uki,) = [one for one in plan.operations if one.name == "uki"]
    assert uki.reads.keys() == {"boot", "initrd", *named}
    (initrd,) = [one for one in plan.operations if one.name == "initrd"]
    copied = named if "model" in named else set()  # the init compares the line with its copy
    assert initrd.reads.keys() == {"boot", "init", "tools", "source", *copied}
    order = [one.name for one in plan.operations]
    for one in (initrd, uki):
        before = [order.index(r.operation) for r in one.reads.values() if r.operation]
        assert max(before) < order.index(one.name)
