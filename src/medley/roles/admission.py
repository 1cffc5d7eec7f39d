"""Who may connect to the vault: the union of what all runs say, since there is one vault and many runs.

Lists of keys are numbered in one sequence (`KeyLists`), so an acknowledged number says of every run which of its lists
the vault knows. A short list is sent at once; a long one at most once a tick, however many engines have come since.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from medley.protocol.effects import Effect, Run
from medley.protocol.engine import SetPeers
from medley.protocol.ids import JobId
from medley.protocol.messages import Address
from medley.roles.roster import KeyLists

SHORT = 256


def newest_list_only(effects: list[Effect]) -> list[Effect]:
    """Of the lists that several runs say in one step, the last: those before it still name, for the others' sake, whom
    these were about to drop.
    """
    lists = [n for n, effect in enumerate(effects) if isinstance(effect, Run) and isinstance(effect.command, SetPeers)]
    return [effect for n, effect in enumerate(effects) if n not in lists[:-1]] if lists[1:] else effects


@dataclass(slots=True)
class Admission:
    lists: KeyLists
    runs: dict[JobId, tuple[str, ...]] = field(default_factory=dict)
    holders: dict[str, int] = field(default_factory=dict)  # of each key: runs that name it
    waiting: dict[JobId, int] = field(default_factory=dict)  # runs whose newest list is not acknowledged
    due: bool = False

    def said(self, job: JobId, number: int, keys: tuple[str, ...], vault: Address) -> SetPeers | None:
        """A run has a new list; what the vault is told of it now, if anything."""
        self._forget_keys(job)
        self.runs[job] = keys
        for key in keys:
            self.holders[key] = self.holders.get(key, 0) + 1
        self.waiting[job] = number
        if len(self.holders) > SHORT:
            self.due = True
            return None
        return SetPeers(number, self.keys(), vault)

    def tick(self, vault: Address) -> SetPeers | None:
        """The long list, if something is new on it."""
        if not self.due or not vault.endpoint:
            return None
        self.due = False
        return SetPeers(self.lists.last, self.keys(), vault)

    def acknowledged(self, number: int) -> list[JobId]:
        """The vault knows list `number`; returns the runs for which that is news."""
        self.lists.vault = max(self.lists.vault, number)
        known = [job for job, wanted in self.waiting.items() if wanted <= number]
        for job in known:
            del self.waiting[job]
        return known

    def vault_opened(self) -> None:
        """A new vault knows nobody."""
        self.lists.vault = -1
        self.waiting = dict.fromkeys(self.runs, self.lists.last)

    def over(self, job: JobId) -> None:
        """The next list that is sent has none of this job's keys."""
        self._forget_keys(job)
        self.waiting.pop(job, None)

    def keys(self) -> tuple[str, ...]:
        return tuple(sorted(self.holders))

    def _forget_keys(self, job: JobId) -> None:
        for key in self.runs.pop(job, ()):
            self.holders[key] -= 1
            if not self.holders[key]:
                del self.holders[key]
