"""What is done to make an image, in order: the operations of `cloister image build`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloister.errors import BuildError
from cloister.image import packages, python_tree, system_tree
from cloister.image.application import GuestModel, application_tree
from cloister.image.command_line import ENCLAVE, KERNEL, MEASURED, command_line
from cloister.image.configuration import ImageConfiguration
from cloister.image.disks import PACK_COMMANDS as DISK_COMMANDS
from cloister.image.disks import FileSystem, make_disk
from cloister.image.downloads import MIRRORS, Fetcher, Store, fetch_debian, fetch_wheels
from cloister.image.eif_image import ENCLAVE_IMAGE, EnclaveFiles, enclave_parts
from cloister.image.eif_write import write_eif
from cloister.image.esp import write_esp
from cloister.image.init_program import COMPILERS, Run, compile_command, compile_init
from cloister.image.initrd import build_initrd
from cloister.image.initrd_pack import COMMANDS as INITRD_COMMANDS
from cloister.image.initrd_pack import SOURCE as PACK_SOURCE
from cloister.image.initrd_pack import pack_initrd
from cloister.image.lock import ImageLock, Use
from cloister.image.modules import BESIDE, ENCLAVE_MODULES, GUEST_MODULES, select_modules
from cloister.image.operations import Made, Operation, outside
from cloister.image.toolbox import MOUNT_POINTS, Toolbox
from cloister.image.tree import FILE_MODE, Tree, contents_json, normalise
from cloister.image.uki import UkiParts, build_uki, os_release
from cloister.image.verity import read_footer
from cloister.strictjson import JsonObject, canonical

PLAN_VERSION: Final = 2
"""Raised whenever an operation's code changes what it writes for the same inputs."""

INIT_SOURCES: Final = Path(__file__).parent / "init"

