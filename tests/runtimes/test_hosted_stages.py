"""A pool of two machines, a front that asks for them, and engines that are killed, stopped, suspected: real ones."""

from __future__ import annotations

import base64
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.waiting import until

from medley.protocol.errors import UserError
from medley.runtimes.local import Pool
from medley.transports.control.operator import OperatorClient
from medley.transports.identity import Credentials
from medley.transports.tensors.curve import Curve

pytestmark = pytest.mark.slow  # each engine imports its libraries, and here they die one after the other
DEADLINE_S = 120.0  # an engine imports its libraries, on a busy machine


class FrontStandIn:
    """Asks as a front does, from a thread of its own; nobody dials where it says that it listens."""

    def __init__(self, pool: Pool) -> None:
        self.operator = pool.operator
        key = base64.b64encode(Curve.generate().public_key).decode()
        asked = {"name": "chat", "endpoint": "tcp://127.0.0.1:9", "key": key, "machines": []}
        self.job: str = self.operator.ask("serve_begin", asked)["job"]
        self.machines: dict[str, dict[str, Any]] = {}
        self.gone: list[tuple[str, str]] = []
        self.ended = ""
        identity = Credentials.load(pool.options.directory / "operator.pem")
        self._hearing = OperatorClient(pool.address["control"], identity)
        self._thread = threading.Thread(target=self._hear)
        self._thread.start()

    def _hear(self) -> None:
        after = 0
        while not self.ended:
            news = self._hearing.ask("serve_news", {"job": self.job, "after": after})
            after, self.ended = news["number"], news["ended"]
            self.gone += [(gone["name"], gone["reason"]) for gone in news["gone"]]
            self.machines = {machine["name"]: machine for machine in news["machines"]}

    def end(self) -> None:
        self.operator.ask("serve_end", {"job": self.job})
        self._thread.join(20.0)
        assert not self._thread.is_alive(), "a question for news is answered when the serving ends"
        self._hearing.close()

    def wait(self, machines: int, key_not: str = "") -> None:
        def there() -> bool:
            return len(self.machines) == machines and key_not not in [m["key"] for m in self.machines.values()]

        until(there, deadline_s=DEADLINE_S, what=f"{machines} machines that serve")

    def wait_gone(self, name: str, words: str) -> None:
        until(
            lambda: any(n == name and words in why for n, why in self.gone),
            deadline_s=DEADLINE_S,
            what=f"{name} {words}",
        )


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    directory: Path = tmp_path_factory.mktemp("pool")
    with Pool(directory, workers=2, shard_nodes=0, encrypt=True) as pool:
        pool.wait_ready()
        yield pool


@pytest.fixture(scope="module")
def serving(pool: Pool) -> Iterator[FrontStandIn]:
    front = FrontStandIn(pool)
    yield front
    if not front.ended:
        front.end()


@pytest.fixture
def front(serving: FrontStandIn) -> FrontStandIn:
    """One serving for all tests here, whole again before each."""
    serving.wait(2)
    serving.gone.clear()
    return serving


def engines(pool: Pool) -> dict[int, psutil.Process]:
    """The stages' processes, by their parents."""
    below = psutil.Process(pool.pid).children(recursive=True)
    return {p.ppid(): p for p in below if _command(p)[-2:] == ["medley.runtimes.child", "stage"]}


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []


def engine_of(pool: Pool, name: str) -> psutil.Process:
    for parent, process in engines(pool).items():
        if f"{os.sep}{name}{os.sep}" in " ".join(psutil.Process(parent).cmdline()):
            return process
    raise AssertionError(f"{name} has no stage")


def test_an_engine_that_is_killed_is_gone_and_a_fresh_one_serves_in_its_place(pool: Pool, front: FrontStandIn) -> None:
    old = front.machines["worker-1"]
    engine_of(pool, "worker-1").kill()
    front.wait_gone("worker-1", "killed")
    front.wait(2, key_not=old["key"])
    assert front.machines["worker-1"]["since"] > old["since"]


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="a process can be stopped only on POSIX systems")
def test_an_engine_that_is_stopped_is_ended_and_replaced(pool: Pool, front: FrontStandIn) -> None:
    old = front.machines["worker-2"]
    engine_of(pool, "worker-2").send_signal(signal.SIGSTOP)
    front.wait_gone("worker-2", "said nothing")
    front.wait(2, key_not=old["key"])


def test_an_engine_that_the_front_suspects_is_replaced(pool: Pool, front: FrontStandIn) -> None:
    old, process = front.machines["worker-1"], engine_of(pool, "worker-1")
    suspicion = {"job": front.job, "machine": "worker-1", "since": old["since"], "reason": "no answer"}
    pool.operator.ask("serve_suspect", suspicion)
    front.wait_gone("worker-1", "suspected: no answer")
    front.wait(2, key_not=old["key"])
    assert not process.is_running()


def test_a_question_that_waits_for_news_keeps_nobody_from_asking(pool: Pool, front: FrontStandIn) -> None:
    nodes = {node["node"]: node for node in pool.operator.ask("nodes")["nodes"]}
    assert [node["phase"] for node in nodes.values()] == ["serving", "serving"]
    assert nodes["worker-1"]["serves"] == [front.job]
    assert f"{front.job}: serves" in nodes["worker-1"]["reason"]
    pool.operator.ask("serve_note", {"job": front.job, "note": {"tokens_per_s": 12.5}})
    (serving,) = pool.operator.ask("servings")["servings"]
    assert serving["note"] == {"tokens_per_s": 12.5}
    assert {(m["name"], m["state"]) for m in serving["machines"]} == {("worker-1", "serves"), ("worker-2", "serves")}
    said = [decision["text"] for decision in pool.operator.ask("explain", {"subject": front.job})["decisions"]]
    assert "worker-1 serves" in said


def test_a_node_that_dies_is_gone_and_serves_again_when_it_is_back(pool: Pool, front: FrontStandIn) -> None:
    old = front.machines["worker-1"]
    psutil.Process(engine_of(pool, "worker-1").ppid()).kill()
    front.wait_gone("worker-1", "its connection to the coordinator ended")
    front.wait(2, key_not=old["key"])


def test_a_serving_that_ended_leaves_no_process_and_is_over(pool: Pool, front: FrontStandIn) -> None:
    front.end()
    until(lambda: not engines(pool), deadline_s=DEADLINE_S, what="the stages' end")
    assert front.ended == "its front end stopped"
    with pytest.raises(UserError, match="is over: its front end stopped"):
        pool.operator.ask("serve_end", {"job": front.job})


def test_what_cannot_be_served_is_said_in_a_sentence(pool: Pool) -> None:
    with pytest.raises(UserError, match="must say where it listens"):
        pool.operator.ask("serve_begin", {"name": "chat", "endpoint": "tcp://0.0.0.0:1", "key": ""})
    key = base64.b64encode(Curve.generate().public_key).decode()
    begin = {"name": "chat", "endpoint": "tcp://127.0.0.1:9", "key": key}
    with pytest.raises(UserError, match="no machine 'worker-9'"):
        pool.operator.ask("serve_begin", {**begin, "machines": ["worker-9"]})
    with pytest.raises(UserError, match="weight"):
        pool.operator.ask("serve_begin", {**begin, "weight": 0})
