"""Every question of an operator: what is asked over the control plane, and what a person or a program reads."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from tests.cli.canned import COMMIT, DECISION, HELDOUT, JOB, NODE, Canned
from tests.cli.conftest import Cli

QUESTIONS = {
    ("jobs",): "demo-1  demo  running  50.0 %  3.25  4         25.0 %    1250",
    ("jobs", "show", "demo"): "held-out     8 at first, 4 now",
    ("jobs", "cancel", "demo"): "demo-1 stops and is saved; 'medley jobs resume demo-1' goes on from there",
    ("jobs", "resume", "demo"): "demo-1 goes on; 'medley jobs logs demo-1 --follow' shows it",
    ("status",): "coordinator  medley 0.1.0, up for 1 m 15 s, life 3",
    ("nodes",): "lab-2     away",
    ("nodes", "revoke", "lab-2", "--reason", "sold"): "lab-2 is shut out",
    ("explain", "demo-1"): "demo-1: placed on worker-1: it is alone",
    ("token", "create", "--lifetime", "7d", "--uses", "3"): "medley1.secret",
    ("token", "list"): "t1     1 of 2",
}


@pytest.mark.parametrize(("words", "line"), QUESTIONS.items(), ids=lambda one: " ".join(one)[:30])
def test_a_person_reads_lines(cli: Cli, canned: Canned, words: tuple[str, ...], line: str) -> None:
    status, out, err = cli(*words)
    assert status == 0
    assert line in out
    assert not err or words[:2] == ("token", "create")


def test_the_status_says_what_is_served_where_anything_is(cli: Cli, canned: Canned) -> None:
    _, out, _ = cli("status")
    assert " ".join(["chat-1", "1", "of", "2", "serve", "2", "1", "m", "15", "s", "it", "has", "2"]) in " ".join(
        out.split()
    )
    canned.answers["status"]["servings"] = []  # type: ignore[index]
    assert "serve" not in cli("status")[1]


def test_a_script_gets_the_token_alone(cli: Cli, canned: Canned) -> None:
    _, out, err = cli("token", "create", "--uses", "3")
    assert out == "medley1.secret\n"
    assert err.startswith("lets 3 machines join until ")


@pytest.mark.parametrize("words", QUESTIONS, ids=" ".join)
def test_a_program_reads_the_answer_itself(cli: Cli, canned: Canned, words: tuple[str, ...]) -> None:
    status, out, _ = cli(*words, "--json")
    method, body = canned.asked[-1]
    answer = canned.answers[method]
    assert status == 0
    assert json.loads(out) == (answer(body) if callable(answer) else answer)


def test_what_is_asked(cli: Cli, canned: Canned) -> None:
    for words in QUESTIONS:
        cli(*words)
    assert canned.bodies("job") == canned.bodies("cancel") == canned.bodies("resume") == [{"job": "demo"}]
    assert canned.bodies("revoke") == [{"node": "lab-2", "reason": "sold"}]
    assert canned.bodies("explain") == [{"subject": "demo-1"}]
    assert canned.bodies("token") == [{"lifetime_s": 7 * 86400, "uses": 3}]


def test_options_of_a_group_hold_for_its_subcommands(cli: Cli, canned: Canned, home: Path) -> None:
    (home / "coordinator").rename(home / "elsewhere")
    status, out, _ = cli("jobs", "--json", "--coordinator", str(home / "elsewhere"), "show", "demo")
    assert status == 0
    assert json.loads(out)["job"] == JOB
    assert cli("jobs")[0] == 2


def test_logs_tell_the_past_in_order_and_then_what_happens(cli: Cli, canned: Canned) -> None:
    canned.events = [
        {"kind": "checkpoint", "version": 3, "nbytes": 2048, "wall_ns": HELDOUT["wall_ns"] + 1},
        {"kind": "placement", "reason": "nothing a person reads here"},
        {"kind": "state", "state": "done", "reason": "", "wall_ns": HELDOUT["wall_ns"] + 2},
    ]
    status, out, _ = cli("jobs", "logs", "demo", "--follow")
    said = [line.partition("  ")[2] for line in out.splitlines()]
    assert status == 0
    assert said == [
        "demo-1: placed on worker-1: it is alone",
        "commit 3: loss 3, 32 samples, 2500 tokens, 1 updates, lr 0.001",
        "held out at 3: loss 3.5, next-token accuracy 30.0 %",
        "checkpoint 3: 2.0 KiB saved",
        "done",
    ]
    assert canned.bodies("events") == [{"job": "demo-1"}]


def test_logs_as_json_are_one_object_a_line(cli: Cli, canned: Canned) -> None:
    _, out, _ = cli("jobs", "logs", "demo", "--json")
    assert [json.loads(line) for line in out.splitlines()] == [
        {"kind": "decision", **DECISION},
        {"kind": "commit", **COMMIT},
        {"kind": "heldout", **HELDOUT},
    ]


def test_nothing_yet_says_what_to_do(cli: Cli, canned: Canned) -> None:
    canned.answers |= {
        "jobs": {"jobs": []},
        "nodes": {"nodes": []},
        "explain": {"decisions": []},
        "tokens": {"tokens": []},
    }
    assert "'medley train JOB.yaml' runs one" in cli("jobs")[1]
    assert "'medley token create' prints the line" in cli("nodes")[1]
    assert "nothing was decided about 'x' yet" in cli("explain", "x")[1]
    assert "'medley token create' makes one" in cli("token", "list")[1]


def test_figures_that_nobody_knows_yet_are_dashes(cli: Cli, canned: Canned) -> None:
    unknown = dict.fromkeys(("loss", "heldout_first", "heldout_last", "accuracy"), None)
    new = {**JOB, **unknown, "total": 0, "samples": 0, "state": "preparing"}
    canned.answers |= {"jobs": {"jobs": [new]}, "job": {"job": new, "commits": [], "heldout": [], "checkpoints": []}}
    assert "preparing  -     -     -         -" in cli("jobs")[1]
    assert "held-out     - at first, - now" in cli("jobs", "show", "demo")[1]
    assert cli("jobs", "logs", "demo")[0] == 0


def test_a_machine_without_roles_is_listed(cli: Cli, canned: Canned) -> None:
    canned.answers["nodes"] = {"nodes": [{**NODE, "roles": []}]}
    assert "  none  " in cli("nodes")[1]


MISTAKES = {
    ("jobs", "shwo"): "medley: no such command 'shwo'",
    ("jobs", "show"): "medley: missing argument 'ID' (see `medley jobs show --help`)",
    ("jobs", "--jsno"): "medley: no option '--jsno': did you mean '--json'?",
    ("explain",): "medley: missing argument 'ID' (see `medley explain --help`)",
    (
        "token",
        "create",
        "--lifetime",
        "soon",
    ): "medley: invalid value for '--lifetime': 'soon' is no lifetime: write a number and",
    ("token", "create", "--lifetime", "0h"): "medley: invalid value for '--lifetime': '0h' is no lifetime",
    ("token", "create", "--uses", "0"): "medley: invalid value for '--uses': 0 is not in the range 1<=x<=10000",
    ("join", "here"): "medley: 'here' is no address: write HOST:PORT, such as 192.168.1.20:7071",
    ("join", "a:b"): "medley: 'a:b' is no address",
    ("join", "--token", "x"): "medley: this is not a join token: it must start with 'medley1.'",
    ("join", "--token", "medley1.AbCd"): "medley: the join token is damaged or cut off: copy the whole line again",
    (
        "join",
        "--no-worker",
        "--no-shard",
    ): "medley: --no-worker and --no-shard together leave this machine nothing to do",
    (
        "join",
        "--transport",
        "grpc",
        "--network",
        "cellular",
    ): "medley: --transport grpc leads past an emulated link, so it and --network exclude each other: drop one of them",
    (
        "up",
        "--port",
        "7",
        "--door-port",
        "7",
    ): "medley: port 7 is given twice: --port, --door-port and --http-port must",
    ("up", "--port", "70000"): "medley: invalid value for '--port': 70000 is not in the range 0<=x<=65535",
    ("status",): "medley: no coordinator is running here (",
    ("jobs",): "medley: no coordinator is running here (",
    ("nodes", "--coordinator", "nowhere"): "medley: no coordinator is running here (nowhere",
}


@pytest.mark.parametrize(("words", "sentence"), MISTAKES.items(), ids=lambda one: " ".join(one)[:40])
def test_a_mistake_is_one_sentence_and_status_2(cli: Cli, words: tuple[str, ...], sentence: str) -> None:
    status, out, err = cli(*words)
    assert (status, out) == (2, "")
    assert err.startswith(sentence)
    assert err.count("\n") == 1


def test_the_coordinators_own_sentence_arrives(cli: Cli, canned: Canned) -> None:
    del canned.answers["cancel"]
    assert cli("jobs", "cancel", "x") == (2, "", "medley: a coordinator cannot be asked 'cancel'\n")


def test_a_coordinator_that_is_gone_is_a_sentence(cli: Cli, canned: Canned, home: Path) -> None:
    where = home / "coordinator" / "address.json"
    where.write_text('{"control": "127.0.0.1:1"}')
    status, _, err = cli("status")
    assert status == 2
    assert err.startswith("medley: nothing answers at 127.0.0.1:1: is the coordinator running there?")


@pytest.mark.parametrize("option", ["--port", "--door-port", "--http-port"])
def test_up_without_a_free_port_is_a_sentence(cli: Cli, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ports = {"--port": "0", "--door-port": "0", "--http-port": "0"} | {option: port}
        status, out, err = cli(
            "up", "--host", "127.0.0.1", "--no-workers", *(word for pair in ports.items() for word in pair)
        )
    assert (status, out) == (2, "")
    assert f"127.0.0.1:{port}" in err or f"port {port} on 127.0.0.1" in err
    assert err.count("\n") == 1


def test_up_without_a_place_for_its_state_is_a_sentence(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, _, err = cli("up", "--host", "127.0.0.1", "--no-workers", "--dir", str(tmp_path / "file" / "state"))
    assert status == 2
    assert "cannot be used" in err
    assert err.count("\n") == 1


def test_up_refuses_a_directory_that_is_in_use(cli: Cli, canned: Canned) -> None:
    status, _, err = cli("up")
    assert status == 2
    assert "a coordinator already runs in" in err


@pytest.mark.parametrize(
    "words", ["train", "jobs", "jobs show", "jobs logs", "jobs cancel", "jobs resume", "status", "nodes",
              "nodes revoke", "explain", "doctor", "token", "token create", "token list", "join", "up"],
)  # fmt: skip
def test_every_help_has_an_example(cli: Cli, words: str) -> None:
    status, out, _ = cli(*words.split(), "--help")
    assert status == 0
    assert "Example" in out
    assert f"medley {words}" in out.partition("Example")[2]
