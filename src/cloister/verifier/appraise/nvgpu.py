"""Appraises an authenticated GPU or NVSwitch: its measurements against manifests, its mode.

Steps for each device; each makes claims unless there is nothing to decide them by:

1. ``nvgpu.driver_rim`` (GPUs) and ``nvgpu.vbios_rim``: among the manifests given is one for the
   very driver and VBIOS, and the very model, that the report names.
2. ``nvgpu.driver_rim_measurements``, ``nvgpu.vbios_rim_measurements``: every measurement that the
   manifest calls active is in the report, with one of the values that the manifest lists.
3. ``nvgpu.rims_apart``: the two manifests do not both speak for one measurement.
4. ``nvgpu.mode``: the GPU is in a confidential mode. Newer reports say so in a field; that the
   measurements are those of the manifests says it of older ones too.
5. ``nvgpu.debug``: neither debugging nor DevTools is on. No field of a report tells. Golden
   measurements exist for devices without either alone, for both are measured: so a device whose
   measurements are all golden has them off, and of any other nobody can tell.
6. ``denied``: no certificate that the policy denies.

A policy that accepts debugging or DevTools gets no claim of step 5, but what is measured still
has to be golden: NVIDIA publishes no values for those modes, so nothing else can be compared.

Then, for all devices together, `appraise_set`. Only compares: the public functions take what was
authenticated; `state_device` says the same of a device that was not, and affirms nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509

from cloister.endorsements.roots import fingerprints
from cloister.evidence.nvgpu import DISABLED, GpuMode, OpaqueField
from cloister.evidence.rim import Rim
from cloister.verifier.authenticate.nvgpu import NvDevice
from cloister.verifier.authenticate.nvidia_chain import Revocation
from cloister.verifier.authenticate.rim import ExaminedRim, record_rim, rim_claims
from cloister.verifier.authenticated import Authenticated
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import AppraisalPolicy, Unchecked
from cloister.verifier.result import Source

APART: Final = "nvgpu.rims_apart"
MODE: Final = "nvgpu.mode"
DEBUG: Final = "nvgpu.debug"
DENIED: Final = "denied"

ALL: Final = "nvgpu.all_devices"
DISTINCT: Final = "nvgpu.distinct"
ONE_NONCE: Final = "nvgpu.one_nonce"
REQUIRED: Final = "nvgpu.required"
TOPOLOGY: Final = "nvgpu.topology"

NVDEC0_INDEX: Final = 35
"""Measurement (counted as manifests do) of a video decoder that many GPUs have switched off;
those report what the manifest cannot foresee, and say so in a signed field."""

PDI_BYTES: Final = 8
MAX_NAMED: Final = 8
"""Measurements that an explanation names before it only counts them."""


class RimKind(enum.StrEnum):
    """What a manifest is about; the prefix of its claims."""

    DRIVER = "nvgpu.driver_rim"
    VBIOS = "nvgpu.vbios_rim"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rims:
    """All manifests given, each examined once."""

    driver: tuple[ExaminedRim, ...] = ()
    vbios: tuple[ExaminedRim, ...] = ()
    either: tuple[ExaminedRim, ...] = ()
    """Of which nobody said what they are for."""

    def of(self, kind: RimKind) -> tuple[ExaminedRim, ...]:
        """Those that were given as being of `kind`."""
        return self.driver if kind is RimKind.DRIVER else self.vbios


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRims:
    """Which manifests one device has to match."""

    kinds: tuple[RimKind, ...]
    """Of which there are any, or have to be."""
    whole: bool
    """Whether `kinds` cover everything that is measured."""
    absent: tuple[RimKind, ...] = ()
    """Of which there is none at all, for any device."""
    chosen: Mapping[RimKind, ExaminedRim] = field(default_factory=dict)


def choose_rims(
    device: NvDevice | None, rims: Rims, *, is_switch: bool, policy: AppraisalPolicy
) -> DeviceRims:
    """The manifests for one device; of those that fit, an authentic one before any other."""
    wanted = (RimKind.VBIOS,) if is_switch else (RimKind.DRIVER, RimKind.VBIOS)
    chosen = {
        kind: best
        for kind in wanted
        if (best := None if device is None else _best(kind, device, rims)) is not None
    }
    kinds = tuple(
        kind for kind in wanted if policy.require_endorsements or rims.of(kind) or kind in chosen
    )
    absent = tuple(kind for kind in kinds if kind not in chosen and not rims.of(kind))
    return DeviceRims(kinds=kinds, whole=kinds == wanted, absent=absent, chosen=chosen)


def _best(kind: RimKind, device: NvDevice, rims: Rims) -> ExaminedRim | None:
    """The manifest that fits, an authentic one before any other; else one that is malformed."""
    given = (*rims.of(kind), *rims.either)
    fitting = [rim for rim in given if _fits(kind, rim, device)]
    fitting.sort(key=lambda rim: rim.authenticated is None)
    malformed = [rim for rim in rims.of(kind) if rim.malformed is not None]
    return next(iter(fitting + malformed), None)


def claims(
    device: NvDevice | None,
    rims: DeviceRims,
    *,
    is_switch: bool,
    policy: AppraisalPolicy,
    revocation: Revocation,
) -> tuple[str, ...]:
    """Names of the claims that `appraise_device` makes, in order."""
    names: list[str] = []
    for kind in rims.kinds:
        # Where none fits, the first claim says so, and there is no other to speak of.
        found = kind in rims.chosen
        names += (
            (*rim_claims(kind.value, revocation), _measurements(kind)) if found else (kind.value,)
        )
    if len(rims.kinds) > 1:
        names.append(APART)
    mode = None if device is None else device.report.mode
    if policy.require_cc_gpu and not is_switch and (rims.whole or mode is not None):
        names.append(MODE)
    if rims.whole and not (policy.accept_debug and policy.accept_devtools):
        names.append(DEBUG)
    if not isinstance(policy.denied, Unchecked):
        names.append(DENIED)
    return tuple(names)


def appraise_device(
    authenticated: Authenticated[NvDevice],
    rims: DeviceRims,
    *,
    policy: AppraisalPolicy,
    revocation: Revocation,
    ledger: Ledger,
) -> None:
    """Add every claim of `claims` to `ledger`, a view on the device."""
    _appraise(authenticated.value, rims, policy, revocation, ledger, authentic=True)


def state_device(
    device: NvDevice,
    rims: DeviceRims,
    *,
    policy: AppraisalPolicy,
    revocation: Revocation,
    ledger: Ledger,
) -> None:
    """As `appraise_device`, for a device that is not authentic: refuses, but affirms nothing."""
    _appraise(device, rims, policy, revocation, ledger, authentic=False)


def mismatches(rim: Rim, device: NvDevice) -> tuple[int, ...]:
    """Indices, counted as manifests do, of active measurements that `device` does not show."""
    measured = device.measurements or {}
    wrong = []
    for golden in rim.active:
        if golden.index == NVDEC0_INDEX and device.report.nvdec0 == DISABLED:
            continue
        found = measured.get(golden.index + 1)
        if found is None or found.raw or found.value not in golden.alternatives:
            wrong.append(golden.index)
    return tuple(wrong)


def set_claims(devices: Sequence[NvDevice | None], policy: AppraisalPolicy) -> tuple[str, ...]:
    """Names of the claims that `appraise_set` makes, in order."""
    names = [ALL, DISTINCT, ONE_NONCE]
    if not isinstance(policy.required_gpus, Unchecked):
        names.append(REQUIRED)
    kinds = {device.is_switch for device in devices if device is not None}
    if len(kinds) > 1:
        names.append(TOPOLOGY)
    return tuple(names)


def appraise_set(
    authenticated: Sequence[Authenticated[NvDevice]],
    *,
    count: int,
    policy: AppraisalPolicy,
    names: Iterable[str],
    ledger: Ledger,
) -> None:
    """Judge all devices together; `count` of them were presented.

    Everything but `ALL` is decided over the authentic ones.
    """
    devices = [one.value for one in authenticated]
    _all_authentic(len(devices), count, ledger)
    if not devices:
        return
    keys = [key for device in devices for key in device.keys]
    ledger.check(
        DISTINCT,
        holds=len(keys) == len(set(keys)),
        affirmed="No two reports come from one device.",
        code="device_repeated",
        refused="Two reports come from one device.",
        source=Source.HARDWARE_PROVEN,
    )
    ledger.check(
        ONE_NONCE,
        holds=len({device.report.nonce for device in devices}) == 1,
        affirmed="All devices answered one and the same nonce.",
        code="nonce_mismatch",
        refused="The devices answered different nonces.",
        source=Source.HARDWARE_PROVEN,
    )
    if not isinstance(policy.required_gpus, Unchecked):
        _required(devices, policy.required_gpus, ledger)
    if TOPOLOGY in names:
        _topology(devices, ledger)


def _appraise(
    device: NvDevice,
    rims: DeviceRims,
    policy: AppraisalPolicy,
    revocation: Revocation,
    ledger: Ledger,
    *,
    authentic: bool,
) -> None:
    heard = ledger if authentic else ledger.stated()
    for kind in rims.kinds:
        if kind in rims.chosen:
            _rim(kind, device, rims.chosen[kind], revocation, ledger, authentic=authentic)
        else:
            _no_rim(kind, device, ledger, absent=kind in rims.absent)
    spoken = [examined.rim for examined in rims.chosen.values() if examined.rim is not None]
    if len(spoken) > 1:
        _apart(spoken, heard)
    made = claims(device, rims, is_switch=device.is_switch, policy=policy, revocation=revocation)
    golden = rims.whole and ledger.holds(*map(_measurements, rims.kinds))
    if MODE in made:
        _mode(device.report.mode, heard, golden=golden)
    if DEBUG in made and golden:
        heard.affirm(
            DEBUG,
            "Neither debugging nor DevTools is on, for both would be measured.",
            source=Source.HARDWARE_PROVEN,
            value="off",
        )
    if not isinstance(policy.denied, Unchecked):
        _denied(device, rims, policy.denied, heard)


def _fits(kind: RimKind, examined: ExaminedRim, device: NvDevice) -> bool:
    """Whether a manifest is for this model and the version that the report names."""
    rim, report = examined.rim, device.report
    if rim is None:
        return False
    version = report.driver_version if kind is RimKind.DRIVER else report.vbios_version
    edition = "SWITCH" if device.is_switch else "GPU"
    return (rim.product, rim.edition, rim.version.lower()) == (device.model, edition, version)


def _rim(
    kind: RimKind,
    device: NvDevice,
    examined: ExaminedRim,
    revocation: Revocation,
    ledger: Ledger,
    *,
    authentic: bool,
) -> None:
    """Steps 1 and 2, and the manifest's own authentication."""
    record_rim(kind.value, examined, revocation, ledger)
    if examined.rim is None:
        return
    heard = ledger if authentic and examined.authenticated is not None else ledger.stated()
    heard.affirm(kind.value, f"There is a manifest for version {examined.rim.version}.")
    if device.measurements is not None:
        _golden(_measurements(kind), mismatches(examined.rim, device), examined.rim, heard)


