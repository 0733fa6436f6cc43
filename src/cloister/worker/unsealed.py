"""Answers outside the seal: key configurations, reports, and refusals."""

from __future__ import annotations

from cloister.channel.receipt import API_VERSION
from cloister.worker import wire
from cloister.worker.problems import Problem
from cloister.worker.response import Send


async def send_plain(send: Send, status: int, body: bytes, headers: wire.Headers) -> None:
    """Send one unsealed response. Nothing in it is about a conversation."""
    fields = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_problem(send: Send, problem: Problem) -> None:
    """Send a refusal. A sealing client treats it as a channel error, never as an answer."""
    headers = (*problem.headers(), (wire.ACI_VERSION, API_VERSION.encode()))
    await send_plain(send, problem.status, problem.body(), headers)
