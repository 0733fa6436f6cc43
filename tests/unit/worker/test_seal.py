"""The file that says how an application is sealed: all of it understood, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.errors import ConfigurationError
from cloister.worker.seal import MAX_FILE_BYTES, Seal, load_seal, parse_seal

LEAST = """\
version = 1
platform = "sev-snp"
model = "served"
prefix_cache = "salted"
open = true
"""
WHOLE = """\
version = 1
platform = "tdx"
model = "served"
prefix_cache = "off"
api_keys = "/etc/keys.json"
model_file = "/models/served.gguf"
endorsements = "/var/endorsements"
context_length = 4096
serves = ["embeddings"]
health = ["/health", "/ping"]
"""


def test_all_of_it_is_read(tmp_path: Path) -> None:
    assert parse_seal(LEAST.encode()) == Seal(
        platform="sev-snp", model="served", cache_salt=True, open=True
    )
    path = tmp_path / "seal.toml"
    path.write_text(WHOLE)
    assert load_seal(path) == Seal(
        platform="tdx",
        model="served",
        cache_salt=False,
        api_keys=Path("/etc/keys.json"),
        model_file=Path("/models/served.gguf"),
        endorsements=Path("/var/endorsements"),
        context_length=4096,
        serves=frozenset({"/v1/embeddings"}),
        health=frozenset({"/health", "/ping"}),
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version = 1", "version = 2"),
        ("version = 1", "version = true"),
        ("version = 1\n", ""),
        ('platform = "tdx"', 'platform = "my-word"'),
        ('platform = "tdx"\n', ""),
        ('model = "served"', 'model = ""'),
        ('model = "served"', 'model = "a\\nb"'),
        ('model = "served"', "model = 1"),
        ('prefix_cache = "off"', 'prefix_cache = "on"'),
        ('prefix_cache = "off"', "prefix_cache = false"),
        ('prefix_cache = "off"\n', ""),
        ('api_keys = "/etc/keys.json"\n', ""),
        ('api_keys = "/etc/keys.json"', "open = false"),
        ('api_keys = "/etc/keys.json"', 'open = true\napi_keys = "/etc/keys.json"'),
        ('api_keys = "/etc/keys.json"', 'api_keys = "keys.json"'),
        ('model_file = "/models/', 'model_file = "models/'),
        ('endorsements = "/var/', 'endorsements = "var/'),
        ("context_length = 4096", "context_length = -1"),
        ("context_length = 4096", "context_length = 4096.0"),
        ('serves = ["embeddings"]', "serves = [1]"),
        ('serves = ["embeddings"]', 'serves = "embeddings"'),
        ('"/ping"', '"/v1/chat/completions"'),
        ('"/ping"', '"/ohttp"'),
        ('"/ping"', '"/ohttp-keys"'),
        ('"/ping"', '"/"'),
        ('"/ping"', '"ping"'),
        ('"/ping"', '"/ping?x=1"'),
        ("context_length", "context-length"),
        ("version = 1", "version = 1\n[more]"),
    ],
)
def test_one_thing_wrong_refuses_all_of_it(old: str, new: str) -> None:
    parse_seal(WHOLE.encode())
    assert old in WHOLE
    with pytest.raises(ConfigurationError) as refused:
        parse_seal(WHOLE.replace(old, new).encode())
    assert refused.value.code == "configuration.seal"


@pytest.mark.parametrize("data", [b"", b"\xff", b"version = ", b"#" * (MAX_FILE_BYTES + 1)])
def test_what_is_no_such_file_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_seal(data)
    assert refused.value.code == "configuration.seal"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_seal(tmp_path / "none.toml")
    assert refused.value.code == "configuration.seal"
