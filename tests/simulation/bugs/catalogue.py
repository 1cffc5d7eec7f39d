"""The planted bugs: each is a mistake that a review could miss on a Friday afternoon."""
# ruff: noqa: E501 - texts of sources stand here as they are there

from __future__ import annotations

from tests.simulation.bugs.planting import Bug
from tests.simulation.bugs.servings import SERVINGS

ROLES = "medley.roles."
POLICIES = "medley.policies."


def _bug(name: str, module: str, old: str, new: str, *breaks: str) -> Bug:
    return Bug(name, module, old, new, breaks)


COMMITS = [
    _bug(
        "a second announcement is a new update",
        ROLES + "commits",
        "    if report.update in ctx.roster.updates:\n        return\n",
        "",
        "T1",
        "T2",
    ),
    _bug(
        "a committed update that is announced again is called dropped",
        ROLES + "commits",
        '    if commit is not None:\n        return Outcome(job, generation, update, "committed", commit.number, "")\n',
        "",
        "T1",
    ),
    _bug(
        "a carried update that is announced again is decided again",
        ROLES + "commits",
        "    if update in ctx.state.carried:\n",
        "    if False:\n",
        "T2",
    ),
    _bug(
        "a worker may name the leases of another",
        ROLES + "commits",
        "    if any(n not in held or held[n].node != node for n in report.leases):\n",
        "    if any(n not in held for n in report.leases):\n",
        "S2",
    ),
    _bug(
        "two updates may name one lease",
        ROLES + "commits",
        "    if not sent.isdisjoint(report.leases):\n",
        "    if False:\n",
        "T1",
        "D1",
    ),
    _bug(
        "nonsense is believed",
        ROLES + "commits",
        "    if problem := _nonsense(ctx, report):\n",
        "    if (problem := _nonsense(ctx, report)) and False:\n",
        "S1",
        "S2",
        "T3",
    ),
    _bug(
        "what is not a number is merged",
        ROLES + "commits",
        "    if not ctx.roster.finite(update) or not isfinite(ctx.roster.squared_norm(update, ctx.state.places)):\n",
        "    if False:\n",
        "T2",
    ),
    _bug(
        "the bound of staleness is off by one",
        ROLES + "commits",
        "    if age <= limit:\n",
        "    if age <= limit + 1:\n",
        "T3",
    ),
    _bug(
        "a worker carries twice",
        ROLES + "commits",
        "    carry = not waits and not ledger.exhausted(ctx.ledger) and",
        "    carry = not ledger.exhausted(ctx.ledger) and",
        "T2",
    ),
    _bug(
        "both copies of a lease are merged",
        ROLES + "commits",
        '    grants.take_back(ctx, _twins(ctx, updates), "somebody else was first with the same samples")\n',
        "",
        "D1",
    ),
    _bug(
        "a refusal is forgotten before it is heard",
        ROLES + "commits",
        "    if update in ctx.roster.refused:\n",
        "    if False:\n",
        "T2",
    ),
    _bug(
        "a refused update stays on the list",
        ROLES + "commits",
        "    ctx.persist(Aborted(update, flight.node, flight.report.leases, carry, reason))\n    ctx.drop_update(update)\n",
        "    ctx.persist(Aborted(update, flight.node, flight.report.leases, carry, reason))\n",
        "T2",
        "S3",
    ),
    _bug(
        "shards hear of a commit before the log",
        ROLES + "commits",
        "    ctx.persist(record)\n    _after(ctx, record, now_ns)\n",
        "    _after(ctx, record, now_ns)\n    ctx.persist(record)\n",
        "T1",
    ),
    _bug(
        "a committed update stays on the list",
        ROLES + "commits",
        "        ctx.roster.drop(member.update)\n",
        "",
        "T1",
        "D1",
        "S3",
    ),
    _bug(
        "only the shards' primaries hear of a commit",
        ROLES + "commits",
        "        for node in replica_nodes(place):\n            ctx.send(\n",
        "        for node in (place.primary,):\n            ctx.send(\n",
        "T4",
    ),
    _bug(
        "a measurement that sets the rate is not waited for",
        ROLES + "commits",
        '    return train.deterministic and train.optimizer.schedule == "plateau" and saving.measurement_wanted(ctx)\n',
        "    return False\n",
        "C4",
    ),
    _bug(
        "commits while a new backup loads",
        ROLES + "commits",
        '    if ctx.state.state != "running" or ctx.lost_shards or ctx.holding or _awaits_measurement(ctx):\n',
        '    if ctx.state.state != "running" or ctx.lost_shards or _awaits_measurement(ctx):\n',
        "T4",
    ),
]

