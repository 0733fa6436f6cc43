"""Root keys of development: round trips, contexts, and files that others could read."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.broker.root_keys.development import MemoryRootKey, development_file
from cloister.broker.root_keys.protocol import RootKey
from cloister.errors import ConfigurationError

MASTER = bytes(range(32))


def test_what_was_wrapped_is_unwrapped_for_its_context_only() -> None:
    root: RootKey = MemoryRootKey(b"k" * 32)
    wrapped = root.wrap(MASTER, b"store 1")
    assert root.unwrap(wrapped, b"store 1") == MASTER
    assert MASTER not in wrapped
    assert root.wrap(MASTER, b"store 1") != wrapped
    with pytest.raises(ConfigurationError) as refused:
        root.unwrap(wrapped, b"store 2")
    assert refused.value.code == "root_key.refused"


@pytest.mark.parametrize("change", [lambda w: w[:-1], lambda w: w[:5], lambda w: w[::-1]])
def test_what_was_altered_or_wrapped_elsewhere_is_refused(change: object) -> None:
    assert callable(change)
    root = MemoryRootKey(b"k" * 32)
    wrapped = root.wrap(MASTER, b"")
    assert root.unwrap(wrapped, b"") == MASTER
    with pytest.raises(ConfigurationError):
        root.unwrap(change(wrapped), b"")
    with pytest.raises(ConfigurationError):
        MemoryRootKey(b"j" * 32).unwrap(wrapped, b"")


def test_a_file_keeps_the_key_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    wrapped = development_file(path).wrap(MASTER, b"")
    assert path.stat().st_mode & 0o777 == 0o600
    assert development_file(path).unwrap(wrapped, b"") == MASTER
    path.chmod(0o640)
    with pytest.raises(ConfigurationError) as refused:
        development_file(path)
    assert refused.value.code == "root_key.file"


def test_a_file_that_is_no_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    path.write_bytes(b"short")
    path.chmod(0o600)
    with pytest.raises(ConfigurationError):
        development_file(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(ConfigurationError):
        development_file(link)


def test_no_representation_shows_the_key() -> None:
    assert "k" * 8 not in repr(MemoryRootKey(b"k" * 32))
