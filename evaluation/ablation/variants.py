"""The ways to choose keyframes: the paper's sampler, its parts alone, and simpler ones.

All choose among the same candidates, and as many as they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...bundle import SamplerSpec
from ...runtime.sampler import kmeans, nearest_members, repeat_evenly, select
from .seen import LEVELS, Seen

PAPER_SAMPLER, UNIFORM = "dwt-vgg16-lda", "uniform"
COUNTS = (8, 12, 16, 24)  # keyframes
Choose = Callable[[Seen, int], list[int]]  # positions of so many, fewer than there are, in rising order


@dataclass(frozen=True)
class Variant:
    """One way to choose `keyframes` of a clip; `choose` is not asked where a clip has no more frames than that."""

    name: str
    keyframes: int
    choose: Choose

    def pick(self, seen: Seen) -> list[int]:
        """Positions among the candidates, rising; a clip with too few repeats them evenly."""
        if len(seen) <= self.keyframes:
            return repeat_evenly(len(seen), self.keyframes)
        return self.choose(seen, self.keyframes)


def variants(spec: SamplerSpec) -> list[Variant]:
    """Every variant of a bundle's sampler, the sampler itself first."""

    def fused(level: int) -> Choose:
        return lambda seen, count: select(np.hstack([seen.appearance, seen.motion[level]]), count)

    ways: dict[str, Choose] = {
        PAPER_SAMPLER: fused(spec.level),
        UNIFORM: lambda seen, count: uniform(len(seen), count),
        "colour histogram": lambda seen, count: nearest_to_centres(seen.colours, count),
        "motion energy": lambda seen, count: energy_peaks(seen.energy, count),
        "appearance only": lambda seen, count: select(seen.appearance, count),
        "motion only": lambda seen, count: select(seen.motion[spec.level], count),
        **{at_level(spec, level): fused(level) for level in LEVELS},
    }
    found = [Variant(name, spec.keyframes, choose) for name, choose in ways.items()]
    for name in (PAPER_SAMPLER, UNIFORM):
        others = [count for count in COUNTS if count != spec.keyframes]
        found.extend(Variant(with_count(spec, name, count), count, ways[name]) for count in others)
    return found


def at_level(spec: SamplerSpec, level: int) -> str:
    """Name of the variant that is the paper's sampler at one wavelet level."""
    return PAPER_SAMPLER if level == spec.level else f"level {level}"


def with_count(spec: SamplerSpec, name: str, count: int) -> str:
    """Name of the variant that chooses `count` keyframes as `name` does."""
    return name if count == spec.keyframes else f"{name}, K = {count}"


def uniform(frames: int, count: int) -> list[int]:
    """The middle of each of `count` equal stretches of `frames` >= count positions."""
    return [(2 * index + 1) * frames // (2 * count) for index in range(count)]


def nearest_to_centres(features: np.ndarray, count: int) -> list[int]:
    """`select` without PCA and LDA: K-means on float32 [N, D], N > count, and the member nearest each centre."""
    return nearest_members(features, kmeans(features, count), count)


def energy_peaks(energy: np.ndarray, count: int) -> list[int]:
    """Positions of the `count` greatest values of float64 [N], N > count, in rising order.

    No two neighbours are taken as long as others are left; then the greatest of those passed over.
    """
    falling = [int(index) for index in np.argsort(-energy, kind="stable")]
    chosen: list[int] = []
    for index in falling:
        if all(abs(index - taken) > 1 for taken in chosen):
            chosen.append(index)
    passed_over = [index for index in falling if index not in chosen]
    return sorted([*chosen, *passed_over][:count])


def for_encoder(picks: Sequence[int], frames: int) -> tuple[int, ...]:
    """The `frames` pictures that the encoder reads: too few picks are repeated evenly, too many thinned evenly."""
    places = uniform(len(picks), frames) if len(picks) > frames else repeat_evenly(len(picks), frames)
    return tuple(picks[place] for place in places)
