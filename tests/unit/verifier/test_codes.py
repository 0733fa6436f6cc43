"""Every code that a verifier can give is explained in the reference, and no other.

Codes are read from the source: a refusal that no test causes is found as well. An expression that
this file does not understand fails the test, so that no new way of giving a code escapes it.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import cloister
from cloister import errors
from cloister.verifier import expected as expectations
from cloister.verifier import policy as policies
from cloister.verifier import report, report_gpus, report_hardware
from cloister.verifier.appraise import boot, dstack, manifest, nvgpu, worker
from cloister.verifier.authenticate import ak, hcl, rim, tpm_log, tpm_quote
from cloister.verifier.authenticate.nvgpu import device_claims
from cloister.verifier.authenticate.nvidia_chain import Revocation
from cloister.verifier.chain import ChainFault
from cloister.verifier.expected import NOTHING_EXPECTED
from cloister.verifier.platforms import (
    azure,
    gcp,
    gcp_confidential,
    nitro,
    nitro_tpm,
    sgx,
    snp,
    tdx,
    tpm,
)
from cloister.verifier.platforms import nvgpu as gpus

SOURCE = Path(cloister.__file__).parent
REFERENCE = Path(__file__).parents[3] / "docs" / "reference"
CODES = (REFERENCE / "codes.md").read_text()
COMMANDS = (REFERENCE / "cli.md").read_text().partition("\n## Errors\n")[2]

FOLDERS = (
    "evidence",
    "endorsements",
    "verifier",
    "manifest",
    "client/manifest_memory.py",
    "client/manifest_options.py",
    "client/manifest_trust.py",
    "cli/manifest.py",
    "cli/manifest_draft.py",
    "cli/manifest_files.py",
)
"""Whose codes are in ``codes.md``."""
CLI = (
    "cli/cases",
    "cli/endorsements.py",
    "cli/endorsements_early.py",
    "cli/evidence_cache.py",
    "cli/evidence_files.py",
    "cli/image.py",
    "cli/image_boot.py",
    "cli/image_measure.py",
    "cli/image_needs.py",
    "cli/image_secure_boot.py",
    "cli/verify.py",
    "cli/verify_evidence.py",
    "client/certificate.py",
    "image",
)
"""Whose codes are in ``cli.md``, besides."""

SECOND = ("refuse", "undecided", "warn", "_unchanged")
"""Functions whose second argument is a code."""
THIRD = ("_reader",)
MAKING = ("affirm", "check", "refuse", "undecided", "warn")
"""Functions whose first argument is a claim's name."""
FAULTS = ("fault",)
"""Keywords whose value is a code and a sentence."""

RIM_PREFIX = rim.CODES

PASSED_ON = {
    "code",
    "error.code",
    "fault.code",
    "self._code",
    "worst.code",
    "*pck.fault",
    "broken[0]",
    "expired[0]",
    "bad[0]",
    "fault[0]",
    "failed.code",
}
"""Expressions that hand on a code which was given elsewhere: by an error where it was raised, by a
fault where it was found, by a chain (`ChainFault`)."""

TABLES = {
    "_CODES.get(name, _OTHERWISE)": {*expectations._CODES.values(), expectations._OTHERWISE},
    "f'{codes}{ChainFault.BAD_CHAIN}'": {"bad_chain", f"{RIM_PREFIX}bad_chain"},
    "f'{codes}{expired[0]}'": {"expired", f"{RIM_PREFIX}expired"},
    "f'{codes}{bad[0]}'": {"bad_chain", f"{RIM_PREFIX}bad_chain"},
    "f'{codes}{fault[0]}'": {
        *("revoked", "crl_signature"),
        *(f"{RIM_PREFIX}revoked", f"{RIM_PREFIX}crl_signature"),
    },
}
"""Expressions that make a code, with all that they can make."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A code in the source, or an expression that nobody here understands."""

    where: str
    codes: frozenset[str] = frozenset()
    unknown: str = ""


def modules(*places: str) -> Iterator[tuple[Path, ModuleType]]:
    for place in places:
        path = SOURCE / place
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            parts = file.relative_to(SOURCE.parent).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            yield file, importlib.import_module(name)


