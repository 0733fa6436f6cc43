"""The demo model that ships inside the package.

A Llama-architecture chat model of 5.8 million parameters (GGUF, Q8_0, about 6 MB), trained
only on text that ``models/demo`` generates; its card is ``models/demo/README.md``. The file
and the digest below change together, and a unit test holds them to each other. The digest
says which file this release ships; whoever loads the file still measures it.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final

DEMO_MODEL_NAME: Final = "cloister-demo"
DEMO_MODEL_SHA256: Final = "16c4363e08626c0e5367190db879fe654ed96dc04ad6a5dacecb92d5bdf18758"
_FILE_NAME: Final = "cloister-demo-Q8_0.gguf"


def demo_model_path() -> Path:
    """Return where the packaged GGUF file lies on this machine's disk.

    The engine maps the file, so it must be a real file: from a zipped package this raises
    FileNotFoundError. The content is not checked here.
    """
    traversable = resources.files("cloister.engine").joinpath("data", _FILE_NAME)
    path = Path(str(traversable))
    if not path.is_file():
        raise FileNotFoundError(f"the package holds no demo model at {path}")
    return path