GRANTS = [
    _bug(
        "a round begins before the one before it is committed",
        ROLES + "grants",
        "leases[n].round <= ctx.state.version + 1]",
        "leases[n].round <= ctx.state.version + 2]",
        "T3",
    ),
    _bug("one more in flight than allowed", ROLES + "grants", ") < sync.in_flight)", ") <= sync.in_flight)", "S3"),
    _bug(
        "any number of versions is pinned",
        ROLES + "grants",
        "    if any(v != version and owners - {CHECKPOINT, MEASUREMENT} for v, owners in ctx.pins.items()):\n",
        "    if False:\n",
        "S3",
    ),
    _bug("a base is granted that nobody pinned", ROLES + "grants", "        ctx.pin(version, node)\n", "", "T4"),
    _bug(
        "an update is merged whose lease was taken back",
        ROLES + "grants",
        "        if gone & set(flight.report.leases):\n            ctx.drop_update(update)\n",
        "        pass\n",
        "T1",
        "D1",
        "J4",
    ),
    _bug(
        "a stranded carry is never opened again",
        ROLES + "grants",
        "    if not ledger.exhausted(ctx.ledger):\n        return\n    sent, busy",
        "    return\n    sent, busy",
        "J5",
    ),
    _bug(
        "a round has one slot too many",
        ROLES + "grants",
        "        missing = size - _filled(ctx, number)\n",
        "        missing = size - _filled(ctx, number) + 1\n",
        "C4",
        "J6",
    ),
    _bug(
        "the slots of a round are whoever is there",
        ROLES + "grants",
        "train.sync.slots or len(ready))\n",
        "len(ready))\n",
        "C4",
    ),
    _bug(
        "a lease is sent before it is in the log",
        ROLES + "grants",
        "    ctx.persist(Leased(lease, node, span, steps, number))\n    ctx.granted_ns[lease] = now_ns\n",
        "    ctx.send(node, Lease(ctx.job, ctx.generation, lease, span, steps, number))\n"
        "    ctx.persist(Leased(lease, node, span, steps, number))\n    ctx.granted_ns[lease] = now_ns\n",
        "D3",
    ),
]

LEDGER = [
    _bug(
        "a number of a lease is given twice",
        ROLES + "ledger",
        "record.steps, record.round)\n    state.next_lease = max(state.next_lease, record.lease + 1)",
        "record.steps, record.round)\n    state.next_lease = max(state.next_lease, record.lease)",
        "J3",
        "D3",
    ),
    _bug(
        "the rest of a span is lost",
        ROLES + "ledger",
        "                Span(span.epoch, span.stop, candidate.stop),\n",
        "",
        "D1",
        "J5",
    ),
    _bug(
        "a rollback keeps what was leased",
        ROLES + "ledger",
        "    state.leases.clear()\n",
        "",
        "D1",
        "D2",
        "J3",
    ),
    _bug(
        "a rollback keeps what was committed",
        ROLES + "ledger",
        "    state.committed = list(state.bases[version])\n",
        "    _ = state.bases[version]\n",
        "D2",
        "D1",
    ),
    _bug(
        "a checkpoint's ledger lacks its last commit",
        ROLES + "ledger",
        "before < number <= version for",
        "before < number < version for",
        "D2",
        "D1",
    ),
    _bug(
        "a gap at the end of an epoch is forgotten",
        ROLES + "ledger",
        "        if position < end:\n            result.append(Span(epoch, position, end))\n",
        "",
        "D1",
        "J5",
    ),
    _bug(
        "the ledger's tail begins at the newest checkpoint",
        ROLES + "ledger",
        "    oldest = min(state.bases)\n",
        "    oldest = max(state.bases)\n",
        "D2",
    ),
    _bug(
        "what is given back is not opened",
        ROLES + "ledger",
        "            state.opened = merge([*state.opened, held.span])\n",
        "            pass\n",
        "D1",
        "J5",
    ),
]

