"""A real PostgreSQL server for tests: made once, run as a user without rights, gone at the end."""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import quote

_NUMBERS = count()


def _programs() -> Path | None:
    """Debian keeps them out of the path, a folder for each version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    other = shutil.which("initdb")
    return None if other is None else Path(other).resolve().parent


PROGRAMS = _programs()
HAVE_POSTGRES = PROGRAMS is not None
MISSING = "PostgreSQL is not installed (scripts/setup tests)"

_INITIAL = ("-A", "trust", "-E", "UTF8", "--no-sync")


def _user() -> str | None:
    """Whom to run it as: it refuses root. None: whoever runs the tests."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@cache
def _server() -> Path:
    """Start it, listening on a unix socket alone; the folder of that socket."""
    assert PROGRAMS is not None
    folder, user = Path(mkdtemp(prefix="cloister-pg-")), _user()
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"
    as_user: dict[str, Any] = {}
    if user is not None:
        as_user = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": str(folder)}
    subprocess.run(
        [
            PROGRAMS / "initdb",
            "-D",
            data,
            "-U",
            "cloister",
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=folder,
        env=environment,
        **as_user,
    )
    settings = ["listen_addresses=", f"unix_socket_directories={folder}", "fsync=off"]
    log = (folder / "log").open("wb")
    with log:
        process = subprocess.Popen(
            [PROGRAMS / "postgres", "-D", data, *(f"--{setting}" for setting in settings)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env=environment,
            **as_user,
        )

    def stop() -> None:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    deadline = time.monotonic() + 60
    while not _ready(folder):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError((folder / "log").read_text(errors="replace"))
        time.sleep(0.05)
    return folder


def _ready(folder: Path) -> bool:
    import psycopg

    try:
        _connect(folder).close()
    except psycopg.OperationalError:
        return False
    return True


def _connect(folder: Path) -> Any:
    import psycopg

    return psycopg.connect(
        f"host={folder} user=cloister dbname=postgres", autocommit=True, connect_timeout=60
    )


@contextmanager
def postgres_database() -> Iterator[str]:
    """The address of an empty schema of its own: what another database would be, and sooner."""
    folder, name = _server(), f"test{next(_NUMBERS)}"
    with contextlib.closing(_connect(folder)) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
        options = quote(f"-csearch_path={name}", safe="")
        host = quote(str(folder), safe="")
        yield f"postgresql://cloister@/postgres?host={host}&options={options}"
        connection.execute(f"DROP SCHEMA {name} CASCADE")
