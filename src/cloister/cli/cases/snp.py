"""Reads recorded SEV-SNP cases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from cloister.cli.cases.folder import CaseFiles, CaseInput, input_bytes, unchanged
from cloister.errors import ConfigurationError
from cloister.verifier.appraise import snp as appraise
from cloister.verifier.authenticate import snp as authenticate
from cloister.verifier.expected import Expected
from cloister.verifier.platforms import snp
from cloister.verifier.policy import SNP_PRODUCTS, AppraisalPolicy, MinimumTcb, Unchecked

VERIFY: Final = snp.verify_snp

LAYERS: Final = {
    ("cpu0", snp.PARSE): "parse",
    ("cpu0", authenticate.SIGNATURE): "signature",
    ("cpu0", authenticate.CHAIN): "chain",
    ("cpu0", authenticate.TIME): "time",
    ("cpu0", authenticate.REVOCATION): "revocation",
    ("cpu0", authenticate.CERTIFICATE_TCB): "leaf_tcb_matches_report",
    ("cpu0", authenticate.CHIP_ID): "leaf_chip_id_matches_report",
    ("cpu0", appraise.DEBUG): "debug",
    ("cpu0", appraise.MINIMUM_TCB): "expectation",
    ("cpu0", "expected.measurement"): "expectation",
    ("cpu0", "expected.report_data"): "expectation",
}

_EXPECTED: Final = "expected_"
_PREFIX: Final = "expected_report_data_prefix_ascii"
_MINIMUM: Final = "minimum_reported_tcb"


def read(case: CaseFiles) -> CaseInput:
    """The evidence in a case: the report and, of what vouches for it, the leaf and any lists.

    Raises:
        ConfigurationError: the case has no report, or expects what nobody understands.
    """
    return CaseInput(
        evidence=snp.SnpEvidence(
            report=case.one("report"),
            certificates=tuple(file.data for file in case.all("leaf_cert")),
            crls=tuple(file.data for file in case.all("crl")),
        ),
        expected=_expected(case),
        narrow=_narrow(case),
    )


def _expected(case: CaseFiles) -> Expected:
    values = {
        name: data
        for name in snp.FIELD_NAMES
        if (data := input_bytes(case, _EXPECTED + name)) is not None
    }
    return Expected(values=values, prefixes=_prefixes(case))


def _prefixes(case: CaseFiles) -> dict[str, bytes]:
    prefix = case.inputs.get(_PREFIX)
    if prefix is None:
        return {}
    if not isinstance(prefix, str) or not prefix.isascii():
        raise ConfigurationError(f"{_PREFIX} of {case.name} is no ASCII", code="case.malformed")
    return {"report_data": prefix.encode()}


def _narrow(case: CaseFiles) -> Callable[[AppraisalPolicy], AppraisalPolicy]:
    """A minimum TCB is one more that every product has to reach: a case has one processor."""
    minimum = case.inputs.get(_MINIMUM)
    if minimum is None:
        return unchanged
    if not isinstance(minimum, Mapping) or not all(
        isinstance(level, int) for level in minimum.values()
    ):
        raise ConfigurationError(
            f"{_MINIMUM} of {case.name} is no table of numbers", code="case.malformed"
        )
    return partial(_with_minimum, minimum=minimum)


def _with_minimum(policy: AppraisalPolicy, *, minimum: Mapping[str, int]) -> AppraisalPolicy:
    before = policy.snp_minimum_tcb
    tables: MinimumTcb = (
        {product: {} for product in SNP_PRODUCTS} if isinstance(before, Unchecked) else before
    )
    both = {product: _higher(table, minimum) for product, table in tables.items()}
    return dataclasses.replace(policy, snp_minimum_tcb=both)


def _higher(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in (*one, *other)}
