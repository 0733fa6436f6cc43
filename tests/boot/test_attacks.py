"""What takes a boot, or two, to attack: altered and exchanged disks, other machines, no network."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.cli.image_boot import predicted
from cloister.client.connect import Options
from cloister.client.manifest_memory import ProcessMemory
from cloister.errors import AuthenticationError, EngineError
from cloister.evidence.report import parse_attestation_report
from cloister.image.boot import BootedGuest, BootPlan
from cloister.image.configuration import REQUESTS_ADDRESS
from cloister.image.footer import BLOCK
from cloister.image.network import NetworkPolicy, compile_rules
from cloister.manifest import ImageEntry, ModelEntry
from cloister.testing.signed_manifests import make_manifest, sign_first, sign_update
from cloister.verifier import policy as policies
from cloister.verifier.appraise.worker import manifest_register
from support import image_changes as change
from support.guests import (
    LIMIT_S,
    GoodBoot,
    Operator,
    booted,
    changed,
    findings,
    free_port,
    judged,
)
from support.manifests import ALICE

pytestmark = [pytest.mark.boot, pytest.mark.tpm, pytest.mark.slow, pytest.mark.timeout(2400)]


@pytest.mark.parametrize("name", ["application.img", "model.img"])
def test_one_byte_of_a_disk(
    name: str, good: GoodBoot, operator: Operator, image: Path, tmp_path: Path
) -> None:
    assert good.answer
    altered = change.with_byte_changed(image, tmp_path / "altered", name, 1024 + 96)
    disks = tuple(altered / disk.name for disk in good.machine.disks)
    with (
        pytest.raises(EngineError) as caught,
        booted(changed(good.machine, {"disks": disks}), operator),
    ):
        pass
    assert caught.value.code == "guest.ended"


def test_a_footer_that_names_another_root(
    good: GoodBoot, operator: Operator, image: Path, tmp_path: Path
) -> None:
    """What is measured is what the footer says, so it has to be what dm-verity finds."""
    assert good.answer
    altered = change.copied(image, tmp_path / "altered")
    data = (image / "model.img").read_bytes()
    footer = change.footer_of(image / "model.img")
    other = dataclasses.replace(footer, root_hash="00" * 32)
    change.replace(altered, "model.img", data[:-BLOCK] + other.encode())
    disks = tuple(altered / disk.name for disk in good.machine.disks)
    with (
        pytest.raises(EngineError) as caught,
        booted(changed(good.machine, {"disks": disks}), operator),
    ):
        pass
    assert caught.value.code == "guest.ended"


def test_a_disk_exchanged_after_it_was_measured(
    good: GoodBoot, operator: Operator, image: Path, tmp_path: Path
) -> None:
    """The host writes over the model when the guest has measured and mounted it."""
    assert good.answer
    own = change.copied(image, tmp_path / "own")
    model = own / "model.img"
    content = model.read_bytes()
    change.replace(own, "model.img", content)
    footer = change.footer_of(model)
    disks = tuple(own / disk.name for disk in good.machine.disks)
    machine = changed(good.machine, {"disks": disks})
    plan = BootPlan(machine=machine, tpm=operator.tpm, ca=operator.ca, api_keys=operator.table)
    with BootedGuest(plan, progress=print) as guest:
        ends = time.monotonic() + LIMIT_S
        while "init: " not in (text := guest.console()) or "] model " not in text:
            assert time.monotonic() < ends
            assert guest.process.poll() is None
            time.sleep(0.02)
        with model.open("r+b") as file:
            file.seek(16 * BLOCK)
            file.write(os.urandom((footer.data_blocks - 16) * BLOCK))
        with pytest.raises(EngineError) as caught:
            guest.wait_ready(LIMIT_S)
    assert caught.value.code == "guest.ended"


def test_a_debug_image_is_refused_by_its_name(
    good: GoodBoot, operator: Operator, image: Path, tmp_path: Path
) -> None:
    """Even by a client whose reference values list it."""
    folder = change.with_parts(
        image,
        tmp_path / "debug",
        lambda parts: dataclasses.replace(
            parts, command_line=f"{parts.command_line} cloister.debug=1"
        ),
    )
    machine = changed(
        good.machine,
        {
            "esp": folder / "esp.img",
            "disks": tuple(folder / disk.name for disk in good.machine.disks),
        },
    )
    with booted(machine, operator) as guest:
        assert "THIS IS A DEBUG IMAGE" in guest.booted.console()
        values = predicted(folder, guest.booted.boot_log, machine)
        result = guest.result(values)
    (reference,) = values.platforms
    assert reference.image is not None
    assert reference.image.debug
    refused = findings(result)
    assert refused["image.debug"] == "image_debug"
    assert refused["software.registers"] == "affirmed"


def test_another_machines_quote(
    good: GoodBoot, operator: Operator, image: Path, tmp_path: Path
) -> None:
    """A second machine of the same image answers the client's challenge in the first one's name."""
    judged(good.report, good.nonce, good.values, operator.roots).require_affirming()
    stranger = Operator.make(tmp_path)
    with booted(changed(good.machine, {}), stranger) as other:
        nonce = secrets.token_bytes(32)
        theirs = other.report(nonce)
        judged(theirs, nonce, good.values, stranger.roots).require_affirming()
        under_ours = findings(judged(theirs, nonce, good.values, operator.roots))
    assert under_ours["ak.chain"] == "bad_chain"
    # Their evidence under our keyset, to a client that would accept either machine.
    mixed = dataclasses.replace(
        parse_attestation_report(good.report),
        evidence={
            **parse_attestation_report(theirs).evidence,
            "claims": parse_attestation_report(good.report).evidence["claims"],
        },
    ).encode()
    spliced = findings(judged(mixed, nonce, good.values, operator.roots.merged(stranger.roots)))
    assert "quote_nonce" in {spliced["quote.fresh"], spliced["keyset.bound"]} or (
        spliced["keyset.bound"] == "keyset_unbound"
    )


def test_back_to_an_older_manifest(good: GoodBoot, operator: Operator, image: Path) -> None:
    """A client that saw the second version refuses the first, which it would have taken before."""
    ((name, files),) = change.application_file(image, "worker.json")["models"].items()
    (reference,) = good.values.platforms
    assert reference.image is not None
    manifest = make_manifest(
        owners=[ALICE],
        models=[ModelEntry(name=name, format="gguf", sha256=files["model"]["sha256"])],
        images=[
            ImageEntry(
                name=reference.image.name,
                version=reference.image.version,
                debug=False,
                reference_values=good.values,
            )
        ],
    )
    first = sign_first(manifest, ALICE)
    second = sign_update(first, ALICE)
    memory = ProcessMemory()

    def trusting(seen: ProcessMemory) -> Options:
        return {
            "policy": policies.development(),
            "roots": operator.roots,
            "signer": ALICE.owner,
            "manifest_memory": seen,
        }

    machine = changed(good.machine, {})
    with booted(machine, operator, manifest=second.encode()) as guest:
        assert guest.registers()[13] == manifest_register("tpm", bytes.fromhex(second.digest))
        assert guest.ask_trusting("What?", **trusting(memory))
    with booted(changed(good.machine, {}), operator, manifest=first.encode()) as guest:
        assert guest.ask_trusting("What?", **trusting(ProcessMemory()))
        with pytest.raises(AuthenticationError) as caught:
            guest.ask_trusting("What?", **trusting(memory))
    assert caught.value.code == "manifest.rollback"


def _wait_for(port: int) -> None:
    ends = time.monotonic() + LIMIT_S
    while time.monotonic() < ends:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    pytest.fail("the forwarder does not listen")


@contextlib.contextmanager
def forwarded(socket_path: Path) -> Iterator[str]:
    """Requests on a port of this machine's, carried into the guest."""
    port = free_port()
    program = Path(sys.executable).with_name("cloister")
    process = subprocess.Popen(
        [program, "forward", f"tcp://127.0.0.1:{port}", f"virtio:{socket_path}"],
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def test_without_a_network_card(
    good: GoodBoot, operator: Operator, image: Path, tmp_path: Path
) -> None:
    """The same worker behind a virtio-serial port; the guest has no card, and no address."""
    settings = change.application_file(image, "worker.json")
    settings["operator"] = {"listen": REQUESTS_ADDRESS}
    folder = change.with_application(
        image,
        tmp_path / "portless",
        {
            "worker.json": change.as_json(settings),
            "nftables.conf": compile_rules(NetworkPolicy(card=False)).encode(),
            "interface.conf": b"",
        },
    )
    machine = dataclasses.replace(
        good.machine,
        disks=tuple(folder / disk.name for disk in good.machine.disks),
        port=None,
    )
    with booted(machine, operator) as guest:
        assert "network: none" in guest.booted.console()
        values = predicted(folder, guest.booted.boot_log, machine)
        with forwarded(guest.booted.sockets.requests) as url:
            reached = dataclasses.replace(guest, url=url)
            result = reached.result(values)
            answer = reached.ask(values, "What is Cloister?")
    result.require_affirming()
    assert answer.strip()