def _no_rim(kind: RimKind, device: NvDevice, ledger: Ledger, *, absent: bool) -> None:
    report = device.report
    what = "driver" if kind is RimKind.DRIVER else "VBIOS"
    version = report.driver_version if kind is RimKind.DRIVER else report.vbios_version
    if absent:
        ledger.refuse(
            kind.value,
            "endorsements_missing",
            f"There is no manifest for any {what}, and the policy requires one.",
            value="not_present",
        )
        return
    ledger.refuse(
        kind.value,
        "rim_mismatch",
        f"No manifest is for {what} {version or '(not named)'} on {device.model or 'this model'},"
        " which is what the device reports.",
    )


def _golden(name: str, wrong: tuple[int, ...], rim: Rim, ledger: Ledger) -> None:
    listed = ", ".join(map(str, wrong[:MAX_NAMED]))
    ledger.check(
        name,
        holds=not wrong,
        affirmed=f"All {len(rim.active)} measurements are as the manifest says.",
        code="measurement_mismatch",
        refused=f"{len(wrong)} measurements are not as the manifest says: {listed}"
        f"{', …' if len(wrong) > MAX_NAMED else ''}. Debugging and DevTools have this effect too.",
        source=Source.HARDWARE_PROVEN,
    )


def _apart(rims: Sequence[Rim], ledger: Ledger) -> None:
    """Step 3: a measurement that both speak for could be judged by the laxer one."""
    spoken = [{golden.index for golden in rim.active} for rim in rims]
    ledger.check(
        APART,
        holds=not set.intersection(*spoken),
        affirmed="No measurement is in both manifests.",
        code="rim_conflict",
        refused="Both manifests speak for one measurement.",
    )


