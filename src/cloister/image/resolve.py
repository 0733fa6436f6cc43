"""Writes a lock: asks Debian's archive and Python's index once, and notes what they answered.

Debian: apt decides, in a directory of its own and without root, from lists whose signature it
checks against Debian's archive keyring. It starts from an empty system, so that what is installed
on this machine has no say. Nothing is unpacked, and no maintainer script ever runs.

Python: pip decides, from the requirements that Cloister brings (versions and digests), which wheel
this release's interpreter takes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from cloister.errors import BuildError
from cloister.image.lock import DebianPackage, ImageLock, Use, Wheel

RELEASE: Final = "bookworm"
KERNEL_RELEASE: Final = "trixie"
"""Where the kernel comes from, and nothing else: the next release's can be a guest of Intel TDX,
and has one interface for the reports of all confidential machines."""
PYTHON: Final = "3.11"
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR: Final = "http://deb.debian.org"
"""In clear: lists are signed, packages compared with the digests in them."""
ASK_TIMEOUT_S: Final = 600.0

PACKAGES: Final[dict[Use, tuple[str, ...]]] = {
    Use.ROOT: (
        "python3.11-minimal",
        "libpython3.11-stdlib",
        "nftables",
        "bubblewrap",
        "libgomp1",
        "libstdc++6",
    ),
    Use.BOOT: ("linux-image-cloud-amd64", "systemd-boot-efi"),
    Use.TOOLS: (
        "squashfs-tools",
        "erofs-utils",
        "dosfstools",
        "mtools",
        "gcc",
        "musl-tools",
        "libc6-dev",
        "coreutils",
        "dash",
    ),
}
"""What is asked for; apt adds what these need."""

_FOR_KERNEL: Final = "linux-image-* linux-base"
_PREFERENCES: Final = f"""\
Package: *
Pin: release n={KERNEL_RELEASE}*
Pin-Priority: 100

Package: {_FOR_KERNEL}
Pin: release n={KERNEL_RELEASE}*
Pin-Priority: 900
"""

BOOT_FILES: Final = re.compile(r"linux-image-[0-9].*|systemd-boot-efi")
"""What else apt would install with a kernel serves its maintainer scripts, which never run."""

Run = Callable[[Sequence[str], dict[str, str]], str]
"""Runs a program with additions to its environment, and returns its standard output."""

_LINE: Final = re.compile(r"'(?P<url>[^']+)' \S+ (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})")

_APT: Final = """\
Dir::State "{home}/state";
Dir::State::status "/dev/null";
Dir::Cache "{home}/cache";
Dir::Etc "{home}/etc";
Dir::Etc::sourcelist "{home}/etc/sources.list";
Dir::Etc::sourceparts "{home}/etc/sources.list.d";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::ForceHash "SHA256";
"""


def resolve(requirements: Path, *, now: datetime, run: Run | None = None) -> ImageLock:
    """Ask archive and index for what `PACKAGES` and `requirements` name.

    Raises BuildError where one of them cannot be asked (codes ``image.resolve``).
    """
    ask = _run if run is None else run
    return ImageLock(
        release=RELEASE,
        resolved_at=now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ"),
        python=PYTHON,
        debian=_debian(ask),
        wheels=_wheels(requirements, ask),
    )


def _debian(run: Run) -> tuple[DebianPackage, ...]:
    found: dict[str, DebianPackage] = {}
    with tempfile.TemporaryDirectory(prefix="cloister-lock-") as home:
        environment = _private_apt(Path(home))
        run(("apt-get", "-qq", "update"), environment)
        for use, names in PACKAGES.items():
            answer = run(("apt-get", "-qq", "-y", "--print-uris", "install", *names), environment)
            for package in _answered(answer, use):
                known = found.get(package.name)
                uses = {use} if known is None else {use, *known.uses}
                found[package.name] = _for_uses(package, uses)
    return tuple(found[name] for name in sorted(found))


def _private_apt(home: Path) -> dict[str, str]:
    """An empty system's apt in `home`."""
    for folder in (
        "state/lists/partial",
        "cache/archives/partial",
        "etc/sources.list.d",
        "etc/apt.conf.d",
        "etc/preferences.d",
    ):
        (home / folder).mkdir(parents=True)
    suites = [
        (archive, f"{release}{suffix}")
        for release in (RELEASE, KERNEL_RELEASE)
        for archive, suffix in (
            ("debian", ""),
            ("debian", "-updates"),
            ("debian-security", "-security"),
        )
    ]
    (home / "etc/sources.list").write_text(
        "".join(f"deb [signed-by={KEYRING}] {MIRROR}/{a} {suite} main\n" for a, suite in suites)
    )
    (home / "etc/preferences.d/kernel").write_text(_PREFERENCES)
    (home / "apt.conf").write_text(_APT.format(home=home))
    return {"APT_CONFIG": str(home / "apt.conf")}


