"""Which machines hold which layers: the first plan, repairs after a death, reserves, and moves while answers go on.

One thing is done at a time for each pipeline: loading, then (for a move) copying, then the new layout. Whatever dies
on the way ends that attempt, and the next tick begins another with whoever is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from medley.policies.decision import Decision
from medley.policies.pipeline.describe import Layout, StagePlan
from medley.policies.pipeline.drift import moved
from medley.policies.pipeline.repair import Part, merged, repair, reserves
from medley.protocol.ids import NS_PER_S, NodeId
from medley.protocol.messages import Address
from medley.protocol.stages.events import Explain, FrontEffect, Post
from medley.protocol.stages.words import (
    NOWHERE,
    Held,
    Hop,
    Load,
    Loaded,
    Measure,
    Measured,
    Replicate,
    StageFailed,
    Unload,
)
from medley.roles.front.change import Change
from medley.roles.front.distances import Distances
from medley.roles.front.machines import Machines, MachineView, holding
from medley.roles.front.numbers import Numbers
from medley.roles.front.pace import as_seen, slowest_s, watch
from medley.roles.front.pipeline import Pipeline
from medley.roles.front.planning import FrontOptions, Parts, anew, back_again, parts_of, parts_of_plan, planned, runs
from medley.roles.front.wiring import wired

SETTLE_NS = 2 * NS_PER_S  # after the last machine came, until the first plan is made without waiting for more
LOAD_NS = 900 * NS_PER_S
COPY_NS = 60 * NS_PER_S
CATCH_UP_NS = 3 * NS_PER_S  # after the last batch, until a copy must be whole; else the rest is computed again
THINK_NS = 5 * NS_PER_S  # between two looks whether another layout is better
AGAIN_NS = 5 * NS_PER_S  # what nobody has answered is said again: it may have been lost
PLAN_NS = NS_PER_S  # between two plans for a pipeline that waits for machines
REST_NS = 20 * NS_PER_S  # between two moves
UNMEASURED_NS = 60 * NS_PER_S


class Layouts:
    """`pipelines` are what answers; everything else is on its way to be one of them."""

    def __init__(self, options: FrontOptions, numbers: Numbers) -> None:
        self.options, self.numbers = options, numbers
        self.machines = Machines()
        self.distances = Distances(options.links, options.reach, numbers)
        self.pipelines: list[Pipeline] = []
        self.changes: dict[str, Change] = {}
        self.loads: dict[int, tuple[NodeId, int, int]] = {}
        self.measures: dict[int, NodeId] = {}
        self.reserved: dict[tuple[str, Part], NodeId] = {}  # (pipeline, hop) -> who holds its layers too
        self._copies: dict[tuple[str, Part], Post] = {}  # what was said to the hop about its reserve
        self._unanswered: dict[int, Post] = {}  # loads and measurements, by their numbers
        self._again_ns = 0
        self.reason = "no machine has come yet"
        self._said: dict[str, str] = {}
        self._came_ns = 0
        self._think_ns = 0
        self._moved_ns = 0
        self._plan_ns = 0  # the next plan for a pipeline that is down may be made then

    # -- machines -----------------------------------------------------------------------------------------------------

    def up(self, node: NodeId, address: Address, now_ns: int) -> list[FrontEffect]:
        if not self.machines.up(node, address, now_ns):
            return []
        self._came_ns, self._think_ns, self._plan_ns = now_ns, 0, 0
        lost = self._let_go(node, "its engine was started again", now_ns)
        return [*lost, Explain(node, "is there and holds nothing yet")]

    def down(self, node: NodeId, reason: str, now_ns: int) -> list[FrontEffect]:
        if not self.machines.down(node):
            return []
        self._think_ns = 0
        return [Explain(node, f"is gone: {reason}"), *self._let_go(node, reason, now_ns)]

    def drain(self, node: NodeId) -> bool:
        """Its layers move away, as soon as somebody can take them."""
        view = self.machines.known.get(node)
        if view is None:
            return False
        view.draining, self._think_ns = True, 0
        return True

    def _let_go(self, node: NodeId, reason: str, now_ns: int) -> list[FrontEffect]:
        """Whatever counted on this machine begins anew, its pipeline first."""
        self.loads = {n: load for n, load in self.loads.items() if load[0] != node}
        self.measures = {n: who for n, who in self.measures.items() if who != node}
        out = self._end_reserves([key for key, who in self.reserved.items() if node in (who, key[1].machine)])
        for name, change in list(self.changes.items()):
            if any(part.machine == node for part in change.parts):
                out += self._abandon(name, f"{node} is gone")
        for pipeline in self.pipelines:
            if pipeline.state != "down" and any(hop.node == node for hop in pipeline.hops):
                pipeline.broken(now_ns)
                out += self._repair(pipeline, node, reason, now_ns)
        return out

    def _repair(self, pipeline: Pipeline, node: NodeId, reason: str, now_ns: int) -> list[FrontEffect]:
        """At once, where others hold its layers; else by `_rebuild`, with the next tick."""
        stops = self._abandon(pipeline.name, f"{node} is gone") if pipeline.name in self.changes else []
        decision = self._repaired(pipeline, now_ns)
        if decision.plan is None:
            text = f"{node} is gone ({reason}); {decision.reason}, so they must be loaded"
            return [*stops, Explain(pipeline.name, text)]
        why = f"{node} is gone ({reason}): {decision.reason}"
        return [*stops, *self._install(pipeline, decision.plan, why, pipeline.down_ns, now_ns)]

    def _repaired(self, pipeline: Pipeline, now_ns: int) -> Decision[Parts | None]:
        """By machines that are trusted; else by any that are there."""
        others, hops, machines = self._busy(pipeline), parts_of(pipeline.hops), self.machines
        decision = repair(hops, holding(machines.usable(now_ns), others, now_ns))
        return decision if decision.plan is not None else repair(hops, holding(machines.there(), others, now_ns))

    def needed(self, node: NodeId) -> set[int]:
        """Requests that this machine may hold KV of: those of pipelines that it works for, or will."""
        busy = {name for (name, _), holder in self.reserved.items() if holder == node}
        busy.update(name for name, change in self.changes.items() if any(p.machine == node for p in change.parts))
        busy.update(p.name for p in self.pipelines if any(hop.node == node for hop in p.hops))
        return set().union(*(p.needed for p in self.pipelines if p.name in busy))

    # -- what stages say ----------------------------------------------------------------------------------------------

    def measured(self, word: Measured) -> None:
        node = self.measures.pop(word.number, None)
        if node is not None and node in self.machines.known:
            self.machines.known[node].was_measured(word)

    def loaded(self, word: Loaded, now_ns: int) -> list[FrontEffect]:
        load = self.loads.pop(word.number, None)
        if load is None:
            return []
        node, first, end = load
        self.machines.known[node].loaded.update(range(first, end))
        for change in self.changes.values():
            change.loads.discard(word.number)
        text = f"holds layers {first} to {end - 1}: {word.nbytes / (1 << 20):.0f} MiB in {word.seconds:.1f} s"
        return [Explain(node, text), *self._after_load(node, now_ns)]

    def failed(self, word: StageFailed, now_ns: int) -> list[FrontEffect]:
        """A load or a measurement came to nothing: that machine is not asked again for a while."""
        node = self.measures.pop(word.number, "") or self.loads.pop(word.number, ("", 0, 0))[0]
        if not node:
            return []
        self.machines.suspect(node, now_ns)
        out: list[FrontEffect] = [Explain(node, f"cannot take part: {word.reason}")]
        for name, change in list(self.changes.items()):
            if word.number in change.loads:
                out += self._abandon(name, f"{node}: {word.reason}")
        return out

    def held(self, word: Held) -> bool:
        """Whether it was an answer about a copy."""
        for change in self.changes.values():
            part = change.asked.pop(word.number, None)
            if part is not None:
                change.held[part] = {p.request: p.held for p in word.positions}
                return True
        return False

    def slowest_s(self, pipeline: Pipeline) -> float:
        """How fast a pipeline is, for whoever shares requests out: by its slowest hop."""
        return slowest_s(pipeline.hops, self.machines.known, self.options.shape.layers)

    # -- time ---------------------------------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> list[FrontEffect]:
        out = [*self._measure(now_ns), *self._say_again(now_ns)]
        if not self.pipelines:
            return [*out, *self._first_plan(now_ns)]
        for pipeline in self.pipelines:
            change = self.changes.get(pipeline.name)
            if change is not None:
                out += self._advance(pipeline, change, now_ns)
            elif pipeline.state == "down":
                out += self._rebuild(pipeline, now_ns)
        out += self._keep_reserves(now_ns)
        if now_ns >= self._think_ns and not self.changes:
            self._think_ns = now_ns + THINK_NS
            out += self._think(now_ns)
        return out

    def _measure(self, now_ns: int) -> list[FrontEffect]:
        """One machine after the other: on one computer they would disturb each other."""
        if self.options.pins or self.measures:
            return []
        for view in self.machines.usable(now_ns):
            if view.measured is None or (view.was_slow(now_ns) and not self._works(view.node)):
                number = self.numbers.next()
                self.measures[number] = view.node
                self._unanswered[number] = Post(view.address, Measure(number, self.options.model))
                return [self._unanswered[number]]
        return [*self.distances.next(self.machines.usable(now_ns), now_ns)]

    @property
    def _informed(self) -> FrontOptions:
        """With links as they were measured."""
        return replace(self.options, links=self.distances.links)

    def _works(self, node: NodeId) -> bool:
        """Or will, or is there for whoever does: it cannot be measured."""
        parts = [part.machine for change in self.changes.values() for part in change.parts]
        return node in {*parts, *self.reserved.values(), *(hop.node for p in self.pipelines for hop in p.hops)}

    def _say_again(self, now_ns: int) -> list[FrontEffect]:
        """Whoever has heard it already does nothing; a copy that nobody began is begun."""
        if now_ns - self._again_ns < AGAIN_NS:
            return []
        self._again_ns = now_ns
        self._unanswered = {n: post for n, post in self._unanswered.items() if n in self.loads or n in self.measures}
        moves = [Post(address, word) for change in self.changes.values() for address, word in change.copies]
        return [*self._unanswered.values(), *self._copies.values(), *moves]

    def _ready(self, now_ns: int) -> list[MachineView]:
        """Machines that a plan may count on; none while more are about to come."""
        usable = self.machines.usable(now_ns)
        since_ns = now_ns - self._came_ns
        few = len(usable) < self.options.expected
        if self.measures or (few and since_ns < UNMEASURED_NS) or self.distances.expected(usable, now_ns):
            return []
        return usable if since_ns >= SETTLE_NS or not few else []

    def _first_plan(self, now_ns: int) -> list[FrontEffect]:
        ready = self._ready(now_ns)
        if not ready or now_ns < self._plan_ns:
            return []
        decision = planned(self._informed, ready)
        layouts, self.reason = decision.plan, decision.reason
        if not layouts:
            self._plan_ns = now_ns + PLAN_NS
            return self._say("plan", self.reason)
        out: list[FrontEffect] = [Explain("plan", self.reason)]
        for number, parts in enumerate(layouts, start=1):
            name = f"pipeline {number}" if len(layouts) > 1 else "pipeline"
            wanted = self.options.wanted
            pipeline = Pipeline(name, self.numbers, self.options.front, self.options.wire, wanted.kv_tokens)
            self.pipelines.append(pipeline)
            out += self._begin(pipeline, parts, "the first layout", False, now_ns)
        return out

    def _rebuild(self, pipeline: Pipeline, now_ns: int) -> list[FrontEffect]:
        """Layers that nobody holds: on a machine that has room, else by a plan of its own."""
        decision = self._repaired(pipeline, now_ns)
        if decision.plan is not None:
            return self._install(pipeline, decision.plan, decision.reason, pipeline.down_ns, now_ns)
        parts = self._anew(pipeline, now_ns)
        if parts is None:
            return self._say(pipeline.name, f"it waits for machines: {decision.reason}")
        stops = self._stop_reserves(pipeline, parts)
        return [*stops, *self._begin(pipeline, parts, "layers were lost with their machine", False, now_ns)]

    def _anew(self, pipeline: Pipeline, now_ns: int) -> Parts | None:
        """A layout whose layers are loaded again: of machines that are trusted, else of any that are there."""
        others, hops = self._busy(pipeline), pipeline.hops
        trusted = [view for view in self.machines.usable(now_ns) if view.node not in others]
        there = [view for view in self.machines.there() if view.node not in others]
        if (parts := back_again(hops, trusted)) is not None:
            return parts
        plans = not self.options.pins and self._may_plan(trusted, now_ns)
        return anew(self._informed, hops, trusted, there) if plans else back_again(hops, there)

    def _may_plan(self, living: Sequence[MachineView], now_ns: int) -> bool:
        """Not with every tick: a plan of many machines takes as long as one. One that is trusted is measured soon."""
        if any(view.measured is None for view in living) or now_ns < self._plan_ns:
            return False
        self._plan_ns = now_ns + PLAN_NS
        return True

    def _busy(self, but: Pipeline) -> set[NodeId]:
        """Machines that work for other pipelines, or will."""
        busy = {hop.node for p in self.pipelines if p is not but and p.state != "down" for hop in p.hops}
        return busy.union(p.machine for name, change in self.changes.items() if name != but.name for p in change.parts)

    def _say(self, subject: str, text: str) -> list[FrontEffect]:
        """Once, not with every tick."""
        if text == self._said.get(subject):
            return []
        self._said[subject] = text
        return [Explain(subject, text)]

    # -- changes ------------------------------------------------------------------------------------------------------

    def _begin(self, pipeline: Pipeline, parts: Parts, why: str, live: bool, now_ns: int) -> list[FrontEffect]:
        change = Change(parts, why, live, now_ns)
        self.changes[pipeline.name] = change
        out = [] if live else self._unload(now_ns)  # memory was planned for what these parts say
        for part in parts:
            effects, number = self._load(part)
            out += effects
            if number:
                change.loads.add(number)
        return [*out, *self._advance(pipeline, change, now_ns)]

    def _load(self, part: Part) -> tuple[list[FrontEffect], int]:
        view = self.machines.known[part.machine]
        layers = set(range(part.first, part.end))
        if layers <= view.loaded:
            return [], 0
        number = self.numbers.next()
        self.loads[number] = (part.machine, part.first, part.end)
        shape = self.options.shape
        held = view.loaded.union(*(range(a, b) for node, a, b in self.loads.values() if node == view.node))
        kv_nbytes = len(held) * shape.kv_nbytes * self.options.wanted.kv_tokens
        word = Load(number, self.options.model, part.first, part.end, kv_nbytes)
        self._unanswered[number] = Post(view.address, word)
        return [self._unanswered[number]], number

    def _advance(self, pipeline: Pipeline, change: Change, now_ns: int) -> list[FrontEffect]:
        if change.loads:
            return self._too_late(pipeline.name, change) if now_ns - change.since_ns > LOAD_NS else []
        if not change.live or pipeline.state == "down":
            del self.changes[pipeline.name]
            since_ns = pipeline.down_ns or change.since_ns
            return self._install(pipeline, change.parts, change.why, since_ns, now_ns)
        if not change.copying:
            change.since_ns = now_ns
            return change.copy(pipeline.hops, self.machines.known, self.numbers)
        return self._switch(pipeline, change, now_ns)

    def _switch(self, pipeline: Pipeline, change: Change, now_ns: int) -> list[FrontEffect]:
        """When the copies are close behind: stop, let what is in flight end, wait until they are whole, change over."""
        if now_ns - change.since_ns > COPY_NS:
            return self._abandon(pipeline.name, "copying took too long")
        if pipeline.state == "serving" and change.behind(pipeline.requests.values()) < 256:
            pipeline.pause()
            change.still_ns = 0
        if pipeline.state == "pausing" and not pipeline.flying:
            change.still_ns = change.still_ns or now_ns
            if change.behind(pipeline.requests.values()) == 0 or now_ns - change.still_ns > CATCH_UP_NS:
                return self._change_over(pipeline, change, now_ns)
        return change.ask(self.machines.known, self.numbers)

    def _change_over(self, pipeline: Pipeline, change: Change, now_ns: int) -> list[FrontEffect]:
        del self.changes[pipeline.name]
        self._moved_ns = now_ns
        since_ns = change.still_ns or now_ns
        return [
            *change.stops(),
            *self._install(pipeline, change.parts, change.why, since_ns, now_ns),
            *self._unload(now_ns),
        ]

    def _too_late(self, name: str, change: Change) -> list[FrontEffect]:
        self.loads = {number: load for number, load in self.loads.items() if number not in change.loads}
        return self._abandon(name, "loading took too long")

    def _abandon(self, name: str, reason: str) -> list[FrontEffect]:
        change = self.changes.pop(name)
        for pipeline in self.pipelines:
            if pipeline.name == name:
                pipeline.go_on()
        self.pipelines = [p for p in self.pipelines if p.hops or p.name in self.changes]  # else it is planned anew
        return [*change.stops(), Explain(name, f"the change of layout is given up: {reason}")]

    def _install(
        self, pipeline: Pipeline, parts: Sequence[Part], why: str, since_ns: int, now_ns: int
    ) -> list[FrontEffect]:
        self._said.pop(pipeline.name, None)
        stops = self._stop_reserves(pipeline, parts)
        known = self.machines.known
        hops = tuple(
            Hop(place, p.machine, known[p.machine].address, p.first, p.end) for place, p in enumerate(merged(parts))
        )
        layers = ", ".join(f"{h.node} {h.first}-{h.end - 1}" for h in hops)
        wire = wired(self.options, merged(parts), known, self.distances)
        pipeline.wire = wire.plan
        told = f"; {wire.reason}" if wire.reason else ""
        return [*stops, *pipeline.install(hops, f"{why}; layers {layers}{told}", since_ns, now_ns)]

    def _unload(self, now_ns: int) -> list[FrontEffect]:
        """Layers that no layout needs where they are."""
        needed: dict[NodeId, set[int]] = {}
        for pipeline in self.pipelines:
            for hop in pipeline.hops if pipeline.state != "down" or pipeline.name not in self.changes else ():
                needed.setdefault(hop.node, set()).update(range(hop.first, hop.end))
        for (_, part), node in self.reserved.items():
            needed.setdefault(node, set()).update(range(part.first, part.end))
        for part in (part for change in self.changes.values() for part in change.parts):
            needed.setdefault(part.machine, set()).update(range(part.first, part.end))
        out: list[FrontEffect] = []
        for view in self.machines.usable(now_ns):
            for first, end in runs(view.loaded - needed.get(view.node, set())):
                out.append(Post(view.address, Unload(self.numbers.next(), first, end)))
                view.loaded -= set(range(first, end))
        return out

    # -- reserves -----------------------------------------------------------------------------------------------------

    def _keep_reserves(self, now_ns: int) -> list[FrontEffect]:
        """A second machine for the layers of each hop, with a copy of their KV."""
        if not self.options.survive or self.loads or self.changes:
            return []
        for pipeline in self.pipelines:
            hops = parts_of(pipeline.hops)
            if pipeline.state == "serving" and any((pipeline.name, hop) not in self.reserved for hop in hops):
                return self._reserve(pipeline, hops, now_ns)
        return []

    def _reserve(self, pipeline: Pipeline, hops: Sequence[Part], now_ns: int) -> list[FrontEffect]:
        missing = [hop for hop in hops if (pipeline.name, hop) not in self.reserved]
        wanted, shape = self.options.wanted, self.options.shape
        if self.options.pins:
            room: Mapping[NodeId, int] = {view.node: 1 << 62 for view in self.machines.there()}
        else:
            room = self.machines.room(shape, wanted.kv_tokens, wanted.process_nbytes)
        trusted = {view.node for view in self.machines.usable(now_ns)}
        decision = reserves(missing, room, shape.layer_nbytes + wanted.kv_tokens * shape.kv_nbytes, trusted)
        out = self._say(pipeline.name, decision.reason)
        for part, node in decision.plan.items():
            self.reserved[pipeline.name, part] = node
            effects, _ = self._load(Part(node, part.first, part.end))
            out += effects or self._replicate(pipeline, part, node)
        return out

    def _after_load(self, node: NodeId, now_ns: int) -> list[FrontEffect]:
        """A reserve that holds its layers gets the KV, too."""
        out: list[FrontEffect] = []
        for (name, part), holder in self.reserved.items():
            pipeline = next((p for p in self.pipelines if p.name == name), None)
            whole = set(range(part.first, part.end)) <= self.machines.known[node].loaded
            if holder == node and whole and pipeline is not None:
                out += self._replicate(pipeline, part, node)
        return out

    def _replicate(self, pipeline: Pipeline, part: Part, node: NodeId) -> list[FrontEffect]:
        hop = next((h for h in pipeline.hops if (h.node, h.first, h.end) == (part.machine, part.first, part.end)), None)
        if hop is None:
            return []
        word = Replicate(self.numbers.next(), part.first, part.end, node, self.machines.known[node].address)
        self._copies[pipeline.name, part] = Post(hop.address, word)
        return [self._copies[pipeline.name, part]]

    def _stop_reserves(self, pipeline: Pipeline, parts: Sequence[Part]) -> list[FrontEffect]:
        """Of hops that are no more; the others keep theirs."""
        return self._end_reserves([key for key in self.reserved if key[0] == pipeline.name and key[1] not in parts])

    def _end_reserves(self, keys: Sequence[tuple[str, Part]]) -> list[FrontEffect]:
        """No copies of these hops go to whoever held them in reserve."""
        out: list[FrontEffect] = []
        for key in keys:
            holder, part = self.reserved.pop(key), key[1]
            self._copies.pop(key, None)
            view = self.machines.known.get(part.machine)
            if view is not None and view.up:
                out.append(Post(view.address, Replicate(self.numbers.next(), part.first, part.end, holder, NOWHERE)))
        return out

    # -- better layouts -----------------------------------------------------------------------------------------------

    def _think(self, now_ns: int) -> list[FrontEffect]:
        """Whether the machines that are there now would do better in another layout; one pipeline moves at a time."""
        usable = self.machines.usable(now_ns)
        drained = [v.node for v in self.machines.known.values() if v.draining and v.up]
        leaving = [p for p in self.pipelines if any(hop.node in drained for hop in p.hops)]
        if leaving:
            return self._move_away(leaving[0], usable, now_ns)
        if self.options.pins or len(self.pipelines) != 1 or now_ns - self._moved_ns < REST_NS:
            return []
        pipeline = self.pipelines[0]
        if pipeline.state != "serving" or any(v.measured is None for v in usable):
            return []
        if not {hop.node for hop in pipeline.hops} <= {v.node for v in usable}:
            return []  # one that works is distrusted: it could not take the reserve that it was to hold
        paced = watch(pipeline.hops, pipeline.pace, self.machines.known, self.options.shape.layers, now_ns)
        return [*paced, *self._better(pipeline, usable, now_ns)]

    def _better(self, pipeline: Pipeline, usable: Sequence[MachineView], now_ns: int) -> list[FrontEffect]:
        machines = as_seen(usable, [hop.node for hop in pipeline.hops])
        present = Layout((tuple(StagePlan(h.node, h.first, h.end) for h in pipeline.hops),))
        decision = moved(self.options.shape, machines, self.distances.links, self.options.wanted, present)
        if decision.plan is None or len(decision.plan.layout.replicas) != 1:
            return []
        parts = parts_of_plan(decision.plan.layout.replicas[0])
        why = f"another layout is better: {decision.reason}"
        return [Explain(pipeline.name, why), *self._begin(pipeline, parts, why, True, now_ns)]

    def _move_away(self, pipeline: Pipeline, usable: Sequence[MachineView], now_ns: int) -> list[FrontEffect]:
        decision = planned(replace(self._informed, pins=""), usable)
        if not decision.plan:
            text = f"nobody can take the layers of the machine that leaves: {decision.reason}"
            return self._say(pipeline.name, text)
        return self._begin(pipeline, decision.plan[0], "a machine is drained", True, now_ns)
