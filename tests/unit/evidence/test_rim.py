"""Manifests: a small part of XML, and nothing that two readers could take differently."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from cloister.errors import MalformedError
from cloister.evidence.rim import MAX_RIM_BYTES, parse_rim, parse_signed_content
from cloister.testing.simulated_nvgpu import SimulatedNvidia, digest, rim_text

NVIDIA = SimulatedNvidia.make(now=datetime(2026, 1, 1, tzinfo=UTC))
GOLDEN = {3: (digest("three"),), 1: (digest("one"), digest("uno"))}
TEXT = rim_text(GOLDEN, version="550.90.07", size=5)
SIGNED = NVIDIA.sign(TEXT).decode()


def test_a_manifest_decodes() -> None:
    document = parse_rim(SIGNED.encode())
    rim = document.rim
    assert (rim.version, rim.product, rim.edition) == ("550.90.07", "GH100", "GPU")
    assert [golden.index for golden in rim.active] == [1, 3]
    assert rim.measurements[1].alternatives == (digest("one"), digest("uno"))
    assert not rim.measurements[0].active
    assert len(document.certificates) == 3
    assert parse_signed_content(TEXT.encode()) == rim


def refused(text: str | bytes, why: str = "manifest|certificate") -> None:
    """`text` is refused as a document, and the unaltered one is not."""
    parse_rim(SIGNED.encode())
    data = text if isinstance(text, bytes) else text.encode()
    assert data != SIGNED.encode()
    with pytest.raises(MalformedError, match=why):
        parse_rim(data)


BILLION_LAUGHS = (
    '<!DOCTYPE lolz [<!ENTITY a0 "lol">'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 30))
    + "]>"
)


@pytest.mark.parametrize(
    "doctype",
    [
        BILLION_LAUGHS,
        "<!DOCTYPE SoftwareIdentity>",
        '<!DOCTYPE SoftwareIdentity SYSTEM "http://127.0.0.1:9/x.dtd">',
        '<!DOCTYPE SoftwareIdentity [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE SoftwareIdentity [<!ENTITY % x SYSTEM "http://127.0.0.1:9/x"> %x;]>',
    ],
    ids=["laughs", "empty", "dtd", "entity", "parameter"],
)
def test_document_types_are_refused_at_once(doctype: str) -> None:
    begun = time.process_time()
    refused(doctype + SIGNED.replace("GH100", "&a29;"), "document type")
    assert time.process_time() - begun < 1


def test_unknown_entities_are_refused() -> None:
    refused(SIGNED.replace('product="GH100"', 'product="&x;"'), "well-formed")


@pytest.mark.parametrize("junk", ["_", "!", "=", "é"])
@pytest.mark.parametrize("element", ["SignatureValue", "DigestValue"])
def test_signatures_and_digests_have_one_spelling(element: str, junk: str) -> None:
    """The library for signatures reads past what is no base64."""
    refused(SIGNED.replace(f"<ds:{element}>", f"<ds:{element}>{junk}"), "base64")


@pytest.mark.parametrize("element", ["SignatureValue", "DigestValue"])
def test_signatures_and_digests_are_not_endless(element: str) -> None:
    refused(SIGNED.replace(f"<ds:{element}>", f"<ds:{element}>{'AAAA' * 40}"), "not base64 of at")


@pytest.mark.parametrize(
    "aside",
    ["<!-- x -->", "<![CDATA[ ]]>", "<?php x?>"],
    ids=["comment", "cdata", "instruction"],
)
@pytest.mark.parametrize("where", ["</ns0:Payload>", "<ds:Signature ", "</ds:X509Certificate>"])
def test_asides_are_refused_anywhere(aside: str, where: str) -> None:
    refused(SIGNED.replace(where, aside + where, 1), "comments")


def test_a_comment_does_not_cut_text() -> None:
    """Some readers take ``AB<!---->CD`` for ``AB``, and some for ``ABCD``."""
    at = SIGNED.index("<ds:X509Certificate>") + 40
    refused(SIGNED[:at] + "<!---->" + SIGNED[at:], "comments")


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_other_encodings_are_refused(encoding: str) -> None:
    declared = f'<?xml version="1.0" encoding="{encoding}"?>'
    parse_rim(('<?xml version="1.0" encoding="UTF-8"?>' + SIGNED).encode())
    refused(declared + SIGNED, "UTF-8")
    refused((declared + SIGNED).encode("utf-16"), "well-formed|UTF-8")


def resource(text: str) -> str:
    """The first active measurement, with something replaced."""
    return text[text.index('index="1"') : text.index('name="Measurement_1"')]


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.replace('active="True"', 'active="true"'),
        lambda one: one.replace('alternatives="2"', 'alternatives="1"'),
        lambda one: one.replace('alternatives="2"', 'alternatives="3"'),
        lambda one: one.replace('alternatives="2"', 'alternatives="+2"'),
        lambda one: one.replace('index="1"', 'index="01"'),
        lambda one: one.replace('index="1"', 'index="255"'),
        lambda one: one.replace('index="1"', 'index="2"'),
        lambda one: one.replace("Hash0", "Hash2"),
        lambda one: one.replace("ns2:Hash0", "ns0:Hash0"),
        lambda one: one.replace("ns2:Hash0", "Hash0"),
        lambda one: one.replace('Hash0="', 'Hash0="00'),
        lambda one: one.replace('Hash0="', 'Hash0="zz')[:-2],
    ],
)
def test_unreadable_measurements_are_refused(change: Callable[[str], str]) -> None:
    one = resource(SIGNED)
    refused(SIGNED.replace(one, change(one)), "measurement|number|well-formed")


def test_other_sizes_and_types_are_refused() -> None:
    refused(SIGNED.replace('size="48"', 'size="32"', 1), "measurement")
    refused(SIGNED.replace('type="Measurement"', 'type="Other"', 1), "measurement")


def test_something_has_to_be_active() -> None:
    refused(SIGNED.replace('active="True"', 'active="False"'), "no active")


@pytest.mark.parametrize("name", ["tagId", "colloquialVersion", "edition", "product"])
def test_what_it_is_for_has_to_be_named(name: str) -> None:
    refused(SIGNED.replace(f"{name}=", f"x{name}="), name)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<ns0:Payload>", "<ns0:Payload/><ns0:Payload>"),
        ("<ns0:Payload>", "<ns0:Other/><ns0:Payload>"),
        ("<ns0:Payload>", "<Payload xmlns=''/><ns0:Payload>"),
        ("<ns0:Payload>", "text<ns0:Payload>"),
        ("<ns0:Payload>", "<ns0:Payload>text"),
        ("<ns0:Meta ", "<ns0:Meta colloquialVersion='1' edition='GPU' product='X'/><ns0:Meta "),
        ("<ns0:Entity ", "<ns0:Entity><ns0:Meta/></ns0:Entity><ns0:Entity "),
        ("<ns0:Payload>", "<ns0:SoftwareIdentity/><ns0:Payload>"),
    ],
)
def test_elements_stand_in_their_places(old: str, new: str) -> None:
    refused(SIGNED.replace(old, new, 1))


def signature() -> str:
    return SIGNED[SIGNED.index("<ds:Signature ") : SIGNED.index("</SoftwareIdentity>")]


def test_there_is_one_signature_at_the_end() -> None:
    one = signature()
    refused(SIGNED.replace(one, ""), "exactly one signature")
    refused(SIGNED.replace(one, one + one), "exactly one signature")
    refused(SIGNED.replace(one, one + "<ns0:Link/>"), "exactly one signature")
    hidden = SIGNED.replace(one, "").replace("</ns0:Payload>", one + "</ns0:Payload>")
    refused(hidden, "exactly one signature")
    refused(SIGNED.replace(one, "<ns0:Link>" + one + "</ns0:Link>" + one), "nests")


def test_a_second_manifest_is_refused() -> None:
    """Wrapping: the signed manifest within another one, and both beside each other."""
    evil = TEXT.replace(digest("one").hex(), digest("evil").hex())
    refused(evil.replace("</SoftwareIdentity>", SIGNED + "</SoftwareIdentity>"), "signature")
    refused(SIGNED + evil, "well-formed")
    one = signature()
    refused(SIGNED.replace(one, evil + one), "not known")
    refused(SIGNED.replace("<ds:KeyInfo>", f"<ds:Object>{evil}</ds:Object><ds:KeyInfo>"), "form")
    refused(SIGNED.replace("</ds:Signature>", "<ds:Object/></ds:Signature>"), "form")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('URI=""', 'URI="#x"'),
        ('URI=""', 'URI="http://127.0.0.1:9/"'),
        ('URI=""', 'URI="" Id="x"'),
        ('<ds:Reference URI="">', "<ds:Reference>"),
        ("ecdsa-sha384", "ecdsa-sha256"),
        ("xmldsig-more#sha384", "xmldsig-more#md5"),
        ("enveloped-signature", "base64"),
        ("<ds:Transforms>", '<ds:Transforms><ds:Transform Algorithm="x"/>'),
        ("</ds:Transforms>", '<ds:Transform Algorithm="x"/></ds:Transforms>'),
        ("<ds:KeyInfo>", "<ds:KeyInfo><ds:KeyName>x</ds:KeyName>"),
        ("<ds:X509Data>", "<ds:X509Data><ds:X509SKI>AAAA</ds:X509SKI>"),
        ("<ds:X509Certificate>", "<ds:X509Certificate>!"),
    ],
)
def test_signatures_of_another_form_are_refused(old: str, new: str) -> None:
    assert old in SIGNED
    refused(SIGNED.replace(old, new, 1))


XPATH = "http://www.w3.org/TR/1999/REC-xpath-19991116"
XSLT = "http://www.w3.org/TR/1999/REC-xslt-19991116"


@pytest.mark.parametrize("algorithm", [XPATH, XSLT])
def test_transforms_that_choose_are_refused(algorithm: str) -> None:
    c14n = '<ds:Transform Algorithm="http://www.w3.org/2006/12/xml-c14n11"/>'
    assert c14n in SIGNED
    refused(SIGNED.replace(c14n, f'<ds:Transform Algorithm="{algorithm}"/>'), "not accepted")
    nested = c14n.replace("/>", "><ds:XPath>1</ds:XPath></ds:Transform>")
    refused(SIGNED.replace(c14n, nested), "nests")


def test_sizes_are_bounded() -> None:
    refused(SIGNED + " " * MAX_RIM_BYTES, "bytes")
    refused("<a>" * 9, "deeply")
    refused("<a>" + "<b/>" * 2048 + "</a>", "too many elements")
    refused(SIGNED.replace("<ns0:Payload>", f"<ns0:Payload {_many(65)}>"), "attributes")


def test_namespaces_are_bounded() -> None:
    """Canonical XML takes the square of their number."""
    many = " ".join(f'xmlns:n{number}="x"' for number in range(20_000))
    begun = time.process_time()
    refused(SIGNED.replace("<ns0:Payload>", f"<ns0:Payload {many}>"), "namespaces")
    assert time.process_time() - begun < 1


def _many(count: int) -> str:
    return " ".join(f'a{number}="1"' for number in range(count))
