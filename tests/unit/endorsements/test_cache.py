"""Endorsements on disk: fresh, stale, rolled back, forged, damaged, shared."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from cloister.endorsements.artefact import Artefact, ArtefactKind, ArtefactRequest, nvidia_rim
from cloister.endorsements.cache import EndorsementCache
from cloister.endorsements.contents import make_artefact
from cloister.endorsements.fetch.httpx2_transport import Httpx2Transport
from cloister.endorsements.fetch.retrieve import FetchLimits, Waiting
from cloister.endorsements.fetch.vendors import Services, vendor_fetcher
from cloister.endorsements.freshness import Freshness
from cloister.endorsements.roots import Roots
from cloister.errors import AuthenticationError, CloisterError, ConfigurationError, FetchError
from support.published import (
    AMD_CRL,
    EARLY,
    NOW,
    PCK_CRL,
    ROOT_CRL,
    ROOTS,
    TCB_INFO,
    TCB_PATH,
    VCEK,
    Issue,
    amd_artefacts,
    manifest,
)
from support.vendor_server import Reply, VendorServer, vendor_server

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


class Gives:
    """A fetcher that gives what it was told to, and counts."""

    def __init__(self, *given: Artefact | CloisterError) -> None:
        self.given = list(given)
        self.asked: list[datetime] = []

    def fetch(self, request: ArtefactRequest, *, at: datetime) -> Artefact:
        self.asked.append(at)
        found = self.given.pop(0) if len(self.given) > 1 else self.given[0]
        if isinstance(found, CloisterError):
            raise found
        return replace(found, fetched_at=at)


DOWN = FetchError("the service is down", code="fetch.unreachable")


@functools.cache  # a signature is another one each time
def tcb_info(**changed: object) -> Artefact:
    return Issue(**changed).artefact(TCB_INFO)  # type: ignore[arg-type]


@pytest.fixture
def kept(tmp_path: Path) -> EndorsementCache:
    return EndorsementCache(tmp_path / "cache", ROOTS)


def test_a_fresh_copy_is_not_fetched_again(kept: EndorsementCache) -> None:
    gives = Gives(tcb_info())
    first = kept.get(TCB_INFO, gives, at=NOW)
    again = kept.get(TCB_INFO, gives, at=NOW + 23 * HOUR)
    assert first.artefact == again.artefact == replace(tcb_info(), data=first.artefact.data)
    assert (first.stale_because, again.stale_because, len(gives.asked)) == (None, None, 1)
    assert EndorsementCache(kept.folder, ROOTS).peek(TCB_INFO) == first.artefact


def test_news_is_renewed_every_day(kept: EndorsementCache) -> None:
    gives = Gives(tcb_info(), tcb_info(issued=NOW, number=20))
    kept.get(TCB_INFO, gives, at=NOW)
    assert kept.get(TCB_INFO, gives, at=NOW + DAY).artefact.number == 20
    assert len(gives.asked) == 2


def test_a_certificate_is_renewed_only_ahead_of_its_end(kept: EndorsementCache) -> None:
    vcek = amd_artefacts()[0]
    assert vcek.valid_until == NOW + 365 * DAY
    gives = Gives(vcek)
    for days in (0, 100, 357):
        kept.get(VCEK, gives, at=NOW + days * DAY)
    assert len(gives.asked) == 1
    kept.get(VCEK, gives, at=NOW + 358 * DAY)
    assert len(gives.asked) == 2


def test_what_lives_briefly_is_renewed_after_two_thirds(kept: EndorsementCache) -> None:
    gives = Gives(tcb_info(issued=NOW, lasts=3 * HOUR))
    kept.get(TCB_INFO, gives, at=NOW)
    kept.get(TCB_INFO, gives, at=NOW + 119 * timedelta(minutes=1))
    assert len(gives.asked) == 1
    kept.get(TCB_INFO, gives, at=NOW + 2 * HOUR)
    assert len(gives.asked) == 2


def test_a_copy_from_the_future_is_fetched_again(kept: EndorsementCache) -> None:
    gives = Gives(tcb_info())
    kept.get(TCB_INFO, gives, at=NOW + 5 * DAY)
    kept.get(TCB_INFO, gives, at=NOW)
    assert len(gives.asked) == 2


def test_the_last_good_copy_when_the_service_is_down(kept: EndorsementCache) -> None:
    kept.get(TCB_INFO, Gives(tcb_info()), at=NOW)
    got = kept.get(TCB_INFO, Gives(DOWN), at=NOW + 6 * DAY)
    assert got.artefact.sha256 == kept.get(TCB_INFO, Gives(DOWN), at=NOW).artefact.sha256
    assert (got.stale_because, got.stale_code) == ("the service is down", "fetch.unreachable")


def test_no_copy_when_the_service_is_down(kept: EndorsementCache) -> None:
    with pytest.raises(FetchError) as raised:
        kept.get(TCB_INFO, Gives(DOWN), at=NOW)
    assert raised.value.code == "fetch.unreachable"


def test_a_copy_past_the_maximum_age_is_not_used(kept: EndorsementCache) -> None:
    kept.get(TCB_INFO, Gives(tcb_info()), at=NOW)
    assert kept.get(TCB_INFO, Gives(DOWN), at=NOW + 7 * DAY).stale_because is not None
    with pytest.raises(FetchError):
        kept.get(TCB_INFO, Gives(DOWN), at=NOW + 7 * DAY + HOUR)


def test_an_expired_copy_is_not_used(kept: EndorsementCache) -> None:
    kept.get(TCB_INFO, Gives(tcb_info(issued=NOW, lasts=DAY)), at=NOW)
    assert kept.get(TCB_INFO, Gives(DOWN), at=NOW + DAY).stale_because is not None
    with pytest.raises(FetchError):
        kept.get(TCB_INFO, Gives(DOWN), at=NOW + DAY + HOUR)


def test_an_expired_copy_within_the_grace_that_the_operator_gave(tmp_path: Path) -> None:
    kept = EndorsementCache(tmp_path / "c", ROOTS, Freshness(grace=2 * HOUR))
    kept.get(TCB_INFO, Gives(tcb_info(issued=NOW, lasts=DAY)), at=NOW)
    got = kept.get(TCB_INFO, Gives(DOWN), at=NOW + DAY + HOUR)
    assert got.stale_because == "the service is down"


def test_a_failure_is_not_repeated_at_once(kept: EndorsementCache) -> None:
    gives = Gives(DOWN)
    for seconds in (0, 30, 59):
        with pytest.raises(FetchError):
            kept.get(TCB_INFO, gives, at=NOW + timedelta(seconds=seconds))
    assert len(gives.asked) == 1
    with pytest.raises(FetchError):
        kept.get(TCB_INFO, gives, at=NOW + timedelta(seconds=60))
    assert len(gives.asked) == 2


OLDER: dict[str, tuple[Artefact, Artefact]] = {
    "date": (tcb_info(issued=NOW - HOUR), tcb_info(issued=NOW - 2 * HOUR)),
    "number": (tcb_info(number=20), tcb_info(number=19)),
    "later with a lower number": (
        tcb_info(number=20, issued=NOW - HOUR),
        tcb_info(number=19, issued=NOW),
    ),
}


@pytest.mark.parametrize("what", OLDER)
def test_nothing_older_than_what_was_seen(kept: EndorsementCache, what: str) -> None:
    newer, older = OLDER[what]
    got = kept.get(TCB_INFO, Gives(newer), at=NOW)
    assert got.stale_because is None
    assert got.artefact.data == newer.data
    got = kept.get(TCB_INFO, Gives(older), at=NOW + DAY)
    assert (got.stale_code, got.artefact.data) == ("endorsement.rolled_back", newer.data)
    assert got.stale_because is not None
    assert "was seen before" in got.stale_because
    with pytest.raises(AuthenticationError) as raised:
        kept.put(older)
    assert raised.value.code == "endorsement.rolled_back"
    with pytest.raises(AuthenticationError):
        kept.get(TCB_INFO, Gives(older), at=NOW + 20 * DAY)


def test_an_older_revocation_list(kept: EndorsementCache) -> None:
    for request in (PCK_CRL, ROOT_CRL):
        newer, older = (Issue(issued=NOW - hours * HOUR).artefact(request) for hours in (1, 9))
        kept.put(older)
        kept.put(newer)
        with pytest.raises(AuthenticationError) as raised:
            kept.put(older)
        assert raised.value.code == "endorsement.rolled_back"


@pytest.mark.parametrize("damage", ["the object", "the index"])
def test_what_was_seen_outlives_the_copy(kept: EndorsementCache, damage: str) -> None:
    older, newer = tcb_info(number=19), tcb_info(number=20)
    kept.put(newer)
    if damage == "the object":
        (kept.folder / "objects" / newer.sha256).unlink()
    else:
        edited(kept, fetched_at=None)
    assert kept.peek(TCB_INFO) is None
    with pytest.raises(AuthenticationError) as raised:
        kept.get(TCB_INFO, Gives(older), at=NOW)
    assert raised.value.code == "endorsement.rolled_back"
    assert kept.get(TCB_INFO, Gives(newer), at=NOW + HOUR).artefact.data == newer.data


def test_early_and_standard_are_kept_apart(kept: EndorsementCache) -> None:
    early, standard = Issue(number=20).artefact(EARLY), tcb_info(number=19)
    kept.put(early)
    kept.put(standard)
    assert [one.number for one in kept.entries()] == [20, 19]


FORGED: dict[str, Callable[[], Artefact]] = {
    "a changed document": lambda: changed(tcb_info(), b'"pceId":"0000"', b'"pceId":"0001"'),
    "another signature": lambda: changed(tcb_info(), tcb_info().data[-70:-60], b"0123456789"),
    "no chain": lambda: replace(tcb_info(), issuer_chain=b""),
    "a chip's certificate": lambda: by_another(VCEK),
    "a revocation list": lambda: by_another(AMD_CRL),
}


def changed(artefact: Artefact, old: bytes, new: bytes) -> Artefact:
    assert old in artefact.data
    return replace(artefact, data=artefact.data.replace(old, new))


def by_another(request: ArtefactRequest) -> Artefact:
    """As genuine as the simulated vendor's, from another one's keys."""
    from cloister.evidence.snp import Product
    from cloister.testing.simulated_snp import SimulatedAmd

    other = SimulatedAmd(now=NOW, product=Product.GENOA)
    mine = SimulatedAmd(now=NOW, product=Product.MILAN)
    mine.ask_key, mine.ark_key = other.ask_key, other.ark_key
    data = mine.key().certificate if request == VCEK else mine.crl()
    return make_artefact(request, data, source="elsewhere", fetched_at=NOW)


@pytest.mark.parametrize("what", FORGED)
def test_a_forgery_is_not_admitted(kept: EndorsementCache, what: str) -> None:
    forged = FORGED[what]()
    genuine = {one.request: one for one in (tcb_info(), *amd_artefacts())}[forged.request]
    kept.put(genuine)
    with pytest.raises(AuthenticationError) as raised:
        kept.put(forged)
    assert raised.value.code == "endorsement.signature"
    assert kept.peek(forged.request) == genuine


def test_under_other_roots_nothing_is_genuine(tmp_path: Path) -> None:
    bare = EndorsementCache(tmp_path / "c", Roots())
    for artefact in (tcb_info(), Issue().artefact(ROOT_CRL), *amd_artefacts()):
        with pytest.raises(AuthenticationError):
            bare.put(artefact)


def test_a_forged_fetch_leaves_the_good_copy(kept: EndorsementCache) -> None:
    kept.put(tcb_info())
    got = kept.get(TCB_INFO, Gives(FORGED["a changed document"]()), at=NOW + DAY)
    assert (got.stale_code, got.artefact) == ("endorsement.signature", tcb_info())


def test_something_else_than_was_asked_for(kept: EndorsementCache) -> None:
    with pytest.raises(FetchError) as raised:
        kept.get(TCB_INFO, Gives(Issue().artefact(ROOT_CRL)), at=NOW)
    assert raised.value.code == "fetch.content"


def test_a_manifest_has_no_date_to_run_ahead_with(kept: EndorsementCache) -> None:
    from support.certificates import issue
    from support.published import NVIDIA

    request = nvidia_rim("NV_GPU_DRIVER_GH100_550.1")

    def made(data: bytes) -> Artefact:
        return make_artefact(request, data, source="x", fetched_at=NOW)

    late = issue("late", not_before=NOW + 100 * DAY)
    kept.put(made(manifest(late)))
    kept.put(made(manifest(NVIDIA)))
    assert kept.peek(request) == made(manifest(NVIDIA))


def index_of(kept: EndorsementCache) -> Path:
    (path,) = (kept.folder / "index").iterdir()
    return path


DAMAGE: dict[str, Callable[[EndorsementCache], object]] = {
    "bytes of the object": lambda kept: (kept.folder / "objects" / tcb_info().sha256).write_bytes(
        b"\0"
    ),
    "another issue in its place": lambda kept: (
        kept.folder / "objects" / tcb_info().sha256
    ).write_bytes(tcb_info(number=20).data),
    "no object": lambda kept: (kept.folder / "objects" / tcb_info().sha256).unlink(),
    "an empty index": lambda kept: index_of(kept).write_bytes(b""),
    "an index of something else": lambda kept: index_of(kept).write_bytes(b"[]"),
    "an endless index": lambda kept: index_of(kept).write_bytes(b" " * 100_000),
    "a path for a digest": lambda kept: edited(kept, sha256="../../etc/passwd"),
    "no time": lambda kept: edited(kept, fetched_at=None),
    "a time beyond time": lambda kept: edited(kept, fetched_at=1 << 40),
    "a number that is none": lambda kept: edited(kept, newest_number="x"),
    "a chain that is none": lambda kept: edited(kept, issuer_chain="é"),
}


def edited(kept: EndorsementCache, **members: object) -> None:
    path = index_of(kept)
    path.write_text(json.dumps({**json.loads(path.read_text()), **members}))


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_copy_is_fetched_anew(kept: EndorsementCache, what: str) -> None:
    gives = Gives(tcb_info())
    kept.put(tcb_info())
    assert kept.peek(TCB_INFO) == tcb_info()
    DAMAGE[what](kept)
    assert kept.peek(TCB_INFO) is None
    assert kept.get(TCB_INFO, gives, at=NOW).artefact == tcb_info()
    assert kept.peek(TCB_INFO) == tcb_info()
    assert len(gives.asked) == 1


def test_only_the_owner_may_look_and_write(kept: EndorsementCache) -> None:
    kept.put(tcb_info())
    for path in (kept.folder, *kept.folder.rglob("*")):
        allowed = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == allowed
    EndorsementCache(kept.folder, ROOTS)
    for path in (kept.folder, kept.folder / "index"):
        path.chmod(0o770)
        with pytest.raises(ConfigurationError) as raised:
            EndorsementCache(kept.folder, ROOTS)
        assert raised.value.code == "endorsement.cache"
        path.chmod(0o700)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError):
        EndorsementCache(tmp_path / "file", ROOTS)


def test_a_crash_while_writing_leaves_the_old_copy(
    kept: EndorsementCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.put(tcb_info())

    def crash(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cloister.endorsements.cache.os.fsync", crash)
    with pytest.raises(ConfigurationError) as raised:
        kept.put(tcb_info(number=20))
    assert "No space left" in str(raised.value)
    monkeypatch.undo()
    assert kept.peek(TCB_INFO) == tcb_info()
    assert not list(kept.folder.rglob(".new-*"))


def test_leftovers_are_removed_when_they_are_old(kept: EndorsementCache) -> None:
    first, second, third = (tcb_info(number=number) for number in (19, 20, 21))
    objects = kept.folder / "objects"
    for artefact in (first, second):
        kept.put(artefact)
    assert {path.name for path in objects.iterdir()} == {first.sha256, second.sha256}
    os.utime(objects / first.sha256, (0, 0))
    kept.put(third)
    assert {path.name for path in objects.iterdir()} == {second.sha256, third.sha256}
    os.utime(objects / third.sha256, (0, 0))
    kept.put(Issue().artefact(ROOT_CRL))
    assert third.sha256 in {path.name for path in objects.iterdir()}


def test_threads_fetch_once(kept: EndorsementCache) -> None:
    started, proceed = threading.Event(), threading.Event()

    class Slow(Gives):
        def fetch(self, request: ArtefactRequest, *, at: datetime) -> Artefact:
            started.set()
            assert proceed.wait(60)
            return super().fetch(request, at=at)

    slow, results = Slow(tcb_info()), []
    threads = [
        threading.Thread(target=lambda: results.append(kept.get(TCB_INFO, slow, at=NOW)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    assert started.wait(60)
    proceed.set()
    for thread in threads:
        thread.join()
    assert (len(results), len(slow.asked)) == (4, 1)


def test_while_another_fetches_the_copy_serves(kept: EndorsementCache) -> None:
    kept.put(tcb_info())

    class Reenters(Gives):
        def fetch(self, request: ArtefactRequest, *, at: datetime) -> Artefact:
            inner = EndorsementCache(kept.folder, ROOTS).get(TCB_INFO, Gives(DOWN), at=at)
            assert (inner.artefact, inner.stale_code) == (tcb_info(), "endorsement.renewing")
            return super().fetch(request, at=at)

    assert kept.get(TCB_INFO, Reenters(tcb_info()), at=NOW + DAY).stale_because is None


def test_it_does_not_wait_for_another_for_ever(kept: EndorsementCache) -> None:
    impatient = EndorsementCache(kept.folder, ROOTS, wait_s=0.05)

    class Reenters(Gives):
        def fetch(self, request: ArtefactRequest, *, at: datetime) -> Artefact:
            with pytest.raises(FetchError) as raised:
                impatient.get(TCB_INFO, Gives(DOWN), at=at)
            assert raised.value.code == "fetch.timeout"
            with pytest.raises(FetchError):
                impatient.put(tcb_info())
            return super().fetch(request, at=at)

    kept.get(TCB_INFO, Reenters(tcb_info()), at=NOW)


def over_http(server_url: str) -> object:
    return vendor_fetcher(
        Httpx2Transport(),
        services=Services(intel_pcs=server_url),
        roots=ROOTS,
        limits=FetchLimits(attempts=1),
        waiting=Waiting(sleep=lambda _: None, chance=lambda: 0),
    )


def race(folder: str, server_url: str, root: bytes, start: object, done: object) -> None:
    """In a process of its own, which does not share the simulated vendor's keys."""
    from cryptography import x509

    from cloister.endorsements.roots import Anchor, Vendor

    anchor = Anchor(vendor=Vendor.INTEL, certificate=x509.load_pem_x509_certificate(root))
    cache = EndorsementCache(Path(folder), Roots(anchors=(anchor,)))
    start.wait(30)  # type: ignore[attr-defined]
    got = cache.get(TCB_INFO, over_http(server_url), at=NOW)  # type: ignore[arg-type]
    done.put((got.artefact.sha256, got.stale_because))  # type: ignore[attr-defined]