STATE = [
    _bug(
        "a rollback leaves the plateau where it was",
        ROLES + "state",
        "        state.plateau, state.measured = mark.plateau, mark.version\n",
        "        state.measured = mark.version\n",
        "C4",
    ),
    _bug(
        "a measurement is not folded into the plateau",
        ROLES + "state",
        "    state.plateau = schedule.measured(spec.train.optimizer, state.plateau, record.loss)\n",
        "",
        "C4",
    ),
    _bug(
        "only the newest checkpoint is known",
        ROLES + "state",
        "    state.checkpoints = [*state.checkpoints, record][-keep:]\n",
        "    state.checkpoints = [record]\n",
        "C3",
    ),
    _bug(
        "a fact is believed but not written",
        ROLES + "context",
        "        self.out.append(Persist(stream(self.job), record))\n",
        "        if type(record).__name__ != 'Returned':\n            self.out.append(Persist(stream(self.job), record))\n",
        "J7",
        "D1",
    ),
    _bug(
        "no pin is sent",
        ROLES + "context",
        "        if not owners:\n            for place in self.state.places:\n                self.send(place.primary, Pin(",
        "        if False:\n            for place in self.state.places:\n                self.send(place.primary, Pin(",
        "T4",
    ),
    _bug(
        "the first who lets go unpins for all",
        ROLES + "context",
        "        owners.discard(owner)\n        if not owners:\n",
        "        owners.discard(owner)\n        if True:\n",
        "T4",
    ),
    _bug(
        "dropped updates stay at the shards",
        ROLES + "context",
        "                self.send(node, Drop(self.job, self.generation, place.shard, (update,)))\n",
        "                pass\n",
        "S3",
    ),
    _bug(
        "a snapshot is taken before the record that it follows",
        ROLES + "saving",
        "    ctx.persist(CheckpointSealed(report.version, ctx.generation, report.digest, report.nbytes))\n"
        "    ctx.out.append(Compact(stream(ctx.job), Snapshot(text(ctx.state))))\n",
        "    before = text(ctx.state)\n"
        "    ctx.persist(CheckpointSealed(report.version, ctx.generation, report.digest, report.nbytes))\n"
        "    ctx.out.append(Compact(stream(ctx.job), Snapshot(before)))\n",
        "J7",
    ),
]

RUN = [
    _bug(
        "no fence between generations",
        ROLES + "run",
        "message.job != ctx.job or message.generation != ctx.generation or self.over",
        "message.job != ctx.job or self.over",
        "J3",
        "S1",
        "T1",
        "T4",
    ),
    _bug(
        "anybody speaks of any shard",
        ROLES + "run",
        "        if not self._speaks(node, message):\n",
        "        if False:\n",
        "S1",
        "C1",
    ),
    _bug(
        "a preparer that comes late starts a job again",
        ROLES + "run",
        '                if self.state.state == "preparing":\n',
        "                if True:\n",
        "J1",
    ),
    _bug(
        "what a rollback took away is exported",
        ROLES + "saving",
        '    if ctx.state.state == "finishing" and report.version == ctx.state.version:\n',
        '    if ctx.state.state == "finishing":\n',
        "D1",
        "J4",
    ),
    _bug(
        "a second submission begins the job anew",
        ROLES + "coordinator",
        "        if event.job in self.runs:\n            return []\n",
        "",
        "J2",
    ),
    _bug(
        "a job that is done can be resumed",
        ROLES + "coordinator",
        'run.state.state not in ("cancelled", "failed"):',
        'run.state.state not in ("cancelled", "failed", "done"):',
        "J1",
    ),
    _bug(
        "a machine that was revoked is heard",
        ROLES + "coordinator",
        "        if node in self.revoked:\n",
        "        if False:\n",
        "S1",
    ),
    _bug(
        "a restart forgets who was revoked",
        ROLES + "coordinator",
        "                    self.revoked[record.node] = record.reason\n",
        "                    pass\n",
        "S1",
    ),
    _bug(
        "a poisoned span is tried for ever",
        ROLES + "run",
        "            if ctx.failures[key] >= POISON:\n",
        "            if False:\n",
        "J4",
    ),
]

