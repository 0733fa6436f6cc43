"""A software TPM for tests: made once, copied for each test, gone with it."""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from cloister.attester.swtpm import PROGRAMS, Manufactured, SoftwareTpm, manufacture

HAVE_SWTPM = all(shutil.which(name) for name in PROGRAMS)


@cache
def manufactured() -> Manufactured:
    """One TPM for the whole run; making it takes a second."""
    directory = Path(mkdtemp(prefix="cloister-test-tpm-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return manufacture(directory)


@contextmanager
def software_tpm() -> Iterator[tuple[SoftwareTpm, Manufactured]]:
    """A freshly started copy of that TPM."""
    made = manufactured()
    with TemporaryDirectory(prefix="cloister-test-") as directory:
        running = SoftwareTpm.start(made, runtime=Path(directory))
        try:
            yield running, made
        finally:
            running.stop()
