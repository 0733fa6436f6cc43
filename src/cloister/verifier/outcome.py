"""What verifying one platform's evidence yields, the same for every platform."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from cloister.strictjson import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Findings about one piece of evidence beyond the claims in the ledger.

    Nothing in here is worth more than the claims: `bound` and `registers` are set only where
    the evidence was authenticated, while `facts` say what it states in any case.
    """

    platform: str
    """For people: ``AMD SEV-SNP (Milan)``."""
    memory_confidentiality: str
    """What protects memory (`cloister.verifier.policy.ENCRYPTED_MEMORY`), or ``none``."""
    facts: JsonObject
    """Decoded fields under the vendors' names; bytes as lower-case hexadecimal."""
    development: bool = False
    """Whether it chains to the root of a simulated vendor."""
    bound: bytes | None = None
    """What the evidence was asked to carry: report data, extra data or user data, whole."""
    registers: Mapping[str, bytes] = field(default_factory=dict)
    """What identifies the software, under the vendor's names (``measurement``, ``mr_td``, …)."""
    asserted: Set[str] = frozenset()
    """Those of `registers` that only a provider's TPM holds, beside hardware that does not name its
    key: what follows from them is the provider's word."""
    not_proven: tuple[str, ...] = ()
    """Sentences about what this evidence does not show."""
