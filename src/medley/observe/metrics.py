"""The numbers a process exports to Prometheus, in one table.

`Metrics` owns its registry, so several may live in one process (tests, the simulated runtime) without
meeting. Names, labels and units are fixed here and documented by their help texts; who increments what is
left to the runtimes.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE: str = CONTENT_TYPE_LATEST
_STALENESS_BUCKETS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
_PERSIST_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """A process's registry and the instruments in it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.commits_total = self._counter("commits", "Updates committed", "job")
        self.aborts_total = self._counter("aborts", "Updates refused, by reason", "job", "reason")
        self.samples_committed_total = self._counter("samples_committed", "Samples in committed updates", "job")
        self.tokens_total = self._counter("tokens", "Tokens read for committed updates, padding apart", "job")
        self.leases_open = self._gauge("leases_open", "Leases granted and neither committed nor revoked", "job")
        self.workers = self._gauge("workers", "Workers that are connected and ready", "job")
        self.shards = self._gauge("shards", "Copies of shards that are connected and ready", "job")
        self.loss = self._gauge("loss", "Training loss of the last commit, nats per answer token", "job")
        self.heldout_loss = self._gauge("heldout_loss", "Last held-out loss, nats per answer token", "job")
        self.staleness = self._histogram(
            "staleness", "Commits between an update's base version and its own", _STALENESS_BUCKETS, "job"
        )
        self.persist_seconds = self._histogram(
            "persist_seconds", "Time until a group of records was durable", _PERSIST_BUCKETS_S
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"medley_{name}_total", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"medley_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"medley_{name}", text, labels, buckets=buckets, registry=self.registry)

    def render(self) -> bytes:
        """The text exposition of every instrument, to be served with `CONTENT_TYPE`."""
        return generate_latest(self.registry)
