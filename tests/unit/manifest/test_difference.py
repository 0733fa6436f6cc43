"""What changed, in words that people read before they sign."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta

import pytest

from cloister.manifest import EngineEntry, Manifest, Serving
from cloister.manifest.difference import changes
from cloister.testing.signed_manifests import owners_of
from cloister.verifier.policy import UNCHECKED
from support.manifests import ALICE, BOB, CAROL, IMAGE, MALLORY, full_manifest

OLD = full_manifest()


def header(**fields: object) -> Callable[[Manifest], Manifest]:
    return lambda one: dataclasses.replace(one, header=dataclasses.replace(one.header, **fields))  # type: ignore[arg-type]  # of the header


def body(**fields: object) -> Callable[[Manifest], Manifest]:
    return lambda one: dataclasses.replace(one, **fields)  # type: ignore[arg-type]  # of the manifest


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (header(owners=owners_of([ALICE, BOB, CAROL, MALLORY], 2)), ["+ owner mallory"]),
        (header(owners=owners_of([ALICE, BOB], 2)), ["- owner carol"]),
        (header(owners=owners_of([ALICE, BOB, CAROL], 1)), ["~ owners who have to sign: 2 → 1"]),
        (header(expires=OLD.header.expires + timedelta(days=1)), ["~ expires"]),
        (header(name="example/other"), ["~ name: example/chat → example/other"]),
        (body(models=OLD.models[:1]), ["- model secret"]),
        (
            body(models=(dataclasses.replace(OLD.models[0], sha256="f" * 64), OLD.models[1])),
            ["~ model open: gguf sha256:" + "a" * 64],
        ),
        (
            body(models=(OLD.models[0], dataclasses.replace(OLD.models[1], sealed=None))),
            ["~ model secret"],
        ),
        (body(engines=(EngineEntry(name="vllm", version="1"),)), ["- engine", "+ engine vllm 1"]),
        (body(engines=UNCHECKED), ["- engine", "+ engine any: unchecked"]),
        (body(images=()), ["- image worker 1"]),
        (body(images=(dataclasses.replace(IMAGE, debug=True),)), ["~ image worker 1"]),
        (body(serving=Serving()), ["~ serving"] * 4),
        (body(policy={}), ["- policy"] * 3),
        (body(policy={**OLD.policy, "required_gpus": 2}), ["~ policy required_gpus: 1 → 2"]),
    ],
)
def test_every_change_is_told(change: Callable[[Manifest], Manifest], told: list[str]) -> None:
    found = [str(one) for one in changes(OLD, change(OLD))]
    assert len(found) == len(told)
    assert all(one.startswith(start) for one, start in zip(found, told, strict=True)), found


def test_what_says_the_same_has_no_difference() -> None:
    later = header(version=2, previous=OLD.digest)(OLD)
    assert changes(OLD, OLD) == changes(OLD, later) == ()


def test_an_overlap_is_told_of() -> None:
    update = header(version=2, previous=OLD.digest)(OLD)
    overlapping = header(overlap_until=OLD.header.issued + timedelta(days=1))(update)
    (begins,), (ends,) = changes(OLD, overlapping), changes(overlapping, update)
    words = "until 2026-11-02T12:00:00Z"
    assert str(begins) == f"~ overlap with the version before: none → {words}"
    assert str(ends) == f"~ overlap with the version before: {words} → none"


def test_an_image_for_debugging_is_told_in_capitals() -> None:
    (found,) = changes(OLD, body(images=(dataclasses.replace(IMAGE, debug=True),))(OLD))
    assert found.words.endswith("FOR DEBUGGING")


def test_names_that_read_alike_hide_nothing() -> None:
    """Two images, or engines, whose name and version come to the same words."""
    image = dataclasses.replace(IMAGE, name="worker", version="1 beta")
    alike = dataclasses.replace(IMAGE, name="worker 1", version="beta")
    engine, other = (
        EngineEntry(name="llama", version="cpp 1"),
        EngineEntry(name="llama cpp", version="1"),
    )
    old = body(images=(image,), engines=(engine,))(OLD)
    new = body(images=(alike, image), engines=(other, engine))(OLD)
    found = [str(one) for one in changes(old, new)]
    assert [one.split(":")[0] for one in found] == ["+ engine llama cpp 1", "+ image worker 1 beta"]


def test_no_change_goes_untold() -> None:
    """Whatever field of a manifest differs, something is said."""
    told = {"header", "models", "engines", "images", "serving", "policy"}
    assert {field.name for field in dataclasses.fields(Manifest)} == told
    parts = {"name", "version", "previous", "issued", "expires", "owners", "overlap_until"}
    assert {field.name for field in dataclasses.fields(OLD.header)} == parts
