"""configfs-tsm against a simulated kernel: entries, generations, refusals, limits."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.attester import configfs_tsm
from cloister.attester.configfs_tsm import (
    GIVEN,
    GivenEntry,
    KernelEntries,
    TsmAttester,
    TsmOptions,
    TsmReport,
    fetch_report,
    kernel_entries,
)
from cloister.attester.devices import answer_error
from cloister.errors import FetchError, UnsupportedError
from cloister.evidence.items import (
    ITEM_SNP_REPORT,
    ITEM_SNP_SVSM_MANIFEST,
    ITEM_TDX_EVENT_LOG,
    ITEM_TDX_QUOTE,
)

DIGEST = bytes(range(32))
USER_DATA = DIGEST + bytes(32)


def snp_report(user_data: bytes) -> bytes:
    return bytes(0x50) + user_data + bytes(1184 - 0x50 - 64)


class Kernel:
    """Entries as the kernel keeps them: ``outblob`` is made from what was written before."""

    def __init__(self, provider: str = "sev_guest") -> None:
        self.provider = provider
        self.entries: dict[str, dict[str, bytes]] = {}
        self.generations: dict[str, int] = {}
        self.log: list[tuple[str, str]] = []
        self.refusals: dict[tuple[str, str], list[int]] = {}
        self.before_read: dict[str, Callable[[str], None]] = {}
        self.make_report: Callable[[bytes], bytes] = snp_report
        self.auxblob: bytes | None = b""

    def _enter(self, operation: str, attribute: str) -> None:
        self.log.append((operation, attribute))
        pending = self.refusals.get((operation, attribute), [])
        if pending:
            raise OSError(pending.pop(0), "simulated")

    def make(self, name: str) -> None:
        self._enter("make", "")
        assert name not in self.entries
        self.entries[name] = {}
        self.generations[name] = 0

    def remove(self, name: str) -> None:
        self._enter("remove", "")
        del self.entries[name]

    def write(self, name: str, attribute: str, data: bytes) -> None:
        self._enter("write", attribute)
        self.entries[name][attribute] = data
        self.generations[name] += 1

    def read(self, name: str, attribute: str, *, limit: int) -> bytes:
        self._enter("read", attribute)
        if attribute in self.before_read:
            self.before_read[attribute](name)
        data = self._content(name, attribute)
        if len(data) > limit:
            raise answer_error(attribute, "is too long")
        return data

    def _content(self, name: str, attribute: str) -> bytes:
        match attribute:
            case "provider":
                return f"{self.provider}\n".encode()
            case "generation":
                return b"%d\n" % self.generations[name]
            case "privlevel_floor":
                return b"1\n"
            case "outblob":
                if "inblob" not in self.entries[name]:
                    raise OSError(errno.EINVAL, "simulated")
                return self.make_report(self.entries[name]["inblob"])
            case "manifestblob":
                return b"manifest of " + self.entries[name]["service_provider"]
            case "auxblob" if self.auxblob is not None:
                return self.auxblob
        raise OSError(errno.ENOENT, "simulated")


def fetch(kernel: Kernel, options: TsmOptions = configfs_tsm.NO_OPTIONS) -> TsmReport:
    return fetch_report(
        kernel, USER_DATA, options=options, name=lambda: "entry", pause=lambda _: None
    )


def test_one_request_is_one_entry_that_is_removed() -> None:
    kernel = Kernel()
    report = fetch(kernel)
    assert report.provider == "sev_guest"
    assert report.outblob == snp_report(USER_DATA)
    assert kernel.entries == {}
    assert kernel.log[0] == ("make", "")
    assert kernel.log[-1] == ("remove", "")


def test_the_entry_is_removed_after_a_failure_too() -> None:
    kernel = Kernel()
    kernel.refusals["read", "outblob"] = [errno.EIO]
    with pytest.raises(FetchError) as caught:
        fetch(kernel)
    assert caught.value.code == "device.io"
    assert kernel.entries == {}


def test_a_removal_that_fails_does_not_cost_the_report() -> None:
    kernel = Kernel()
    kernel.refusals["remove", ""] = [errno.EPERM]
    assert fetch(kernel).outblob == snp_report(USER_DATA)


def test_entries_have_names_of_their_own() -> None:
    kernel = Kernel()
    names: list[str] = []
    kernel.before_read["provider"] = names.append
    for _ in range(2):
        fetch_report(kernel, USER_DATA, pause=lambda _: None)
    assert len(set(names)) == 2


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EINTR, errno.EAGAIN])
@pytest.mark.parametrize(
    "operation", [("make", ""), ("write", "inblob"), ("read", "outblob"), ("read", "generation")]
)
def test_a_busy_kernel_is_asked_again(operation: tuple[str, str], code: int) -> None:
    kernel = Kernel()
    kernel.refusals[operation] = [code] * 3
    assert fetch(kernel).outblob == snp_report(USER_DATA)


def test_a_kernel_that_stays_busy_is_given_up() -> None:
    kernel = Kernel()
    kernel.refusals["read", "outblob"] = [errno.EBUSY] * 1000
    with pytest.raises(FetchError) as caught:
        fetch(kernel)
    assert caught.value.code == "device.busy"
    assert kernel.log.count(("read", "outblob")) == configfs_tsm.MAX_ATTEMPTS
    assert kernel.entries == {}


def other_writer(kernel: Kernel) -> Callable[[str], None]:
    def write(name: str) -> None:
        kernel.entries[name]["inblob"] = b"somebody else's"
        kernel.generations[name] += 1

    return write


@pytest.mark.parametrize("moment", ["outblob", "auxblob"])
def test_another_writer_is_noticed(moment: str) -> None:
    assert fetch(Kernel()).outblob == snp_report(USER_DATA)
    kernel = Kernel()
    kernel.before_read[moment] = other_writer(kernel)
    with pytest.raises(FetchError) as caught:
        fetch(kernel)
    assert caught.value.code == "device.raced"


def test_user_data_that_the_kernel_dropped_on_close_is_noticed() -> None:
    kernel = Kernel()

    kernel.write = lambda name, attribute, data: None  # type: ignore[method-assign]
    with pytest.raises(FetchError) as caught:
        fetch(kernel)
    assert caught.value.code == "device.answer"


@pytest.mark.parametrize("generation", [b"", b"one\n", b"-1\n", b"9" * 21])
def test_a_generation_that_is_no_number_is_refused(generation: bytes) -> None:
    class Odd(Kernel):
        def _content(self, name: str, attribute: str) -> bytes:
            return generation if attribute == "generation" else super()._content(name, attribute)

    with pytest.raises(FetchError, match="is no number"):
        fetch(Odd())


@pytest.mark.parametrize("code", [errno.ENXIO, errno.EOPNOTSUPP])
def test_no_provider_is_not_on_this_machine(code: int) -> None:
    kernel = Kernel()
    kernel.refusals["make", ""] = [code]
    with pytest.raises(UnsupportedError, match="not on this machine") as caught:
        fetch(kernel)
    assert caught.value.code == "device.absent"


def test_no_right_says_so() -> None:
    kernel = Kernel()
    kernel.refusals["make", ""] = [errno.EACCES]
    with pytest.raises(UnsupportedError) as caught:
        fetch(kernel)
    assert caught.value.code == "device.permission"


@pytest.mark.parametrize(
    ("attribute", "limit"),
    [("outblob", configfs_tsm.MAX_OUTBLOB_BYTES), ("auxblob", configfs_tsm.MAX_AUXBLOB_BYTES)],
)
def test_sizes_are_bounded(attribute: str, limit: int) -> None:
    kernel = Kernel()
    kernel.make_report = lambda _: bytes(limit)
    kernel.auxblob = bytes(limit)
    assert len(fetch(kernel).outblob) == limit
    if attribute == "outblob":
        kernel.make_report = lambda _: bytes(limit + 1)
    else:
        kernel.auxblob = bytes(limit + 1)
    with pytest.raises(FetchError) as caught:
        fetch(kernel)
    assert caught.value.code == "device.answer"


def test_an_empty_report_is_none() -> None:
    kernel = Kernel()
    kernel.make_report = lambda _: b""
    with pytest.raises(FetchError) as caught:
        fetch(kernel)
    assert caught.value.code == "device.answer"


def test_options_are_written_first_and_counted() -> None:
    kernel = Kernel()
    report = fetch(kernel, TsmOptions(privlevel=2, service_provider="svsm"))
    writes = [attribute for operation, attribute in kernel.log if operation == "write"]
    assert writes == ["privlevel", "service_provider", "inblob"]
    assert report.manifestblob == b"manifest of svsm"


@pytest.mark.parametrize("level", [0, 4])
def test_a_privilege_level_out_of_range_is_not_asked_for(level: int) -> None:
    kernel = Kernel()
    assert fetch(kernel, TsmOptions(privlevel=1)).outblob
    with pytest.raises(UnsupportedError):
        fetch(kernel, TsmOptions(privlevel=level))
    assert kernel.entries == {}


@pytest.mark.parametrize("user_data", [b"", bytes(65)])
def test_user_data_has_1_to_64_bytes(user_data: bytes) -> None:
    kernel = Kernel()
    with pytest.raises(ValueError, match="64 bytes"):
        fetch_report(kernel, user_data)
    assert kernel.log == []


def test_snp_evidence_binds_the_digest() -> None:
    items = TsmAttester(Kernel()).quote(DIGEST)
    assert list(items) == [ITEM_SNP_REPORT]
    assert items[ITEM_SNP_REPORT].data[0x50:0x90] == DIGEST + bytes(32)
    assert items[ITEM_SNP_REPORT].endorsements == ()


def test_a_kernel_without_auxblob_gives_a_report_all_the_same() -> None:
    kernel = Kernel()
    kernel.auxblob = None
    assert TsmAttester(kernel).quote(DIGEST)[ITEM_SNP_REPORT].endorsements == ()


def test_a_service_module_brings_its_manifest() -> None:
    attester = TsmAttester(Kernel(), options=TsmOptions(service_provider="svsm"))
    assert attester.quote(DIGEST)[ITEM_SNP_SVSM_MANIFEST].data == b"manifest of svsm"


def test_a_report_of_another_size_is_none() -> None:
    kernel = Kernel()
    kernel.make_report = lambda data: snp_report(data) + bytes(16)
    assert len(TsmAttester(kernel).quote(DIGEST)[ITEM_SNP_REPORT].data) == 1184
    for wrong in (lambda data: snp_report(data)[:-1], lambda data: snp_report(data) + b"x"):
        kernel.make_report = wrong
        with pytest.raises(FetchError) as caught:
            TsmAttester(kernel).quote(DIGEST)
        assert caught.value.code == "device.answer"


def test_tdx_evidence_has_the_quote_and_the_log() -> None:
    kernel = Kernel("tdx_guest")
    kernel.make_report = lambda data: b"quote over " + data
    items = TsmAttester(kernel, event_log=b"log").quote(DIGEST)
    assert items[ITEM_TDX_QUOTE].data == b"quote over " + USER_DATA
    assert items[ITEM_TDX_EVENT_LOG].data == b"log"
    assert list(TsmAttester(kernel).quote(DIGEST)) == [ITEM_TDX_QUOTE]


def test_an_unknown_provider_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="arm_cca_guest"):
        TsmAttester(Kernel("arm_cca_guest")).quote(DIGEST)


def test_a_digest_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        TsmAttester(Kernel()).quote(bytes(64))


def test_a_machine_without_configfs_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="not on this machine") as caught:
        TsmAttester(KernelEntries(tmp_path / "absent")).quote(DIGEST)
    assert caught.value.code == "device.absent"


def test_a_short_write_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "entry").mkdir()
    (tmp_path / "entry" / "inblob").touch()
    KernelEntries(tmp_path).write("entry", "inblob", USER_DATA)
    monkeypatch.setattr(os, "write", lambda _, data: len(data) - 1)
    with pytest.raises(OSError, match="short write"):
        KernelEntries(tmp_path).write("entry", "inblob", USER_DATA)


def test_files_are_read_whole_and_never_made(tmp_path: Path) -> None:
    entries = KernelEntries(tmp_path)
    entries.make("entry")
    with pytest.raises(FileNotFoundError):
        entries.write("entry", "inblob", b"x")
    (tmp_path / "entry" / "inblob").touch()
    entries.write("entry", "inblob", b"x" * 64)
    (tmp_path / "entry" / "outblob").write_bytes(b"y" * 100_000)
    assert entries.read("entry", "outblob", limit=100_000) == b"y" * 100_000
    with pytest.raises(FetchError):
        entries.read("entry", "outblob", limit=99_999)
    for file in (tmp_path / "entry").iterdir():
        file.unlink()
    entries.remove("entry")
    assert not (tmp_path / "entry").exists()


def test_a_given_entry_is_used_again_and_not_removed(tmp_path: Path) -> None:
    """As in a sealed image, whose worker may make none."""
    assert type(kernel_entries(tmp_path)) is KernelEntries
    given = tmp_path / GIVEN
    given.mkdir()
    content = {"provider": b"tdx_guest\n", "generation": b"0\n", "outblob": b"quote", "inblob": b""}
    for name, data in content.items():
        (given / name).write_bytes(data)
    entries = kernel_entries(tmp_path)
    entries.make("another")
    entries.write("another", "inblob", USER_DATA)
    assert entries.read("another", "outblob", limit=100) == b"quote"
    entries.remove("another")
    assert [entry.name for entry in tmp_path.iterdir()] == [GIVEN]
    assert (given / "inblob").read_bytes() == USER_DATA


def test_what_is_asked_by_a_given_entry_is_counted_from_what_it_was_at(tmp_path: Path) -> None:
    class Counting(GivenEntry):
        """As the kernel: a write counts."""

        foreign = 0

        def write(self, name: str, attribute: str, data: bytes) -> None:
            super().write(name, attribute, data)
            count = tmp_path / GIVEN / "generation"
            count.write_text(f"{int(count.read_text()) + 1 + self.foreign}\n")

    (tmp_path / GIVEN).mkdir()
    for name, text in {"provider": "tdx_guest", "generation": "7", "outblob": "quote"}.items():
        (tmp_path / GIVEN / name).write_text(text)
    (tmp_path / GIVEN / "inblob").touch()
    entries = Counting(tmp_path)
    attester = TsmAttester(entries)
    for _ in range(2):
        assert attester.quote(DIGEST)[ITEM_TDX_QUOTE].data == b"quote"
    entries.foreign = 1
    with pytest.raises(FetchError) as caught:
        attester.quote(DIGEST)
    assert caught.value.code == "device.raced"
