"""Files inside a sandbox are compared with the descriptors they were opened by."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloister.engine import shown


def test_every_file_is_the_one_that_was_opened(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "se=cond"
    first.write_text("same")
    second.write_text("same")
    with first.open("rb") as one, second.open("rb") as two:
        pairs = [(str(first), one.fileno()), (str(second), two.fileno())]
        shown.check(shown.encode(pairs))
        shown.check(shown.encode([]))
        absent = (str(tmp_path / "absent"), two.fileno())
        for wrong in ([pairs[0], (str(first), two.fileno())], [pairs[0], absent]):
            with pytest.raises(shown.ExchangedError):
                shown.check(shown.encode(wrong))
        closed = os.dup(two.fileno())
        shown.check(shown.encode([(str(second), closed)]))
        os.close(closed)
        with pytest.raises(shown.ExchangedError):
            shown.check(shown.encode([(str(second), closed)]))
        second.rename(tmp_path / "aside")
        second.write_text("same")
        with pytest.raises(shown.ExchangedError):
            shown.check(shown.encode(pairs))


def test_what_names_no_descriptor_is_refused(tmp_path: Path) -> None:
    for wrong in ("x", "=/data/model", f"x={tmp_path}"):
        with pytest.raises(ValueError, match="invalid literal"):
            shown.check(wrong)
