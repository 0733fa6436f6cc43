"""What the operator may count: totals without content and without anybody's name."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """One worker's metrics, in a registry of their own.

    Labels come from fixed lists: routes, status classes, reasons, and the models of the measured
    configuration. None is derived from who asks or what is asked. What the kernel
    counts of this process (open files, memory, CPU time; Linux) is there under the usual names,
    ``process_…``.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        ProcessCollector(registry=registry)
        self.answers = Counter(
            "cloister_answers",
            "Answers by route and status class.",
            ("route", "status"),
            registry=registry,
        )
        self.refused_outside = Counter(
            "cloister_refused_outside",
            "Requests refused before they were any, by status.",
            ("status",),
            registry=registry,
        )
        self.open_requests = Gauge(
            "cloister_open_requests", "Requests in progress.", registry=registry
        )
        self.generations = Gauge(
            "cloister_generations",
            "Requests inside the engine or waiting for it.",
            registry=registry,
        )
        self.tasks = Gauge("cloister_tasks", "Tasks of the worker's event loop.", registry=registry)
        self.cancelled = Counter(
            "cloister_cancelled", "Answers given up because the client left.", registry=registry
        )
        self.pieces = Counter(
            "cloister_stream_pieces", "Pieces of answers sent.", registry=registry
        )
        self.first_piece_s = Histogram(
            "cloister_first_piece_seconds",
            "From a whole request to the first piece of its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.answer_s = Histogram(
            "cloister_answer_seconds",
            "From a whole request to the end of its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.tls_handshakes = Counter(
            "cloister_tls_handshakes",
            "Handshakes of attested TLS: done, failed, or refused as one too many.",
            ("outcome",),
            registry=registry,
        )
        self.reports = Counter("cloister_reports", "Attestation reports made.", registry=registry)
        self.key_rotations = Counter(
            "cloister_key_rotations", "Request key rotations.", registry=registry
        )
        self.engine_ready = Gauge(
            "cloister_engine_ready",
            "1 while the model's engine answers.",
            ("model",),
            registry=registry,
        )
        self.engine_restarts = Counter(
            "cloister_engine_restarts",
            "Times the model's engine was started again.",
            ("model",),
            registry=registry,
        )
        self.engine_processes = Gauge(
            "cloister_engine_processes",
            "Engine processes of the model now.",
            ("model",),
            registry=registry,
        )
        self.engine_recycled = Counter(
            "cloister_engine_recycled",
            "Engine processes exchanged, by the bound that was reached.",
            ("model", "why"),
            registry=registry,
        )

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
