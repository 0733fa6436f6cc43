"""Binary HTTP (RFC 9292): the message inside the seal. Everything public of its three files."""

from cloister.channel.bhttp_decode import TOO_LARGE, RequestDecoder, ResponseDecoder
from cloister.channel.bhttp_encode import (
    RequestEncoder,
    ResponseEncoder,
    encode_request,
    encode_request_parts,
    encode_response,
)
from cloister.channel.bhttp_records import (
    MEDIA_TYPE,
    Data,
    EndOfContent,
    Fields,
    InformationalResponse,
    Limits,
    RequestEvent,
    RequestHead,
    ResponseEvent,
    ResponseHead,
)

__all__ = [
    "MEDIA_TYPE",
    "TOO_LARGE",
    "Data",
    "EndOfContent",
    "Fields",
    "InformationalResponse",
    "Limits",
    "RequestDecoder",
    "RequestEncoder",
    "RequestEvent",
    "RequestHead",
    "ResponseDecoder",
    "ResponseEncoder",
    "ResponseEvent",
    "ResponseHead",
    "encode_request",
    "encode_request_parts",
    "encode_response",
]
