"""What changed from one manifest to another, in lines that people read before they sign."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from cloister.manifest.entries import ImageEntry, ModelEntry
from cloister.manifest.model import Manifest, ManifestHeader, encode_time
from cloister.manifest.owners import Owner
from cloister.verifier.policy import Unchecked, dump_fields

Entries: TypeAlias = Mapping[tuple[str, ...], str]
"""What tells one thing from the others, part by part, and a description. Joined into one text, two
things could have the same name, and one of them would go untold."""


class Kind(StrEnum):
    """What happened to something; the sign that a line begins with."""

    ADDED = "+"
    REMOVED = "-"
    CHANGED = "~"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One line."""

    kind: Kind
    what: str
    """Where in the manifest: ``model chat``, ``owner bob``, ``policy.tcb_statuses``."""
    words: str

    def __str__(self) -> str:
        return f"{self.kind.value} {self.what}: {self.words}"


def changes(old: Manifest, new: Manifest) -> tuple[Change, ...]:
    """Every change from `old` to `new`, the owners' first; empty if they say the same.

    Version and previous digest are not told: they differ in every update.
    """
    return tuple(_changes(old, new))


def _changes(old: Manifest, new: Manifest) -> Iterator[Change]:
    before, after = old.header, new.header
    yield from _value("name", before.name, after.name)
    yield from _entries("owner", _owners(before.owners.listed), _owners(after.owners.listed))
    yield from _value("owners who have to sign", before.owners.threshold, after.owners.threshold)
    yield from _value("issued", encode_time(before.issued), encode_time(after.issued))
    yield from _value("expires", encode_time(before.expires), encode_time(after.expires))
    yield from _value("overlap with the version before", _until(before), _until(after))
    yield from _entries("model", _models(old.models), _models(new.models))
    yield from _entries("engine", _engines(old), _engines(new))
    yield from _entries("image", _images(old.images), _images(new.images))
    yield from _entries("serving", _texts(old.serving.to_json()), _texts(new.serving.to_json()))
    yield from _entries("policy", _texts(dump_fields(old.policy)), _texts(dump_fields(new.policy)))


def _until(header: ManifestHeader) -> str:
    until = header.overlap_until
    return "none" if until is None else f"until {encode_time(until)}"


def _value(what: str, old: object, new: object) -> Iterator[Change]:
    if old != new:
        yield Change(kind=Kind.CHANGED, what=what, words=f"{old} → {new}")


def _entries(what: str, old: Entries, new: Entries) -> Iterator[Change]:
    """Things with a name and a description each."""
    for name in sorted(old.keys() - new.keys()):
        yield Change(kind=Kind.REMOVED, what=" ".join([what, *name]), words=old[name])
    for name in sorted(new):
        label = " ".join([what, *name])
        if name not in old:
            yield Change(kind=Kind.ADDED, what=label, words=new[name])
        elif old[name] != new[name]:
            yield Change(kind=Kind.CHANGED, what=label, words=f"{old[name]} → {new[name]}")


def _owners(owners: Iterable[Owner]) -> Entries:
    return {(owner.name,): f"{owner.describe()} {owner.key_id}" for owner in owners}


def _models(models: Iterable[ModelEntry]) -> Entries:
    return {
        (model.name,): f"{model.format} sha256:{model.sha256}{_sealed(model)}" for model in models
    }


def _sealed(model: ModelEntry) -> str:
    sealed = model.sealed
    return "" if sealed is None else f", sealed under {sealed.key} ({sealed.header_sha256})"


def _engines(manifest: Manifest) -> Entries:
    if isinstance(manifest.engines, Unchecked):
        return {("any",): "unchecked"}
    return {(engine.name, engine.version): "listed" for engine in manifest.engines}


def _images(images: Iterable[ImageEntry]) -> Entries:
    return {(image.name, image.version): _image(image) for image in images}


def _image(image: ImageEntry) -> str:
    values = image.reference_values
    platforms = sorted({reference.platform for reference in values.platforms})
    parts = [
        *([f"{len(values.components)} components"] if values.components else []),
        *platforms,
        values.digest,
        *(["FOR DEBUGGING"] if image.debug else []),
    ]
    return ", ".join(parts)


def _texts(members: Mapping[str, object]) -> Entries:
    return {(name,): json.dumps(value, sort_keys=True) for name, value in members.items()}
