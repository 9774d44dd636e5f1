"""The figures of a report, all computed from its samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .samples import OTHER, STAGES, Report, Run
from .statistics import Stats, stats

WHOLE, FIRST_TOKEN = "whole", "first_token"
MOST_OTHER = 0.03  # of the whole may belong to no stage


@dataclass(frozen=True)
class Cold:
    """Milliseconds of new processes, from start to the end of the first text: imports, check and loading of the bundle,
    the description, and all of it."""

    imports: Stats
    loading: Stats
    describe: Stats
    first_token: Stats | None
    whole: Stats


@dataclass(frozen=True)
class Memory:
    """MiB: peak resident memory over processes, drop of MemAvailable and rise of GPU memory from before the first."""

    peak_rss_mib: float
    available_drop_mib: float | None
    gpu_mib: float | None


@dataclass(frozen=True)
class Energy:
    """Energy of warm runs: medians of joules a clip gross and above idle, by stage, and joules a generated token."""

    joules_per_clip: Stats
    above_idle_j: Stats | None
    joules_per_token: Stats | None
    stages_j: dict[str, Stats | None]
    idle_w: float | None


@dataclass(frozen=True)
class Figures:
    """Of warm runs, milliseconds by stage, `other`, `whole` and `first_token`; per clip the whole alone.

    `tokens_per_s` is generated tokens over the time of `generate`; `clips_per_s` warm runs over the time they took.
    `other_share` is the largest part of a run's whole that belongs to no stage.
    """

    warm: dict[str, Stats | None]
    by_clip: list[Stats | None]
    cold: Cold | None
    tokens_per_s: Stats | None
    clips_per_s: float | None
    other_share: float | None
    memory: Memory
    energy: Energy | None


def grouped(runs: Sequence[Run], value: Callable[[Run], float | None]) -> list[list[list[float]]]:
    """Values of runs, by process and clip; runs without a value are left out."""
    groups: dict[int, dict[int, list[float]]] = {}
    for run in runs:
        found = value(run)
        if found is not None:
            groups.setdefault(run.process, {}).setdefault(run.clip, []).append(found)
    return [list(clips.values()) for clips in groups.values()]


def of_stage(name: str) -> Callable[[Run], float | None]:
    """How to read a stage, `other`, `whole` or `first_token` of a run, in milliseconds."""
    if name == WHOLE:
        return lambda run: run.whole_ms
    if name == FIRST_TOKEN:
        return lambda run: run.first_token_ms
    return lambda run: run.ms(name)


def tokens_per_s(run: Run) -> float | None:
    """Generated tokens a second of `generate`; None where nothing was generated."""
    spent = run.stages_ms["generate"]
    return run.generated / spent * 1e3 if run.generated and spent > 0 else None


def figures(report: Report) -> Figures:
    """Compute every figure of a report."""
    warm = report.warm()
    names = (*STAGES, OTHER, WHOLE, FIRST_TOKEN)
    took = sum(run.stop_s - run.start_s for run in warm)
    return Figures(
        warm={name: stats(grouped(warm, of_stage(name))) for name in names},
        by_clip=[stats(grouped(report.warm(clip), of_stage(WHOLE))) for clip in range(len(report.clips))],
        cold=_cold(report),
        tokens_per_s=stats(grouped(warm, tokens_per_s)),
        clips_per_s=len(warm) / took if took > 0 else None,
        other_share=max((run.other_ms / run.whole_ms for run in report.runs if run.whole_ms > 0), default=None),
        memory=_memory(report),
        energy=_energy(report),
    )


def _cold(report: Report) -> Cold | None:
    runs = report.cold()
    pairs = [(run, report.processes[run.process]) for run in runs]
    if not pairs:
        return None
    imports = stats([[[(process.imported_s - process.start_s) * 1e3]] for _, process in pairs])
    loading = stats([[[(process.loaded_s - process.imported_s) * 1e3]] for _, process in pairs])
    describe = stats([[[run.whole_ms]] for run, _ in pairs])
    whole = stats([[[(run.stop_s - process.start_s) * 1e3]] for run, process in pairs])
    first = stats(
        [
            [[(run.start_s - process.start_s) * 1e3 + run.first_token_ms]]
            for run, process in pairs
            if run.first_token_ms is not None
        ]
    )
    assert imports and loading and describe and whole
    return Cold(imports, loading, describe, first, whole)


def _memory(report: Report) -> Memory:
    trace, start = report.memory, min((process.start_s for process in report.processes), default=0.0)

    def change(values: list[float | None], sign: float) -> float | None:
        known = [(at, value) for at, value in zip(trace.seconds, values, strict=True) if value is not None]
        before = [value for at, value in known if at <= start]
        during = [value for at, value in known if at > start]
        if not before or not during:
            return None
        return max(0.0, max(sign * value for value in during) - sign * before[-1])

    return Memory(
        peak_rss_mib=max((process.peak_rss_mib for process in report.processes), default=0.0),
        available_drop_mib=change(trace.available_mib, -1.0),
        gpu_mib=change(trace.gpu_mib, 1.0),
    )


def _energy(report: Report) -> Energy | None:
    found = list(zip(report.runs, report.power.runs, strict=False))
    joules = {id(run): energy for run, energy in found}
    warm = report.warm()

    def token(run: Run) -> float | None:
        gross = joules[id(run)].gross_j
        return gross / run.generated if gross is not None and run.generated else None

    if not found or len(joules) < len(report.runs):
        return None
    gross = stats(grouped(warm, lambda run: joules[id(run)].gross_j))
    if gross is None:
        return None
    by_stage = {s: stats(grouped(warm, lambda run, s=s: joules[id(run)].stages_j.get(s))) for s in STAGES}  # type: ignore[misc]
    above = stats(grouped(warm, lambda run: joules[id(run)].above_idle_j))
    return Energy(gross, above, stats(grouped(warm, token)), by_stage, report.power.idle_w)
