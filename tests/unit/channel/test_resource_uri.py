"""Names of secrets: one spelling each, and no trick in it."""

from __future__ import annotations

import pytest

from cloister.channel.resource_uri import ResourceUri
from cloister.errors import MalformedError

GOOD = ResourceUri(repository="acme", type="weights-key", tag="llama.v2")

TRICKS = [
    "",
    "acme/weights-key",
    "acme/weights-key/llama.v2/more",
    "acme//llama.v2",
    "acme/weights-key/",
    "acme/weights-key/../other",
    "acme/../weights-key",
    "../../etc/passwd",
    "acme/weights-key/llama..v2",
    "acme/weights-key/.",
    "acme/weights-key/.hidden",
    "acme/weights-key/%2e%2e",
    "acme/weights-key/llama%2Fv2",
    "acme%2fweights-key/x/y",
    "acme/weights-key/llama.v2?x=1",
    "acme/weights-key/llama.v2#x",
    "acme/weights-key/llama.v2\n",
    "acme/weights-key/llama.v2\0",
    "acme/weights-key/llama v2",
    "acme\\weights-key/x/y",
    "acme/weights-key/llamа",  # a Cyrillic letter at the end
    "acme/weights-key/" + "x" * 65,
    "ACME/weights-key/llama.v2;x",
]


def test_a_name_reads_back_from_its_uri_and_its_path() -> None:
    assert str(GOOD) == "kbs:///acme/weights-key/llama.v2"
    assert ResourceUri.parse(str(GOOD)) == GOOD
    assert ResourceUri.from_path("/kbs/v0/resource/acme/weights-key/llama.v2") == GOOD


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_are_refused_in_uris_and_paths(trick: str) -> None:
    for parse, prefix in (
        (ResourceUri.parse, "kbs:///"),
        (ResourceUri.from_path, "/kbs/v0/resource/"),
    ):
        with pytest.raises(MalformedError) as refused:
            parse(prefix + trick)
        assert refused.value.code == "resource.name"


@pytest.mark.parametrize("uri", ["kbs://host/a/b/c", "KBS:///a/b/c", "/a/b/c", "kbs:////a/b/c"])
def test_other_schemes_and_hosts_are_refused(uri: str) -> None:
    with pytest.raises(MalformedError):
        ResourceUri.parse(uri)


def test_the_constructor_refuses_too() -> None:
    with pytest.raises(MalformedError):
        ResourceUri(repository="..", type="b", tag="c")
