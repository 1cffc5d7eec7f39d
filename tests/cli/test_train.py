"""`medley train`: submitted, followed, over; and every way it can end."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.cli.canned import COMMIT, DECISION, DONE, HELDOUT, JOB, Body, Canned
from tests.cli.conftest import Cli

from medley.cli.train import _own_job
from medley.jobs.home import operator
from medley.jobs.load import job_from_dict
from medley.protocol.spec import JobSpec

OTHER: Body = {**JOB, "job": "old-1", "name": "old"}


@pytest.fixture
def job_file(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text("name: demo\ntrain:\n  epochs: 2\n")
    return str(path)


def ends(canned: Canned, last: Body, *events: Body) -> None:
    """The job answers `running` until its events were followed, and `last` from then on."""
    canned.events = list(events)

    def over() -> None:
        canned.answers["job"] = {"job": last}

    canned.on_followed = over


def test_a_job_is_submitted_followed_and_done(cli: Cli, canned: Canned, job_file: str) -> None:
    ends(
        canned,
        DONE,
        {"kind": "decision", **DECISION},
        {"kind": "heldout", **HELDOUT},
        *({"kind": "commit", **COMMIT, "version": n, "elapsed_s": float(n)} for n in (9, 10)),
        {"kind": "state", "state": "done", "reason": ""},
    )
    status, out, err = cli("train", job_file, "--set", "train.seed=7")
    assert (status, err) == (0, "")
    spec = job_from_dict(canned.bodies("submit")[0]["spec"], "the test")
    assert spec == job_from_dict({"name": "demo", "train": {"epochs": 2, "seed": 7}}, "the test")
    assert out.splitlines() == [
        "  demo-1: placed on worker-1: it is alone",
        "demo 50.0 % | 64/128 samples | loss 3.25 | held-out 3.5 (30.0 % right) | 1250 tokens/s | 4 s left",
        "demo 100.0 % | 128/128 samples | loss 3 | held-out 3.5 (30.0 % right) | 2500 tokens/s | 0 s left",
        "  done",
        "demo-1 is done: 128 samples in 4 s, held-out loss 8 -> 3.5, next-token accuracy 30.0 %",
        "the model is in /exports/demo-1",
        'next: medley ask /exports/demo-1 "your question", or medley serve /exports/demo-1',
    ]


def test_the_result_is_called_by_its_job_where_ask_finds_it_so(
    cli: Cli, canned: Canned, job_file: str, home: Path
) -> None:
    export = home / "exports" / "demo-1"
    export.mkdir(parents=True)
    ends(canned, {**DONE, "export": str(export)})
    assert 'next: medley ask demo-1 "your question"' in cli("train", job_file)[1]


def test_a_job_that_was_not_prepared_yet_gets_its_size_later(cli: Cli, canned: Canned, job_file: str) -> None:
    answers = iter([{**JOB, "state": "preparing", "total": 0, "samples": 0}, JOB, DONE])
    canned.answers["job"] = lambda body: {"job": next(answers)}
    canned.events = [{"kind": "state", "state": "running", "reason": ""}, {"kind": "heldout", **HELDOUT}]
    assert "64/128 samples | loss 3.25 | held-out 3.5" in cli("train", job_file)[1]


def test_a_rollback_is_counted_back(cli: Cli, canned: Canned, job_file: str) -> None:
    answers = iter([{**JOB, "samples": 96, "version": 3}, JOB, DONE])
    canned.answers["job"] = lambda body: {"job": next(answers)}
    canned.events = [{"kind": "placement", "reason": "lab-2 is gone"}, {"kind": "heldout", **HELDOUT}]
    assert "64/128 samples" in cli("train", job_file)[1]


def test_json_is_the_finished_job_and_progress_goes_elsewhere(cli: Cli, canned: Canned, job_file: str) -> None:
    ends(canned, DONE, {"kind": "heldout", **HELDOUT})
    status, out, err = cli("train", job_file, "--json")
    assert (status, msgspec.json.decode(out)) == (0, DONE)
    assert "held-out 3.5" in err


def test_detach_submits_and_returns(cli: Cli, canned: Canned, job_file: str) -> None:
    assert cli("train", job_file, "--detach") == (
        0,
        "demo-1 submitted; 'medley jobs logs demo-1 --follow' shows it\n",
        "",
    )
    assert cli("train", job_file, "--detach", "--json")[1] == '{"job": "demo-1"}\n'
    assert not canned.bodies("events")


def test_a_failed_job_is_its_reason(cli: Cli, canned: Canned, job_file: str) -> None:
    reason = "the loss became NaN at commit 12: lower train.optimizer.lr, which is 5"
    ends(canned, {**JOB, "state": "failed", "reason": reason})
    status, out, err = cli("train", job_file)
    assert (status, out, err) == (2, "", f"medley: job demo-1 failed: {reason}\n")


def test_a_cancelled_job_says_how_to_go_on(cli: Cli, canned: Canned, job_file: str) -> None:
    ends(canned, {**JOB, "state": "cancelled", "reason": "by a person"})
    status, out, _ = cli("train", job_file)
    assert (status, out) == (0, "demo-1 was cancelled; 'medley jobs resume demo-1' goes on from there\n")


def test_ctrl_c_leaves_the_job_to_the_coordinator(cli: Cli, canned: Canned, job_file: str) -> None:
    canned.hold = True
    canned.on_followed = lambda: os.kill(os.getpid(), signal.SIGINT)
    status, _, err = cli("train", job_file)
    assert status == 130
    assert err == "medley: demo-1 goes on without this window; 'medley jobs logs demo-1 --follow' shows it\n"


def test_an_interrupted_job_goes_on_and_others_are_set_aside(
    canned: Canned, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = JobSpec(name="demo")
    specs: dict[str, Any] = {"demo-1": spec, "old-1": JobSpec(name="old"), "over-1": spec}
    canned.answers["jobs"] = {"jobs": [{**DONE, "job": "over-1"}, OTHER, JOB]}
    canned.answers["job"] = lambda body: {"spec": msgspec.to_builtins(specs[body["job"]])}
    with operator() as client:
        assert _own_job(client, spec) == "demo-1"
    assert canned.bodies("cancel") == [{"job": "old-1"}]
    assert not canned.bodies("submit")
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "old-1 is unfinished and set aside; 'medley up' and 'medley jobs resume old-1' go on",
        "going on with demo-1, which was interrupted at 64 samples",
    ]


def test_a_job_of_other_values_is_a_new_job(canned: Canned) -> None:
    canned.answers["job"] = {"spec": msgspec.to_builtins(JobSpec(name="demo"))}
    with operator() as client:
        assert _own_job(client, JobSpec(name="demo", task_options={})) == "demo-1"
        assert not canned.bodies("submit")
        canned.answers["submit"] = {"job": "demo-2"}
        assert _own_job(client, job_from_dict({"name": "demo", "train": {"seed": 1}}, "the test")) == "demo-2"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["none.yaml"], "none.yaml cannot be read (No such file or directory); give the path of a job file"),
        (["--set", "train.epoch=2"], "--set train.epoch=2: there is no key 'epoch' in train; did you mean 'epochs'?"),
        (["--set", "train.optimizer.lr=-1"], "train.optimizer.lr is -1.0, but must be above 0"),
        (["--set", "data.source=jsonl"], "data.path is empty, but data.source 'jsonl' needs the jsonl file"),
        (["--workers", "0"], "invalid value for '--workers': 0 is not in the range 1<=x<=64"),
        (["--detach"], "--detach needs a running coordinator: start one with 'medley up', or drop --detach"),
        (["--coordinator", "nowhere"], "no coordinator is running here (nowhere"),
    ],
    ids=lambda one: " ".join(one)[:30] if isinstance(one, list) else "",
)
def test_a_mistake_starts_nothing(cli: Cli, job_file: str, words: list[str], sentence: str) -> None:
    argv = words if words[0].endswith(".yaml") else [job_file, *words]
    status, out, err = cli("train", *argv)
    assert (status, out) == (2, "")
    assert err.startswith(f"medley: {sentence}")
    assert err.count("\n") == 1


def test_options_of_an_own_pool_do_not_go_with_a_coordinator(cli: Cli, canned: Canned, job_file: str) -> None:
    status, _, err = cli("train", job_file, "--workers", "2")
    assert (status, err) == (2, "medley: --workers is for a pool of its own, but a coordinator runs here: drop it\n")
    assert not canned.asked
