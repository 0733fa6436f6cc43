"""Arbitrary bytes for artefacts, bundles and headers: `MalformedError`, and nothing else."""

from __future__ import annotations

import contextlib
import json

from hypothesis import given
from hypothesis import strategies as st

from cloister.endorsements.artefact import (
    ArtefactKind,
    ArtefactRequest,
    ak_intermediate,
    nvidia_ocsp,
    nvidia_rim,
)
from cloister.endorsements.bundle import encode_bundle, parse_bundle
from cloister.endorsements.contents import make_artefact, parse_pem_chain
from cloister.endorsements.fetch.retrieve import retry_after
from cloister.endorsements.needs import requests_for
from cloister.endorsements.ocsp import parse_ocsp
from cloister.errors import ConfigurationError, MalformedError, UnsupportedError
from support.ocsp import DEVICE, ISSUER, answer
from support.published import NOW, TDX_NEEDS, Issue, amd_artefacts, manifest

OCSP = nvidia_ocsp(DEVICE.certificate, ISSUER.certificate)
RIM = nvidia_rim("NV_X")
AK = ak_intermediate("https://pki.goog/x", azure=False)
ISSUE = Issue()
GOOD = {one.request: one.data for one in (*map(ISSUE.artefact, TDX_NEEDS), *amd_artefacts())}
GOOD |= {OCSP: answer(), RIM: manifest(), AK: b""}
BUNDLE = encode_bundle([ISSUE.artefact(TDX_NEEDS[0])])


def edited(data: bytes, at: int, new: bytes) -> bytes:
    at %= len(data) + 1
    return data[:at] + new + data[at + len(new) :]


@given(st.sampled_from(list(GOOD)), st.binary(max_size=200))
def test_any_bytes(request_: ArtefactRequest, data: bytes) -> None:
    try:
        make_artefact(request_, data, source="x", fetched_at=NOW)
    except MalformedError as error:
        assert error.code == "endorsement.malformed"


@given(st.sampled_from(list(GOOD)), st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_edited_artefacts(request_: ArtefactRequest, at: int, new: bytes) -> None:
    try:
        made = make_artefact(request_, edited(GOOD[request_], at, new), source="x", fetched_at=NOW)
    except MalformedError as error:
        assert error.code == "endorsement.malformed"
    else:
        assert made.request == request_


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_edited_bundles(at: int, new: bytes) -> None:
    try:
        parse_bundle(edited(BUNDLE, at, new), name="b")
    except MalformedError as error:
        assert error.code == "endorsement.bundle"


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_bundles_of_anything(value: object) -> None:
    members = json.loads(BUNDLE)
    for name in members["artefacts"][0]:
        entry = {**members["artefacts"][0], name: value}
        document = json.dumps({**members, "artefacts": [entry]}).encode()
        try:
            parse_bundle(document, name="b")
        except MalformedError as error:
            assert error.code == "endorsement.bundle"


@given(st.sampled_from(list(ArtefactKind)), st.text(max_size=60))
def test_any_key(kind: ArtefactKind, key: str) -> None:
    try:
        request = ArtefactRequest(kind=kind, key=key)
    except ConfigurationError:
        return
    assert request.key.isascii()
    assert request.key.isprintable()
    assert ".." not in request.key or kind in {
        ArtefactKind.NVIDIA_RIM,
        ArtefactKind.AZURE_AK_INTERMEDIATE,
        ArtefactKind.GCP_AK_INTERMEDIATE,
    }


@given(st.text(max_size=70))
def test_any_wait(value: str) -> None:
    seconds = retry_after(value, NOW)
    assert seconds is None or seconds >= 0


@given(st.binary(max_size=300))
def test_any_evidence(data: bytes) -> None:
    with contextlib.suppress(MalformedError, UnsupportedError, ConfigurationError):
        requests_for(data)
    for parse in (parse_pem_chain, parse_ocsp):
        with contextlib.suppress(MalformedError):
            parse(data)
