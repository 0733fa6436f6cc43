"""What the worker says when it refuses: fixed sentences, in OpenAI's shape or RFC 9457's.

No sentence is made from a request, from an engine's answer, or from an exception's text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from cloister.worker.wire import (
    DATE_PROBLEM,
    JSON_TYPE,
    OHTTP_KEY_PROBLEM,
    PROBLEM_TYPE,
    SHOULD_RETRY,
    Headers,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One refusal or failure. `param` is the name of a documented field, never the client's."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None
    retry: bool | None = None
    """Value of ``x-should-retry``, which OpenAI's SDKs obey."""
    problem_type: str | None = None
    """Set where the answer is a problem document (RFC 9457) instead."""

    def body(self, *, anthropic: bool = False) -> bytes:
        """The body, as compact JSON; on Anthropic's paths in Anthropic's shape."""
        if anthropic and self.problem_type is None:
            document: dict[str, object] = {
                "type": "error",
                "error": {
                    "type": _ANTHROPIC.get(self.status, "api_error"),
                    "message": self.message,
                    "code": self.code,
                },
                "request_id": None,
            }
        elif self.problem_type is not None:
            document = {
                "type": self.problem_type,
                "status": self.status,
                "title": self.message,
            }
        else:
            document = {
                "error": {
                    "message": self.message,
                    "type": self.kind,
                    "param": self.param,
                    "code": self.code,
                }
            }
        return json.dumps(document, separators=(",", ":")).encode()

    def headers(self) -> Headers:
        """Content type and the retry fields."""
        content_type = JSON_TYPE if self.problem_type is None else PROBLEM_TYPE
        fields = [(b"content-type", content_type), (b"cache-control", b"no-store")]
        if self.retry_after is not None:
            fields.append((b"retry-after", str(self.retry_after).encode()))
        if self.retry is not None:
            fields.append((SHOULD_RETRY, b"true" if self.retry else b"false"))
        return tuple(fields)

    def event(self, *, anthropic: bool = False) -> bytes:
        """The same as the last event of a stream that has already begun."""
        name = b"event: error\n" if anthropic else b""
        return name + b"data: " + self.body(anthropic=anthropic) + b"\n\n"


_ANTHROPIC: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "invalid_request_error",
    412: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Types of Anthropic's errors (API reference, "Errors"); `code` goes beside them."""


class RefusedError(Exception):
    """Ends the handling of one request with `problem`. Never leaves the worker."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.code or problem.kind)
        self.problem = problem


def _server(
    status: int,
    message: str,
    code: str,
    *,
    retry_after: int | None = None,
    retry: bool | None = None,
) -> Problem:
    return Problem(
        status=status,
        message=message,
        kind="server_error",
        code=code,
        retry_after=retry_after,
        retry=retry,
    )


def bad_request(message: str, *, code: str | None = None, param: str | None = None) -> Problem:
    """A 400 of the client's making."""
    return Problem(status=400, message=message, code=code, param=param, retry=False)


# Outside the seal: about the envelope only.
UNKNOWN_KEY: Final = Problem(
    status=400,
    message="The request is not sealed to a key of this worker: verify its report again.",
    problem_type=OHTTP_KEY_PROBLEM,
)
CANNOT_OPEN: Final = Problem(
    status=400, message="The sealed request cannot be opened.", problem_type="about:blank"
)
NOT_SEALED: Final = Problem(
    status=415,
    message="Sealed requests have the content type message/ohttp-chunked-req.",
    problem_type="about:blank",
)
TOO_LARGE: Final = Problem(
    status=413, message="The sealed request is too large.", problem_type="about:blank"
)
TOO_SLOW: Final = Problem(
    status=408, message="The sealed request did not arrive in time.", problem_type="about:blank"
)
BUSY: Final = Problem(
    status=503,
    message="The worker is answering as many requests as it can.",
    problem_type="about:blank",
    retry_after=1,
)
NOT_STARTED: Final = Problem(
    status=503,
    message="The seal was not set up: the server has to run the application's lifespan.",
    problem_type="about:blank",
    retry_after=5,
)
STOPPING: Final = Problem(
    status=503, message="The worker is stopping.", problem_type="about:blank", retry_after=5
)
PLAINTEXT: Final = Problem(
    status=403,
    message=(
        "This worker takes sealed requests only, so that nobody between you and it can read "
        "them. Use cloister.OpenAI(base_url=...) in Python, or run `cloister proxy` and point "
        "your client at it."
    ),
    code="plaintext_refused",
    retry=False,
)
NOT_FOUND_OUTSIDE: Final = Problem(
    status=404, message="There is nothing here.", kind="not_found", code="not_found"
)
METHOD_OUTSIDE: Final = Problem(
    status=405, message="This path does not take this method.", code="method_not_allowed"
)
BAD_NONCE: Final = bad_request(
    "The nonce must be 64 lower-case hexadecimal characters.", param="nonce"
)
REPORT_BUSY: Final = _server(
    503, "Too many attestation reports are being made.", "report_busy", retry_after=2
)
REPORT_FAILED: Final = _server(
    503, "The attestation report cannot be made at the moment.", "report_failed", retry_after=5
)

KEYS_EXHAUSTED: Final = Problem(
    status=503,
    message="The worker's keys have opened as many requests as they may; new ones come soon.",
    problem_type="about:blank",
    retry_after=60,
)

