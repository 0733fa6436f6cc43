"""``cloister image measure`` and ``golden``: what a machine will measure of an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.about import about
from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloister.image.golden import Golden
    from cloister.image.image_files import ImageFiles
    from cloister.image.secure_boot import SecureBoot
    from cloister.verifier.platform_references import PlatformReference

GOLDEN = "golden.json"
VCPU_TYPE = "EPYC-v4"
MAX_LOG = 4 * 1024 * 1024
MAX_FIRMWARE = 64 * 1024 * 1024
"""Bytes that are read of a file; what parses it says what is too long."""


def measure(
    directory: Annotated[Path, typer.Argument(help="An image's folder.")],
    *,
    golden: Annotated[
        list[Path] | None,
        typer.Option(
            "--golden",
            help="What you recorded of firmware; by default golden.json in the folder. Repeatable.",
        ),
    ] = None,
    secure_boot: Annotated[
        Path | None,
        typer.Option(
            "--secure-boot",
            help="The machine has Secure Boot on, with the keys in this folder and no others"
            " (pk.pem, kek.pem, db.pem).",
        ),
    ] = None,
    snp_firmware: Annotated[
        Path | None,
        typer.Option(
            "--snp-firmware",
            help="Also the launch digest of SEV-SNP guests with this OVMF (built for kernel"
            " hashes); the image's disks have to be pinned.",
        ),
    ] = None,
    vcpu_type: Annotated[
        str | None,
        typer.Option("--vcpu-type", help=f"QEMU's name, for SEV-SNP; by default {VCPU_TYPE}."),
    ] = None,
    vcpus: Annotated[
        list[int] | None,
        typer.Option(
            "--vcpus", help="How many processors, for SEV-SNP; by default one. Repeatable."
        ),
    ] = None,
    tdvf: Annotated[
        Path | None,
        typer.Option("--tdvf", help="Also TDX guests with this firmware; takes --ccel."),
    ] = None,
    ccel: Annotated[
        Path | None,
        typer.Option(
            "--ccel", help="The CCEL event log of a boot that you trust, for RTMR0 of TDX."
        ),
    ] = None,
    tdx_order: Annotated[
        str | None,
        typer.Option(
            "--tdx-order",
            help="How the hypervisor measures firmware, for TDX: page (the default) or section.",
        ),
    ] = None,
    eif: Annotated[
        Path | None, typer.Option("--eif", help="Also this enclave image, for AWS Nitro.")
    ] = None,
    sgx_signature: Annotated[
        Path | None,
        typer.Option("--sgx-signature", help="Also the enclave that gramine-sgx-sign signed."),
    ] = None,
    events: Annotated[
        bool, typer.Option("--events", help="Print each event and register instead.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write here instead of printing.")
    ] = None,
) -> None:
    """Print the reference values of an image: what clients compare a machine with.

    Nothing is booted. Exit 0 printed or written, 1 the image cannot be measured.
    """
    from cloister.image.image_files import read_image
    from cloister.image.measurements import bank_of, describe
    from cloister.image.pcrs import predict
    from cloister.image.references import machine_references
    from cloister.verifier.reference_values import ReferenceValues

    if snp_firmware is None and (vcpu_type is not None or vcpus):
        raise ConfigurationError(
            "--vcpu-type and --vcpus go with --snp-firmware", code="image.snp_options"
        )
    if (tdvf is None) != (ccel is None) or (tdvf is None and tdx_order is not None):
        raise ConfigurationError(
            "TDX takes both --tdvf and --ccel, and --tdx-order goes with them",
            code="image.tdx_order",
        )
    files = read_image(directory)
    state = _secure_boot(secure_boot)
    if events:
        prediction = predict(files.parts(state), bank=bank_of(files.platform))
        _write(json.dumps(describe(prediction), indent=2) + "\n", output)
        return
    references = list(machine_references(files, _golden(directory, golden), state=state))
    if snp_firmware is not None:
        references += _snp(files, snp_firmware, vcpu_type or VCPU_TYPE, vcpus or [1])
    if tdvf is not None and ccel is not None:
        references.append(_tdx(files, state, tdvf, ccel, tdx_order or "page"))
    if eif is not None:
        references.append(_nitro(files, eif))
    if sgx_signature is not None:
        from cloister.image.gramine import parse_sigstruct
        from cloister.image.references import sgx_reference

        with about(sgx_signature):
            signature = parse_sigstruct(_read(sgx_signature))
        references.append(sgx_reference(signature, files.name))
    if not references:
        raise ConfigurationError(
            f"no golden values of a machine for {files.platform} in this Secure Boot state: record"
            " some with 'cloister image golden', or see what is predicted with --events",
            code="image.no_golden",
        )
    _write(ReferenceValues.from_platforms(*references).dump_json(), output)


def golden(
    log: Annotated[
        Path,
        typer.Argument(
            help="A boot's event log, such as binary_bios_measurements of the kernel, or a report"
            " of a worker in a cloud (GET /v1/aci/attestation?nonce=…)."
        ),
    ],
    *,
    firmware: Annotated[str, typer.Option("--firmware", help="Its name and version.")],
    machine: Annotated[
        str, typer.Option("--machine", help="What else decides: machine type, memory, processors.")
    ],
    code: Annotated[
        Path | None,
        typer.Option(
            "--code",
            help="OVMF's code (OVMF_CODE_4M.fd): refuse a boot of another firmware, as far as the"
            " file decides PCR 0.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write here, beside what is there; otherwise print."),
    ] = None,
) -> None:
    """Record PCR 0 and 1 of a boot that you trust, for reference values.

    Exit 0 printed or written, 1 the log cannot be used.
    """
    from cloister.image.golden import (
        check_firmware,
        dump_golden,
        golden_from_log,
        golden_from_report,
    )

    data = _read(log)
    reads = golden_from_report if data[:1] == b"{" else golden_from_log
    with about(log):
        entry = reads(data, firmware=firmware, machine=machine)
    if code is not None and reads is golden_from_report:
        raise ConfigurationError(
            "--code is compared with a boot's event log, not with a report", code="image.golden"
        )
    if code is not None:
        recorded = sum(len(one.data) for one in check_firmware(data, _read(code, MAX_FIRMWARE)))
        typer.echo(
            f"{log} is of a boot of {code}, but for {recorded} bytes that change themselves when"
            " the machine starts: these are taken as they were.",
            err=True,
        )
    before = [] if output is None or not output.exists() else _load(output)
    _write(dump_golden([*before, entry]), output)


def _secure_boot(keys: Path | None) -> SecureBoot:
    from cloister.image.secure_boot import SECURE_BOOT_OFF

    if keys is None:
        return SECURE_BOOT_OFF
    from cloister.image.secure_boot_keys import load_keys

    return load_keys(keys).state()


def _snp(
    files: ImageFiles, firmware: Path, vcpu_type: str, counts: Sequence[int]
) -> list[PlatformReference]:
    from cloister.image.direct_boot import direct_boot
    from cloister.image.references import snp_reference
    from cloister.image.snp_launch import SnpMachine, launch_digest

    boot = direct_boot(files.kernel)
    machines = [SnpMachine(firmware=firmware, vcpus=count, vcpu_type=vcpu_type) for count in counts]
    return [
        snp_reference(launch_digest(machine, boot), files.name, on=machine.name)
        for machine in machines
    ]


def _nitro(files: ImageFiles, image: Path) -> PlatformReference:
    from cloister.image.eif import read_eif
    from cloister.image.eif_signature import parse_image_signature
    from cloister.image.references import nitro_reference

    try:
        with image.open("rb") as opened, about(image):
            found = read_eif(opened)
    except OSError as error:
        raise ConfigurationError(
            f"{image} cannot be read: {error.strerror or 'unknown reason'}", code="image.eif_file"
        ) from None
    signature = None if found.signature is None else parse_image_signature(found.signature)
    signer = None if signature is None else signature.certificate_der
    return nitro_reference(found.content.measurements(signer), files.name)


def _tdx(
    files: ImageFiles, state: SecureBoot, firmware: Path, log: Path, order: str
) -> PlatformReference:
    from cloister.image.direct_boot import direct_boot
    from cloister.image.references import tdx_reference
    from cloister.image.rtmrs import predicted_rtmrs, recorded_rtmr0
    from cloister.image.tdx_launch import Order, mrtd

    try:
        adding = Order(order)
    except ValueError:
        raise ConfigurationError(
            f"--tdx-order is one of {', '.join(Order)}", code="image.tdx_order"
        ) from None
    direct_boot(files.kernel)  # every disk has to be named, for no register holds one
    return tdx_reference(
        mrtd(_read(firmware, MAX_FIRMWARE), order=adding),
        recorded_rtmr0(_read(log)),
        predicted_rtmrs(files.parts(state)),
        files.name,
        firmware.name,
    )


def corim(
    values: Annotated[Path, typer.Argument(help="Reference values, as JSON or TOML.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The CoRIM to write.")],
) -> None:
    """Write reference values as CoRIM (CBOR, unsigned), for verifiers of other makes.

    Exit 0 written, 1 something in them has no place in a CoRIM.
    """
    from cloister.image.corim import encode_corim
    from cloister.verifier.reference_values import MAX_BYTES, load_json, load_toml

    load = load_toml if values.suffix == ".toml" else load_json
    read = _read(values, MAX_BYTES)
    with about(values):
        data = encode_corim(load(read))
    try:
        output.write_bytes(data)
    except OSError as error:
        raise _unwritable(output, error) from None


def sgx_manifest(
    output: Annotated[Path, typer.Option("--output", "-o", help="The template to write.")],
    *,
    folders: Annotated[
        list[str],
        typer.Option("--folder", help="What the enclave may read, and measures. Repeatable."),
    ],
    python: Annotated[
        str, typer.Option("--python", help="The interpreter that it runs.")
    ] = "/usr/bin/python3",
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="The interpreter's arguments, after --; by default those of serving."),
    ] = None,
) -> None:
    """Write a Gramine manifest template for a worker inside SGX. Unproven: none was run.

    Exit 0 written, 1 a path is not absolute.
    """
    from cloister.image.gramine import worker_manifest

    words = tuple(arguments or ("-I", "-B", "-m", "cloister.cli.main", "serve"))
    _write(worker_manifest(python=python, folders=tuple(folders), arguments=words), output)


def _golden(directory: Path, chosen: Sequence[Path] | None) -> list[Golden]:
    if chosen:
        return [entry for path in chosen for entry in _load(path)]
    inside = directory / GOLDEN
    return _load(inside) if inside.exists() else []


def _load(path: Path) -> list[Golden]:
    from cloister.image.golden import load_golden

    data = _read(path)
    with about(path):
        return list(load_golden(data))


def _read(path: Path, limit: int = MAX_LOG) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror or 'unknown reason'}", code="image.folder"
        ) from None


def _write(text: str, output: Path | None) -> None:
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _unwritable(output, error) from None


def _unwritable(output: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{output} cannot be written: {error.strerror or 'unknown reason'}", code="image.folder"
    )
