"""Recorded documents of AWS Nitro Enclaves."""

from __future__ import annotations

from typing import Final

from cloister.cli.cases.folder import CaseFiles, CaseInput, input_bytes
from cloister.errors import ConfigurationError, MalformedError
from cloister.strictjson import expect_hex, expect_object
from cloister.verifier.appraise.nitro import DEBUG, FIELD_NAMES
from cloister.verifier.authenticate.nitro import CHAIN, SIGNATURE, TIME
from cloister.verifier.expected import CLAIM_PREFIX, Expected
from cloister.verifier.ledger import CPU
from cloister.verifier.platforms.nitro import DOCUMENT, NitroEvidence, verify_nitro

VERIFY = verify_nitro

LAYERS: Final = {
    (CPU, DOCUMENT): "parse",
    (CPU, SIGNATURE): "cose_signature",
    (CPU, CHAIN): "chain",
    (CPU, DEBUG): "debug",
    (CPU, TIME): "time",
    **{(CPU, f"{CLAIM_PREFIX}{name}"): "expectation" for name in FIELD_NAMES},
}

_INPUTS: Final = ("nonce", "user_data", "public_key")


def read(case: CaseFiles) -> CaseInput:
    """The document, in whatever it is wrapped, and what the case expects of its members."""
    return CaseInput(
        evidence=NitroEvidence(document=case.one("document")), expected=read_expected(case)
    )


def read_expected(case: CaseFiles) -> Expected:
    """What the case expects of the members of a document of either kind."""
    values = {name: input_bytes(case, f"expected_{name}") for name in _INPUTS}
    found = {name: value for name, value in values.items() if value is not None}
    return Expected(values={**found, **_pcrs(case)})


def _pcrs(case: CaseFiles) -> dict[str, bytes]:
    try:
        wanted = expect_object(case.inputs.get("expected_pcrs", {}), "expected_pcrs")
        return {f"pcr{index}": expect_hex(value, "a PCR") for index, value in wanted.items()}
    except MalformedError as error:
        raise ConfigurationError(f"{case.name}: {error}", code="case.malformed") from None