def test_processes_fetch_once(kept: EndorsementCache) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    from support.published import INTEL

    spawn = multiprocessing.get_context("spawn")
    with vendor_server() as server:
        issue = Issue()
        server.answers[TCB_PATH] = issue.tcb_info
        start, done = spawn.Barrier(2), spawn.Queue()
        root = INTEL.root.public_bytes(Encoding.PEM)
        arguments = (str(kept.folder), server.url, root, start, done)
        processes = [spawn.Process(target=race, args=arguments) for _ in range(2)]
        for process in processes:
            process.start()
        found = [done.get(timeout=60) for _ in processes]
        for process in processes:
            process.join(60)
        assert found == [(issue.artefact(TCB_INFO).sha256, None)] * 2
        assert len(server.asked) == 1
        done.close()
        done.join_thread()


def answers(server: VendorServer, reply: Reply) -> None:
    server.answers[TCB_PATH] = reply


GONE_WRONG: dict[str, tuple[Reply, str]] = {
    "busy": (Reply(429), "fetch.throttled"),
    "broken": (Reply(500), "fetch.status"),
    "garbage": (Reply(body=b"<html>", headers=Issue().tcb_info.headers), "fetch.content"),
    "endless": (Reply(endless=True), "fetch.too_large"),
    "elsewhere": (Reply(301, headers={"location": "https://example.com/"}), "fetch.redirect"),
    "rolled back": (Issue(number=18).tcb_info, "endorsement.rolled_back"),
}


