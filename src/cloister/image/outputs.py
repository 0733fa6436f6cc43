"""Puts an image's files into one folder, with a record of what they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cloister.image.downloads import file_digest
from cloister.image.golden import Golden
from cloister.image.measurements import write_measurements
from cloister.image.operations import Build
from cloister.image.plan import Ingredients, Plan
from cloister.image.verity import read_footer
from cloister.strictjson import JsonObject, canonical

BUILD_FORMAT: Final = "cloister/image-build/1"
DISKS: Final = ("root.img", "application.img", "model.img")


def write_outputs(
    plan: Plan, build: Build, ingredients: Ingredients, out: Path, golden: Sequence[Golden] = ()
) -> Mapping[str, str]:
    """Copy what `plan` made into `out`, and write what it will measure; SHA-256 by file name.

    Reference values need `golden` values of PCR 0 and 1 (`cloister.image.measurements`). Nothing
    in these files says who built them, where or when.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, made in plan.artefacts.items():
        shutil.copyfile(build.path(made), out / name)
    (out / "configuration.json").write_bytes(canonical(ingredients.effective))
    digests = {
        name: file_digest(out / name) for name in sorted([*plan.artefacts, "configuration.json"])
    }
    (out / "build.json").write_text(json.dumps(_record(ingredients, out, digests), indent=1) + "\n")
    more = ("build.json", *write_measurements(out, golden))
    return {**digests, **{name: file_digest(out / name) for name in more}}


def _record(ingredients: Ingredients, out: Path, digests: Mapping[str, str]) -> JsonObject:
    configuration = ingredients.configuration
    return {
        "format": BUILD_FORMAT,
        "name": configuration.name,
        "version": configuration.version,
        "debug": configuration.debug,
        "files": {
            name: {"sha256": digest, "size": (out / name).stat().st_size}
            for name, digest in digests.items()
        },
        "disks": {name: read_footer(out / name).line().decode().strip() for name in DISKS},
    }
