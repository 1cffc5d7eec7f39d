"""Experiment files: what they become, and the one sentence that a bad one gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medley.jobs.experiments import criteria, runs, statistics
from medley.jobs.experiments.fleet import setup_of
from medley.jobs.experiments.load import Loaded, load_data, load_experiment
from medley.jobs.experiments.tally import COLUMNS
from medley.jobs.experiments.thinning import BINS, Bins, Thinned
from medley.protocol.errors import UserError

SMALL = """
name: small
fleet:
  workers: {count: 4, device: {choice: {t4: 3, l4: 1}}, slowness: {spread: [1, 4]}}
  keeper: {device: cloud-2vcpu, worker: false}
jobs:
  a: {model: {parameters: 1e6}, train: {batch_samples: 16}}
"""


def loaded(tmp_path: Path, text: str, *sets: str) -> Loaded:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return load_experiment(path, sets)


def test_a_fleet_is_groups_and_single_machines(tmp_path: Path) -> None:
    setup = setup_of(loaded(tmp_path, SMALL).experiment, 0)
    assert [machine.name for machine in setup.machines] == [
        "workers-0",
        "workers-1",
        "workers-2",
        "workers-3",
        "keeper",
    ]
    assert setup.machines[0].slowness == 1 and setup.machines[3].slowness == pytest.approx(4)
    assert {machine.device.kind for machine in setup.machines[:4]} <= {"t4", "l4"}
    assert not setup.machines[4].worker
    (arrival,) = setup.arrivals
    assert arrival.workload.parameters == 1_000_000 and arrival.spec.train.batch_samples == 16


def test_the_same_repeat_draws_the_same_and_another_draws_anew(tmp_path: Path) -> None:
    text = SMALL.replace("{spread: [1, 4]}", "{uniform: [1, 4]}")
    experiment = loaded(tmp_path, text).experiment
    assert setup_of(experiment, 0) == setup_of(experiment, 0)
    assert setup_of(experiment, 0).machines != setup_of(experiment, 1).machines


def test_no_draw_makes_a_machine_that_needs_no_time(tmp_path: Path) -> None:
    text = SMALL.replace("{spread: [1, 4]}", "{normal: [0.5, 100]}")
    assert min(one.slowness for one in setup_of(loaded(tmp_path, text).experiment, 0).machines) >= 0.001


def test_points_of_a_sweep_meet_the_same_machines(tmp_path: Path) -> None:
    text = SMALL.replace("{spread: [1, 4]}", "{log_uniform: [1, 4]}") + "sweep: {network.profile: [good, satellite]}\n"
    first, second = (setup_of(point.experiment, 0) for point in loaded(tmp_path, text).points)
    assert [m.slowness for m in first.machines] == [m.slowness for m in second.machines]
    assert first.machines[0].conditions != second.machines[0].conditions


def test_a_stream_draws_its_kinds_by_weight(tmp_path: Path) -> None:
    text = SMALL + "  b: {weight: 0}\narrivals: {count: 30, per_h: 60}\n"
    arrivals = setup_of(loaded(tmp_path, text).experiment, 0).arrivals
    assert len(arrivals) == 30 and {one.job.partition("-")[0] for one in arrivals} == {"a"}
    assert [one.at_ns for one in arrivals] == sorted(one.at_ns for one in arrivals) and arrivals[-1].at_ns > 0


def test_a_sweep_is_the_product_of_values_and_named_settings(tmp_path: Path) -> None:
    text = SMALL + (
        "sweep:\n"
        "  network.profile: [good, cellular]\n"
        "  mode:\n"
        "    sync: {jobs.a.train.sync.mode: sync}\n"
        "    adaptive: {jobs.a.train.sync.mode: async, jobs.a.train.sync.staleness_adaptive: true}\n"
    )
    points = loaded(tmp_path, text).points
    assert [tuple(point.labels.values()) for point in points] == [
        ("good", "sync"),
        ("good", "adaptive"),
        ("cellular", "sync"),
        ("cellular", "adaptive"),
    ]
    assert points[3].experiment.jobs["a"].train.sync.staleness_adaptive


def test_json_and_set_words_are_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"fleet": {"w": {"count": 2}}, "jobs": {"a": {}}}), encoding="utf-8")
    experiment = load_experiment(path, ("fleet.w.count=3", "jobs.a.train.epochs=2")).experiment
    assert experiment.fleet["w"].count == 3 and experiment.jobs["a"].train.epochs == 2


def test_a_point_is_the_same_after_it_was_sent_to_a_process_as_json(tmp_path: Path) -> None:
    text = SMALL.replace("{spread: [1, 4]}", "{choice: {1: 3, 2.5: 1}}")
    (point,) = loaded(tmp_path, text).points
    (sent,) = load_data(json.loads(json.dumps(point.data)), "the point").points
    assert sent.experiment == point.experiment


def test_only_what_a_run_depends_on_names_it(tmp_path: Path) -> None:
    def keys(text: str, *sets: str) -> list[str]:
        return [task.key for task in runs.tasks_of(loaded(tmp_path, text, *sets))]

    assert keys(SMALL) == keys(SMALL + "learn: something else\n")
    assert keys(SMALL) != keys(SMALL, "seed=2")
    assert keys(SMALL, "repeats=2")[:1] == keys(SMALL)


def test_labels_tell_values_apart_that_look_alike(tmp_path: Path) -> None:
    points = loaded(tmp_path, SMALL + "sweep: {until_s: [600.0000001, 600.0000002, 600]}\n").points
    assert [point.labels["until_s"] for point in points] == ["600.0000001", "600.0000002", "600"]


def dsl(values: str) -> str:
    """A preset of the experiment's own."""
    return f"network: {{profile: dsl, presets: {{dsl: {{{values}}}}}}}"