RECOVERY = [
    _bug(
        "whose key is forgotten stays on the list",
        ROLES + "recovery",
        "    if ctx.roster.listed_too_many:\n",
        "    if False:\n",
        "S1",
    ),
    _bug(
        "a shard of an earlier generation counts",
        ROLES + "reconcile",
        "    if status.generation != ctx.generation:\n        return\n    key = (node, status.shard)\n",
        "    key = (node, status.shard)\n",
        "T4",
        "J3",
    ),
    _bug(
        "commits that were lost on the way are not said again",
        ROLES + "reconcile",
        "        if record.number > replica.version:\n",
        "        if False:\n",
        "J5",
    ),
    _bug(
        "what a broken stream swallowed is not said again",
        ROLES + "reconcile",
        "    if fresh:\n        _forget_what_was_said(ctx, node)\n",
        "",
        "J5",
        "T4",
    ),
    _bug(
        "an update that was committed unheard is called foreign",
        ROLES + "reconcile",
        "held - _say_committed(ctx, node, status)",
        "held",
        "T1",
    ),
    _bug(
        "a backup that is not loaded is promoted",
        ROLES + "recovery",
        "        if view is None or not view.ready:\n            continue\n",
        "",
        "T1",
        "T4",
    ),
    _bug(
        "pins are remembered after a promotion",
        ROLES + "recovery",
        "        if primary_lost:\n            ctx.forget_pins()\n",
        "",
        "T4",
    ),
    _bug(
        "a backup is seeded from an old checkpoint",
        ROLES + "recovery",
        "    if ctx.state.checkpoints[-1].version < ctx.state.version:\n",
        "    if False:\n",
        "T4",
    ),
    _bug(
        "a rollback returns to what was never saved",
        ROLES + "recovery",
        "    version = ctx.state.checkpoints[-1].version\n    why",
        "    version = ctx.state.version\n    why",
        "C1",
        "D2",
    ),
    _bug(
        "a rollback stays in its generation",
        ROLES + "recovery",
        "Placed(ctx.generation + 1, version",
        "Placed(ctx.generation, version",
        "J3",
        "T5",
    ),
    _bug(
        "a rollback remembers a checkpoint under way",
        ROLES + "recovery",
        "    ctx.saving = None\n",
        "",
        "J5",
        "C1",
    ),
    _bug(
        "the keys of a revoked machine stay admitted",
        ROLES + "recovery",
        "    for engine in [one for one in ctx.roster.addresses if one[0] == node]:\n        ctx.roster.forget(engine)\n",
        "",
        "S1",
    ),
    _bug(
        "a commit need not be at the backup",
        ROLES + "roster",
        "all((n, p.shard) in held for p in places for n in replica_nodes(p))",
        "all((p.primary, p.shard) in held for p in places)",
        "T4",
    ),
    _bug(
        "a backup on the machine of its primary",
        POLICIES + "placement",
        "            backup = _least(load, order, {primary})\n",
        "            backup = _least(load, order, set())\n",
        "T4",
    ),
]

SAVING = [
    _bug(
        "a checkpoint of a version that nobody pinned", ROLES + "saving", "    ctx.pin(version, CHECKPOINT)\n", "", "T4"
    ),
    _bug(
        "a checkpoint is sealed with its first part",
        ROLES + "saving",
        "    if len(saving.parts) < len(ctx.state.places):\n",
        "    if not saving.parts:\n",
        "C1",
    ),
    _bug(
        "the ledger of a checkpoint runs ahead of it",
        ROLES + "saving",
        "    spans = [s for number, spans in ctx.ledger.tail if number <= saving.version for s in spans]\n",
        "    spans = [s for _, spans in ctx.ledger.tail for s in spans]\n",
        "D2",
    ),
    _bug(
        "an old answer seals a new checkpoint",
        ROLES + "saving",
        "    if saving is None or saving.version != report.version or not saving.sealing:\n        return\n    if report.generation",
        "    if saving is None:\n        return\n    if report.generation",
        "C1",
        "C2",
    ),
    _bug(
        "done before the last version is saved",
        ROLES + "saving",
        "    if ctx.measuring >= 0 or ctx.saving is not None or _last_saved(ctx) < ctx.state.version:\n",
        "    if ctx.measuring >= 0 or ctx.saving is not None:\n",
        "C1",
        "C2",
    ),
    _bug(
        "any answer is the measurement",
        ROLES + "saving",
        "    if report.version != ctx.measuring or node != ctx.measuring_node:\n",
        "    if ctx.measuring < 0:\n",
        "S1",
    ),
]

