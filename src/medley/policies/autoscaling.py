"""How many machines of which kind to rent: queue, deadlines, prices and interruptions in, wanted nodes out.

The rate that is needed is the largest of what each deadline asks for (earliest deadline first: the work due by then
over the time until then, with headroom), and of what would drain what is left of the queue in `drain_s` from now on
(so the rate falls with the queue, and its last part takes longer). Of all fleets within the limits that reach it, the
cheapest; where none does, the fastest. Spot machines count for what is left of them after their interruptions.
Growing is quick, shrinking slow: only after `settle_s` in which less was enough, and never for a saving below `band`,
so that a queue that comes and goes does not make machines come and go. Limits hold at once and always.

Pure: what must be remembered between two calls is `Memory`, given back with each plan. Rates are tokens a second, work
is tokens, times are seconds of one clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import ceil, inf, prod

from medley.policies.decision import Decision
from medley.protocol.ids import JobId

SEARCHED_MAX = 20_000  # fleets compared one by one; of more possibilities, the cheapest kinds are filled up in turn
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Offer:
    """A kind of machine that can be had. `tokens_per_s` is of one machine at the work that waits."""

    kind: str
    tokens_per_s: float
    usd_per_h: float
    available: int
    interruptions_per_h: float = 0.0  # of one machine; 0: it stays
    start_s: float = 60.0  # from the wish to the first token
    lost_s: float = 30.0  # work that an interruption costs

    @property
    def effective_tokens_per_s(self) -> float:
        """Over a long time, with interruptions: each costs what was under way and a new start."""
        lost_fraction = self.interruptions_per_h / HOUR_S * (self.start_s + self.lost_s)
        return self.tokens_per_s / (1.0 + lost_fraction)


@dataclass(frozen=True, slots=True)
class Demand:
    """A job that waits or runs."""

    job: JobId
    tokens_left: float
    deadline_s: float = inf  # on the clock of `now_s`


@dataclass(frozen=True, slots=True)
class Limits:
    max_nodes: int
    usd_per_h: float = inf
    usd_left: float = inf  # of the whole budget
    min_nodes: int = 0  # kept although nothing waits


@dataclass(frozen=True, slots=True)
class Habits:
    """How eager and how calm."""

    drain_s: float = 3600.0  # the rate is at least what empties the rest of the queue in this time
    headroom: float = 0.15  # more than a deadline needs, for what goes wrong
    settle_s: float = 300.0  # less must have been enough for so long before machines go
    cooldown_s: float = 60.0  # between two changes that no deadline asks for
    band: float = 0.10  # a saving below this is not worth a change


@dataclass(frozen=True, slots=True)
class Memory:
    """What one call tells the next."""

    changed_s: float = -inf
    less_since_s: float | None = None  # since when fewer would have been enough


Fleet = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """`nodes` by kind, kinds with none left out; `rate` is what they reach together."""

    nodes: dict[str, int]
    tokens_per_s: float
    usd_per_h: float
    memory: Memory = field(default_factory=Memory)


def scale(
    now_s: float,
    demands: Sequence[Demand],
    offers: Sequence[Offer],
    running: Fleet,
    limits: Limits,
    habits: Habits = Habits(),
    memory: Memory = Memory(),
) -> Decision[Plan]:
    """Wanted nodes by kind. `running` counts what was asked for and has not ended; kinds unknown to `offers` go."""
    work = [d for d in demands if d.tokens_left > 0]
    usable = sorted((o for o in offers if o.available > 0 and o.tokens_per_s > 0), key=_order)
    now_there = {o.kind: n for o in usable if (n := min(running.get(o.kind, 0), o.available)) > 0}
    if limits.usd_left <= 0:
        return Decision(_plan({}, usable, _changed(memory, now_s, running, {})), "the budget is spent")
    wanted, reason, urgent = _ideal(now_s, work, usable, now_there, limits, habits)
    return _calmed(now_s, wanted, reason, urgent, usable, now_there, running, limits, habits, memory)


def needed_rate(now_s: float, demands: Sequence[Demand], start_s: float, habits: Habits) -> tuple[float, JobId]:
    """Tokens a second for every deadline when the earliest goes first, and whose deadline asks for most; 0 and "" where
    none has one. A deadline that is over, or too near to start anything, asks for an infinite rate.
    """
    rate, whose, due = 0.0, "", 0.0
    for demand in sorted((d for d in demands if d.deadline_s < inf), key=lambda d: (d.deadline_s, d.job)):
        due += demand.tokens_left
        left_s = demand.deadline_s - now_s - start_s
        asked = due * (1.0 + habits.headroom) / left_s if left_s > 0 else inf
        if asked > rate:
            rate, whose = asked, demand.job
    return rate, whose


def cheapest(rate: float, offers: Sequence[Offer], limits: Limits) -> dict[str, int] | None:
    """The cheapest fleet within the limits that reaches `rate`, or None."""
    reached = [f for f in _fleets(rate, offers, limits) if _rate(f, offers) >= rate * (1 - 1e-9)]
    return min(reached, key=lambda f: (_price(f, offers), sum(f.values()), sorted(f.items())), default=None)


def fastest(offers: Sequence[Offer], limits: Limits) -> dict[str, int]:
    """The fleet of the highest rate within the limits; of equal ones the cheapest."""
    found = list(_fleets(inf, offers, limits))
    return max(found, key=lambda f: (_rate(f, offers), -_price(f, offers)), default={})


# -- what would be best now ---------------------------------------------------------------------------------------


def _ideal(
    now_s: float, work: Sequence[Demand], offers: Sequence[Offer], there: Fleet, limits: Limits, habits: Habits
) -> tuple[dict[str, int], str, bool]:
    """(fleet, why, whether a deadline asks for it)."""
    if not work:
        few = _smallest(offers, limits)
        return few, f"nothing waits: {_words(few)}", False
    if not offers:
        return {}, "no kind of machine is to be had", False
    total = sum(d.tokens_left for d in work)
    # Machines that run already lose no time starting; only if they are not enough does a start count.
    start_s = 0.0 if there else min(o.start_s for o in offers)
    rate, whose = needed_rate(now_s, work, start_s, habits)
    if rate > _rate(there, offers) * (1 + 1e-9):
        rate, whose = needed_rate(now_s, work, max(o.start_s for o in offers), habits)
    wanted_rate = max(rate, total / habits.drain_s)
    fleet = cheapest(wanted_rate, offers, limits)
    if fleet is not None:
        why = f"{whose}'s deadline" if rate >= total / habits.drain_s else f"a queue of {total:.3g} tokens"
        return fleet, f"{why} needs {wanted_rate:.3g} tokens/s: {_words(fleet)}", rate > 0
    fleet = fastest(offers, limits)
    late = whose and cheapest(rate, offers, limits) is None
    why = (
        f"{whose}'s deadline cannot be met" if late else f"a queue of {total:.3g} tokens is more than the limits allow"
    )
    return fleet, f"{why}: the fastest that the limits allow, {_words(fleet)}", bool(whose)


def _smallest(offers: Sequence[Offer], limits: Limits) -> dict[str, int]:
    """`min_nodes` of the cheapest kinds, as far as the limits allow."""
    fleet: dict[str, int] = {}
    for offer in sorted(offers, key=lambda o: (o.usd_per_h, o.kind)):
        room = min(limits.min_nodes, limits.max_nodes) - sum(fleet.values())
        count = min(room, offer.available, _affordable(offer, limits.usd_per_h - _price(fleet, offers)))
        if count > 0:
            fleet[offer.kind] = count
    return fleet


# -- what is done about it ----------------------------------------------------------------------------------------


def _calmed(
    now_s: float, wanted: dict[str, int], reason: str, urgent: bool, offers: Sequence[Offer], there: Fleet,
    running: Fleet, limits: Limits, habits: Habits, memory: Memory,
) -> Decision[Plan]:  # fmt: skip
    """The wish after hysteresis and cooldown; limits hold whatever these say."""
    kept = _within(there, offers, limits)
    more = _rate(wanted, offers) > _rate(kept, offers) * (1 + 1e-9)
    saving = _price(kept, offers) - _price(wanted, offers)
    fewer = sum(wanted.values()) < sum(kept.values()) or saving > habits.band * _price(kept, offers)
    since = memory.less_since_s
    if more:
        waits = not urgent and bool(kept) and now_s - memory.changed_s < habits.cooldown_s
        fleet, since = (kept if waits else wanted), None
        reason = f"{reason}; waits until {habits.cooldown_s:.0f} s after the last change" if waits else reason
    elif fewer and wanted != kept:
        since = now_s if since is None else since
        ripe = now_s - since >= habits.settle_s and now_s - memory.changed_s >= habits.cooldown_s
        fleet, reason = (wanted, reason) if ripe else (kept, f"{reason}; {_words(kept)} stay for a while")
        since = None if ripe else since
    else:
        fleet, since = dict(kept), None
        reason = reason if fleet == wanted else f"{reason}; {_words(kept)} are as good"
    changed = _changed(Memory(memory.changed_s, since), now_s, running, fleet)
    return Decision(_plan(dict(fleet), offers, changed), reason)


def _changed(memory: Memory, now_s: float, running: Fleet, fleet: Fleet) -> Memory:
    same = {k: n for k, n in running.items() if n} == {k: n for k, n in fleet.items() if n}
    return memory if same else Memory(now_s, memory.less_since_s)


def _plan(fleet: dict[str, int], offers: Sequence[Offer], memory: Memory) -> Plan:
    return Plan(fleet, _rate(fleet, offers), _price(fleet, offers), memory)


def _within(fleet: Fleet, offers: Sequence[Offer], limits: Limits) -> dict[str, int]:
    """As much of a fleet as the limits allow, machines with the dearest work going first."""
    kept: dict[str, int] = {}
    for offer in offers:  # cheapest work first
        room = limits.max_nodes - sum(kept.values())
        money = limits.usd_per_h - _price(kept, offers)
        count = min(fleet.get(offer.kind, 0), room, _affordable(offer, money))
        if count > 0:
            kept[offer.kind] = count
    return kept


# -- fleets -------------------------------------------------------------------------------------------------------


def _fleets(rate: float, offers: Sequence[Offer], limits: Limits) -> Iterator[dict[str, int]]:
    """Every fleet within the limits that could be the answer for `rate`: of the last kind, as many as are needed."""
    if not offers:
        return
    most = [min(o.available, limits.max_nodes, _affordable(o, limits.usd_per_h)) for o in offers]
    if prod(n + 1 for n in most[:-1]) > SEARCHED_MAX:
        yield from _filled(rate, offers, limits)
        return
    last = offers[-1]
    for counts in product(*(range(n + 1) for n in most[:-1])):
        fleet = {o.kind: n for o, n in zip(offers, counts, strict=False) if n}
        room, money = limits.max_nodes - sum(counts), limits.usd_per_h - _price(fleet, offers)
        if room < 0 or money < -1e-9:
            continue
        short = rate - _rate(fleet, offers)
        needed = most[-1] if short == inf else max(0, ceil(short / last.effective_tokens_per_s - 1e-9))
        count = min(needed, room, most[-1], _affordable(last, money))
        yield {**fleet, last.kind: count} if count else fleet


def _filled(rate: float, offers: Sequence[Offer], limits: Limits) -> Iterator[dict[str, int]]:
    """Without comparing all: kinds by the price of their work, and by their speed, as many of each as are needed."""
    for order in (offers, sorted(offers, key=lambda o: (-o.effective_tokens_per_s, o.kind))):
        for skipped in range(len(order)):
            fleet: dict[str, int] = {}
            for offer in order[skipped:]:
                short = rate - _rate(fleet, offers)
                needed = offer.available if short == inf else max(0, ceil(short / offer.effective_tokens_per_s - 1e-9))
                room = limits.max_nodes - sum(fleet.values())
                money = limits.usd_per_h - _price(fleet, offers)
                count = min(needed, room, offer.available, _affordable(offer, money))
                if count > 0:
                    fleet[offer.kind] = count
            yield fleet


def _affordable(offer: Offer, usd_per_h: float) -> int:
    if offer.usd_per_h <= 0 or usd_per_h == inf:
        return offer.available
    return max(0, int(min(offer.available, usd_per_h / offer.usd_per_h + 1e-9)))


def _rate(fleet: Fleet, offers: Sequence[Offer]) -> float:
    return sum(fleet.get(o.kind, 0) * o.effective_tokens_per_s for o in offers)


def _price(fleet: Fleet, offers: Sequence[Offer]) -> float:
    return sum(fleet.get(o.kind, 0) * o.usd_per_h for o in offers)


def _order(offer: Offer) -> tuple[float, float, str]:
    return offer.usd_per_h / offer.effective_tokens_per_s, -offer.effective_tokens_per_s, offer.kind


def _words(fleet: Fleet) -> str:
    return ", ".join(f"{n} x {kind}" for kind, n in fleet.items()) or "no machine"
