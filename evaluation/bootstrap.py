"""Intervals: how far a mean over these clips may be from the mean over clips of their kind.

`interval` is the percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13): clips
are drawn again with replacement. `wilson` is for shares (Wilson, JASA 1927).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2_000
SEED = 0
LEVEL = 0.95
_DRAWS = 1 << 21  # numbers drawn at once: 16 MB of indices, however many clips there are


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` clips, and its 95 % interval [low, high]."""

    mean: float
    low: float
    high: float
    n: int


def interval(values: np.ndarray) -> Estimate | None:
    """Mean of `values` (float64 [n], one a clip) and its bootstrap interval; None where n is 0.

    The same numbers in another order give the same result: they are sorted before clips are drawn.
    """
    if not len(values):
        return None
    ordered = np.sort(np.asarray(values, np.float64))
    means = _resampled_means(ordered)
    low, high = np.percentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Estimate(float(ordered.mean()), float(low), float(high), len(ordered))


def _resampled_means(values: np.ndarray) -> np.ndarray:
    """Means of `RESAMPLES` draws of n out of n values: float64 [RESAMPLES]."""
    rng = np.random.default_rng(SEED)
    means, block = [], max(1, _DRAWS // len(values))
    for start in range(0, RESAMPLES, block):
        count = min(block, RESAMPLES - start)
        means.append(values[rng.integers(0, len(values), (count, len(values)))].mean(axis=1))
    return np.concatenate(means)


def wilson(hits: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of the share `hits` / `total`; it behaves at small counts and near 0 and 1."""
    share = hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)
