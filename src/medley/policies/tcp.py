"""What TCP makes of a link: one direction of one connection, flight by flight. Pure: time and chance are handed in.

A flight is what a sender has under way at once. Its size follows slow start from ten segments, CUBIC (RFC 9438) and
HyStart; a hole in it is filled a round trip later, a lost tail by a probe, and silence by time-outs that double, as
Linux does (RFC 6298, RFC 8985). Followed by the simulator (`transfer_s`) and by the shaper of real sockets (`Stream`),
both held against kernel TCP by `bench/wan.py`. It knows no receive windows, no reordering and no ECN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, inf, log
from random import Random
from typing import Protocol

from medley.protocol.conditions import MSS_NBYTES, PACKET_NBYTES, RTO_MIN_S, Conditions, Direction

FIRST_SEGMENTS = 10.0
SYN_TIMEOUT_S = 1.0
SYN_GIVES_UP_S = 127.0  # whoever gets this has no connection
RTO_MAX_S = 120.0
QUEUE_S = 0.1  # a bottleneck's buffer, at least; otherwise one round trip
SPELL_S = 0.02  # a drawn delay lasts so long, at least; otherwise half a round trip
BETA, CUBIC = 0.7, 0.4
HYSTART_SEGMENTS = 18  # so many give the eight samples that it wants of a round trip
DRAWN_FLIGHTS = 96  # of one transfer; the rest of it goes at the steady rate
STEADY_FLIGHTS = 600


class Chance(Protocol):
    """`random.Random`, for instance."""

    def random(self) -> float: ...

    def gammavariate(self, alpha: float, beta: float) -> float: ...


@dataclass(slots=True)
class Bottleneck:
    """One direction of an access link, which every stream through it shares, first come, first served."""

    bytes_per_s: float  # 0: unlimited
    queue_s: float = QUEUE_S
    free_s: float = 0.0
    cut: bool = False  # a partition: nothing passes in this direction

    def take(self, now_s: float, nbytes: float) -> float:
        """When the last of these bytes has left."""
        if not self.bytes_per_s:
            return now_s
        self.free_s = max(now_s, self.free_s) + nbytes / self.bytes_per_s
        return self.free_s

    def is_full(self, now_s: float, rtt_s: float) -> bool:
        """Whether what was taken is more than the round trip and the buffer hold."""
        return self.free_s - now_s > rtt_s + max(self.queue_s, rtt_s)


def bottleneck(conditions: Conditions, direction: Direction) -> Bottleneck:
    return Bottleneck(conditions.up_bytes_per_s if direction == "up" else conditions.down_bytes_per_s)


@dataclass(slots=True)
class Delay:
    """One way's delay: gamma with the link's mean and deviation, drawn anew for every spell."""

    conditions: Conditions
    chance: Chance
    ends_s: float = -inf
    drawn_s: float = 0.0

    def at(self, now_s: float) -> float:
        mean_s, deviation_s = self.conditions.rtt_ms / 2000, self.conditions.jitter_ms / 1000
        if not deviation_s or not mean_s:
            return mean_s
        if now_s >= self.ends_s:
            shape = (mean_s / deviation_s) ** 2
            self.ends_s = now_s + max(SPELL_S, mean_s)
            self.drawn_s = self.chance.gammavariate(shape, mean_s / shape)
        return self.drawn_s


@dataclass(frozen=True, slots=True)
class Flight:
    """Of what waits, `nbytes` are at the receiver, in order, at `arrives_s`; at `again_s` more may leave."""

    nbytes: int
    arrives_s: float
    again_s: float


class Stream:
    """The sender of one direction of one connection. Its two `Delay`s are the link's there and back."""

    def __init__(
        self, conditions: Conditions, way: Bottleneck, there: Delay, back: Delay, chance: Chance, phase_s: float = 0.0
    ) -> None:
        self._conditions, self._way, self._there, self._back = conditions, way, there, back
        self._chance = chance
        self._phase_s = phase_s
        self._window, self._threshold = FIRST_SEGMENTS, inf
        self._peak, self._friendly, self._epoch_s = 0.0, 0.0, -1.0
        self._srtt_s, self._deviation_s, self._least_s = 0.0, 0.0, inf
        self._backoff, self._probing, self._hurt = 0, False, False
        self._landed = 0  # segments at the receiver behind a hole
        self._open, self._open_s, self._grown = 0, -inf, False  # sent in the present round trip, and its end
        self._again_s = 0.0

    def handshake_s(self, now_s: float) -> float:
        """How long until both ends know of the connection: a round trip, and a time-out for each lost try."""
        waited_s, timeout_s = 0.0, SYN_TIMEOUT_S
        while waited_s < SYN_GIVES_UP_S and (self._down(now_s + waited_s) or self._lost(1) or self._lost(1)):
            waited_s += timeout_s
            timeout_s *= 2
        rtt_s = self._there.at(now_s + waited_s) + self._back.at(now_s + waited_s)
        self._measured(rtt_s)
        return waited_s + rtt_s

    def flight(self, now_s: float, waiting_nbytes: int) -> Flight:
        """Send what the window allows of the bytes that wait, those of earlier flights that got lost included."""
        self._rested(now_s)
        there_s, back_s = self._there.at(now_s), self._back.at(now_s)
        waiting = ceil(waiting_nbytes / MSS_NBYTES) - self._landed
        if now_s >= self._open_s:
            self._open, self._grown = 0, False
        window = 1 if self._probing or self._backoff else int(self._window) - self._open
        sent = max(1, min(waiting, window))
        if self._down(now_s):
            return self._silence(now_s, sent)
        out_s = self._way.take(now_s, sent * PACKET_NBYTES * (1 + self._conditions.duplication))
        whole_s = max(there_s + back_s, out_s - now_s)
        first = self._first_lost(sent)
        if first is None:
            # A full buffer drops few, and what follows shows it at once: only the window notices.
            full = self._way.is_full(now_s, there_s + back_s)
            return self._arrived(now_s, sent, waiting_nbytes, out_s + there_s, whole_s, full)
        return self._holed(now_s, sent, first, waiting - sent, out_s + there_s, whole_s)

    # -- what becomes of a flight -----------------------------------------------------------------------------

    def _arrived(
        self, now_s: float, sent: int, waiting_nbytes: int, arrives_s: float, whole_s: float, full: bool
    ) -> Flight:
        nbytes = min(waiting_nbytes, (self._landed + sent) * MSS_NBYTES)
        self._landed = 0
        if self._lost(ceil(sent / 2)):  # all of its acknowledgements: a probe in vain, which costs no window
            again_s = now_s + self._probe_s(sent)
        else:
            self._measured(whole_s)
            if not self._open:
                self._open_s = now_s + whole_s
            self._open += sent
            again_s = now_s if self._open < int(self._window) else max(now_s, self._open_s)
            if self._probing or full:
                self._cut(now_s)
            elif not self._grown:
                self._grow(now_s, self._open, whole_s)
        self._backoff, self._probing = 0, False
        return self._flown(nbytes, arrives_s, again_s)

    def _holed(self, now_s: float, sent: int, first: int, more: int, arrives_s: float, whole_s: float) -> Flight:
        """The segments before the first lost one arrive; how soon it is missed depends on those behind it."""
        nbytes = first * MSS_NBYTES + (self._landed * MSS_NBYTES if first and self._landed else 0)
        behind = sent - first - 1
        survivors = sum(self._chance.random() >= self._conditions.loss for _ in range(min(behind, 64)))
        survivors += round(max(0, behind - 64) * (1 - self._conditions.loss))
        if self._probing or self._backoff:
            return self._silence(now_s, sent)
        if first:
            self._landed = 0
        if survivors:
            self._landed += survivors
            again_s = now_s + whole_s + (whole_s / 4 if survivors < 3 else 0.0)
            self._cut(now_s)
        elif first and more > 0:
            again_s = now_s + 2 * whole_s  # new segments follow the acknowledged ones, and show the hole
            self._cut(now_s)
        else:
            self._probing = True
            again_s = now_s + self._probe_s(sent)
        return self._flown(nbytes, arrives_s, again_s)

    def _silence(self, now_s: float, sent: int) -> Flight:
        """Nothing comes back: the time-out, twice as long each time."""
        if not self._backoff:
            self._threshold, self._peak, self._epoch_s = max(2.0, BETA * self._window), self._window, -1.0
            self._window = 1.0
        wait_s = min(RTO_MAX_S, self._rto_s() * 2 ** min(60, self._backoff))
        self._backoff, self._probing, self._landed = self._backoff + 1, False, 0
        return self._flown(0, now_s, now_s + wait_s)

    def _flown(self, nbytes: int, arrives_s: float, again_s: float) -> Flight:
        self._again_s = again_s
        return Flight(nbytes, arrives_s, again_s)

    # -- the window -------------------------------------------------------------------------------------------

    def _grow(self, now_s: float, sent: int, rtt_s: float) -> None:
        if self._window < self._threshold:
            if sent >= self._window / 2:
                self._grown = True
                self._window = min(2 * self._window, max(self._threshold, self._window + 1))
            if sent >= HYSTART_SEGMENTS and rtt_s > self._least_s + min(max(self._least_s / 8, 0.004), 0.016):
                self._threshold = self._window
            return
        if sent < int(self._window):
            return
        self._grown = True
        if self._epoch_s < 0:
            self._epoch_s, self._friendly = now_s, self._window
            self._peak = max(self._peak, self._window)
        self._friendly += 3 * (1 - BETA) / (1 + BETA)
        turn_s = ((self._peak * (1 - BETA)) / CUBIC) ** (1 / 3) if self._peak > self._window else 0.0
        cubic = CUBIC * (now_s + rtt_s - self._epoch_s - turn_s) ** 3 + self._peak
        unhurt = 0.0 if self._hurt else 1.05 * self._window  # as Linux does before the first loss
        self._window = max(self._window, min(1.5 * self._window, max(cubic, self._friendly, unhurt)))

    def _cut(self, now_s: float) -> None:
        shrinking = self._window < self._peak
        self._peak = self._window * (1 + BETA) / 2 if shrinking else self._window
        self._window = self._threshold = max(2.0, BETA * self._window)
        self._epoch_s, self._hurt = -1.0, True

    def _rested(self, now_s: float) -> None:
        """After a pause the window is halved for each time-out that passed, not below where it began."""
        idle_s, rto_s = now_s - self._again_s, self._rto_s()
        if self._srtt_s and idle_s > rto_s:
            self._threshold = max(self._threshold, 0.75 * self._window) if self._threshold < inf else inf
            self._window = max(min(FIRST_SEGMENTS, self._window), self._window / 2 ** min(60, int(idle_s / rto_s)))
            self._epoch_s = -1.0

    # -- time and chance --------------------------------------------------------------------------------------

    def _measured(self, rtt_s: float) -> None:
        self._least_s = min(self._least_s, rtt_s)
        if not self._srtt_s:
            self._srtt_s, self._deviation_s = rtt_s, rtt_s / 2
            return
        self._deviation_s += (abs(rtt_s - self._srtt_s) - self._deviation_s) / 4
        self._srtt_s += (rtt_s - self._srtt_s) / 8

    def _rto_s(self) -> float:
        if not self._srtt_s:
            return SYN_TIMEOUT_S
        return self._srtt_s + max(RTO_MIN_S, 4 * self._deviation_s)

    def _probe_s(self, sent: int) -> float:
        return min(self._rto_s(), 2 * self._srtt_s + (RTO_MIN_S if sent == 1 else 0.0))

    def _lost(self, packets: int) -> bool:
        """Whether so many packets are all lost."""
        loss = self._conditions.loss
        return loss > 0 and self._chance.random() < loss**packets

    def _first_lost(self, sent: int) -> int | None:
        loss = self._conditions.loss
        if 1 - loss >= 1:  # none, or too little to reckon with
            return None
        first = int(log(1 - self._chance.random()) / log(1 - loss))
        return first if first < sent else None

    def _down(self, now_s: float) -> bool:
        if self._way.cut:
            return True
        up_s, down_s = self._conditions.up_s, self._conditions.down_s
        return down_s > 0 and (now_s + self._phase_s) % (up_s + down_s) >= up_s


