"""Appraises the registers of a measured boot in groups, so that a result says what was changed.

One claim for each group of registers, against one accepted state: where several are accepted, the
one that differs least. That all registers together are in one accepted state is a claim of its own
(``software.registers``, `cloister.verifier.appraise.worker`); no group affirms anything alone.

Source: TCG "PC Client Platform Firmware Profile Specification", version 1.06, section 3.3.4, and
systemd's "TPM2 PCR Measurements Made by systemd" for what each register is for.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Final

from cloister.verifier.ledger import Ledger
from cloister.verifier.platform_references import IDENTITY, PlatformReference
from cloister.verifier.result import Source

MISMATCH: Final = "measurement_mismatch"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterGroup:
    """Registers that one kind of change moves."""

    claim: str
    registers: tuple[str, ...]
    what: str
    """What they hold, as a sentence's subject in the singular."""


GROUPS: Final = (
    RegisterGroup(claim="boot.firmware", registers=("pcr0",), what="The firmware's code"),
    RegisterGroup(
        claim="boot.machine",
        registers=("pcr1",),
        what="The machine's configuration (boot order, ACPI tables where they are measured)",
    ),
    RegisterGroup(
        claim="boot.drivers",
        registers=("pcr2", "pcr3", "pcr6"),
        what="Code that devices bring along (option ROMs)",
    ),
    RegisterGroup(
        claim="boot.loader",
        registers=("pcr4",),
        what="What the firmware started (boot loader, unified kernel image)",
    ),
    RegisterGroup(
        claim="boot.partitions", registers=("pcr5",), what="The boot disk's partition table"
    ),
    RegisterGroup(claim="boot.secure_boot", registers=("pcr7",), what="The Secure Boot state"),
    RegisterGroup(
        claim="boot.kernel_inputs",
        registers=("pcr8", "pcr9"),
        what="What the kernel was given (command line, initrd)",
    ),
    RegisterGroup(
        claim="boot.image", registers=("pcr11",), what="The content of the unified kernel image"
    ),
    RegisterGroup(
        claim="boot.additions",
        registers=("pcr12", "pcr13"),
        what="What was added beside the image (command lines, credentials, extensions)",
    ),
    RegisterGroup(claim="boot.application", registers=("pcr14",), what="The application disk"),
    RegisterGroup(claim="boot.model", registers=("pcr15",), what="The model disk"),
)


BESIDE: Final = frozenset({"gcp-tdx"})
"""Platforms with a TPM of which reference values need not list every group."""


def group_claims(platform: str) -> tuple[str, ...]:
    """Names of the claims about `platform`, in order; none where none has to be listed.

    Where reference values may list more, `appraise_groups` makes claims of those too.
    """
    return tuple(group.claim for group in _groups(platform))


def appraise_groups(
    reference: PlatformReference,
    registers: Mapping[str, bytes],
    ledger: Ledger,
    *,
    asserted: Set[str] = frozenset(),
) -> None:
    """Compare `registers` with the state `reference`, group by group.

    Beside a processor that names the image (`BESIDE`) those groups that the state lists whole: of
    the others nothing would be compared. What follows from registers that are `asserted` is the
    provider's word.
    """
    groups = _groups(reference.platform)
    if reference.platform in BESIDE:
        groups = tuple(one for one in GROUPS if reference.registers.keys() >= set(one.registers))
    ledger.expect(*(group.claim for group in groups))
    differing = reference.differing(registers)
    for group in groups:
        changed = [name for name in group.registers if name in differing]
        said = ledger if asserted.isdisjoint(group.registers) else ledger.asserted()
        said.check(
            group.claim,
            holds=not changed,
            affirmed=f"{group.what} is that of {reference.name}.",
            code=MISMATCH,
            refused=(
                f"{group.what} is not that of {reference.name}: {', '.join(changed)}"
                f" {'differ' if len(changed) > 1 else 'differs'}."
            ),
            source=Source.HARDWARE_PROVEN,
        )


def _groups(platform: str) -> tuple[RegisterGroup, ...]:
    """Those whose registers every reference of a measured boot lists: others affirm nothing."""
    listed = [set(identity) for identity in IDENTITY.get(platform, ()) if "pcr15" in identity]
    return tuple(
        group for group in GROUPS if any(one.issuperset(group.registers) for one in listed)
    )
