"""A manifest reads as it was written, in one spelling; whatever else is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from cloister.errors import MalformedError
from cloister.manifest.model import (
    MAX_OVERLAP,
    encode_time,
    parse_header,
    parse_manifest,
    read_manifest,
)
from cloister.strictjson import canonical
from support.manifests import full_manifest

MANIFEST = full_manifest()


def test_what_was_written_is_read() -> None:
    encoded = MANIFEST.encode()
    assert parse_manifest(encoded) == MANIFEST
    assert MANIFEST.digest == hashlib.sha256(encoded).hexdigest()
    assert encoded == canonical(json.loads(encoded))


def test_only_the_canonical_form_is_a_manifest() -> None:
    pretty = json.dumps(MANIFEST.to_json(), indent=2).encode()
    assert read_manifest(pretty) == MANIFEST
    with pytest.raises(MalformedError, match="canonical"):
        parse_manifest(pretty)


def second(**fields: object) -> dict[str, Any]:
    header = dataclasses.replace(MANIFEST.header, version=2, previous="0" * 64, **fields)  # type: ignore[arg-type]
    return dict(dataclasses.replace(MANIFEST, header=header).to_json())


@pytest.mark.parametrize(
    "until",
    [
        MANIFEST.header.issued,
        MANIFEST.header.issued + MAX_OVERLAP + timedelta(seconds=1),
        MANIFEST.header.expires + timedelta(seconds=1),
    ],
)
def test_an_overlap_has_an_end(until: datetime) -> None:
    latest = MANIFEST.header.issued + MAX_OVERLAP
    whole = second(overlap_until=latest)
    assert parse_manifest(canonical(whole)).header.overlap_until == latest
    assert "overlap_until" not in second()
    for document in (
        {**whole, "overlap_until": encode_time(until)},
        {**whole, "overlap_until": None},
    ):
        with pytest.raises(MalformedError, match="overlap") as refused:
            parse_manifest(canonical(document))
        assert refused.value.code == "manifest.malformed"


def test_an_overlap_ends_with_the_manifest() -> None:
    ends = MANIFEST.header.issued + timedelta(days=3)
    parse_manifest(canonical(second(expires=ends, overlap_until=ends)))
    document = second(expires=ends)
    document["overlap_until"] = encode_time(ends + timedelta(seconds=1))
    with pytest.raises(MalformedError, match="overlap"):
        parse_manifest(canonical(document))


def test_a_first_version_overlaps_with_nothing() -> None:
    document = {**MANIFEST.to_json(), "overlap_until": encode_time(MANIFEST.header.expires)}
    with pytest.raises(MalformedError, match="overlap"):
        parse_manifest(canonical(document))


def test_the_owners_of_the_version_before_are_compared_with_what_is_there() -> None:
    """In Python `true` equals 1; in a manifest it is no threshold."""
    before = dataclasses.replace(
        MANIFEST.header, owners=dataclasses.replace(MANIFEST.header.owners, threshold=1)
    )
    document = dataclasses.replace(MANIFEST, header=before).to_json()
    assert parse_header(canonical(document), before=before).owners is before.owners
    others = {**before.owners.to_json(), "threshold": 2}
    read = parse_header(canonical({**document, "owners": others}), before=before).owners
    assert read.threshold == 2 and read != before.owners
    document["owners"] = {**before.owners.to_json(), "threshold": True}
    with pytest.raises(MalformedError, match="threshold"):
        parse_header(canonical(document), before=before)


Change = Callable[[dict[str, Any]], object]

CHANGES: dict[str, Change] = {
    "a member of a later version": lambda one: one.update(extra=1),
    "another format": lambda one: one.update(format="cloister/manifest/2"),
    "version 0": lambda one: one.update(version=0),
    "version 1 after another": lambda one: one.update(previous="0" * 64),
    "version 2 after none": lambda one: one.update(version=2),
    "a version that is text": lambda one: one.update(version="1"),
    "a version that is true": lambda one: one.update(version=True),
    "a name with a line end": lambda one: one.update(name="a\nb"),
    "no name": lambda one: one.update(name=""),
    "expired when issued": lambda one: one.update(expires=one["issued"]),
    "good for ever": lambda one: one.update(expires="2096-01-01T00:00:00Z"),
    "a time without a zone": lambda one: one.update(expires="2027-01-01T00:00:00"),
    "another zone": lambda one: one.update(expires="2027-01-01T00:00:00+01:00"),
    "the 30th of February": lambda one: one.update(expires="2027-02-30T00:00:00Z"),
    "no owner": lambda one: one["owners"].update(keys=[], threshold=0),
    "a threshold of none": lambda one: one["owners"].update(threshold=0),
    "a threshold above all": lambda one: one["owners"].update(threshold=4),
    "one key under two names": lambda one: one["owners"]["keys"][1].update(
        public_key=one["owners"]["keys"][0]["public_key"]
    ),
    "two owners of one name": lambda one: one["owners"]["keys"][1].update(name="alice"),
    "an unknown algorithm": lambda one: one["owners"]["keys"][0].update(algorithm="rsa"),
    "a key that is too short": lambda one: one["owners"]["keys"][0].update(public_key="AAAA"),
    "two models of one name": lambda one: one["models"][1].update(name="open"),
    "a digest in capitals": lambda one: one["models"][0].update(sha256="A" * 64),
    "a short digest": lambda one: one["models"][0].update(sha256="a" * 63),
    "a key with tricks": lambda one: one["models"][1]["sealed"].update(key="kbs:///a/../b"),
    "a key elsewhere": lambda one: one["models"][1]["sealed"].update(key="kbs://host/a/b/c"),
    "a key too deep": lambda one: one["models"][1]["sealed"].update(key="kbs:///a/b/c/d"),
    "an engine twice": lambda one: one["engines"].append(one["engines"][0]),
    "an image twice": lambda one: one["images"].append(one["images"][0]),
    "an image that may be debugged": lambda one: one["images"][0].update(debug="no"),
    "an image of nothing": lambda one: one["images"][0]["reference_values"].update(components=[]),
    "a negative bucket": lambda one: one["serving"].update(stream_bucket=-1),
    "serving left out": lambda one: one["serving"].pop("egress"),
    "a policy of another product": lambda one: one["policy"].update(nonsense=True),
    "a policy that is unchecked": lambda one: one["policy"].update(required_gpus="unchecked"),
    "a policy with a wrong word": lambda one: one["policy"].update(tcb_statuses=["Fine"]),
    "a policy that accepts nothing": lambda one: one["policy"].update(isolation=[]),
    "a number that is a fraction": lambda one: one["policy"].update(required_gpus=1.5),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_else_is_refused(name: str) -> None:
    members = json.loads(MANIFEST.encode())
    parse_manifest(canonical(members))
    CHANGES[name](members)
    with pytest.raises(MalformedError) as refused:
        read_manifest(json.dumps(members).encode())
    assert refused.value.code == "manifest.malformed"


def test_a_member_written_twice_is_refused() -> None:
    twice = MANIFEST.encode().replace(b'"version":1', b'"version":1,"version":2', 1)
    with pytest.raises(MalformedError, match="twice"):
        read_manifest(twice)


def test_a_model_is_found_by_its_name() -> None:
    found = MANIFEST.model("secret")
    assert found is not None
    assert found.sealed is not None
    assert MANIFEST.model("other") is None
