"""
What `/metrics` tells, in the text form of Prometheus. No tenant, key, path or name of a caller stands in it.

With several workers each writes its numbers to files in PROMETHEUS_MULTIPROC_DIR, which the parent has set, and
any of them answers for all.
"""

import os
from collections import Counter as CountOf
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from km_server.config import read_version
from kmd.wire import Verdict

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Others are a caller's own words and become `other`."""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """One process's numbers."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self._requests = Counter(
            "km_http_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "km_http_request_seconds", "Time to an answer.", ["route"], registry=registry, buckets=SECONDS
        )
        self.in_flight = Gauge(
            "km_http_requests_in_flight", "Being answered.", registry=registry, multiprocess_mode="livesum"
        )
        self.connections = Gauge(
            "km_http_connections", "Open connections.", registry=registry, multiprocess_mode="livesum"
        )
        self.body_bytes = Gauge(
            "km_ingest_bodies_in_flight_bytes",
            "Bodies held in memory.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.packed_bytes = Counter("km_ingest_packed_bytes", "Bodies as sent.", registry=registry)
        self.inflated_bytes = Counter("km_ingest_inflated_bytes", "Bodies once unpacked.", registry=registry)
        self._events = Counter("km_ingest_events", "Events judged.", ["verdict"], registry=registry)
        self.refused = Counter("km_http_refusals", "Answers that were no success.", ["code"], registry=registry)
        self.malformed = Counter("km_http_malformed", "Requests that were no HTTP.", registry=registry)
        self.live_feeds = Gauge("km_live_feeds", "Live feeds open.", registry=registry, multiprocess_mode="livesum")
        self.expired = Counter("km_retention_events", "Events removed because of their age.", registry=registry)
        build = Gauge("km_build_info", "Always 1.", ["version"], registry=registry, multiprocess_mode="max")
        build.labels(read_version()).set(1)

    def count_request(self, method: str, route: str, status: int, took_s: float) -> None:
        """Count an answer and the seconds that it took."""
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(took_s)

    def count_body(self, packed_bytes: int, inflated_bytes: int) -> None:
        """Count a body's bytes as they were sent and once unpacked."""
        self.packed_bytes.inc(packed_bytes)
        self.inflated_bytes.inc(inflated_bytes)

    def count_verdicts(self, verdicts: Sequence[Verdict]) -> None:
        """Count a batch's events by verdict."""
        for status, count in CountOf(verdict.status for verdict in verdicts).items():
            self._events.labels(status).inc(count)

    def render(self) -> bytes:
        """Everything, of all workers."""
        if SHARED_FOLDER not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