LAUGHS = "sweep: {seed: [&a [1, 1, 1, 1, 1, 1, 1, 1]" + "".join(
    f", &{name} [{', '.join(['*' + before] * 8)}]" for before, name in zip("abcdef", "bcdefg", strict=True)
)
LAUGHS += "]}"
BAD: list[tuple[str, str]] = [
    (SMALL + "network: {profile: celular}", "there is no preset 'celular'; did you mean 'cellular'?"),
    (SMALL.replace("count: 4,", "count: 4, network: moon,"), "fleet.workers.network: there is no preset 'moon'"),
    (SMALL + "network: {presets: {dsl: {up_bytes_per_s: -1}}}", "up_bytes_per_s is -1, but must be at least 0"),
    (SMALL + "network: {overrides: {heartbeats: good}}", "no class of traffic 'heartbeats'; did you mean 'heartbeat'?"),
    (SMALL.replace("device: cloud-2vcpu", "device: cloud-3vcpu"), "no device 'cloud-3vcpu'; did you mean"),
    (SMALL.replace("1e6", "7e10"), "no machine of the fleet can train jobs.a: it needs"),
    (SMALL.replace("count: 4", "count: 0, shard: false"), "fleet has no machine that trains"),
    (SMALL + "sweep: {fleet.workers.counts: [1]}", "no such key; did you mean 'fleet.workers.count'?"),
    (SMALL + "sweep: {network.profil: [good]}", "no such key; did you mean 'network.profile'?"),
    (SMALL + "sweep: {mode: {a: {jobs.b.train.sync.mode: sync}}}", "mode: a sets 'jobs.b.train.sync.mode'"),
    (SMALL + "sweep: {network.profile: [good, moon]}", "there is no preset 'moon'"),
    (SMALL + "sweep: {network.profile: good}", "but must be a list of values"),
    (SMALL + "sweep: {seed: [1, -1]}", "sweep seed: -1: seed is -1, but must be at least 0"),
    (SMALL + "fleeet: {}", "there is no key 'fleeet'; did you mean 'fleet'?"),
    (SMALL.replace("uniform", "unform").replace("spread", "unform"), "has no distribution 'unform'; did you mean"),
    (SMALL.replace("[1, 4]", "[4, 1]"), "spread is from the smaller value to the larger one"),
    (SMALL.replace("[1, 4]", "[1, x]"), "is 'x', but must be a number"),
    (
        SMALL.replace("batch_samples: 16", "batch_samples: 0"),
        "jobs.a: train.batch_samples is 0, but must be at least 1",
    ),
    (SMALL + "engine: real", "jobs.a.model.task is empty, but engine 'real' trains a tiny task"),
    (SMALL + "engine: reel", "engine is 'reel', but must be"),
    (SMALL + "success: ['completion <= 3']", "no column 'completion'; did you mean"),
    (SMALL + "success: ['bytes <= 2 x baseline']", "needs a baseline"),
    (SMALL + "success: ['state == dne']", "a run is never 'dne'; did you mean 'done'?"),
    (SMALL + "success: ['state <= 3']", "state can only be compared with a word, such as"),
    (SMALL + "success: ['completion_s == soon']", "completion_s can only be compared with a number, such as"),
    (SMALL + "baseline: {network.profile: good}", "baseline is given, but nothing is swept"),
    (SMALL + "sweep: {seed: [1]}\nbaseline: {sed: a}", "baseline 'sed' is not swept; did you mean 'seed'?"),
    (
        SMALL.rstrip()[:-1] + ", schedule: {workers_min: 5}}\n",
        "workers_min is 5, but only 4 machines of the fleet train",
    ),
    (SMALL + "quotas: {research: 0}", "quotas.research is 0, but must be from 1 to 10000 machines"),
    (SMALL + "repeats: 9000", "repeats is 9000, but must be at most 1000"),
    (SMALL + "until_s: .nan", "until_s is nan, but must be"),
    (SMALL + "sweep: {network.profile: [good, good]}", "sweep network.profile has 'good' twice"),
    (SMALL + "sweep: {repeats: [1, 2]}", "sets 'repeats', which no run depends on"),
    (SMALL + "sweep: {m: {x: {name: b}}}", "sets 'name', which no run depends on"),
    (
        SMALL + "sweep: {m: {a: {heartbeat_ms: 500}}, heartbeat_ms: [1000, 2000]}",
        "sets 'heartbeat_ms', which undoes what sweep m sets",
    ),
    (
        SMALL + "sweep: {jobs.a.train.epochs: [1, 2], jobs.a.train: [{batch_samples: 8}]}",
        "sets 'jobs.a.train', which undoes what sweep jobs.a.train.epochs sets",
    ),
    (SMALL + "sweep: {seed: &a [1, *a]}", "x.yaml line 8: what begins here holds an alias of itself"),
    (SMALL + LAUGHS, "has more than 262144 values, aliases counted"),
    (SMALL.replace("name: small", "name: ../small"), "name is '../small', but must be the name of a directory"),
    (SMALL.replace("name: small", 'name: "a\\0b"'), "but must be the name of a directory"),
    (SMALL.replace("keeper:", "a b:"), "fleet has the name 'a b', but names are 1 to 63 letters"),
    (SMALL.replace("  a: {", "  <b>: {"), "jobs has the name '<b>', but names are"),
    (SMALL.replace("keeper:", "coordinator:"), "fleet.coordinator has a machine 'coordinator', as the coordinator is"),
    (SMALL.replace("keeper:", "workers-3:"), "fleet.workers-3 has a machine 'workers-3', as one of fleet.workers is"),
    (
        SMALL + "autoscaling: {max_nodes: 2, offers: {workers: {device: t4}}}",
        "fleet.workers has a machine 'workers-0', as a machine of autoscaling.offers is called",
    ),
    (SMALL + dsl("rtt_ms: 9, loss: 1e-17"), "dsl.loss is 1e-17, but must be 0 or at least 1e-09"),
    (SMALL + dsl("rtt_ms: 9, jitter_ms: 1e-300"), "dsl.jitter_ms is 1e-300, but must be 0 or at least 0.001"),
    (SMALL + dsl("rtt_ms: 9, up_s: 1e-10, down_s: 5"), "dsl.up_s is 1e-10, but must be 0 or at least 0.001"),
    (SMALL + dsl("jitter_ms: 9"), "dsl has jitter_ms, but a delay that varies needs a mean: set rtt_ms as well"),
    (SMALL + "faults: {clog: 1e9}", "faults.clog is 1e+09, but must be above 0 and at most 10000 (strikes a minute)"),
    (SMALL + "faults: {crash: 5}", "faults.crash is 5, but must be above 0 and at most 1 (of the operations)"),
    (SMALL + "arrivals: {count: 3, per_h: 1e-300}", "arrivals.per_h is 1e-300, but must be 0 or at least 1e-06"),
    (SMALL + "autoscaling: {max_nodes: 1, min_nodes: 2, offers: {x: {}}}", "min_nodes is 2, but at most 1 (max_nodes)"),
    (SMALL + "seed: 1" + "0" * 400, "seed is a number of more than 63 bits"),
    (SMALL + "until_s: 1" + "0" * 400, "until_s is a number of more than 63 bits"),
    (SMALL + "seed: .nan", "seed is nan, but must be a whole number"),
    (SMALL + "heartbeat_ms: .inf", "heartbeat_ms is inf, but must be a whole number"),
    (SMALL.replace("parameters: 1e6", "parameters: .nan"), "parameters is nan, but must be a whole number"),
    (SMALL.replace("a: {", "a: {placement: {replication: true}, "), "placement.replication is true, but must be"),
    (SMALL.replace("t4: 3", "t4: .nan"), "the weights of fleet.workers.device.choice must be numbers from 0 on"),
    (SMALL + "devices: {box: {gflop: 3}}", "devices.box"),
    ("name: x\nfleet: {w: {}}", "jobs is empty"),
    ("name: x\njobs: {a: {}}", "fleet has no machine"),
    ("", "x.yaml is empty, but an experiment is"),
]


