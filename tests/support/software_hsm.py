"""A SoftHSM token of its own for one test module, in a private directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PIN = "123456"
TOKEN = "broker"


def module_path() -> str | None:
    """SoftHSM's module; None where it is not installed."""
    found = sorted(map(str, Path("/usr/lib").glob("**/libsofthsm2.so")))
    return found[0] if found and shutil.which("softhsm2-util") else None


@dataclass(frozen=True)
class Hsm:
    """One token."""

    module: str
    pin_file: Path

    def name(self, label: str = "root", *, token: str = TOKEN) -> str:
        return f"token={token};object={label}?module-path={self.module}&pin-source={self.pin_file}"


@contextlib.contextmanager
def software_hsm(folder: Path) -> Iterator[Hsm]:
    """Initialise a token below `folder`. The module reads its configuration once a process."""
    module = module_path()
    assert module is not None
    tokens = folder / "tokens"
    tokens.mkdir()
    configuration = folder / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\n")
    pin_file = folder / "pin"
    pin_file.write_text(PIN + "\n")
    pin_file.chmod(0o600)
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(configuration)
    try:
        subprocess.run(
            [
                *("softhsm2-util", "--init-token", "--free", "--label", TOKEN),
                *("--pin", PIN, "--so-pin", "654321"),
            ],
            check=True,
            capture_output=True,
        )
        yield Hsm(module, pin_file)
    finally:
        if before is None:
            del os.environ["SOFTHSM2_CONF"]
        else:
            os.environ["SOFTHSM2_CONF"] = before
