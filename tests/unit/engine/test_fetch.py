"""Models that are fetched: pinned, bounded, over HTTPS only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from cloister.engine.demo_model import demo_model_path
from cloister.engine.fetch import HttpsFetcher
from cloister.engine.models import resolve_model
from cloister.errors import FetchError

MODEL = demo_model_path().read_bytes()
DIGEST = hashlib.sha256(MODEL).hexdigest()
URL = "https://models.example/m.gguf"


def fetcher(answer: Callable[[httpx2.Request], httpx2.Response]) -> HttpsFetcher:
    return HttpsFetcher(httpx2.MockTransport(answer))


def plain(_: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, stream=httpx2.ByteStream(MODEL))


def fetch(answer: Callable[[httpx2.Request], httpx2.Response], cache: Path) -> Path | None:
    return resolve_model(URL, sha256=DIGEST, cache=cache, fetcher=fetcher(answer)).path


def test_a_pinned_model_is_fetched_once(tmp_path: Path) -> None:
    path = fetch(plain, tmp_path)
    assert path is not None
    assert path.read_bytes() == MODEL

    def refuse(_: httpx2.Request) -> httpx2.Response:
        raise AssertionError("it is here already")

    assert fetch(refuse, tmp_path) == path


def test_a_hub_redirects_to_where_it_keeps_files(tmp_path: Path) -> None:
    def hub(request: httpx2.Request) -> httpx2.Response:
        if request.url.host == "cdn.example":
            return plain(request)
        return httpx2.Response(302, headers={"location": "https://cdn.example/x"})

    assert fetch(hub, tmp_path) is not None


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (lambda _: httpx2.Response(404), "fetch.status"),
        (
            lambda _: httpx2.Response(200, stream=httpx2.ByteStream(MODEL + b"x")),
            "fetch.model_digest",
        ),
        (
            lambda _: httpx2.Response(302, headers={"location": "http://cdn.example/x"}),
            "fetch.redirect",
        ),
        (lambda _: httpx2.Response(302, headers={"location": "/again"}), "fetch.redirect"),
        (
            lambda _: httpx2.Response(200, headers={"content-length": str(1 << 41)}),
            "fetch.model_size",
        ),
    ],
)
def test_what_is_refused_leaves_nothing(
    answer: Callable[[httpx2.Request], httpx2.Response], code: str, tmp_path: Path
) -> None:
    assert fetch(plain, tmp_path / "good") is not None
    with pytest.raises(FetchError) as caught:
        fetch(answer, tmp_path / "bad")
    assert caught.value.code == code
    assert list((tmp_path / "bad").iterdir()) == []


def test_a_network_that_fails_says_so(tmp_path: Path) -> None:
    def fail(_: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("no route")

    with pytest.raises(FetchError) as caught:
        fetch(fail, tmp_path)
    assert caught.value.code == "fetch.unreachable"
