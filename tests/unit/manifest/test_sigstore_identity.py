"""Signatures by identity: a real bundle of Sigstore's staging instance, and how owners count.

What is signed there is a file of Sigstore's own tests, not a manifest: nobody here can sign in to a
provider of identities. That a manifest's owners by identity count like others is shown with a
stand-in for the check of their signature.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import (
    AuthenticationError,
    CloisterError,
    ConfigurationError,
    UnsupportedError,
)
from cloister.manifest import (
    SignedManifest,
    SignerPin,
    SigstoreOwner,
    authenticate_bundle,
    load_bundle,
)
from cloister.manifest.bundle import Link
from cloister.manifest.dsse import Signature
from cloister.manifest.signing import with_signature
from cloister.manifest.sigstore_identity import SigstoreIdentities
from cloister.testing.signed_manifests import make_manifest, sign_first
from support.manifests import ALICE, AT, ISSUED

VECTOR: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "sigstore" / "staging.json").read_text()
)
ARTEFACT = base64.b64decode(VECTOR["artefact_b64"])
OWNER = SigstoreOwner(name="somebody", subject=VECTOR["identity"], issuer=VECTOR["issuer"])
BUNDLE = json.dumps(VECTOR["bundle"]).encode()

needs_sigstore = pytest.mark.skipif(
    importlib.util.find_spec("sigstore") is None,
    reason="Sigstore's library is not installed (cloister[sigstore])",
)


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> SigstoreIdentities:
    path = tmp_path_factory.mktemp("sigstore") / "root.json"
    path.write_text(json.dumps(VECTOR["trusted_root"]))
    return SigstoreIdentities.from_trusted_root(path)


@needs_sigstore
def test_a_real_bundle_holds_for_its_identity(identities: SigstoreIdentities) -> None:
    identities.verify(OWNER, BUNDLE, ARTEFACT)


def changed(*path: str | int, value: object) -> bytes:
    bundle = json.loads(BUNDLE)
    holder = bundle
    for step in path[:-1]:
        holder = holder[step]
    assert holder[path[-1]] != value
    holder[path[-1]] = value
    return json.dumps(bundle).encode()


ENTRY = ("verificationMaterial", "tlogEntries", 0)
ALTERED = {
    "another identity": (dataclasses.replace(OWNER, subject="other@example.com"), BUNDLE, ARTEFACT),
    "another provider": (dataclasses.replace(OWNER, issuer="https://x.example"), BUNDLE, ARTEFACT),
    "another file": (OWNER, BUNDLE, ARTEFACT + b"\n"),
    "no bundle": (OWNER, b"{}", ARTEFACT),
    "no JSON": (OWNER, b"\xff", ARTEFACT),
    "another time in the log": (
        OWNER,
        changed(*ENTRY, "integratedTime", value="1712085550"),
        ARTEFACT,
    ),
    "another place in the log": (
        OWNER,
        changed(*ENTRY, "inclusionProof", "rootHash", value=base64.b64encode(bytes(32)).decode()),
        ARTEFACT,
    ),
    "another signature": (
        OWNER,
        changed("messageSignature", "signature", value=base64.b64encode(bytes(70)).decode()),
        ARTEFACT,
    ),
    "not in a log": (OWNER, changed(*ENTRY[:2], value=[]), ARTEFACT),
}


@needs_sigstore
@pytest.mark.parametrize("name", ALTERED)
def test_anything_else_is_refused(identities: SigstoreIdentities, name: str) -> None:
    identities.verify(OWNER, BUNDLE, ARTEFACT)
    with pytest.raises(AuthenticationError) as refused:
        identities.verify(*ALTERED[name])
    assert refused.value.code == "manifest.signature"


@needs_sigstore
def test_another_instances_root_knows_none_of_it(tmp_path: Path) -> None:
    root = json.loads(json.dumps(VECTOR["trusted_root"]))
    for authority in root["certificateAuthorities"]:
        authority["certChain"]["certificates"] = root["timestampAuthorities"][0]["certChain"][
            "certificates"
        ][-1:]
    path = tmp_path / "root.json"
    path.write_text(json.dumps(root))
    with pytest.raises(AuthenticationError):
        SigstoreIdentities.from_trusted_root(path).verify(OWNER, BUNDLE, ARTEFACT)


@needs_sigstore
@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff"])
def test_a_root_that_is_none_is_told(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "root.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError) as refused:
        SigstoreIdentities.from_trusted_root(path)
    assert refused.value.code == "manifest.sigstore_root"


def test_without_the_library_nothing_is_a_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sigstore.models", None)
    with pytest.raises(UnsupportedError, match=r"cloister\[sigstore\]"):
        SigstoreIdentities.from_trusted_root(tmp_path / "root.json")


class StandIn:
    """Holds whatever says ``good`` for a signature."""

    def verify(self, owner: SigstoreOwner, signature: bytes, payload: bytes) -> None:
        assert owner == OWNER
        assert payload
        if signature == b"undecided":
            raise UnsupportedError("not today")
        if signature != b"good":
            raise AuthenticationError("no", code="manifest.signature")


def by_identity(signature: bytes, **options: Any) -> SignedManifest:
    """A manifest that Alice and an identity own, signed by the identity alone."""
    signed = sign_first(make_manifest(owners=[ALICE, OWNER], at=ISSUED, **options), ALICE)
    envelope = dataclasses.replace(signed.links[0].envelope, signatures=())
    made = with_signature(envelope, Signature(key_id=OWNER.key_id, data=signature))
    return dataclasses.replace(signed, links=(Link.of(made),))


def test_an_owner_by_identity_counts_like_another() -> None:
    found = authenticate_bundle(
        load_bundle(by_identity(b"good").encode()),
        SignerPin(signers=(OWNER,)),
        at=AT,
        identities=StandIn(),
    )
    assert found.signers == (OWNER,)


@pytest.mark.parametrize(
    ("signature", "kind", "code"),
    [
        (b"bad", AuthenticationError, "manifest.signature"),
        (b"undecided", UnsupportedError, "manifest.identities"),
    ],
)
def test_one_whose_signature_does_not_hold_does_not(
    signature: bytes, kind: type[CloisterError], code: str
) -> None:
    with pytest.raises(kind) as refused:
        authenticate_bundle(
            by_identity(signature), SignerPin(signers=(OWNER,)), at=AT, identities=StandIn()
        )
    assert refused.value.code == code


def test_an_owner_by_identity_counts_once() -> None:
    with pytest.raises(AuthenticationError) as refused:
        authenticate_bundle(
            by_identity(b"good", threshold=2),
            SignerPin(signers=(OWNER,)),
            at=AT,
            identities=StandIn(),
        )
    assert refused.value.code == "manifest.threshold"
