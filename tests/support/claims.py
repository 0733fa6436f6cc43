"""What a result's claims say, for tests."""

from __future__ import annotations

from cloister.verifier.result import AttestationResult, Finding


def refused(result: AttestationResult) -> set[tuple[str, str | None]]:
    """Name and code of every claim that is contradicted."""
    return {
        (claim.name, claim.code)
        for claim in result.claims
        if claim.finding is Finding.CONTRAINDICATED
    }
