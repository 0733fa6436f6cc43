"""The worker's side of a key release: prove itself to its broker, and open what comes back.

Steps:

1. The broker shows evidence that its identity key lives in software that this worker was measured
   to trust (`check_broker`); a broker without evidence is accepted only where the measured
   configuration names that, as development.
2. The broker's challenge; a wrapping key made for this one release; evidence over the statement
   that names purpose, broker, secret, challenge, keyset and wrapping key.
3. A token for that, and with it the secret, sealed to the wrapping key and signed by the broker.

The network between them belongs to the host. It can delay and deny; it cannot learn the secret,
swap it, or have evidence spent elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol

from cloister.channel import rcar
from cloister.channel.hpke import PrivateKey
from cloister.channel.key_release import (
    SUITE,
    BrokerIdentity,
    Released,
    ReleaseRequest,
    broker_statement,
    open_release,
    wrapping_jwk,
)
from cloister.channel.keyset import RECEIPT_ALGORITHM, Keyset
from cloister.channel.receipt import API_VERSION
from cloister.channel.resource_uri import ResourceUri
from cloister.channel.statement import NONCE_SIZE
from cloister.errors import (
    AppraisalError,
    AuthenticationError,
    CloisterError,
    FetchError,
    KeyReleaseDenied,
    MalformedError,
    UnsupportedError,
)
from cloister.evidence.report import (
    ITEM_CLAIMS,
    MEDIA_TYPE_CLAIMS,
    AttestationReport,
    EvidenceItem,
)
from cloister.strictjson import decode_base64, expect_keys, parse_json_object

if TYPE_CHECKING:
    from cloister.channel.claims import ClaimsDocument
    from cloister.endorsements.roots import Roots
    from cloister.verifier.policy import AppraisalPolicy
    from cloister.verifier.reference_values import ReferenceValues
    from cloister.worker.reports import EvidenceSource

    Random = Callable[[int], bytes]

MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
_CODE: Final = re.compile(r"key_release\.[a-z_]{1,32}")
"""What the worker takes over into its own error, and writes into its log; the rest is the host's
to choose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A broker's answer to one request."""

    status: int
    body: bytes = field(repr=False)
    cookie: str | None = field(default=None, repr=False)
    """Of ``kbs-session-id``, where the answer sets it."""


class Send(Protocol):
    """How requests reach the broker (`cloister.worker.broker_http`)."""

    def __call__(
        self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str]
    ) -> Answer:
        """One request; FetchError (``broker.unreachable``) if there is no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerTrust:
    """What a broker's own evidence has to satisfy."""

    policy: AppraisalPolicy
    reference_values: ReferenceValues
    roots: Roots


@dataclass(frozen=True, slots=True, kw_only=True)
class Prover:
    """This worker, as far as it proves itself."""

    source: EvidenceSource
    tee_type: str
    keyset: Keyset
    claims: ClaimsDocument
    manifest: bytes | None = field(default=None, repr=False)
    """The bundle that the worker was measured with."""
    boot_evidence: Mapping[str, EvidenceItem] = field(default_factory=dict)

    def report(self, statement_digest: bytes) -> bytes:
        """A report over this statement. Raises what the source raises."""
        claims = EvidenceItem(media_type=MEDIA_TYPE_CLAIMS, data=self.claims.encode())
        items = {**self.boot_evidence, **self.source.quote(statement_digest), ITEM_CLAIMS: claims}
        return AttestationReport(
            api_version=API_VERSION,
            keyset_digest=self.keyset.digest,
            tee_type=self.tee_type,
            keyset=self.keyset.to_json(),
            report_data=statement_digest,
            evidence=items,
        ).encode()


def check_broker(
    send: Send,
    identity: BrokerIdentity,
    trust: BrokerTrust | None,
    *,
    at: datetime,
    random: Random = os.urandom,
) -> None:
    """See that the broker is who this worker was measured for, and attested.

    `trust` is ``None`` where the measured configuration accepts an unattested broker by name.

    Raises:
        AuthenticationError: it is another broker (``broker.identity``), or none of its evidence
            holds (``broker.unattested``).
        FetchError, MalformedError: it does not answer, or not so.
    """
    nonce = random(NONCE_SIZE)
    answer = send("GET", f"{rcar.IDENTITY_PATH}?nonce={nonce.hex()}", headers={})
    if answer.status != 200:
        raise _refused(answer)
    what = "what the broker says of itself"
    members = parse_json_object(answer.body, limit=MAX_ANSWER_BYTES, what=what)
    expect_keys(members, what, required={"identity", "report"})
    if members["identity"] != str(identity):
        raise AuthenticationError(
            "the broker at this address is not the one that this worker was measured for",
            code="broker.identity",
        )
    if trust is None:
        return
    if members["report"] is None:
        raise _unattested("it shows no evidence")
    report = decode_base64(members["report"], limit=MAX_ANSWER_BYTES, what="the broker's evidence")
    _check_evidence(report, identity, trust, nonce=nonce, at=at)


