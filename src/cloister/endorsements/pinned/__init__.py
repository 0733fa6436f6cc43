"""The vendors' roots that Cloister pins, as files beside this one.

``PROVENANCE.toml`` lists each with its publisher and its SHA-256; a file that is not listed, or is
another than the list says, is refused.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Final

from cryptography import x509

from cloister.endorsements.certificates import parse_certificates
from cloister.endorsements.roots import Anchor, Roots, Vendor, fingerprint

PROVENANCE: Final = "PROVENANCE.toml"


@cache
def pinned_roots() -> Roots:
    """Every vendor's roots, and intermediates that complete chains. Read once.

    Raises:
        RuntimeError: the installation is damaged: a certificate is not the listed one.
    """
    folder = files(__name__)
    listed = tomllib.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["certificates"]
    anchors: list[Anchor] = []
    intermediates: list[x509.Certificate] = []
    for entry in listed:
        data = (folder / entry["file"]).read_bytes()
        (certificate,) = parse_certificates(data)
        if fingerprint(certificate) != f"sha256:{entry['sha256']}":
            raise RuntimeError(f"{entry['file']} is not the certificate that {PROVENANCE} lists")
        if entry["kind"] == "anchor":
            anchors.append(Anchor(vendor=Vendor(entry["vendor"]), certificate=certificate))
        else:
            intermediates.append(certificate)
    return Roots(anchors=tuple(anchors), intermediates=tuple(intermediates))
