"""``cloister image build`` and ``lock``: sealed machine images."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cloister.cli.about import about
from cloister.cli.image_provenance import check_signed, provenance_signer, require_signature
from cloister.cli.sealed_options import memory_of
from cloister.errors import BuildError, ConfigurationError

if TYPE_CHECKING:
    from cloister.engine.protocol import ModelInfo
    from cloister.image.application import GuestModel
    from cloister.image.configuration import ImageConfiguration, ModelSource
    from cloister.image.golden import Golden
    from cloister.image.lock import ImageLock
    from cloister.image.operations import Step
    from cloister.image.plan import Ingredients, Plan
    from cloister.strictjson import JsonObject
    from cloister.worker.settings import BrokerSettings

GUEST_LANDLOCK_ABI: Final = 6
"""Of the locked kernel: Linux 6.12 brought the sixth version."""

Configuration = Annotated[Path, typer.Argument(help="What the image is to be (TOML).")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The folder for the image's files.")]
Work = Annotated[
    Path | None,
    typer.Option(
        "--work",
        help="Packages and results of steps, kept so that a later build is quick.",
        envvar="CLOISTER_IMAGE_WORK",
    ),
]
Lock = Annotated[
    Path | None, typer.Option("--lock", help="Packages with digests, instead of Cloister's own.")
]
Mirror = Annotated[
    list[str] | None,
    typer.Option(
        "--mirror",
        help="Where Debian's packages come from: an address with {archive} and {path}, and maybe "
        "{resolved_at}. Repeatable; digests decide what is taken.",
    ),
]


def build(
    configuration: Configuration,
    out: Out,
    *,
    work: Work = None,
    lock: Lock = None,
    mirror: Mirror = None,
    golden: Annotated[
        list[Path] | None,
        typer.Option(
            "--golden",
            help="PCR 0 and 1 of firmware that you recorded (cloister image golden): also write"
            " reference-values.json. Repeatable.",
        ),
    ] = None,
    describe: Annotated[
        bool, typer.Option("--describe", help="Say what would be done, and leave.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Build anew from the packages alone, and compare with what is in --out."
        ),
    ] = False,
    sign_key: Annotated[
        Path | None,
        typer.Option("--sign-key", help="PEM: also write provenance.dsse.json, signed with it."),
    ] = None,
    signer: Annotated[
        Path | None,
        typer.Option(
            "--signer",
            help="With --check: the public key (PEM) that has to have signed provenance.dsse.json.",
        ),
    ] = None,
) -> None:
    """Build an image: disks, boot image, and what a verifier will see of them.

    Needs bubblewrap and user namespaces, not root. Equal inputs give equal bytes. Exit 0 built or
    equal, 1 a step failed or --check found a difference, 2 a setting has to change, 4 a package
    cannot be fetched.
    """
    from cloister.image.downloads import MIRRORS, Store
    from cloister.image.http import HttpFetcher
    from cloister.image.lock import read_lock
    from cloister.image.operations import Build
    from cloister.image.outputs import SIGNED_PROVENANCE
    from cloister.image.plan import Supplies, plan_image

    folder = work_directory() if work is None else work
    known = [entry for path in golden or () for entry in _golden(path)]
    if signer is not None and not check:
        raise ConfigurationError("--signer goes with --check", code="image.check")
    if sign_key is not None and check:
        raise ConfigurationError(
            "--sign-key goes with a build: --check writes nothing", code="image.check"
        )
    sign = None if sign_key is None else provenance_signer(sign_key)
    if signer is not None:
        require_signature(out / SIGNED_PROVENANCE, signer)
    ingredients = ingredients_of(configuration, read_lock(lock))
    supplies = Supplies(
        store=Store(folder / "store"),
        fetcher=HttpFetcher(),
        mirrors=tuple(mirror or MIRRORS),
        progress=lambda what: typer.echo(f"    fetching {what}", err=True),
    )
    plan = plan_image(ingredients, supplies)
    if describe:
        for step in Build(plan.operations, folder / "steps").describe():
            typer.echo(_told(step))
        return
    if check:
        _check(plan, ingredients, known, out, folder, signer=signer)
        return
    began = time.monotonic()
    _built(plan, ingredients, known, out, folder / "steps", sign=sign)
    typer.echo(f"{out} ({time.monotonic() - began:.0f} s)", err=True)


def _built(
    plan: Plan,
    ingredients: Ingredients,
    golden: Sequence[Golden],
    out: Path,
    steps: Path,
    *,
    sign: Callable[[bytes], bytes] | None = None,
) -> Mapping[str, str]:
    """Run a plan and write the image's files; SHA-256 by name."""
    from cloister.image.operations import Build
    from cloister.image.outputs import write_outputs

    running = Build(plan.operations, steps)
    running.run(
        lambda step: typer.echo(_told(step), err=True),
        waiting=lambda: typer.echo(f"Another build works in {steps}: waiting for it", err=True),
    )
    written = write_outputs(
        plan,
        running,
        ingredients,
        out,
        golden,
        sign=sign,
        waiting=lambda: typer.echo(f"Another build writes {out}: waiting for it", err=True),
        removed=lambda name: typer.echo(
            f"Removed {out / name}, which was about the image before", err=True
        ),
    )
    for name, digest in written.items():
        typer.echo(f"{digest}  {name}")
    return written


