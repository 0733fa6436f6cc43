"""Reference values are a set with one digest, however they were written down."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest

from cloister.errors import ConfigurationError
from cloister.evidence.component import ComponentKind
from cloister.evidence.tpm import Alg
from cloister.testing.simulated_tpm import default_components, made_up
from cloister.testing.simulated_vtpm import SimulatedVtpm
from cloister.verifier import reference_values
from cloister.verifier.platform_references import IDENTITY, PlatformReference
from cloister.verifier.reference_values import FORMAT, ReferenceComponent, ReferenceValues

VALUES = ReferenceValues.from_components(default_components())


def document(**changes: object) -> bytes:
    component = VALUES.components[0].to_json()
    return json.dumps({"format": FORMAT, "components": [component], **changes}).encode()


def test_both_formats_give_back_the_same_values() -> None:
    odd = made_up(ComponentKind.UNOWNED, 'bin/"odd" \u2028 \x7f näme', "")
    values = ReferenceValues.from_components((*default_components(), odd))
    assert reference_values.load_json(values.dump_json().encode()) == values
    assert reference_values.load_toml(values.dump_toml().encode()) == values


def test_order_does_not_matter() -> None:
    backwards = ReferenceValues.from_components(reversed(default_components()))
    assert backwards == VALUES
    assert backwards.digest == VALUES.digest


def test_the_digest_covers_this_text() -> None:
    model = made_up(ComponentKind.MODEL, "demo")
    text = (
        f'{{"components":[{{"digests":["{model.digest}"],"kind":"model","name":"demo",'
        '"version":"1.0"}],"format":"cloister/reference-values/1"}'
    )
    values = ReferenceValues.from_components((model,))
    assert values.digest == "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def test_merging_joins_digests_and_keeps_versions_apart() -> None:
    one = made_up(ComponentKind.MODEL, "demo")
    other = dataclasses.replace(one, digest="sha256:" + "0" * 64)
    newer = made_up(ComponentKind.MODEL, "demo", "2.0")
    merged = ReferenceValues.from_components((one,)).merged(
        ReferenceValues.from_components((other, newer))
    )
    assert merged.components == (
        ReferenceComponent(
            kind=ComponentKind.MODEL,
            name="demo",
            version="1.0",
            digests=tuple(sorted((one.digest, other.digest))),
        ),
        ReferenceComponent(
            kind=ComponentKind.MODEL, name="demo", version="2.0", digests=(newer.digest,)
        ),
    )
    assert merged.named == {(ComponentKind.MODEL, "demo")}
    assert {(version, digest) for _, _, version, digest in merged.exact} == {
        (entry.version, digest) for entry in merged.components for digest in entry.digests
    }


def component(**changes: object) -> list[object]:
    return [{**VALUES.components[0].to_json(), **changes}]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        document(format="cloister/reference-values/2"),
        document(more=1),
        document(components=[]),
        document(components={}),
        document(components=component(kind="driver")),
        document(components=component(name=7)),
        document(components=component(digests=[])),
        document(components=component(digests=["sha256:00"])),
        document(components=component(digests=["sha512:" + "0" * 64])),
        document(components=component(digests=["sha256:" + "A" * 64])),
        document(components=component(more=1)),
        document(components=component() + component()),
        b'{"format":"a","format":"b"}',
    ],
)
def test_other_bytes_are_no_reference_values(data: bytes) -> None:
    reference_values.load_json(document())
    with pytest.raises(ConfigurationError) as raised:
        reference_values.load_json(data)
    assert raised.value.code == "reference_values_malformed"


@pytest.mark.parametrize(
    "data", [b"", b"format", b"\xff", b'format = "cloister"\n', b"a = " + b"9" * 5000]
)
def test_other_bytes_are_no_reference_values_in_toml(data: bytes) -> None:
    with pytest.raises(ConfigurationError) as raised:
        reference_values.load_toml(data)
    assert raised.value.code == "reference_values_malformed"


def reference(**changes: object) -> dict[str, object]:
    return {
        "platform": "snp",
        "name": "image 1",
        "registers": {"measurement": ["aa" * 48, "bb" * 48], "host_data": ["00" * 32]},
        **changes,
    }


def platforms(*entries: object) -> bytes:
    return document(platforms=list(entries))


def test_platforms_survive_both_formats() -> None:
    values = reference_values.load_json(platforms(reference(), reference(name="image 2")))
    alone = ReferenceValues.from_platforms(*values.platforms)
    for made in (values, alone):
        assert reference_values.load_json(made.dump_json().encode()) == made
        assert reference_values.load_toml(made.dump_toml().encode()) == made
    assert values.digest != VALUES.digest
    assert alone.merged(values).platforms == values.platforms


def test_a_platform_matches_whole_or_not_at_all() -> None:
    one = reference_values.load_json(platforms(reference())).platforms[0]
    good = {"measurement": b"\xbb" * 48, "host_data": bytes(32), "chip_id": b"any"}
    assert one.matches(good)
    assert one.differing({**good, "measurement": b"\xcc" * 48}) == ("measurement",)
    assert one.differing({"measurement": good["measurement"]}) == ("host_data",)
    assert not one.matches({})


@pytest.mark.parametrize(
    "broken",
    [
        reference(platform="sparc"),
        reference(registers={}),
        reference(registers={"host_data": ["00" * 32]}),
        reference(registers={"measurement": []}),
        reference(registers={"measurement": ["AA"]}),
        reference(registers={"measurement": ["a"]}),
        reference(registers={"measurement": "aa"}),
        reference(registers={"measurement": [1]}),
        reference(platform="tdx", registers={"mr_td": ["aa" * 48]}),
        reference(platform="sgx", registers={"mrsigner": ["aa" * 32]}),
        reference(platform="azure-snp", registers={"pcr4": ["aa" * 32], "pcr11": ["aa" * 32]}),
        {"platform": "snp"},
        reference(more=1),
    ],
)
def test_a_reference_that_leaves_room_for_other_software(broken: object) -> None:
    reference_values.load_json(platforms(reference()))
    with pytest.raises(ConfigurationError) as raised:
        reference_values.load_json(platforms(reference(name="other"), broken))
    assert raised.value.code == "reference_values_malformed"


@pytest.mark.parametrize(
    ("platform", "registers"),
    [
        ("snp", {}),
        ("snp", {"host_data": ("00" * 32,)}),
        ("tdx", {"mr_td": ("aa" * 48,)}),
        ("sparc", {"measurement": ("aa" * 48,)}),
    ],
)
def test_a_reference_made_by_a_program_leaves_no_room_either(
    platform: str, registers: dict[str, tuple[str, ...]]
) -> None:
    good = PlatformReference(platform="snp", name="one", registers={"measurement": ("aa" * 48,)})
    assert good.matches({"measurement": b"\xaa" * 48})
    with pytest.raises(ConfigurationError) as raised:
        PlatformReference(platform=platform, name="one", registers=registers)
    assert raised.value.code == "reference_values_malformed"


@pytest.mark.parametrize("platform", ["azure-snp", "azure-tdx", "gcp-snp", "gcp-vtpm", "tpm"])
def test_another_command_line_is_another_state(platform: str) -> None:
    """A boot loader measures it into one register, which has to be among those listed."""
    (listed,) = IDENTITY[platform]

    def state(command_line: str) -> dict[str, bytes]:
        vtpm = SimulatedVtpm()
        vtpm.boot(command_line=command_line)
        found = {f"pcr{n}": value for n, value in vtpm.registers[Alg.SHA256].items()}
        return {name: found[name] for name in listed if name in found}

    assert state("/vmlinuz ro") == state("/vmlinuz ro")
    assert state("/vmlinuz ro") != state("/vmlinuz ro init=/bin/sh")


def test_a_platform_listed_twice() -> None:
    with pytest.raises(ConfigurationError):
        reference_values.load_json(platforms(reference(), reference()))


IMAGE = {"name": 'an "image"', "version": "1 \u2028\x7f", "debug": False}


def test_the_image_of_a_state_survives_both_formats() -> None:
    values = reference_values.load_json(
        platforms(reference(image=IMAGE, name="odd \x7f"), reference())
    )
    (image,) = values.images
    assert (image.name, image.version, image.debug) == tuple(IMAGE.values())
    assert reference_values.load_json(values.dump_json().encode()) == values
    alone = ReferenceValues.from_platforms(*values.platforms)
    assert reference_values.load_toml(alone.dump_toml().encode()) == alone
    assert values.digest != reference_values.load_json(platforms(reference())).digest


@pytest.mark.parametrize(
    "image",
    [
        None,
        "demo",
        {"name": "demo", "version": "1"},
        {**IMAGE, "debug": 0},
        {**IMAGE, "debug": None},
        {**IMAGE, "more": 1},
        {**IMAGE, "name": "x" * 129},
        {**IMAGE, "version": 1},
    ],
)
def test_an_image_that_does_not_say_what_it_is(image: object) -> None:
    reference_values.load_json(platforms(reference(image=IMAGE)))
    with pytest.raises(ConfigurationError):
        reference_values.load_json(platforms(reference(image=image)))


def test_values_made_from_others_are_compared_with_their_own_components() -> None:
    """Also where the others were compared with already, and what that needs is kept."""
    one, other = (made_up(ComponentKind.MODEL, name) for name in ("one", "other"))
    first = ReferenceValues.from_components((one,))
    named = {(ComponentKind.MODEL, "one")}
    exact = {(ComponentKind.MODEL, "one", one.version, one.digest)}
    assert first.named == named
    assert first.exact == exact
    second = ReferenceValues.from_components((other,))
    changed = dataclasses.replace(first, components=second.components)
    assert (changed.named, changed.exact) == (second.named, second.exact)
    assert changed.named == {(ComponentKind.MODEL, "other")}
