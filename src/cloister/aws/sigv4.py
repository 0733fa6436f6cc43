"""Signatures of requests to AWS, version 4.

Source: AWS, "Create a signed AWS API request" (IAM User Guide, Signature Version 4). For requests
as KMS takes them: POST to ``/``, without a query, the body in one piece. No I/O.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime
from typing import Final

from cloister.aws.credentials import Credentials

ALGORITHM: Final = "AWS4-HMAC-SHA256"


def signed_headers(
    *,
    host: str,
    region: str,
    service: str,
    headers: dict[str, str],
    body: bytes,
    credentials: Credentials,
    at: datetime,
) -> dict[str, str]:
    """`headers` (lower-case names) with host, date, token and signature added; all are signed."""
    moment = at.astimezone(UTC)
    stamp, day = moment.strftime("%Y%m%dT%H%M%SZ"), moment.strftime("%Y%m%d")
    signed = {**headers, "host": host, "x-amz-date": stamp}
    if credentials.session_token is not None:
        signed["x-amz-security-token"] = credentials.session_token
    names = ";".join(sorted(signed))
    canonical = "\n".join(
        (
            "POST",
            "/",
            "",
            *(f"{name}:{' '.join(signed[name].split())}" for name in sorted(signed)),
            "",
            names,
            hashlib.sha256(body).hexdigest(),
        )
    )
    scope = f"{day}/{region}/{service}/aws4_request"
    to_sign = "\n".join((ALGORITHM, stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = f"AWS4{credentials.secret_access_key}".encode()
    for step in (day, region, service, "aws4_request"):
        key = hmac.digest(key, step.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    signed["authorization"] = (
        f"{ALGORITHM} Credential={credentials.access_key_id}/{scope}, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    return signed