def stream(conditions: Conditions, direction: Direction, chance: Chance, phase_s: float = 0.0) -> Stream:
    """A stream that has the link for itself."""
    there, back = Delay(conditions, chance), Delay(conditions, chance)
    return Stream(conditions, bottleneck(conditions, direction), there, back, chance, phase_s)


def transfer_s(sender: Stream, now_s: float, nbytes: int, steady: Callable[[], float] | None = None) -> float:
    """From the first byte's sending to the last arrival in order; a long rest goes at `steady()` bytes a second.

    Infinite where that is none at all.
    """
    at_s, arrived_s, left = now_s, now_s, nbytes
    for number in range(1 << 30):
        flight = sender.flight(at_s, left)
        left -= flight.nbytes
        arrived_s, at_s = max(arrived_s, flight.arrives_s), flight.again_s
        if left <= 0:
            break
        if steady is not None and number >= DRAWN_FLIGHTS:
            rate = steady()
            return arrived_s - now_s + (left / rate if rate > 0 else inf)
    return arrived_s - now_s


@lru_cache(4096)
def steady_bytes_per_s(conditions: Conditions, direction: Direction) -> float:
    """What a long stream that has the link for itself reaches in this model; infinite on a link without limits."""
    limit = conditions.up_bytes_per_s if direction == "up" else conditions.down_bytes_per_s
    if conditions.rtt_ms <= 0:
        return limit * MSS_NBYTES / PACKET_NBYTES / (1 + conditions.duplication) or inf
    if not limit and not conditions.loss:
        return inf
    sender = stream(conditions, direction, Random(1))
    at_s, moved, began_s = 0.0, 0, 0.0
    for number in range(STEADY_FLIGHTS):
        flight = sender.flight(at_s, 1 << 40)
        at_s = flight.again_s
        if number == STEADY_FLIGHTS // 10:
            began_s, moved = at_s, 0
        moved += flight.nbytes
    return moved / (at_s - began_s)
