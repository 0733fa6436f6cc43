"""Words that reach commands and documents: good ones pass, and what could become more does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.deploy import words
from cloister.errors import ConfigurationError

GOOD = [
    (words.NAME, "web-1"),
    (words.REGION, "us-east-2"),
    (words.MACHINE_TYPE, "Standard_DC4as_v5"),
    (words.MACHINE_TYPE, "m6a.xlarge"),
    (words.RESOURCE_GROUP, "cloister_rg-1"),
    (words.GALLERY, "images.v1"),
    (words.STORAGE_ACCOUNT, "cloister01"),
    (words.CONTAINER, "disks-1"),
    (words.BUCKET, "my.bucket-1"),
    (words.PROJECT, "my-project-1"),
    (words.NETWORK, "default"),
    (words.SUBNET_ID, "subnet-0123abcd"),
    (words.VPC_ID, "vpc-0123abcd"),
    (words.VERSION, "1.0.3"),
    (words.CPU_MODEL, "EPYC-Genoa-v1"),
    (words.CPU_MODEL, "EPYC-v4"),
    (words.INTERFACE, "tap0"),
    (words.PCI_ADDRESS, "0000:41:00.0"),
    (words.DIGEST, "sha256:" + "0a" * 32),
]
HOSTILE = [
    "",
    "-rf",
    "--undo",
    " a",
    "a b",
    "a,b",
    "a;b",
    "a$(id)",
    "a`id`",
    "a'b",
    'a"b',
    "a\nb",
    "a\0b",
    "a/../b",
    "${x}",
    "a<b>",
    "a&b",
    "ａ",
    "a\u202eb",
    "a" * 100,
    "web\n",
]


@pytest.mark.parametrize(("word", "text"), GOOD)
def test_a_plain_word_passes_and_hostile_ones_do_not(word: words.Word, text: str) -> None:
    assert word.check(text) == text
    for hostile in [
        *HOSTILE,
        text + "\n",
        "-" + text,
        text + " --x",
        text + "$(id)",
        text + ",x=y",
    ]:
        with pytest.raises(ConfigurationError) as caught:
            word.check(hostile)
        assert caught.value.code == "deploy.word"
        assert len(hostile) < 4 or hostile not in str(caught.value)


LONGEST = [
    (words.NAME, "a" * 30),
    (words.REGION, "a" * 40),
    (words.MACHINE_TYPE, "a" * 60),
    (words.RESOURCE_GROUP, "a" * 90),
    (words.GALLERY, "a" * 80),
    (words.STORAGE_ACCOUNT, "a" * 24),
    (words.CONTAINER, "a" * 63),
    (words.BUCKET, "a" * 63),
    (words.PROJECT, "a" * 30),
    (words.NETWORK, "a" * 80),
    (words.SUBNET_ID, "subnet-" + "a" * 17),
    (words.VPC_ID, "vpc-" + "a" * 17),
    (words.VERSION, "99999.99999.99999"),
    (words.CPU_MODEL, "EPYC-Genoa-v99"),
    (words.INTERFACE, "a" * 15),
    (words.DIGEST, "a" * 64),
]
SHORTEST = [
    (words.STORAGE_ACCOUNT, "aaa"),
    (words.CONTAINER, "aaa"),
    (words.BUCKET, "aaa"),
    (words.PROJECT, "a" * 6),
    (words.SUBNET_ID, "subnet-" + "a" * 8),
    (words.VPC_ID, "vpc-" + "a" * 8),
    (words.DIGEST, "a" * 64),
]


@pytest.mark.parametrize(("word", "text"), LONGEST)
def test_a_word_is_no_longer_than_its_reader_takes(word: words.Word, text: str) -> None:
    assert word.check(text) == text
    with pytest.raises(ConfigurationError):
        word.check(text + text[-1])


@pytest.mark.parametrize(("word", "text"), SHORTEST)
def test_a_word_is_no_shorter_than_its_reader_takes(word: words.Word, text: str) -> None:
    assert word.check(text) == text
    with pytest.raises(ConfigurationError):
        word.check(text[:-1])


@pytest.mark.parametrize(
    ("word", "good", "bad"),
    [
        (words.NAME, "a-1", "a-"),
        (words.NAME, "a1", "1a"),
        (words.REGION, "a-1", "a--1"),
        (words.MACHINE_TYPE, "a.b", "a.b."),
        (words.RESOURCE_GROUP, "a_", "a-"),
        (words.GALLERY, "a.b", "a."),
        (words.CONTAINER, "a-b", "a--b"),
        (words.BUCKET, "a.b", "a..b"),
        (words.PROJECT, "a-bcde", "abcde-"),
        (words.NETWORK, "a_", "a."),
        (words.VERSION, "1.0.3", "1.0.03"),
        (words.VERSION, "1.0.3", "1.0.\u0663"),
        (words.CPU_MODEL, "EPYC-v4", "EPYC-v\u0664"),
        (words.PCI_ADDRESS, "0000:41:1f.7", "0000:41:1f.8"),
        (words.PCI_ADDRESS, "0000:41:1f.7", "0000:41:2f.7"),
        (words.PCI_ADDRESS, "0000:41:1f.7", "0000:41:1F.7"),
        (words.DIGEST, "sha256:" + "a" * 64, "sha384:" + "a" * 64),
        (words.DIGEST, "a" * 64, "A" * 64),
    ],
)
def test_a_word_that_is_nearly_one(word: words.Word, good: str, bad: str) -> None:
    assert word.check(good) == good
    with pytest.raises(ConfigurationError):
        word.check(bad)


def test_a_path_is_absolute_and_holds_nothing_that_is_read_otherwise(tmp_path: Path) -> None:
    assert words.path(tmp_path / "my images", "x") == tmp_path / "my images"
    assert words.path(tmp_path / "bildär", "x") == tmp_path / "bildär"
    for sign in "\"'`\\$%,<>&|;*?[]\n\x7f":
        with pytest.raises(ConfigurationError) as caught:
            words.path(tmp_path / f"a{sign}b", "x")
        assert caught.value.code == "deploy.path"


def test_a_path_that_is_kept_is_absolute(tmp_path: Path) -> None:
    words.check_path(tmp_path / "x", "x")
    for given in ("x", "-x", "~/x"):
        with pytest.raises(ConfigurationError) as caught:
            words.check_path(Path(given), "x")
        assert caught.value.code == "deploy.path"


def test_a_path_of_somebody_without_a_home_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        words.path(Path("~nobody-of-this-name/x"), "x")
    assert caught.value.code == "deploy.path"


def test_ranges_are_whole_networks_or_everybody_by_name() -> None:
    assert words.source_range("203.0.113.0/24") == "203.0.113.0/24"
    assert words.source_range("2001:db8::/32") == "2001:db8::/32"
    assert words.source_range("any") == "0.0.0.0/0"
    for text in ("203.0.113.7/24", "0.0.0.0/0/0", "all", "", "10.0.0.0/8,0.0.0.0/0"):
        with pytest.raises(ConfigurationError):
            words.source_range(text)


def test_a_range_has_no_zone_in_which_any_character_may_stand() -> None:
    assert words.source_range("fe80::1/128") == "fe80::1/128"
    for text in ("fe80::1%eth0/128", "fe80::1%${id}", "fe80::1%,::/0", "fe80::1%$(id)\n"):
        with pytest.raises(ConfigurationError):
            words.source_range(text)


@pytest.mark.parametrize("number", [0, -1, 65536])
def test_a_port_is_one_of_tcp(number: int) -> None:
    assert [words.port(one) for one in (1, 8440, 65535)] == [1, 8440, 65535]
    with pytest.raises(ConfigurationError):
        words.port(number)


def test_addresses_and_digests_are_read_exactly() -> None:
    assert words.guest_address("10.0.2.15") == "10.0.2.15"
    for text in ("10.0.2.15-1", "10.0.2.15:1", "::1", "010.0.2.15"):
        with pytest.raises(ConfigurationError):
            words.guest_address(text)
    assert words.digest("sha256:" + "0a" * 32) == words.digest("0a" * 32) == b"\n" * 32
    with pytest.raises(ConfigurationError):
        words.digest("0A" * 32)
