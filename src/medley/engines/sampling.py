"""How the next token is chosen from one row of logits: greedy, temperature, top-k, top-p, and its
log-probabilities.

Numpy only, so that a front end can hold the options (and later the sampler) without torch. The generator is
counter-based (Philox; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), keyed by
(seed, choice) and counted by the token's absolute position: whoever samples position p again, after a death
or on another machine, draws the same number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UINT64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a request asks of the sampler. `max_tokens` None: as many as the context has room for."""

    max_tokens: int | None = None
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    seed: int = 0
    choice: int = 0  # which of the n answers to one request this is
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # None: none; k: of the token and of the k likeliest


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One sampled token with its natural log-probability before temperature, and the likeliest
    alternatives.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def uniform(seed: int, choice: int, position: int) -> float:
    """The number in [0, 1) that belongs to this seed, choice and absolute position."""
    key = np.array([seed & UINT64, choice & UINT64], dtype=np.uint64)
    counter = np.array([position & UINT64, 0, 0, 0], dtype=np.uint64)
    return float(np.random.Generator(np.random.Philox(key=key, counter=counter)).random())


def draw(logits_V: NDArray[np.float32], sampling: Sampling, position: int) -> int:
    """The token for absolute position `position`, from logits [vocabulary]."""
    if sampling.temperature <= 0:
        return int(np.argmax(logits_V))
    order_K = _likeliest(logits_V, sampling.top_k)
    below_K = logits_V[order_K].astype(np.float64)
    below_K -= below_K[0]
    with np.errstate(over="ignore"):  # next to no temperature: all but the likeliest are infinitely far below
        probs_K = np.exp(below_K / sampling.temperature)
    cumulative_K = np.cumsum(probs_K)
    kept = _nucleus(cumulative_K, sampling.top_p)
    mark = uniform(sampling.seed, sampling.choice, position) * cumulative_K[kept - 1]
    return int(order_K[min(int(np.searchsorted(cumulative_K[:kept], mark, side="right")), kept - 1)])


def logprob(logits_V: NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    """The log-probability of `token`, and of the `top` likeliest, under softmax(logits)."""
    wide_V = logits_V.astype(np.float64)
    peak = wide_V.max()
    log_sum = peak + np.log(np.exp(wide_V - peak).sum())
    best = _likeliest(logits_V, top) if top else ()
    return TokenLogprob(
        token, float(wide_V[token] - log_sum), tuple((int(i), float(wide_V[i] - log_sum)) for i in best)
    )


def _likeliest(logits_V: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Indices of the `count` largest logits (0: all), largest first, ties in order of index."""
    if not 0 < count < len(logits_V):
        return np.argsort(-logits_V, kind="stable")
    found = np.sort(np.argpartition(-logits_V, count - 1)[:count])
    return found[np.argsort(-logits_V[found], kind="stable")]


def _nucleus(cumulative_K: NDArray[np.float64], top_p: float) -> int:
    """How many of the likeliest tokens reach `top_p` of the mass (Holtzman et al., 2020); at least one."""
    if top_p >= 1:
        return len(cumulative_K)
    return int(np.searchsorted(cumulative_K, top_p * cumulative_K[-1], side="left")) + 1
