"""``cloister image boot``: an image in an emulated machine whose firmware and TPM measure it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import signal
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cloister.cli.about import about
from cloister.cli.image_carry import broker_address, carried_broker
from cloister.cli.image_needs import (
    MODEL_DISK,
    carried_peers,
    fitting_memory,
    network_policy,
    own_port,
    require_tpm_boot,
)
from cloister.cli.image_start import Bundle, Timeout, read_api_keys, read_manifest
from cloister.cli.image_start_disk import read_start_disk
from cloister.cli.operation_options import State, state_directory
from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from types import FrameType

    from cloister.image.boot import BootedGuest, BootPlan
    from cloister.image.machine import Carried, Firmware, Machine
    from cloister.image.secure_boot import SecureBoot
    from cloister.strictjson import JsonObject
    from cloister.verifier.reference_values import ReferenceValues

DISKS: Final = ("root.img", "application.img", MODEL_DISK)
ESP: Final = "esp.img"
REFERENCE_VALUES: Final = "reference-values.json"
_LOCAL: Final = "tcp://127.0.0.1:8440"
PLATFORM: Final = "development (software TPM)"


def boot(
    directory: Annotated[Path, typer.Argument(help="An image's folder.")],
    *,
    memory: Annotated[
        int | None,
        typer.Option(
            "--memory",
            min=256,
            help="MiB; by default 512, or more where the model's disk is large.",
        ),
    ] = None,
    cpus: Annotated[
        int | None,
        typer.Option(
            "--cpus", min=1, help="Processors; by default 2, or one where they are emulated."
        ),
    ] = None,
    port: Annotated[
        int,
        typer.Option("--port", min=0, max=65535, help="On this machine's loopback; 0: a free one."),
    ] = 8440,
    guest_port: Annotated[
        int | None,
        typer.Option(
            "--guest-port",
            min=1,
            max=65535,
            help="That the image listens on; by default as its configuration says.",
        ),
    ] = None,
    no_network: Annotated[
        bool,
        typer.Option(
            "--no-network",
            help="No network card: requests go through a virtio-serial port, which the image has"
            " to listen on.",
        ),
    ] = False,
    code: Annotated[
        Path | None, typer.Option("--firmware", help="OVMF's code; by default the system's.")
    ] = None,
    variables: Annotated[
        Path | None,
        typer.Option("--variables", help="OVMF's variables, of which a copy is used."),
    ] = None,
    secure_boot: Annotated[
        bool,
        typer.Option("--secure-boot", help="Firmware that starts only images whose signer it has."),
    ] = False,
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys",
            help="With --secure-boot: the keys that the firmware has, a folder with pk.pem, kek.pem"
            " and db.pem.",
        ),
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            "--api-keys", help="Who is served (cloister keys); by default one key, shown once."
        ),
    ] = None,
    manifest: Bundle = None,
    start_disk: Annotated[
        Path | None,
        typer.Option(
            "--start-disk",
            help="API keys and manifest on a disk, as clouds attach one (cloister image"
            " start-disk), instead of --api-keys and --manifest.",
        ),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            metavar="NAME=HOST:PORT",
            help="Where a peer is that the image may call, such as its broker. Repeatable; nobody"
            " else can be called.",
        ),
    ] = None,
    boot_log: Annotated[
        Path | None,
        typer.Option(
            "--boot-log",
            help="Write the firmware's event log of this boot here (cloister image golden).",
        ),
    ] = None,
    reference_values: Annotated[
        Path | None,
        typer.Option(
            "--reference-values",
            help="For the kit; by default those in the folder, or else predicted here, with PCR 0"
            " and 1 of this very boot.",
        ),
    ] = None,
    kit: Annotated[
        Path | None, typer.Option("--kit", help="Where to write what a client pins.")
    ] = None,
    console: Annotated[
        bool, typer.Option("--console", help="Print what the guest writes when it is ready.")
    ] = False,
    ask: Annotated[
        str | None,
        typer.Option("--ask", help="Check the guest, ask this question, and end the guest."),
    ] = None,
    timeout: Timeout = 300.0,
    state: State = None,
) -> None:
    """Boot an image until it ends, or SIGTERM or Ctrl-C.

    Emulated, unless this machine's processor virtualises; with a software TPM, whose evidence
    proves nothing to anyone else.
    """
    from cloister.cli.asking import plain
    from cloister.image.boot import BootedGuest

    if start_disk is not None:
        if api_keys is not None or manifest is not None:
            raise ConfigurationError(
                "a start disk brings API keys and manifest: leave --api-keys and --manifest out",
                code="image.start_disk",
            )
        read_start_disk(start_disk)
    if ask is not None and (no_network or api_keys is not None or start_disk is not None):
        raise ConfigurationError(
            "--ask goes with a network and with the key that is made for this boot",
            code="image.ask",
        )
    require_tpm_boot(directory)
    own = state_directory() if state is None else state
    secured = chosen_state(keys, code, secure_boot=secure_boot)
    card = network_policy(directory).get("card") is not False
    if not card and ask is not None:
        raise ConfigurationError("--ask goes with a network", code="image.ask")
    broker = None if card else broker_address(peer or ())
    machine = _machine(
        directory,
        memory=fitting_memory(directory) if memory is None else memory,
        cpus=cpus,
        port=None if no_network or not card else port or _free_port(),
        guest_port=own_port(directory) if guest_port is None else guest_port,
        firmware=chosen_firmware(code, variables, own, secured),
        peers=carried_peers(directory, peer or ()) if card else (),
        start_disk=start_disk,
    )
    where = own / "vm-kit" if kit is None else kit
    known = _known_values(reference_values, directory)
    require_places(machine, where, boot_log)
    table, api_key = (None, None) if start_disk is not None else _api_keys(api_keys)
    plan = _plan(machine, own, table, manifest)
    how = "on this processor" if machine.accelerated else "emulated, which takes a while"
    shape = f"{machine.memory_mib} MiB, {machine.cpus} processors"
    typer.echo(f"Booting {directory} ({shape}, {how})", err=True)
    with (
        _stopping(),
        BootedGuest(plan, progress=lambda line: typer.echo(line, err=True)) as guest,
        carried_broker(guest, broker),
    ):
        # Imported while the guest starts, which takes longer.
        from cloister.cli.image_ask import ask_guest

        ready = guest.wait_ready(timeout)
        if boot_log is not None:
            boot_log.write_bytes(guest.boot_log)
        values = known
        if values is None:
            values = _own_values(directory, guest.boot_log, machine, secured)
        _write_kit(plan, values, where)
        if console:
            typer.echo(plain(guest.console()))
        _announce(ready, machine, guest, where, api_key)
        if ask is None:
            guest.wait()
        else:
            address = f"http://127.0.0.1:{machine.port}"
            answer = ask_guest(
                address,
                where,
                api_key,
                _models(ready)[0],
                ask,
                began=lambda: guest.note("words", "the first sealed words of the answer"),
            )
            guest.note("answer", "the first sealed answer, whole")
            typer.echo(answer)


def _machine(
    directory: Path,
    *,
    memory: int,
    cpus: int | None,
    port: int | None,
    guest_port: int,
    firmware: Firmware,
    peers: tuple[Carried, ...] = (),
    start_disk: Path | None = None,
) -> Machine:
    from cloister.image.machine import Machine, can_accelerate

    present = tuple(directory / name for name in DISKS if (directory / name).is_file())
    if not (directory / ESP).is_file() or not present:
        raise ConfigurationError(
            f"{directory} is no image's folder: it has no {ESP} or no {DISKS[0]}",
            code="image.folder",
        )
    accelerated = can_accelerate()
    return Machine(
        firmware=firmware,
        esp=directory / ESP,
        disks=present,
        memory_mib=memory,
        # Of two emulated ones, one may run code that Linux is changing, and panic.
        cpus=cpus or (2 if accelerated else 1),
        port=port,
        guest_port=guest_port,
        peers=peers,
        start_disk=None if start_disk is None else start_disk.expanduser(),
        accelerated=accelerated,
    )


def chosen_state(keys: Path | None, code: Path | None, *, secure_boot: bool) -> SecureBoot | None:
    """Secure Boot with the keys that were named, or off; None: with variables that say which.

    ConfigurationError (``image.machine``): nobody says whose keys the firmware has.
    """
    from cloister.image.secure_boot import SECURE_BOOT_OFF
    from cloister.image.secure_boot_keys import load_keys

    if (keys is not None and not secure_boot) or (secure_boot and keys is None and code is None):
        raise ConfigurationError(
            "--secure-boot takes --keys, or --firmware and --variables with keys in them; --keys"
            " goes with nothing else",
            code="image.machine",
        )
    if keys is not None:
        return load_keys(keys).state()
    return None if secure_boot else SECURE_BOOT_OFF


def chosen_firmware(
    code: Path | None, variables: Path | None, state: Path, secured: SecureBoot | None
) -> Firmware:
    """The firmware that was named, or the system's; with an operator's keys put in, below `state`.

    ConfigurationError (``image.machine``), UnsupportedError (``image.firmware_missing``).
    """
    from cloister.image.machine import Firmware, find_firmware

    on = secured is None or secured.enabled
    if (code is None) is not (variables is None):
        raise ConfigurationError(
            "a firmware is named by both --firmware and --variables", code="image.machine"
        )
    if code is None or variables is None:
        firmware = find_firmware(secure_boot=on)
    else:
        for path in (code, variables):
            if not path.is_file():
                raise ConfigurationError(f"{path} is no file", code="image.machine")
        firmware = Firmware(program=code, variables=variables, secure_boot=on)
    return firmware if secured is None or not on else _with_keys(firmware, secured, state)


def _with_keys(firmware: Firmware, secured: SecureBoot, state: Path) -> Firmware:
    from cloister.image.ovmf_variables import MAX_STORE_BYTES, enrol

    with firmware.variables.open("rb") as file:
        store = enrol(file.read(MAX_STORE_BYTES + 1), secured)
    # Named by its content, so that boots with other keys do not meet.
    path = state / f"variables-{hashlib.sha256(store).hexdigest()[:16]}.fd"
    state.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=state, delete=False) as whole:
        whole.write(store)
    Path(whole.name).replace(path)
    return dataclasses.replace(firmware, variables=path)


def _free_port() -> int:
    """A port that is free now; another program may be quicker, and QEMU then says so."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _api_keys(path: Path | None) -> tuple[bytes, str | None]:
    """The table for the guest; where none is named, one with a single key, and that key."""
    from cloister.worker.api_keys import ApiKeyFile

    if path is not None:
        return read_api_keys(path), None
    with tempfile.TemporaryDirectory(prefix="cloister-") as folder:
        file = Path(folder) / "api-keys.json"
        _, api_key = ApiKeyFile(file).add("image boot", at=int(datetime.now(UTC).timestamp()))
        return file.read_bytes(), api_key


