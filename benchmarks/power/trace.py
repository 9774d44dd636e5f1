"""Power over time as it was sampled, and its integral.

Power is taken as a straight line between two samples (trapezoid); an energy counter is read off instead, so that
nothing between two samples is lost. Where samples lie further apart than `LONGEST_GAP` periods nobody knows what
happened: that stretch counts as not covered. A line is still drawn across it, and energy is None where more than 1 % of
the time asked for is not covered: then the line's error is below 0.5 % of the energy as long as the true mean power in
the gap was within half of the line's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

LONGEST_GAP = 3.0  # periods: one sample lost to a busy machine is no gap
LOOSE_END = 1.5  # periods: a stream's last line may be that old when the run ends
LEAST_COVERED = 0.99


@dataclass(frozen=True)
class Energy:
    """What was used between two moments, or in all stretches of one stage.

    `joules` is gross, at the named `rail`; `above_idle_j` less what `idle_watts` would have used in the same time, None
    without an idle trace of the same rail. `watts` is the mean. `covered` is the share of the time with samples close
    enough; `samples` is how many lie within it: a figure from one or two is coarse.
    """

    joules: float
    seconds: float
    watts: float
    above_idle_j: float | None
    idle_watts: float | None
    covered: float
    samples: int
    rail: str
    method: str


@dataclass(frozen=True, eq=False)
class Trace:
    """Samples in the order of time: `seconds` float64 [N] on `time.monotonic`, strictly rising; `watts` float64 [N].

    `joules` float64 [N] is set for energy counters; `watts` may then be NaN where no mean is known yet. `parts` (watts)
    and `temperatures_c` are float64 [N] by name, NaN where not read. `period_s` is how often it was meant to be sampled
    (the median distance where not given), `missed` how many readings failed, `cost_s` what sampling took in processor
    seconds. Raises `ValueError` for arrays that do not fit this.
    """

    seconds: np.ndarray
    watts: np.ndarray
    rail: str
    method: str
    joules: np.ndarray | None = None
    parts: dict[str, np.ndarray] = field(default_factory=dict)
    temperatures_c: dict[str, np.ndarray] = field(default_factory=dict)
    period_s: float | None = None
    missed: int = 0
    cost_s: float = 0.0

    def __post_init__(self) -> None:
        columns = [self.watts, *self.parts.values(), *self.temperatures_c.values()]
        columns += [] if self.joules is None else [self.joules]
        if self.seconds.ndim != 1 or any(column.shape != self.seconds.shape for column in columns):
            raise ValueError("a trace's columns must be of one length")
        if not np.isfinite(self.seconds).all() or (np.diff(self.seconds) <= 0).any():
            raise ValueError("a trace's seconds must rise")
        counted = self.watts if self.joules is None else self.joules
        if not np.isfinite(counted).all():
            raise ValueError("a trace's values must be finite")

    def energy(self, start: float, stop: float, idle: Trace | None = None) -> Energy | None:
        """Energy between two moments of `time.monotonic`; None where `why_not` gives a reason."""
        return self._energy([(start, stop)], idle)

    def stages(
        self, stretches: Sequence[tuple[str, float, float]], idle: Trace | None = None
    ) -> dict[str, Energy | None]:
        """Energy of each stage, over all stretches (stage, start, stop) that bear its name; None as for `energy`."""
        names = dict.fromkeys(stage for stage, _, _ in stretches)
        return {
            name: self._energy([(start, stop) for stage, start, stop in stretches if stage == name], idle)
            for name in names
        }

    def why_not(self, start: float, stop: float) -> str | None:
        """Why there is no energy between two moments, in one line; None where there is."""
        return self._why_not([(start, stop)])

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`: all samples, null where unknown."""
        return {
            "method": self.method,
            "rail": self.rail,
            "period_s": self.period,
            "missed": self.missed,
            "cost_s": self.cost_s,
            "seconds": self.seconds.tolist(),
            "watts": _plain(self.watts),
            "joules": None if self.joules is None else _plain(self.joules),
            "parts": {name: _plain(values) for name, values in self.parts.items()},
            "temperatures_c": {name: _plain(values) for name, values in self.temperatures_c.items()},
        }

    @cached_property
    def period(self) -> float:
        """Seconds between samples as meant, else their median distance; 0 where neither is known."""
        if self.period_s is not None:
            return self.period_s
        return float(np.median(np.diff(self.seconds))) if len(self.seconds) > 1 else 0.0

    def _energy(self, stretches: list[tuple[float, float]], idle: Trace | None) -> Energy | None:
        if self._why_not(stretches) is not None:
            return None
        seconds = sum(stop - start for start, stop in stretches)
        joules = sum(self._joules_at(stop) - self._joules_at(start) for start, stop in stretches)
        idle_watts = self._idle_watts(idle)
        return Energy(
            joules=joules,
            seconds=seconds,
            watts=joules / seconds,
            above_idle_j=None if idle_watts is None else joules - idle_watts * seconds,
            idle_watts=idle_watts,
            covered=1 - self._uncovered(stretches) / seconds,
            samples=self._samples(stretches),
            rail=self.rail,
            method=self.method,
        )

    def _why_not(self, stretches: list[tuple[float, float]]) -> str | None:
        seconds = sum(stop - start for start, stop in stretches)
        if any(not stop > start for start, stop in stretches) or not np.isfinite(seconds) or not stretches:
            return "no time passed"
        if len(self.seconds) < 2:
            return f"{self.method} gave {len(self.seconds)} samples"
        if self._samples(stretches) == 0:
            return f"no sample fell into {seconds * 1e3:.3g} ms; one is taken every {self.period * 1e3:.3g} ms"
        uncovered = self._uncovered(stretches) / seconds
        if uncovered > 1 - LEAST_COVERED:
            return f"{uncovered:.1%} of the time has no samples from {self.method}, more than {1 - LEAST_COVERED:.0%}"
        return None

    def _samples(self, stretches: list[tuple[float, float]]) -> int:
        return sum(int(((self.seconds >= start) & (self.seconds <= stop)).sum()) for start, stop in stretches)

    def _uncovered(self, stretches: list[tuple[float, float]]) -> float:
        """Seconds of the stretches well before the first sample or after the last, or in a gap between two.

        A counter goes on counting in a gap: there only a gap that an end of the stretch lies in is unknown.
        """
        first, last = self.seconds[0], self.seconds[-1]
        wide = np.diff(self.seconds) > LONGEST_GAP * self.period * (1 + 1e-9)
        opens, closes = self.seconds[:-1][wide], self.seconds[1:][wide]
        total = 0.0
        for start, stop in stretches:
            before, after = max(0.0, min(first, stop) - start), max(0.0, stop - max(last, start))
            total += sum(end for end in (before, after) if end > LOOSE_END * self.period)
            lost = np.clip(np.minimum(closes, stop) - np.maximum(opens, start), 0, None)
            if self.joules is not None:
                lost = lost[(opens < start) | (closes > stop)]
            total += float(lost.sum())
        return total

    def _joules_at(self, moment: float) -> float:
        """Joules from the first sample to a moment; beyond the ends the nearest power goes on."""
        if self.joules is not None:
            return self._counted_at(moment)
        index = int(np.clip(np.searchsorted(self.seconds, moment) - 1, 0, len(self.seconds) - 2))
        before, after = self.seconds[index], self.seconds[index + 1]
        power, slope = self.watts[index], (self.watts[index + 1] - self.watts[index]) / (after - before)
        inside = float(np.clip(moment, before, after)) - before
        joules = float(self._cumulated[index] + power * inside + slope * inside * inside / 2)
        beyond = moment - float(np.clip(moment, before, after))
        return joules + beyond * float(self.watts[0] if beyond < 0 else self.watts[-1])

    def _counted_at(self, moment: float) -> float:
        assert self.joules is not None
        ends = np.interp(moment, self.seconds, self.joules)
        mean = (self.joules[-1] - self.joules[0]) / (self.seconds[-1] - self.seconds[0])
        beyond = moment - float(np.clip(moment, self.seconds[0], self.seconds[-1]))
        return float(ends + beyond * mean)

    @cached_property
    def _cumulated(self) -> np.ndarray:
        """Joules float64 [N] from the first sample to each."""
        steps = np.diff(self.seconds) * (self.watts[1:] + self.watts[:-1]) / 2
        return np.concatenate([[0.0], np.cumsum(steps)])

    def _idle_watts(self, idle: Trace | None) -> float | None:
        """Mean watts of the idle trace; None where it has gaps, or is of another rail: no difference can be taken."""
        if idle is None or (idle.rail, idle.method) != (self.rail, self.method) or len(idle.seconds) < 2:
            return None
        energy = idle.energy(float(idle.seconds[0]), float(idle.seconds[-1]))
        return None if energy is None else energy.watts


def _plain(values: np.ndarray) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]
