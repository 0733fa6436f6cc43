"""``cloister image``: machine images, and what a platform will measure of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli import image_build
from cloister.cli.about import about
from cloister.cli.image_boot import boot
from cloister.cli.image_measure import corim, golden, measure, sgx_manifest
from cloister.cli.image_secure_boot import enrol, sign
from cloister.cli.image_start import start
from cloister.cli.image_start_disk import start_disk
from cloister.errors import AuthenticationError, ConfigurationError
from cloister.strictjson import JsonObject

if TYPE_CHECKING:
    from cloister.image.eif import Eif, EifMeasurements
    from cloister.image.eif_write import Signer

image = typer.Typer(no_args_is_help=True)
eif = typer.Typer(no_args_is_help=True)
image.command("build")(image_build.build)
image.command("lock")(image_build.lock)
image.add_typer(eif, name="eif", help="Enclave images for AWS Nitro (EIF version 4).")


image.command()(measure)
image.command()(golden)
image.command()(boot)
image.command()(start)
image.command("start-disk")(start_disk)
image.command()(corim)
image.command("sgx-manifest")(sgx_manifest)
image.command()(sign)
image.command()(enrol)


@eif.command()
def build(
    kernel: Annotated[Path, typer.Option("--kernel", help="A bzImage (x86-64) or Image (arm64).")],
    ramdisk: Annotated[
        list[Path],
        typer.Option("--ramdisk", help="The first boots; those after it are PCR2. Repeatable."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The image to write.")],
    *,
    name: Annotated[str, typer.Option("--name", help="Of the image; not measured.")] = "cloister",
    version: Annotated[str, typer.Option("--version", help="Of the image; not measured.")] = "1.0",
    cmdline: Annotated[
        str, typer.Option("--cmdline", help="The kernel's command line.")
    ] = "reboot=k panic=30 pci=off nomodules console=ttyS0 random.trust_cpu=on",
    arm64: Annotated[bool, typer.Option("--arm64", help="For Graviton instances.")] = False,
    signing_certificate: Annotated[
        Path | None, typer.Option("--signing-certificate", help="PEM; it decides PCR8.")
    ] = None,
    private_key: Annotated[
        Path | None, typer.Option("--private-key", help="PEM, the certificate's key.")
    ] = None,
    built_at: Annotated[
        int, typer.Option("--built-at", min=0, help="Unix time for the metadata, as it is.")
    ] = 0,
) -> None:
    """Write an image and print the registers of an enclave that boots it.

    Equal inputs give equal bytes, signature included. Exit 0 written, 1 a part is unusable.
    """
    from cloister.image.eif_image import measurements_of
    from cloister.image.eif_write import EifParts, write_eif

    parts = EifParts(
        kernel=kernel,
        cmdline=cmdline,
        ramdisks=tuple(ramdisk),
        name=name,
        version=version,
        built_at=datetime.fromtimestamp(built_at, UTC),
        arm64=arm64,
        signer=_signer(signing_certificate, private_key),
    )
    written = write_eif(parts, output)
    typer.echo(json.dumps({"Measurements": _registers(measurements_of(written))}, indent=2))


@eif.command("from-image")
def from_image(
    directory: Annotated[Path, typer.Argument(help="An image's folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The enclave image to write.")],
    *,
    signing_certificate: Annotated[
        Path | None, typer.Option("--signing-certificate", help="PEM; it decides PCR8.")
    ] = None,
    private_key: Annotated[
        Path | None, typer.Option("--private-key", help="PEM, the certificate's key.")
    ] = None,
) -> None:
    """Sign the enclave image in a folder that `cloister image build` made.

    Exit 0 written, 1 a part is unusable, 2 the folder has none.
    """
    import tempfile

    from cloister.image.eif_image import measurements_of, signed_parts
    from cloister.image.eif_write import write_eif

    with tempfile.TemporaryDirectory(prefix="cloister-eif-") as work:
        signer = _signer(signing_certificate, private_key)
        written = write_eif(signed_parts(directory, Path(work), signer), output)
    typer.echo(json.dumps({"Measurements": _registers(measurements_of(written))}, indent=2))


@eif.command()
def describe(
    file: Annotated[Path, typer.Argument(help="An enclave image.")],
    *,
    reference_values: Annotated[
        Path | None,
        typer.Option(
            "--reference-values", help="Also write here what clients compare the enclave with."
        ),
    ] = None,
) -> None:
    """Print what an image holds, in the words of ``nitro-cli describe-eif``.

    Exit 0 for a whole image whose signature, if it has one, holds; 1 otherwise.
    """
    from cloister.image.eif import read_eif
    from cloister.image.eif_image import measurements_of

    try:
        with file.open("rb") as opened, about(file):
            found = read_eif(opened)
    except OSError as error:
        raise ConfigurationError(
            f"{file} cannot be read: {error.strerror}", code="image.eif_file"
        ) from None
    measurements = measurements_of(found)
    described, holds = _described(found, measurements)
    typer.echo(json.dumps(described, indent=2))  # in ASCII, which no terminal obeys
    if not holds:
        raise AuthenticationError(
            "the image's signature does not hold now: no enclave starts from it",
            code="image.signature",
        )
    if reference_values is not None:
        _write_references(found, measurements, reference_values)


def _registers(measurements: EifMeasurements) -> JsonObject:
    registers: JsonObject = {
        "HashAlgorithm": "Sha384 { ... }",  # word for word what scripts around nitro-cli see
        "PCR0": measurements.pcr0.hex(),
        "PCR1": measurements.pcr1.hex(),
        "PCR2": measurements.pcr2.hex(),
    }
    if measurements.pcr8 is not None:
        registers["PCR8"] = measurements.pcr8.hex()
    return registers


def _described(found: Eif, measurements: EifMeasurements) -> tuple[JsonObject, bool]:
    """The description, and whether the signature (if any) holds now."""
    from cloister.image.eif import VERSION
    from cloister.image.eif_signature import authenticate_image_signature, parse_image_signature

    described: JsonObject = {
        "EifVersion": VERSION,
        "Architecture": "arm64" if found.arm64 else "x86_64",
        "Measurements": _registers(measurements),
        "IsSigned": found.signature is not None,
        "CheckCRC": True,  # `read_eif` refuses any other
        "Cmdline": found.cmdline.decode("ascii", "backslashreplace"),
        "Sections": [{"Type": one.type.name.lower(), "Size": one.size} for one in found.sections],
        **_metadata(found.metadata),
    }
    if found.signature is None:
        return described, True
    signature = parse_image_signature(found.signature)
    described["SigningCertificate"] = {
        "Issuer": signature.certificate.issuer.rfc4514_string(),
        "NotBefore": signature.certificate.not_valid_before_utc.isoformat(),
        "NotAfter": signature.certificate.not_valid_after_utc.isoformat(),
    }
    try:
        authenticate_image_signature(signature, pcr0=measurements.pcr0, at=datetime.now(UTC))
    except AuthenticationError as error:
        described["SignatureCheck"] = False
        described["SignatureFault"] = str(error)
        return described, False
    described["SignatureCheck"] = True
    return described, True


def _metadata(data: bytes) -> JsonObject:
    """Name and version as the image says; no register covers them."""
    try:
        members = json.loads(data)
        return {
            "ImageName": str(members["ImageName"]),
            "ImageVersion": str(members["ImageVersion"]),
        }
    except (ValueError, KeyError, TypeError, RecursionError):
        return {"ImageName": None, "ImageVersion": None}


def _write_references(found: Eif, measurements: EifMeasurements, target: Path) -> None:
    from cloister.verifier.platform_references import PlatformReference
    from cloister.verifier.reference_values import ReferenceValues

    registers = {
        "pcr0": (measurements.pcr0.hex(),),
        "pcr1": (measurements.pcr1.hex(),),
        "pcr2": (measurements.pcr2.hex(),),
    }
    if measurements.pcr8 is not None:
        registers["pcr8"] = (measurements.pcr8.hex(),)
    described = _metadata(found.metadata)
    name = f"{described['ImageName'] or 'image'} {described['ImageVersion'] or ''}".strip()
    reference = PlatformReference(platform="nitro", name=name[:256], registers=registers)
    target.write_text(ReferenceValues.from_platforms(reference).dump_json(), encoding="utf-8")


def _signer(certificate: Path | None, key: Path | None) -> Signer | None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from cloister.image.eif_write import Signer

    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigurationError(
            "signing takes both --signing-certificate and --private-key", code="image.signing_key"
        )
    try:
        read = x509.load_pem_x509_certificate(certificate.read_bytes())
        private = load_pem_private_key(key.read_bytes(), password=None)
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename} cannot be read: {error.strerror}", code="image.signing_key"
        ) from None
    except (ValueError, TypeError):
        # What the library says may quote the key's file.
        raise ConfigurationError(
            "the signing certificate or key is not PEM without a password",
            code="image.signing_key",
        ) from None
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(
            "an image is signed with a key on P-256, P-384 or P-521", code="image.signing_key"
        )
    return Signer(certificate=read, key=private)