def _mode(mode: GpuMode | None, ledger: Ledger, *, golden: bool) -> None:
    """Step 4. A mode that is not known does not even decode."""
    if mode is not None:
        ledger.affirm(
            MODE,
            "The GPU says that it is in a confidential mode.",
            source=Source.HARDWARE_PROVEN,
            value=mode.value,
        )
    elif golden:
        ledger.affirm(
            MODE,
            "The GPU's measurements are those of a GPU in confidential mode.",
            source=Source.HARDWARE_PROVEN,
            value="not_stated",
        )


def _denied(device: NvDevice, rims: DeviceRims, denied: tuple[str, ...], ledger: Ledger) -> None:
    """Step 6: the certificates of the device and of the signers of its manifests."""
    certificates: list[x509.Certificate] = []
    chains = [device.chain, *(examined.chain for examined in rims.chosen.values())]
    for chain in chains if denied else ():
        certificates += () if chain is None else chain.certificates
    found = [name for one in certificates for name in fingerprints(one).intersection(denied)]
    ledger.check(
        DENIED,
        holds=not found,
        affirmed="Nothing that your policy denies vouches for the device.",
        code="denied",
        refused=f"Your policy denies a certificate of the device's: {''.join(found[:1])}.",
    )


def _all_authentic(authentic: int, count: int, ledger: Ledger) -> None:
    if not count:
        ledger.refuse(ALL, "evidence_missing", "The evidence is of no device at all.")
        return
    ledger.check(
        ALL,
        holds=authentic == count,
        affirmed=f"All {count} devices are genuine.",
        code="device_refused",
        refused=f"Of {count} devices, {count - authentic} are not shown to be genuine.",
    )


