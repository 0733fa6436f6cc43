"""A small page for the operator: what there is, what was decided. Read-only, and no secrets.

On a listener of its own that is bound to the loopback; whoever reaches it sees names of secrets
and their versions, so it does not stand beside what workers use.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Callable, MutableMapping
from typing import Any, Final

from cloister.broker.audit import show
from cloister.broker.store import Store
from cloister.broker.store_row import read_row

_LAST: Final = 20
_HEADERS: Final = [
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
]


class StatusPage:
    """An ASGI application with one page."""

    def __init__(self, store: Store, counts: Counter[str], *, waiting: Callable[[], int]) -> None:
        self._store = store
        self._counts = counts
        self._waiting = waiting

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Any],
        send: Callable[[MutableMapping[str, Any]], Any],
    ) -> None:
        """Answer ``GET /``."""
        import asyncio

        if scope["type"] != "http":
            return
        # A page of somebody else's, whose name is made to lead here, may not read this one.
        hosts = [value.rpartition(b":")[0] for name, value in scope["headers"] if name == b"host"]
        here = hosts in ([b"127.0.0.1"], [b"localhost"])
        found = here and scope["method"] == "GET" and scope["path"] == "/"
        body = b"not found\n"
        if found:
            body = (await asyncio.to_thread(self.render)).encode()
        headers = [*_HEADERS, (b"content-length", str(len(body)).encode())]
        status = 200 if found else 404
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def render(self) -> str:
        """The page. Everything shown is escaped: denials repeat what requesters wrote."""
        row = read_row(self._store.database)
        last = self._store.last_entries(_LAST)
        facts = [
            ("identity", str(self._store.identity)),
            ("store", row.store_id),
            ("root key", row.root_name),
            ("waiting", str(self._waiting())),
        ]
        secrets = [
            (
                str(resource.uri),
                f"version {resource.current}, "
                + ("no policy: released to nobody" if resource.policy is None else "has a policy"),
            )
            for resource in self._store.resources()
        ]
        counts = [(name, str(count)) for name, count in sorted(self._counts.items())]
        return (
            "<!doctype html><html lang=en><meta charset=utf-8><title>Cloister broker</title>"
            "<style>body{font:15px sans-serif;margin:2em}td{padding:.2em 1em .2em 0}"
            "pre{white-space:pre-wrap}</style><h1>Broker</h1>"
            f"{_table(facts)}<h2>Secrets</h2>{_table(secrets)}"
            f"<h2>Since this process started</h2>{_table(counts)}"
            f"<h2>Last entries of the audit log</h2>"
            f"<pre>{html.escape(chr(10).join(show(entry) for entry in last))}</pre></html>"
        )


def _table(rows: list[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td>{html.escape(name)}<td>{html.escape(value)}" for name, value in rows)
    return f"<table>{cells}</table>" if rows else "<p>none</p>"
