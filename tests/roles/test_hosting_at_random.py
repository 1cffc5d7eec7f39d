"""Whatever happens in whatever order: nobody is named too early, and when all is quiet everybody serves."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.roles.pool_of_stages import FRONT, JOB, PoolOfStages

from medley.protocol.hosting import ReleaseMachines, SuspectStage

NAMES = ("a", "b", "c", "d")
names = st.sampled_from(NAMES)


class Serving(RuleBasedStateMachine):
    """Four machines, one front. `opens`, `hears` and `comes back` are what a quiet end brings."""

    @initialize(count=st.integers(1, 4))
    def begin(self, count: int) -> None:
        self.pool = PoolOfStages(*NAMES[:count])
        self.pool.begin()

    def machine(self, name: str):  # type: ignore[no-untyped-def]
        return self.pool.machines.get(name)

    # -- what may happen ----------------------------------------------------------------------------------------

    @rule(name=names)
    def join(self, name: str) -> None:
        if self.machine(name) is None or not self.machine(name).connected:
            self.pool.join(name)

    @rule(name=names)
    def cut(self, name: str) -> None:
        if self.machine(name) is not None and self.machine(name).connected:
            self.pool.cut(name)

    @rule(name=names)
    def crash(self, name: str) -> None:
        if self.machine(name) is not None and self.machine(name).connected:
            self.pool.crash(name)

    @rule(name=names)
    def dies(self, name: str) -> None:
        if self.machine(name) is not None and self.machine(name).role is not None and not self.machine(name).slow:
            self.pool.dies(name)

    @rule(name=names, since=st.booleans())
    def suspect(self, name: str, since: bool) -> None:
        stage = self.pool.hosting.stages.get(name)
        if stage is not None:
            self.pool.say(SuspectStage(JOB, name, stage.since if since else 0, "no answer"))

    @rule(name=names)
    def becomes_slow(self, name: str) -> None:
        if self.machine(name) is not None and self.machine(name).role is None:
            self.machine(name).slow = True

    @rule(name=names)
    def opens(self, name: str) -> None:
        machine = self.machine(name)
        if machine is not None and machine.slow:
            machine.slow = False
            if machine.role is not None and machine.role.address is None:
                self.pool.opens(name)

    @rule(name=names)
    def becomes_deaf(self, name: str) -> None:
        if self.machine(name) is not None:
            self.machine(name).deaf = True

    @rule(name=names)
    def hears(self, name: str) -> None:
        if self.machine(name) is not None:
            self.pool.hears(name)

    @rule(nodes=st.frozensets(names, max_size=2))
    def release(self, nodes: frozenset[str]) -> None:
        self.pool.say(ReleaseMachines(JOB, nodes))

    @rule(seconds=st.sampled_from([0.25, 1.0, 12.0]))
    def wait(self, seconds: float) -> None:
        self.pool.wait(seconds)

    @precondition(lambda self: JOB in self.pool.coordinator.servings.live)
    @rule()
    def restart(self) -> None:
        connected = [name for name, machine in self.pool.machines.items() if machine.connected]
        self.pool.restart(connected)
        self.pool.begin()

    # -- what must hold -----------------------------------------------------------------------------------------

    @invariant()
    def who_serves_is_admitted_by_all_who_serve(self) -> None:
        for one in self.usable():
            for other in self.usable():
                key = self.machine(one).role.address.key
                assert key in self.machine(other).admitted, f"{other} would refuse {one}"

    @invariant()
    def who_serves_is_here_with_its_engine(self) -> None:
        for name in self.usable():
            machine = self.machine(name)
            assert machine.connected
            assert machine.role.address == self.pool.hosting.stages[name].address

    def usable(self) -> list[str]:
        return self.pool.usable if hasattr(self, "pool") else []

    def teardown(self) -> None:
        """Everything comes back and answers: then all serve who are wanted, and nobody else has an engine."""
        if not hasattr(self, "pool"):
            return
        for name in self.pool.machines:
            self.join(name)
        self.pool.say(ReleaseMachines(JOB, frozenset()))
        for name in self.pool.machines:
            self.opens(name)
            self.hears(name)
        self.pool.wait(2.0)
        unable = {name for name, _ in self.pool.hosting.unable}
        assert self.pool.usable == sorted(self.pool.machines.keys() - unable)
        keys = {self.machine(name).role.address.key for name in self.usable()}
        for name in self.usable():
            assert set(self.machine(name).admitted) == keys | {FRONT.key}, "whoever is gone is admitted nowhere"
        for name in unable:
            assert self.machine(name).role is None


Serving.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestServing = Serving.TestCase
