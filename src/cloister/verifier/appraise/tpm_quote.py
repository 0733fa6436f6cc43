"""Appraises authenticated TPM quotes: extra data and registers against what the caller expects.

A quote says nothing of itself that a policy could judge; what registers should hold is for
reference values and expectations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from cloister.evidence.eventlog import PCR_COUNT
from cloister.evidence.tpm import HASH_NAMES, Alg, RsaSignature
from cloister.strictjson import Json, JsonObject
from cloister.verifier.authenticate.tpm_quote import SignedQuote
from cloister.verifier.authenticated import Authenticated
from cloister.verifier.expected import Expected, compare
from cloister.verifier.ledger import Ledger


def register_name(bank: int, pcr: int) -> str:
    """``pcr0`` for the SHA-256 bank, ``pcr0_sha384`` for others."""
    return f"pcr{pcr}" if bank == Alg.SHA256 else f"pcr{pcr}_{HASH_NAMES[bank]}"


FIELD_NAMES: Final = (
    "extra_data",
    "pcr_digest",
    *(register_name(bank, pcr) for bank in HASH_NAMES for pcr in range(PCR_COUNT)),
)
"""What a caller may expect of quotes."""

SCHEMES: Final[Mapping[int, str]] = {
    Alg.RSASSA: "rsassa",
    Alg.RSAPSS: "rsapss",
    Alg.ECDSA: "ecdsa",
}


def appraise_quotes(
    quotes: Sequence[Authenticated[SignedQuote]], *, expected: Expected, ledger: Ledger
) -> None:
    """Compare authenticated quotes by one key, the leading one first, with `expected`."""
    compare(expected, fields([quote.value for quote in quotes]), ledger)


def appraise_stated(quotes: Sequence[SignedQuote], *, expected: Expected, ledger: Ledger) -> None:
    """Compare what unauthenticated quotes say; nothing of it is affirmed."""
    compare(expected, fields(quotes), ledger.stated())


def fields(quotes: Sequence[SignedQuote]) -> dict[str, bytes | None]:
    """The values of `FIELD_NAMES`; ``None`` for what the quotes do not cover.

    Extra data and digest are those of the first quote.
    """
    found: dict[str, bytes | None] = dict.fromkeys(FIELD_NAMES)
    if quotes:
        found["extra_data"] = quotes[0].quote.extra_data
        found["pcr_digest"] = quotes[0].quote.pcr_digest
    for quote in quotes:
        found |= registers(quote)
    return found


def registers(quote: SignedQuote) -> dict[str, bytes]:
    """The quote's registers by name."""
    return {
        register_name(bank, pcr): value
        for bank, values in quote.pcrs.items()
        for pcr, value in values.items()
    }


def quote_facts(stated: SignedQuote) -> JsonObject:
    """Fields of a quote under the names of recorded cases; bytes as hexadecimal."""
    quote, signature = stated.quote, stated.signature
    selection: list[Json] = [
        {"bank": _bank(choice.hash_algorithm), "pcrs": list(choice.pcrs)}
        for choice in quote.selections
    ]
    scheme = signature.scheme if isinstance(signature, RsaSignature) else Alg.ECDSA
    facts: JsonObject = {
        "extra_data": quote.extra_data.hex(),
        "pcr_selection": selection,
        "pcr_digest": quote.pcr_digest.hex(),
        "qualified_signer": quote.qualified_signer.hex(),
        "clock": quote.clock_info.clock,
        "reset_count": quote.clock_info.reset_count,
        "restart_count": quote.clock_info.restart_count,
        "safe": int(quote.clock_info.safe),
        "firmware_version": f"{quote.firmware_version:016x}",
        "signature_scheme": SCHEMES[scheme],
        "signature_hash": _bank(signature.hash_algorithm),
    }
    for bank, values in stated.pcrs.items():
        # Recorded cases have one bank here; further ones follow under names of their own.
        name = "pcrs" if "pcrs" not in facts else f"pcrs_{_bank(bank)}"
        facts[name] = {
            "bank": _bank(bank),
            "values": {str(pcr): values[pcr].hex() for pcr in sorted(values)},
        }
    return facts


def _bank(algorithm: int) -> str:
    return HASH_NAMES.get(algorithm, f"0x{algorithm:04x}")
