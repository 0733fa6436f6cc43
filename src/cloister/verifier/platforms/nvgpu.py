"""Verifies evidence of NVIDIA GPUs and NVSwitches: one claim ledger for each device.

Devices are ``gpu0``, ``gpu1``, … and ``nvswitch0``, …, in the order of the evidence; what concerns
all of them together is claimed of ``gpus``. Steps are those of
`cloister.verifier.authenticate.nvgpu`, `cloister.verifier.authenticate.rim` and
`cloister.verifier.appraise.nvgpu`.

A nonce is expected like any other field (``nonce``), of every device. For a worker's devices it
is `cloister.evidence.nvgpu.gpu_nonce` of its receipt key, and the worker's claims document names
`GpuEvidence.digest`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Final, TypeAlias

from cryptography import x509

from cloister.endorsements.certificates import parse_crl
from cloister.endorsements.roots import Roots, Vendor
from cloister.errors import MalformedError
from cloister.evidence.nvgpu import (
    MAX_DEVICES,
    GpuDevice,
    GpuMode,
    evidence_digest,
    parse_evidence_list,
)
from cloister.verifier.appraise.nvgpu import (
    ALL,
    Rims,
    appraise_device,
    appraise_set,
    choose_rims,
    claims,
    set_claims,
    state_device,
)
from cloister.verifier.authenticate.nvgpu import (
    CHAIN,
    PREFIX,
    Decoded,
    NvDevice,
    authenticate_certificates,
    authenticate_device,
    decode_device,
    device_claims,
)
from cloister.verifier.authenticate.nvidia_chain import Revocation, by_serial, chain_claims
from cloister.verifier.authenticate.rim import (
    ExaminedRim,
    RimSource,
    examine_rim,
    record_rim,
    rim_claims,
)
from cloister.verifier.chain import Chain, issued
from cloister.verifier.expected import Expected, check_names, compare
from cloister.verifier.ledger import Ledger
from cloister.verifier.outcome import Outcome
from cloister.verifier.platforms.nvgpu_facts import (
    Judged,
    device_facts,
    manifest_facts,
    stated_fwids,
)
from cloister.verifier.policy import AppraisalPolicy

ALL_DEVICES: Final = "gpus"
"""The device that claims about all devices are made of."""
RIM_DEVICE: Final = "rim"
RIM: Final = "rim"
CRLS: Final = "nvgpu.crls"

MAX_LISTS: Final = 1024
"""Revocation lists and OCSP answers: a handful for each device."""

FIELD_NAMES: Final = ("nonce", "fwid", "driver_version", "vbios_version")

NOT_ATTACHED: Final = (
    "A genuine GPU is not proven to be plugged into this CPU, or to serve this worker: it answered"
    " the nonce, and whoever runs the machine could have passed that on."
)
NOT_RECENT: Final = (
    "Whether firmware is recent is not shown: an older release passes with its own manifest,"
    " however vulnerable. Expect driver_version and vbios_version where it matters."
)
NOT_REVOKED: Final = (
    "Whether certificates of GPUs and of manifests' signers were revoked was not asked: lists were"
    " not given, and OCSP is online."
)
NO_MANIFEST: Final = (
    "The firmware of {device} was not compared with NVIDIA's golden measurements, for want of"
    " manifests: its debugging and DevTools modes leave no other trace."
)
NO_MODE: Final = (
    "Whether {device} is in confidential mode is not shown: reports of its version do not say, and"
    " without manifests its measurements do not either."
)
OPEN_LINKS: Final = "{device} is in Protected PCIe mode: traffic between GPUs is not encrypted."


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuEvidence:
    """Reports of one or more devices, with what vouches for them."""

    devices: tuple[GpuDevice, ...]
    driver_rims: tuple[RimSource, ...] = ()
    """Manifests in any order; which device needs which is found by version and model."""
    vbios_rims: tuple[RimSource, ...] = ()
    rims: tuple[RimSource, ...] = ()
    """Manifests of either kind, as they are stapled to a report."""
    crls: tuple[bytes, ...] = ()
    """Revocation lists."""
    ocsp: tuple[bytes, ...] = ()
    """OCSP responses in DER, about certificates of devices and of manifests' signers."""

    @classmethod
    def from_json(cls, data: bytes) -> GpuEvidence:
        """Read devices from a list in JSON (`parse_evidence_list`).

        Raises MalformedError, and nothing else.
        """
        return cls(devices=parse_evidence_list(data))

    @property
    def is_too_much(self) -> bool:
        """Whether there are more devices, manifests or lists than any machine has."""
        rims = len(self.driver_rims) + len(self.vbios_rims) + len(self.rims)
        lists = len(self.crls) + len(self.ocsp)
        return max(len(self.devices), rims) > MAX_DEVICES or lists > MAX_LISTS

    @property
    def digest(self) -> bytes:
        """What a claims document names: SHA-256 over reports and chains (`evidence_digest`)."""
        return evidence_digest(self.devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuChain:
    """A device's certificates without a report: they prove no more than that they exist."""

    chain: tuple[bytes, ...]
    crls: tuple[bytes, ...] = ()
    ocsp: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RimEvidence:
    """A manifest on its own."""

    document: RimSource
    crls: tuple[bytes, ...] = ()
    ocsp: tuple[bytes, ...] = ()


NvEvidence: TypeAlias = GpuEvidence | GpuChain | RimEvidence


def verify_nvgpu(
    evidence: NvEvidence,
    *,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    expected: Expected,
    ledger: Ledger,
) -> Outcome:
    """Verify devices, certificates or a manifest.

    Whatever is wrong with the evidence is a claim.

    Raises:
        ConfigurationError: something is expected that such evidence does not have.
    """
    if isinstance(evidence, RimEvidence):
        check_names(expected, ())
        return _verify_rim(evidence, policy=policy, roots=roots, at=at, ledger=ledger)
    if isinstance(evidence, GpuChain):
        check_names(expected, ("fwid",))
        return _verify_chain(
            evidence, policy=policy, roots=roots, at=at, expected=expected, ledger=ledger
        )
    check_names(expected, FIELD_NAMES)
    if evidence.is_too_much:
        return _refuse_heap(ledger.on(ALL_DEVICES))
    return _Devices(
        evidence, policy=policy, roots=roots, at=at, expected=expected, ledger=ledger
    ).verify()


class _Devices:
    """One run over devices, so that each manifest is looked at once and not for every device."""

    def __init__(
        self,
        evidence: GpuEvidence,
        *,
        policy: AppraisalPolicy,
        roots: Roots,
        at: datetime,
        expected: Expected,
        ledger: Ledger,
    ) -> None:
        self._evidence = evidence
        self._policy = policy
        self._roots = roots
        self._at = at
        self._expected = expected
        self._ledger = ledger
        self._set = ledger.on(ALL_DEVICES)
        self._revocation = _revocation(evidence, policy, roots, self._set)
        self._rims = Rims(
            driver=self._examine(evidence.driver_rims),
            vbios=self._examine(evidence.vbios_rims),
            either=self._examine(evidence.rims),
        )

    def verify(self) -> Outcome:
        """Judge every device, then all of them together."""
        devices = [decode_device(device) for device in self._evidence.devices]
        judged = [
            self._judge(name, device) for name, device in zip(_names(devices), devices, strict=True)
        ]
        names = set_claims([one.examined.stated for one in judged], self._policy)
        self._set.expect(*names)
        authentic = [
            one.examined.authenticated for one in judged if one.examined.authenticated is not None
        ]
        appraise_set(
            authentic, count=len(judged), policy=self._policy, names=names, ledger=self._set
        )
        return self._outcome(judged, authentic=len(authentic) == len(judged))

    def _examine(self, sources: Iterable[RimSource]) -> tuple[ExaminedRim, ...]:
        return tuple(
            examine_rim(source, roots=self._roots, at=self._at, revocation=self._revocation)
            for source in sources
        )

    def _judge(self, name: str, device: Decoded) -> Judged:
        ledger = self._ledger.on(name)
        ledger.expect(*device_claims(self._revocation), *self._expected.names)
        examined = authenticate_device(
            device, roots=self._roots, at=self._at, revocation=self._revocation, ledger=ledger
        )
        is_switch = name.startswith(_SWITCH)
        stated = examined.stated
        rims = choose_rims(stated, self._rims, is_switch=is_switch, policy=self._policy)
        ledger.expect(
            *claims(
                stated,
                rims,
                is_switch=is_switch,
                policy=self._policy,
                revocation=self._revocation,
            )
        )
        if examined.authenticated is not None:
            compare(self._expected, _fields(examined.authenticated.value), ledger)
            appraise_device(
                examined.authenticated,
                rims,
                policy=self._policy,
                revocation=self._revocation,
                ledger=ledger,
            )
        elif stated is not None:
            compare(self._expected, _fields(stated), ledger.stated())
            state_device(
                stated, rims, policy=self._policy, revocation=self._revocation, ledger=ledger
            )
        return Judged(name=name, examined=examined, rims=rims, ledger=ledger)

    def _outcome(self, judged: list[Judged], *, authentic: bool) -> Outcome:
        devices = [one.examined.stated for one in judged if one.examined.stated is not None]
        models = dict.fromkeys(device.model for device in devices if device.model)
        nonces = {device.report.nonce for device in devices}
        whole = authentic and len(nonces) == 1
        return Outcome(
            platform=f"NVIDIA {', '.join(models)}" if models else "NVIDIA GPU",
            memory_confidentiality="none",
            facts=device_facts(judged),
            development=any(map(_is_simulated, judged)),
            bound=nonces.pop() if whole else None,
            registers=_registers(judged) if authentic else {},
            not_proven=(NOT_ATTACHED, NOT_RECENT, *self._unproven(judged)),
        )

    def _unproven(self, judged: list[Judged]) -> Iterable[str]:
        if not self._revocation.asked:
            yield NOT_REVOKED
        for one in judged:
            device = one.examined.stated
            if not one.rims.whole:
                yield NO_MANIFEST.format(device=one.name)
            if device is None or device.is_switch:
                continue
            if device.report.mode is None and not one.rims.whole:
                yield NO_MODE.format(device=one.name)
            if device.report.protected_pcie or device.report.mode is GpuMode.PROTECTED_PCIE:
                yield OPEN_LINKS.format(device=one.name)


_SWITCH: Final = "nvswitch"
_GPU: Final = "gpu"


def _revocation(
    evidence: NvEvidence, policy: AppraisalPolicy, roots: Roots, ledger: Ledger
) -> Revocation:
    """What was given about revocation. Where a list does not decode, none is believed."""
    try:
        crls = tuple(parse_crl(data) for data in evidence.crls)
    except MalformedError as error:
        ledger.expect(CRLS)
        ledger.refuse(CRLS, "malformed", f"A revocation list is refused: {error}.")
        crls = ()
    return Revocation(
        crls=crls,
        answers=by_serial(evidence.ocsp),
        authorities=_authorities(roots),
        required=policy.require_endorsements,
    )


def _refuse_heap(ledger: Ledger) -> Outcome:
    ledger.expect(ALL)
    ledger.refuse(ALL, "malformed", "The evidence is of more devices than a machine has.")
    return Outcome(
        platform="NVIDIA GPU", memory_confidentiality="none", facts={}, not_proven=(NOT_ATTACHED,)
    )


def _names(devices: Iterable[Decoded]) -> list[str]:
    counted = {_SWITCH: 0, _GPU: 0}
    names = []
    for device in devices:
        kind = _SWITCH if device.says_switch else _GPU
        names.append(f"{kind}{counted[kind]}")
        counted[kind] += 1
    return names


def _authorities(roots: Roots) -> tuple[x509.Certificate, ...]:
    anchors = roots.vendor(Vendor.NVIDIA_DEVICE, Vendor.NVIDIA_RIM)
    return tuple(anchor.certificate for anchor in anchors)


def _fields(device: NvDevice) -> Mapping[str, bytes | None]:
    report = device.report
    driver = report.driver_version
    return {
        "nonce": report.nonce,
        "fwid": report.fwid,
        "driver_version": None if driver is None else driver.encode(),
        "vbios_version": report.vbios_version.encode(),
    }


def _registers(judged: Iterable[Judged]) -> dict[str, bytes]:
    return {
        f"{one.name}.measurement{index}": measurement.value
        for one in judged
        if one.examined.stated is not None
        for index, measurement in (one.examined.stated.measurements or {}).items()
    }


def _is_simulated(one: Judged) -> bool:
    stated = one.examined.stated
    chains = [None if stated is None else stated.chain]
    chains += (rim.chain for rim in one.rims.chosen.values())
    return any(map(_is_development, chains))


def _is_development(chain: Chain | None) -> bool:
    return chain is not None and chain.anchor is not None and chain.anchor.development


def _verify_rim(
    evidence: RimEvidence, *, policy: AppraisalPolicy, roots: Roots, at: datetime, ledger: Ledger
) -> Outcome:
    device = ledger.on(RIM_DEVICE)
    revocation = _revocation(evidence, policy, roots, device)
    device.expect(*rim_claims(RIM, revocation))
    examined = examine_rim(evidence.document, roots=roots, at=at, revocation=revocation)
    record_rim(RIM, examined, revocation, device)
    if examined.rim is not None:
        heard = device if examined.authenticated is not None else device.stated()
        heard.affirm(RIM, f"The manifest is for version {examined.rim.version}.")
    return Outcome(
        platform="NVIDIA reference integrity manifest",
        memory_confidentiality="none",
        facts=manifest_facts(examined),
        development=_is_development(examined.chain),
        not_proven=("A manifest says what NVIDIA vouches for, and nothing about any device.",),
    )


def _verify_chain(
    evidence: GpuChain,
    *,
    policy: AppraisalPolicy,
    roots: Roots,
    at: datetime,
    expected: Expected,
    ledger: Ledger,
) -> Outcome:
    device = ledger.on(f"{_GPU}0")
    revocation = _revocation(evidence, policy, roots, device)
    device.expect(*chain_claims(PREFIX, revocation), *expected.names)
    decoded = decode_device(GpuDevice(report=b"", chain=evidence.chain))
    certificates = decoded.certificates
    chain = authenticate_certificates(
        decoded, roots=roots, at=at, revocation=revocation, ledger=device
    )
    if certificates:
        heard = device if device.holds(CHAIN) else device.stated()
        compare(expected, {"fwid": next(iter(stated_fwids(certificates[0])), None)}, heard)
    return Outcome(
        platform="NVIDIA device certificates",
        memory_confidentiality="none",
        facts={
            "subjects": [one.subject.rfc4514_string() for one in certificates],
            "links": [issued(one, issuer) for one, issuer in pairwise(certificates)],
        },
        development=_is_development(chain),
        not_proven=(NOT_ATTACHED, "There is no report: no device answered anything."),
    )
