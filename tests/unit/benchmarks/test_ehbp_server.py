"""Our server of the peer's protocol speaks it: the peer's own client is the judge."""

from __future__ import annotations

import pytest
from benchmarks.ehbp_server import EhbpServer

ehbp = pytest.importorskip("ehbp")


@pytest.mark.parametrize("size", [1, 1000, 64 * 1024, 200_000])
def test_requests_and_responses_cross(size: int) -> None:
    server = EhbpServer()
    identity = ehbp.ServerIdentity.from_public_key_bytes(server.public_key)
    body = bytes(range(256)) * (size // 256 + 1)
    sealed = identity.encrypt_request_body(body[:size])
    request = server.request(sealed.encapsulated_key.hex())
    opened = b"".join(
        piece
        for at in range(0, len(sealed.body), 999)
        for piece in request.receive(sealed.body[at : at + 999])
    )
    assert opened == body[:size]
    nonce, sealer = request.respond()
    answer = sealer.frame(b"one") + sealer.frame(b"two")
    assert sealed.token.decrypt_response_body(bytes.fromhex(nonce), answer) == b"onetwo"