def _check(
    plan: Plan,
    ingredients: Ingredients,
    golden: Sequence[Golden],
    out: Path,
    work: Path,
    *,
    signer: Path | None,
) -> None:
    """Build in a fresh folder, and compare. BuildError names the first difference."""
    from cloister.image.compare import first_difference
    from cloister.image.operations import Build
    from cloister.image.outputs import PROVENANCE, SIGNED_PROVENANCE
    from cloister.image.toolbox import Toolbox

    if not out.is_dir():
        raise ConfigurationError(f"there is no {out} to compare with", code="image.check")
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="check-", dir=work) as fresh:
        again, steps = Path(fresh) / "image", Path(fresh) / "steps"
        names = _built(plan, ingredients, golden, again, steps)
        build = Build(plan.operations, steps)
        for _ in build.describe():
            pass  # which also finds where results lie
        tools = Toolbox(tree=build.path(plan.tools))
        difference = first_difference(again, out, names, tools)
        made = (again / PROVENANCE).read_bytes()
    if difference is not None:
        raise BuildError(
            f"{out} is not what these inputs give; the first difference is in {difference}",
            code="image.differs",
        )
    signed = out / SIGNED_PROVENANCE
    if signer is not None or signed.exists():
        check_signed(signed, made, signer)
    for line in beside(out, names, signer):
        typer.echo(line, err=True)
    typer.echo(f"{out}: equal, byte for byte", err=True)


def beside(out: Path, names: Collection[str], signer: Path | None) -> Iterator[str]:
    """What a check did not compare, of the files that a build writes.

    BuildError (``image.differs``) where one is there that these inputs do not give.
    """
    from cloister.image.measurements import REFERENCE_VALUES
    from cloister.image.outputs import FILES, SIGNED_PROVENANCE

    for name in FILES:
        if name in names or not (out / name).exists():
            continue
        if name == REFERENCE_VALUES:
            yield f"Not compared: {out / name}, which follows from golden values too (--golden)"
        elif name != SIGNED_PROVENANCE:
            raise BuildError(
                f"{out} is not what these inputs give, which is an image without {name}",
                code="image.differs",
            )
        elif signer is None:
            yield f"Not checked: who signed {out / name} (--signer)"


def lock(
    output: Annotated[Path, typer.Option("--output", "-o", help="The lock file to write.")],
    *,
    requirements: Annotated[
        Path, typer.Option("--requirements", help="Python packages with digests.")
    ] = Path("requirements/image.txt"),
) -> None:
    """Ask Debian's archive and Python's index for current packages, and note their digests.

    Needs apt and Debian's archive keyring. A new lock makes another image.
    """
    from cloister.image.resolve import resolve

    if not requirements.is_file():
        raise ConfigurationError(f"there is no {requirements}", code="image.lock")
    found = resolve(requirements, now=datetime.now(UTC))
    output.write_text(found.dump(), encoding="utf-8")
    typer.echo(f"{output}: {len(found.debian)} Debian packages, {len(found.wheels)} of Python")


def _golden(path: Path) -> tuple[Golden, ...]:
    from cloister.image.golden import MAX_BYTES, load_golden

    try:
        with path.open("rb") as file, about(path):
            return load_golden(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror or 'unknown reason'}", code="image.golden"
        ) from None


