"""Two benchmarks held against each other: `svrt bench compare A.json B.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SvrtError
from .figures import FIRST_TOKEN, WHOLE, grouped, of_stage
from .samples import STAGES, Report, Run, read_report
from .statistics import Groups, flat, median, ratio, stats

COLD = "cold"


@dataclass(frozen=True)
class Difference:
    """One row: medians of A and B in milliseconds, their ratio B over A and its 95 % interval [low, high].

    None where a stage took no time or was not run. `verdict` says in words what the interval allows.
    """

    stage: str
    a_ms: float | None
    b_ms: float | None
    n_a: int
    n_b: int
    ratio: float | None
    low: float | None
    high: float | None
    verdict: str

    @property
    def seen(self) -> bool:
        """Whether the interval leaves out 1; False where there is none."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


@dataclass(frozen=True)
class Comparison:
    """Differences by stage, and notes on what else differs between the two."""

    a: str
    b: str
    rows: list[Difference]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return asdict(self)


def compare(a: Path, b: Path) -> Comparison:
    """Compare two benchmarks of the same bundle and the same clips. Raises `SvrtError` where they are not."""
    before, after = read_report(a), read_report(b)
    _check_same(before, after, a, b)
    names = (*STAGES, WHOLE, FIRST_TOKEN, COLD)
    return Comparison(str(a), str(b), [_row(before, after, name) for name in names], _notes(before, after))


def _check_same(a: Report, b: Report, name_a: Path, name_b: Path) -> None:
    if a.bundle_sha256 != b.bundle_sha256:
        raise SvrtError(
            f"{name_b}: measured bundle {b.bundle} {b.bundle_sha256[:12]}, {name_a} measured {a.bundle} "
            f"{a.bundle_sha256[:12]}; measure one bundle on both sides"
        )
    clips_a, clips_b = ([clip.sha256 for clip in report.clips] for report in (a, b))
    if clips_a != clips_b:
        names = [", ".join(clip.name for clip in report.clips) for report in (b, a)]
        raise SvrtError(
            f"{name_b}: measured other clips ({names[0]}) than {name_a} ({names[1]}); give the same clips in the "
            "same order"
        )


def _groups(report: Report, clip: int, name: str) -> list[list[list[float]]]:
    if name == COLD:
        cold = [run for run in report.cold() if run.clip == clip]
        return [[[(run.stop_s - report.processes[run.process].start_s) * 1e3]] for run in cold]
    return grouped(report.warm(clip), of_stage(name))


def _pooled(pairs: Sequence[tuple[Groups, Groups]]) -> list[tuple[Groups, Groups]]:
    """All clips as one, each process's time over its clip's median in both benchmarks: a process is cold for one clip
    alone, so that a clip by itself has too few of them to say how processes differ."""
    sides: tuple[list[list[list[float]]], list[list[list[float]]]] = ([], [])
    for pair in pairs:
        usual = float(median(np.concatenate([flat(groups) for groups in pair])))
        for side, groups in zip(sides, pair, strict=True):
            side.extend([[ms / usual for ms in clip] for clip in process] for process in groups)
    return [(sides[0], sides[1])]


def _row(a: Report, b: Report, name: str) -> Difference:
    clips = range(len(a.clips))
    pairs = [(_groups(a, clip, name), _groups(b, clip, name)) for clip in clips]
    if name == COLD:
        pairs = [pair for pair in pairs if pair[0] and pair[1]]
    first, second = (stats([process for pair in pairs for process in pair[side]]) for side in (0, 1))
    held = _pooled(pairs) if name == COLD and pairs else pairs
    alone = any(len(groups) < 2 for pair in held for groups in pair)  # nothing says how processes differ
    found = None if alone else ratio(held)
    if found is None or first is None or second is None:
        return Difference(
            name,
            None if first is None else first.p50,
            None if second is None else second.p50,
            first.n if first else 0,
            second.n if second else 0,
            None,
            None,
            None,
            "cannot be compared",
        )
    verdict = "no difference seen"
    if found.seen:
        low, high = sorted((abs(found.low - 1), abs(found.high - 1)))
        verdict = f"B is {low:.1%} to {high:.1%} {'slower' if found.ratio > 1 else 'faster'}"
    return Difference(name, first.p50, second.p50, first.n, second.n, found.ratio, found.low, found.high, verdict)


def _notes(a: Report, b: Report) -> list[str]:
    notes = [f"{name} was disturbed: {line}" for name, report in (("A", a), ("B", b)) for line in report.disturbed]
    for key in ("processor", "board", "gpu", "cores", "kernel", "l4t", "power_mode"):
        if a.environment.get(key) != b.environment.get(key):
            notes.append(f"{key} differs: A {a.environment.get(key)}, B {b.environment.get(key)}")
    if a.backends != b.backends:
        notes.append(f"backends differ: A {a.backends}, B {b.backends}")
    versions = (a.environment.get("versions") or {}, b.environment.get("versions") or {})
    for name in sorted({*versions[0], *versions[1]}):
        if versions[0].get(name) != versions[1].get(name):
            notes.append(f"{name} differs: A {versions[0].get(name)}, B {versions[1].get(name)}")
    if _texts(a) != _texts(b):
        notes.append("the texts differ: A and B did not do the same work")
    for name, report in (("A", a), ("B", b)):
        if len(report.processes) < 3:
            notes.append(f"{name} is of {len(report.processes)} processes: how processes differ is not in its interval")
    return notes


def _texts(report: Report) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    runs: list[Run] = report.runs
    for run in runs:
        found.setdefault(run.clip, set()).add(run.text)
    return found
