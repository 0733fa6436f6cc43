"""Folders are roles, and imports point one way (docs/design.md section 3).

Read from the source text, so that imports inside functions and under `TYPE_CHECKING` count
too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import cloister

SOURCE = Path(cloister.__file__).parent

FOUNDATION_MODULES = ("errors", "model_digest", "strictjson")
"""Modules beside the folders, which any of them may import."""

FOUNDATION = ("evidence", "endorsements", "channel", "verifier", "manifest")
"""Each may import those before it. `channel` comes before `verifier`, which recomputes the
keyset's digest and the statement from it (docs/adr/0002-layers.md). `manifest` lists reference
values and narrows policies, so it comes after `verifier`, which learns from its callers what a
manifest says."""

EDGES: dict[str, set[str]] = {
    "streams": set(),
    "aws": set(),
    "attester": {*FOUNDATION},
    "engine": set(),
    "worker": {*FOUNDATION, "engine", "attester", "streams", "weights"},
    "client": {*FOUNDATION, "streams"},
    "broker": {*FOUNDATION, "attester", "aws", "streams", "worker"},
    "image": {"evidence", "attester", "verifier"},
    "weights": {"manifest"},
    "deploy": {"image"},
    "testing": {*FOUNDATION, "attester", "aws", "engine"},
}
"""What an actor may import besides `errors`. The command line may import everything."""

NARROW: dict[tuple[str, str], set[str]] = {
    ("broker", "worker"): {"hardening", "logs", "rate", "reports", "server", "settings"},
}
"""Edges along which only some modules are shared: the broker is served as a worker is, by the same
bounded HTTP server, log and rate limits, and shares nothing that a worker decides."""

CORE_DISTRIBUTIONS = {"anyio", "cbor2", "cryptography", "httpx2", "rfc8785"}
CORE_FOLDERS = ("evidence", "endorsements", "channel", "verifier", "manifest", "client")
OPTIONAL = {
    "client": {"httpx", "openai", "starlette", "uvicorn", "rich"},
}
"""Imported inside functions only, so that `import cloister.client` works without them."""


def allowed(folder: str) -> set[str]:
    if folder in FOUNDATION:
        return set(FOUNDATION[: FOUNDATION.index(folder)])
    return EDGES[folder]


def imports(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Yield line, top-level package and second part (or empty) of every import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module or ""]
            if node.module == "cloister":
                names = [f"cloister.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            yield node.lineno, top, rest.partition(".")[0]


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def folder_of(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0] if len(relative.parts) > 1 else ""


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    folder = folder_of(path)
    if folder in {"", "cli"}:
        return
    permitted = {folder, *FOUNDATION_MODULES, *allowed(folder)}
    found = {
        (line, second)
        for line, top, second in imports(ast.parse(path.read_text()))
        if top == "cloister" and second not in permitted
    }
    assert not found, f"{path.name} may import only {sorted(permitted)}"


def test_an_image_shares_only_reference_values_with_the_verifier() -> None:
    """What predicts measurements must not lean on what judges them."""
    shared = {"cloister.verifier.platform_references", "cloister.verifier.reference_values"}
    for path in sorted((SOURCE / "image").rglob("*.py")):
        modules = {
            node.module or ""
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom)
        }
        used = {module for module in modules if module.startswith("cloister.verifier")}
        assert used <= shared, path.name


@pytest.mark.parametrize("edge", NARROW, ids=" to ".join)
def test_narrow_edges_share_only_what_is_named(edge: tuple[str, str]) -> None:
    folder, other = edge
    for path in sorted((SOURCE / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                f"cloister.{other}"
            ):
                module = (node.module or "").removeprefix(f"cloister.{other}").lstrip(".")
                assert module in NARROW[edge], f"{path.name} imports {node.module}"


def test_every_folder_has_a_place() -> None:
    folders = {folder_of(path) for path in files()} - {"", "cli"}
    assert folders <= {*FOUNDATION, *EDGES}


def module_level(tree: ast.Module) -> ast.Module:
    """The module without function bodies and without `if TYPE_CHECKING` blocks."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.If | None:
            return None if ast.unparse(node.test).endswith("TYPE_CHECKING") else node

    stripped = Strip().visit(tree)
    assert isinstance(stripped, ast.Module)
    return stripped


@pytest.mark.parametrize("folder", CORE_FOLDERS)
def test_the_asking_side_needs_only_the_core_install(folder: str) -> None:
    import sys

    for path in sorted((SOURCE / folder).rglob("*.py")):
        optional_here = OPTIONAL.get(folder, set()) if path.stem in OPTIONAL_MODULES else set()
        for line, top, _ in imports(module_level(ast.parse(path.read_text()))):
            assert (
                top in sys.stdlib_module_names
                or top in CORE_DISTRIBUTIONS | {"cloister"}
                or top in optional_here
            ), f"{path.name}:{line} imports {top} when it is loaded"


OPTIONAL_MODULES = {"httpx_transport", "proxy", "chat", "openai_client"}
"""Modules that stand for an extra and say so when it is missing."""


OUTSIDE_WORLD = ("endorsements/fetch/", "endorsements/cache.py")
"""Fetching and keeping endorsements; what parses and checks them may not import these."""


EXCUSED = {"endorsements/certificates.py": {"threading"}}
"""A lock around the process's filters of warnings, which is no input or output."""


def touches_the_outside(path: Path) -> bool:
    return path.relative_to(SOURCE).as_posix().startswith(OUTSIDE_WORLD)


@pytest.mark.parametrize("folder", FOUNDATION)
def test_checking_and_sealing_do_no_input_or_output(folder: str) -> None:
    forbidden = {"socket", "asyncio", "ssl", "http", "urllib", "subprocess", "threading", "httpx2"}
    forbidden |= {"anyio", "fcntl", "tempfile"}
    for path in sorted((SOURCE / folder).rglob("*.py")):
        if touches_the_outside(path):
            continue
        used = {top for _, top, _ in imports(ast.parse(path.read_text()))}
        excused = EXCUSED.get(path.relative_to(SOURCE).as_posix(), set())
        assert not used & forbidden - excused, f"{path} does input or output"


def test_what_parses_and_checks_imports_nothing_that_fetches_or_keeps() -> None:
    for folder in FOUNDATION:
        for path in sorted((SOURCE / folder).rglob("*.py")):
            if touches_the_outside(path):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom):
                    names = {f"{node.module}.{alias.name}" for alias in node.names}
                elif isinstance(node, ast.Import):
                    names = {alias.name for alias in node.names}
                else:
                    continue
                outside = ("cloister.endorsements.fetch", "cloister.endorsements.cache")
                assert not any(name.startswith(outside) for name in names), path
