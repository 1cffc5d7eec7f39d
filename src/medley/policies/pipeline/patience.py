"""How long a micro-batch may take before somebody is asked whether he is there: from what others took.

Two kinds are told apart, since a part of a prompt takes many times as long as a few decoded tokens. Six times the
moving average, at least half a second; until a kind was seen, half a minute.
"""

from __future__ import annotations

from dataclasses import dataclass, field

NS_PER_S = 1_000_000_000
FLOOR_NS = NS_PER_S // 2
UNKNOWN_NS = 30 * NS_PER_S
TIMES = 6.0
WEIGHT = 0.3
FEW_TOKENS = 32


@dataclass(slots=True)
class Patience:
    """`latency_ns`: of decoding batches, the whole way; for whoever wants to know how many fit into it."""

    latency_ns: float = 0.0
    _few_ns: float = 0.0
    _token_ns: float = 0.0
    _factor: float = field(default=1.0)

    def saw(self, tokens: int, waited_ns: int, latency_ns: int) -> None:
        """A batch came back: `waited_ns` since it was the next to come, `latency_ns` since it was sent."""
        self._factor = 1.0
        if tokens <= FEW_TOKENS:
            self.latency_ns = _mixed(self.latency_ns, latency_ns)
            self._few_ns = _mixed(self._few_ns, waited_ns)
        else:
            self._token_ns = _mixed(self._token_ns, waited_ns / tokens)

    def limit_ns(self, tokens: int) -> int:
        known = self._few_ns if tokens <= FEW_TOKENS else self._token_ns * tokens
        if not known:
            return int(self._factor * UNKNOWN_NS)
        return int(self._factor * max(FLOOR_NS, TIMES * known))

    def extend(self) -> None:
        """Everybody was there, only slow: wait twice as long for this one."""
        self._factor = min(64.0, 2 * self._factor)


def _mixed(old: float, new: float) -> float:
    return new if old == 0 else old + WEIGHT * (new - old)
