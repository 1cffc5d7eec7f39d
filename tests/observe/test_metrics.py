"""The exported numbers: names, labels, and registries that do not meet."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from medley.observe.metrics import Metrics


def _samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_what_was_counted_is_rendered() -> None:
    metrics = Metrics()
    metrics.commits_total.labels("j1").inc(3)
    metrics.aborts_total.labels("j1", "stale").inc()
    metrics.heldout_loss.labels("j1").set(2.5)
    metrics.staleness.labels("j1").observe(3)
    metrics.persist_seconds.observe(0.004)
    found = _samples(metrics)
    assert found["medley_commits_total", (("job", "j1"),)] == 3
    assert found["medley_aborts_total", (("job", "j1"), ("reason", "stale"))] == 1
    assert found["medley_heldout_loss", (("job", "j1"),)] == 2.5
    assert found["medley_staleness_bucket", (("job", "j1"), ("le", "4.0"))] == 1
    assert found["medley_persist_seconds_bucket", (("le", "0.005"),)] == 1


def test_two_processes_in_one_do_not_meet() -> None:
    one, other = Metrics(), Metrics()
    one.workers.labels("j1").set(3)
    assert ("medley_workers", (("job", "j1"),)) not in _samples(other)