def _answered(answer: str, use: Use) -> list[DebianPackage]:
    """The packages that apt would fetch: one line each, with address, size and digest."""
    packages = []
    for line in answer.splitlines():
        found = _LINE.match(line)
        if found is None:
            raise BuildError(
                "apt answered something other than a list of packages", code="image.resolve"
            )
        _, archive, path = urlsplit(found["url"]).path.split("/", 2)
        name, version, _ = unquote(Path(path).name).split("_")
        if use is Use.BOOT and BOOT_FILES.fullmatch(name) is None:
            continue
        packages.append(
            DebianPackage(
                name=name,
                version=unquote(version),
                archive=archive,
                path=unquote(path),
                size=int(found["size"]),
                sha256=found["sha256"],
                uses=(use,),
            )
        )
    return packages


def _for_uses(package: DebianPackage, uses: set[Use]) -> DebianPackage:
    return DebianPackage(
        name=package.name,
        version=package.version,
        archive=package.archive,
        path=package.path,
        size=package.size,
        sha256=package.sha256,
        uses=tuple(sorted(uses)),
    )


def _wheels(requirements: Path, run: Run) -> tuple[Wheel, ...]:
    if sys.version_info[:2] != tuple(map(int, PYTHON.split("."))):
        # pip decides by its own interpreter which requirements count.
        raise BuildError(
            f"a lock for Python {PYTHON} is written by Python {PYTHON}; this is "
            f"{sys.version_info[0]}.{sys.version_info[1]}",
            code="image.resolve",
        )
    with tempfile.TemporaryDirectory(prefix="cloister-lock-") as home:
        report = Path(home) / "report.json"
        run(
            (
                *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"),
                *("--ignore-installed", "--require-hashes", "--only-binary", ":all:"),
                *("--report", str(report), "--target", str(Path(home) / "nowhere")),
                *wheel_platform(PYTHON),
                *("-r", str(requirements)),
            ),
            {},
        )
        told = json.loads(report.read_text())
    return tuple(
        Wheel(
            name=re.sub(r"[-_.]+", "-", one["metadata"]["name"]).lower(),
            version=one["metadata"]["version"],
            filename=unquote(Path(urlsplit(one["download_info"]["url"]).path).name),
            sha256=one["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for one in told["install"]
    )


def wheel_platform(python: str) -> tuple[str, ...]:
    """pip's options for wheels that run in the image: its Python, and glibc up to 2.36."""
    manylinux = [f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)]
    old = ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    platforms = [word for name in (*manylinux, *old) for word in ("--platform", name)]
    tag = "cp" + python.replace(".", "")
    return (
        *platforms,
        *("--python-version", python, "--implementation", "cp"),
        *("--abi", tag, "--abi", "abi3", "--abi", "none"),
    )


def _run(command: Sequence[str], environment: dict[str, str]) -> str:
    import os

    try:
        done = subprocess.run(  # noqa: S603 - apt and pip, with words of our own
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ASK_TIMEOUT_S,
            env={**os.environ, "LC_ALL": "C", **environment},
            check=True,
        )
    except FileNotFoundError:
        raise BuildError(
            f"{command[0]} is not here: a lock is written on Debian or Ubuntu, and builds anywhere",
            code="image.resolve",
        ) from None
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command[0]} does not finish", code="image.resolve") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise BuildError(f"{command[0]} failed: {last}", code="image.resolve") from None
    return done.stdout
