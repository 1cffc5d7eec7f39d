"""How long an answer is waited for before its question is put again.

Streams keep their order and a stream that breaks begins with everything that is still open, so most answers that are
late are not lost: each further wait is four times as long.
"""

from __future__ import annotations

from dataclasses import dataclass

from medley.protocol.ids import NS_PER_S

REPEAT_NS = 2 * NS_PER_S
REPEAT_UPDATE_NS = 10 * NS_PER_S  # an update waits for others in any case
REPEAT_MAX_NS = 60 * NS_PER_S


@dataclass(slots=True)
class Patience:
    """With one answer, waited for since `since_ns`."""

    since_ns: int
    wait_ns: int = REPEAT_NS

    def is_over(self, now_ns: int) -> bool:
        """True if it is time to ask again; then the next wait begins."""
        if now_ns - self.since_ns <= self.wait_ns:
            return False
        self.since_ns, self.wait_ns = now_ns, min(4 * self.wait_ns, REPEAT_MAX_NS)
        return True
