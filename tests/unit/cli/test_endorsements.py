"""``cloister endorsements``, against services on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from cloister.cli import endorsements as commands
from cloister.cli import endorsements_early
from cloister.cli.endorsements_early import action
from cloister.cli.main import main
from cloister.verifier.appraise.intel_levels import Shortfall
from support.published import (
    CHIP,
    EARLY_PATH,
    FMSPC,
    INTEL,
    NOW,
    ROOTS,
    TCB_PATH,
    Issue,
    publish_amd,
)
from support.vendor_server import Reply, VendorServer, vendor_server

DAY = timedelta(days=1)


class Cli:
    """Runs commands in a folder of their own, at a time of the test's choice."""

    def __init__(
        self, folder: Path, server: VendorServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder, self.server, self._capsys = folder, server, capsys
        self.at = NOW
        self.cache = folder / "cache"

    def __call__(self, *arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as left:
            main(["endorsements", *arguments])
        told = self._capsys.readouterr()
        assert left.value.code == code, told
        return told.out + told.err

    def fetch(self, *what: str, code: int = 0) -> str:
        url = self.server.url
        return self("fetch", *what, "--pccs", url, "--kds", url, code=code)

    def file(self, name: str, data: bytes) -> str:
        (self.folder / name).write_bytes(data)
        return str(self.folder / name)


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    with vendor_server() as server:
        Issue(issued=NOW).publish(server)
        publish_amd(server)
        running = Cli(tmp_path, server, capsys)
        monkeypatch.setenv("CLOISTER_ENDORSEMENTS", str(running.cache))
        monkeypatch.setattr("cloister.endorsements.pinned.pinned_roots", lambda: ROOTS)

        def now() -> datetime:
            return running.at

        monkeypatch.setattr(commands, "now", now)
        monkeypatch.setattr(endorsements_early, "now", now)
        yield running


@pytest.fixture
def quote(cli: Cli) -> str:
    return cli.file("quote.bin", INTEL.platform(fmspc=FMSPC).tdx_quote())


@pytest.fixture
def report(cli: Cli) -> str:
    from support.published import AMD

    return cli.file("report.bin", AMD.report(CHIP))


def test_fetch_list_and_renew(cli: Cli, quote: str, report: str) -> None:
    told = cli.fetch(quote, report)
    assert told.count("\n") == 7
    assert "intel.root_crl  root  until 2026-07-01 00:00 UTC" in told
    assert len(cli.server.asked) == 7
    assert "intel.tcb_info  tdx/90c06f000000/standard  2026-06-01" in cli("list")
    assert {one["kind"] for one in json.loads(cli("list", "--json"))} == {
        "amd.crl",
        "amd.vcek",
        "amd.vcek_chain",
        "intel.pck_crl",
        "intel.qe_identity",
        "intel.root_crl",
        "intel.tcb_info",
    }
    cli.at = NOW + DAY
    cli.fetch()
    assert len(cli.server.asked) == 12  # the news, without the certificates


def test_fetch_by_name(cli: Cli) -> None:
    cli.fetch("amd.crl:Milan/vcek")
    assert cli.server.asked == ["/vcek/v1/Milan/crl"]
    assert "[endorsement.key]" in cli.fetch("amd.crl:Rome/vcek", code=2)
    assert "[endorsement.file]" in cli.fetch("nothing.bin", code=2)
    assert "[endorsement.evidence]" in cli.fetch(cli.file("poem", b"a poem"), code=3)


def test_an_empty_cache(cli: Cli) -> None:
    assert "nothing is kept yet" in cli.fetch()
    assert cli("list") == ""
    assert cli("status") == ""


def test_a_service_that_is_down(cli: Cli, quote: str) -> None:
    cli.server.answers[TCB_PATH] = Reply(500)
    told = cli.fetch(quote, code=4)
    assert "intel.tcb_info  tdx/90c06f000000/standard  failed:" in told
    assert "[fetch.status]" in told
    cli.server.answers[TCB_PATH] = Issue(issued=NOW).tcb_info
    cli.fetch(quote)
    cli.server.answers[TCB_PATH] = Reply(500)
    cli.at = NOW + DAY
    assert "kept the copy of 2026-06-01 00:00 UTC: 127.0.0.1 has no such" in cli.fetch(code=4)


def test_status(cli: Cli, quote: str) -> None:
    assert cli("status", quote, code=1).count("missing") == 4
    cli.fetch(quote)
    told = cli("status", quote)
    assert "intel.qe_identity  tdx/standard  current" in told
    assert "It expires in 30 days, on 2026-07-01 00:00 UTC." in told
    cli.at = NOW + 8 * DAY
    assert cli("status", code=1).count("too_old") == 4
    cli.at = NOW + 31 * DAY
    document = json.loads(cli("status", "--json", code=1))
    assert {one["state"] for one in document} == {"expired"}
    assert "It expired 24 hours ago" in document[0]["sentence"]


def test_export_and_import(cli: Cli, quote: str, report: str) -> None:
    bundle, crl = str(cli.folder / "bundle.json"), "amd.crl:Milan/vcek"
    assert "[endorsement.missing]" in cli("export", "--out", bundle, "--for", quote, code=2)
    cli.fetch(quote, report)
    assert "4 artefacts" in cli("export", "--out", bundle, "--for", quote)
    assert "5 artefacts" in cli("export", "--out", bundle, "--for", quote, "--for", crl)
    first = Path(bundle).read_bytes()
    cli("export", "--out", bundle, "--for", crl, "--for", quote)
    assert Path(bundle).read_bytes() == first
    there = str(cli.folder / "there")
    assert cli("import", bundle, "--cache", there).count("taken") == 5
    assert len(json.loads(cli("list", "--json", "--cache", there))) == 5


def test_a_bundle_cannot_come_from_the_future(cli: Cli, quote: str) -> None:
    bundle = str(cli.folder / "bundle.json")
    cli.at = NOW + 3 * DAY
    cli.fetch(quote)
    cli("export", "--out", bundle)
    cli.at = NOW
    there = str(cli.folder / "there")
    cli("import", bundle, "--cache", there)
    listed = json.loads(cli("list", "--json", "--cache", there))
    assert {one["fetched_at"] for one in listed} == {NOW.isoformat()}


def test_what_is_not_imported(cli: Cli, quote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cloister.endorsements.roots import Roots

    bundle = str(cli.folder / "bundle.json")
    cli.fetch(quote)
    cli("export", "--out", bundle)
    assert "[endorsement.bundle]" in cli("import", cli.file("junk", b"{}"), code=1)
    newer = Issue(issued=NOW + timedelta(hours=1))
    newer.publish(cli.server)
    cli.at = NOW + DAY
    cli.fetch(quote)
    assert cli("import", bundle, code=1).count("[endorsement.rolled_back]") == 4
    monkeypatch.setattr("cloister.endorsements.pinned.pinned_roots", Roots)
    there = str(cli.folder / "there")
    assert cli("import", bundle, "--cache", there, code=1).count("[endorsement.signature]") == 4


def early(cli: Cli, *arguments: str, code: int = 0) -> str:
    return cli("status", "--early", "--pccs", cli.server.url, *arguments, code=code)


def test_a_platform_that_is_ready(cli: Cli, quote: str) -> None:
    cli.server.answers[EARLY_PATH] = Issue(issued=NOW, number=20).tcb_info
    told = early(cli, quote)
    assert "UpToDate by the standard set 19, UpToDate by the early set 20." in told
    assert "Nothing needs doing." in told


def test_a_platform_that_is_short(cli: Cli, quote: str) -> None:
    cli.server.answers[EARLY_PATH] = Issue(issued=NOW, number=20, svn=9).tcb_info
    told = early(cli, quote, code=1)
    assert "UpToDate by the standard set 19, OutOfDate by the early set 20." in told
    assert "sgxtcbcomponents[0] (Early Microcode Update, BIOS) is at 3;" in told
    assert "the level of 2026-06-01 needs 9. Open until then: INTEL-SA-1." in told
    assert "Update the BIOS" in told
    assert "new PCK certificate" in told
    (found,) = json.loads(early(cli, "--json", quote, code=1))
    assert (found["ready"], found["shortfalls"][0]["needs"]) == (False, 9)


def test_early_needs_a_quote(cli: Cli, report: str) -> None:
    assert "[endorsement.file]" in early(cli, code=2)
    assert "[endorsement.evidence]" in early(cli, report, code=3)


def test_early_without_the_service(cli: Cli, quote: str) -> None:
    cli.server.answers[EARLY_PATH] = Reply(404)
    assert "[fetch.status]" in early(cli, quote, code=4)


ACTIONS: dict[str, tuple[tuple[str, str | None, str | None], str]] = {
    "module": (("TDX_01", "OS/VMM", "TDX Module"), "TDX module"),
    "late load": (("sgxtcbcomponents[1]", "OS/VMM", "SGX Late Microcode Update"), "microcode"),
    "early load": (("sgxtcbcomponents[0]", "BIOS", "Early Microcode Update"), "BIOS"),
    "PCE": (("pcesvn", None, None), "PCE"),
    "unnamed": (("sgxtcbcomponents[5]", None, None), "BIOS and microcode"),
}


@pytest.mark.parametrize("what", ACTIONS)
def test_each_shortfall_names_who_acts(what: str) -> None:
    (component, category, type_), says = ACTIONS[what]
    short = Shortfall(
        component=component,
        category=category,
        type=type_,
        has=1,
        needs=2,
        tcb_date=NOW,
        advisory_ids=(),
    )
    assert says in action(short)


def test_the_group_is_part_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    run: Callable[[list[str]], None] = main
    with pytest.raises(SystemExit) as left:
        run(["endorsements", "--help"])
    assert left.value.code == 0
    told = capsys.readouterr().out
    assert all(name in told for name in ("fetch", "list", "status", "export", "import"))
