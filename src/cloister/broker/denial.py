"""Why a key was not released: one code for each reason, the same in the answer and the audit log.

========================== ====================================================================
``key_release.malformed``  the message does not decode
``key_release.version``    another version of the protocol
``key_release.resource``   the secret's name is not one, or has a trick in it
``key_release.unknown``    no such secret, or not that version of it
``key_release.retired``    that version is out of its overlap
``key_release.no_policy``  nobody said under which terms this secret is released
``key_release.session``    no session, a forged one, or another broker's
``key_release.stale``      the challenge is too old
``key_release.nonce``      the answer is to another challenge than the session's
``key_release.replayed``   the challenge was answered before
``key_release.broker``     the evidence was made for another broker
``key_release.other``      the evidence was made for another secret than the session's
``key_release.wrapping``   the evidence binds another wrapping key than the one sent
``key_release.purpose``    the evidence was made for something else: a public report
``key_release.evidence``   the verifier refuses the evidence; its own code follows
``key_release.manifest``   the manifest is missing, or refused; its own code follows
``key_release.model``      the worker serves none of the models
``key_release.revoked``    the manifest, the platform or the worker was revoked
``key_release.stock``      not for stock clients
``key_release.token``      no token, an unknown one, or of another session
``key_release.scope``      the token is for another secret
``key_release.expired``    the token is too old
``key_release.spent``      the token was used already
``key_release.rules``      a policy or a revocation changed since the evidence was appraised
========================== ====================================================================
"""

from __future__ import annotations

from typing import Final

from cloister.errors import KeyReleaseDenied

UNAUTHENTICATED: Final = frozenset({"session", "stale", "token", "expired", "spent", "rules"})
"""Reasons for which a stock client starts anew (HTTP 401); all others are final (403)."""


class Denied(KeyReleaseDenied):
    """A denial on its way into the audit log and back to who asked."""

    def __init__(self, reason: str, sentence: str, *, because: str | None = None) -> None:
        """`reason` is the last part of the code; `because` the code of what refused."""
        super().__init__(sentence, code=f"key_release.{reason}")
        self.reason = reason
        self.because = because
        self.recorded = False
        """Whether it stands in the audit log already."""
