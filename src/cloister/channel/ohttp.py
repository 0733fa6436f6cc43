"""Oblivious HTTP (RFC 9458) and its chunked form (draft-ietf-ohai-chunked-ohttp-08).

Bytes in, bytes out; the plaintext is Binary HTTP, but nothing here looks into it.

=================  ===========================  ==============================
Side               one message (RFC 9458)       chunks (the draft)
=================  ===========================  ==============================
client             ClientRequest                ChunkedSender
client, response   ClientRequest.open_response  ChunkedSender.response_opener
server             ServerRequest(chunked=False) ServerRequest(chunked=True)
server, response   ServerRequest.respond        ServerRequest.respond_chunked
=================  ===========================  ==============================

Every open that fails raises one ChannelError, the same for every cause.
"""

from cloister.channel.ohttp_chunks import MAX_CHUNK, ChunkOpener, ChunkSealer
from cloister.channel.ohttp_client import ChunkedResponseOpener, ChunkedSender, ClientRequest
from cloister.channel.ohttp_keys import (
    KEYS_MEDIA_TYPE,
    SUITES_BY_PREFERENCE,
    KeyConfig,
    ServerKey,
    encode_key_configs,
    parse_key_configs,
    preferred_config,
    preferred_suite,
)
from cloister.channel.ohttp_server import MAX_MESSAGE, ServerRequest

__all__ = [
    "CHUNKED_REQUEST_MEDIA_TYPE",
    "CHUNKED_RESPONSE_MEDIA_TYPE",
    "KEYS_MEDIA_TYPE",
    "KEY_PROBLEM_TYPE",
    "MAX_CHUNK",
    "MAX_MESSAGE",
    "REQUEST_MEDIA_TYPE",
    "RESPONSE_MEDIA_TYPE",
    "SUITES_BY_PREFERENCE",
    "ChunkOpener",
    "ChunkSealer",
    "ChunkedResponseOpener",
    "ChunkedSender",
    "ClientRequest",
    "KeyConfig",
    "ServerKey",
    "ServerRequest",
    "encode_key_configs",
    "parse_key_configs",
    "preferred_config",
    "preferred_suite",
]

REQUEST_MEDIA_TYPE = "message/ohttp-req"
RESPONSE_MEDIA_TYPE = "message/ohttp-res"
CHUNKED_REQUEST_MEDIA_TYPE = "message/ohttp-chunked-req"
CHUNKED_RESPONSE_MEDIA_TYPE = "message/ohttp-chunked-res"
# RFC 9458 section 6.4: what a server answers, unsealed, to a key it does not have.
KEY_PROBLEM_TYPE = "https://iana.org/assignments/http-problem-types#ohttp-key"
