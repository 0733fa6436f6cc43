"""Bill of materials and provenance: what they list, and that nothing in them is of the builder."""

from __future__ import annotations

import json
from typing import Any

from cloister.image.bill import bill_of_materials, debian_url, provenance
from cloister.image.lock import Use, read_lock

LOCK = read_lock(None)


def test_the_bill_lists_what_is_in_the_image_and_what_built_it() -> None:
    bill: Any = bill_of_materials(
        LOCK, name="demo", version="1", cloister="0.1", origins={"nftables", "libc6"}
    )
    components = {one["name"]: one for one in bill["components"]}
    assert components["nftables"]["scope"] == "required"
    assert components["squashfs-tools"]["scope"] == "excluded"
    assert "media-types" not in components, "the lock has it, and nothing of it is in the image"
    assert components["xllamacpp"]["purl"].startswith("pkg:pypi/xllamacpp@")
    kernel = next(one for name, one in components.items() if name.startswith("linux-image-"))
    assert kernel["scope"] == "required"
    locked = next(one for one in LOCK.of(Use.ROOT) if one.name == "nftables")
    assert components["nftables"]["hashes"] == [{"alg": "SHA-256", "content": locked.sha256}]
    assert debian_url(locked).endswith("?arch=amd64")


def test_the_statement_names_results_and_everything_they_are_made_of() -> None:
    subjects = {"root.img": "ab" * 32, "esp.img": "cd" * 32}
    made = [
        provenance(LOCK, configuration={"name": "demo"}, cloister={}, subjects=subjects)
        for _ in range(2)
    ]
    assert json.dumps(made[0]) == json.dumps(made[1])
    statement: Any = made[0]
    assert statement["subject"] == [
        {"name": "esp.img", "digest": {"sha256": "cd" * 32}},
        {"name": "root.img", "digest": {"sha256": "ab" * 32}},
    ]
    definition = statement["predicate"]["buildDefinition"]
    named = {one["digest"]["sha256"] for one in definition["resolvedDependencies"]}
    locked = {one.sha256 for one in LOCK.debian} | {one.sha256 for one in LOCK.wheels}
    assert named == locked
