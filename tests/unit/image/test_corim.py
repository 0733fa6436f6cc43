"""CoRIM: what a verifier of another make would read, and that nothing is lost or added."""

from __future__ import annotations

import cbor2
import pytest

from cloister.errors import MalformedError, UnsupportedError
from cloister.evidence.component import Component, ComponentKind
from cloister.image.corim import encode_corim, parse_corim
from cloister.verifier.platform_references import PlatformReference, ReferenceImage
from cloister.verifier.reference_values import ReferenceValues

ONE, TWO, LONG = "11" * 32, "22" * 32, "33" * 48
IMAGE = ReferenceImage(name="cloister", version="7 beta", debug=False)
TDX = PlatformReference(
    platform="tdx",
    name="image on TDX",
    registers={"mr_td": (LONG,), **{f"rtmr{n}": (LONG, "44" * 48) for n in range(4)}},
    image=IMAGE,
)
SNP = PlatformReference(platform="snp", name="image on SNP", registers={"measurement": (LONG,)})
SGX = PlatformReference(platform="sgx", name="enclave", registers={"mrenclave": (ONE, TWO)})
VALUES = ReferenceValues.from_platforms(TDX, SNP, SGX)


def test_nothing_is_lost() -> None:
    data = encode_corim(VALUES)
    assert parse_corim(data).digest == VALUES.digest
    assert encode_corim(parse_corim(data)) == data


def test_it_is_laid_out_as_the_draft_says() -> None:
    corim = cbor2.loads(encode_corim(ReferenceValues.from_platforms(TDX)))
    assert corim.tag == 501
    assert corim.value[0].startswith("cloister/reference-values/sha256:")
    (tag,) = corim.value[1]
    assert tag.tag == 506
    comid = cbor2.loads(tag.value)
    assert comid[1] == {0: f"{corim.value[0]}/0"}
    ((environment, measurements),) = comid[4][0]
    assert environment == {0: {1: "Cloister", 2: "tdx"}}
    ((values,),) = (list(measurement.values()) for measurement in measurements)
    assert values[11] == "image on TDX"
    assert values[0] == {0: "cloister 7 beta"}
    assert values[3] == {3: False}
    assert values[14]["mr_td"] == [[7, bytes.fromhex(LONG)]]
    assert values[14]["rtmr2"] == [[7, b"\x33" * 48], [7, b"\x44" * 48]]


def test_digests_of_sha_256() -> None:
    corim = cbor2.loads(encode_corim(ReferenceValues.from_platforms(SGX)))
    comid = cbor2.loads(corim.value[1][0].value)
    registers = comid[4][0][0][1][0][1][14]
    assert registers == {"mrenclave": [[1, b"\x11" * 32], [1, b"\x22" * 32]]}


def test_equal_values_are_equal_bytes() -> None:
    other = ReferenceValues.from_platforms(SGX, TDX, SNP)
    assert encode_corim(other) == encode_corim(VALUES)


def test_what_has_no_place_in_it() -> None:
    signer = PlatformReference(
        platform="sgx",
        name="by signer",
        registers={"mrsigner": (ONE,), "isvprodid": ("0001",), "isvsvn": ("0002",)},
    )
    component = Component(
        kind=ComponentKind.MODEL, name="m", version="1", digest=f"sha256:{ONE}", configuration=None
    )
    for values in (
        ReferenceValues.from_platforms(signer),
        ReferenceValues.from_components([component]),
        ReferenceValues(),
    ):
        with pytest.raises(UnsupportedError) as caught:
            encode_corim(values)
        assert caught.value.code == "image.corim"


def changed(
    *,
    outer: int = 501,
    inner: int = 506,
    comid: dict[int, object] | None = None,
    document: dict[int, object] | None = None,
) -> bytes:
    corim = cbor2.loads(encode_corim(ReferenceValues.from_platforms(SNP)))
    module = {**cbor2.loads(corim.value[1][0].value), **(comid or {})}
    tag = cbor2.CBORTag(inner, cbor2.dumps(module, canonical=True))
    members = {0: corim.value[0], 1: [tag], **(document or {})}
    return cbor2.dumps(cbor2.CBORTag(outer, members), canonical=True)


GOOD = changed()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\xa0",
        cbor2.dumps({0: "x"}),
        GOOD[:-1],
        GOOD + b"\0",
        changed(outer=502),
        changed(inner=505),
        changed(document={0: "another id"}),
        changed(document={2: []}),
        changed(document={1: [b"bytes"]}),
        changed(document={1: 7}),
        changed(comid={0: "en"}),
        changed(comid={4: {}}),
        changed(comid={4: {0: []}}),
        bytes((8 << 20) + 1),
    ],
)
def test_other_documents_are_refused(data: bytes) -> None:
    assert parse_corim(GOOD).platforms
    with pytest.raises(MalformedError) as caught:
        parse_corim(data)
    assert caught.value.code == "image.corim"


def test_numbers_in_more_bytes_than_they_need_are_refused() -> None:
    """Two readers might agree on it, and two digests would not."""
    assert GOOD[:4] == b"\xd9\x01\xf5\xa2"
    loose = GOOD[:4] + b"\x18\x00" + GOOD[5:]
    with pytest.raises(MalformedError):
        parse_corim(loose)
