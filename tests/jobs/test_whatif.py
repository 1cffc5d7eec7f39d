"""`medley whatif`: sizes, fleets and their mistakes, and answers that follow from what was asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medley.cli.main import run
from medley.jobs.machines import Fleet, Group, measured, of_rate, read_fleet, this_machine
from medley.jobs.sizing import size_job
from medley.jobs.whatif import Question, answer, estimate, fitting
from medley.policies.costs import Size, lease_ns
from medley.policies.devices import described
from medley.protocol.conditions import PRESETS, Conditions
from medley.protocol.errors import UserError
from medley.protocol.spec import JobSpec, Model, Sync, Train
from medley.runtimes.simulated.setup import Machine, Workload

JOB = JobSpec(train=Train(batch_samples=8, eval_every_commits=0))
WORK = Workload(samples=2000, heldout=0, parameters=100_000, tokens_per_sample=64)
QUESTION = Question(JOB, WORK)
LAN = Conditions(rtt_ms=1, up_bytes_per_s=1e8, down_bytes_per_s=1e8)


def machine(name: str, gflops: float = 10, conditions: Conditions = LAN, **more: Any) -> Machine:
    return Machine(name, described({"gflops": gflops, "usd_per_h": 1.0, "watts": 100}), conditions, **more)


def fleet(*machines: Machine) -> Fleet:
    return Fleet(tuple(Group(m.name, (m,)) for m in machines), "made up")


# -- answers ------------------------------------------------------------------------------------------------------


def test_one_slow_machine_takes_what_its_arithmetic_takes() -> None:
    """2,000 samples of 64 tokens and 100,000 parameters on 1 GFLOP/s are 76.8 s of products."""
    slow = machine("slow", 1)
    made = estimate(QUESTION, fleet(slow))
    steps = 250
    bare_s = steps * lease_ns(slow.device, QUESTION.size(slow.device), JOB.train, 8) / 1e9
    assert bare_s < made.seconds < 1.35 * bare_s
    assert made.commits == pytest.approx(steps, abs=2) and made.simulated < steps
    assert made.usd == pytest.approx(made.seconds / 3600, rel=1e-6)
    assert 0.7 < made.shares[0].computes <= 1 and made.shares[0].keeps


def test_a_short_job_is_simulated_to_its_end() -> None:
    short = replace(QUESTION, workload=replace(WORK, samples=80))
    made = estimate(short, fleet(machine("a"), machine("b")))
    assert made.simulated == made.commits == 5


def test_minutes_end_it_before_its_epochs() -> None:
    limited = replace(QUESTION, spec=replace(JOB, train=replace(JOB.train, max_minutes=0.5)))
    made = estimate(limited, fleet(machine("slow", 1)))
    assert made.seconds == 30 and made.whole_s > 60


def test_the_same_question_has_the_same_answer() -> None:
    asked = fleet(machine("a"), machine("b", 5))
    assert estimate(QUESTION, asked) == estimate(QUESTION, asked)


def test_a_bad_link_limits_and_more_machines_do_not_help() -> None:
    thin = Conditions(rtt_ms=20, up_bytes_per_s=200_000, down_bytes_per_s=200_000)
    found = answer(QUESTION, fleet(machine("keeper", worker=False), machine("a", 50, thin, shard=False)))
    assert found.limits[0].kind == "link"
    assert found.limits[0].gain > 0.2


def test_slow_processors_limit_and_one_more_helps() -> None:
    found = answer(QUESTION, fleet(machine("a", 1), machine("b", 1)))
    assert found.limits and all(change.kind == "speed" for change in found.limits)
    more = [change for change in found.others if change.kind == "one more"]
    assert len(more) == 2 and all(0.15 < change.gain < 0.5 for change in more)


def test_what_is_added_or_left_out_is_told_apart() -> None:
    extra = Group("helper", (machine("helper", 2),))
    found = answer(QUESTION, fleet(machine("a", 2), machine("b", 2)), [extra], ["b"])
    by_kind = {change.kind: change for change in found.others}
    assert set(by_kind) == {"added", "without"}
    assert by_kind["added"].gain > 0.1 and by_kind["without"].gain < -0.3


# -- what cannot be -----------------------------------------------------------------------------------------------


def test_a_model_too_big_for_every_machine_is_one_sentence() -> None:
    huge = replace(QUESTION, workload=replace(WORK, parameters=7_000_000_000))
    with pytest.raises(UserError, match=r"too big for every machine: to train it needs \d+\.\d GiB"):
        fitting(huge, fleet(machine("a")))


def test_a_machine_that_is_too_small_takes_no_part_and_is_named() -> None:
    big = replace(QUESTION, workload=replace(WORK, parameters=300_000_000))
    roomy = Machine("roomy", described("server-xeon-amx"), LAN)
    fit, unfit = fitting(big, fleet(roomy, machine("small")))
    assert [m.worker for m in fit.machines] == [True, False]
    assert any(line.startswith("small cannot train: that needs") for line in unfit)


def test_a_fleet_without_workers_is_one_sentence() -> None:
    with pytest.raises(UserError, match="no machine of the fleet trains"):
        fitting(QUESTION, fleet(machine("a", worker=False)))


def test_an_unknown_node_is_one_sentence() -> None:
    with pytest.raises(UserError, match="there is no machine 'lapto'; did you mean 'laptop'"):
        fleet(machine("laptop")).without("lapto")


# -- fleets -------------------------------------------------------------------------------------------------------

FILE = """
network: good
fleet:
  desk: {device: desktop-ryzen-7950x, network: none}
  laptops: {count: 2, device: {gflops: 150, memory_gib: 4}, shard: false}
  seen: {tokens_per_s: 1000}