def _required(devices: Sequence[NvDevice], required: int, ledger: Ledger) -> None:
    genuine = len({device.keys for device in devices if not device.is_switch})
    ledger.check(
        REQUIRED,
        holds=genuine >= required,
        affirmed=f"There are {genuine} genuine GPUs; your policy requires {required}.",
        code="gpus_missing",
        refused=f"There are {genuine} genuine GPUs only; your policy requires {required}.",
        source=Source.HARDWARE_PROVEN,
    )


def _topology(devices: Sequence[NvDevice], ledger: Ledger) -> None:
    """That GPUs are wired to the very switches that are presented, and to all of them.

    A switch writes its identity in the opposite order of bytes from the GPUs that see it.
    """
    switches = {
        device.report.spdm.opaque.get(OpaqueField.SWITCH_PDI, b"")[::-1]
        for device in devices
        if device.is_switch
    }
    seen = [_seen(device) for device in devices if not device.is_switch]
    ledger.check(
        TOPOLOGY,
        holds=bool(seen) and all(switches == one for one in seen),
        affirmed="The GPUs are wired to exactly the switches that are presented.",
        code="topology_mismatch",
        refused="The GPUs are wired to other switches than those that are presented.",
        source=Source.HARDWARE_PROVEN,
    )


def _seen(device: NvDevice) -> set[bytes]:
    """The switches that a GPU names, one for each link; links that are off name none."""
    listed = device.report.spdm.opaque.get(OpaqueField.SWITCH_PDI, b"")
    named = {listed[at : at + PDI_BYTES] for at in range(0, len(listed), PDI_BYTES)}
    return named - {bytes(PDI_BYTES), b"\xff" * PDI_BYTES}


def _measurements(kind: RimKind) -> str:
    return f"{kind.value}_measurements"
