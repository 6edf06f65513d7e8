"""What Prometheus reads of the service at `/metrics` (§4.7.2); the dashboard of docs/deploy.md shows these names."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

PARTS = ("queue", "features", "prompt", "forward", "decode", "total")
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_COUNTS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one service, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("hyperdapo_requests", "Requests", ["path", "status"], registry=registry)
        self.latency = Histogram(
            "hyperdapo_decision_seconds", "Time of a decision", ["part"], buckets=_SECONDS, registry=registry
        )
        self.batches = Histogram("hyperdapo_batch_size", "Decisions taken together", buckets=_COUNTS, registry=registry)
        self.actions = Counter("hyperdapo_actions", "Decisions by action", ["asset", "action"], registry=registry)
        self.stale = Counter("hyperdapo_stale_refusals", "Requests with too old a book", ["asset"], registry=registry)
        self.scored = Counter("hyperdapo_scored_prompts", "Prompts by who read them", ["by"], registry=registry)
        self.failovers = Counter(
            "hyperdapo_failovers", "Failed batches and failed looks at an upstream", ["upstream"], registry=registry
        )
        self.healthy = Gauge(
            "hyperdapo_upstream_healthy", "1 where an upstream is used", ["upstream"], registry=registry
        )
        self._queue = Gauge("hyperdapo_queue_depth", "Requests that wait", registry=registry)

    def observe_queue(self, depth: Callable[[], int]) -> None:
        """Read the depth of the queue whenever it is asked for."""
        self._queue.set_function(depth)

    def observe_decision(self, asset: str, action: str, timing_ms: Mapping[str, float]) -> None:
        """Count one decision, and the time of each of its parts."""
        self.actions.labels(asset, action).inc()
        for part, milliseconds in timing_ms.items():
            self.latency.labels(part).observe(milliseconds / 1e3)

    def text(self) -> bytes:
        """All of them in the format of Prometheus."""
        return generate_latest(self._registry)
