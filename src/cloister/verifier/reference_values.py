"""Reference values: what a worker must be made of, known before it is asked.

A set of components that the measured ones must match one to one: nothing missing, nothing
extra, nothing different. Entries with the same kind and name are alternatives (two releases
that are both accepted, say), of which exactly one must have been measured. The order in which
components were measured does not matter: the log fixes it, and the registers fix the log.

Made ahead of time from an installation and a model by ``cloister measure``, on any machine.

On a hardware platform the whole image is measured into the vendor's registers; what these may
hold is listed beside the components (`cloister.verifier.platform_references`).
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from cloister.errors import ConfigurationError, MalformedError
from cloister.evidence.component import Component, ComponentKind, parse_digest
from cloister.strictjson import (
    Json,
    JsonObject,
    canonical,
    expect_keys,
    expect_list,
    expect_object,
    expect_str,
    parse_json_object,
)
from cloister.verifier.platform_references import (
    MAX_REFERENCES,
    PlatformReference,
    ReferenceImage,
    collect_references,
    parse_reference,
)

FORMAT: Final = "cloister/reference-values/1"
MAX_BYTES: Final = 8 * 1024 * 1024
MAX_COMPONENTS: Final = 16384
MAX_DIGESTS: Final = 256

_CODE: Final = "reference_values_malformed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceComponent:
    """One accepted version of one component, with every digest it may have."""

    kind: ComponentKind
    name: str
    version: str
    digests: tuple[str, ...]
    """``sha256:<hex>`` each; sorted, without repetition."""

    def to_json(self) -> JsonObject:
        """The entry as the document writes it."""
        digests: list[Json] = list(self.digests)
        return {
            "kind": self.kind.value,
            "name": self.name,
            "version": self.version,
            "digests": digests,
        }


Named: TypeAlias = tuple[ComponentKind, str]
Exact: TypeAlias = tuple[ComponentKind, str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceValues:
    """The components that a worker must consist of, no more and no fewer.

    `components` is sorted by kind, name and version, so that equal sets are equal values with
    equal digests; make one with `from_components`, `merged` or a load function.
    """

    components: tuple[ReferenceComponent, ...] = ()
    platforms: tuple[PlatformReference, ...] = ()
    """Accepted states of hardware platforms, one of which must match whole."""
    _named: frozenset[Named] | None = field(default=None, init=False, repr=False, compare=False)
    _exact: frozenset[Exact] | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def from_platforms(cls, *references: PlatformReference) -> ReferenceValues:
        """Reference values for workers whose whole image the hardware measures."""
        return cls(platforms=collect_references(references))

    @classmethod
    def from_components(cls, components: Iterable[Component]) -> ReferenceValues:
        """Reference values that exactly these components match."""
        return cls.collect(
            ReferenceComponent(
                kind=component.kind,
                name=component.name,
                version=component.version,
                digests=(component.digest,),
            )
            for component in components
        )

    @classmethod
    def collect(
        cls,
        entries: Iterable[ReferenceComponent],
        platforms: Iterable[PlatformReference] = (),
    ) -> ReferenceValues:
        """Sort `entries`, joining the digests of those with one kind, name and version."""
        digests: dict[tuple[ComponentKind, str, str], set[str]] = {}
        for entry in entries:
            key = (entry.kind, entry.name, entry.version)
            digests.setdefault(key, set()).update(entry.digests)
        return cls(
            components=tuple(
                ReferenceComponent(
                    kind=kind, name=name, version=version, digests=tuple(sorted(accepted))
                )
                for (kind, name, version), accepted in sorted(digests.items())
            ),
            platforms=collect_references(platforms),
        )

    def merged(self, other: ReferenceValues) -> ReferenceValues:
        """Accept, for each component, what either of the two accepts.

        A component that only one of them names is required by the result, as everything is.
        """
        return self.collect(
            (*self.components, *other.components), (*self.platforms, *other.platforms)
        )

    # Both are made once: every worker is compared with them.

    @property
    def named(self) -> frozenset[Named]:
        """Kind and name of every component that must have been measured."""
        found = self._named
        if found is None:
            found = frozenset((entry.kind, entry.name) for entry in self.components)
            object.__setattr__(self, "_named", found)
        return found

    @property
    def exact(self) -> frozenset[Exact]:
        """Kind, name, version and digest of everything that may have been measured."""
        found = self._exact
        if found is None:
            found = frozenset(
                (entry.kind, entry.name, entry.version, digest)
                for entry in self.components
                for digest in entry.digests
            )
            object.__setattr__(self, "_exact", found)
        return found

    @property
    def images(self) -> tuple[ReferenceImage, ...]:
        """The images that the platforms' entries name, each once."""
        return tuple(dict.fromkeys(e.image for e in self.platforms if e.image is not None))

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of the canonical JSON."""
        return "sha256:" + hashlib.sha256(canonical(self.to_json())).hexdigest()

    def to_json(self) -> JsonObject:
        """The document as a JSON object."""
        components: list[Json] = [entry.to_json() for entry in self.components]
        document: JsonObject = {"format": FORMAT, "components": components}
        if self.platforms:
            document["platforms"] = [entry.to_json() for entry in self.platforms]
        return document

    def dump_json(self) -> str:
        """The document as text, one component a line, for people and version control."""
        members = [f'"format": {json.dumps(FORMAT)}', f'"components": {_lines(self.components)}']
        if self.platforms:
            members.append(f'"platforms": {_lines(self.platforms)}')
        return f"{{{', '.join(members)}}}\n"

    def dump_toml(self) -> str:
        """The document as TOML."""
        tables = [f"format = {_toml(FORMAT)}\n"]
        for entry in self.components:
            members = entry.to_json()
            tables.append(
                "[[components]]\n"
                + "".join(f"{name} = {_toml(value)}\n" for name, value in members.items())
            )
        if not self.components:
            tables.append("components = []\n")
        tables.extend(reference.dump_toml() for reference in self.platforms)
        return "\n".join(tables)


def load_json(data: bytes) -> ReferenceValues:
    """Read reference values from JSON of at most `MAX_BYTES`.

    Raises:
        ConfigurationError: not reference values (code ``reference_values_malformed``).
    """
    try:
        return parse_reference_values(
            parse_json_object(data, limit=MAX_BYTES, what="the reference values")
        )
    except MalformedError as error:
        raise ConfigurationError(str(error), code=_CODE) from None


def load_toml(data: bytes) -> ReferenceValues:
    """Read reference values from TOML of at most `MAX_BYTES`; errors as for `load_json`."""
    if len(data) > MAX_BYTES:
        raise ConfigurationError(
            f"the reference values have more than {MAX_BYTES} bytes", code=_CODE
        )
    try:
        return parse_reference_values(tomllib.loads(data.decode("utf-8")))
    except MalformedError as error:
        raise ConfigurationError(str(error), code=_CODE) from None
    except (ValueError, RecursionError):  # of its own kind, of UTF-8's, or an endless number
        raise ConfigurationError("the reference values are not TOML in UTF-8", code=_CODE) from None


def parse_reference_values(members: Mapping[str, object]) -> ReferenceValues:
    """Read reference values that stand inside another document.

    Raises MalformedError, and nothing else.
    """
    what = "the reference values"
    expect_keys(members, what, required={"format", "components"}, optional={"platforms"})
    if members["format"] != FORMAT:
        raise MalformedError(f"{what} are not in the format {FORMAT}")
    listed = expect_list(members["components"], "components", limit=MAX_COMPONENTS)
    others = expect_list(members.get("platforms", []), "platforms", limit=MAX_REFERENCES)
    if not listed and not others:
        raise MalformedError(f"{what} name no components, so nothing could be compared")
    entries = [_component(entry) for entry in listed]
    references = [parse_reference(entry) for entry in others]
    values = ReferenceValues.collect(entries, references)
    if len(values.components) != len(entries) or len(values.platforms) != len(references):
        raise MalformedError(f"{what} list one entry twice")
    return values


def _component(value: object) -> ReferenceComponent:
    what = "a component of the reference values"
    members = expect_object(value, what)
    expect_keys(members, what, required={"kind", "name", "version", "digests"})
    try:
        kind = ComponentKind(expect_str(members["kind"], "a kind", limit=32))
    except ValueError:
        raise MalformedError(f"{what} is of an unknown kind") from None
    digests = expect_list(members["digests"], "digests", limit=MAX_DIGESTS)
    if not digests:
        raise MalformedError(f"{what} accepts no digest")
    return ReferenceComponent(
        kind=kind,
        name=expect_str(members["name"], "a name", limit=1024),
        version=expect_str(members["version"], "a version", limit=1024),
        digests=tuple(sorted({parse_digest(digest, code=_CODE) for digest in digests})),
    )


def _lines(entries: Iterable[ReferenceComponent | PlatformReference]) -> str:
    lines = ",\n".join("  " + json.dumps(entry.to_json(), ensure_ascii=False) for entry in entries)
    return f"[\n{lines}\n]"


def _toml(value: object) -> str:
    # TOML's basic strings and arrays of them read what JSON writes, except U+007F, which JSON
    # leaves as it is and TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
