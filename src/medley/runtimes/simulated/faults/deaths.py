"""Processes and machines that die, stand still, or never come back."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING

from medley.protocol.effects import Persist
from medley.protocol.events import Expel
from medley.protocol.records import NodeRevoked
from medley.runtimes.simulated.disk import Fenced, Full
from medley.runtimes.simulated.drawing import SURE
from medley.runtimes.simulated.engines import WorkerEngine
from medley.runtimes.simulated.faults import doing
from medley.runtimes.simulated.faults.fault import Fault, striking
from medley.runtimes.simulated.kernel import MS, S

if TYPE_CHECKING:
    from medley.runtimes.simulated.faults.storm import Storm

RECORDS = (
    *("Submitted", "Prepared", "StateChanged", "Placed", "Promoted", "Leased", "Returned", "Committed", "Aborted"),
    *("CheckpointSealed", "HeldoutMeasured", "Backed"),
)
SENDS = (
    *("Welcome", "AssignWorker", "AssignShard", "Routes", "Peers", "Relay", "Lease", "Base", "Outcome", "Revoke"),
    *("Commit", "Drop", "Pin", "Unpin", "WritePart", "Evaluate", "Leave"),
)
REPORTS = (
    *("EngineUp", "EngineDown", "Ready", "PeersSet", "BaseWanted", "BaseHeld", "UpdateReady", "Staged", "Applied"),
    *("PartWritten", "Evaluated"),
)
PAUSES_NS = (MS, 50 * MS, 300 * MS, 2 * S, 7 * S, 20 * S, 120 * S)
AWAY_NS = (50 * MS, 300 * MS, 2 * S, 9 * S)


def _kill_machine(storm: Storm, random: Random) -> Iterator[str]:
    node = storm.some_node(random)
    yield from doing.at_machine(node)
    node.die()
    storm.world.kernel.after(int(random.choice(AWAY_NS)), storm.back, node)


def _lose_machine(storm: Storm, random: Random) -> Iterator[str]:
    """Never the last ones that the jobs need."""
    node = storm.some_node(random)
    if node.name not in SURE and node.alive and random.random() < 0.5:
        yield from doing.at_machine(node)
        storm.gone.add(node.name)
        node.die("left")


def _revoke_machine(storm: Storm, random: Random) -> Iterator[str]:
    node = storm.some_node(random)
    host = storm.world.host
    if node.name in SURE or host is None or node.name in host.role.revoked or random.random() < 0.7:
        return
    yield from doing.at_machine(node)
    # As production does it: the fact is durable before anybody acts on it.
    record = NodeRevoked(node.name, "its owner left")
    try:
        body = storm.world.disk.append(host.term, [Persist("pool", record)])[0]
    except (Fenced, Full):
        return
    storm.world.persisted("pool", record, body)
    host.role.revoked[node.name] = record.reason
    host.handle(Expel(node.name, record.reason))


def _kill_engine(storm: Storm, random: Random) -> Iterator[str]:
    node = storm.some_node(random)
    if node.roles:
        key = random.choice(sorted(node.roles))
        yield from (what for what in doing.at_machine(node) if what.startswith("worker") == (key[1] < 0))
        node.kill_engine(key, "killed", random.random() < 0.2)


def _hang(storm: Storm, random: Random) -> Iterator[str]:
    node = storm.some_node(random)
    for hosted in node.roles.values():
        if isinstance(hosted.engine, WorkerEngine) and not hosted.engine.hung_ns:
            yield from doing.at_machine(node)
            hosted.engine.hung_ns = storm.world.kernel.now


def _kill_coordinator(storm: Storm, random: Random) -> Iterator[str]:
    yield from doing.at_coordinator(storm.world)
    storm.world.kill_coordinator()


def _kill_vault(storm: Storm, random: Random) -> Iterator[str]:
    yield from doing.at_coordinator(storm.world)
    storm.world.kill_vault()


def _pause_machine(storm: Storm, random: Random) -> Iterator[str]:
    node = storm.some_node(random)
    yield from doing.at_machine(node)
    node.pause(int(random.choice(PAUSES_NS)))


def _pause_coordinator(storm: Storm, random: Random) -> Iterator[str]:
    host = storm.world.host
    if host is not None:
        yield from doing.at_coordinator(storm.world)
        until_ns = storm.world.kernel.now + int(random.choice(PAUSES_NS[:-1]))
        host.paused_ns = max(host.paused_ns, until_ns)  # a shorter one would let later words overtake


FAULTS = (
    Fault(
        "crash",
        "the coordinator dies before or after a record is written, or before or after a message is sent",
        (0.001, 0.01),
        "of the operations",
        (
            *(f"{when} persist {kind}" for kind in RECORDS for when in ("before", "after")),
            *(f"{when} compact Snapshot" for when in ("before", "after")),
            *(f"{when} send {kind}" for kind in SENDS for when in ("before", "after")),
        ),
        chances={"crash": 1.0},
    ),
    Fault(
        "machine crash",
        "a machine dies before or after it says something",
        (0.0005, 0.005),
        "of the operations",
        tuple(f"{when} report {kind}" for kind in REPORTS for when in ("before", "after")),
        chances={"node crash": 1.0},
    ),
    striking(
        "coordinator dies",
        "its process is killed, and runs again a second or two later",
        (2, 20),
        doing.JOB,
        _kill_coordinator,
    ),
    striking(
        "machine dies",
        "all its processes end, and it is back after 50 ms to 9 s",
        (4, 30),
        doing.MACHINE,
        _kill_machine,
    ),
    striking(
        "machine is lost", "it dies and never comes back", (1, 6), ("worker computing", "shard ready"), _lose_machine
    ),
    striking(
        "machine is revoked",
        "its owner takes it out of the pool for good",
        (1, 6),
        ("worker computing", "shard ready"),
        _revoke_machine,
    ),
    striking(
        "engine dies", "one engine is killed, in one case of five for its memory", (4, 30), doing.MACHINE, _kill_engine
    ),
    striking("engine hangs", "a worker's engine computes for ever", (1, 8), ("worker computing",), _hang),
    striking("vault dies", "the process that keeps checkpoints is killed", (4, 20), doing.JOB[3:8], _kill_vault),
    striking(
        "pause",
        "a machine stands still for 1 ms to 2 minutes and goes on (SIGSTOP, a closed lid)",
        (2, 12),
        doing.MACHINE,
        _pause_machine,
    ),
    striking(
        "coordinator pauses",
        "its process stands still for 1 ms to 20 s and goes on",
        (2, 12),
        doing.JOB[2:6],
        _pause_coordinator,
    ),
    Fault(
        "out of memory",
        "the system kills a worker's engine for its memory while it computes",
        (0.01, 0.06),
        "of the operations",
        ("compute",),
        chances={"out of memory": 1.0},
    ),
    Fault(
        "engine errs",
        "a pull, a push, a relay or a computation fails, or its result is not a number",
        (0.005, 0.1),
        "of the operations",
        ("pull", "push", "relay", "compute"),
        chances={"pull fails": 1.0, "push fails": 1.0, "compute fails": 0.1, "not finite": 0.2},
    ),
)
