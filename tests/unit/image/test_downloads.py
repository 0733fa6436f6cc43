"""Packages from mirrors: whatever arrives is compared with the lock."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
import pytest

from cloister.errors import BuildError, FetchError
from cloister.image.downloads import Store, fetch_debian, fetch_wheels
from cloister.image.http import HttpFetcher
from cloister.image.lock import DebianPackage, Use, Wheel, read_lock

CONTENT = b"a package"
MIRRORS = ("http://first/{archive}/{path}", "http://second/{archive}/{resolved_at}/{path}")


def package(content: bytes = CONTENT) -> DebianPackage:
    return DebianPackage(
        name="tool",
        version="1",
        archive="debian",
        path="pool/main/t/tool/tool_1%2b2_amd64.deb",
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        uses=(Use.ROOT,),
    )


class Mirrors:
    """A `Fetcher` that gives what each host has, and remembers what it was asked."""

    def __init__(self, **hosts: bytes) -> None:
        self.hosts = hosts
        self.asked: list[str] = []

    @contextlib.contextmanager
    def fetch(self, url: str, *, max_bytes: int) -> Iterator[Iterator[bytes]]:
        self.asked.append(url)
        host = url.split("/")[2]
        if host not in self.hosts:
            raise FetchError(f"{host}: HTTP 404")
        yield iter([self.hosts[host][:4], self.hosts[host][4:]])


def fetched(mirrors: Mirrors, store: Store) -> bytes:
    wanted = package()
    fetch_debian([wanted], store, resolved_at="2026", fetcher=mirrors, mirrors=MIRRORS)
    return store.path(wanted.sha256).read_bytes()


def test_a_package_is_fetched_once(tmp_path: Path) -> None:
    mirrors, store = Mirrors(first=CONTENT), Store(tmp_path)
    assert fetched(mirrors, store) == fetched(mirrors, store) == CONTENT
    assert mirrors.asked == ["http://first/debian/pool/main/t/tool/tool_1%252b2_amd64.deb"]


@pytest.mark.parametrize("first", [None, b"another package", b""])
def test_a_mirror_without_it_or_with_another_is_passed_over(
    tmp_path: Path, first: bytes | None
) -> None:
    hosts = {"second": CONTENT} if first is None else {"first": first, "second": CONTENT}
    mirrors, store = Mirrors(**hosts), Store(tmp_path)
    assert fetched(mirrors, store) == CONTENT
    assert [url.split("/")[2] for url in mirrors.asked] == ["first", "second"]


def test_another_file_is_never_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(FetchError, match="drops old versions"):
        fetched(Mirrors(first=b"another package", second=b"and another"), store)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_cached_file_that_somebody_changed_is_fetched_again(tmp_path: Path) -> None:
    mirrors, store = Mirrors(first=CONTENT), Store(tmp_path)
    fetched(mirrors, store)
    store.path(package().sha256).write_bytes(b"changed")
    assert fetched(mirrors, store) == CONTENT
    assert len(mirrors.asked) == 2


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [(404, b"", "HTTP 404"), (200, CONTENT + b"more", "longer than the lock says")],
)
def test_answers_over_http_are_bounded(status: int, body: bytes, said: str) -> None:
    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, content=iter((body,)))

    fetcher = HttpFetcher(httpx2.MockTransport(answer))
    with (
        pytest.raises(FetchError, match=said),
        fetcher.fetch("http://mirror/x", max_bytes=len(CONTENT)) as pieces,
    ):
        list(pieces)


def test_a_file_arrives_over_http() -> None:
    fetcher = HttpFetcher(
        httpx2.MockTransport(lambda _: httpx2.Response(200, content=iter((CONTENT,))))
    )
    with fetcher.fetch("http://mirror/x", max_bytes=len(CONTENT)) as pieces:
        assert b"".join(pieces) == CONTENT


WHEEL = Wheel(
    name="tool",
    version="1",
    filename="tool-1-py3-none-any.whl",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


def wheels(store: Store, content: bytes | None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What pip is told where it fetches `content`, and nothing for None."""
    told: list[str] = []

    def run(command: Sequence[str], **_: object) -> None:
        told.extend((*command, Path(command[-1]).read_text()))
        if content is not None:
            (Path(command[command.index("--dest") + 1]) / WHEEL.filename).write_bytes(content)

    monkeypatch.setattr("cloister.image.downloads.subprocess.run", run)
    fetch_wheels(dataclasses.replace(read_lock(None), wheels=(WHEEL,)), store)
    return told


def test_wheels_are_named_to_pip_by_their_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = wheels(Store(tmp_path), CONTENT, monkeypatch)
    assert {"--require-hashes", "--no-deps", "--only-binary"} <= set(told)
    assert told[told.index("--only-binary") + 1] == ":all:"
    assert told[-1] == f"tool==1 --hash=sha256:{WHEEL.sha256}\n"
    assert Store(tmp_path).holds(WHEEL.sha256)
    assert wheels(Store(tmp_path), None, monkeypatch) == [], "it is there"


def test_what_pip_brings_is_compared_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wheels(Store(tmp_path / "good"), CONTENT, monkeypatch)
    with pytest.raises(FetchError) as caught:
        wheels(Store(tmp_path / "other"), b"another package", monkeypatch)
    assert caught.value.code == "image.digest"
    with pytest.raises(BuildError, match="pip did not fetch"):
        wheels(Store(tmp_path / "nothing"), None, monkeypatch)
    assert not [path for path in (tmp_path / "other").rglob("*") if path.is_file()]


def test_a_pip_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, "pip", stderr="first\nno such version\n")

    monkeypatch.setattr("cloister.image.downloads.subprocess.run", run)
    lock = dataclasses.replace(read_lock(None), wheels=(WHEEL,))
    with pytest.raises(FetchError, match="no such version") as caught:
        fetch_wheels(lock, Store(tmp_path))
    assert caught.value.code == "image.wheels"