@pytest.mark.parametrize("what", GONE_WRONG)
def test_a_service_that_went_wrong(kept: EndorsementCache, what: str) -> None:
    reply, code = GONE_WRONG[what]
    with vendor_server() as server:
        answers(server, Issue(number=19).tcb_info)
        first = kept.get(TCB_INFO, over_http(server.url), at=NOW)  # type: ignore[arg-type]
        assert first.stale_because is None
        answers(server, reply)
        got = kept.get(TCB_INFO, over_http(server.url), at=NOW + DAY)  # type: ignore[arg-type]
        assert (got.stale_code, got.artefact) == (code, first.artefact)
        with pytest.raises(CloisterError) as raised:
            kept.get(TCB_INFO, over_http(server.url), at=NOW + 8 * DAY)  # type: ignore[arg-type]
        assert raised.value.code == code


def test_entries_are_in_order_and_whole(kept: EndorsementCache) -> None:
    for artefact in (tcb_info(), *amd_artefacts()):
        kept.put(artefact)
    (kept.folder / "index" / "junk.json").write_bytes(b"junk")
    assert [one.kind for one in kept.entries()] == [
        ArtefactKind.AMD_CRL,
        ArtefactKind.AMD_VCEK,
        ArtefactKind.AMD_VCEK_CHAIN,
        ArtefactKind.INTEL_TCB_INFO,
    ]
