"""Real arithmetic is real: the production engines, held against plain training, and reproducible."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from medley.data.order import samples_at
from medley.policies.devices import device
from medley.protocol.conditions import Conditions
from medley.protocol.errors import UserError
from medley.protocol.ids import NS_PER_S
from medley.protocol.messages import Span
from medley.protocol.spec import Compression, Data, JobSpec, Optimizer, Outer, Placement, Sync, Train
from medley.roles import ledger
from medley.runtimes.simulated import facts
from medley.runtimes.simulated.arithmetic.real import RealArithmetic, RealShard, RealWorker, joined
from medley.runtimes.simulated.arithmetic.tasks import TASKS, Digits, tiny_task
from medley.runtimes.simulated.setup import Arrival, Machine, Setup, Workload
from medley.runtimes.simulated.world import World

BATCH = 32
SGD = Optimizer("sgd", lr=0.5, clip_norm=0.0, weight_decay=0.0, schedule="constant")


def made(task: str = "digits-mlp", shards: int = 1, **train: object) -> tuple[RealArithmetic, list[RealShard]]:
    spec = JobSpec(
        data=Data(heldout_samples=360),
        train=Train(**{"optimizer": SGD, "batch_samples": BATCH, **train}),  # type: ignore[arg-type]
        placement=Placement(block_elements=1024),
    )
    arithmetic = RealArithmetic(spec, Workload(1, task=task))
    plan = arithmetic.plan()
    count = len(plan.layout().blocks)
    cut = [arithmetic.shard(plan, range(s, count, shards)) for s in range(shards)]
    for shard in cut:
        shard.load(0, arithmetic.initial())
    return arithmetic, cut


def a_round(
    workers: list[RealWorker], shards: list[RealShard], number: int, lr: float = 0.5, steps: int = 1
) -> tuple[float, float]:
    """One synchronous round as the coordinator makes it: the mean training loss, and bytes pushed."""
    members, loss, weight, nbytes = [], 0.0, 0.0, 0
    for i, worker in enumerate(workers):
        worker.load(shards[0].version, pulled(shards))
        start = (number * len(workers) + i) * BATCH * steps % 1280
        update = f"{number}/{i}"
        result = worker.compute(update, Span(0, start, start + BATCH * steps), steps, lr, False)
        for shard in shards:
            finite, norm = shard.stage(update, {b: result.blocks[b] for b in shard._blocks})
            assert finite and norm > 0
        members.append((update, result.weight))
        loss, weight = loss + result.loss_sum, weight + result.weight
        nbytes += sum(result.nbytes.values())
    for shard in shards:
        shard.apply(number + 1, [(update, w / weight if steps > 1 else 1 / weight) for update, w in members], lr)
    for worker, (update, _) in zip(workers, members, strict=True):
        worker.settle(update, False)
    return loss / weight, nbytes


def pulled(shards: list[RealShard]) -> dict[int, torch.Tensor]:
    found = {}
    for shard in shards:
        blocks = shard.read(shard.version)
        assert blocks is not None
        found.update(blocks)
    return found


def test_four_workers_learn_to_read_digits() -> None:
    arithmetic, shards = made(shards=2)
    workers = [arithmetic.worker(arithmetic.plan()) for _ in range(4)]
    losses = [a_round(workers, shards, number)[0] for number in range(40)]
    assert losses[0] == pytest.approx(2.3, abs=0.2) and losses[-1] < 0.8
    workers[0].load(40, pulled(shards))
    loss, tokens, accuracy = workers[0].measure(360)
    assert loss < 0.8 and tokens == 360 and accuracy > 0.75


def test_one_worker_is_plain_sgd() -> None:
    """H = 1, nothing compressed: the same parameters as a loop that knows nothing of Medley."""
    arithmetic, shards = made()
    plan = arithmetic.plan()
    worker = arithmetic.worker(plan)
    task = Digits()
    torch.manual_seed(0)
    network = task.model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    for number in range(20):
        a_round([worker], shards, number)
        start = number * BATCH % 1280
        batch = torch.tensor([task.dataset()[i] for i in samples_at(plan.samples, 0, 0, start, start + BATCH)])
        optimizer.zero_grad()
        functional.cross_entropy(network(task.inputs[batch]), task.labels[batch]).backward()
        optimizer.step()
    flat = torch.cat([p.detach().flatten() for p in network.parameters()])
    torch.testing.assert_close(joined(plan.layout(), shards[0].saved(20)), flat, rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_bits() -> None:
    finals = []
    for _ in range(2):
        arithmetic, shards = made(shards=3, compression=Compression("topk", density=0.1))
        workers = [arithmetic.worker(arithmetic.plan()) for _ in range(3)]
        for number in range(5):
            a_round(workers, shards, number)
        saved = {block: values for shard in shards for block, values in shard.saved(5).items()}
        finals.append(joined(arithmetic.plan().layout(), saved))
    assert torch.equal(finals[0], finals[1])


def test_error_feedback_makes_a_hundredth_of_the_bytes_enough() -> None:
    """Top-k at 1/32 learns with feedback about what it learns without compression; without feedback it lags."""
    reached, bytes_sent = {}, {}
    for name, compression in {
        "none": Compression(),
        "feedback": Compression("topk", density=1 / 32),
        "lossy": Compression("topk", density=1 / 32, feedback=False),
    }.items():
        arithmetic, shards = made(compression=compression)
        workers = [arithmetic.worker(arithmetic.plan()) for _ in range(2)]
        told = [a_round(workers, shards, number, lr=0.2) for number in range(80)]
        reached[name] = sum(loss for loss, _ in told[-10:]) / 10
        bytes_sent[name] = told[0][1]
    assert bytes_sent["feedback"] == bytes_sent["lossy"] < bytes_sent["none"] / 30
    assert reached["none"] < reached["feedback"] < reached["lossy"]


def test_local_steps_send_a_difference() -> None:
    arithmetic, shards = made(sync=Sync("local-sgd", local_steps=4), outer=Outer("nesterov", lr=0.7))
    workers = [arithmetic.worker(arithmetic.plan()) for _ in range(3)]
    losses = [a_round(workers, shards, number, lr=0.5, steps=4)[0] for number in range(12)]
    assert losses[-1] < losses[0] / 2


def test_a_refused_update_is_carried_once() -> None:
    arithmetic, shards = made()
    worker = arithmetic.worker(arithmetic.plan())
    worker.load(0, pulled(shards))
    first = worker.compute("a", Span(0, 0, 32), 1, 0.5, False)
    worker.settle("a", True)
    both = worker.compute("b", Span(0, 32, 64), 1, 0.5, True)
    alone = worker.compute("c", Span(0, 32, 64), 1, 0.5, False)
    assert both.weight == first.weight + alone.weight
    summed = values(first.blocks[0]) + values(alone.blocks[0])
    torch.testing.assert_close(values(both.blocks[0]), summed)


def values(part: memoryview) -> torch.Tensor:
    return torch.frombuffer(bytearray(part), dtype=torch.float32)


def test_a_checkpoint_goes_on_where_it_was() -> None:
    arithmetic, shards = made(shards=2, optimizer=Optimizer(lr=0.01, clip_norm=0.0))
    plan = arithmetic.plan()
    worker = arithmetic.worker(plan)
    for number in range(3):
        a_round([worker], shards, number, lr=0.01)
    saved = {block: kept for shard in shards for block, kept in shard.saved(3).items()}
    a_round([worker], shards, 3, lr=0.01)
    # Another cut of the blocks, as after a rollback to fewer machines.
    one = [arithmetic.shard(plan, range(len(plan.layout().blocks)))]
    one[0].load(3, saved)
    worker.reset()
    a_round([worker], one, 3, lr=0.01)
    before, after = pulled(shards), pulled(one)
    assert all(torch.equal(before[b], after[b]) for b in before)


def test_pinned_versions_stay_and_others_are_gone() -> None:
    arithmetic, shards = made()
    worker = arithmetic.worker(arithmetic.plan())
    shards[0].pin(0)
    a_round([worker], shards, 0)
    old, new = shards[0].read(0), shards[0].read(1)
    assert old is not None and new is not None and not torch.equal(old[0], new[0])
    shards[0].unpin(0)
    assert shards[0].read(0) is None


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_tiny_task_learns(name: str) -> None:
    arithmetic, shards = made(name, optimizer=Optimizer(lr=0.01))
    worker = arithmetic.worker(arithmetic.plan())
    worker.load(0, pulled(shards))
    before, _, _ = worker.measure(16)
    for number in range(8):
        a_round([worker], shards, number, lr=0.01)
    worker.load(8, pulled(shards))
    after, _, _ = worker.measure(16)
    assert after < before - 0.15
    assert 4_000 < arithmetic.plan().layout().numel < 250_000


def test_an_unknown_task_is_one_sentence() -> None:
    with pytest.raises(UserError, match="no task 'digit-mlp' for real arithmetic; did you mean 'digits-mlp'"):
        tiny_task("digit-mlp")


# -- through the world --------------------------------------------------------------------------------------------


def world_of(workers: int, seed: int, **train: object) -> tuple[World, list[facts.Committed], list[facts.Evaluation]]:
    spec = JobSpec(
        train=Train(**{"optimizer": SGD, "batch_samples": 16, "epochs": 2.0, "eval_every_commits": 0, **train}),  # type: ignore[arg-type]
        placement=Placement(block_elements=4096),
        data=Data(heldout_samples=360),
    )
    link = Conditions(rtt_ms=20, up_bytes_per_s=1e6, down_bytes_per_s=1e6)
    machines = tuple(Machine(f"n{n}", device("laptop-i5-8250u"), link) for n in range(workers))
    commits: list[facts.Committed] = []
    seen: list[facts.Evaluation] = []

    def hear(fact: facts.Fact) -> None:
        if isinstance(fact, facts.Committed):
            commits.append(fact)
        elif isinstance(fact, facts.Evaluation):
            seen.append(fact)

    arrival = Arrival("j", spec, Workload(0, heldout=360, task="digits-mlp"))
    world = World(Setup(machines, (arrival,), arithmetic="real"), seed=seed, observers=[hear])
    assert world.run(3600 * NS_PER_S, world.is_over)
    assert world.states["j"] == "done"
    return world, commits, seen


def test_a_synchronous_pool_of_four_learns_in_virtual_time() -> None:
    world, commits, seen = world_of(4, seed=1)
    first, last = commits[0].loss, sum(c.loss for c in commits[-5:]) / 5
    assert first == pytest.approx(2.3, abs=0.25) and last < 0.5 * first
    assert world.coordinator is not None
    told = world.coordinator.runs["j"].state.ledger  # a commit's own count leaves out what was carried into it
    assert (ledger.committed_samples(told), told.doubled) == (2 * 1437, 0)
    assert seen[-1].accuracy > 0.75
    assert {node for c in commits for node in c.members} == {"n0", "n1", "n2", "n3"}


def test_the_same_world_twice_has_one_digest_and_the_same_losses() -> None:
    runs = [world_of(3, seed=7, compression=Compression("topk", density=0.1), epochs=0.5) for _ in range(2)]
    assert runs[0][0].digest() == runs[1][0].digest()
    assert [c.loss for c in runs[0][1]] == [c.loss for c in runs[1][1]]


@pytest.mark.parametrize("sync", [Sync("async"), Sync("local-sgd", local_steps=8)], ids=["async", "local-sgd"])
def test_the_other_modes_learn_too(sync: Sync) -> None:
    gentle = Optimizer("sgd", lr=0.2, clip_norm=1.0, schedule="constant")
    _, commits, _ = world_of(3, seed=3, sync=sync, optimizer=gentle, epochs=6.0)
    assert sum(c.loss for c in commits[-3:]) / 3 < 0.7 * commits[0].loss
