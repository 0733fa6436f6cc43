"""The folder of pinned certificates is what its list says."""

from __future__ import annotations

import hashlib
import re
import tomllib
from importlib.resources import files
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements import pinned
from cloister.endorsements.certificates import parse_certificates
from cloister.endorsements.genuine import issued_under
from cloister.endorsements.roots import Vendor

FOLDER = files(pinned)
LISTED: list[dict[str, Any]] = tomllib.loads((FOLDER / pinned.PROVENANCE).read_text())[
    "certificates"
]
NAMES = [entry["file"] for entry in LISTED]
VENDORS = sorted({entry["vendor"] for entry in LISTED})


def certificate(entry: dict[str, Any]) -> x509.Certificate:
    (found,) = parse_certificates((FOLDER / entry["file"]).read_bytes())
    return found


def is_ca(found: x509.Certificate) -> bool:
    return found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_nothing_unlisted_lies_in_the_folder() -> None:
    there = {path.name for path in FOLDER.iterdir() if path.name != "__pycache__"}
    assert there == {"__init__.py", pinned.PROVENANCE, *NAMES}
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("entry", LISTED, ids=NAMES)
def test_each_is_what_the_list_says(entry: dict[str, Any]) -> None:
    found = certificate(entry)
    der = found.public_bytes(Encoding.DER)
    assert hashlib.sha256(der).hexdigest() == entry["sha256"]
    assert found.subject.rfc4514_string() == entry["subject"]
    assert entry["kind"] in {"anchor", "intermediate"}
    assert entry["published"]
    assert (FOLDER / entry["file"]).read_bytes().count(b"-----BEGIN") == 1


@pytest.mark.parametrize("entry", LISTED, ids=NAMES)
def test_each_was_compared_with_public_sources(entry: dict[str, Any]) -> None:
    assert entry["compared_with"]
    for source in entry["compared_with"]:
        assert re.match(r"[\w.-]+/[\w.-]+(@[0-9a-f]{12}:\S+| .+)$|https://\S+", source), source


@pytest.mark.parametrize("entry", LISTED, ids=NAMES)
def test_cas_are_cas(entry: dict[str, Any]) -> None:
    found = certificate(entry)
    # Intel's TCB signing certificates sign documents, not certificates.
    assert is_ca(found) == (not entry["file"].startswith("intel_tcb_signing"))
    if entry["kind"] == "anchor":
        assert found.issuer == found.subject
        found.verify_directly_issued_by(found)


@pytest.mark.parametrize("entry", LISTED, ids=NAMES)
def test_each_chains_to_an_anchor_of_its_vendor(entry: dict[str, Any]) -> None:
    roots = pinned.pinned_roots()
    found = certificate(entry)
    assert issued_under(found, roots.intermediates, roots.vendor(Vendor(entry["vendor"])))
    others = [vendor for vendor in Vendor if vendor != entry["vendor"]]
    assert not issued_under(found, roots.intermediates, roots.vendor(*others))


def test_the_roots_are_those_of_the_list() -> None:
    roots = pinned.pinned_roots()
    anchors = [certificate(entry) for entry in LISTED if entry["kind"] == "anchor"]
    assert [anchor.certificate for anchor in roots.anchors] == anchors
    assert len(roots.intermediates) == len(LISTED) - len(anchors)
    assert not any(anchor.development for anchor in roots.anchors)
    assert sorted({str(anchor.vendor) for anchor in roots.anchors}) == VENDORS
