"""What an image is made of, for others' tools: a bill of materials and the build's provenance.

Both follow from the lock, the configuration and the results alone, so equal builds write equal
files: neither says who built, where or when. Whoever signs the provenance says that they did.

Sources: CycloneDX 1.6 (JSON); in-toto Statement v1; SLSA Provenance v1 (slsa.dev/spec/v1.0).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final
from urllib.parse import quote

from cloister.image.lock import DebianPackage, ImageLock, Use, Wheel
from cloister.strictjson import Json, JsonObject

BUILD_TYPE: Final = "urn:cloister:image-build:1"
BUILDER: Final = "urn:cloister:image-builder"
"""Names the program, not who ran it."""
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PROVENANCE_TYPE: Final = "https://slsa.dev/provenance/v1"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"


def bill_of_materials(
    lock: ImageLock, *, name: str, version: str, cloister: str, origins: Collection[str]
) -> JsonObject:
    """CycloneDX. `origins` are the packages that have files in the root.

    What only built the image is listed with scope ``excluded``; Debian packages that the lock
    names and of which nothing was taken are not listed.
    """
    components: list[Json] = [
        {"type": "library", "name": "cloister", "version": cloister, "scope": "required"},
        *_components(lock, origins),
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "operating-system", "name": name, "version": version},
        },
        "components": components,
    }


def provenance(
    lock: ImageLock,
    *,
    configuration: JsonObject,
    cloister: JsonObject,
    subjects: Mapping[str, str],
) -> JsonObject:
    """An in-toto statement about the files `subjects` (SHA-256 by name), unsigned."""
    packages: list[Json] = [
        *(_dependency(debian_url(one), one.sha256) for one in lock.debian),
        *(_dependency(wheel_url(one), one.sha256) for one in lock.wheels),
    ]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": digest}}
            for name, digest in sorted(subjects.items())
        ],
        "predicateType": PROVENANCE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"configuration": configuration},
                "internalParameters": {"cloister": cloister},
                "resolvedDependencies": packages,
            },
            "runDetails": {"builder": {"id": BUILDER}},
        },
    }


def _dependency(uri: str, sha256: str) -> JsonObject:
    return {"uri": uri, "digest": {"sha256": sha256}}


def debian_url(package: DebianPackage) -> str:
    """Package URL (purl-spec, type ``deb``)."""
    version = quote(package.version, safe="")
    architecture = package.path.rpartition("_")[2].removesuffix(".deb")
    return f"pkg:deb/debian/{quote(package.name, safe='')}@{version}?arch={architecture}"


def wheel_url(wheel: Wheel) -> str:
    """Package URL (purl-spec, type ``pypi``)."""
    return f"pkg:pypi/{wheel.name}@{quote(wheel.version, safe='')}"


def _components(lock: ImageLock, origins: Collection[str]) -> Iterator[Json]:
    for package in lock.debian:
        boots = Use.BOOT in package.uses
        inside = boots or (Use.ROOT in package.uses and package.name in origins)
        if inside or Use.TOOLS in package.uses:
            yield {
                "type": "operating-system" if boots else "library",
                "name": package.name,
                "version": package.version,
                "purl": debian_url(package),
                "scope": "required" if inside else "excluded",
                "hashes": [{"alg": "SHA-256", "content": package.sha256}],
            }
    for wheel in lock.wheels:
        yield {
            "type": "library",
            "name": wheel.name,
            "version": wheel.version,
            "purl": wheel_url(wheel),
            "scope": "required",
            "hashes": [{"alg": "SHA-256", "content": wheel.sha256}],
        }
