"""Every vendor's service behind one `Fetcher`, with the addresses an operator may change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from cloister.endorsements.artefact import ArtefactKind
from cloister.endorsements.fetch import amd_kds, intel_pcs, nvidia, vtpm
from cloister.endorsements.fetch.fetcher import Fetcher, FetcherByKind
from cloister.endorsements.fetch.retrieve import FetchLimits, HostRules, Retriever, Waiting
from cloister.endorsements.fetch.transport import Transport
from cloister.endorsements.genuine import ocsp_authorities
from cloister.endorsements.roots import Roots

_INTEL_HOSTS: Final = frozenset(
    {urlsplit(url).hostname or "" for url in (intel_pcs.INTEL_PCS, intel_pcs.INTEL_ROOT_CRL_URL)}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Base addresses; a PCCS or a mirror of one's own takes the place of a vendor's."""

    amd_kds: str = amd_kds.AMD_KDS
    intel_pcs: str = intel_pcs.INTEL_PCS
    nvidia_rim: str = nvidia.NVIDIA_RIM
    nvidia_ocsp: str = nvidia.NVIDIA_OCSP


def vendor_fetcher(
    transport: Transport,
    *,
    services: Services,
    roots: Roots,
    limits: FetchLimits | None = None,
    waiting: Waiting | None = None,
) -> Fetcher:
    """A fetcher for every kind of artefact.

    Raises:
        ConfigurationError: an address is none (``fetch.address``).
    """

    def asking(url: str) -> Retriever:
        name = urlsplit(url).hostname or ""
        names = _INTEL_HOSTS if name in _INTEL_HOSTS else frozenset({name})
        rules = HostRules(allowed=names, loopback=True)
        return Retriever(transport, hosts=rules, limits=limits, waiting=waiting)

    amd = amd_kds.AmdKds(asking(services.amd_kds), base_url=services.amd_kds)
    intel = intel_pcs.IntelPcs(asking(services.intel_pcs), base_url=services.intel_pcs)
    rim = nvidia.NvidiaRim(asking(services.nvidia_rim), base_url=services.nvidia_rim)
    ocsp = nvidia.NvidiaOcsp(
        asking(services.nvidia_ocsp),
        base_url=services.nvidia_ocsp,
        authorities=ocsp_authorities(roots),
    )
    aks = vtpm.AkIntermediates(
        Retriever(transport, hosts=vtpm.AIA_HOSTS, limits=limits, waiting=waiting), roots=roots
    )
    fetchers: dict[ArtefactKind, Fetcher] = {
        **dict.fromkeys(amd_kds.KINDS, amd),
        **dict.fromkeys(intel_pcs.KINDS, intel),
        **dict.fromkeys(nvidia.RIM_KINDS, rim),
        **dict.fromkeys(nvidia.OCSP_KINDS, ocsp),
        **dict.fromkeys(vtpm.KINDS, aks),
    }
    return FetcherByKind(fetchers=fetchers)