def work_directory() -> Path:
    """Where steps and packages are kept: ``$XDG_CACHE_HOME/cloister/image``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cloister" / "image"


def ingredients_of(path: Path, lock: ImageLock) -> Ingredients:
    """Read a configuration and hash the files that it names."""
    from cloister.image.application import effective_configuration
    from cloister.image.configuration import read_configuration
    from cloister.image.plan import Ingredients
    from cloister.image.python_tree import cloister_source

    configuration = read_configuration(path)
    models = [_resolved(configuration, source) for source in configuration.models]
    _check_keys(configuration, models)
    guest = [_guest_model(model) for model in models]
    effective = effective_configuration(
        configuration,
        worker=_worker_configuration(configuration, models, lock),
        models=[model for model, _ in guest],
    )
    return Ingredients(
        configuration=configuration,
        effective=effective,
        lock=lock,
        models=guest,
        source=cloister_source(),
        broker_kit=_broker_kit(configuration),
    )


def _resolved(configuration: ImageConfiguration, source: ModelSource) -> ModelInfo:
    from cloister.cli.sealed_options import names_sealed, sealed_model
    from cloister.engine.models import resolve_model
    from cloister.weights.header import Kind

    reference = source.file if source.file == "demo" else str(configuration.path(source.file))
    if names_sealed(reference):
        return sealed_model(reference, Kind.GGUF, sha256=source.sha256, name=source.name)
    return resolve_model(reference, sha256=source.sha256, name=source.name)


def _check_keys(configuration: ImageConfiguration, models: Sequence[ModelInfo]) -> None:
    """ConfigurationError where sealed weights have no broker: an image holds no key."""
    sealed = [model.name for model in models if model.sealed is not None]
    if sealed and configuration.broker is None:
        raise ConfigurationError(
            f"the weights of {sealed[0]} lie sealed: say in [broker] which broker has their key",
            code="image.broker",
        )


def _guest_model(model: ModelInfo) -> tuple[GuestModel, Path]:
    from cloister.image.application import GuestModel

    file = next(iter(model.files.values()))
    ending = "gguf" if model.sealed is None else "sealed"
    guest = GuestModel(
        name=model.name,
        file=f"{model.name}.{ending}",
        sha256=file.sha256,
        sealed=model.sealed,
        memory=memory_of([model]),
    )
    return guest, file.path


def _broker_settings(configuration: ImageConfiguration) -> BrokerSettings | None:
    """What the worker is measured with; ConfigurationError where the kit cannot be used."""
    from cloister.worker.releases import broker_settings

    broker = configuration.broker
    if broker is None:
        return None
    kit = None if broker.kit is None else configuration.path(broker.kit)
    return broker_settings(broker.identity, kit, development=broker.development)


def _broker_kit(configuration: ImageConfiguration) -> Mapping[str, str]:
    """The kit's files for the application disk; those that a worker reads, and no others."""
    from cloister.worker.releases import POLICY, REFERENCE_VALUES, ROOTS

    broker = configuration.broker
    if broker is None or broker.kit is None:
        return {}
    kit = configuration.path(broker.kit)
    try:
        return {
            name: (kit / name).read_text(encoding="utf-8")
            for name in (POLICY, REFERENCE_VALUES, ROOTS)
            if name != ROOTS or (kit / name).exists()
        }
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"the broker's kit {kit} cannot be read ({type(error).__name__})", code="image.broker"
        ) from None


def _worker_configuration(
    configuration: ImageConfiguration, models: list[ModelInfo], lock: ImageLock
) -> JsonObject:
    """The worker's own effective configuration, as `cloister measure` would write it.

    And whom the guest may call, which the rules of an image hold it to.
    """
    from cloister.cli.measure import EngineOptions, effective_for
    from cloister.cli.process_options import ProcessOptions
    from cloister.image.application import ways_out

    chosen = configuration.separation
    options = EngineOptions(
        context=configuration.engine.context,
        parallel=configuration.engine.parallel,
        landlock_abi=GUEST_LANDLOCK_ABI,
        compat=",".join(configuration.compat),
        broker=_broker_settings(configuration),
        processes=ProcessOptions(
            separation=chosen.mode,
            max_processes=chosen.max_processes,
            recycle_after=chosen.recycle_after,
            recycle_idle=chosen.recycle_idle,
            recycle_age=chosen.recycle_age,
            recycle_each=chosen.recycle_each,
            warm=chosen.warm,
        ),
    )
    effective = effective_for(models, options)
    _check_engine(effective, lock)
    return {**effective, **ways_out(configuration)}


def _check_engine(effective: JsonObject, lock: ImageLock) -> None:
    """The configuration names this installation's engine; the image holds the lock's."""
    from cloister.cli.measure import libraries_of

    locked = {wheel.name: wheel.version for wheel in lock.wheels}
    for library in libraries_of(effective):
        name = str(library.get("name"))
        if locked.get(name) != library.get("version"):
            raise ConfigurationError(
                f"this installation has {name} {library.get('version')}, the lock "
                f"{locked.get(name, 'none')}: install the locked packages "
                "(scripts/setup python), or resolve anew with `cloister image lock`",
                code="image.engine",
            )


def _told(step: Step) -> str:
    state = "stands" if step.done else "to do"
    key = "?" if step.key is None else step.key[:12]
    return f"{state}  {step.operation.name:<17} {key:<12}  {step.operation.title}"
