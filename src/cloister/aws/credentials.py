"""AWS credentials, as a document that reaches a worker sealed, and never through its parent.

The parent of an enclave has credentials of its own (its instance role) and hands them to nobody
here. A worker's come as a resource of the broker, sealed to the attested worker, or inside a
sealed request. The key policy makes them useless without an attestation document besides: whoever
steals them still cannot decrypt (`cloister.aws.key_policy`).

The document is what ``aws sts assume-role`` calls ``Credentials``, and an AWS SDK's
``credential_process`` prints.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cloister.errors import MalformedError
from cloister.strictjson import expect_str, parse_json_object

MAX_DOCUMENT_BYTES: Final = 16 * 1024
_ACCESS_KEY_ID: Final = re.compile(r"[A-Z0-9]{16,128}")
_SECRET: Final = re.compile(r"[A-Za-z0-9/+=]{16,256}")
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,8192}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What requests are signed with."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    expires: datetime | None = None
    """Aware; None for credentials that do not end."""

    def __post_init__(self) -> None:
        # They go into header fields.
        token = self.session_token
        if (
            _ACCESS_KEY_ID.fullmatch(self.access_key_id) is None
            or _SECRET.fullmatch(self.secret_access_key) is None
            or (token is not None and _TOKEN.fullmatch(token) is None)
        ):
            raise MalformedError(
                "the AWS credentials are not of their form", code="kms.credentials"
            )
        if self.expires is not None and self.expires.tzinfo is None:
            raise ValueError("a time of expiry has a zone")


def parse_credentials(data: bytes) -> Credentials:
    """Read the document. Raises MalformedError, which repeats none of it."""
    members = parse_json_object(
        data, limit=MAX_DOCUMENT_BYTES, what="the AWS credentials", code="kms.credentials"
    )
    unknown = members.keys() - {
        "AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration", "Version",
    }  # fmt: skip
    if unknown or members.get("Version", 1) != 1:
        raise MalformedError("the AWS credentials have unknown members", code="kms.credentials")
    token, expiration = members.get("SessionToken"), members.get("Expiration")
    return Credentials(
        access_key_id=_text(members.get("AccessKeyId")),
        secret_access_key=_text(members.get("SecretAccessKey")),
        session_token=None if token is None else _text(token),
        expires=None if expiration is None else _time(_text(expiration)),
    )


def _text(value: object) -> str:
    return expect_str(value, "a member of the AWS credentials", limit=8192)


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise MalformedError("the AWS credentials have no time of expiry", code="kms.credentials")
    return found
