"""Which manifest was accepted last under each pin, so that no older one is accepted again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from sqlalchemy import bindparam, insert, select, update

from cloister.broker import tables
from cloister.broker.database import Change
from cloister.broker.denial import Denied
from cloister.broker.manifests import Terms
from cloister.broker.policy import ResourcePolicy
from cloister.broker.statements import Connection, Prepared
from cloister.manifest.pin import Overlap, Remembered
from cloister.strictjson import JsonObject
from cloister.verifier.policy import Unchecked

_REMEMBERED: Final = Prepared(
    select(tables.manifests).where(tables.manifests.c.pin_id == bindparam("of_pin"))
)


def remembered(policy: ResourcePolicy, connection: Connection) -> Remembered | None:
    """The highest version accepted under the policy's pin, or None."""
    if isinstance(policy.manifest, Unchecked):
        return None
    row = connection.first(_REMEMBERED, of_pin=policy.manifest.pin.pin_id)
    if row is None:
        return None
    overlap = None
    if row.overlap_sha256 is not None and row.overlap_until is not None:
        overlap = Overlap(
            sha256=row.overlap_sha256, until=datetime.fromtimestamp(row.overlap_until, UTC)
        )
    return Remembered(version=row.version, sha256=row.sha256, overlap=overlap)


def remember(change: Change, policy: ResourcePolicy, terms: Terms) -> None:
    """Remember what was accepted. Raises Denied where another broker accepted a newer one."""
    if isinstance(policy.manifest, Unchecked) or terms.accepted is None:
        return
    table, pin_id = tables.manifests, policy.manifest.pin.pin_id
    found, now = remembered(policy, change.connection), terms.accepted.remembered
    if found == now:
        return
    if found is not None and found.version >= now.version:
        raise Denied(
            "manifest",
            "a newer manifest, or another one of this version, was accepted meanwhile",
            because="manifest.rolled_back",
        )
    values: JsonObject = {"version": now.version, "sha256": now.sha256}
    overlap = now.overlap
    row = {
        **values,
        "overlap_sha256": None if overlap is None else overlap.sha256,
        "overlap_until": None if overlap is None else int(overlap.until.timestamp()),
    }
    if found is None:
        change.connection.run(insert(table).values(pin_id=pin_id, **row))
    else:
        change.connection.run(update(table).where(table.c.pin_id == pin_id).values(**row))
    change.record("manifest.accepted", {"pin": pin_id, **values})
