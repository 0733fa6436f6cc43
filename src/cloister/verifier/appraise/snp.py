"""Appraises an SEV-SNP report: what its guest, firmware and chip are, against the policy.

Steps, each with one claim unless the policy leaves it unchecked:

1. ``snp.debug``: the host cannot read the guest's memory through the firmware.
2. ``snp.migration``: no migration agent may take the guest elsewhere.
3. ``snp.vmpl``: the report was asked for from an accepted privilege level.
4. ``snp.tcb_order``: what the report says of the firmware's versions fits together.
5. ``snp.minimum_tcb``: no part of the TCB, at launch and now, is older than the policy accepts.
6. ``snp.allowed_chip``: the chip is one of those that the policy names.
7. ``snp.denied``: no certificate is denied by the policy.

Only compares: whatever is compared here was authenticated before. The caller still owes the
comparison of REPORT_DATA, MEASUREMENT and HOST_DATA with what it expects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from cloister.endorsements.roots import fingerprints
from cloister.evidence.snp import GuestPolicy, SnpReport, tcb_components
from cloister.verifier.authenticate.snp import SnpAttestation
from cloister.verifier.authenticated import Authenticated
from cloister.verifier.ledger import Ledger
from cloister.verifier.policy import AppraisalPolicy, MinimumTcb, Unchecked
from cloister.verifier.result import Source

DEBUG: Final = "snp.debug"
MIGRATION: Final = "snp.migration"
VMPL: Final = "snp.vmpl"
TCB_ORDER: Final = "snp.tcb_order"
MINIMUM_TCB: Final = "snp.minimum_tcb"
ALLOWED_CHIP: Final = "snp.allowed_chip"
DENIED: Final = "snp.denied"

OFF: Final = "off"
ON: Final = "on"

_CHIP_ID_DIGITS: Final = 128


def claims(policy: AppraisalPolicy) -> tuple[str, ...]:
    """Names of the claims made under `policy`, in order."""
    names = [DEBUG, MIGRATION]
    if not isinstance(policy.snp_vmpls, Unchecked):
        names.append(VMPL)
    names.append(TCB_ORDER)
    if not isinstance(policy.snp_minimum_tcb, Unchecked):
        names.append(MINIMUM_TCB)
    if not isinstance(policy.chip_ids, Unchecked):
        names.append(ALLOWED_CHIP)
    if not isinstance(policy.denied, Unchecked):
        names.append(DENIED)
    return tuple(names)


def appraise_snp(
    authenticated: Authenticated[SnpAttestation], *, policy: AppraisalPolicy, ledger: Ledger
) -> None:
    """Add every claim of `claims(policy)` to `ledger`."""
    _appraise(authenticated.value, policy, ledger)


def appraise_stated_snp(
    attestation: SnpAttestation, *, policy: AppraisalPolicy, ledger: Ledger
) -> None:
    """The same for a report that did not authenticate: nothing can be affirmed by it."""
    _appraise(attestation, policy, ledger.stated())


def _appraise(attestation: SnpAttestation, policy: AppraisalPolicy, ledger: Ledger) -> None:
    report = attestation.report
    _debug(report, policy, ledger)
    _migration(report, policy, ledger)
    if not isinstance(policy.snp_vmpls, Unchecked):
        _vmpl(report, policy.snp_vmpls, ledger)
    _tcb_order(attestation, ledger)
    if not isinstance(policy.snp_minimum_tcb, Unchecked):
        _minimum_tcb(attestation, policy.snp_minimum_tcb, ledger)
    if not isinstance(policy.chip_ids, Unchecked):
        _allowed_chip(attestation, policy.chip_ids, ledger)
    if not isinstance(policy.denied, Unchecked):
        _denied(attestation, policy.denied, ledger)


def _debug(report: SnpReport, policy: AppraisalPolicy, ledger: Ledger) -> None:
    """Step 1."""
    debug = bool(report.policy & GuestPolicy.DEBUG)
    ledger.check(
        DEBUG,
        holds=policy.accept_debug or not debug,
        affirmed=(
            "The host may debug the guest, which the policy accepts."
            if debug
            else "The host cannot debug the guest."
        ),
        code="debug",
        refused="The guest was launched for debugging: the host can read its memory.",
        source=Source.HARDWARE_PROVEN,
        value=ON if debug else OFF,
    )


def _migration(report: SnpReport, policy: AppraisalPolicy, ledger: Ledger) -> None:
    """Step 2."""
    migration = bool(report.policy & GuestPolicy.MIGRATE_MA)
    ledger.check(
        MIGRATION,
        holds=policy.accept_migration or not migration,
        affirmed=(
            "The guest may be migrated, which the policy accepts."
            if migration
            else "The guest cannot be migrated."
        ),
        code="migration",
        refused="The guest may be given to a migration agent, and so to another machine.",
        source=Source.HARDWARE_PROVEN,
        value=ON if migration else OFF,
    )


def _vmpl(report: SnpReport, accepted: tuple[int, ...], ledger: Ledger) -> None:
    """Step 3."""
    ledger.check(
        VMPL,
        holds=report.vmpl in accepted,
        affirmed=f"The report was asked for from privilege level {report.vmpl}.",
        code="vmpl",
        refused=(
            f"The report was asked for from privilege level {report.vmpl}, or by the host, which"
            " the policy does not accept."
        ),
        source=Source.HARDWARE_PROVEN,
        value=str(report.vmpl),
    )


def _tcb_order(attestation: SnpAttestation, ledger: Ledger) -> None:
    """Step 4: neither the reported nor the committed TCB is above the current, in any part.

    The firmware sees to both. It may report more than it is committed to, while an update is
    provisional; and it may since launch have gone back, as far as the committed TCB.
    """
    report, product = attestation.report, attestation.product
    if product is None:
        return
    reported, committed, current = (
        tcb_components(tcb, product)
        for tcb in (report.reported_tcb, report.committed_tcb, report.current_tcb)
    )
    ledger.check(
        TCB_ORDER,
        holds=(
            not _below(current, reported)
            and not _below(current, committed)
            and report.committed_version <= report.current_version
        ),
        affirmed="The firmware's versions fit together.",
        code="tcb_inconsistent",
        refused="The report names a newer TCB, or version, than that of the firmware that runs.",
        source=Source.HARDWARE_PROVEN,
    )


def _minimum_tcb(attestation: SnpAttestation, minimums: MinimumTcb, ledger: Ledger) -> None:
    """Step 5: reported, committed, certified and launch TCB. A product without minimum is refused.

    The one at launch counts because firmware may be updated under a running guest: what an older
    one let a host do to the guest when it was launched, no update undoes.
    """
    report, product = attestation.report, attestation.product
    if product is None:
        return
    minimum = minimums.get(product)
    tcbs = [report.reported_tcb, report.committed_tcb, report.launch_tcb]
    if attestation.key is not None:
        tcbs.append(attestation.key.tcb)
    below = (
        {part for tcb in tcbs for part in _below(tcb_components(tcb, product), minimum)}
        if minimum is not None
        else set()
    )
    ledger.check(
        MINIMUM_TCB,
        holds=minimum is not None and not below,
        affirmed="No part of the TCB is older than the policy accepts.",
        code="tcb_below_minimum",
        refused=(
            f"The policy names no minimum TCB for {product.label}."
            if minimum is None
            else f"The TCB is older than the policy accepts: {', '.join(sorted(below))}."
        ),
        source=Source.HARDWARE_PROVEN,
    )


def _below(found: Mapping[str, int], minimum: Mapping[str, int]) -> list[str]:
    """The parts in which `found` is below `minimum`; one that the product lacks is."""
    return [part for part, least in minimum.items() if found.get(part, -1) < least]


def _allowed_chip(attestation: SnpAttestation, accepted: tuple[str, ...], ledger: Ledger) -> None:
    """Step 6, by the certificate where the host masks the id. A VLEK's chip may be unknown."""
    chip_id = attestation.report.chip_id
    if not any(chip_id) and attestation.key is not None:
        chip_id = attestation.key.chip_id or chip_id
    ledger.check(
        ALLOWED_CHIP,
        holds=any(chip_id) and chip_id.hex() in _filled(accepted),
        affirmed="The chip is one that the policy names.",
        code="chip_not_allowed",
        refused="The chip is none of those that the policy names, or does not say which it is.",
        source=Source.HARDWARE_PROVEN,
    )


def _filled(chip_ids: Iterable[str]) -> set[str]:
    """Turin's ids may be given by the 8 bytes that are not zero."""
    return {chip_id.ljust(_CHIP_ID_DIGITS, "0") for chip_id in chip_ids}


def _denied(attestation: SnpAttestation, denied: tuple[str, ...], ledger: Ledger) -> None:
    """Step 7."""
    if attestation.chain is None:
        return
    found = sorted(
        digest
        for certificate in (attestation.chain.certificates if denied else ())
        for digest in fingerprints(certificate).intersection(denied)
    )
    ledger.check(
        DENIED,
        holds=not found,
        affirmed="None of the certificates is on your list of denied digests.",
        code="denied",
        refused=f"Your policy denies {', '.join(found)}.",
    )