"""


def file(folder: Path, text: str, name: str = "fleet.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_fleet_from_a_file(tmp_path: Path) -> None:
    found = read_fleet(file(tmp_path, FILE), lambda _: Size(1_000_000))
    assert [m.name for m in found.machines] == ["desk", "laptops-1", "laptops-2", "seen"]
    assert found.machines[0].conditions == PRESETS["none"] and found.machines[1].conditions == PRESETS["good"]
    assert found.machines[3].device.flops_per_s == 6e9
    assert [g.name for g in found.without("laptops").groups] == ["desk", "seen"]


def test_one_machine_from_a_file_has_the_files_name(tmp_path: Path) -> None:
    found = read_fleet(file(tmp_path, "device: t4\n", "rented.yaml"), lambda _: Size(1))
    assert [m.name for m in found.machines] == ["rented"]
    spaced = read_fleet(file(tmp_path, "device: t4\n", "my laptop.yaml"), lambda _: Size(1))
    assert [m.name for m in spaced.machines] == ["my-laptop"]
    joined = found.joined(found.groups)
    assert [m.name for m in joined.machines] == ["rented", "rented+2"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("fleet: {a: {device: t5}}", "line 1: fleet.a.device: there is no device 't5'"),
        ("fleet: {a: {device: t4, network: god}}", "fleet.a.network: there is no preset 'god'; did you mean 'good'"),
        ("fleet: {a: {devise: t4}}", "there is no key 'devise' in fleet.a; did you mean 'device'"),
        ("fleet: {a: {device: t4, count: -1}}", "fleet.a.count is -1, but must be from 0"),
        ("fleet: {a: {}}", "fleet.a has neither device nor tokens_per_s"),
        ("fleet: {}", "has no machine"),
        ("", "is empty, but a fleet is a group of keys"),
        ("fleet: {'a b/c': {device: t4}}", "fleet has the name 'a b/c', but names are 1 to 63"),
        ("fleet: {coordinator: {device: t4}}", "has a machine 'coordinator', as the coordinator is called"),
        ("fleet: {a: {device: t4, count: 2}, a-1: {device: t4}}", "has a machine 'a-1', as one of fleet.a is called"),
        ("fleet: {a: {device: t4, spot: true, interruptions_per_h: .nan}}", "interruptions_per_h is nan, but must be"),
        ("fleet: {a: {device: t4, interruptions_per_h: 2}}", "only spot machines are taken away: set spot to true"),
        ("network: wan\nfleet: {a: {device: t4}}", "line 1: network: there is no preset 'wan'"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_fleet(file(tmp_path, text), lambda _: Size(1))


def node(name: str, rate: float, connected: bool = True) -> dict[str, Any]:
    said = {"node": name, "connected": connected, "roles": ["worker", "shard"], "cores": 4, "platform": "Linux"}
    return {**said, "memory_bytes": 8 << 30, "tokens_per_s": rate}


def test_measured_machines_are_as_fast_as_they_were_seen() -> None:
    found = measured([node("a", 500), node("b", 0), node("gone", 9, False)], LAN, lambda _: Size(2_000_000))
    assert [m.name for m in found.machines] == ["a", "b"]
    assert found.machines[0].device.flops_per_s == 500 * 12e6
    assert found.assumed[0].startswith("1 machines have not trained yet")
    with pytest.raises(UserError, match="no machine is connected"):
        measured([node("a", 1, False)], LAN, lambda _: Size(1))


def test_a_measured_rate_beats_the_data_sheet() -> None:
    size = Size(1_000_000, tokens_per_sample=100)
    fast = of_rate(described("raspberry-pi-5"), size, 10_000)
    assert lease_ns(fast, size, Train(), 100) == pytest.approx(1e9, rel=0.05)


def test_the_pool_of_this_machine_shares_its_cores() -> None:
    found = this_machine(3, 2, 100.0, False, 4, 8 << 30)
    assert [m.worker for m in found.machines] == [True] * 3 + [False] * 2
    assert sum(m.device.flops_per_s for m in found.machines if m.worker) == pytest.approx(70e9)


# -- sizes --------------------------------------------------------------------------------------------------------


def test_the_built_in_corpus_is_counted() -> None:
    sized = size_job(JobSpec())
    assert sized.workload.parameters == 5_113_728 and sized.workload.frozen_parameters == 0
    assert 2000 < sized.workload.samples < 4000 and 20 < sized.workload.tokens_per_sample < 100


def test_what_would_be_downloaded_is_not() -> None:
    with pytest.raises(UserError, match="is not on this machine, so its size is unknown"):
        size_job(JobSpec(model=Model(base="somebody/model")))
    medquad = JobSpec(data=replace(JobSpec().data, source="medquad"))
    with pytest.raises(UserError, match="give data.path of a local copy, or --samples"):
        size_job(medquad)
    assert size_job(medquad, samples=500).workload.samples == 500


# -- the command --------------------------------------------------------------------------------------------------


def job_file(folder: Path) -> Path:
    return file(folder, "name: small\nmodel: {vocab_size: 300}\ntrain: {epochs: 1}\n", "job.yaml")


def test_the_command_tells_in_plain_words_and_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = file(tmp_path, "network: none\nfleet: {desk: {device: t4}, lap: {device: apple-m2}}")
    words = [str(job_file(tmp_path)), "--nodes", str(nodes), "--samples", "600"]
    assert run(["whatif", *words]) == 0
    said = capsys.readouterr().out
    assert "on 2 machines, described in fleet.yaml" in said and "What limits: " in said and "cost     $" in said
    assert run(["whatif", *words, "--without", "lap", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["estimate"]["seconds"] > 0 and found["others"][0]["kind"] == "without"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--nodes", "none.yaml"], "none.yaml cannot be read"),
        (["--nodes", "FLEET", "--without", "dsk"], "there is no machine 'dsk'; did you mean 'desk'"),
        (["--nodes", "FLEET", "--add", "none.yaml"], "none.yaml cannot be read"),
        (["--nodes", "FLEET", "--samples", "600", "--without", "desk"], "without desk: no machine of the fleet trains"),
        (["--nodes", "FLEET", "--network", "goood"], "there is no preset 'goood'; did you mean 'good'?"),
        (["--nodes", "FLEET", "--network", "good"], "--network is of measured machines"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    nodes = file(tmp_path, "fleet: {desk: {device: t4}}")
    words = [str(nodes) if word == "FLEET" else word for word in words]
    assert run(["whatif", str(job_file(tmp_path)), *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_modes_are_simulated_as_they_are() -> None:
    """Sixteen local steps send a sixteenth of the bytes."""
    local = replace(JOB, train=replace(JOB.train, sync=Sync("local-sgd", local_steps=16)))
    asked = fleet(machine("a"), machine("b"))
    one, many = estimate(QUESTION, asked), estimate(replace(QUESTION, spec=local), asked)
    assert many.nbytes < one.nbytes / 8
