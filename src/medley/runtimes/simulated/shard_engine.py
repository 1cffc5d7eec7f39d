"""A shard's modelled engine: what `engines` says of all of them holds for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medley.protocol import engine as e
from medley.protocol.messages import Address
from medley.runtimes.simulated.arithmetic import Blocks, ShardArithmetic
from medley.runtimes.simulated.engines import Engine
from medley.runtimes.simulated.kernel import MS
from medley.runtimes.simulated.watch import COORDINATOR

if TYPE_CHECKING:
    from medley.runtimes.simulated.coordinator import Vault

PINS_MAX = 4


@dataclass(slots=True, eq=False)
class Part:
    """One update's blocks at one shard."""

    blocks: Blocks
    nbytes: int
    finite: bool


@dataclass(slots=True, eq=False)
class ShardEngine:
    """Blocks of parameters: staged parts, commits in order, pinned versions."""

    base: Engine
    arithmetic: ShardArithmetic
    shard: int
    blocks: tuple[int, ...]
    generation: int = 0
    admitted: frozenset[str] = frozenset()
    loaded: bool = False
    staged: dict[str, Part] = field(default_factory=dict)
    pins: set[int] = field(default_factory=set)
    backup: Address = field(default_factory=lambda: Address("", ""))

    @property
    def version(self) -> int:
        return self.arithmetic.version if self.loaded else -1

    def run(self, command: e.ShardCommand) -> None:
        base = self.base
        match command:
            case e.OpenShard():
                base.later(base.durations.open_ns(), e.Opened(base.address))
            case e.SetPeers():
                self.admitted = frozenset(command.keys)
                base.later(2 * MS, e.PeersKnown(command.number))
            case e.LoadShard():
                self._load(command)
            case e.SetRelay():
                self.backup = command.backup
                for update in list(self.staged):
                    self._relay(update)
            case e.Apply():
                self._apply(command)
            case e.Discard():
                for update in command.updates:
                    self.staged.pop(update, None)
                    self.arithmetic.drop(update)
            case e.PinVersion():
                assert command.version == self.version, "only the present version can be pinned"
                self.pins.add(command.version)
                self.arithmetic.pin(command.version)
                assert len(self.pins) <= PINS_MAX, f"pins are bounded: {sorted(self.pins)}"
            case e.UnpinVersion():
                self.pins.discard(command.version)
                self.arithmetic.unpin(command.version)
            case e.WriteVersion():
                self._write(command)

    def read(self, generation: int, version: int) -> Blocks | None:
        """What a worker that asks for this version gets."""
        if generation != self.generation or not self.loaded:
            return None
        return self.arithmetic.read(version)

    # -- updates in -------------------------------------------------------------------------------------------

    def stage(self, generation: int, update: str, blocks: Blocks, nbytes: int, finite: bool) -> bool:
        """Take one update's part; False while this engine cannot."""
        base = self.base
        if not base.alive or generation != self.generation or not self.loaded:
            return False
        if update in self.staged:
            return True
        self.staged[update] = Part(blocks, nbytes, finite)
        whole, total = self.arithmetic.stage(update, blocks)
        finite = finite and whole
        report = e.PartArrived(generation, update, finite, total if finite else 0.0, nbytes)
        base.later(base.durations.stage_ns(base.job.elements(self.blocks)), report)
        self._relay(update)
        return True

    def _relay(self, update: str) -> None:
        if self.backup.endpoint:
            world, base, endpoint = self.base.world, self.base, self.backup.endpoint
            ends = (base.address.endpoint, endpoint)
            target = world.node_of(self.backup)

            def arrived(whole: bool) -> None:
                self._passed_on(update, endpoint, whole)

            world.move(base.node.name, target, self.staged[update].nbytes, arrived, ends)

    def _passed_on(self, update: str, endpoint: str, whole: bool) -> None:
        base, part = self.base, self.staged.get(update)
        if not base.alive or part is None or endpoint != self.backup.endpoint:
            return
        other = base.world.sockets.get(endpoint)
        admitted = other is not None and other.base.alive and base.address.key in other.admitted
        failed = not whole or not admitted or base.world.chance("push fails", "relay")
        if failed or other is None or not other.stage(self.generation, update, part.blocks, part.nbytes, part.finite):
            base.say_if_alive(e.Failed("relay", update, "the backup does not answer", False, False))

    def _apply(self, command: e.Apply) -> None:
        base = self.base
        assert command.generation == self.generation, "a commit of another generation"
        assert command.number == self.version + 1, f"commit {command.number} at version {self.version}"
        for member in command.members:
            del self.staged[member.update]
        self.arithmetic.apply(command.number, [(m.update, m.weight) for m in command.members], command.lr)
        base.world.watch_applied(self)
        took = base.durations.apply_ns(base.job.elements(self.blocks), len(command.members))
        base.later(took, e.AppliedVersion(self.generation, self.version))

    # -- checkpoints ------------------------------------------------------------------------------------------

    def _load(self, command: e.LoadShard) -> None:
        base = self.base
        self._forget()
        self.generation = command.generation
        nbytes = base.job.checkpoint_nbytes(self.blocks)

        def fetched(whole: bool) -> None:
            base.world.kernel.after(base.durations.disk_ns(nbytes), self._loaded, command, whole)

        base.world.move(COORDINATOR, base.node.name, nbytes, fetched, (base.address.endpoint,))

    def _loaded(self, command: e.LoadShard, whole: bool) -> None:
        base = self.base
        if not base.alive or command.generation != self.generation:
            return
        kept = base.world.kept(base.job.name)
        fatal, reason = False, ""
        if not whole or self._vault() is None:
            reason = "the vault does not answer"
        elif command.version in kept.damaged:
            fatal, reason = True, "its digest does not match"
        elif command.version not in kept.sealed:
            fatal, reason = True, "there is no such checkpoint"
        if reason:
            base.say(e.Failed("load", str(command.version), reason, False, fatal))
            return
        self._forget()
        self.arithmetic.load(command.version, kept.sealed[command.version])
        self.loaded = True
        base.world.watch_applied(self)
        base.say(e.Loaded(command.generation, command.version))

    def _write(self, command: e.WriteVersion) -> None:
        base = self.base
        there = self.read(command.generation, command.version)
        if there is None:
            base.later(1, e.Failed("write", str(command.version), "that version is gone", False, False))
            return
        saved = self.arithmetic.saved(command.version)
        nbytes = base.job.checkpoint_nbytes(self.blocks)

        def moved(whole: bool) -> None:
            base.world.kernel.after(base.durations.disk_ns(nbytes), self._written, command, saved, nbytes, whole)

        base.world.move(base.node.name, COORDINATOR, nbytes, moved, (base.address.endpoint,))

    def _written(self, command: e.WriteVersion, saved: Any, nbytes: int, whole: bool) -> None:
        base = self.base
        if not base.alive:
            return
        if not whole or self._vault() is None or base.world.chance("write fails", "write part"):
            base.say(e.Failed("write", str(command.version), "the vault does not answer", False, False))
            return
        name = f"{command.generation}-{command.version}-{self.shard}"
        base.world.kept(base.job.name).parts[name] = saved
        base.say(e.WroteVersion(command.generation, command.version, name, "d", nbytes))

    def _vault(self) -> Vault | None:
        """The vault, if it lives and admits us."""
        vault = self.base.world.vault
        return vault if vault is not None and vault.alive and self.base.address.key in vault.admitted else None

    def _forget(self) -> None:
        self.loaded = False
        self.staged, self.pins = {}, set()