Paths = Mapping[str, Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredients:
    """All that decides an image."""

    configuration: ImageConfiguration
    effective: JsonObject
    lock: ImageLock
    models: Sequence[tuple[GuestModel, Path]]
    """What goes on the model disk, and where it lies now."""
    broker_kit: Mapping[str, str] = field(default_factory=dict)
    """Files that say what the broker has to be, by name."""
    source: Path
    """Cloister's own sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Supplies:
    """Where packages come from. Nothing here decides a byte: all is compared with the lock."""

    store: Store
    fetcher: Fetcher
    mirrors: Sequence[str] = MIRRORS
    progress: Callable[[str], None] = lambda _: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Operations, and what of their results is the image."""

    operations: tuple[Operation, ...]
    artefacts: Mapping[str, Made]
    """File name → result."""
    tools: Made
    """The tree of the build's programs."""


def plan_image(ingredients: Ingredients, supplies: Supplies) -> Plan:
    """The plan of an image. Nothing is fetched or written here."""
    tools = _tools(ingredients, supplies)
    tree = _root_tree(ingredients, supplies)
    root = _root_disk(tree, tools)
    boot = _boot_tree(ingredients, supplies)
    init = _init(tools)
    if ingredients.configuration.is_enclave:
        enclave = _enclave(ingredients, boot=boot, init=init, root=root)
        return Plan(
            operations=(tools, tree, root, boot, init, enclave),
            artefacts={
                ENCLAVE_IMAGE: enclave.made(ENCLAVE_IMAGE),
                "root.img": root.made("root.img"),
                "contents.json": tree.made("contents.json"),
            },
            tools=tools.made("tree"),
        )
    application = _application_disk(ingredients, tools)
    model = _model_disk(ingredients, tools)
    disks = {"root": root.made("root.img")}
    pinned: Mapping[str, Made] = {}
    if ingredients.configuration.pins_disks:
        disks |= {
            "application": application.made("application.img"),
            "model": model.made("model.img"),
        }
        pinned = disks
    initrd = _initrd(ingredients, boot=boot, init=init, tools=tools, pinned=pinned)
    uki = _uki(ingredients, boot=boot, initrd=initrd, disks=disks)
    esp = _esp(uki, tools)
    return Plan(
        operations=(tools, tree, root, boot, init, application, model, initrd, uki, esp),
        artefacts={
            "uki.efi": uki.made("uki.efi"),
            "esp.img": esp.made("esp.img"),
            "root.img": root.made("root.img"),
            "application.img": application.made("application.img"),
            "model.img": model.made("model.img"),
            "contents.json": tree.made("contents.json"),
        },
        tools=tools.made("tree"),
    )


def _tools(ingredients: Ingredients, supplies: Supplies) -> Operation:
    def execute(_: Paths, target: Path) -> None:
        packages.tools_tree(_debian(ingredients, supplies, Use.TOOLS)).write(target / "tree")

    return Operation(
        name="tools",
        title="Unpack the build's own programs",
        parameters=_locked(ingredients, Use.TOOLS),
        writes=("tree",),
        execute=execute,
    )


def _root_tree(ingredients: Ingredients, supplies: Supplies) -> Operation:
    lock = ingredients.lock
    planned = source_digest(ingredients.source)

    def execute(_: Paths, target: Path) -> None:
        tree, libraries = system_tree.choose(_debian(ingredients, supplies, Use.ROOT))
        fetch_wheels(lock, supplies.store, progress=supplies.progress)
        python_tree.add_environment(tree, lock.python)
        for wheel in lock.wheels:
            python_tree.add_wheel(tree, supplies.store.path(wheel.sha256), wheel, lock.python)
        python_tree.add_cloister(tree, lock.python, ingredients.source)
        if source_digest(ingredients.source) != planned:
            raise BuildError(
                "Cloister's sources changed during the build: build again", code="image.source"
            )
        system_tree.furnish(tree)
        system_tree.close(tree, libraries)
        system_tree.refuse_forbidden(tree.items)
        _write_compiled(tree, target / "tree", lock.python)
        (target / "contents.json").write_text(
            json.dumps({"files": contents_json(tree)}, indent=1) + "\n"
        )

    return Operation(
        name="root-tree",
        title="Choose the root's files, with Python's packages and Cloister",
        parameters={
            **_locked(ingredients, Use.ROOT),
            "python": lock.python,
            "wheels": [wheel.sha256 for wheel in lock.wheels],
            "cloister": planned,
        },
        writes=("tree", "contents.json"),
        execute=execute,
    )


def _write_compiled(tree: Tree, target: Path, python: str) -> None:
    """Write the root and compile it; the mount points for that are gone afterwards."""
    extra = set(MOUNT_POINTS) - tree.directories - tree.items.keys()
    tree.directories |= extra
    tree.write(target)
    python_tree.compile_bytecode(target, python, (f"usr/lib/python{python}", python_tree.HOME))
    for name in extra:
        (target / name).rmdir()
    normalise(target)


def _packed(file_system: FileSystem) -> JsonObject:
    return {"plan": PLAN_VERSION, "command": list(DISK_COMMANDS[file_system])}


def _root_disk(tree: Operation, tools: Operation) -> Operation:
    def execute(reads: Paths, target: Path) -> None:
        make_disk(
            reads["tree"],
            target / "root.img",
            kind="root",
            file_system=FileSystem.SQUASHFS,
            tools=Toolbox(tree=reads["tools"]),
        )

    return Operation(
        name="root-disk",
        title="Pack and seal the root disk",
        reads={"tree": tree.made("tree"), "tools": tools.made("tree")},
        parameters=_packed(FileSystem.SQUASHFS),
        writes=("root.img",),
        execute=execute,
    )


def _boot_tree(ingredients: Ingredients, supplies: Supplies) -> Operation:
    def execute(_: Paths, target: Path) -> None:
        packages.boot_tree(_debian(ingredients, supplies, Use.BOOT)).write(target / "tree")

    return Operation(
        name="boot-tree",
        title="Unpack kernel, modules and the stub that starts them",
        parameters=_locked(ingredients, Use.BOOT),
        writes=("tree",),
        execute=execute,
    )


def _init(tools: Operation) -> Operation:
    def execute(reads: Paths, target: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="cloister-init-") as folder:
            program = compile_init(Path(folder), run=_in_folder(Toolbox(tree=reads["tools"])))
        (target / "init").write_bytes(program)

    return Operation(
        name="init",
        title="Compile the guest's init",
        reads={"tools": tools.made("tree"), "sources": outside(INIT_SOURCES)},
        parameters={"plan": PLAN_VERSION, "command": list(compile_command(COMPILERS[0]))},
        writes=("init",),
        execute=execute,
    )


def _initrd(
    ingredients: Ingredients,
    *,
    boot: Operation,
    init: Operation,
    tools: Operation,
    pinned: Mapping[str, Made],
) -> Operation:
    """Where disks are `pinned`, the init accepts no other command line than that which names them:
    firmware may take one from elsewhere, and measure it where the processor does not tell."""

    def execute(reads: Paths, target: Path) -> None:
        files = packages.BootFiles.find(reads["boot"])
        initrd = build_initrd(
            reads["init"].read_bytes(),
            select_modules(files.modules),
            command_line=_command_line(ingredients, reads, pinned) if pinned else None,
        )
        # Beside the build's programs: from a folder for temporary files none may be startable.
        with tempfile.TemporaryDirectory(prefix="pack-", dir=target) as folder:
            packed = pack_initrd(initrd, Path(folder), run=_in_folder(Toolbox(tree=reads["tools"])))
        (target / "initrd").write_bytes(packed)

    return Operation(
        name="initrd",
        title="Pack init and modules into the initial RAM disk",
        reads={
            "boot": boot.made("tree"),
            "init": init.made("init"),
            "tools": tools.made("tree"),
            "source": outside(PACK_SOURCE),
            **pinned,
        },
        parameters={
            "plan": PLAN_VERSION,
            "debug": bool(pinned) and ingredients.configuration.debug,
            "kernel": list(KERNEL) if pinned else [],
            "modules": list(GUEST_MODULES),
            "beside": {name: list(more) for name, more in BESIDE.items()},
            "commands": [list(command) for command in INITRD_COMMANDS],
        },
        writes=("initrd",),
        execute=execute,
    )


def _command_line(ingredients: Ingredients, reads: Paths, disks: Iterable[str]) -> str:
    named = {name: read_footer(reads[name]) for name in disks}
    return command_line(
        root=named["root"],
        application=named.get("application", MEASURED),
        model=named.get("model", MEASURED),
        debug=ingredients.configuration.debug,
    )


def _uki(
    ingredients: Ingredients, *, boot: Operation, initrd: Operation, disks: Mapping[str, Made]
) -> Operation:
    """`disks` are those that the command line names, by their argument's name."""
    configuration = ingredients.configuration
    release = os_release(version=configuration.version, debug=configuration.debug)

    def execute(reads: Paths, target: Path) -> None:
        files = packages.BootFiles.find(reads["boot"])
        line = _command_line(ingredients, reads, disks)
        parts = UkiParts(
            kernel=files.kernel.read_bytes(),
            initrd=reads["initrd"].read_bytes(),
            command_line=line,
            os_release=release,
        )
        (target / "uki.efi").write_bytes(build_uki(files.stub.read_bytes(), parts))
        (target / "command-line.txt").write_text(line + "\n")

    return Operation(
        name="uki",
        title="Assemble the boot image: kernel, initrd, command line with the root's hash",
        reads={"boot": boot.made("tree"), "initrd": initrd.made("initrd"), **disks},
        parameters={
            "plan": PLAN_VERSION,
            "os_release": release,
            "debug": configuration.debug,
            "kernel": list(KERNEL),
        },
        writes=("uki.efi", "command-line.txt"),
        execute=execute,
    )


def _esp(uki: Operation, tools: Operation) -> Operation:
    def execute(reads: Paths, target: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="cloister-esp-") as folder:
            write_esp(
                reads["uki"].read_bytes(),
                target / "esp.img",
                folder=Path(folder),
                run=_in_folder(Toolbox(tree=reads["tools"])),
            )

    return Operation(
        name="esp",
        title="Write the disk that firmware starts from",
        reads={"uki": uki.made("uki.efi"), "tools": tools.made("tree")},
        parameters={"plan": PLAN_VERSION},
        writes=("esp.img",),
        execute=execute,
    )


def _in_folder(tools: Toolbox) -> Run:
    """Runs the build's programs in a folder that they may write."""

    def run(command: Sequence[str], folder: Path) -> None:
        tools.run(command, writes={"work": folder}, folder="work")

    return run


def _enclave(
    ingredients: Ingredients, *, boot: Operation, init: Operation, root: Operation
) -> Operation:
    configuration = ingredients.configuration
    contents = _contents(_application_tree(ingredients))
    models = {model.file: path for model, path in ingredients.models}

    def execute(reads: Paths, target: Path) -> None:
        boot_files = packages.BootFiles.find(reads["boot"])
        files = EnclaveFiles(
            kernel=boot_files.kernel,
            init=reads["init"].read_bytes(),
            modules=select_modules(boot_files.modules, ENCLAVE_MODULES, everywhere=True),
            root=reads["root"],
            application=contents,
            models={file: reads[file] for file in models},
            name=configuration.name,
            version=configuration.version,
            debug=configuration.debug,
        )
        with tempfile.TemporaryDirectory(prefix=".ramdisks-", dir=target) as work:
            write_eif(enclave_parts(files, Path(work)), target / ENCLAVE_IMAGE)

    return Operation(
        name="enclave",
        title="Assemble the enclave image: kernel, init, and ramdisks that hold the rest",
        reads={
            "boot": boot.made("tree"),
            "init": init.made("init"),
            "root": root.made("root.img"),
            **{file: outside(path) for file, path in models.items()},
        },
        parameters={
            "plan": PLAN_VERSION,
            "name": configuration.name,
            "version": configuration.version,
            "debug": configuration.debug,
            "modules": list(ENCLAVE_MODULES),
            "kernel": [*KERNEL, *ENCLAVE],
            "files": _digests(contents),
        },
        writes=(ENCLAVE_IMAGE,),
        execute=execute,
    )


def _application_tree(ingredients: Ingredients) -> Tree:
    return application_tree(
        ingredients.configuration,
        ingredients.effective,
        models=[model for model, _ in ingredients.models],
        broker_kit=ingredients.broker_kit,
    )


def _contents(tree: Tree) -> Mapping[str, bytes]:
    return {path: item.content for path, item in tree.items.items()}


def _digests(contents: Mapping[str, bytes]) -> JsonObject:
    return {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}


def _application_disk(ingredients: Ingredients, tools: Operation) -> Operation:
    tree = _application_tree(ingredients)
    contents = _contents(tree)

    def execute(reads: Paths, target: Path) -> None:
        tree.write(target / "tree")
        make_disk(
            target / "tree",
            target / "application.img",
            kind="application",
            file_system=FileSystem.SQUASHFS,
            tools=Toolbox(tree=reads["tools"]),
        )

    return Operation(
        name="application-disk",
        title="Write the application disk: configuration and network rules",
        reads={"tools": tools.made("tree")},
        parameters={**_packed(FileSystem.SQUASHFS), "files": _digests(contents)},
        writes=("application.img",),
        execute=execute,
    )


def _model_disk(ingredients: Ingredients, tools: Operation) -> Operation:
    models = {model.file: path for model, path in ingredients.models}

    def execute(reads: Paths, target: Path) -> None:
        tree = target / "tree"
        tree.mkdir()
        for file in models:
            _copy(reads[file], tree / file)
        normalise(tree)
        make_disk(
            tree,
            target / "model.img",
            kind="model",
            file_system=FileSystem.EROFS,
            tools=Toolbox(tree=reads["tools"]),
        )
        shutil.rmtree(tree)

    return Operation(
        name="model-disk",
        title="Write the model disk",
        reads={
            "tools": tools.made("tree"),
            **{file: outside(path) for file, path in models.items()},
        },
        parameters=_packed(FileSystem.EROFS),
        writes=("model.img",),
        execute=execute,
    )


def source_digest(source: Path) -> str:
    """Of Cloister's own sources, as far as they go into an image."""
    files = {
        relative: hashlib.sha256((source / relative).read_bytes()).hexdigest()
        for relative in python_tree.source_files(source)
    }
    return hashlib.sha256(canonical(files)).hexdigest()


def _debian(ingredients: Ingredients, supplies: Supplies, use: Use) -> Mapping[str, Path]:
    """The packages for one use by name, fetched where they are missing."""
    wanted = ingredients.lock.of(use)
    fetch_debian(
        wanted,
        supplies.store,
        resolved_at=ingredients.lock.resolved_at,
        fetcher=supplies.fetcher,
        mirrors=supplies.mirrors,
        progress=supplies.progress,
    )
    return {package.name: supplies.store.path(package.sha256) for package in wanted}


def _locked(ingredients: Ingredients, use: Use) -> JsonObject:
    packages_of_use = ingredients.lock.of(use)
    return {
        "plan": PLAN_VERSION,
        "debian": {package.name: package.sha256 for package in packages_of_use},
    }


def _copy(source: Path, target: Path) -> None:
    """Copy a file, sharing its blocks where the file system can."""
    with source.open("rb") as opened, target.open("wb") as written:
        size = os.fstat(opened.fileno()).st_size
        done = 0
        try:
            while done < size:
                done += os.copy_file_range(opened.fileno(), written.fileno(), size - done)
        except OSError:  # across file systems, on older kernels
            opened.seek(done)
            written.seek(done)
            shutil.copyfileobj(opened, written, 1 << 20)
    target.chmod(FILE_MODE)