def expressions(tree: ast.AST) -> Iterator[tuple[int, ast.expr]]:
    """Every expression that stands where a code belongs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "_CODE" and node.value:
            yield node.lineno, node.value
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        for keyword in node.keywords:
            if keyword.arg == "code":
                yield node.lineno, keyword.value
            elif keyword.arg in FAULTS and isinstance(keyword.value, ast.Tuple):
                yield node.lineno, keyword.value.elts[0]
        if name in SECOND and len(node.args) > 1:
            yield node.lineno, node.args[1]
        if name in THIRD and len(node.args) > 2:
            yield node.lineno, node.args[2]


def resolved(node: ast.expr, module: ModuleType) -> set[str] | None:
    """The codes that an expression can be; ``None`` if that is not understood."""
    text = ast.unparse(node)
    if text in PASSED_ON:
        return set()
    if text in TABLES:
        return TABLES[text]
    match node:
        case ast.Constant(value=str(code)):
            return {code}
        case ast.Constant(value=None):
            return set()
        case ast.IfExp(body=one, orelse=other) | ast.BoolOp(values=[one, other]):
            parts = [resolved(one, module), resolved(other, module)]
            return None if None in parts else set().union(*(part or set() for part in parts))
        case ast.Name() | ast.Attribute():
            value: object = module
            for name in text.split("."):
                value = getattr(value, name, None)
            return {str(value)} if isinstance(value, str) else None
        case _:
            return None


def default_codes(tree: ast.AST) -> set[str]:
    """Of errors that are raised without a code of their own."""
    return {
        getattr(errors, name).default_code
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(getattr(errors, name := ast.unparse(node.func), None), type)
        and not any(keyword.arg == "code" for keyword in node.keywords)
    }


def survey(*places: str) -> Iterator[Found]:
    for path, module in modules(*places):
        tree = ast.parse(path.read_text())
        where = str(path.relative_to(SOURCE))
        yield Found(where=where, codes=frozenset(default_codes(tree)))
        for line, node in expressions(tree):
            codes = resolved(node, module)
            if codes is None:
                yield Found(where=f"{where}:{line}", unknown=ast.unparse(node))
            else:
                yield Found(where=f"{where}:{line}", codes=frozenset(codes))


def rows(page: str) -> dict[str, str]:
    """Codes in the first cell of a table, with the second cell."""
    found: dict[str, str] = {}
    for first, second in re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", page, flags=re.MULTILINE):
        for code in re.findall(r"`([a-z0-9_.]+)`", first):
            assert code not in found, f"{code} is explained twice"
            found[code] = second
    return found


@cache
def of_verifiers() -> tuple[Found, ...]:
    return tuple(survey(*FOLDERS))


@cache
def of_commands() -> tuple[Found, ...]:
    return tuple(survey(*CLI))


def test_every_expression_is_understood() -> None:
    assert [
        (one.where, one.unknown) for one in (*of_verifiers(), *of_commands()) if one.unknown
    ] == []


def test_what_is_passed_on_still_is() -> None:
    """No entry outlives what it was written for."""
    written = {
        ast.unparse(node)
        for path, _ in modules(*FOLDERS, *CLI)
        for _, expression in expressions(ast.parse(path.read_text()))
        for node in (expression, *ast.walk(expression))
        if isinstance(node, ast.expr)
    }
    assert written >= PASSED_ON
    assert written >= TABLES.keys()


def test_codes_and_reference_agree() -> None:
    used = {code for one in of_verifiers() for code in one.codes} | set(ChainFault)
    assert used == rows(CODES).keys()


def test_the_commands_codes_are_in_theirs() -> None:
    used = {code for one in of_commands() for code in one.codes}
    listed = rows(COMMANDS).keys()
    assert used - rows(CODES).keys() <= listed
    # Of other commands' codes it is only known that somebody still gives them.
    source = "\n".join(path.read_text() for path in sorted(SOURCE.rglob("*.py")))
    assert [code for code in listed - used if f'"{code}"' not in source] == []


@pytest.mark.parametrize("fault", ChainFault)
def test_every_fault_of_a_chain_is_a_code(fault: ChainFault) -> None:
    assert fault in rows(CODES)
    assert f"{RIM_PREFIX}{fault}" in rows(CODES)


STRICTEST = replace(
    policies.strict(),
    chip_ids=("00",),
    required_gpus=1,
    snp_minimum_tcb={"milan": {"snp": 1}},
)
"""Nothing that can be checked is left out."""

BOTH = Revocation(required=True)


def claims() -> set[str]:
    """Every claim that any verifier makes, but for expectations, which callers name."""
    policy, nothing = STRICTEST, NOTHING_EXPECTED
    bare_tdx = tdx.TdxEvidence(quote=b"")
    full_tdx = replace(bare_tdx, collateral=b"", ccel_event_log=b"")
    bare_sgx = sgx.SgxEvidence(quote=b"")
    quote = tpm_quote.QuoteEvidence(quote=b"", signature=b"", pcrs=b"")
    return {
        *snp.claims(snp.SnpEvidence(report=b"", certificates=()), policy=policy, expected=nothing),
        *tdx.claim_names(bare_tdx, policy, nothing),
        *tdx.claim_names(full_tdx, policy, nothing),
        *sgx.claim_names(bare_sgx, policy, nothing),
        *sgx.claim_names(replace(bare_sgx, collateral=b""), policy, nothing),
        *(dstack.EVENT_LOG, dstack.PAYLOADS, dstack.EVENTS, dstack.COMPOSE, dstack.CONFIG_ID),
        *nitro.claim_names(policy, nothing),
        *nitro_tpm.claim_names(nitro_tpm.NitroTpmEvidence(document=b""), policy, nothing),
        *(tpm.QUOTE, tpm.PUBLIC, tpm.ATTRIBUTES, tpm.CERTIFICATE),
        *(*ak.claim_names(policy), *tpm_quote.CLAIMS, *tpm_log.CLAIMS),
        *gcp.claim_names(gcp.GcpEvidence(quotes=()), policy, nothing),
        *gcp.claim_names(gcp.GcpEvidence(quotes=(quote, quote)), policy, nothing),
        *(gcp.INSTANCE, gcp_confidential.SAME_CHALLENGE),
        *(azure.HCL, azure.HARDWARE, azure.AK_KEY, azure.AK_CERTIFICATE),
        *(*hcl.SNP_CLAIMS, *hcl.TDX_CLAIMS),
        *(*device_claims(BOTH), *rim.rim_claims(gpus.RIM, BOTH), gpus.CRLS, report_gpus.BOUND),
        *(
            name
            for kind in nvgpu.RimKind
            for name in (*rim.rim_claims(kind.value, BOTH), f"{kind.value}_measurements")
        ),
        *(nvgpu.APART, nvgpu.MODE, nvgpu.DEBUG, nvgpu.DENIED),
        *(nvgpu.ALL, nvgpu.DISTINCT, nvgpu.ONE_NONCE, nvgpu.REQUIRED, nvgpu.TOPOLOGY),
        *(*report.claim_names(policy), *worker.claims(policy), *manifest.CLAIMS),
        *(*boot.group_claims("tpm"), worker.IMAGE_DEBUG),
        *(report_hardware.ITEMS, report.DEVICES),
    }


def names_in_the_source() -> set[str]:
    """Names in calls that make or promise a claim; those that are put together are not found."""
    return {
        value
        for path, module in modules("verifier")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).rpartition(".")[2] in {*MAKING, "expect"}
        for argument in node.args
        for value in (resolved(argument, module) or ())
        if re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)+", value)
    }


def test_no_claim_is_left_out_here() -> None:
    found = names_in_the_source()
    assert len(found) > 100
    assert found - claims() == set()


def fits(written: str, name: str) -> bool:
    """Whether a name as the page writes it, with … for anything, stands for a claim."""
    return re.fullmatch(re.escape(written).replace("…", ".*"), name) is not None


def in_the_page() -> set[str]:
    """Claims in second cells, and those in the list of claims that are never refused."""
    never = CODES.partition("## Claims that are never refused")[2].partition("\n## ")[0]
    listed = "".join(cell for cell in rows(CODES).values() if re.match(r"^(`[a-z…]|any)", cell))
    return {
        name
        for name in re.findall(r"`([a-z0-9_.…]+)`", listed + never)
        if "." in name or "…" in name or name == "denied"
    }


def test_every_claim_is_in_the_reference() -> None:
    written = in_the_page()
    assert {name for name in claims() if not any(fits(one, name) for one in written)} == set()


def test_the_reference_names_no_other_claim() -> None:
    known = {*claims(), *(f"expected.{name}" for name in snp.FIELD_NAMES), gpus.RIM}
    assert {one for one in in_the_page() if not any(fits(one, name) for name in known)} == set()
