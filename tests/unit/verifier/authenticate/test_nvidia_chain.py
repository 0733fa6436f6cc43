"""What both users of these chains rely on."""

from __future__ import annotations

from cloister.endorsements.roots import Vendor
from cloister.verifier.authenticate.nvidia_chain import Revocation, by_serial, chain_holds
from cloister.verifier.chain import authenticate_chain
from support.nvgpu import GPU, NOW, NVIDIA


def test_a_chain_holds_only_for_a_key_that_signs() -> None:
    leaf, *above = GPU.leaf.chain
    anchors = NVIDIA.roots.vendor(Vendor.NVIDIA_DEVICE)
    chain = authenticate_chain(leaf, above, anchors=anchors, at=NOW)
    assert chain_holds(chain, Revocation())
    issuer = authenticate_chain(above[0], above[1:], anchors=anchors, at=NOW)
    assert issuer.holds
    assert not chain_holds(issuer, Revocation())


def test_answers_that_do_not_decode_answer_nothing() -> None:
    assert by_serial((b"", b"x")) == {}
    assert not Revocation(answers=by_serial((b"x",))).asked