WORKER = [
    _bug(
        "a lease that is told twice is computed twice",
        ROLES + "worker",
        "        if message.lease in self.status().leases:\n            return []\n",
        "",
        "J3",
        "T1",
    ),
    _bug(
        "a second carry is taken",
        ROLES + "worker",
        '        if verdict == "carry" and not self.carried:\n',
        '        if verdict == "carry":\n',
        "T2",
    ),
    _bug(
        "the engine keeps a carry whose lease was taken back",
        ROLES + "worker",
        "            self._drop_carry()\n            effects.append(Run(DropCarry(self.generation)))\n",
        "            self._drop_carry()\n",
        "T2",
        "T1",
    ),
    _bug(
        "a carry is remembered after it rode along",
        ROLES + "worker",
        "        self._drop_carry()\n        carry = bool(self.taken)\n",
        "        carry = bool(self.taken)\n",
        "T2",
        "J3",
    ),
    _bug(
        "an old computation is taken for the present one",
        ROLES + "worker",
        '        if report.update != self.computing:\n            return [Run(Settle(report.update, "drop"))]\n',
        "",
        "T1",
        "S2",
    ),
    _bug(
        "an update does not name the leases of its carry",
        ROLES + "worker",
        "            (self.current, *self.taken),\n",
        "            (self.current,),\n",
        "T1",
    ),
    _bug(
        "an engine computes on after a rollback",
        ROLES + "worker",
        "            effects.append(Run(ResetWorker(message.generation)))\n",
        "            pass\n",
        "J3",
        "T1",
        "J5",
    ),
    _bug(
        "a worker claims what its dead engine held",
        ROLES + "worker",
        "            self.micro_batch = max(1, self.micro_batch // 2) if self.micro_batch else 1\n        self._forget()\n",
        "            self.micro_batch = max(1, self.micro_batch // 2) if self.micro_batch else 1\n",
        "J5",
        "T1",
    ),
    _bug(
        "a pull that failed is not tried again",
        ROLES + "worker",
        '            self.phase, self.wish = "wanting", Patience(now_ns)\n            return effects\n        return effects + self._next(now_ns)\n\n    def _compute_failed',
        "            return effects\n        return effects + self._next(now_ns)\n\n    def _compute_failed",
        "J5",
    ),
]

SHARD = [
    _bug(
        "a commit is applied before its parts are here",
        ROLES + "shard",
        "            if absent:\n",
        "            if False:\n",
        "T4",
    ),
    _bug(
        "any version is pinned",
        ROLES + "shard",
        "        if message.version != self.version:\n            return [Reject(",
        "        if False:\n            return [Reject(",
        "T4",
    ),
    _bug(
        "what is not finite is called finite",
        ROLES + "shard",
        "        finite = report.finite and isfinite(report.squared_norm)\n",
        "        finite = True\n",
        "T2",
    ),
    _bug(
        "a shard remembers what an earlier generation staged",
        ROLES + "shard",
        "        self.assignment = message\n        self._forget()\n",
        "        self.assignment = message\n",
        "T4",
        "J3",
    ),
    _bug(
        "a shard claims what its dead engine held",
        ROLES + "shard",
        "        a = self.assignment\n        self._forget()\n        self.address = self.backup = None\n",
        "        a = self.assignment\n        self.address = self.backup = None\n",
        "T4",
    ),
    _bug(
        "a shard that loaded for an earlier generation is ready",
        ROLES + "shard",
        "    def _loaded(self, report: Loaded) -> list[Effect]:\n        if report.generation != self.generation:\n            return []\n",
        "    def _loaded(self, report: Loaded) -> list[Effect]:\n",
        "T4",
        "J3",
    ),
    _bug(
        "a shard listens to earlier generations",
        ROLES + "shard",
        "        if message.generation != self.generation:\n            return []\n        match message:\n            case Peers() if",
        "        match message:\n            case Peers() if",
        "J3",
        "T4",
    ),
]

CHOICES = [
    _bug(
        "synchronous rounds take old updates",
        POLICIES + "staleness",
        '    if sync.mode == "sync":\n        return 0\n',
        "",
        "T3",
    ),
    _bug(
        "the adaptive bound has a higher ceiling",
        POLICIES + "staleness",
        "    return min(max(wanted, 1), 4 * sync.staleness_bound)\n",
        "    return min(max(wanted, 1), 6 * sync.staleness_bound)\n",
        "T3",
    ),
    _bug(
        "a deterministic run does not wait for its slots",
        POLICIES + "rounds",
        "    if train.deterministic:\n",
        "    if False:\n",
        "C4",
    ),
    _bug(
        "an old update counts as much as a new one",
        POLICIES + "weights",
        "        return tuple(1.0 if m.staleness == 0 else staleness.weight(train.sync, m.staleness) for m in members)\n",
        "        return tuple(1.0 for m in members)\n",
        "T3",
    ),
]

BUGS: dict[str, Bug] = {
    bug.name: bug
    for bug in (
        *(*COMMITS, *GRANTS, *LEDGER, *STATE, *RUN, *RECOVERY, *SAVING, *WORKER, *SHARD, *CHOICES),
        *SERVINGS,
    )
}
