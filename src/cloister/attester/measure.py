"""Turns an installation, a model and a configuration into components with digests.

The launcher measures what it is about to start with the same functions that ``cloister
measure`` computes reference values with, ahead of time and on another machine.

What is not measured: the operating system (kernel, C library, shared libraries of the system),
the launcher's own process while it measures, and whoever can change a file between its
measurement and its use. On a development platform that race, like a launcher that lies, goes
undetected.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloister.attester.installation import Installation, inspect_installation
from cloister.attester.tree import Entry, content_paths, hash_files, list_tree, tree_digest
from cloister.errors import BuildError
from cloister.evidence.component import Component, ComponentKind, configuration_component
from cloister.model_digest import Role, model_digest
from cloister.strictjson import JsonObject
from cloister.verifier.reference_values import ReferenceValues

INTERPRETER_NAME: Final = "python"
STDLIB_NAME: Final = "python-stdlib"
CONFIGURATION_NAME: Final = "worker"
CONFIGURATION_VERSION: Final = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model by the name it is served under, and its files.

    `sealed` holds the digest of each file that lies encrypted at its path: the one that its header
    says the plaintext has. The worker starts no engine before it has proven that.
    """

    name: str
    files: Mapping[Role, Path]
    sealed: Mapping[Role, str] = field(default_factory=dict)

    @classmethod
    def of_file(cls, name: str, path: Path) -> ModelFiles:
        """A model that is one file."""
        return cls(name=name, files={Role.MODEL: path})


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is to be started, or would be."""

    python: Path
    """The interpreter, in its virtual environment if it has one."""
    configuration: JsonObject = field(repr=False)
    """The whole effective configuration of the worker."""
    models: tuple[ModelFiles, ...] = ()
    """In the order in which they are served."""
    native: Mapping[str, Path] = field(default_factory=dict)
    """The engine by name: its native libraries, or the directories that it is installed in. The
    sandbox program is the system's, not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The components in the order in which they are extended, and what they were made from."""

    components: tuple[Component, ...]
    installation: Installation


def measure(subject: Subject, *, threads: int | None = None) -> Measured:
    """Hash everything that `subject` consists of.

    Raises:
        BuildError: something cannot be measured.
    """
    installation = inspect_installation(subject.python)
    interpreter = installation.interpreter
    native = {name: _thing(path) for name, path in subject.native.items()}
    models = {model.name: _files(model) for model in subject.models}
    if len(models) != len(subject.models):
        raise BuildError("two models have the same name", code="measure.model_name")
    paths = [
        *(path for files in models.values() for one in files.values() for path in one.paths),
        *(path for one in native.values() for path in one.paths),
        interpreter.executable,
        *interpreter.libraries,
        *content_paths(installation.stdlib),
    ]
    for distribution in installation.distributions:
        paths += content_paths(distribution.entries)
    for unowned in installation.unowned:
        paths += content_paths(unowned.entries)
    digests = hash_files(paths, threads=threads or min(4, os.cpu_count() or 1))
    components = [*_software(installation, digests)]
    components += [
        _component(ComponentKind.NATIVE, name, "", one.digest(digests))
        for name, one in sorted(native.items())
    ]
    components.append(
        configuration_component(CONFIGURATION_NAME, CONFIGURATION_VERSION, subject.configuration)
    )
    for name, files in models.items():
        components += _model(name, {role: one.digest(digests) for role, one in files.items()})
    return Measured(components=tuple(components), installation=installation)


def reference_values(subject: Subject, *, threads: int | None = None) -> ReferenceValues:
    """What a worker started from an equal `subject`, on any machine, must be made of.

    Raises:
        BuildError: something cannot be measured.
    """
    return ReferenceValues.from_components(measure(subject, threads=threads).components)


def _software(installation: Installation, digests: Mapping[str, str]) -> Iterable[Component]:
    interpreter = installation.interpreter
    version = interpreter.version
    yield _component(
        ComponentKind.INTERPRETER, INTERPRETER_NAME, version, digests[interpreter.executable]
    )
    for library in interpreter.libraries:
        yield _component(ComponentKind.INTERPRETER, Path(library).name, version, digests[library])
    yield Component(
        kind=ComponentKind.STDLIB,
        name=STDLIB_NAME,
        version=version,
        digest=tree_digest(installation.stdlib, digests),
    )
    for distribution in installation.distributions:
        yield Component(
            kind=ComponentKind.DISTRIBUTION,
            name=distribution.name,
            version=distribution.version,
            digest=tree_digest(distribution.entries, digests),
        )
    for unowned in installation.unowned:
        yield Component(
            kind=ComponentKind.UNOWNED,
            name=unowned.name,
            version="",
            digest=tree_digest(unowned.entries, digests),
        )


def _model(name: str, digests: Mapping[Role, str]) -> Iterable[Component]:
    """The model, and where it has several files, each of them too."""
    try:
        yield _component(ComponentKind.MODEL, name, "", model_digest(digests))
    except ValueError as error:
        raise BuildError(str(error), code="measure.file") from None
    if len(digests) > 1:
        for role, digest in sorted(digests.items()):
            yield _component(ComponentKind.MODEL_FILE, f"{name}/{role}", "", digest)


def _component(kind: ComponentKind, name: str, version: str, digest: str) -> Component:
    return Component(kind=kind, name=name, version=version, digest="sha256:" + digest)


def _files(model: ModelFiles) -> Mapping[Role, _Thing]:
    return {
        role: _Thing(str(path), known=model.sealed[role]) if role in model.sealed else _thing(path)
        for role, path in model.files.items()
    }


@dataclass(frozen=True, slots=True)
class _Thing:
    """A file, or a directory with all in it, that has one digest: `known`, or to be computed."""

    path: str
    entries: tuple[Entry, ...] | None = None
    known: str | None = None

    @property
    def paths(self) -> list[str]:
        """The files to hash for it."""
        if self.known is not None:
            return []
        return [self.path] if self.entries is None else content_paths(self.entries)

    def digest(self, digests: Mapping[str, str]) -> str:
        """Lower-case hex."""
        if self.known is not None:
            return self.known
        if self.entries is None:
            return digests[self.path]
        return tree_digest(self.entries, digests).removeprefix("sha256:")


def _thing(path: Path) -> _Thing:
    """What lies behind `path`, links followed: what is measured is what is opened."""
    resolved = path.resolve()
    if resolved.is_dir():
        return _Thing(str(resolved), tuple(list_tree(str(resolved))))
    if not resolved.is_file():
        raise BuildError(f"{path} is neither a file nor a directory", code="measure.file")
    return _Thing(str(resolved))
