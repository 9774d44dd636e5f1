"""Percentiles of samples, and how far they may be from those of another benchmark of the same build.

Runs of one process resemble each other more than runs of two: memory lies elsewhere, the machine's load has moved on.
So processes are drawn again with replacement, and runs within each (the bootstrap for nested data: Davison and
Hinkley, Bootstrap Methods and their Application, 1997, section 3.8); each clip keeps its number of runs. Few processes
make that too narrow; it is widened as Student's t widens the normal interval.

That knows nothing of a machine that drifts over minutes, and leaves two benchmarks one after the other at different
paces. How far it may have wandered between them is taken from how far it did within each: `Ratio` has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2_000
SEED = 0
_BLOCK = 1 << 20  # values drawn at once: 8 MB, however many runs there are
_NORMAL = 1.96
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # 97.5 %, 1 to 10 degrees of freedom

Groups = Sequence[Sequence[Sequence[float]]]  # by process, then by clip
Statistic = Callable[[np.ndarray], np.ndarray]  # float64 [..., n] to [...]


def median(values: np.ndarray) -> np.ndarray:
    """Median over the last axis: the mean of the middle two where their number is even."""
    return np.asarray(np.median(values, axis=-1))


def percentile(share: float) -> Statistic:
    """The nearest-rank percentile over the last axis: the least sample that `share` of all do not exceed.

    It is always one of the samples, and of few it is their maximum: p99 of fewer than 100.
    """

    def of(values: np.ndarray) -> np.ndarray:
        rank = max(1, math.ceil(share * values.shape[-1] - 1e-9)) - 1
        return np.asarray(np.partition(values, rank, axis=-1)[..., rank])

    return of


STATISTICS: dict[str, Statistic] = {
    "p50": median,
    "p90": percentile(0.90),
    "p95": percentile(0.95),
    "p99": percentile(0.99),
    "min": lambda values: np.asarray(values.min(axis=-1)),
    "max": lambda values: np.asarray(values.max(axis=-1)),
}


@dataclass(frozen=True)
class Stats:
    """Percentiles of `n` samples, outliers and all, and the 95 % interval [low, high] of the median."""

    n: int
    p50: float
    p90: float
    p95: float
    p99: float
    min: float
    max: float
    low: float
    high: float


def stats(groups: Groups) -> Stats | None:
    """`Stats` of samples by process and clip; None without samples."""
    values = flat(groups)
    if not len(values):
        return None
    low, high = interval(groups, median)
    return Stats(len(values), **{name: float(of(values)) for name, of in STATISTICS.items()}, low=low, high=high)


def interval(groups: Groups, statistic: Statistic) -> tuple[float, float]:
    """95 % interval of a statistic of samples by process and clip. Raises ValueError without samples.

    It is widened on a logarithmic scale where all samples are above 0, as times are: it then stays above 0.
    """
    values, drawn = flat(groups), _drawn(groups, statistic, np.random.default_rng(SEED))
    centre = float(statistic(values))
    if values.min() <= 0:
        return _widened(centre, drawn, len(groups))
    low, high = _widened(math.log(centre), np.log(drawn), len(groups))
    return min(centre, math.exp(low)), max(centre, math.exp(high))


def flat(groups: Groups) -> np.ndarray:
    """All samples: float64 [n]."""
    return np.array([value for process in groups for clip in process for value in clip], np.float64)


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians, B over A, and its 95 % interval [low, high].

    The interval is the bootstrap's and, in quadrature, twice the squares of what the first and the last processes of A
    differ by, and those of B: of a random walk, the means of two stretches differ by twice the variance of those half
    as long.
    """

    ratio: float
    low: float
    high: float

    @property
    def seen(self) -> bool:
        """Whether the interval leaves out 1: a difference was seen."""
        return not self.low <= 1.0 <= self.high


def ratio(pairs: Sequence[tuple[Groups, Groups]]) -> Ratio | None:
    """Ratio of medians, B over A; the geometric mean over clips where there are several.

    `pairs` has for each clip the groups of A and those of B. None where a clip has no samples, or one is not above
    0. Of one process a side, the interval says nothing of how processes differ.
    """
    rng, logs, centre, drifts = np.random.default_rng(SEED), np.zeros(RESAMPLES), 0.0, np.zeros(2)
    fewest = 10**9
    for pair in pairs:
        fewest = min(fewest, *map(len, pair))
        for side, (groups, sign) in enumerate(zip(pair, (-1.0, 1.0), strict=True)):
            values = flat(groups)
            if not len(values) or values.min() <= 0:
                return None
            centre += sign * math.log(float(median(values))) / len(pairs)
            logs += sign * np.log(_drawn(groups, median, rng)) / len(pairs)
            drifts[side] += _drift(groups) / len(pairs)
    if not pairs:
        return None
    low, high = _widened(centre, logs, fewest)
    wandered = math.sqrt(2) * math.hypot(*drifts)
    low, high = centre - math.hypot(centre - low, wandered), centre + math.hypot(high - centre, wandered)
    return Ratio(math.exp(centre), math.exp(low), math.exp(high))


def _drift(groups: Groups) -> float:
    """Logarithm of the median of the last processes over that of the first, 0 for a single process."""
    half = len(groups) // 2
    if half == 0:
        return 0.0
    first, last = flat(groups[:half]), flat(groups[-half:])
    return math.log(float(median(last)) / float(median(first)))


def _drawn(groups: Groups, statistic: Statistic, rng: np.random.Generator) -> np.ndarray:
    """The statistic of `RESAMPLES` draws of processes, and of each clip's runs within them: float64 [RESAMPLES].

    A clip with fewer runs than another, as where a process was cold for it, is drawn as often as the other.
    """
    clips, runs = max(map(len, groups)), max(len(clip) for process in groups for clip in process)
    sizes, values = np.zeros((len(groups), clips), np.int64), np.zeros((len(groups), clips, runs))
    for p, process in enumerate(groups):
        for c in range(clips):
            clip = process[c % len(process)]
            sizes[p, c], values[p, c, : len(clip)] = len(clip), clip
    found, block = [], max(1, _BLOCK // values.size)
    for start in range(0, RESAMPLES, block):
        shape = (min(block, RESAMPLES - start), len(groups))
        process_of = rng.integers(0, len(groups), shape)[..., None, None]
        clip_of = np.arange(clips)[:, None]
        run_of = (rng.random((*shape, clips, runs)) * sizes[process_of, clip_of]).astype(np.int64)
        found.append(statistic(values[process_of, clip_of, run_of].reshape(shape[0], -1)))
    return np.concatenate(found)


def _widened(centre: float, drawn: np.ndarray, processes: int) -> tuple[float, float]:
    """The percentile interval of `drawn`, stretched about `centre` for the number of processes; one is left as it is,
    since nothing then says how processes differ."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    factor = 1.0
    if processes > 1:
        student = _STUDENT[processes - 2] if processes - 2 < len(_STUDENT) else _NORMAL * (1 + 1.5 / processes)
        factor = student / _NORMAL * math.sqrt(processes / (processes - 1))
    return min(centre, centre - factor * (centre - low)), max(centre, centre + factor * (high - centre))
