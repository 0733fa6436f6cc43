"""Of which file an error is."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.cli.about import about
from cloister.errors import CloisterError, ConfigurationError, MalformedError, UnsupportedError

PATH = Path("folder/golden.json")


@pytest.mark.parametrize("kind", [ConfigurationError, MalformedError, UnsupportedError])
def test_a_file_is_named_once_and_kind_and_code_stay(kind: type[CloisterError]) -> None:
    for said in ("it does not decode", f"{PATH} cannot be read"):
        with pytest.raises(kind) as caught, about(PATH):
            raise kind(said, code="some.code")
        assert type(caught.value) is kind
        assert caught.value.code == "some.code"
        assert str(caught.value).count(str(PATH)) == 1
        assert said in str(caught.value)
