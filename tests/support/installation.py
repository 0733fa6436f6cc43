"""Small Python installations for tests, in directories of their own."""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

SITE = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"


def make_environment(directory: Path) -> Path:
    """A virtual environment with nothing in it; returns its interpreter."""
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    python = directory / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(base)
    (directory / "pyvenv.cfg").write_text(
        f"home = {base.parent}\ninclude-system-site-packages = false\n"
    )
    (directory / SITE).mkdir(parents=True)
    return python


def site_packages(python: Path) -> Path:
    return python.parent.parent / SITE


def install(
    python: Path,
    name: str,
    files: Mapping[str, str],
    *,
    version: str = "1.0",
    installer: str = "pip",
) -> None:
    """Install a distribution of `files` the way installers do."""
    site = site_packages(python)
    info = f"{name}-{version}.dist-info"
    header = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: no\n"
    metadata = {f"{info}/METADATA": header, f"{info}/INSTALLER": installer}
    written = {**files, **metadata}
    for path, content in written.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(content)
    script = f"../../../bin/{name},sha256={hash(str(site))},1"
    record = [script, *(f"{path},," for path in written), f"{info}/RECORD,,"]
    (site / info / "RECORD").write_text("\n".join(record) + "\n")


def install_editable(python: Path, name: str, *roots: Path) -> None:
    """Install a distribution whose sources stay in `roots`."""
    site = site_packages(python)
    pth = f"_editable_{name}.pth"
    install(python, name, {pth: "".join(f"{root}\n" for root in roots)})
    (site / f"{name}-1.0.dist-info" / "direct_url.json").write_text(
        json.dumps({"url": roots[0].as_uri(), "dir_info": {"editable": True}})
    )


def make_worker_environment(directory: Path, sources: Path) -> Path:
    """An environment with this one's packages, a copy of Cloister's sources, and `sources`.

    A copy, so that nobody who edits a file while the test runs changes what it measures.
    """
    python = make_environment(directory)
    shutil.copytree(
        Path(__file__).parents[2] / "src" / "cloister",
        sources / "cloister",
        ignore=shutil.ignore_patterns("__pycache__", "data"),
    )
    packages = Path(sysconfig.get_path("purelib"))
    install_editable(python, "everything", sources, packages)
    return python