def _plan(machine: Machine, state: Path, table: bytes | None, manifest: Path | None) -> BootPlan:
    from cloister.attester.enrolment import EnrolmentCa
    from cloister.attester.swtpm import manufacture
    from cloister.image.boot import BootPlan

    made = manufacture(state)
    ca = EnrolmentCa.open(state / "enrolment", manufacturers=(made.root,), at=datetime.now(UTC))
    bundle = None if manifest is None else read_manifest(manifest)
    return BootPlan(machine=machine, tpm=made, ca=ca, api_keys=table, manifest=bundle)


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """SIGTERM unwinds, as Ctrl-C does, so that nothing is left running."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _known_values(named: Path | None, directory: Path) -> ReferenceValues | None:
    """Those that were named, or that lie in the folder; None where there are none."""
    from cloister.client.trust import read_reference_values

    inside = directory / REFERENCE_VALUES
    if named is None and not inside.is_file():
        return None
    path = inside if named is None else named
    with about(path):
        return read_reference_values(path)


def require_places(machine: Machine, kit: Path, boot_log: Path | None) -> None:
    """Refuse now what could not be used when the guest is ready, a minute or more from here.

    ConfigurationError (``image.machine``).
    """
    import socket

    if machine.port is not None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", machine.port))
            except OSError as error:
                raise ConfigurationError(
                    f"port {machine.port} of this machine cannot be taken ({error.strerror}): name"
                    " another one, or 0 for a free one (--port)",
                    code="image.machine",
                ) from None
    nearest = next(path for path in (kit, *kit.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ConfigurationError(
            f"the kit cannot be written to {kit}: {nearest} is no folder that can be written",
            code="image.machine",
        )
    if boot_log is not None and (
        boot_log.is_dir()
        or not os.access(boot_log if boot_log.exists() else boot_log.parent, os.W_OK)
    ):
        raise ConfigurationError(
            f"the boot's log cannot be written to {boot_log}", code="image.machine"
        )


def _own_values(
    directory: Path, boot_log: bytes, machine: Machine, secured: SecureBoot | None
) -> ReferenceValues:
    typer.echo(
        "PCR 0 and 1 (firmware and machine) are taken from this boot, so nothing shows that they"
        " are genuine; all others are predicted from the image.",
        err=True,
    )
    return predicted(directory, boot_log, machine, secured)


def _write_kit(plan: BootPlan, values: ReferenceValues, kit: Path) -> None:
    from cloister.attester.kit import ClientKit
    from cloister.endorsements.roots import Roots
    from cloister.verifier.policy import development

    ClientKit(
        roots=Roots(enrolment_cas=(plan.ca.certificate,)),
        reference_values=values,
        policy=development(),
    ).write(kit)


def predicted(
    directory: Path, boot_log: bytes, machine: Machine, secured: SecureBoot | None = None
) -> ReferenceValues:
    """Reference values of an image, with the golden values of the boot that `boot_log` tells of.

    Without `secured`: for Secure Boot off. ConfigurationError (``image.no_golden``) where the boot
    was in another state.
    """
    from cloister.image.golden import golden_from_log
    from cloister.image.image_files import read_image
    from cloister.image.pcrs import predict
    from cloister.image.references import tpm_references
    from cloister.image.secure_boot import SECURE_BOOT_OFF
    from cloister.verifier.reference_values import ReferenceValues

    state = SECURE_BOOT_OFF if secured is None else secured
    files = read_image(directory)
    golden = golden_from_log(
        boot_log,
        firmware=machine.firmware.program.name,
        machine=f"QEMU q35, {machine.memory_mib} MiB, {machine.cpus} processors",
    )
    references = tpm_references(
        predict(files.parts(state)), [golden], files.name, secure_boot=state.enabled
    )
    if not references:
        raise ConfigurationError(
            "the firmware's log tells of another state of Secure Boot than was asked for: name the"
            " keys that the firmware has (--keys), or the reference values (--reference-values)",
            code="image.no_golden",
        )
    return ReferenceValues.from_platforms(*references)


def _models(ready: JsonObject) -> list[str]:
    listed = ready.get("models")
    return [str(name) for name in listed] if isinstance(listed, list) and listed else ["nothing"]


def _announce(
    ready: JsonObject, machine: Machine, guest: BootedGuest, kit: Path, api_key: str | None
) -> None:
    if machine.port is None:
        address = "http://127.0.0.1:8440"
        way = f"  no network; run: cloister forward {_LOCAL} virtio:{guest.sockets.requests}\n"
    else:
        address, way = f"http://127.0.0.1:{machine.port}", ""
    keyed = "" if api_key is None else f" --api-key {api_key}"
    typer.echo(
        f"Serving {', '.join(_models(ready))} at {address}\n"
        f"  platform   {PLATFORM}: proves nothing to anyone else\n"
        f"  pins       {kit}\n{way}"
        f"Check it:    cloister verify {address} --kit {kit} --development\n"
        f"Talk to it:  cloister chat {address} --kit {kit} --development{keyed}",
        err=True,
    )
