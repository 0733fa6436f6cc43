"""Evidence with what vouches for it attached, so that clients need no vendor's service.

A report is made while a client waits, so nothing is fetched then: what is kept goes along, and
`renew` fetches apart from that, on whatever schedule the server keeps. Evidence for which something
is still missing goes out without it, and a client whose policy requires it refuses.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from cloister.attester.machine import Attester
from cloister.endorsements.artefact import Artefact, ArtefactRequest
from cloister.endorsements.cache import EndorsementCache, FetchesArtefacts
from cloister.endorsements.needs import for_item
from cloister.endorsements.pinned import pinned_roots
from cloister.endorsements.staple import staple
from cloister.errors import CloisterError, ConfigurationError, MalformedError, UnsupportedError
from cloister.evidence.report import MAX_ENDORSEMENTS, Endorsement, EvidenceItem


class StaplingAttester:
    """Another attester's evidence, stapled. For several threads."""

    def __init__(self, source: Attester, cache: EndorsementCache) -> None:
        self._source = source
        self._cache = cache
        self._needed: dict[ArtefactRequest, None] = {}
        self._lock = threading.Lock()

    def quote(self, statement_digest: bytes) -> Mapping[str, EvidenceItem]:
        """The source's items, each with what is kept for it, as far as a report has room.

        Raises what the source raises.
        """
        items = self._source.quote(statement_digest)
        return {name: self._stapled(item) for name, item in items.items()}

    def renew(self, fetcher: FetchesArtefacts, *, at: datetime) -> tuple[CloisterError, ...]:
        """Fetch what evidence made so far needs and is due; return what went wrong.

        Slow: it asks vendors. Evidence made meanwhile carries the copies of before.
        """
        with self._lock:
            needed = tuple(self._needed)
        failures = []
        for request in needed:
            try:
                self._cache.get(request, fetcher, at=at)
            except CloisterError as error:
                failures.append(error)
        return tuple(failures)

    def _stapled(self, item: EvidenceItem) -> EvidenceItem:
        with self._lock:
            self._needed |= dict.fromkeys(_requests(item))
        return _with_kept(item, self._cache)


def stapled_from(source: Attester, folder: Path) -> StaplingAttester:
    """`source` with the endorsements that `folder` keeps, which ``cloister endorsements`` renews.

    ConfigurationError (``endorsement.cache``) if the folder cannot be used.
    """
    return StaplingAttester(source, EndorsementCache(folder, pinned_roots()))


def stapler(folder: Path) -> Callable[[EvidenceItem], EvidenceItem]:
    """What adds to one item, whoever made it, the endorsements that `folder` keeps.

    ConfigurationError (``endorsement.cache``) if the folder cannot be used.
    """
    cache = EndorsementCache(folder, pinned_roots())
    return lambda item: _with_kept(item, cache)


def _with_kept(item: EvidenceItem, cache: EndorsementCache) -> EvidenceItem:
    requests = _requests(item)
    kept = [artefact for one in requests if (artefact := cache.peek(one)) is not None]
    added = (*item.endorsements, *_endorsements(kept))
    return dataclasses.replace(item, endorsements=tuple(dict.fromkeys(added))[:MAX_ENDORSEMENTS])


def _requests(item: EvidenceItem) -> tuple[ArtefactRequest, ...]:
    """What `item` needs, as far as it says."""
    with suppress(MalformedError, UnsupportedError, ConfigurationError):
        return tuple(for_item(item))
    return ()


def _endorsements(kept: Sequence[Artefact]) -> Iterable[Endorsement]:
    """Intel's artefacts are of use all together only; of the others each counts."""
    intel = [artefact for artefact in kept if artefact.kind.startswith("intel.")]
    others = [artefact for artefact in kept if artefact not in intel]
    for group in (intel, *([one] for one in others)):
        with suppress(ConfigurationError, MalformedError):
            yield from staple(group)
