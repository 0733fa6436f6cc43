"""Puts an image's files into one folder, with records of what they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from cloister.errors import BuildError
from cloister.image.bill import bill_of_materials, provenance
from cloister.image.downloads import file_digest
from cloister.image.eif_image import ENCLAVE_IMAGE
from cloister.image.folder import replacing
from cloister.image.golden import Golden
from cloister.image.image_files import ImageName, name_and_version
from cloister.image.measurements import (
    MEASUREMENTS,
    REFERENCE_VALUES,
    write_enclave_measurements,
    write_measurements,
)
from cloister.image.operations import Build
from cloister.image.plan import Ingredients, Plan, source_digest
from cloister.image.uki import os_release
from cloister.image.verity import read_footer
from cloister.strictjson import JsonObject, canonical

BUILD_FORMAT: Final = "cloister/image-build/1"
DISKS: Final = ("root.img", "application.img", "model.img")
BOOT_AND_ROOT: Final = ("uki.efi", "root.img")
MAX_BOOT_AND_ROOT: Final = 100_000_000
"""Bytes. What a guest carries besides its model stays small enough to look through."""

CONFIGURATION: Final = "configuration.json"
BILL: Final = "sbom.cdx.json"
PROVENANCE: Final = "provenance.json"
SIGNED_PROVENANCE: Final = "provenance.dsse.json"
RECORD: Final = "build.json"
CONTENTS: Final = "contents.json"

FILES: Final = (
    *("uki.efi", "esp.img", *DISKS, CONTENTS, ENCLAVE_IMAGE, CONFIGURATION, BILL, RECORD),
    *(MEASUREMENTS, REFERENCE_VALUES, PROVENANCE, SIGNED_PROVENANCE),
)
"""All that a build may write, of whatever kind the image is."""


def write_outputs(
    plan: Plan,
    build: Build,
    ingredients: Ingredients,
    out: Path,
    golden: Sequence[Golden] = (),
    *,
    sign: Callable[[bytes], bytes] | None = None,
    waiting: Callable[[], None] = lambda: None,
    removed: Callable[[str], None] = lambda _: None,
) -> Mapping[str, str]:
    """Copy what `plan` made into `out`, and write the records; SHA-256 by file name.

    Reference values need `golden` values of PCR 0 and 1 (`cloister.image.measurements`). `sign`
    makes an envelope of the provenance, which is written as well. Nothing else in these files says
    who built them, where or when. How `out` changes, `cloister.image.folder` says: `waiting` and
    `removed` are its. BuildError if the image is too large (``image.size``); OSError.
    """
    with replacing(out, FILES, record=RECORD, waiting=waiting, removed=removed) as new:
        for name, made in plan.artefacts.items():
            shutil.copyfile(build.path(made), new / name)
        digests = _write_records(plan, ingredients, new, golden)
        if sign is not None:
            (new / SIGNED_PROVENANCE).write_bytes(sign((new / PROVENANCE).read_bytes()))
    return digests


def _write_records(
    plan: Plan, ingredients: Ingredients, out: Path, golden: Sequence[Golden]
) -> Mapping[str, str]:
    refuse_too_large(out)
    (out / CONFIGURATION).write_bytes(canonical(ingredients.effective))
    _write(out / BILL, _bill(ingredients, out))
    digests = _digests(out, [*plan.artefacts, CONFIGURATION, BILL])
    _write(out / RECORD, _record(ingredients, out, digests))
    if ingredients.configuration.is_enclave:
        measured = write_enclave_measurements(out, _name(ingredients))
    else:
        measured = write_measurements(out, golden)
    digests |= _digests(out, [RECORD, *measured])
    _write(out / PROVENANCE, _provenance(ingredients, digests))
    return {**digests, **_digests(out, [PROVENANCE])}


def _name(ingredients: Ingredients) -> ImageName:
    """As the boot image of other platforms says it of itself."""
    configuration = ingredients.configuration
    return name_and_version(
        os_release(version=configuration.version, debug=configuration.debug),
        debug=configuration.debug,
    )


def refuse_too_large(out: Path) -> None:
    """Raise BuildError if boot image and root are more than `MAX_BOOT_AND_ROOT`."""
    size = sum(path.stat().st_size for path in _present(out, BOOT_AND_ROOT))
    if size > MAX_BOOT_AND_ROOT:
        raise BuildError(
            f"boot image and root take {size:,} bytes, more than {MAX_BOOT_AND_ROOT:,}; "
            "contents.json lists what is in the root and why",
            code="image.size",
        )


def _bill(ingredients: Ingredients, out: Path) -> JsonObject:
    contents = json.loads((out / CONTENTS).read_bytes())
    return bill_of_materials(
        ingredients.lock,
        name=ingredients.configuration.name,
        version=ingredients.configuration.version,
        cloister=version("cloister"),
        origins={file["origin"] for file in contents["files"]},
    )


def _provenance(ingredients: Ingredients, digests: Mapping[str, str]) -> JsonObject:
    return provenance(
        ingredients.lock,
        configuration=ingredients.effective,
        cloister={"version": version("cloister"), "sha256": source_digest(ingredients.source)},
        subjects=digests,
    )


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
        "disks": {
            path.name: read_footer(path).line().decode().strip() for path in _present(out, DISKS)
        },
    }


def _present(out: Path, names: Sequence[str]) -> list[Path]:
    """Those that this kind of image has."""
    return [out / name for name in names if (out / name).exists()]


def _digests(out: Path, names: list[str]) -> dict[str, str]:
    return {name: file_digest(out / name) for name in sorted(names)}


def _write(path: Path, document: JsonObject) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
