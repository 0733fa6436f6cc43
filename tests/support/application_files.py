"""The files of a guest's application disk, as an image's configuration makes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.cli import image_build
from cloister.image.application import application_tree
from cloister.image.lock import read_lock


def application_files(folder: Path, configuration: str) -> dict[str, bytes]:
    """Content by path; `configuration` is written into `folder`."""
    written = folder / "image.toml"
    written.write_text(configuration)
    with pytest.MonkeyPatch.context() as patch:
        # Here the engine's sandbox is this kernel's.
        patch.setattr(image_build, "GUEST_LANDLOCK_ABI", None)
        ingredients = image_build.ingredients_of(written, read_lock(None))
    tree = application_tree(
        ingredients.configuration,
        ingredients.effective,
        models=[model for model, _ in ingredients.models],
        broker_kit=ingredients.broker_kit,
    )
    return {path: item.content for path, item in tree.items.items()}
