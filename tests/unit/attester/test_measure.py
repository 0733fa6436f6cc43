"""What counts as part of an installation, and that every change of it shows."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from cloister.attester.installation import inspect_installation
from cloister.attester.measure import Measured, ModelFiles, Subject, measure, reference_values
from cloister.errors import BuildError
from cloister.evidence.component import MODEL_REGISTER, Component, ComponentKind
from cloister.model_digest import Role, model_digest
from support.installation import install, install_editable, make_environment, site_packages


@pytest.fixture
def python(tmp_path: Path) -> Path:
    python = make_environment(tmp_path / "venv")
    install(python, "alpha", {"alpha/__init__.py": "a = 1\n", "alpha/data.txt": "d"})
    install(python, "Beta_Pkg", {"beta.py": "b = 1\n"}, version="2.0")
    return python


def measured(python: Path, tmp_path: Path, **configuration: str) -> Measured:
    model = tmp_path / "model.gguf"
    if not model.exists():
        model.write_bytes(b"weights")
    return measure(
        Subject(
            python=python,
            configuration={"debug": False, **configuration},
            models=(ModelFiles.of_file("tiny", model),),
            native={"engine.so": model},
        )
    )


def by_name(measured: Measured) -> dict[str, Component]:
    found = {component.name: component for component in measured.components}
    assert len(found) == len(measured.components)
    return found


def changed(before: Measured, after: Measured) -> set[str]:
    old, new = by_name(before), by_name(after)
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


def test_components_in_the_order_of_the_log(python: Path, tmp_path: Path) -> None:
    components = measured(python, tmp_path).components
    kinds = list(dict.fromkeys(component.kind for component in components))
    assert kinds == [
        ComponentKind.INTERPRETER,
        ComponentKind.STDLIB,
        ComponentKind.DISTRIBUTION,
        ComponentKind.NATIVE,
        ComponentKind.CONFIGURATION,
        ComponentKind.MODEL,
    ]
    packages = [
        (component.name, component.version)
        for component in components
        if component.kind is ComponentKind.DISTRIBUTION
    ]
    assert packages == [("alpha", "1.0"), ("beta-pkg", "2.0")]
    assert components[-1].digest == "sha256:" + hashlib.sha256(b"weights").hexdigest()


def test_interpreter_is_the_binary_behind_the_link(python: Path, tmp_path: Path) -> None:
    binary = by_name(measured(python, tmp_path))["python"]
    content = python.resolve().read_bytes()
    assert binary.digest == "sha256:" + hashlib.sha256(content).hexdigest()
    assert binary.version == ".".join(map(str, sys.version_info[:3]))


def test_changed_package_file_shows_in_its_component_alone(python: Path, tmp_path: Path) -> None:
    before = measured(python, tmp_path)
    assert changed(before, measured(python, tmp_path)) == set()
    (site_packages(python) / "alpha" / "__init__.py").write_text("a = 2\n")
    assert changed(before, measured(python, tmp_path)) == {"alpha"}


def test_entry_points_count(python: Path, tmp_path: Path) -> None:
    before = measured(python, tmp_path)
    info = site_packages(python) / "alpha-1.0.dist-info"
    (info / "entry_points.txt").write_text("[plugins]\nx = evil\n")
    assert changed(before, measured(python, tmp_path)) == {"alpha-1.0.dist-info/entry_points.txt"}


def test_packages_inside_a_package_count_for_it(python: Path, tmp_path: Path) -> None:
    inside = "delta/_vendor/gamma-1.0.dist-info/METADATA"
    install(python, "delta", {"delta/__init__.py": "", inside: "Name: gamma\nVersion: 1\n"})
    before = measured(python, tmp_path)
    (site_packages(python) / inside).write_text("Name: gamma\nVersion: 2\n")
    assert changed(before, measured(python, tmp_path)) == {"delta"}


def test_stray_files_show_as_unowned(python: Path, tmp_path: Path) -> None:
    before = measured(python, tmp_path)
    site = site_packages(python)
    (site / "sitecustomize.py").write_text("evil = 1")
    (site / "evil.pth").write_text("import evil")
    (site / "alpha" / "extra.py").write_text("")
    (site / "folder" / "deep").mkdir(parents=True)
    (site / "folder" / "deep" / "x.py").write_text("")
    (site / "folder" / "y.py").write_text("")
    after = measured(python, tmp_path)
    assert changed(before, after) == {"sitecustomize.py", "evil.pth", "alpha/extra.py", "folder/"}
    assert {by_name(after)[name].kind for name in changed(before, after)} == {ComponentKind.UNOWNED}


def test_file_added_to_the_record_counts_for_its_distribution(python: Path, tmp_path: Path) -> None:
    before = measured(python, tmp_path)
    site = site_packages(python)
    (site / "alpha" / "extra.py").write_text("")
    with (site / "alpha-1.0.dist-info" / "RECORD").open("a") as record:
        record.write('"alpha/extra.py",,\n')
    assert changed(before, measured(python, tmp_path)) == {"alpha"}


def test_same_packages_elsewhere_measure_the_same(python: Path, tmp_path: Path) -> None:
    other = make_environment(tmp_path / "somewhere" / "else")
    for name, files, version in (
        ("alpha", {"alpha/__init__.py": "a = 1\n", "alpha/data.txt": "d"}, "1.0"),
        ("Beta_Pkg", {"beta.py": "b = 1\n"}, "2.0"),
    ):
        install(other, name, files, version=version, installer="uv")
        info = site_packages(other) / f"{name}-{version}.dist-info"
        (info / "REQUESTED").write_text("")
        (info / "direct_url.json").write_text('{"url": "file:///x.whl", "archive_info": {}}')
        (info / "uv_cache.json").write_text('{"timestamp": 1}')
    assert changed(measured(python, tmp_path), measured(other, tmp_path)) == set()


def test_editable_sources_are_measured_where_they_lie(python: Path, tmp_path: Path) -> None:
    source = tmp_path / "src"
    (source / "gamma").mkdir(parents=True)
    (source / "gamma" / "__init__.py").write_text("g = 1\n")
    install_editable(python, "gamma", source)
    before = measured(python, tmp_path)
    assert by_name(before)["gamma"].kind is ComponentKind.DISTRIBUTION
    assert before.installation.import_path[-1] == str(source)
    (source / "gamma" / "__init__.py").write_text("g = 2\n")
    assert changed(before, measured(python, tmp_path)) == {"gamma"}
    (source / "other.py").write_text("")  # importable too, since the whole directory is
    assert changed(before, measured(python, tmp_path)) == {"gamma"}


def test_empty_source_directory_is_not_on_the_path(python: Path, tmp_path: Path) -> None:
    before = measured(python, tmp_path).installation.import_path
    (tmp_path / "empty" / "__pycache__").mkdir(parents=True)
    (tmp_path / "empty" / "__pycache__" / "gamma.pyc").write_text("")
    install_editable(python, "alpha", tmp_path / "empty")
    assert measured(python, tmp_path).installation.import_path == before


def test_path_file_of_an_ordinary_package_adds_nothing_to_the_path(
    python: Path, tmp_path: Path
) -> None:
    before = inspect_installation(python)
    (tmp_path / "unmeasured").mkdir()
    install(python, "delta", {"delta.pth": f"{tmp_path / 'unmeasured'}\n"})
    assert inspect_installation(python).import_path == before.import_path


def test_configuration_and_model_show(python: Path, tmp_path: Path) -> None:
    before = measured(python, tmp_path)
    assert changed(before, measured(python, tmp_path, isolation="none")) == {"worker"}
    (tmp_path / "model.gguf").write_bytes(b"others")
    assert changed(before, measured(python, tmp_path)) == {"tiny", "engine.so"}


def test_each_model_and_each_of_its_files_is_measured(python: Path, tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("weights", "adapter")}
    for name, path in paths.items():
        path.write_text(name)
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in paths}
    files = {Role.MODEL: paths["weights"], Role.ADAPTER: paths["adapter"]}
    models = (
        ModelFiles.of_file("plain", paths["weights"]),
        ModelFiles(name="adapted", files=files),
    )
    found = measure(Subject(python=python, configuration={}, models=models)).components
    named = [
        (one.kind, one.name, one.digest.removeprefix("sha256:"))
        for one in found
        if one.register == MODEL_REGISTER
    ]
    both = model_digest({Role.MODEL: digests["weights"], Role.ADAPTER: digests["adapter"]})
    assert named == [
        (ComponentKind.MODEL, "plain", digests["weights"]),
        (ComponentKind.MODEL, "adapted", both),
        (ComponentKind.MODEL_FILE, "adapted/adapter", digests["adapter"]),
        (ComponentKind.MODEL_FILE, "adapted/model", digests["weights"]),
    ]
    for wrong in ((models[0], models[0]), (ModelFiles(name="x", files={}),)):
        with pytest.raises(BuildError):
            measure(Subject(python=python, configuration={}, models=wrong))


def test_reference_values_are_those_of_the_same_subject(python: Path, tmp_path: Path) -> None:
    found = measured(python, tmp_path)
    values = reference_values(
        Subject(
            python=python,
            configuration={"debug": False},
            models=(ModelFiles.of_file("tiny", tmp_path / "model.gguf"),),
            native={"engine.so": tmp_path / "model.gguf"},
        )
    )
    expected = {(c.kind, c.name, c.version, (c.digest,)) for c in found.components}
    assert {(c.kind, c.name, c.version, c.digests) for c in values.components} == expected


@pytest.mark.parametrize(
    "damage",
    ["borrowed", "not python", "no model", "twice", "no metadata"],
)
def test_what_cannot_be_measured_is_refused(python: Path, tmp_path: Path, damage: str) -> None:
    measured(python, tmp_path)
    subject = Subject(python=python, configuration={})
    match damage:
        case "borrowed":
            config = python.parent.parent / "pyvenv.cfg"
            config.write_text(config.read_text().replace("packages = false", "packages = true"))
        case "not python":
            subject = Subject(python=Path("/bin/true"), configuration={})
        case "no model":
            missing = ModelFiles.of_file("tiny", tmp_path / "missing")
            subject = Subject(python=python, configuration={}, models=(missing,))
        case "twice":
            install(python, "alpha", {}, version="1.1")
        case _:
            (site_packages(python) / "alpha-1.0.dist-info" / "METADATA").unlink()
    with pytest.raises(BuildError):
        measure(subject)