@pytest.mark.parametrize(("text", "sentence"), BAD, ids=[sentence[:50] for _, sentence in BAD])
def test_a_bad_experiment_gets_one_clear_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        loaded(tmp_path, text)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value) and str(refused.value).startswith("x.yaml")


def test_a_set_word_that_names_no_key_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--set fleet.wrokers.count=3: there is no key .* did you mean"):
        loaded(tmp_path, SMALL, "fleet.wrokers.count=3")


def test_a_sweep_of_too_many_runs_is_refused() -> None:
    values = list(range(1, 200))
    data: dict[str, Any] = {"fleet": {"w": {}}, "jobs": {"a": {}}, "sweep": {"seed": values, "heartbeat_ms": values}}
    with pytest.raises(UserError, match="39601 runs, but at most 10000"):
        load_data(data, "x")


def test_criteria_compare_with_numbers_words_and_the_baseline() -> None:
    row = {"state": "done", "bytes": 10.0, "final_loss": None}
    assert criteria.parse("state == done", COLUMNS).met(row)
    assert criteria.parse("bytes <= 1.5 x baseline", COLUMNS).met(row, {"bytes": 7.0})
    assert not criteria.parse("bytes < 1.4 x baseline", COLUMNS).met(row, {"bytes": 7.0})
    assert not criteria.parse("final_loss < 3", COLUMNS).met(row)


def test_the_interval_is_students() -> None:
    found = statistics.mean([1.0, 2.0, 3.0])
    assert found is not None and found.value == 2 and found.half == pytest.approx(4.303 / 3**0.5)
    assert statistics.mean([]) is None


def test_series_stay_bounded_and_keep_their_sums_and_ends() -> None:
    bins = Bins(width_ns=1)
    for start in range(0, 10_000, 10):
        bins.add(start, start + 3)
    assert sum(bins.values) == 3000 and len(bins.values) == BINS and bins.width_ns * BINS >= 10_000
    series: Thinned[int] = Thinned(most=8)
    for value in range(1001):
        series.add(value)
    assert len(series.points()) <= 9 and series.points()[-1] == 1000