# Inside the seal, or inside TLS.
REQUEST_TOO_LARGE: Final = Problem(
    status=413, message="The request is too large.", code="request_too_large", retry=False
)
REQUEST_TOO_SLOW: Final = Problem(
    status=408, message="The request did not arrive in time.", code="request_too_slow"
)
WORKER_BUSY: Final = _server(503, BUSY.message, "busy", retry_after=1)
DATE_REFUSED: Final = Problem(
    status=400,
    message="The request's Date is missing or too far from the worker's clock.",
    problem_type=DATE_PROBLEM,
)
REPLAYED: Final = Problem(
    status=409,
    message="This sealed request was already accepted once.",
    code="replayed_request",
    retry=False,
)
ALREADY_STARTED: Final = Problem(
    status=409,
    message="A request with this idempotency key was already started.",
    code="idempotency_key_in_use",
    retry=False,
)
MEMORY_FULL: Final = _server(
    503, "The worker cannot remember more requests at the moment.", "memory_full", retry_after=60
)
BAD_MESSAGE: Final = bad_request("The inner HTTP message is malformed.", code="bad_inner_message")
NO_NONCE: Final = bad_request(
    "The request must carry X-Cloister-Nonce: 32 random bytes in base64url without padding.",
    code="bad_nonce",
)
BAD_CACHE_SECRET: Final = bad_request(
    "X-Cloister-Cache-Secret must be 32 bytes in base64url without padding.",
    code="bad_cache_secret",
)
BAD_IDEMPOTENCY_KEY: Final = bad_request(
    "Idempotency-Key must be one value of at most 255 bytes.", code="bad_idempotency_key"
)
NO_API_KEY: Final = Problem(
    status=401,
    message="No API key, or one this worker does not know.",
    kind="authentication_error",
    code="invalid_api_key",
    retry=False,
)
NO_KEYS_CONFIGURED: Final = Problem(
    status=401,
    message="This worker has no API keys yet: its operator adds one with `cloister keys add`.",
    kind="authentication_error",
    code="invalid_api_key",
    retry=False,
)
UNKNOWN_PATH: Final = Problem(
    status=404, message="Unknown path.", kind="not_found", code="unknown_path"
)
PATH_REFUSED: Final = Problem(
    status=404,
    message=(
        "The engine of this worker does not serve this path; /v1/models lists those it serves."
    ),
    code="path_refused",
    retry=False,
)
WRONG_METHOD: Final = Problem(
    status=405, message="This path does not take this method.", code="method_not_allowed"
)
UNKNOWN_RECEIPT: Final = Problem(
    status=404, message="No such receipt.", kind="not_found", code="not_found"
)
UNKNOWN_MODEL: Final = Problem(
    status=404,
    message="This worker does not serve that model; /v1/models lists what it serves.",
    code="model_not_found",
    param="model",
    retry=False,
)
BAD_JSON: Final = bad_request("The body is not one unambiguous JSON object.", code="bad_json")
TOO_MANY_VALUES: Final = bad_request(
    "The body holds more values than this worker takes.", code="too_many_values"
)
NO_MODEL: Final = bad_request("A model must be named.", param="model")
BAD_PROVIDER: Final = bad_request(
    "The ACI constraints in `provider` are not valid.", code="bad_constraint", param="provider"
)
UNKNOWN_CONSTRAINT: Final = bad_request(
    "`provider` holds an ACI constraint that this worker does not know.",
    code="unknown_constraint",
    param="provider",
)
SESSION_NOT_ACCEPTED: Final = Problem(
    status=412,
    message="This worker serves directly and has no upstream sessions.",
    kind="session_not_accepted",
    param="provider",
    retry=False,
)
AT_CAPACITY: Final = _server(
    503, "The worker is generating as many answers as it can.", "at_capacity", retry_after=1
)
ENGINE_DOWN: Final = _server(503, "The engine is restarting.", "engine_restarting", retry_after=2)
# After these two the prompt may have run, and its idempotency key is spent: no retry.
ENGINE_FAILED: Final = _server(
    502, "The engine failed while answering.", "engine_failed", retry=False
)
ENGINE_BUSY: Final = _server(503, "The engine is busy.", "engine_busy", retry_after=1)
TIMED_OUT: Final = _server(
    504, "The answer took longer than this worker allows.", "timeout", retry=False
)
INTERNAL: Final = _server(500, "The worker failed to handle the request.", "internal")
SHUTTING_DOWN: Final = _server(503, "The worker is stopping.", "stopping", retry_after=5)
CONTEXT_LENGTH: Final = bad_request(
    "The prompt and the requested answer do not fit into the model's context.",
    code="context_length_exceeded",
    param="messages",
)
ENGINE_REFUSED: Final = bad_request(
    "The engine does not accept this request: a parameter is not supported or has a wrong value.",
    code="engine_refused",
)


def rate_limited(seconds: int) -> Problem:
    """A 429 that says when to come back."""
    return Problem(
        status=429,
        message="Too many requests with this API key.",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        retry_after=seconds,
    )


def reports_limited(seconds: int) -> Problem:
    """A 429 for a source that asks for too many reports."""
    return Problem(
        status=429,
        message="Too many attestation reports for one address.",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        retry_after=seconds,
    )
