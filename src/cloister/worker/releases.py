"""Keys from the broker that this worker was measured for, before its engines start.

What is measured: the broker's identity, and what the broker's own evidence has to satisfy. What is
not: the address, for the network belongs to the host.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.channel.key_release import BrokerIdentity, Released
from cloister.channel.resource_uri import ResourceUri
from cloister.errors import ConfigurationError, MalformedError
from cloister.strictjson import canonical
from cloister.worker.broker_http import BrokerHttp
from cloister.worker.key_release import BrokerTrust, Prover, Send, check_broker, release_key
from cloister.worker.settings import BrokerSettings

if TYPE_CHECKING:
    Random = Callable[[int], bytes]

POLICY: Final = "policy.toml"
REFERENCE_VALUES: Final = "reference-values.json"
ROOTS: Final = "enrolment-ca.pem"
"""Files of a kit, as `cloister.attester.kit` writes them. Without the last the hardware vendors'
own roots are pinned alone."""
_MAX_FILE: Final = 8 * 1024 * 1024
_CODE: Final = "configuration.broker"


def broker_settings(identity: str, kit: Path | None, *, development: bool) -> BrokerSettings:
    """What a worker is measured with, from what the operator names.

    ConfigurationError where the identity is none, a file of the kit cannot be used, or neither a
    kit is given nor development named.
    """
    try:
        known = BrokerIdentity.parse(identity)
    except MalformedError as error:
        raise _refused(str(error)) from None
    if kit is None and not development:
        raise _refused(
            "say what the broker's own evidence has to satisfy (--broker-kit), or name development"
            " (--development-broker)"
        )
    evidence = None if kit is None else trust_digest(read_trust(kit, development=development))
    return BrokerSettings(identity=str(known), evidence=evidence, development=development)


def read_trust(kit: Path, *, development: bool) -> BrokerTrust:
    """What a kit says a broker has to be. Its policy alone admits no development platform."""
    from cloister.endorsements.pinned import pinned_roots
    from cloister.endorsements.roots import Roots
    from cloister.verifier import policy as policies
    from cloister.verifier import reference_values as references

    policy = policies.load_toml(_read(kit / POLICY))
    roots = pinned_roots()
    if (kit / ROOTS).exists():
        roots = roots.merged(Roots.from_pem(_read(kit / ROOTS)))
    return BrokerTrust(
        policy=policy if development else dataclasses.replace(policy, accept_development=False),
        reference_values=references.load_json(_read(kit / REFERENCE_VALUES)),
        roots=roots,
    )


def trust_digest(trust: BrokerTrust) -> str:
    """``sha256:<hex>`` over all of it: what is measured."""
    document = {
        "policy": trust.policy.policy_id,
        "reference_values": trust.reference_values.digest,
        "roots": hashlib.sha256(trust.roots.to_pem()).hexdigest(),
    }
    return "sha256:" + hashlib.sha256(canonical(document)).hexdigest()


class KeyReleases:
    """Asks one broker for keys, one after the other. Blocks; for one thread at a time."""

    def __init__(
        self,
        identity: BrokerIdentity,
        send: Send,
        *,
        prover: Prover,
        trust: BrokerTrust | None,
        random: Random,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`trust` is None where the worker was measured to accept an unattested broker."""
        self._identity = identity
        self._send = send
        self._prover = prover
        self._trust = trust
        self._random = random
        self._now = now
        self._checked = False

    def check(self) -> None:
        """See once that the broker is who this worker was measured for; raises `check_broker`'s."""
        if self._checked:
            return
        check_broker(self._send, self._identity, self._trust, at=self._now(), random=self._random)
        self._checked = True

    def release(self, uri: ResourceUri, version: int | None = None) -> Released:
        """One key. The broker itself is checked before the first; raises as `release_key`."""
        self.check()
        return release_key(
            uri,
            prover=self._prover,
            broker=self._identity,
            send=self._send,
            version=version,
            random=self._random,
        )


def open_releases(
    settings: BrokerSettings,
    address: str | None,
    kit: Path | None,
    *,
    prover: Prover,
    random: Random,
) -> tuple[BrokerHttp, KeyReleases]:
    """The broker of a worker that was measured with `settings`; close the first at the end.

    ConfigurationError (``configuration.broker``) where the operator gives no address, or another
    kit than was measured.
    """
    if address is None:
        raise _refused("the worker was measured for a broker; give its address (--broker)")
    trust = None
    if settings.evidence is not None:
        if kit is None:
            raise _refused("the worker was measured with what its broker has to be (--broker-kit)")
        trust = read_trust(kit, development=settings.development)
        if trust_digest(trust) != settings.evidence:
            raise _refused("what the broker has to be is not what was measured (--broker-kit)")
    elif not settings.development:
        raise _refused("an unattested broker is accepted only where development is named")
    http = BrokerHttp(address)
    identity = BrokerIdentity.parse(settings.identity)
    return http, KeyReleases(identity, http, prover=prover, trust=trust, random=random)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise _refused(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > _MAX_FILE:
        raise _refused(f"{path} is too large")
    return data


def _refused(why: str) -> ConfigurationError:
    return ConfigurationError(why, code=_CODE)
