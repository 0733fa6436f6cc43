"""The broker's decisions: challenge, attestation, release. Synchronous, without any transport.

Each decision is one transaction with its audit entry, and is answered only after that was
committed: a token that released anything is spent before the answer leaves, whatever happens
then. A worker whose answer was lost proves itself anew.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from cloister.broker import memory, session
from cloister.broker.appraisal import Revocations, appraise_worker, utc
from cloister.broker.database import Change
from cloister.broker.denial import Denied
from cloister.broker.policy import ResourcePolicy
from cloister.broker.session import Challenge, Session
from cloister.broker.statements import Connection
from cloister.broker.stock import (
    Staple,
    StockEvidence,
    appraise_stock,
    encode_token,
    read_stock,
    seal_for_stock,
)
from cloister.broker.store import Resource, Store, Version
from cloister.channel import rcar
from cloister.channel.key_release import ReleaseRequest, parse_wrapping_jwk, seal_release
from cloister.channel.resource_uri import ResourceUri
from cloister.channel.statement import NONCE_SIZE
from cloister.endorsements.roots import Roots
from cloister.errors import AuthenticationError, ConfigurationError, MalformedError
from cloister.manifest.signatures import IdentityVerifier
from cloister.strictjson import JsonObject, canonical
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.reference_values import ReferenceValues

TOKEN_SIZE: Final = 32
T = TypeVar("T")
Random = Callable[[int], bytes]


class Desk:
    """Where workers are answered. For several threads."""

    def __init__(
        self,
        store: Store,
        *,
        roots: Roots,
        random: Random = os.urandom,
        stock: AppraisalPolicy | None = None,
        staple: Staple = lambda item: item,
        identities: IdentityVerifier | None = None,
    ) -> None:
        """`roots` are what evidence has to chain to. Stock clients are heard only under a policy
        `stock`, which their evidence has to satisfy besides that of the secret they ask for, and
        get only what is marked for them even then. `staple` adds kept collateral to their quotes.
        Without `identities` no signature of a manifest through Sigstore is counted.
        """
        self.store = store
        self._roots = roots
        self._random = random
        self._stock = stock
        self._staple = staple
        self._identities = identities
        self._known: tuple[int, Revocations] | None = None

    def challenge(self, body: bytes, *, source: str) -> tuple[bytes, str]:
        """Answer ``/auth``: the challenge, and the cookie that names the session.

        Nothing is decided yet, and nothing written unless it is denied. Raises Denied, and
        FetchError where the database fails.
        """
        with self._decision("challenge", source):
            return self._challenge(body)

    def undenied_challenge(self, body: bytes) -> tuple[bytes, str] | None:
        """As `challenge`, without the database; None where a denial has to be written down."""
        try:
            return self._challenge(body)
        except Denied:
            return None

    def attest(self, cookie: str | None, body: bytes, *, source: str) -> bytes:
        """Answer ``/attest``: a token, for one secret and one use. Raises as `challenge`."""
        with self._decision("attest", source) as noted:
            challenge = session.parse_cookie(cookie, self.store.master)
            noted["session"] = challenge.name
            noted["resource"] = None if challenge.uri is None else str(challenge.uri)
            session.check_current(challenge, self.store.now())
            attestation = _decoded(lambda: rcar.parse_attestation(body))
            if attestation.nonce != base64.b64encode(challenge.nonce).decode("ascii"):
                raise Denied("nonce", "the answer is to another challenge than the session's")
            if challenge.uri is None:
                return self._attest_stock(challenge, attestation)
            return self._attest_worker(challenge, challenge.uri, attestation)

    def release(
        self, cookie: str | None, token: str | None, path: str, *, source: str
    ) -> tuple[bytes, bool]:
        """Answer a resource's ``GET``: the sealed secret, and whether a stock client gets it.

        Raises as `challenge`.
        """
        with self._decision("release", source) as noted:
            uri = _named(path)
            noted["resource"] = str(uri)
            challenge = None if cookie is None else session.parse_cookie(cookie, self.store.master)
            if challenge is not None:
                noted["session"] = challenge.name
            with self.store.changing() as change:
                outcome = self._release(change, uri, challenge, token, noted)
                if isinstance(outcome, Denied):
                    _record(change, "release", outcome, noted)
            if isinstance(outcome, Denied):
                outcome.recorded = True
                raise outcome
            return outcome

    def _challenge(self, body: bytes) -> tuple[bytes, str]:
        request = _decoded(lambda: rcar.parse_request(body))
        if request.version != rcar.VERSION:
            raise Denied("version", f"this broker speaks version {rcar.VERSION} of RCAR only")
        if request.ask is None and self._stock is None:
            raise Denied("stock", "this broker does not answer stock clients")
        challenge = Challenge(
            nonce=self._random(NONCE_SIZE),
            tee=request.tee,
            uri=None if request.ask is None else request.ask.resource,
            version=None if request.ask is None else request.ask.version,
            expires=int(self.store.now()) + session.CHALLENGE_S,
        )
        cookie = session.encode_cookie(challenge, self.store.master)
        return rcar.encode_challenge(challenge.nonce), cookie

    def _attest_worker(
        self, challenge: Challenge, uri: ResourceUri, attestation: rcar.Attestation
    ) -> bytes:
        evidence = _decoded(lambda: rcar.parse_worker_evidence(attestation.evidence))
        wrapping_key = _decoded(lambda: parse_wrapping_jwk(attestation.tee_pubkey))
        request = ReleaseRequest(
            broker=self.store.identity,
            resource=uri,
            version=challenge.version,
            wrapping_key=wrapping_key,
        )
        at = self.store.now()
        with self.store.database.reading() as connection:
            standing = self.store.standing(uri, challenge.nonce, connection)
            if standing.answered:
                raise session.replayed()
            if standing.resource is None:
                raise unknown_secret()
            rules, policy = standing.rules, _policy(standing.resource)
            known = memory.remembered(policy, connection)
            revocations = self._revocations(rules, connection)
        appraised = appraise_worker(
            evidence,
            request=request,
            nonce=challenge.nonce,
            policy=policy,
            revocations=revocations,
            remembered=known,
            roots=self._roots,
            identities=self._identities,
            at=utc(at),
        )
        token = _text(self._random(TOKEN_SIZE))
        answered = Session(
            nonce=challenge.nonce,
            stock=False,
            uri=uri,
            version=challenge.version,
            wrapping_key=wrapping_key,
            statement=request.digest(appraised.attester.keyset_digest, challenge.nonce),
            facts=canonical(appraised.facts),
            rules=rules,
            expires=min(int(at) + session.TOKEN_S, int(appraised.attester.expires_at.timestamp())),
        )
        with self.store.changing() as change:
            memory.remember(change, policy, appraised.terms)
            self._answer(change, answered, token, challenge, appraised.facts)
        return rcar.encode_token(token)

    def _attest_stock(self, challenge: Challenge, attestation: rcar.Attestation) -> bytes:
        at = self.store.now()
        with self.store.database.reading() as connection:
            if session.is_answered(challenge.nonce, connection):
                raise session.replayed()
            rules = self.store.rules(connection)
        kept = read_stock(challenge.tee, attestation)
        self._appraise_stock(kept, self._stock, None, at=at)
        token = encode_token(
            _text(self._random(TOKEN_SIZE)),
            attestation.tee_pubkey,
            identity_key=self.store.identity_key,
            at=int(at),
            lifetime_s=session.TOKEN_S,
        )
        facts: JsonObject = {"platform": challenge.tee, "stock": True}
        answered = Session(
            nonce=challenge.nonce,
            stock=True,
            uri=None,
            version=None,
            wrapping_key=canonical(attestation.tee_pubkey),
            statement=kept.bound[:32],
            facts=canonical(facts),
            evidence=kept.encode(),
            rules=rules,
            expires=int(at) + session.TOKEN_S,
        )
        with self.store.changing() as change:
            self._answer(change, answered, token, challenge, facts)
        return rcar.encode_token(token)

    def _appraise_stock(
        self,
        kept: StockEvidence,
        policy: AppraisalPolicy | None,
        reference_values: ReferenceValues | None,
        *,
        at: float,
    ) -> None:
        if policy is None:
            raise Denied("stock", "this broker does not answer stock clients")
        appraise_stock(
            kept,
            policy=policy,
            reference_values=reference_values,
            roots=self._roots,
            staple=self._staple,
            at=utc(at),
        )

    def _answer(
        self,
        change: Change,
        answered: Session,
        token: str,
        challenge: Challenge,
        facts: JsonObject,
    ) -> None:
        session.add_session(change, answered, token, self.store.master)
        change.record(
            "attested",
            {
                **facts,
                "session": challenge.name,
                "resource": None if answered.uri is None else str(answered.uri),
            },
        )

    def _release(
        self,
        change: Change,
        uri: ResourceUri,
        challenge: Challenge | None,
        token: str | None,
        noted: JsonObject,
    ) -> tuple[bytes, bool] | Denied:
        """Decide inside one transaction; what is denied is returned, to be written down there."""
        try:
            found = self._session(change, uri, challenge, token)
            noted["session"] = session.name_of(found.nonce)
            noted["keyset"] = session.facts_of(found).get("keyset")
            resource = self._check(change, found, uri)
            version = self._version(change, found, resource)
            answer = self._seal(found, uri, version, self.store.open_version(uri, version))
        except Denied as denied:
            return denied
        session.spend(change, found, uri, version.number)
        change.record("released", {**noted, "version": version.number, "stock": found.stock})
        return answer, found.stock

    def _session(
        self, change: Change, uri: ResourceUri, challenge: Challenge | None, token: str | None
    ) -> Session:
        connection = change.connection
        found = None
        if token is not None:
            found = session.find_by_token(token, uri, connection, self.store.master)
            if found is None:
                raise Denied("token", "there is no such token")
            if challenge is not None and challenge.nonce != found.nonce:
                raise Denied("token", "the token is of another session")
        elif challenge is not None:
            found = session.find_by_nonce(challenge.nonce, uri, connection, self.store.master)
        if found is None:
            raise Denied("session", "there is no such session, or it was never attested")
        if not found.stock and (token is None or challenge is None):
            raise Denied("token", "a worker shows the token together with its session's cookie")
        return found

    def _check(self, change: Change, found: Session, uri: ResourceUri) -> Resource:
        if found.uri is not None and found.uri != uri:
            raise Denied("scope", "the token is for another secret")
        if change.at >= found.expires:
            raise Denied("expired", "the token is too old; prove yourself again")
        if found.spent:
            raise Denied("spent", "the token was used already; prove yourself again")
        if change.rules != found.rules:
            raise Denied(
                "rules", "a policy or a revocation changed meanwhile; prove yourself again"
            )
        resource = self.store.resource(uri, change.connection)
        if resource is None:
            raise unknown_secret()
        policy = _policy(resource)
        if found.stock:
            self._check_stock(found, policy, at=change.at)
        return resource

    def _check_stock(self, found: Session, policy: ResourcePolicy, *, at: float) -> None:
        """A stock client's evidence once more, for this secret's own terms."""
        if not policy.stock_clients or policy.reference_values is None or found.evidence is None:
            raise Denied("stock", "this secret is not marked for stock clients")
        kept = StockEvidence.decode(found.evidence)
        self._appraise_stock(kept, policy.appraisal, policy.reference_values, at=at)

    def _version(self, change: Change, found: Session, resource: Resource) -> Version:
        number = resource.current if found.version is None else found.version
        version = self.store.version(resource.uri, number, change.connection)
        if version is None:
            raise unknown_secret()
        if version.not_after is not None and change.at >= version.not_after:
            raise Denied("retired", "this version of the secret is out of its overlap")
        return version

    def _seal(self, found: Session, uri: ResourceUri, version: Version, secret: bytes) -> bytes:
        if found.stock:
            return seal_for_stock(secret, found.wrapping_key)
        request = ReleaseRequest(
            broker=self.store.identity,
            resource=uri,
            version=found.version,
            wrapping_key=found.wrapping_key,
        )
        return _decoded(
            lambda: seal_release(
                secret,
                version=version.number,
                request=request,
                statement_digest=found.statement,
                identity_key=self.store.identity_key,
                random=self._random,
            )
        )

    def _revocations(self, rules: int, connection: Connection) -> Revocations:
        """Read once for each change of the rules, of which every revocation is one."""
        known = self._known
        if known is None or known[0] != rules:
            known = self._known = (rules, self.store.revocations(connection))
        return known[1]

    @contextlib.contextmanager
    def _decision(self, step: str, source: str) -> Iterator[JsonObject]:
        """Write a denial down before it leaves; what is `noted` goes along."""
        noted: JsonObject = {"source": source}
        try:
            yield noted
        except Denied as denied:
            if not denied.recorded:
                with self.store.changing() as change:
                    _record(change, step, denied, noted)
            raise
        except (AuthenticationError, ConfigurationError) as error:
            # Not the requester's fault: the store was altered, say.
            with self.store.changing() as change:
                change.record("failed", {**noted, "step": step, "code": error.code})
            raise


def _policy(resource: Resource) -> ResourcePolicy:
    if resource.policy is None:
        raise Denied("no_policy", "nobody said under which terms this secret is released")
    return resource.policy


def unknown_secret() -> Denied:
    """The denial of a secret that is not there."""
    return Denied("unknown", "there is no such secret, or not that version of it")


def _record(change: Change, step: str, denied: Denied, noted: JsonObject) -> None:
    change.record(
        "denied",
        {
            **noted,
            "step": step,
            "code": denied.code,
            "because": denied.because,
            "reason": str(denied)[:400],
        },
    )


def _decoded(parse: Callable[[], T]) -> T:
    try:
        return parse()
    except MalformedError as error:
        reason = "resource" if error.code == "resource.name" else "malformed"
        raise Denied(reason, str(error), because=error.code) from None


def _named(path: str) -> ResourceUri:
    try:
        return ResourceUri.from_path(path)
    except MalformedError as error:
        raise Denied("resource", str(error), because=error.code) from None


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
