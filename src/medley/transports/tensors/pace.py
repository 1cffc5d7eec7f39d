"""How fast a link is, and what follows: chunk size, bytes in flight, and how long without progress is too
long.

An exponentially weighted estimate of acknowledged bytes per second. A pure value: time comes in as an
argument.
"""

from __future__ import annotations

from dataclasses import dataclass

CHUNK_NBYTES_MIN = 64 * 1024
CHUNK_S = 0.125
WINDOW_S = 1.0
WEIGHT = 0.3
UNKNOWN_BYTES_PER_S = 256.0 * 1024


@dataclass(slots=True)
class Pace:
    """One link's estimate. Starts modest: the first chunk of a slow link must meet its deadline."""

    bandwidth_bytes_per_s: float = UNKNOWN_BYTES_PER_S

    def acknowledged(self, nbytes: int, seconds: float) -> None:
        """Fold in `nbytes` acknowledged over `seconds` during which the link had work."""
        if nbytes <= 0:
            return
        sample = nbytes / max(seconds, 1e-6)
        if sample < self.bandwidth_bytes_per_s:
            self.bandwidth_bytes_per_s += WEIGHT * (sample - self.bandwidth_bytes_per_s)
        else:
            self.bandwidth_bytes_per_s = min(sample, self.bandwidth_bytes_per_s * 2)

    def chunk_nbytes(self, largest: int) -> int:
        """Chunk length that takes about an eighth of a second, a power of two, at most `largest`."""
        wanted = int(self.bandwidth_bytes_per_s * CHUNK_S)
        if wanted >= largest:
            return largest
        return min(largest, max(CHUNK_NBYTES_MIN, 1 << (wanted.bit_length() - 1) if wanted else 0))

    def window_nbytes(self, largest_chunk: int) -> int:
        """Bytes in flight: about a second's worth, at least two chunks."""
        return max(2 * self.chunk_nbytes(largest_chunk), int(self.bandwidth_bytes_per_s * WINDOW_S))

    def patience_s(self, in_flight_nbytes: int, floor_s: float, slack_s: float) -> float:
        """Longest believable silence with `in_flight_nbytes` on the way."""
        return max(floor_s, slack_s + 4.0 * in_flight_nbytes / max(self.bandwidth_bytes_per_s, 1.0))
