"""A double of Vault's transit engine, written from its API's description.

Not recorded from a server: there was none where these tests were written. It encrypts for real
(AES-256-GCM with the associated data), checks the token, and answers as the description says.
"""

from __future__ import annotations

import base64
import json
import os

import httpx2
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TOKEN = "hvs.simulated"


class Transit:
    """One engine at ``transit``, with one key ``root``."""

    def __init__(self) -> None:
        self.versions = [AESGCM(os.urandom(32))]
        self.heeds_context = True
        self.status = 200
        self.coding: str | None = None
        self.content: bytes | None = None
        """In place of what it would answer."""
        self.plaintext: bytes | None = None
        """In place of what it opens."""
        self.requests: list[httpx2.Request] = []
        self.transport = httpx2.MockTransport(self._answer)

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self._answer_plain(request)
        if self.coding is not None:
            answer.headers["content-encoding"] = self.coding
        return answer

    def _answer_plain(self, request: httpx2.Request) -> httpx2.Response:
        if self.status != 200:
            return httpx2.Response(self.status, json={"errors": ["simulated"]})
        if request.headers.get("x-vault-token") != TOKEN:
            return httpx2.Response(403, json={"errors": ["permission denied"]})
        if self.content is not None:
            return httpx2.Response(200, content=self.content)
        members = json.loads(request.content)
        context = base64.b64decode(members["associated_data"]) if self.heeds_context else b""
        match request.url.path:
            case "/v1/transit/encrypt/root":
                nonce = os.urandom(12)
                plaintext = base64.b64decode(members["plaintext"])
                sealed = nonce + self.versions[-1].encrypt(nonce, plaintext, context)
                text = f"vault:v{len(self.versions)}:{base64.b64encode(sealed).decode()}"
                return _data({"ciphertext": text, "key_version": len(self.versions)})
            case "/v1/transit/decrypt/root":
                _, version, text = members["ciphertext"].split(":")
                try:
                    sealed = base64.b64decode(text)
                    cipher = self.versions[int(version[1:]) - 1]
                    plaintext = cipher.decrypt(sealed[:12], sealed[12:], context)
                except (InvalidTag, IndexError, ValueError):
                    errors = ["cipher: message authentication failed"]
                    return httpx2.Response(400, json={"errors": errors})
                plaintext = plaintext if self.plaintext is None else self.plaintext
                return _data({"plaintext": base64.b64encode(plaintext).decode()})
            case _:
                return httpx2.Response(404, json={"errors": []})


def _data(members: object) -> httpx2.Response:
    document = {"request_id": "0", "lease_id": "", "renewable": False, "data": members}
    return httpx2.Response(200, json=document)