def _check_evidence(
    report: bytes, identity: BrokerIdentity, trust: BrokerTrust, *, nonce: bytes, at: datetime
) -> None:
    from cloister.verifier.report import verify_report

    def statement(keyset_digest: str, challenge: bytes | None) -> bytes:
        return hashlib.sha256(broker_statement(identity, keyset_digest, challenge)).digest()

    result = verify_report(
        report,
        nonce=nonce,
        policy=for_brokers(trust.policy),
        reference_values=trust.reference_values,
        roots=trust.roots,
        at=at,
        statement=statement,
        serves=False,
    )
    try:
        attester = result.require_affirming()
    except (AppraisalError, UnsupportedError) as error:
        raise _unattested(f"{error} [{error.code}]") from None
    keyset = attester.keyset
    listed = keyset.receipt_signing_keys if isinstance(keyset, Keyset) else ()
    keys = {entry.public_key for entry in listed if entry.algo == RECEIPT_ALGORITHM}
    if keys != {identity.public_key.hex()}:
        raise _unattested("its evidence speaks of another key")


def for_brokers(policy: AppraisalPolicy) -> AppraisalPolicy:
    """`policy` without what only workers show: a broker serves no model and has no engine."""
    from cloister.verifier.policy import UNCHECKED

    return dataclasses.replace(
        policy,
        require_model=False,
        require_managed=False,
        isolation=UNCHECKED,
        termination=UNCHECKED,
        separation=UNCHECKED,
        required_gpus=UNCHECKED,
        require_cc_gpu=False,
    )


def release_key(
    uri: ResourceUri,
    *,
    prover: Prover,
    broker: BrokerIdentity,
    send: Send,
    version: int | None = None,
    random: Random = os.urandom,
) -> Released:
    """Have `broker` release one secret, in force or of a `version`; see `check_broker` first.

    Raises:
        KeyReleaseDenied: the broker says no; the code is its own.
        AuthenticationError, ChannelError, MalformedError: the answer is not this broker's, or not
            to this request.
        FetchError: it cannot be reached. Raises what the evidence's source raises.
    """
    wrapping = PrivateKey.generate(SUITE.kem, random)
    request = ReleaseRequest(
        broker=broker, resource=uri, version=version, wrapping_key=wrapping.public_bytes
    )
    ask = rcar.Ask(resource=uri, version=version)
    answer = _sent(send, "POST", rcar.AUTH_PATH, rcar.encode_request(prover.tee_type, ask), {})
    nonce, cookie = rcar.parse_challenge(answer.body), answer.cookie
    if cookie is None:
        raise MalformedError("the broker began no session", code="broker.answer")
    headers = {"cookie": f"{rcar.COOKIE}={cookie}"}
    digest = request.digest(prover.keyset.digest, nonce)
    evidence = rcar.WorkerEvidence(
        stated=rcar.Stated(
            broker=str(broker),
            resource=str(uri),
            wrapping_key="sha256:" + hashlib.sha256(wrapping.public_bytes).hexdigest(),
        ),
        report=prover.report(digest),
        manifest=prover.manifest,
    )
    message = rcar.encode_attestation(
        nonce=nonce, tee_pubkey=wrapping_jwk(wrapping.public_bytes), evidence=evidence
    )
    token = rcar.parse_token(_sent(send, "POST", rcar.ATTEST_PATH, message, headers).body)
    shown = {**headers, "authorization": f"Bearer {token}"}
    sealed = _sent(send, "GET", uri.path, b"", shown).body
    return open_release(sealed, private_key=wrapping, request=request, statement_digest=digest)


def _sent(send: Send, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
    kind = {"content-type": "application/json"} if body else {}
    answer = send(method, path, body=body, headers={**headers, **kind})
    if answer.status != 200:
        raise _refused(answer)
    return answer


def _refused(answer: Answer) -> CloisterError:
    """The broker's refusal, with its own code where it gives one."""
    try:
        detail = rcar.parse_error(answer.body)
    except MalformedError:
        detail = f"status {answer.status}"
    if answer.status in {429, 503}:
        return FetchError(f"the broker is busy: {detail}", code="broker.busy")
    sentence, _, code = detail.removesuffix("]").rpartition(" [")
    known = _CODE.fullmatch(code) is not None
    return KeyReleaseDenied(
        f"the broker releases nothing: {sentence if known else detail}",
        code=code if known else "key_release.denied",
    )


def _unattested(why: str) -> AuthenticationError:
    return AuthenticationError(
        f"the broker is not attested as this worker was measured to ask: {why}. Only a worker"
        " that is measured to accept an unattested broker, for development, goes on",
        code="broker.unattested",
    )
