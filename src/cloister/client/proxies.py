"""Which forward proxy the environment or the system names for a worker."""

from __future__ import annotations

import urllib.request

from cloister.client.address import WorkerAddress


def proxy_for(address: WorkerAddress) -> str | None:
    """The proxy's URL from ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` or system settings.

    ``NO_PROXY`` and the system's exceptions are honoured. A proxy carries ciphertext only, and
    needs no trust; a name without a scheme means an HTTP proxy.
    """
    proxies = urllib.request.getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(address.authority):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
