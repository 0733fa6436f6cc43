"""Completes files of evidence from the endorsements that ``cloister endorsements`` keeps.

Nothing is fetched here. What comes out of the cache is verified like a file beside the evidence;
only what is missing is added.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.cli.evidence_files import EvidenceFile
from cloister.errors import CloisterError, ConfigurationError, MalformedError, UnsupportedError
from cloister.evidence.items import (
    MEDIA_TYPE_COLLATERAL,
    MEDIA_TYPE_CRL,
    MEDIA_TYPE_OCSP,
    MEDIA_TYPE_RIM,
)
from cloister.evidence.recognise import Kind
from cloister.evidence.report import MEDIA_TYPE_CERTIFICATE

if TYPE_CHECKING:
    from cloister.endorsements.artefact import Artefact, ArtefactRequest
    from cloister.endorsements.cache import EndorsementCache

_KINDS: Final = {
    MEDIA_TYPE_CERTIFICATE: Kind.CERTIFICATES,
    MEDIA_TYPE_CRL: Kind.REVOCATION_LIST,
    MEDIA_TYPE_COLLATERAL: Kind.COLLATERAL,
    MEDIA_TYPE_RIM: Kind.RIM,
    MEDIA_TYPE_OCSP: Kind.OCSP_RESPONSE,
}
"""What stapled endorsements are as files."""

_ONE_OF: Final = (Kind.COLLATERAL,)
"""Of these, a file at hand is not joined by another."""


def completed(files: Sequence[EvidenceFile], folder: Path) -> tuple[EvidenceFile, ...]:
    """`files` and what the cache in `folder` has for them; just `files` if there is no cache.

    Raises:
        ConfigurationError: the cache cannot be used (``endorsement.cache``).
    """
    if not folder.is_dir():
        return tuple(files)
    from cloister.endorsements.cache import EndorsementCache
    from cloister.endorsements.pinned import pinned_roots

    cache = EndorsementCache(folder, pinned_roots())
    at_hand = {file.kind for file in files}
    added = [
        file
        for file in _stapled(_kept(_requests(files), cache))
        if not (file.kind in _ONE_OF and file.kind in at_hand)
    ]
    # A manifest from the cache has signers, whose status is kept too.
    rims = [file for file in added if file.kind is Kind.RIM]
    added += _stapled(_kept(_requests(rims), cache))
    return (*files, *dict.fromkeys(added))


def _requests(files: Sequence[EvidenceFile]) -> Iterator[ArtefactRequest]:
    """What the evidence needs, as far as it says; what does not decode, its verifier refuses."""
    from cloister.endorsements.needs import requests_for

    for file in files:
        with suppress(MalformedError, UnsupportedError, ConfigurationError):
            yield from requests_for(file.data)
    with suppress(MalformedError, UnsupportedError):
        yield from _of_a_gpu(files)


def _of_a_gpu(files: Sequence[EvidenceFile]) -> Iterator[ArtefactRequest]:
    """A GPU's report names its firmware, and its certificate the model."""
    from cloister.endorsements.certificates import parse_certificates
    from cloister.endorsements.needs import manifests
    from cloister.endorsements.nvidia import device_model
    from cloister.evidence.nvgpu import parse_device_report

    reports = [file.data for file in files if file.kind is Kind.GPU_REPORT]
    chains = [file.data for file in files if file.kind is Kind.CERTIFICATES]
    for report in reports:
        for chain in chains[:1]:
            model = device_model(parse_certificates(chain)[0])
            yield from manifests(parse_device_report(report), model)


def _kept(requests: Iterable[ArtefactRequest], cache: EndorsementCache) -> tuple[Artefact, ...]:
    found = (cache.peek(request) for request in dict.fromkeys(requests))
    return tuple(artefact for artefact in found if artefact is not None)


def _stapled(artefacts: Sequence[Artefact]) -> Iterator[EvidenceFile]:
    """Each artefact as files. Intel's only count together: with one missing, none is of use."""
    from cloister.endorsements.staple import staple

    intel = [artefact for artefact in artefacts if artefact.kind.startswith("intel.")]
    others = [artefact for artefact in artefacts if artefact not in intel]
    for group in (intel, *([one] for one in others)):
        with suppress(CloisterError):
            for endorsement in staple(group):
                kind = _KINDS.get(endorsement.media_type)
                if kind is not None:
                    name = f"kept {group[0].kind}"
                    yield EvidenceFile(name=name, kind=kind, data=endorsement.data)
