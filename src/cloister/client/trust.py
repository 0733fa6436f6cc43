"""What one client believes: policy, reference values and pinned roots. The verifier to use."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cloister.errors import ConfigurationError
from cloister.verifier.result import AttestationResult

if TYPE_CHECKING:
    from cloister.client.attestation import Verifier
    from cloister.client.manifest_options import ManifestOptions
    from cloister.endorsements.roots import Roots
    from cloister.verifier.policy import AppraisalPolicy
    from cloister.verifier.reference_values import ReferenceValues

KIT_POLICY = "policy.toml"
KIT_REFERENCE_VALUES = "reference-values.json"
KIT_ROOTS = "enrolment-ca.pem"
_MAX_FILE = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Everything a report is checked against. None of it ever comes from the worker asked."""

    policy: AppraisalPolicy
    reference_values: ReferenceValues
    roots: Roots

    def appraise_report(self, report: bytes, *, nonce: bytes, at: datetime) -> AttestationResult:
        """Parse, authenticate and appraise `report`; see `cloister.verifier.report`."""
        from cloister.verifier.report import verify_report

        return verify_report(
            report,
            nonce=nonce,
            policy=self.policy,
            reference_values=self.reference_values,
            roots=self.roots,
            at=at,
        )


def make_trust(
    *,
    kit: str | Path | None = None,
    policy: AppraisalPolicy | None = None,
    reference_values: ReferenceValues | None = None,
    roots: Roots | None = None,
    development: bool = False,
) -> Trust:
    """Put a `Trust` together from what is given, and from the directory `kit` for the rest.

    A kit holds ``policy.toml``, ``reference-values.json`` and, for workers on a TPM,
    ``enrolment-ca.pem``. Without `roots`, the hardware vendors' own are pinned besides
    (`cloister.endorsements.pinned`). A kit may have been written by the machine that serves, so
    its policy alone never admits a development platform: that takes `development`, or a `policy`
    of the caller's own. Without any policy the strict one applies, or with `development` the
    development one.

    Raises:
        ConfigurationError: something is missing or cannot be read (codes ``trust.*`` and those
            of the files' formats).
    """
    directory = None if kit is None else Path(kit).expanduser()
    policy = _policy(directory, policy, development=development)
    if reference_values is None:
        reference_values = read_reference_values(_in(directory, KIT_REFERENCE_VALUES))
    if roots is None:
        roots = _roots(directory)
    return Trust(policy=policy, reference_values=reference_values, roots=roots)


def make_verifier(
    manifest: ManifestOptions | None,
    *,
    kit: str | Path | None = None,
    policy: AppraisalPolicy | None = None,
    reference_values: ReferenceValues | None = None,
    roots: Roots | None = None,
    development: bool = False,
) -> Verifier:
    """The verifier that trusts a manifest, if one is named; else a `Trust`, from the same options.

    Reference values come from the manifest then, so nobody may give others (a kit's count as
    such). Raises as `make_trust` and `ManifestOptions.trust` do.
    """
    if manifest is None or not manifest.given:
        return make_trust(
            kit=kit,
            policy=policy,
            reference_values=reference_values,
            roots=roots,
            development=development,
        )
    directory = None if kit is None else Path(kit).expanduser()
    in_kit = directory is not None and (directory / KIT_REFERENCE_VALUES).exists()
    if reference_values is not None or in_kit:
        raise ConfigurationError(
            "reference values come from the manifest: give no others, nor a kit that holds some"
            f" (its {KIT_ROOTS} can be pinned alone, with --root)",
            code="trust.contradiction",
        )
    return manifest.trust(
        policy=_policy(directory, policy, development=development),
        roots=_roots(directory) if roots is None else roots,
    )


def read_policy(path: Path) -> AppraisalPolicy:
    """Read a policy from a TOML or (``*.json``) JSON file. Raises ConfigurationError."""
    from cloister.verifier.policy import load_json, load_toml

    data = _read(path)
    return load_json(data) if path.suffix == ".json" else load_toml(data)


def read_reference_values(path: Path) -> ReferenceValues:
    """Read reference values from a JSON or (``*.toml``) TOML file. Raises ConfigurationError."""
    from cloister.verifier.reference_values import load_json, load_toml

    data = _read(path)
    return load_toml(data) if path.suffix == ".toml" else load_json(data)


def read_roots(path: Path) -> Roots:
    """Read pinned roots from a PEM file. Raises ConfigurationError."""
    from cloister.endorsements.roots import Roots

    return Roots.from_pem(_read(path))


def _policy(
    directory: Path | None, given: AppraisalPolicy | None, *, development: bool
) -> AppraisalPolicy:
    from cloister.verifier import policy as policies

    if given is not None:
        if development and not given.accept_development:
            raise ConfigurationError(
                "development platforms are asked for, and the given policy does not admit them",
                code="trust.contradiction",
            )
        return given
    if directory is None or not (directory / KIT_POLICY).is_file():
        return policies.development() if development else policies.strict()
    read = read_policy(directory / KIT_POLICY)
    # What a kit admits is its writer's wish; development has to be the caller's.
    return read if development else dataclasses.replace(read, accept_development=False)


def _roots(directory: Path | None) -> Roots:
    """The vendors' roots, and the enrolment CA's that a kit names."""
    from cloister.endorsements.pinned import pinned_roots

    if directory is None or not (directory / KIT_ROOTS).exists():
        return pinned_roots()
    return pinned_roots().merged(read_roots(directory / KIT_ROOTS))


def _in(directory: Path | None, name: str) -> Path:
    if directory is None:
        raise ConfigurationError(
            "reference values must be given, or a kit that holds them",
            code="trust.missing",
        )
    return directory / name


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror or 'unknown reason'}", code="trust.unreadable"
        ) from error
    if len(data) > _MAX_FILE:
        raise ConfigurationError(f"{path} is too large", code="trust.unreadable")
    return data
