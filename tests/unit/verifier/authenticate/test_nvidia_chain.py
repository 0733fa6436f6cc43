"""What both users of these chains rely on."""

from __future__ import annotations

import pytest

from cloister.endorsements import ocsp
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


def test_each_of_a_heap_of_answers_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many chains they are about, and none once one of them is bad."""
    leaf, *above = GPU.leaf.chain
    anchors = NVIDIA.roots.vendor(Vendor.NVIDIA_DEVICE)
    chain = authenticate_chain(leaf, above, anchors=anchors, at=NOW)
    serial = chain.certificates[1].serial_number
    looks: list[bytes] = []

    def looked(answer: bytes, *_: object, **__: object) -> ocsp.OcspAnswer:
        looks.append(answer)
        status = ocsp.CertificateStatus(answer.decode())
        return ocsp.OcspAnswer(
            status=status, this_update=NOW, next_update=None, revoked_at=None, nonce=None
        )

    monkeypatch.setattr("cloister.verifier.authenticate.nvidia_chain.check_answer", looked)
    good = Revocation(answers={serial: (b"good",) * 3})
    assert [good.apply(chain, NOW).holds for _ in range(4)] == [True] * 4
    assert looks == [b"good"] * 3
    looks.clear()
    bad = Revocation(answers={serial: (b"good", b"revoked", b"good", b"unknown")})
    assert [bad.apply(chain, NOW).holds for _ in range(4)] == [False] * 4
    assert looks == [b"good", b"revoked"]
