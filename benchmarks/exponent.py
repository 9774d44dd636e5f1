"""How fast something grows: the exponent p of y = a + b x^p, with an interval.

A constant that does not grow hides the exponent from a straight line through logarithms, so it is fitted too. Errors
are relative, as those of times are; a and b are not negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GRID = np.arange(0.1, 3.001, 0.02)
RESAMPLES = 400
SEED = 0
GROWN = 1.25  # times the least: less is no growth whose shape could be told


@dataclass(frozen=True)
class Exponent:
    """The exponent and its 95 % interval; 0 where nothing grew. `factor` is the largest median over the smallest."""

    value: float
    low: float
    high: float
    factor: float


def exponent(x: Sequence[float], samples: Sequence[Sequence[float]]) -> Exponent | None:
    """The exponent of the medians of some samples above 0 at each x above 0; None for fewer than four x.

    The interval is from drawing the samples at each x again; of one sample at each it has no width.
    """
    if len(x) < 4:
        return None
    medians = np.array([np.median(found) for found in samples])
    factor = float(medians.max() / medians.min())
    if factor < GROWN:
        return Exponent(0.0, 0.0, 0.0, factor)
    places = np.asarray(x, np.float64)
    rng = np.random.default_rng(SEED)
    drawn = np.stack(
        [np.median(rng.choice(np.asarray(found), (RESAMPLES, len(found))), axis=1) for found in samples], axis=1
    )
    spread = _best(places, drawn)
    low, high = np.percentile(spread, [2.5, 97.5])
    return Exponent(float(_best(places, medians[None])[0]), float(low), float(high), factor)


def _best(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """For each row of y float64 [n, points] the exponent of `GRID` that fits best, float64 [n]."""
    powers = (x / x.max())[None, :] ** GRID[:, None]
    y, powers = y[:, None, :], powers[None, :, :]
    weights = 1.0 / y**2
    s1, sf, sff = weights.sum(-1), (weights * powers).sum(-1), (weights * powers**2).sum(-1)
    sy, sfy = (weights * y).sum(-1), (weights * powers * y).sum(-1)
    determinant = np.maximum(s1 * sff - sf**2, 1e-300)
    a, b = (sy * sff - sf * sfy) / determinant, (s1 * sfy - sf * sy) / determinant
    without_a, without_b = a < 0, b < 0
    a, b = np.where(without_a, 0.0, a), np.where(without_a, sfy / sff, b)
    a, b = np.where(without_b, sy / s1, a), np.where(without_b, 0.0, b)
    residual = (weights * (y - a[..., None] - b[..., None] * powers) ** 2).sum(-1)
    return np.asarray(GRID[np.argmin(residual, axis=1)])
