"""Lock files: read strictly, written the same way each time; and the one that Cloister brings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import ConfigurationError, MalformedError
from cloister.image.lock import MAX_LOCK_BYTES, MAX_PACKAGES, Use, parse_lock, read_lock
from cloister.image.resolve import PACKAGES


def document() -> dict[str, Any]:
    return {
        "version": "cloister/image-lock/1",
        "release": "bookworm",
        "resolved_at": "20260101T000000Z",
        "python": "3.11",
        "debian": [
            {
                "name": "nftables",
                "version": "1.0.6-2",
                "archive": "debian",
                "path": "pool/main/n/nftables/nftables_1.0.6-2_amd64.deb",
                "size": 10,
                "sha256": "ab" * 32,
                "uses": ["root"],
            }
        ],
        "wheels": [{"name": "idna", "version": "3.1", "filename": "idna.whl", "sha256": "cd" * 32}],
    }


def test_a_lock_is_written_as_it_was_read() -> None:
    lock = parse_lock(json.dumps(document()).encode())
    assert parse_lock(lock.dump().encode()) == lock
    assert [one.name for one in lock.of(Use.ROOT)] == ["nftables"]
    assert lock.of(Use.TOOLS) == ()


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("debian", 0, "sha256"), "ab" * 31),
        (("debian", 0, "sha256"), "AB" * 32),
        (("debian", 0, "archive"), "elsewhere"),
        (("debian", 0, "path"), "pool/../../etc/passwd.deb"),
        (("debian", 0, "path"), "http://elsewhere/x.deb"),
        (("debian", 0, "uses"), ["everything"]),
        (("debian", 0, "uses"), []),
        (("debian", 0, "size"), 0),
        (("wheels", 0, "filename"), "../idna.whl"),
        (("wheels", 0, "sha256"), ""),
        (("python",), "2.7"),
        (("resolved_at",), "yesterday"),
        (("version",), "cloister/image-lock/2"),
    ],
)
def test_a_lock_with_a_fault_is_refused(where: tuple[Any, ...], value: object) -> None:
    faulty: Any = document()
    parse_lock(json.dumps(faulty).encode())
    inner = faulty
    for step in where[:-1]:
        inner = inner[step]
    inner[where[-1]] = value
    with pytest.raises(MalformedError):
        parse_lock(json.dumps(faulty).encode())


def test_a_package_named_twice_is_refused() -> None:
    twice = document()
    twice["debian"] *= 2
    with pytest.raises(MalformedError, match="twice"):
        parse_lock(json.dumps(twice).encode())


def test_the_lock_that_cloister_brings_holds_what_is_asked_for() -> None:
    lock = read_lock(None)
    for use in (Use.ROOT, Use.TOOLS):
        assert set(PACKAGES[use]) <= {one.name for one in lock.of(use)}
    assert any(one.name.startswith("linux-image-") for one in lock.of(Use.BOOT))
    assert {"cryptography", "xllamacpp"} <= {one.name for one in lock.wheels}
    required = (Path(__file__).parents[3] / "requirements/image.txt").read_text()
    for wheel in lock.wheels:
        assert f"{wheel.name}=={wheel.version}" in required, "run `cloister image lock` anew"
        assert f"sha256:{wheel.sha256}" in required


def test_a_missing_or_broken_lock_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_lock(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="cloister image lock"):
        read_lock(tmp_path / "broken.json")


@pytest.mark.parametrize("kind", ["debian", "wheels"])
def test_an_entry_has_its_members_and_no_others(kind: str) -> None:
    assert parse_lock(json.dumps(document()).encode()).debian
    more = document()
    more[kind][0]["more"] = "1"
    with pytest.raises(MalformedError, match="does not know"):
        parse_lock(json.dumps(more).encode())
    for member in document()[kind][0]:
        less = document()
        del less[kind][0][member]
        with pytest.raises(MalformedError, match=member):
            parse_lock(json.dumps(less).encode())


def test_how_long_a_lock_may_be() -> None:
    text = json.dumps(document()).encode()
    assert parse_lock(text.ljust(MAX_LOCK_BYTES)).debian
    with pytest.raises(MalformedError):
        parse_lock(text.ljust(MAX_LOCK_BYTES + 1))


@pytest.mark.parametrize("kind", ["debian", "wheels"])
def test_how_many_packages_a_lock_may_name(kind: str) -> None:
    many = document()
    many[kind] = [{**many[kind][0], "name": f"p{number}"} for number in range(MAX_PACKAGES + 1)]
    with pytest.raises(MalformedError, match="at most 4096"):
        parse_lock(json.dumps(many, separators=(",", ":")).encode())
    del many[kind][0]
    assert parse_lock(json.dumps(many, separators=(",", ":")).encode()).debian
